"""Stochastic subgradient method: one pass over the reference draws per outer iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Limits
from drojko.flows.icnn.map_state import MapState
from drojko.inner.objective import Batch
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.candidates import Condition
from drojko.inner.transport.solvers import ICNNJKO
from drojko.measures import has_atoms
from drojko.minimax.passes import Passes, PassState
from drojko.minimax.problem import RobustProblem, TrainResult
from drojko.minimax.transport.visits import Visit, room

__all__ = ["Subgradient"]

_BLOCK = 1024  # rows at once where all are looked at
_HELD = 8  # corrections of points held out
_STILL = 4  # passes between looks whether samples would rather stay where they came from


@dataclass(frozen=True)
class Subgradient:
    r"""Settings of :math:`\theta \leftarrow \theta - \eta_t g_t`, g_t the gradient at moved draws.

    Parameters
    ----------
    learning_rate : float
        First rate eta.
    step : {"adam", "constant", "diminishing"}
        Adam with a cosine schedule; a constant rate (for a weakly convex robust risk the choice
        eta = sqrt(Delta / (rho G^2 N))); or eta / sqrt(t).
    averaging : bool
        Return the average of the last fifth of the passes' parameters where it is better.
    batch_size : int or None
        Draws per step; None: 64, growing with the number of draws.
    patience : int
        Passes without a lower robust risk of the points held out, if any, that end training.
    """

    learning_rate: float = 5e-3
    step: str = "adam"
    averaging: bool = True
    batch_size: int | None = None
    patience: int = 10

    def solve(
        self,
        problem: RobustProblem,
        generator: torch.Generator,
        limits: Limits,
        *,
        n_draws: int = 2000,
        penalty: float | None = None,
    ) -> TrainResult:
        """Train ``problem.model`` in place; its best parameters are left in it."""
        solver = _Pass(self, problem, generator, limits.max_iter, limits.tol, n_draws)
        solver.penalty0 = penalty
        return solver.train(limits, limits.callback)


class _Pass(Passes):
    """The solver of the driver: ``step`` is one pass over the draws.

    It keeps the current worst-case map on the training draws as displacements, the anchor T_k of
    the modified JKO steps: each pass moves it by a few proximal corrections and never starts anew.
    References without atoms are drawn anew every pass; there an ICNN map is that anchor.
    """

    penalty0: float | None = None

    def init(self, problem: None = None) -> PassState:
        p = self.problem
        self.prepare()
        self.draw()
        # Around atoms, draws keep their order, and with it the particles' positions.
        self.atomic = has_atoms(p.reference)
        self.held = p.held()
        self.batch_size = self.batch_size_of(self.count)
        mapped = not self.atomic and isinstance(p.inner, ICNNJKO)
        rows = 0 if mapped else self.batch_size
        self.visit, width = room(p, self.x, rows)
        self.flow = None
        if mapped:
            # Fresh draws every pass: the map itself is what one pass hands to the next.
            visit = self.visit(self.x, self.y, 1.0)
            fixed = visit.objective.coordinates.immutable
            self.condition = Condition.of(visit.batch, p.n_labels, fixed)
            inner: Any = p.inner
            self.map_rate = inner.learning_rate
            self.flow = MapState.start(
                visit.batch.q0, self.condition.dim, generator=self.generator, hidden=inner.hidden
            )
        self.kept = self.x.new_zeros(len(self.x) if self.atomic else 0, width)
        return self.first(None, self._first_penalty())

    def draw(self) -> None:
        self.drawn = self.generator.get_state()
        self.x, self.y, self.w = self.problem.draw(self.n_draws, self.generator)

    def carried(self) -> Any:
        return super().carried(), self.kept, self.flow

    def restore(self, carried: Any) -> None:
        generators, self.kept, self.flow = carried
        super().restore(generators)

    def _first_penalty(self) -> float:
        if self.penalty0:
            return self.penalty0
        step, shards = max(1, self.count // _BLOCK), self.problem.shards
        some: Any = slice(0, None, step) if shards is None else shards.every(step)
        visit = self.visit(self.x[some], self.y[some], 1.0)
        mass = self.w[some] / self.problem.total(self.w[some].sum())
        return self.problem.first_penalty(visit.objective, visit.batch, mass, least=0.5)

    def step(self, state: PassState) -> PassState:
        p = self.problem
        if state.iteration and p.atoms is None:
            self.draw()
        adam, views, batches = self.opened(state)
        log_penalty = math.log(max(state.penalty, 1e-300))
        budget = None if p.radius is None else p.radius**2
        totals = np.zeros(2)
        squared_slope = 0.0
        for k, rows in enumerate(batches):
            progress = (state.iteration + k / len(batches)) / self.max_iter
            penalty = _exp(log_penalty)
            size = min(self.batch_size, self.count - k * self.batch_size)
            found = self._visited(state, rows, penalty, progress, self.count / size)
            gradient, (cost, share, risk) = self.summed(*found, views)
            squared_slope += self.descend(adam, views, gradient, progress)
            # Each batch at its own multiplier: a later one would price these costs wrongly, and
            # the dual value could fall below any risk there is.
            totals += [cost, risk + self._priced(penalty, share, cost)]
            if budget:
                # Multiplicative step on the multiplier: the cost falls like penalty^-2.
                # (As logarithms: the quotient of a finite cost and budget may be none.)
                excess = math.log(max(cost / share, 1e-300)) - math.log(budget)
                log_penalty += 0.1 * max(-1.0, min(1.0, excess)) * (1.0 - 0.9 * progress)
        return self.closed(
            state, float(totals[1]), squared_slope / len(batches), adam=adam,
            penalty=_exp(log_penalty), cost=float(totals[0]),
        )  # fmt: skip

    def _visited(
        self, state: PassState, rows: Any, penalty: float, progress: float, factor: float
    ) -> tuple[list[Tensor] | None, list[float]]:
        """Move some points; the gradient there times a factor, and cost, mass and risk."""
        p, still = self.problem, state.iteration % _STILL == 0
        if not len(rows):
            if not still:
                self._anywhere(False)
            return None, [0.0, 0.0, 0.0]
        corrections = p.inner.training_corrections
        visit = self.visit(self.x[rows], self.y[rows], penalty)
        mass = self.w[rows]
        adversary = p.adversary(visit.objective, corrections)
        # The first visits of a sample have no position to start from: more corrections.
        extra = 4 if state.iteration == 0 else 0
        start = self._start(visit, rows)
        moved = p.move(adversary, visit.batch, start, corrections + extra)
        # No loss is negative: a sample below zero has run away, and goes back at once.
        if still or self._anywhere(bool((moved.value < 0).any())):
            moved = self._at_least_still(adversary, visit.batch, moved)
        kept = visit.kept(moved.q)
        if self.atomic:
            self.kept[rows] = kept
        self._learn(visit.batch, moved, progress)
        gradient = visit.gradient(moved, kept, mass * factor)
        sums = [moved.cost.double() @ mass, mass.sum(), moved.risk.double() @ mass]
        return gradient, [float(part) for part in sums]

    def _anywhere(self, flag: bool) -> bool:
        """Whether it holds for the batch on one of the processes that share it."""
        shards = self.problem.shards
        return flag if shards is None else shards.ranks.any(flag)

    def held_out_risk(self, penalty: float) -> float:
        """The dual value at the present multiplier, after a few corrections from the rows."""
        if self.held is None:
            return math.nan
        value, p = 0.0, self.problem
        for x, y, w in zip(*(part.split(_BLOCK) for part in self.held), strict=True):
            if not len(x):  # all are on other processes
                continue
            visit = self.visit(x, y, penalty)
            adversary = p.adversary(visit.objective, _HELD)
            moved = p.move(adversary, visit.batch, visit.batch.q0, _HELD)
            value += float(moved.value.double() @ w)
        whole = p.total(torch.tensor(value, dtype=torch.float64))
        return self._priced(penalty, 1.0, 0.0) + float(whole)

    def _start(self, visit: Visit, rows: Any) -> Tensor:
        """Where the corrections start: the particle's last position, or the image under T_k."""
        objective, batch = visit.objective, visit.batch
        if self.atomic:
            return visit.start(self.kept[rows])
        if self.flow is None:
            return batch.q0
        image = self.flow.image(batch.q0, self.condition.context(batch))
        better = objective.value(batch, image) > objective.value(batch, batch.q0)
        return torch.where(better.unsqueeze(1), image, batch.q0)

    def _learn(self, batch: Batch, moved: Moved, progress: float) -> None:
        """One modified JKO step of the map towards the corrected positions."""
        if self.flow is None:
            return
        rate = self.map_rate * (1.0 - 0.9 * progress)
        context = self.condition.context(batch)
        self.flow.advance(batch.q0, context, lambda _: moved.q, rate)

    def _at_least_still(self, adversary: Adversary, batch: Batch, moved: Moved) -> Moved:
        """Samples that a risen penalty has left worse off than where they came from go back."""
        if math.isinf(adversary.objective.penalty):
            return moved
        still = adversary.objective.risk(batch, batch.q0)
        if bool((moved.value >= still).all()):
            return moved
        return moved.better(adversary.stay(batch))

    def _priced(self, penalty: float, mass: float, cost: float) -> float:
        """What the dual value adds to the risk: penalty * (radius^2 * mass - cost)."""
        if math.isinf(penalty):
            return 0.0
        budget = 0.0 if self.problem.radius is None else self.problem.radius**2
        return penalty * (budget * mass - cost)

    def evaluate(self, flat: Tensor, state: PassState) -> tuple[float, float]:
        p = self.problem
        self.load(flat)
        whole, risk, cost = torch.zeros_like(flat), 0.0, 0.0
        for first in range(0, len(self.x), _BLOCK):
            rows = slice(first, first + _BLOCK)
            visit, w = self.visit(self.x[rows], self.y[rows], state.penalty), self.w[rows]
            adversary = p.adversary(visit.objective, 10)
            moved = p.move(adversary, visit.batch, self._start(visit, rows), 10)
            moved = self._at_least_still(adversary, visit.batch, moved)
            whole += torch.cat(
                [g.reshape(-1) for g in visit.gradient(moved, visit.kept(moved.q), w)]
            )
            risk += float(moved.risk.double() @ w)
            cost += float(moved.cost.double() @ w)
        sums = torch.tensor([risk, cost], dtype=torch.float64)
        risk, cost = p.total(sums).tolist()
        whole = p.total(whole).to(whole.dtype) + self.ridge_gradient()
        value = risk + self._priced(state.penalty, 1.0, cost) + self.ridge()
        return value, float((whole * self.frozen).norm())


def _exp(log_penalty: float) -> float:
    return math.exp(log_penalty) if log_penalty < 700 else math.inf
