"""The penalty of a radius: V(r) = min over penalties of penalty * radius^2 + V_penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drojko._validation import check_number, checked
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.inner.objective import Batch
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.candidates import Support, first_candidates
from drojko.inner.transport.search.rounds import Restarts

__all__ = ["BallSolution", "solve_ball"]

_MAX_SOLVES = 40
#: Gap at which a search in full is worth its while, and of a plan for any draw of a network.
_ROUGH, _FRESH = 1e-2, 1e-4
#: Searches in full, and how far in the logarithm the penalty must have moved for another.
_FULL, _ELSEWHERE = 2, 0.05
#: How far above a penalty at which a search finds an infinite risk others begin.
_ABOVE = 1.3
#: How fast costs fall with the penalty of a linear loss, and the longest step that costs lead to.
_LINEAR, _MOST = 2.0, 2.0
_SUPPORT = 1000  # points of the max-affine potential that carries what was found to other draws


@dataclass(frozen=True, repr=False)
class BallSolution:
    r"""Worst case in a ball as a mixture of two penalised worst cases.

    The cost spent falls as the penalty rises, with jumps where the maximiser of a sample jumps.
    The mixture ``share * low + (1 - share) * high`` of the worst cases at two penalties on either
    side of the jump spends exactly the budget, so it attains the dual value: there is no gap left
    by the radius itself.

    Attributes
    ----------
    penalty : float
        The multiplier of the radius squared, in units of the loss per squared unit of X.
    low, high : Moved
        Worst cases at the two penalties.
    low_penalty, high_penalty : float
    share : float
        Of the first; 0 where one map suffices.
    adversary : Adversary
        Gives both maps, on these draws and on any other.
    restarts : Restarts or None
        What a thorough search at a penalty between says of itself.
    """

    penalty: float
    low: Moved
    high: Moved
    low_penalty: float
    high_penalty: float
    share: float
    adversary: Adversary
    restarts: Restarts | None = None

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


def mean(values: Tensor | None, weights: Tensor) -> float:
    """Weighted mean in float64; the weights sum to one. None: values without a finite mean."""
    return math.inf if values is None else float(values.double() @ weights.double())


#: Of values and masses, which another may take over rows that are elsewhere, too.
Mean = Callable[[Tensor | None, Tensor], float]


@dataclass(frozen=True)
class _Trial:
    """Worst case at a penalty, its mean cost and risk; None and infinities: unbounded."""

    penalty: float
    moved: Moved | None
    cost: float
    risk: float


@dataclass
class _Search:
    """Penalties on either side of a budget, for one adversary and its reference draws.

    A root search with jumps, of at most 40 solves within one evaluation: no run of its own.
    ``warm``: start each solve from the positions of its neighbours as well. ``share``: let every
    sample try what the first solve found for the others.
    """

    adversary: Adversary
    batch: Batch
    weights: Tensor
    budget: float
    tol: float
    warm: bool = True
    share: bool = True
    mean: Mean = mean
    solves: int = 0
    starts: list[Tensor] = field(default_factory=list)
    nominal: float = 0.0

    def run(self, penalty: float, factor: float = 1.3) -> tuple[_Trial | None, _Trial]:
        """Trials that spend more and less than the budget, closed in on the multiplier.

        The first is None where the budget cannot be spent.
        """
        objective = self.adversary.objective
        self.nominal = self.mean(objective.risk(self.batch, self.batch.q0), self.weights)
        first = self.trial(penalty)
        shared = self.warm and self.share and not self.adversary.exact
        if shared and first.moved is not None:
            # Later penalties start from what this one found, instead of from every candidate.
            quick = replace(
                self.adversary,
                candidates=first_candidates(objective),
                screening=min(4, self.adversary.screening),
            ).with_effort("warm")
            self.adversary = _with_support(quick, self.batch, [first.moved])
            self.starts.append(first.moved.q)
        low: _Trial | None = None
        high: _Trial | None = None
        at, before = first, None
        while True:
            low, high = (at, high) if at.cost >= self.budget else (low, at)
            if low is not None and high is not None:
                near = high.penalty - low.penalty <= 1e-14 * high.penalty
                met = _gap(low, high, self.budget) <= self.worth(high, self.tol)
                if met or near or self.solves >= _MAX_SOLVES:
                    break
                penalty = _between(low, high, self.budget, self.solves % 3)
            else:  # grow or shrink the penalty by growing factors until the budget lies between
                if self.solves > _MAX_SOLVES or (high is not None and self.negligible(high)):
                    break
                step = factor
                # Exact solves are cheap, and bracket the multiplier; one cost tells a search alone.
                if not self.adversary.exact and (before or self.adversary.search):
                    step = _onwards(before, at, self.budget, factor)
                penalty = at.penalty * step if high is None else at.penalty / step
                factor = min(factor * factor, 1e3)
            if self.warm:
                self.starts[:] = [t.moved.q for t in (low, high) if t is not None and t.moved]
            before, at = at, self.trial(penalty)
        if high is None:
            bounded = objective.coordinates.lower is not None
            if bounded and low is not None and low.moved is not None:
                raise InvalidDataError(
                    f"moving the reference inside the bounds costs {low.cost:g}, more than the "
                    f"radius squared, {self.budget:g}; widen the bounds or the radius"
                )
            up_to = "" if low is None else f" at every penalty up to {low.penalty:g}"
            raise UnboundedRiskError("the worst-case risk is infinite" + up_to)
        return (None if low is None or low.moved is None else low), high

    def trial(self, penalty: float) -> _Trial:
        self.solves += 1
        try:
            moved = self.adversary.with_penalty(penalty).solve(self.batch, self.starts)
        except UnboundedRiskError:
            moved = None
        parts = (None, None) if moved is None else (moved.cost, moved.risk)
        cost, risk = (self.mean(part, self.weights) for part in parts)
        return _Trial(penalty, None if cost == math.inf else moved, cost, risk)

    def negligible(self, at: _Trial) -> bool:
        """Whether what is left of the budget is worth nothing at this penalty."""
        left = at.penalty * (self.budget - at.cost)
        return left <= self.worth(at, min(self.tol, 1e-9)) or at.penalty < 1e-250

    def worth(self, at: _Trial, share: float) -> float:
        """A share of what moving gains, however small beside the risk; at least rounding."""
        return share * abs(at.risk - self.nominal) + 1e-15 * abs(self.nominal)


def _with_support(adversary: Adversary, batch: Batch, found: list[Moved]) -> Adversary:
    """The adversary with a max-affine potential on what was found, to reach it from any draw."""
    every = batch.repeat(len(found))
    at = [moved.at for moved in found]
    landed = replace(every, x=torch.cat([b.x for b in at]), y=torch.cat([b.y for b in at]))
    q = torch.cat([moved.q for moved in found])
    classes = adversary.n_labels > 0
    served = None if adversary.discrete else batch  # who keeps labels and categories lands alike
    support = Support.build(adversary.objective, landed, q, classes, _SUPPORT, served)
    return replace(adversary, candidates=(*adversary.candidates, support))


@torch.no_grad()
@checked(weights="n")
def solve_ball(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    radius: float,
    *,
    start: float | None = None,
    tol: float | None = None,
    starts: Sequence[Tensor] | None = None,
    atoms: bool = False,
    average: Mean = mean,
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
        penalties, relative to the gain over the nominal risk; None: 1e-11 where worst cases are
        exact, else 1e-6.
    starts : sequence of Tensor of shape (n, r), optional
        Positions near the worst case, as from a neighbouring model: one quick search from there
        alone, whose maps are good on these draws only.
    atoms : bool
        Whether the draws are all there are: the plan is then what was found for them, with every
        start that helped; else it is one that any draw can follow.
    average : callable, optional
        ``average(values, weights)`` over all rows, where these are some of them and each process
        solves for its own; infinite on all where one gives None. It needs a ``start``.

    Returns
    -------
    BallSolution
        Its mixture spends the budget; where no finite worst case does (bounds, a loss that
        saturates), it is the worst case at a penalty too small to matter.

    Raises
    ------
    UnboundedRiskError
        When the worst case is infinite at every penalty.

    Examples
    --------
    >>> import numpy as np
    >>> from drojko.ambiguity import GroundCost
    >>> from drojko.inner import Adversary, Coordinates, Objective, solve_ball
    >>> from drojko.losses import get_loss
    >>> from drojko.models import MLP
    >>> x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    >>> model = MLP(1, 1, hidden=())
    >>> with torch.no_grad():
    ...     _ = [p.fill_(float(p.ndim == 2)) for p in model.parameters()]
    >>> coordinates = Coordinates.build(GroundCost(np.ones(1)), x)
    >>> J = Objective(model, get_loss("squared", "regression"), coordinates, penalty=2.0)
    >>> weights = torch.ones(1, dtype=torch.float64)  # the point moves by the radius: (1 + 1/2)^2
    >>> ball = solve_ball(Adversary(J), J.batch(x, y), weights, 0.5)
    >>> round(float(ball.risk), 4)
    2.25
    """
    budget = check_number("solve_ball: radius", radius, least=0, most=1e75) ** 2
    if start is not None and start < 0.0:
        raise InvalidDataError(f"solve_ball: start={start!r}; expected a penalty, at least 0")
    if bool((weights < 0.0).any()):
        raise InvalidDataError("solve_ball: weights holds numbers below 0; expected masses")
    if budget == 0.0:
        moved = adversary.stay(batch)
        return BallSolution(math.inf, moved, moved, math.inf, math.inf, 0.0, adversary)
    penalty = start or _first_penalty(adversary, batch, weights, radius)
    goal = tol or (1e-11 if adversary.exact else 1e-6)
    searched = adversary.search is not None and starts is None and not adversary.exact
    first = max(goal, _ROUGH) if searched else goal
    own: dict[str, Any] = {"share": starts is None, "starts": list(starts or ())}
    own["mean"] = average
    guess = adversary.with_effort("rough") if searched else adversary
    low, high = _Search(guess, batch, weights, budget, first, **own).run(penalty)
    if adversary.exact or starts is not None:
        return _mixture(adversary, low, high, budget)
    found = [side.moved for side in (low, high) if side is not None and side.moved is not None]
    restarts = None
    for _ in range(_FULL if searched else 0):  # in full at the penalty that was found
        at = _nearest(low, high, budget)
        try:
            moved = adversary.with_penalty(at).solve(batch, [side.q for side in found])
        except UnboundedRiskError:  # which the searches on the way there have not found
            whole = _Search(adversary, batch, weights, budget, first, share=False, mean=average)
            low, high = whole.run(_ABOVE * at)
            if high.moved is None:
                break
            at, moved = high.penalty, high.moved
        gain = moved.value - adversary.with_penalty(at).objective.risk(batch, batch.q0)
        restarts = Restarts.of(moved.found.evidence, gain, weights, average)
        found.append(moved)
        if not atoms:
            break
        warm = replace(adversary, candidates=first_candidates(adversary.objective))
        warm = _with_support(warm.with_effort("warm"), batch, found)
        near = {"share": False, "starts": [side.q for side in found], "mean": average}
        low, high = _Search(warm, batch, weights, budget, goal, **near).run(at, 1.01)
        found += [side.moved for side in (low, high) if side is not None and side.moved is not None]
        if abs(math.log(_nearest(low, high, budget) / at)) <= _ELSEWHERE:
            break
    adversary = _with_support(adversary.with_penalty(high.penalty), batch, found)
    if not atoms:
        # Warm starts belong to these draws. A plan for any draw has its starts from candidates
        # alone: what was found becomes one of them, and the budget is met again with it.
        fresh, meet = adversary.with_effort("fast"), tol or (_FRESH if searched else 1e-5)
        again = _Search(fresh, batch, weights, budget, meet, warm=False, mean=average)
        low, high = again.run(high.penalty, factor=1.01)
    return replace(_mixture(adversary, low, high, budget), restarts=restarts)


def _mixture(adversary: Adversary, low: _Trial | None, high: _Trial, budget: float) -> BallSolution:
    if high.moved is None:
        raise UnboundedRiskError("the worst-case risk is infinite at every penalty")
    below: Any = high if low is None else low
    return BallSolution(
        high.penalty,
        below.moved,
        high.moved,
        below.penalty,
        high.penalty,
        _share(below, high, budget),
        adversary.with_penalty(high.penalty),
    )


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


def _onwards(before: _Trial | None, at: _Trial, budget: float, factor: float) -> float:
    """By how much to move a penalty on the way to the budget: past where two costs lead to, or one
    that falls as it does for a linear loss, but not too far; by a factor where they do not tell.
    """
    power = _LINEAR
    if before is not None and 0.0 < before.cost < math.inf and 0.0 < at.cost < math.inf:
        power = math.log(before.cost / at.cost) / math.log(at.penalty / before.penalty)
    if not (0.0 < at.cost < math.inf and 0.0 < power < math.inf):
        return factor
    past = 1.1 * abs(math.log(at.cost / budget)) / power + (1e-3 if before else 1e-2)
    return math.exp(min(past, math.log(max(factor, _MOST))))


def _nearest(low: _Trial | None, high: _Trial, budget: float) -> float:
    """The penalty of the two whose worst case is nearer to spending the budget."""
    if low is None or not low.cost * high.cost < budget * budget:
        return high.penalty
    return low.penalty


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
