"""The penalty of a radius: V(r) = min over penalties of penalty * radius^2 + V_penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko.exceptions import UnboundedRiskError
from drojko.inner.adversary import Adversary, Moved
from drojko.inner.ascent import Ascent
from drojko.inner.candidates import Support
from drojko.inner.objective import Batch

__all__ = ["BallSolution", "solve_ball"]

_MAX_SOLVES = 40


@dataclass(frozen=True)
class BallSolution:
    r"""Worst case in a ball as a mixture of two penalised worst cases.

    The cost spent falls as the penalty rises, with jumps where the maximiser of a sample jumps.
    The mixture ``share * low + (1 - share) * high`` of the worst cases at two penalties on either
    side of the jump spends exactly the budget, so it attains the dual value: there is no gap left
    by the radius itself. ``share`` is 0 where one map suffices.
    """

    penalty: float
    low: Moved
    high: Moved
    low_penalty: float
    high_penalty: float
    share: float

    def mix(self, low: Tensor, high: Tensor) -> Tensor:
        return high if self.share == 0.0 else self.share * low + (1.0 - self.share) * high

    @property
    def risk(self) -> Tensor:
        """Risk per sample under the mixture, shape (n,)."""
        return self.mix(self.low.risk, self.high.risk)

    @property
    def cost(self) -> Tensor:
        """Transport cost per sample under the mixture, shape (n,)."""
        return self.mix(self.low.cost, self.high.cost)


def mean(values: Tensor, weights: Tensor) -> float:
    return float(values.double() @ weights.double())


def _first_penalty(adversary: Adversary, batch: Batch, weights: Tensor, radius: float) -> float:
    # For a linear loss the displacement is gradient / (2 penalty): spend the radius exactly.
    _, gradient = adversary.objective.with_penalty(1.0).value_and_gradient(batch, batch.q0)
    slope = math.sqrt(mean(gradient.square().sum(1), weights))
    slope = slope / adversary.objective.coordinates.scale
    return max(slope / (2.0 * radius), 1e-300)


@torch.no_grad()
def solve_ball(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    radius: float,
    *,
    start: float | None = None,
    tol: float = 1e-7,
) -> BallSolution:
    """Penalties on either side of the budget, and the mixture that spends it.

    ``weights`` of shape (n,) sum to one; ``start`` is a first guess of the penalty; ``tol`` bounds
    both the relative distance of the two penalties and the relative miss of the budget.
    """
    budget = radius * radius
    if budget == 0.0:
        return _nothing(adversary, batch)
    starts: list[Tensor] = []

    def solve(penalty: float) -> Moved | None:
        """Worst case at a penalty; None where it is infinite."""
        try:
            return adversary.with_penalty(penalty).solve(batch, starts)
        except UnboundedRiskError:
            return None

    def spent(moved: Moved | None) -> float:
        return math.inf if moved is None else mean(moved.cost, weights)

    penalty = start or _first_penalty(adversary, batch, weights, radius)
    first = solve(penalty)
    if first is not None and not adversary.exact:
        # Later penalties start from what this one found.
        labelled = replace(batch, y=first.labels)
        classes = adversary.n_labels > 0
        support = Support.build(adversary.objective, labelled, first.q, classes, 1000)
        adversary = replace(adversary, candidates=(adversary.candidates[0], support))
        starts.append(first.q)
    low, high, low_penalty, high_penalty, solves = _bracket(
        solve, spent, first, penalty, budget, starts
    )
    if low is None or high is None:
        # Even a vanishing penalty does not spend the budget: the supremum itself is attained.
        moved = high if low is None else low
        attained_at = high_penalty if low is None else low_penalty
        if moved is None:
            raise UnboundedRiskError(
                f"the worst-case risk at radius={radius:g} is infinite at every penalty tried"
            )
        return BallSolution(attained_at, moved, moved, attained_at, attained_at, 0.0)

    low_miss, high_miss = spent(low) - budget, spent(high) - budget
    while solves < _MAX_SOLVES:
        if high_penalty - low_penalty <= tol * high_penalty:
            break
        if min(low_miss, -high_miss) <= tol * budget:
            break
        penalty = _between(low_penalty, high_penalty, low_miss + budget, high_miss + budget, budget)
        if solves % 3 == 2:
            penalty = math.sqrt(low_penalty * high_penalty)
        starts[:] = [low.q, high.q]
        moved = solve(penalty)
        solves += 1
        miss = spent(moved) - budget
        if miss >= 0 and moved is not None:
            low, low_penalty, low_miss = moved, penalty, miss
        elif moved is None:
            low_penalty = penalty
        else:
            high, high_penalty, high_miss = moved, penalty, miss
    gap = low_miss - high_miss
    share = 0.0 if gap <= 0 or not math.isfinite(gap) else -high_miss / gap
    return BallSolution(high_penalty, low, high, low_penalty, high_penalty, share)


def _between(low: float, high: float, cost_low: float, cost_high: float, budget: float) -> float:
    """Secant in log-log coordinates, kept inside the bracket; the middle where it says nothing."""
    middle = math.sqrt(low * high)
    if not (math.isfinite(cost_low) and cost_high > 0):
        return middle
    slope = math.log(cost_low / cost_high)
    if slope <= 0:
        return middle
    part = math.log(cost_low / budget) / slope
    part = min(max(part, 1e-3), 1.0 - 1e-3)
    return math.exp(math.log(low) + part * math.log(high / low))


def _bracket(
    solve: Callable[[float], Moved | None],
    spent: Callable[[Moved | None], float],
    first: Moved | None,
    penalty: float,
    budget: float,
    starts: list[Tensor],
) -> tuple[Moved | None, Moved | None, float, float, int]:
    """Penalties on either side of the budget, found by growing factors."""
    low = high = None
    low_penalty = high_penalty = penalty
    moved, factor, solves = first, 1.3, 1
    if spent(first) >= budget:
        low = first
        while solves < _MAX_SOLVES:
            high_penalty *= factor
            moved = solve(high_penalty)
            solves += 1
            if spent(moved) < budget:
                high = moved
                break
            low, low_penalty = moved, high_penalty
            factor = min(factor * factor, 1e3)
        return low, high, low_penalty, high_penalty, solves
    high = first
    last = spent(first)
    flat = 0
    while solves < _MAX_SOLVES:
        low_penalty /= factor
        moved = solve(low_penalty)
        solves += 1
        cost = spent(moved)
        if cost >= budget:
            # An infinite worst case brackets the penalty as well, without a map of its own.
            low = moved
            if moved is None:
                return _finite_low(solve, spent, high, low_penalty, high_penalty, budget, solves)
            break
        flat = flat + 1 if cost <= last * (1 + 1e-9) else 0
        if flat >= 4 and factor >= 1e3:
            return None, moved, low_penalty, low_penalty, solves
        if moved is not None:
            high, high_penalty, last = moved, low_penalty, cost
            starts[:] = [moved.q]
        factor = min(factor * factor, 1e3)
    return low, high, low_penalty, high_penalty, solves


def _finite_low(solve, spent, high, low_penalty, high_penalty, budget, solves):
    """Close in from an infinite worst case until one side of the budget has a finite map."""
    while solves < _MAX_SOLVES:
        penalty = math.sqrt(low_penalty * high_penalty)
        moved = solve(penalty)
        solves += 1
        cost = spent(moved)
        if moved is None:
            low_penalty = penalty
        elif cost >= budget:
            return moved, high, penalty, high_penalty, solves
        else:
            high, high_penalty = moved, penalty
    return None, high, high_penalty, high_penalty, solves


def _nothing(adversary: Adversary, batch: Batch) -> BallSolution:
    """Radius 0: nothing moves."""
    objective = adversary.objective
    value, gradient = objective.value_and_gradient(batch, batch.q0)
    found = Ascent(batch.q0, value, gradient)
    moved = Moved.of(objective, batch, batch.y, found, math.inf)
    return BallSolution(math.inf, moved, moved, math.inf, math.inf, 0.0)
