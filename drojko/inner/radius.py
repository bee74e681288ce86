"""The penalty of a radius: V(r) = min over penalties of penalty * radius^2 + V_penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.inner.adversary import Adversary, Moved
from drojko.inner.candidates import Support, first_candidates
from drojko.inner.objective import Batch

__all__ = ["BallSolution", "solve_ball"]

_MAX_SOLVES = 40


@dataclass(frozen=True, repr=False)
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
        """Mean of two quantities of the maps under the mixture."""
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
    """Weighted mean in float64; the weights sum to one."""
    return float(values.double() @ weights.double())


@dataclass(frozen=True)
class _Trial:
    """Worst case at a penalty, its mean cost and risk; None and infinities: unbounded."""

    penalty: float
    moved: Moved | None
    cost: float
    risk: float

    def alone(self) -> BallSolution:
        if self.moved is None:
            raise UnboundedRiskError(
                f"the worst-case risk is infinite at every penalty up to {self.penalty:g}"
            )
        return BallSolution(self.penalty, self.moved, self.moved, self.penalty, self.penalty, 0.0)


@torch.no_grad()
def solve_ball(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    radius: float,
    *,
    start: float | None = None,
    tol: float | None = None,
) -> BallSolution:
    r"""Penalties on either side of the budget, and the mixture that spends it.

    .. math:: V(r) = \min_{\lambda \ge 0} \lambda r + V_\lambda, \qquad r = \mathrm{radius}^2,

    where the derivative of V_lambda is minus the mean cost of its worst case: the multiplier is
    where that cost crosses r.

    Parameters
    ----------
    adversary : Adversary
    batch, weights : Batch, Tensor of shape (n,)
        Reference draws and their masses, which sum to one.
    radius : float
        In the units of X (weighted by the ground cost); 0: nothing moves.
    start : float, optional
        First guess of the penalty.
    tol : float, optional
        Bounds the gap between the mixture's risk and the dual value at the better of the two
        penalties, relative to the risk; None: 1e-11 where the worst cases are exact, else 1e-6.

    Returns
    -------
    BallSolution
        Its mixture spends the budget; where no finite worst case does (bounds, a loss that
        saturates), it is the worst case at a penalty too small to matter.

    Raises
    ------
    UnboundedRiskError
        When the worst case is infinite at every penalty.
    """
    budget = radius * radius
    if budget == 0.0:
        return _nothing(adversary, batch)
    if tol is None:
        tol = 1e-11 if adversary.exact else 1e-6
    starts: list[Tensor] = []

    def trial(penalty: float) -> _Trial:
        try:
            moved = adversary.with_penalty(penalty).solve(batch, starts)
        except UnboundedRiskError:
            return _Trial(penalty, None, math.inf, math.inf)
        return _Trial(penalty, moved, mean(moved.cost, weights), mean(moved.risk, weights))

    first = trial(start or _first_penalty(adversary, batch, weights, radius))
    if first.moved is not None and not adversary.exact:
        # Later penalties start from what this one found.
        labelled = replace(batch, y=first.moved.labels)
        classes = adversary.n_labels > 0
        support = Support.build(adversary.objective, labelled, first.moved.q, classes, 1000)
        candidates = (*first_candidates(adversary.objective), support)
        screening = min(4, adversary.screening)
        adversary = replace(adversary, candidates=candidates, screening=screening)
        starts.append(first.moved.q)

    def negligible(at: _Trial) -> bool:
        """Whether what is left of the budget is worth nothing at this penalty."""
        if at.moved is None:
            return False
        return at.penalty * (budget - at.cost) <= tol * abs(at.risk) or at.penalty < 1e-250

    low, high, solves = _bracket(trial, first, budget, starts, negligible)
    if high is None:
        if low is not None and low.moved is not None:
            raise InvalidDataError(
                f"moving the reference inside the bounds costs {low.cost:g}, more than "
                f"radius={radius:g} squared; widen the bounds or the radius"
            )
        return first.alone()
    if low is None:
        return high.alone()
    while solves < _MAX_SOLVES:
        if _gap(low, high, budget) <= tol * abs(high.risk):
            break
        if high.penalty - low.penalty <= 1e-14 * high.penalty:
            break
        penalty = _between(low, high, budget, solves % 3)
        starts[:] = [side.moved.q for side in (low, high) if side.moved is not None]
        middle = trial(penalty)
        solves += 1
        if middle.cost >= budget:
            low = middle
        else:
            high = middle
    if low.moved is None or high.moved is None:
        return high.alone()
    share = _share(low, high, budget)
    return BallSolution(high.penalty, low.moved, high.moved, low.penalty, high.penalty, share)


def _share(low: _Trial, high: _Trial, budget: float) -> float:
    spread = low.cost - high.cost
    return 0.0 if spread <= 0.0 else (budget - high.cost) / spread


def _gap(low: _Trial, high: _Trial, budget: float) -> float:
    """Smaller dual value of the two penalties, minus the risk of the mixture."""
    if low.moved is None:
        return math.inf
    share = _share(low, high, budget)
    attained = share * low.risk + (1.0 - share) * high.risk
    return min(t.risk + t.penalty * (budget - t.cost) for t in (low, high)) - attained


def _first_penalty(adversary: Adversary, batch: Batch, weights: Tensor, radius: float) -> float:
    # For a linear loss the displacement is gradient / (2 penalty): spend the radius exactly.
    objective = adversary.objective.with_penalty(1.0)
    value, gradient = objective.value_and_gradient(batch, batch.q0)
    slope = math.sqrt(mean(gradient.square().sum(1), weights)) / objective.coordinates.scale
    # Where the loss is flat at the samples, the penalty at which all of it is worth the budget.
    least = 1e-6 * abs(mean(value, weights)) / radius**2
    return max(slope / (2.0 * radius), least) or 1.0 / radius**2


def _between(low: _Trial, high: _Trial, budget: float, turn: int) -> float:
    """A penalty inside the bracket, by three rules in turn.

    The secant of the costs in log-log coordinates is fast where the cost is smooth; the dual's
    two tangents cross at a jump of the cost, wherever it is; the middle is slow and sure.
    """
    middle = math.sqrt(low.penalty * high.penalty)
    if not math.isfinite(low.cost) or low.cost <= high.cost or turn == 2:
        return middle
    if turn == 1:
        crossing = (low.risk - high.risk) / (low.cost - high.cost)
        return crossing if low.penalty < crossing < high.penalty else middle
    if high.cost <= 0.0:
        return middle
    part = math.log(low.cost / budget) / math.log(low.cost / high.cost)
    part = min(max(part, 1e-3), 1.0 - 1e-3)
    return math.exp(math.log(low.penalty) + part * math.log(high.penalty / low.penalty))


def _bracket(
    trial: Callable[[float], _Trial],
    first: _Trial,
    budget: float,
    starts: list[Tensor],
    negligible: Callable[[_Trial], bool],
) -> tuple[_Trial | None, _Trial | None, int]:
    """Trials that spend more and less than the budget, by growing factors of the penalty.

    The first is None where the budget cannot be spent, the second where it is always exceeded.
    """
    low = high = None
    at, factor, solves = first, 1.3, 1
    while (low is None or high is None) and solves < _MAX_SOLVES:
        if at.cost >= budget:
            low = at
        else:
            high = at
            if low is None and negligible(at):
                break
        if low is not None and high is not None:
            break
        if at.moved is not None:
            starts[:] = [at.moved.q]
        at = trial(at.penalty * factor if high is None else at.penalty / factor)
        factor = min(factor * factor, 1e3)
        solves += 1
    return low, high, solves


def _nothing(adversary: Adversary, batch: Batch) -> BallSolution:
    """Radius 0: nothing moves."""
    moved = adversary.stay(batch)
    return BallSolution(math.inf, moved, moved, math.inf, math.inf, 0.0)
