"""The search without gradients: random moves, lines and columns, many rows per call."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from drojko._random import spawn
from drojko.auditing.attacks.pool import Layer, Pool
from drojko.auditing.progress import Progress
from drojko.auditing.reading.own import Tally
from drojko.auditing.reading.problem import AuditProblem
from drojko.estimators._parallel import in_parallel, workers
from drojko.losses import get_loss

__all__ = ["Search", "apart", "in_blocks", "search"]

#: Share of the calls of each phase: random moves, lines towards other rows; the rest improves,
#: which asks about few rows and gains most.
RANDOM, LINES = 0.1, 0.35
_KEPT = 16  # penalties whose best candidates survive
_DONORS, _BISECTIONS, _MOST_DONORS = 4, 6, 1_000
#: Bisections of all lines of a row, before the best goes on alone.
_FIRST = 2
#: Bisections of the lines along which a guide expects other answers, and how far these go.
_FINE, _REACHES = 20, (1.0, 5.0)
#: Parts of the columns that are put back, and what is left of their move.
_PARTS, _LEFT = 5, (0.0, 0.5, 0.8)
#: Near rows whose moves a row that stays may try, and how often it tries one.
_NEAR, _BORROW = 16, 0.5
#: Rounds without a gain make a row wait: how much longer each, and at most.
_WAIT, _LONGEST = 2.0, 3.0
#: Rounds of improvements at most.
_ROUNDS = 60
#: Rows of a block at least, and blocks at most.
_ROWS, _BLOCKS = 1_000, 16
#: Rows of one call, and numbers in them.
_ATONCE, _NUMBERS = 100_000, 4_000_000


def in_blocks(n: int) -> bool:
    """Whether n rows are so many that workers share them."""
    return n >= 2 * _ROWS


def apart(problem: AuditProblem) -> AuditProblem:
    """A problem for a worker, which counts for itself and says nothing."""
    own = replace(problem.model, tally=Tally())
    return replace(problem, calls=[0], progress=Progress(), model=own)


def search(
    problem: AuditProblem,
    pool: Pool,
    radii: list[float],
    calls: int,
    generator: torch.Generator,
    n_jobs: int | None = None,
) -> None:
    """Add what ``calls`` questions per row find to a pool, as layers of the source "search".

    Random directions and distances; lines towards rows that the model scores badly under a row's
    own label, bisected to where the loss rises; then changes of the best moves so far: columns put
    back, whole moves shortened, shaken, or borrowed from near rows, accepted where the loss minus
    the price of the cost rises. The prices are those of the radii. Questions that do not wait for
    one another's answers are one call of the model, none is put about a row that it would leave
    where it is, and rows that gained nothing lately are asked about less often. No more than
    ``calls`` times the number of rows are asked about, and one thousand that show their answers.

    Many rows are searched in blocks drawn by chance, each at prices of its own, ``n_jobs`` at once.
    """
    every = problem.w.nonzero()[:, 0]
    n, blocks = len(every), [every]
    if in_blocks(n):
        order = every[torch.randperm(n, generator=generator)]
        blocks = [rows.sort().values for rows in order.chunk(min(n // _ROWS, _BLOCKS))]
    alone = workers(n_jobs, len(blocks)) == 1
    jobs, share = [], 0.7 / len(blocks)
    for rows in blocks:
        part = replace(problem.part(rows), progress=problem.progress)
        if not alone:
            part = apart(part)
        jobs.append((part, pool.nominal[rows], radii, calls, spawn(generator), share))
    stay, last = pool.layers[0], len(pool.layers)
    with closing(in_parallel(_block, jobs, n_jobs)) as done:
        for rows in problem.progress.over(blocks, "search", 0.0 if alone else 0.7):
            layers, asked, bad = next(done)
            if not alone:
                problem.calls[0] += asked
                problem.model.tally.bad += bad
            for k, layer in enumerate(layers):
                if len(pool.layers) == last + k:
                    x, cost, risk = stay.x.clone(), stay.cost.clone(), stay.risk.clone()
                    pool.add(x, stay.y, cost, risk, "search")
                whole = pool.layers[last + k]
                whole.x[rows], whole.cost[rows], whole.risk[rows] = layer.x, layer.cost, layer.risk


def _block(
    problem: AuditProblem,
    nominal: Tensor,
    radii: list[float],
    calls: int,
    generator: torch.Generator,
    share: float,
) -> tuple[list[Layer], int, int]:
    """What is found for some rows, of which the losses are known; rows asked, answers amiss."""
    pool, tally = Pool.of(problem.x, problem.y, nominal), problem.model.tally
    asked, bad = problem.calls[0], tally.bad
    state = Search(problem, pool, radii, generator, calls * len(problem.x))
    state.random(max(1, int(RANDOM * calls)))
    state.slopes(min(_FINE, int(LINES * calls) // len(_REACHES) - 1))
    state.lines(min(_DONORS, int(LINES * calls) // (_BISECTIONS + 1)))
    for _ in problem.progress.over(range(min(calls, _ROUNDS)), "search", share):
        if problem.late:
            break
        if state.left > 0:
            state.improve()
    state.prune()
    return pool.layers[1:], problem.calls[0] - asked, tally.bad - bad


@dataclass(eq=False)
class Search:
    """Changes of the rows' moves, each of which is asked about and becomes a layer of the pool."""

    problem: AuditProblem
    pool: Pool
    radii: list[float]
    generator: torch.Generator
    #: Rows that may still be asked about.
    left: float = math.inf

    def __post_init__(self) -> None:
        self.far = 3.0 * max(self.radii)
        if self.problem.ambiguity.order == 1:  # whose worst cases move few rows far
            centre = self.problem.w @ self.problem.x
            far = float(self.problem.w @ self.problem.price(self.problem.x - centre))
            self.far = max(self.far, far)
        self.mutable = torch.as_tensor(self.problem.cost.mutable)
        weights = np.where(self.problem.cost.mutable, self.problem.cost.weights, 0.0)
        self.weights = torch.as_tensor(weights)
        self.swaps, whole = self.problem.swaps, self.problem.cost.whole
        self.whole = torch.zeros(0, dtype=torch.long)
        if whole is not None:
            self.whole = torch.as_tensor(np.flatnonzero(whole & self.problem.cost.mutable))
        if self.swaps is not None:
            self.state = self.swaps.state(self.problem.x)
        self.penalties: list[float] = []
        self.idle = torch.zeros(0, 0)
        n, d = self.problem.x.shape
        #: Changes of all rows that one call may hold.
        self.most = max(1, min(_ATONCE // n, _NUMBERS // max(1, n * d)))

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def ask(self, x: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Where rows come to stand for positions x (m, n, d), their losses and costs (m, n).

        Rows that stand where they are ``known`` from, of the same shape, are not asked about: their
        losses are those of the rows where they are, or minus infinity.
        """
        if len(x) > self.most:
            at = [None] * len(x) if known is None else known.split(self.most)
            parts = [self.ask(*part) for part in zip(x.split(self.most), at)]
            z, risk, cost = map(torch.cat, zip(*parts))
            return z, risk, cost
        problem = self.problem
        x, cost = self.place(x)
        moved = (x != problem.x).any(-1)
        risk = torch.where(moved, -torch.inf, self.pool.nominal)
        new = moved if known is None else moved & (x != known).any(-1)
        if self.left < new.numel():
            new &= new.flatten().cumsum(0).reshape(new.shape) <= self.left
        if new.any():
            self.left -= int(new.sum())
            risk[new] = problem.losses(x[new], problem.y.expand(new.shape)[new])
        return x, risk, cost

    def keep(self, x: Tensor, risk: Tensor, cost: Tensor) -> None:
        """What `ask` has found as layers of the pool."""
        for at, loss, spent in zip(x, risk, cost, strict=True):
            self.pool.add(at, self.problem.y, spent, loss, "search")
            if len(self.pool.layers) > 3 * _KEPT:
                self.prune()

    def place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest positions (m, n, d) that rows may take, and what each costs, (m, n)."""
        problem = self.problem
        z = torch.where(self.mutable, problem.real(x), problem.x)
        cost = problem.price(z - problem.x)
        if self.swaps is None:
            return z, cost
        m, (n, d) = len(x), problem.x.shape
        own, choice = self.state.repeat(m, 1), self.swaps.state(x.reshape(-1, d))
        z = self.swaps.apply(z.reshape(-1, d), own, choice).reshape(m, n, d)
        return z, cost + self.swaps.fee(own, choice).reshape(m, n)

    def random(self, times: int) -> None:
        """Random directions and distances for every row."""
        for start in range(0, times, self.most):
            self.keep(*self.ask(self.fresh(min(self.most, times - start))))

    def fresh(self, m: int) -> Tensor:
        """Random positions (m, n, d)."""
        shape = (m, *self.problem.x.shape)
        way = self.problem.directions(m * shape[1], self.generator).reshape(shape)
        return self.problem.x + way * (self.far * self.uniform(m, shape[1], 1))

    # -- lines -------------------------------------------------------------------------------

    def lines(self, count: int) -> None:
        """Bisect the lines towards the best donors of every row."""
        if not count:
            return
        donors = self.find_donors()
        goals = self.problem.x[donors[:, [min(k, donors.shape[1] - 1) for k in range(count)]].T]
        self.bisect(goals, _BISECTIONS)

    def slopes(self, bisections: int) -> None:
        """Bisect the line along the gradient of a model whose loss has none.

        The way is that of the usual loss of its classes, for which the model stands as a guide.
        """
        guide, problem = self.problem.model.guide, self.problem
        if guide is None or bisections < 1 or not problem.n_labels:
            return
        usual = get_loss("logistic", "classification", problem.n_labels)
        f, backward = guide.linearise(problem.x)
        root = torch.as_tensor(problem.cost.inverse_weights).sqrt()
        way = torch.nan_to_num(backward(usual.gradient(f, problem.y)).double() * root)
        way = way / way.norm(dim=1, keepdim=True).clamp_min(1e-300)
        goals = [problem.x + reach * self.far * way * root for reach in _REACHES]
        self.bisect(torch.stack(goals), bisections)

    def bisect(self, goals: Tensor, times: int) -> None:
        """Ask at goals (m, n, d), and where on the ways there the loss has risen halfway.

        After a few bisections only the way that gains most for its cost goes on, row by row.
        """
        problem, base = self.problem, self.pool.nominal
        goals = torch.where(self.mutable, goals, problem.x)  # categories are swapped elsewhere
        missing = problem.model.space.missing
        goals = goals if missing is None else torch.where(goals == missing, problem.x, goals)
        x, top, cost = self.ask(goals)
        self.keep(x, top, cost)
        risk, low, high = top, torch.zeros_like(top), torch.ones_like(top)
        for k in range(times):
            if k == _FIRST and len(goals) > 1:
                gain = (risk - base) / cost.clamp_min(1e-300)
                best = gain.nan_to_num(-torch.inf).argmax(0, keepdim=True)
                risk, cost, top, low, high = (
                    part.gather(0, best) for part in (risk, cost, top, low, high)
                )
                at = best.unsqueeze(-1).expand(1, *x.shape[1:])
                x, goals = x.gather(0, at), goals.gather(0, at)
            middle = 0.5 * (low + high)
            at, found, spent = self.ask(problem.x.lerp(goals, middle.unsqueeze(-1)))
            self.keep(at, found, spent)
            enough = found - base >= 0.5 * (top - base)
            high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
            x = torch.where(enough.unsqueeze(-1), at, x)
            risk, cost = torch.where(enough, found, risk), torch.where(enough, spent, cost)
        self.keep(x, risk, cost)

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
            if problem.ambiguity.order == 1:
                cost = torch.cdist(problem.x[rows] * root, z * root, float(problem.ambiguity.norm))
            else:
                cost = torch.cdist(problem.x[rows] * root, z * root).square()
            ratio = torch.where(
                gain > 0, gain / cost.clamp_min(1e-12 * problem.budget(self.far)), -cost
            )
            best.append(picked[ratio.topk(min(_DONORS, len(z)), 1).indices])
        return torch.cat(best)

    # -- improvements ------------------------------------------------------------------------

    def prices(self) -> None:
        """Penalties of the radii, for what is known so far."""
        known = {
            self.pool.plan(self.problem.w, self.problem.budget(radius)).penalty
            for radius in self.radii
        }
        best = torch.stack([layer.risk for layer in self.pool.layers]).amax(0)
        gain = float(self.problem.w @ (best - self.pool.nominal))
        least = max(gain, 1e-300) / self.problem.budget(max(self.radii))
        self.penalties = sorted(p for p in known if 0 < p < math.inf) or [least]

    def improve(self) -> None:
        """Ask about changes of the best moves of every row at all of the prices at once.

        A row that gained nothing lately is asked about less often.
        """
        self.prices()
        x, _, cost, risk = map(
            torch.stack, zip(*(self.pool.best(self.problem.w, p) for p in self.penalties))
        )
        price = torch.tensor(self.penalties, dtype=torch.float64).unsqueeze(1)
        value = risk - price * cost
        if self.idle.shape != value.shape:
            self.idle = torch.zeros_like(value)
        wait = (_WAIT * self.idle).clamp_max(_LONGEST)
        turn = (self.uniform(*value.shape) * (1.0 + wait) < 1.0).unsqueeze(-1)
        tried = torch.stack([torch.cat([self.put_back(at), self.changed(at)]) for at in x], 1)
        tried = torch.where(turn, tried, x)
        count, known = len(tried), x.expand(tried.shape).flatten(0, 1)
        found = self.ask(tried.flatten(0, 1), known)
        self.best(*found)
        risk, cost = (part.reshape(count, *value.shape) for part in found[1:])
        better = risk - price * cost > value
        self.idle = torch.where(better.any(0), 0.0, self.idle + turn[..., 0])
        # No column is put back twice: what wins alone may win together.
        wins = better[:_PARTS] & (better[:_PARTS].sum(0) > 1)
        back = torch.where(wins.unsqueeze(-1), tried[:_PARTS] - x, 0.0).sum(0)
        self.best(*self.ask(x + back, x))

    def best(self, x: Tensor, risk: Tensor, cost: Tensor) -> None:
        """Keep the best of what `ask` has found at each of the prices."""
        for penalty in self.penalties:
            pick = (risk - penalty * cost).argmax(0, keepdim=True)
            at = x.gather(0, pick.unsqueeze(-1).expand(1, *x.shape[1:]))
            self.keep(at, risk.gather(0, pick), cost.gather(0, pick))

    def put_back(self, x: Tensor) -> Tensor:
        """Positions with a part of the columns put back or nearer, each column in one of them."""
        (n, d), move = x.shape, x - self.problem.x
        part = (self.uniform(n, d) + (move == 0)).argsort(1).argsort(1) % _PARTS
        own = part == torch.arange(_PARTS).reshape(-1, 1, 1)
        left = torch.tensor(_LEFT)[(len(_LEFT) * self.uniform(_PARTS, n, 1)).long()]
        return torch.where(own, self.problem.x + left * move, x)

    def changed(self, x: Tensor) -> Tensor:
        """Positions x (n, d) nearer to where the rows are, shaken, stepped and swapped."""
        n, move = len(x), x - self.problem.x
        length = (move.square() @ self.weights).sqrt().unsqueeze(1)
        shorter = self.problem.x + (0.6 + 0.39 * self.uniform(n, 1)) * move
        scale = length * (0.1 + 0.5 * self.uniform(n, 1))
        shaken = x + scale * self.problem.directions(n, self.generator)
        # A row that stays where it is tries what another has found, or a random move.
        found = [torch.where(length > 0, shaken, self.borrowed(move)), shorter]
        if len(self.whole):
            found.append(self.stepped(x))
        if self.swaps is not None:
            found.append(self.swapped(x))
        return torch.stack(found)

    def borrowed(self, move: Tensor) -> Tensor:
        """Rows moved as near ones of their class are, by moves (n, d); by chance where none is."""
        near = self.near
        pick = torch.where((move != 0).any(1)[near], self.uniform(*near.shape), -1.0)
        share, at = pick.max(1, keepdim=True)
        theirs = self.problem.x + move[near.gather(1, at)[:, 0]]
        taken = (share > 0) & (self.uniform(len(move), 1) < _BORROW)
        return torch.where(taken, theirs, self.fresh(1)[0])

    @cached_property
    def near(self) -> Tensor:
        """A few near rows of the same class (of any, in regression) of every row, (n, k)."""
        problem, n = self.problem, len(self.problem.x)
        picked = torch.randperm(n, generator=self.generator)[:_MOST_DONORS]
        root, classes = self.weights.sqrt(), bool(problem.n_labels)
        z, found = problem.x[picked] * root, []
        for rows in torch.arange(n).split(1_024):
            far = torch.cdist(problem.x[rows] * root, z)
            if classes:
                far[problem.y[rows, None] != problem.y[picked]] = torch.inf
            far[rows[:, None] == picked] = torch.inf
            found.append(picked[far.topk(min(_NEAR, len(z)), 1, largest=False).indices])
        return torch.cat(found)

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
        pool, own = self.pool, Pool(self.pool.layers.copy())
        if len(own.layers) <= _KEPT:
            return
        self.prices()
        low, high = 0.2 * self.penalties[0], 5.0 * self.penalties[-1]
        count = max(4, _KEPT - len(self.penalties))
        grid = np.geomspace(low, high, count).tolist() + self.penalties
        del pool.layers[1:]
        for penalty in sorted(set(grid)):
            pool.add(*own.best(self.problem.w, penalty), "search")
