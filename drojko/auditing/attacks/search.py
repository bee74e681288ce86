"""The search without gradients: random moves, lines and coordinates, many rows per call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drojko.auditing.attacks.pool import Pool
from drojko.auditing.reading.problem import AuditProblem
from drojko.losses import get_loss

__all__ = ["Search", "search"]

#: Share of the calls of each phase: random moves, lines towards other rows; the rest improves.
RANDOM, LINES = 0.2, 0.35
_KEPT = 16  # penalties whose best candidates survive
_DONORS, _BISECTIONS, _MOST_DONORS = 4, 6, 1_000
#: Bisections of the lines along which a guide expects other answers, and how far these go.
_FINE, _REACHES = 20, (1.0, 5.0)
_ATONCE = 100_000  # rows of one call


def search(
    problem: AuditProblem, pool: Pool, radii: list[float], calls: int, generator: torch.Generator
) -> None:
    """Add what ``calls`` questions per row find to a pool, as layers of the source "search".

    Random directions and distances; lines towards rows that the model scores badly under a row's
    own label, bisected to where the loss rises; then changes of the best moves so far: single
    coordinates put back or halved, whole moves shortened or shaken, accepted where the loss minus
    the price of the cost rises. The prices are those of the radii.
    """
    state = Search(problem, pool, radii, generator)
    used = max(1, int(RANDOM * calls))
    for _ in range(used):
        state.random()
    used += state.slopes(min(_FINE, int(LINES * calls) // len(_REACHES) - 2))
    for k in range(min(_DONORS, int(LINES * calls) // (_BISECTIONS + 2))):
        used += state.line(k)
    for step in problem.progress.over(range(calls - used), "search", 0.7):
        state.improve(step)
    state.prune()


@dataclass(eq=False)
class Search:
    """Changes of the rows' moves, each of which is asked about and becomes a layer of the pool."""

    problem: AuditProblem
    pool: Pool
    radii: list[float]
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.first = len(self.pool.layers)
        self.far = 3.0 * max(self.radii)
        self.mutable = torch.as_tensor(self.problem.cost.mutable)
        weights = np.where(self.problem.cost.mutable, self.problem.cost.weights, 0.0)
        self.weights = torch.as_tensor(weights)
        self.swaps, whole = self.problem.swaps, self.problem.cost.whole
        self.whole = torch.zeros(0, dtype=torch.long)
        if whole is not None:
            self.whole = torch.as_tensor(np.flatnonzero(whole & self.problem.cost.mutable))
        if self.swaps is not None:
            self.state = self.swaps.state(self.problem.x)
        extra = [4] * bool(len(self.whole)) + [5] * (self.swaps is not None)
        self.kinds = [0, 1, 2, 3, *([0, 1, 2, 3, *extra] if extra else [])]
        self.donors: Tensor | None = None
        self.penalties: list[float] = []
        self.current: dict[float, tuple[Tensor, Tensor]] = {}

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and costs at positions of all rows, which become a layer."""
        x, cost = self.place(x)
        risk = torch.cat(
            [
                self.problem.losses(a, b)
                for a, b in zip(x.split(_ATONCE), self.problem.y.split(_ATONCE), strict=True)
            ]
        )
        self.pool.add(x, self.problem.y, cost, risk, "search")
        if len(self.pool.layers) - self.first > 3 * _KEPT:
            self.prune()
        return risk, cost

    def place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest positions (n, d) that rows may take, and what each costs, (n,)."""
        problem = self.problem
        z = torch.where(self.mutable, problem.real(x), problem.x)
        cost = (z - problem.x).square() @ self.weights
        if self.swaps is None:
            return z, cost
        choice = self.swaps.state(x)
        return self.swaps.apply(z, self.state, choice), cost + self.swaps.fee(self.state, choice)

    def random(self) -> None:
        """A random direction and distance for every row."""
        self.ask(self.fresh())

    def fresh(self) -> Tensor:
        n = len(self.problem.x)
        move = self.problem.directions(n, self.generator) * (self.far * self.uniform(n, 1))
        return self.problem.x + move

    # -- lines -------------------------------------------------------------------------------

    def line(self, k: int) -> int:
        """Bisect the line towards the k-th best donor of every row; the number of calls."""
        if self.donors is None:
            self.donors = self.find_donors()
        goal = self.problem.x[self.donors[:, min(k, self.donors.shape[1] - 1)]]
        return self.bisect(goal, _BISECTIONS)

    def slopes(self, bisections: int) -> int:
        """Bisect the line along the gradient of a model whose loss has none; number of calls.

        The way is that of the usual loss of its classes, for which the model stands as a guide.
        """
        guide, problem = self.problem.model.guide, self.problem
        if guide is None or bisections < 1 or not problem.n_labels:
            return 0
        usual = get_loss("logistic", "classification", problem.n_labels)
        f, backward = guide.linearise(problem.x)
        root = torch.as_tensor(problem.cost.inverse_weights).sqrt()
        way = torch.nan_to_num(backward(usual.gradient(f, problem.y)).double() * root)
        way = way / way.norm(dim=1, keepdim=True).clamp_min(1e-300)
        goals = (problem.x + reach * self.far * way * root for reach in _REACHES)
        return sum(self.bisect(goal, bisections) for goal in goals)

    def bisect(self, goal: Tensor, times: int) -> int:
        """Ask at the goals, and where on the way there the loss has risen halfway."""
        problem, base = self.problem, self.pool.nominal
        goal = torch.where(self.mutable, goal, problem.x)  # categories are swapped elsewhere
        missing = problem.model.space.missing
        goal = goal if missing is None else torch.where(goal == missing, problem.x, goal)
        top, _ = self.ask(goal)
        low, high = torch.zeros_like(base), torch.ones_like(base)
        for _ in range(times):
            middle = 0.5 * (low + high)
            risk, _ = self.ask(problem.x + middle.unsqueeze(1) * (goal - problem.x))
            enough = risk - base >= 0.5 * (top - base)
            high = torch.where(enough, middle, high)
            low = torch.where(enough, low, middle)
        self.ask(problem.x + high.unsqueeze(1) * (goal - problem.x))  # all that is best in one
        return times + 2

    def find_donors(self) -> Tensor:
        """Rows whose answers are worst for a row's own label at the least cost, shape (n, k)."""
        problem, n = self.problem, len(self.problem.x)
        picked = torch.randperm(n, generator=self.generator)[:_MOST_DONORS]
        z, f = problem.x[picked], problem.outputs(problem.x[picked])
        root = self.weights.sqrt()
        best = []
        for rows in torch.arange(n).split(1_024):
            y = problem.y[rows]
            every = f.repeat_interleave(len(rows), 0)
            loss = problem.loss.value(every, y.repeat(len(f))).double().reshape(len(f), len(rows))
            gain = loss.T - self.pool.nominal[rows, None]
            cost = torch.cdist(problem.x[rows] * root, z * root).square()
            ratio = torch.where(gain > 0, gain / cost.clamp_min(1e-12 * self.far**2), -cost)
            best.append(picked[ratio.topk(min(_DONORS, len(z)), 1).indices])
        return torch.cat(best)

    # -- improvements ------------------------------------------------------------------------

    def prices(self) -> None:
        """Penalties of the radii, for what is known so far."""
        known = {self.pool.plan(self.problem.w, radius**2).penalty for radius in self.radii}
        best = torch.stack([layer.risk for layer in self.pool.layers]).amax(0)
        gain = float(self.problem.w @ (best - self.pool.nominal))
        least = max(gain, 1e-300) / max(self.radii) ** 2
        self.penalties = sorted(p for p in known if 0 < p < math.inf) or [least]

    def improve(self, step: int) -> None:
        """One change of the best move of every row at one of the prices."""
        if step % 16 == 0:
            self.prices()
            self.current = {}
        penalty = self.penalties[step % len(self.penalties)]
        if penalty not in self.current:
            x, _, cost, risk = self.pool.best(self.problem.w, penalty)
            self.current[penalty] = (x, risk - penalty * cost)
        x, value = self.current[penalty]
        trial = self.change(x, step)
        trial, _ = self.place(trial)
        risk, cost = self.ask(trial)
        new = risk - penalty * cost
        wins = new > value
        self.current[penalty] = (
            torch.where(wins.unsqueeze(1), trial, x),
            torch.where(wins, new, value),
        )

    def change(self, x: Tensor, step: int) -> Tensor:
        """A change of every row's move: by kind, in turn."""
        n, d = x.shape
        move = x - self.problem.x
        kind = self.kinds[(step // max(1, len(self.penalties))) % len(self.kinds)]
        if kind >= 4:
            return self.stepped(x) if kind == 4 else self.swapped(x)
        length = (move.square() @ self.weights).sqrt().unsqueeze(1)
        still = length <= 0
        if kind == 0:  # most of the move is in few columns: drop a part of the others
            drop = self.uniform(n, d) < 0.5
            drop &= move.abs() < move.abs().amax(1, keepdim=True)
            trial = torch.where(drop, self.problem.x, x)
        elif kind == 1:  # one column halfway back, or all the way
            score = self.uniform(n, d) * (move != 0)
            column = score.argmax(1, keepdim=True)
            factor = 0.5 * (self.uniform(n, 1) < 0.5).double()
            trial = x.clone()
            back = (self.problem.x + factor * move).gather(1, column)
            trial.scatter_(1, column, back)
        elif kind == 2:  # shorter as a whole
            trial = self.problem.x + (0.6 + 0.39 * self.uniform(n, 1)) * move
        else:  # shaken
            scale = length * (0.1 + 0.5 * self.uniform(n, 1))
            trial = x + scale * self.problem.directions(n, self.generator)
        # A row that stays where it is tries what another row does, or a random move.
        return torch.where(still, self.fresh(), trial)

    def stepped(self, x: Tensor) -> Tensor:
        """Another whole number in one column: the next one, or one a few steps away."""
        n, x = len(x), x.clone()
        at = self.whole[(self.uniform(n) * len(self.whole)).long()].unsqueeze(1)
        size = torch.where(self.uniform(n, 1) < 0.5, 1.0, (1.0 + 4.0 * self.uniform(n, 1)).floor())
        sign = torch.where(self.uniform(n, 1) < 0.5, -1.0, 1.0)
        return x.scatter_add(1, at, sign * size)

    def swapped(self, x: Tensor) -> Tensor:
        """Another category in one group of columns; half of the time the row's own again."""
        assert self.swaps is not None
        choice, own = self.swaps.state(x), self.state
        counts = torch.tensor([len(values) for values in self.swaps.values], dtype=torch.float64)
        n = len(x)
        group = (self.uniform(n) * self.swaps.n_groups).long()
        new = (self.uniform(n) * counts[group]).long()
        back = (self.uniform(n) < 0.5) & (choice != own).any(1)
        new = torch.where(back, own.gather(1, group[:, None])[:, 0], new)
        return self.swaps.apply(x, choice, choice.scatter(1, group[:, None], new[:, None]))

    def prune(self) -> None:
        """Keep the best candidates at a grid of penalties, and at those of the radii."""
        pool = self.pool
        if len(pool.layers) - self.first <= _KEPT:
            return
        self.prices()
        low, high = 0.2 * self.penalties[0], 5.0 * self.penalties[-1]
        count = max(4, _KEPT - len(self.penalties))
        grid = np.geomspace(low, high, count).tolist() + self.penalties
        own = Pool([pool.layers[0], *pool.layers[self.first :]])
        del pool.layers[self.first :]
        for penalty in sorted(set(grid)):
            pool.add(*own.best(self.problem.w, penalty), "search")
