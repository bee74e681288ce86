r"""Weighted points, and the worst-case risk of a linear model there: a root in the penalty."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from drojko._threads import in_order, slabs
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.losses import Loss
from drojko.rows import blocks, equal, normalised, products

__all__ = ["RidgeData", "RidgeRisk", "ridge_robust_risk", "spend"]

_SHARED = 100_000  # rows from which on threads share a sum
_CLOSE = 1e-13  # relative distance of primal and dual value that is rounding
_AMPLE = 1e-10  # and one that is enough where a plan more is many rows more


@dataclass(frozen=True)
class RidgeData:
    r"""Weighted points, a transport cost and a scalar loss :math:`\ell(\theta'x + b, y)`.

    Ground cost: :math:`c(x, x') = \sum_j (x_j - x'_j)^2 / a_j`, plus ``label_cost`` times
    ``[y != y']`` (classification) or ``(y - y')^2`` (regression).

    Parameters
    ----------
    X : array of shape (n, d), float64 or float32; never copied as a whole.
    y : array of shape (n,): 0 or 1 for classification (class indices, for a loss of several
        outputs), numbers for regression.
    weight : array of shape (n,), nonnegative; None: equal weights. Only proportions matter.
    inverse_cost : array of shape (d,), the a_j; 0 means that the column cannot move. None: ones.
    label_cost : float, ``inf`` keeps labels fixed.
    swaps : `drojko.minimax.transport.jumps.groups.Groups`, columns that change by swaps, whose
        ``inverse_cost`` is 0. None: there are none.
    box : `drojko.minimax.transport.jumps.groups.Box`, within which columns move. None: no bounds.
    loss : a `Loss` with an exact worst case.

    Raises
    ------
    InvalidDataError, UnsupportedError

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> data = RidgeData(np.eye(2), np.array([0, 1]), loss=get_loss("logistic"))
    >>> data.weight
    array([0.5, 0.5])
    """

    X: np.ndarray
    y: np.ndarray
    _: KW_ONLY
    weight: np.ndarray = None  # type: ignore[assignment]
    inverse_cost: np.ndarray = None  # type: ignore[assignment]
    label_cost: float = math.inf
    swaps: Any = None
    box: Any = None
    loss: Loss

    def __post_init__(self) -> None:
        X, put = self.X, lambda name, value: object.__setattr__(self, name, value)
        several = not self.loss.scalar
        if not several and not self.loss.has_worst_jet:
            raise UnsupportedError(
                f"{self.loss!r} has no `worst_jet`, which the exact linear solver needs: implement "
                "it, or state a finite curvature of a smooth convex loss"
            )
        given = isinstance(X, np.ndarray) or hasattr(X, "rows")  # an array, or a table
        if not given or X.ndim != 2 or X.dtype not in (np.float32, np.float64):
            raise InvalidDataError("X: expected a two-dimensional float32 or float64 array")
        n, d = X.shape
        y = np.array(self.y, dtype=np.float64)  # a copy: torch shares memory with writable arrays
        if y.shape != (n,) or n == 0:
            raise InvalidDataError(f"y has shape {y.shape}, expected ({n},), at least one row")
        if several:
            y = y.astype(np.int64)
        elif self.loss.task == "classification" and not ((y == 0) | (y == 1)).all():
            raise InvalidDataError("y: expected class indices 0 and 1")
        weight = equal(n) if self.weight is None else np.asarray(self.weight, float)
        if weight.shape != (n,) or not (weight >= 0).all() or not 0 < weight.sum() < math.inf:
            raise InvalidDataError(
                f"weight: expected {n} nonnegative finite numbers, not all of them zero"
            )
        cost = np.ones(d) if self.inverse_cost is None else np.asarray(self.inverse_cost, float)
        if cost.shape != (d,) or not ((cost >= 0) & np.isfinite(cost)).all():
            raise InvalidDataError(f"inverse_cost: expected {d} nonnegative finite numbers")
        if not self.label_cost > 0:
            raise InvalidDataError(f"label_cost = {self.label_cost!r}, expected a positive number")
        put("y", y)
        put("weight", normalised(weight))
        put("inverse_cost", cost)
        put("label_cost", float(self.label_cost))

    @property
    def own(self) -> RidgeData:
        """The rows of this process where some lie on others; weights are shares of all."""
        X: Any = self.X
        if not getattr(X, "shared", False):
            return self
        some = copy.copy(self)
        here = {"X": X.local, "y": self.y[X.own], "weight": self.weight[X.own]}
        some.__dict__.update(here)
        return some

    @property
    def flips(self) -> bool:
        """Whether the adversary may change class labels."""
        return self.loss.task == "classification" and math.isfinite(self.label_cost)

    @property
    def jumps(self) -> bool:
        """Whether the adversary may change class labels or categories, or is held by bounds."""
        return self.flips or self.swaps is not None or self.box is not None

    @property
    def jump_cost(self) -> float:
        """The largest finite price of such a change; without any, infinite."""
        prices = [self.label_cost] if self.flips else []
        return max(prices + ([] if self.swaps is None else [self.swaps.largest]), default=math.inf)

    @property
    def label_norm(self) -> float:
        """What moving the label adds to the squared ridge norm (regression): 1 / label_cost."""
        return 1.0 / self.label_cost if self.loss.task == "regression" else 0.0

    def squared_norm(self, coef: np.ndarray) -> float:
        """n² = sum_j a_j coef_j² (+ 1/label_cost): κ = penalty / n²."""
        return float(self.inverse_cost @ (coef * coef)) + self.label_norm

    def predictions(self, coef: np.ndarray, intercept: float) -> np.ndarray:
        """Return u = X coef + intercept in float64, shape (n,)."""
        u = products(self.X, coef)
        u += intercept
        return u


@dataclass(frozen=True)
class RidgeRisk:
    """Worst case of one model. Shifts are changes of the prediction (minus the label) per point.

    ``value`` is the robust risk (radius form: the least upper bound over the ball, from the dual;
    penalty form: E[loss - penalty * cost]). ``attained`` is the same functional of an explicit
    plan: every point's mass moves by ``shift_low`` (share ``mixture``) and ``shift_high`` (share
    ``1 - mixture``), the worst cases at the penalties ``penalty_low <= penalty_high`` that bracket
    ``penalty``; ``flip_low`` and ``flip_high`` mark the points whose class label changes. The
    plan's cost is ``transport_cost``, in radius form ``radius**2`` unless the model cannot use it.
    ``shift`` and ``flip`` are those of the part with the larger share. Numbers by point are made
    when they are asked for.

    A shift t moves x by ``inverse_cost * coef * t / n²`` and, in regression with a finite label
    cost, y by ``-t / (label_cost * n²)``, with n² = `RidgeData.squared_norm`.
    """

    value: float
    penalty: float
    transport_cost: float
    attained: float
    nominal: float
    penalty_low: float
    penalty_high: float
    mixture: float
    model: _Model = field(repr=False)

    def of(self, coef: np.ndarray, intercept: float) -> bool:
        """Whether it is that of this model."""
        own = self.model
        return own.intercept == intercept and np.array_equal(own.coef, coef)

    @cached_property
    def _low(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.moves(self.penalty_low)

    @cached_property
    def _high(self) -> tuple[np.ndarray, np.ndarray]:
        same = self.penalty_high == self.penalty_low
        return self._low if same else self.model.moves(self.penalty_high)

    @property
    def _main(self) -> tuple[np.ndarray, np.ndarray]:
        return self._low if self.mixture >= 0.5 else self._high

    shift_low = property(lambda self: self._low[0])
    flip_low = property(lambda self: self._low[1])
    shift_high = property(lambda self: self._high[0])
    flip_high = property(lambda self: self._high[1])
    shift = property(lambda self: self._main[0])
    flip = property(lambda self: self._main[1])


@dataclass
class _Plan:
    """``fall``: how fast the logarithm of the cost falls in that of λ, where that is known."""

    lam: float
    value: float  # E[loss - λ cost]
    risk: float
    cost: float
    fall: float = math.nan


class _Model:
    """One fixed model: plans as a function of the penalty, whose sums alone are kept."""

    def __init__(
        self, data: RidgeData, coef: np.ndarray, intercept: float, scores: Any = None
    ) -> None:
        self.table: Any = data.X
        self.data = data = data.own
        self.coef, self.intercept = coef, intercept
        self.u = data.predictions(coef, intercept) if scores is None else scores.u
        self.norm = data.squared_norm(coef)
        self.loss = data.loss
        self.nearby = getattr(self.loss, "_worst_near", None)
        self._near: np.ndarray | None = None if scores is None else scores.near
        self._given = None if scores is None else scores.plan
        self.even: tuple[float, float] | None = None  # of the squared loss: shift by residual

    @property
    def floor(self) -> float:
        """The price above which worst cases are finite."""
        return self.loss.growth * self.norm

    def _moved(
        self, part: slice, lam: float, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Worst shifts of some rows, their costs and the losses there."""
        return self._along(self.u[part], lam, y)

    def _along(
        self, u: np.ndarray, lam: float, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`_moved`, of given predictions."""
        if self.norm == 0.0 or math.isinf(lam):
            shift, cost = np.zeros_like(u), np.zeros_like(u)
        elif self.even is not None:
            shift = self.even[0] * (u - y) + self.even[1]
            cost = shift * shift / self.norm
        else:
            at, target = torch.from_numpy(u), torch.from_numpy(y)
            shift = self.loss.shift(at, target, lam / self.norm).numpy()
            cost = shift * shift / self.norm
        return (
            shift,
            cost,
            self.loss.value(torch.from_numpy(u + shift), torch.from_numpy(y)).numpy(),
        )

    def _close(self, lam: float) -> bool:
        """Whether worst cases at lam are found from others nearby."""
        if self.nearby is None or self.data.jumps or self.norm == 0.0 or not 0.0 < lam < math.inf:
            return False
        return self.loss.kink_free(0.25 * self.norm / lam)

    def _from_near(self, part: slice, lam: float, known: bool, second: bool = True) -> Any:
        """Worst shifts from the last ones, the losses less slope times prediction, and bends."""
        assert self.nearby is not None
        assert self._near is not None
        sigma = 0.25 * self.norm / lam
        last = self._near[part] if known else None
        least, slope, bend, self._near[part] = self.nearby(
            self.u[part], self.data.y[part], sigma, last, second
        )
        return 2.0 * sigma * slope, least, bend

    def _sums(self, part: slice, lam: float, close: bool, known: bool) -> np.ndarray:
        """Risk, cost and how the cost bends, of some rows."""
        w = np.ascontiguousarray(self.data.weight[part])
        if not close:
            _, cost, risk, _ = self._flipped(part, lam)
            return np.array([w @ risk, w @ cost, 0.0])
        shift, least, bend = self._from_near(part, lam, known)
        mass = w * shift
        cost, rate = float(mass @ shift) / self.norm, 2.0 * lam / self.norm
        mass *= rate  # weights times slopes
        risk = float(w @ least) + float(mass @ self.u[part]) + 2.0 * lam * cost
        return np.array([risk, cost, (mass * shift) @ bend / (rate * self.norm)])

    def _flipped(self, part: slice, lam: float) -> tuple[np.ndarray, ...]:
        """`_moved`, and which labels change."""
        y = self.data.y[part]
        shift, cost, risk = self._moved(part, lam, y)
        flip = np.zeros(len(y), dtype=bool)
        if self.data.flips and not math.isinf(lam):
            shift2, cost2, risk2 = self._moved(part, lam, 1.0 - y)
            cost2 = cost2 + self.data.label_cost
            flip = risk2 - lam * cost2 > risk - lam * cost
            shift, cost = np.where(flip, shift2, shift), np.where(flip, cost2, cost)
            risk = np.where(flip, risk2, risk)
        return shift, cost, risk, flip

    def plan(self, lam: float) -> _Plan:
        close = self._close(lam)
        if close and self._given is not None and self._given[0] == lam:
            return self._summed(lam, self._given[1:], close)
        known = self._near is not None
        if close and not known:
            self._near = np.empty(len(self.u), dtype=np.float32)
        parts = in_order(lambda part: self._sums(part, lam, close, known), slabs(len(self.u)))
        sums = sum(parts, np.zeros(3))
        if self.table is not self.data.X:
            sums = self.table.total(sums)
        return self._summed(lam, sums.tolist(), close)

    def _summed(self, lam: float, sums: Sequence[float], close: bool) -> _Plan:
        risk, cost, bend = sums
        priced = 0.0 if cost == 0.0 else lam * cost
        fall = 2.0 + self.norm / lam * bend / cost if close and cost > 0.0 else math.nan
        return _Plan(lam, risk - priced, risk, cost, fall)

    def moves(self, lam: float) -> tuple[np.ndarray, np.ndarray]:
        """Shifts of all points, and which labels change."""
        shift, flip = np.empty(len(self.u)), np.zeros(len(self.u), dtype=bool)
        close = self._close(lam) and self._near is not None
        for part in blocks(len(self.u), 16):
            if close:
                shift[part] = self._from_near(part, lam, True, False)[0]
            else:
                shift[part], _, _, flip[part] = self._flipped(part, lam)
        return shift, flip

    def each(self, lam: float) -> tuple[np.ndarray, np.ndarray]:
        """Loss and cost of all points."""
        parts = [self._flipped(part, lam) for part in blocks(len(self.u), 16)]
        return np.concatenate([p[2] for p in parts]), np.concatenate([p[1] for p in parts])

    def jumps(self, lam: float) -> np.ndarray:
        """Penalties from lam on at which a single point's maximiser jumps, sorted, flips aside."""
        if lam > 0.0 and self.loss.kink_free(0.25 * self.norm / lam):
            return np.zeros(0)
        at = self.loss.jumps(self.u, self.data.y)
        if self.table is not self.data.X:
            at = self.table.every(at)
        with np.errstate(over="ignore"):
            return np.unique(self.norm / (4.0 * at))


def ridge_robust_risk(
    data: RidgeData,
    coef: np.ndarray,
    intercept: float = 0.0,
    *,
    radius: float | None = None,
    penalty: float | None = None,
    guess: float | None = None,
    scores: Any = None,
) -> RidgeRisk:
    r"""Worst-case risk of a fixed linear model under order-2 Wasserstein, exactly.

    .. math:: \min_{\lambda \ge 0} \lambda r^2
              + E \max_t \{\ell(u + t, y) - \lambda t^2 / n^2\}, \qquad u = \theta'x + b,

    or its second term at ``penalty``. Plan and bound agree to a relative 1e-13, with 100,000 rows
    or more to 1e-10; where the transport cost jumps there, a mixture of the plans on both sides
    spends the budget exactly, so that ``attained`` and ``value`` agree.

    Parameters
    ----------
    data : RidgeData
    coef : array of shape (d,)
    intercept : float
    radius, penalty : exactly one of them; radius in the units of X.
    guess : a penalty close to the optimal one, if known.
    scores : those that a `LinearFit` of these rows has, if any.

    Raises
    ------
    UnboundedRiskError
        If `penalty` does not exceed growth * n² (squared loss).

    Examples
    --------
    Squared loss: the closed form (root mean squared error + radius * norm)².

    >>> from drojko.losses import get_loss
    >>> data = RidgeData(np.array([[1.0], [2.0]]), np.array([1.0, 4.0]), loss=get_loss("squared"))
    >>> risk = ridge_robust_risk(data, np.array([1.0]), radius=0.5)
    >>> round(risk.value, 9), round((2**0.5 + 0.5) ** 2, 9)
    (3.664213562, 3.664213562)
    """
    if (radius is None) == (penalty is None):
        raise InvalidDataError("give exactly one of radius and penalty")
    jumps = data.box if data.swaps is None else data.swaps
    kind: Any = _Model if jumps is None else jumps.model
    known = (scores,) if jumps is None and scores is not None and scores.of(coef, intercept) else ()
    model = kind(data, np.asarray(coef, dtype=np.float64), float(intercept), *known)
    nominal = model.plan(math.inf)
    if penalty is not None:
        floor = model.floor
        if not (penalty > 0 and (model.norm == 0.0 or penalty > floor)):
            raise UnboundedRiskError(
                f"penalty = {penalty:.6g}: the worst case of this model is infinite; it is finite "
                f"for penalty > {floor:.6g}"
            )
        plan = model.plan(float(penalty))
        return _result(model, plan.value, plan, plan, 1.0, nominal.risk, plan.value)
    if not (radius is not None and 0 <= radius < math.inf):
        raise InvalidDataError(f"radius = {radius!r}, expected a finite number >= 0")
    budget = radius * radius
    if budget == 0.0 or (model.norm == 0.0 and math.isinf(data.jump_cost)):
        return _result(model, nominal.risk, nominal, nominal, 1.0, nominal.risk, nominal.risk)
    if data.loss.quadratic and jumps is None:
        return _squared(model, radius, nominal.risk)
    low, high = _bracket(model, budget, guess)
    if low.cost >= budget:
        low, high = _narrow(model, budget, low, high)
    else:
        high = low  # λ = 0: the model gives the adversary nothing more to spend on
    value, mixture, attained = _mixed(budget, low, high)
    return _result(model, value, low, high, mixture, nominal.risk, attained)


def _mixed(budget: float, low: _Plan, high: _Plan) -> tuple[float, float, float]:
    """The bound of the better multiplier, and the mixture on budget with its risk."""
    spread = low.cost - high.cost
    if math.isinf(spread):  # the edge of where worst cases are finite: the loss grows as the cost
        value = high.value + high.lam * budget
        return value, 0.0, min(high.risk, value)
    mixture = min(max((budget - high.cost) / spread, 0.0), 1.0) if spread > 0 else 1.0
    value = min(low.value + low.lam * budget, high.value + high.lam * budget)
    return value, mixture, mixture * low.risk + (1.0 - mixture) * high.risk


def _result(
    model: _Model,
    value: float,
    low: _Plan,
    high: _Plan,
    mixture: float,
    nominal: float,
    attained: float,
) -> RidgeRisk:
    main = low if mixture >= 0.5 else high
    cost = mixture * low.cost + (1.0 - mixture) * high.cost
    return RidgeRisk(value, main.lam, cost, attained, nominal, low.lam, high.lam, mixture, model)


def _squared(model: _Model, radius: float, nominal: float) -> RidgeRisk:
    norm, root = math.sqrt(model.norm), math.sqrt(nominal)
    # shift = residual / (κ - 1) with κ - 1 = root / (radius * norm); a perfect fit moves evenly.
    value = (root + radius * norm) ** 2
    lam = norm * (norm + root / radius)
    model.even = (radius * norm / root, 0.0) if root > 0 else (0.0, radius * norm)
    plan = _Plan(lam, value - lam * radius**2, value, radius**2)
    return _result(model, value, plan, plan, 1.0, nominal, value)


def _bracket(model: _Model, budget: float, guess: float | None) -> tuple[_Plan, _Plan]:
    """Plans with cost >= budget (small λ) and cost <= budget (large λ)."""
    steep = model.loss.lipschitz or 1.0
    lam = 0.5 * math.sqrt(model.norm / budget) * (steep if math.isfinite(steep) else 1.0)
    lam = max(lam, 2.0 * model.floor)
    dear = model.data.jump_cost
    if lam == 0.0:  # only labels and categories can change
        lam = 1.0 / dear
    factor = 4.0
    if guess is not None and 0 < guess < math.inf:
        lam, factor = guess, 1.0 + 1e-6
    low = high = model.plan(lam)
    for _ in range(200):
        if low.cost >= budget or low.lam == 0.0:
            break
        high = low
        lam = low.lam / factor if low.lam > 1e-290 else 0.0
        if model.norm == 0.0 and lam < 1e-30 / dear:
            lam = 0.0  # all changes that pay do not exhaust the budget
        low = model.plan(_beyond(low, budget, lam))
        factor = factor**8 if factor < 2.0 else factor * factor
    factor = min(factor, 4.0) if guess is None else factor
    for _ in range(200):
        if high.cost <= budget:
            break
        low, high = high, model.plan(_beyond(high, budget, high.lam * factor))
        factor = factor**8 if factor < 2.0 else factor * factor
    return low, high


def _beyond(plan: _Plan, budget: float, other: float) -> float:
    """A penalty just beyond the one at which a plan's tangent spends the budget, or ``other``."""
    if not (plan.fall > 0.0 and plan.cost > 0.0):
        return other
    way = math.log(plan.cost / budget) / plan.fall
    if not 0.0 < abs(way) < 0.1:
        return other
    return plan.lam * math.exp(way + math.copysign(4.0 * way * way + 1e-12, way))


def _narrow(model: _Model, budget: float, low: _Plan, high: _Plan) -> tuple[_Plan, _Plan]:
    """Shrink a bracket by regula falsi on logarithms, with bisection at the known jumps."""
    jumps: np.ndarray | None = None
    eps = 2e-14  # predictions elsewhere round otherwise
    close = _CLOSE if len(model.u) < _SHARED else _AMPLE
    side, flo, fhi = 0, 1.0, 1.0  # Illinois weights
    for iteration in range(300):
        if high.lam - low.lam <= 1e-13 * high.lam:
            break
        if low.cost <= budget * (1 + 1e-14) or high.cost >= budget * (1 - 1e-14):
            break  # the mixture of the two ends costs exactly the budget
        value, _, attained = _mixed(budget, low, high)
        if value - attained <= close * abs(value):
            break
        if jumps is None:
            jumps = model.jumps(low.lam)
        a, b = np.searchsorted(jumps, [low.lam * (1 + eps), high.lam * (1 - eps)])
        lam = math.nan
        known = b > a and (iteration % 2 == 1 or b - a <= 2)
        if known or (model.data.jumps and iteration % 2 == 1 and low.cost < math.inf):
            at, near = float(jumps[(a + b) // 2]) if known else 0.0, eps
            if not known:
                at, near = _meeting(budget, low, high)
            before = model.plan(max(at * (1 - near), low.lam))
            if before.cost <= budget:
                high, flo, fhi, side = before, 1.0, 1.0, 0
                continue
            after = model.plan(min(at * (1 + near), high.lam))
            if after.cost >= budget:
                low, flo, fhi, side = after, 1.0, 1.0, 0
                continue
            return before, after
        if low.lam > 0 and high.cost > 0 and iteration % 6 != 5:
            x, y = math.log(low.cost / budget) * flo, math.log(budget / high.cost) * fhi
            t = x / (x + y)
            lam = math.exp(math.log(low.lam) * (1 - t) + math.log(high.lam) * t)
        if not low.lam < lam < high.lam:
            positive = low.lam > 0 and high.lam / low.lam > 4
            lam = math.sqrt(low.lam * high.lam) if positive else 0.5 * (low.lam + high.lam)
        plan = model.plan(lam)
        if plan.cost >= budget:
            low, flo = plan, 1.0
            fhi, side = (0.5 * fhi, 1) if side == 1 else (1.0, 1)
        else:
            high, fhi = plan, 1.0
            flo, side = (0.5 * flo, -1) if side == -1 else (1.0, -1)
        if not low.lam < high.lam:
            break
    return low, high


def _meeting(budget: float, low: _Plan, high: _Plan) -> tuple[float, float]:
    """Where the tangents of the bound at both ends meet, and how surely, relatively.

    A single jump between them is there, exactly.
    """
    left, right = low.cost - budget, budget - high.cost
    fall = low.value - high.value + budget * (low.lam - high.lam)
    at = (left * low.lam + right * high.lam + fall) / (left + right)
    at = min(max(at, low.lam), high.lam)
    size = abs(high.value) + budget * high.lam
    return at, 2e-14 + (4e-16 * size / (at * (left + right)) if at > 0.0 else 0.0)


def spend(
    at: Callable[[float], tuple[float, float, Any]],
    budget: float,
    guess: float,
    *,
    least: float = 0.0,
    close: float = 1e-14,
) -> tuple[float, Any]:
    """The price at which the budget is spent, and what ``at`` says there.

    ``at(price)``: what is spent, which nonincreases; its derivative; anything. Newton's method on
    the logarithms of what is spent and of the price's excess over ``least``, in a bracket.
    """
    extra = max(guess - least, 1e-12 * guess)
    low, high = 0.0, math.inf
    for _ in range(200):
        spent, slope, found = at(least + extra)
        if abs(spent - budget) <= close * budget:
            break
        low, high = (extra, high) if spent > budget else (low, extra)
        step = math.nan
        if 0.0 < spent < math.inf and slope < 0.0:
            rise = -math.log(spent / budget) * spent / (slope * extra)
            step = extra * math.exp(max(-3.0, min(3.0, rise)))
        if not low < step < high:
            if math.isinf(high):
                step = 2.0 * extra
            else:
                step = math.sqrt(low * high) if low > 0.0 else 0.25 * high
        if abs(step - extra) <= 1e-15 * extra or high - low <= 1e-15 * extra:
            break
        extra = step
    return least + extra, found
