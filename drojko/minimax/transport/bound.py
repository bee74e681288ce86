r"""A proven lower bound on the minimal robust risk, from the slopes of an adversary's plan.

A plan gives row i masses W_ik and loss slopes p_ik. Against this adversary every z pays

.. math:: L + c'z + R\,n(z) + \tfrac12 z'Dz, \qquad
          L = \sum_{ik} W_{ik} \inf_f \{\ell(f, y_i) - p_{ik} f\}, \quad c = E\,p x,

with R = sqrt((r² - cost of flipped labels) E p²) in the radius form (and n² E p²/(4λ) instead of
R n in the penalty form). This is ℓ(f) ≥ p f - ℓ*(p) and the best displacement of size allowed by
the budget. Its minimum over z is the bound. It is -inf unless E p = 0 and c is dominated by R, so
plans are repaired: mass gets the slope 0, where the infimum is 0; and the mean slopes a of the rows
take Newton steps with the rows' own curvatures towards the c at which z is optimal.

A row's plan enters by its mean slope a and its second moment S alone. Where the conjugate of the
loss is quadratic, the infimum is linear in a minus k S, and S is free between a² and the chord
(lo + hi) a - lo hi of the slopes' domain; otherwise S = a². Both forms of the problem are then
concave in the scale of the slopes, in S, and in how c is shared between ball and ridge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from drojko.losses import Loss
from drojko.losses.jets import jet
from drojko.minimax.newton import solve_symmetric
from drojko.minimax.transport.risk import RidgeData
from drojko.rows import Rows, blocks

__all__ = ["Ground", "Plan", "balance", "lower_bound", "pinned_columns", "plan_of"]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Ground:
    r"""Norm and ridge in the coordinates of standardised rows, and the size of the set.

    .. math:: n^2(z) = \sum_j cost_j z_j^2 + offset, \qquad
              \tfrac\alpha2 \|\theta\|^2 = \tfrac12 \sum_j ridge_j z_j^2

    Both are zero on the intercept. ``radius`` None or 0 and ``penalty`` None: nothing moves.
    ``flip_cost`` is the price of another class; infinite: labels stay.
    """

    cost: np.ndarray
    ridge: np.ndarray
    offset: float
    radius: float | None
    penalty: float | None
    flip_cost: float = math.inf

    @classmethod
    def of(
        cls,
        rows: Rows,
        data: RidgeData,
        radius: float | None = None,
        penalty: float | None = None,
        alpha: float = 0.0,
    ) -> Ground:
        """The ground of these rows."""
        cost, ridge = np.zeros(rows.size), np.zeros(rows.size)
        square = rows.scale * rows.scale
        cost[: rows.d] = np.where(rows.dead, 1.0, data.inverse_cost / square)
        ridge[: rows.d] = np.where(rows.dead, 0.0, alpha / square)
        flip_cost = data.label_cost if data.flips else math.inf
        return cls(cost, ridge, data.label_norm, radius or None, penalty, flip_cost)

    @property
    def moves(self) -> bool:
        """Whether anything moves."""
        return self.radius is not None or self.penalty is not None

    def square(self, z: np.ndarray) -> float:
        """n²(z), the offset included."""
        return float(self.cost @ (z * z)) + self.offset

    def decay(self, z: np.ndarray) -> float:
        """The ridge penalty of z."""
        return 0.5 * float(self.ridge @ (z * z))


@dataclass(frozen=True, eq=False)
class Plan:
    """Masses and slopes of shape (k, n), which parts flip labels, curvatures of shape (n,)."""

    mass: np.ndarray
    slope: np.ndarray
    flips: list[bool]
    curvature: np.ndarray

    @property
    def force(self) -> np.ndarray:
        """Mass times slope, summed over the parts, shape (n,)."""
        return (self.mass * self.slope).sum(axis=0)


def plan_of(
    rows: Rows,
    loss: Loss,
    u: np.ndarray,
    sigma: float,
    mu: float,
    price: tuple[float, float] | None,
    duals: np.ndarray | None,
) -> Plan:
    """The smoothed worst case at predictions `u`; the arguments are those of `jets.jet`."""
    masses, slopes, flips = [], [], []
    curvature = np.empty(u.size)
    for some in blocks(u.size, 16):
        # The dual masses balance as they are; moved on to the primal ones they would not.
        part = None if duals is None else duals[:, :, some] * [[1.0], [1.0], [0.0], [1.0]]
        found = jet(loss, u[some], rows.y[some], sigma, mu, price, part)
        shape, w = u[some].shape, rows.w[some]
        masses.append(np.stack([w * np.broadcast_to(a.weight, shape) for a in found.atoms]))
        slopes.append(np.stack([np.broadcast_to(np.float64(a.slope), shape) for a in found.atoms]))
        flips = [a.flip for a in found.atoms]
        curvature[some] = np.maximum(found.uu, 0.0)
    plan = np.concatenate(masses, axis=1), np.concatenate(slopes, axis=1)
    return Plan(*plan, flips, curvature)


def lower_bound(
    rows: Rows,
    loss: Loss,
    ground: Ground,
    plan: Plan,
    z: np.ndarray,
    need: float = math.inf,
    repair: bool = True,
) -> float:
    """Lower bound on the minimum of the robust objective; 0, as for any loss, if nothing better.

    `plan` and the parameters `z` only suggest an adversary: the bound holds whatever they are, and
    is tight when they are nearly optimal. Repairs end once `need` is reached, if
    there are any.
    """
    best = max(_of_plan(rows, loss, ground, plan, z), 0.0)
    if best >= need or any(plan.flips) or not repair:
        return best
    return max(best, _of_means(rows, loss, ground, plan, z, need))


def _of_plan(rows: Rows, loss: Loss, ground: Ground, plan: Plan, z: np.ndarray) -> float:
    pinned = pinned_columns(rows, ground)
    mass = plan.mass
    if pinned.any():
        balanced = balance(rows, mass, plan.slope, pinned)
        if balanced is None:
            return -math.inf
        mass = balanced
    slope, gain, size = plan.slope, 0.0, 0.0
    for k, flip in enumerate(plan.flips):
        y = 1.0 - rows.y if flip else rows.y
        least = loss.least(slope[k], y)
        gain += float(mass[k] @ least)
        size += float(mass[k] @ np.abs(least))
    square = float((mass * slope * slope).sum())
    c = rows.sum((mass * slope).sum(axis=0))
    c[pinned] = 0.0  # by construction, up to rounding
    flipped = sum(float(mass[k].sum()) for k, flip in enumerate(plan.flips) if flip)
    label = ground.flip_cost * flipped if flipped else 0.0
    if ground.penalty is not None:
        gain -= ground.penalty * label
        label = 0.0
    found = _Moments(gain, c, 0.0, square, square, 0.0, label).best(ground)
    return found - 8.0 * _EPS * (size + float(np.abs(c) @ np.abs(z)))


def pinned_columns(rows: Rows, ground: Ground) -> np.ndarray:
    """Parameters that nothing holds: in these c must vanish exactly."""
    pinned = rows.free & (ground.ridge == 0.0)
    return pinned & (ground.cost == 0.0) if ground.moves else pinned


def balance(
    rows: Rows, mass: np.ndarray, slope: np.ndarray, pinned: np.ndarray
) -> np.ndarray | None:
    """Thin out the masses so that the slopes balance on the pinned columns.

    Masses are multiplied by 1 ± x'g, the sign being that of the slope, and then by a constant
    that makes all factors at most 1; None where no such factors in [0, 1] balance.
    """
    cols = np.flatnonzero(pinned)
    B = np.ones((rows.n, cols.size))
    columns = cols[cols < rows.d]
    if columns.size:
        B[:, : columns.size] = rows.columns(columns)
    out = mass
    for _ in range(2):  # the second time takes the rounding of the first away
        force = out * slope
        moment = (B * np.abs(force).sum(axis=0)[:, None]).T @ B
        residual = force.sum(axis=0) @ B
        direction = np.linalg.lstsq(moment, -residual, rcond=1e-14)[0]
        factor = 1.0 + np.sign(slope) * (B @ direction)
        if not (factor[slope != 0] >= 0).all():
            return None
        top = max(1.0, float(factor.max(initial=1.0)))
        out = np.where(slope != 0, out * factor / top, out)
        force = out * slope
        left, size = force.sum(axis=0) @ B, np.abs(force).sum(axis=0) @ np.abs(B)
    # An unsolvable balance (say, collinear columns) must not pass for a solved one.
    return out if (np.abs(left) <= 1e-13 * size + 1e-300).all() else None


def _of_means(
    rows: Rows, loss: Loss, ground: Ground, plan: Plan, z: np.ndarray, need: float
) -> float:
    """The bound of the rows' mean slopes, after a few Newton steps on them."""
    w, pinned = rows.w, pinned_columns(rows, ground)
    lo, hi = loss.domain(rows.y)
    a = np.divide(plan.force, w, out=np.zeros_like(w), where=w > 0)
    curvature, best = plan.curvature.copy(), -math.inf
    norm = math.sqrt(ground.square(z))
    spread = float((plan.mass * plan.slope * plan.slope).sum())
    for step in range(5):
        a = np.clip(a, lo, hi)
        moments = _moments(rows, loss, a, pinned)
        if moments is not None:
            best = max(best, moments.best(ground))
        if best >= need or step == 4:
            break
        want = -ground.ridge * z
        S = spread if loss.conjugate_bend else float(w @ _most(loss, a, lo, hi))
        if ground.penalty is not None:
            want -= S / (2.0 * ground.penalty) * ground.cost * z
        elif ground.radius is not None and norm > 0.0:
            want -= ground.radius * math.sqrt(S) / norm * ground.cost * z
        residual = rows.sum(w * a) - want
        if ground.radius is not None and norm == 0.0:
            residual[ground.cost > 0.0] = 0.0
        direction, free = np.zeros_like(z), rows.free
        if curvature.any():
            system = rows.gram(w * curvature)[np.ix_(free, free)]
            direction[free] = solve_symmetric(system, -residual[free])
        new = a + curvature * rows.predict(direction)
        curvature = np.where((new < lo) | (new > hi), 0.0, curvature)
        a = new
    return best


def _moments(rows: Rows, loss: Loss, a: np.ndarray, pinned: np.ndarray) -> _Moments | None:
    w = rows.w
    mass = w[None]
    if pinned.any():
        balanced = balance(rows, mass, a[None], pinned)
        if balanced is None:
            return None
        a = np.divide(balanced[0] * a, w, out=np.zeros_like(w), where=w > 0)
    lo, hi = loss.domain(rows.y)
    square, k = a * a, loss.conjugate_bend
    least = loss.least(a, rows.y)
    c = rows.sum(w * a)
    c[pinned] = 0.0
    gain = float(w @ least) - 8.0 * _EPS * float(w @ np.abs(least))
    S = float(w @ square)
    if k is None:
        return _Moments(gain, c, 0.0, S, S, 0.0)
    most, empty = (float(w @ _most(loss, slope, lo, hi)) for slope in (a, 0.0 * a))
    return _Moments(gain + k * S, c, k, S, most, empty)


def _most(loss, a: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """The most that the second moment of a row's slopes can be, given their mean."""
    if loss.conjugate_bend is None:
        return a * a
    return (lo + hi) * a - lo * hi if np.isfinite(lo).all() else np.full_like(a, np.inf)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums of a family of plans: slopes scaled by τ ≤ 1, second moment S.

    The plan is worth τ gain - k S + min_z {τ c'z + ...}, with τ² square ≤ S ≤ τ full + (1-τ) empty.
    Where k > 0 and ``full`` is infinite, τ may exceed 1, too. Flips cost τ ``label`` of a budget.
    """

    gain: float
    c: np.ndarray
    k: float
    square: float
    full: float
    empty: float
    label: float = 0.0

    def best(self, ground: Ground) -> float:
        """The best of the family."""
        if not math.isfinite(self.gain):
            return -math.inf
        if ground.penalty is not None:
            return self._best_priced(ground)
        ridge, alive = ground.ridge, self.c != 0.0
        movable = alive & (ground.cost > 0.0) & (ground.radius is not None)
        # What only the ridge holds; what nothing holds is zero already.
        fixed = alive & ~movable
        rest = float((self.c[fixed] ** 2 / (2.0 * ridge[fixed])).sum())
        c, cost, D = self.c[movable], ground.cost[movable], ridge[movable]

        def shared(q: float) -> float:
            """Of c, q cost / (D + q cost) is the ball's, the rest the ridge's."""
            if math.isinf(q):
                return self._held(ground, float((c * c / cost).sum()), rest)
            ball = q * cost / (D + q * cost)
            norm = float(((ball * c) ** 2 / cost).sum())
            left = float((((1.0 - ball) * c) ** 2 / (2.0 * D)).sum())
            return self._held(ground, norm, rest + left)

        best = shared(math.inf)
        if not D.any():
            return best
        middle = math.log(float(D.max() / cost.max()))
        return max(best, _maximum(lambda t: shared(math.exp(t)), middle - 40.0, middle + 40.0))

    def _held(self, ground: Ground, norm: float, left: float) -> float:
        """Value where the ball holds a part of c whose squared dual norm is ``norm``."""
        radius, root = (ground.radius or 0.0) ** 2, math.sqrt(ground.offset)
        if self.k == 0.0:
            tau, S = 1.0, self.full
            if norm > (radius - self.label) * S:
                # The largest τ with τ² norm <= (r² - τ label) (τ full + (1-τ) empty); where labels
                # flip, empty = 0. A little less for rounding.
                both, slack = norm + self.label * self.full, radius * (self.full - self.empty)
                fixed = radius * self.empty
                tau = (slack + math.sqrt(slack * slack + 4.0 * both * fixed)) / (2.0 * both)
                tau = min(tau * (1.0 - 4.0 * _EPS), 1.0)
                S = tau * self.full + (1.0 - tau) * self.empty
            spare = max((radius - tau * self.label) * S - tau * tau * norm, 0.0)
            return tau * self.gain - tau * tau * left + root * math.sqrt(spare)
        if self.gain <= 0.0 and root == 0.0:
            return 0.0
        S, x, k = self.square, 0.0, self.k
        if radius > 0.0:
            # In x = sqrt(r² S - norm) the value (gain + root x)² / 4 (k S + left) peaks once.
            x = root * (norm + left * radius / k) / self.gain if self.gain > 0.0 else math.inf
            x = max(x, math.sqrt(max(radius * self.square - norm, 0.0)))
            if math.isinf(x):
                return 0.0
            S = max((x * x + norm) / radius, S)
        elif norm > 0.0:
            return 0.0
        gain, price = self.gain + root * x, k * S + left
        tau = 0.5 * gain / price if price > 0.0 else 1.0
        if math.isfinite(self.full):  # the slopes' domain is bounded
            tau = min(tau, 1.0, math.sqrt(self.full / S) if S > 0.0 else 1.0)
        return tau * gain - tau * tau * price

    def _best_priced(self, ground: Ground) -> float:
        penalty = float(ground.penalty or 0.0)
        alive = self.c != 0.0
        c, cost, ridge = self.c[alive], ground.cost[alive], ground.ridge[alive]
        rate = self.k - ground.offset / (4.0 * penalty)

        def value(tau: float, S: float) -> float:
            curve = cost * (S / (2.0 * penalty)) + ridge
            if not (curve > 0.0).all():
                return 0.0
            held = float((c * c / (2.0 * curve)).sum())
            if self.k > 0.0:  # τ is free
                tau = 0.5 * self.gain / held if held > 0.0 else math.inf
                top = math.inf if self.square == 0.0 else math.sqrt(S / self.square)
                tau = min(tau, top if math.isinf(self.full) else min(top, 1.0))
                if math.isinf(tau):
                    return 0.0
            return tau * self.gain - rate * S - tau * tau * held

        if self.k == 0.0:

            def thinned(tau: float) -> float:
                return value(tau, tau * self.full + (1.0 - tau) * self.empty)

            return max(thinned(1.0), _maximum(thinned, 0.0, 1.0))
        base = max(self.square, 1e-290)
        top = math.log(self.full) if math.isfinite(self.full) else math.log(base) + 60.0
        low = min(math.log(base) - 60.0, top)
        return _maximum(lambda t: value(1.0, math.exp(t)), low, top)


def _maximum(function: Callable[[float], float], low: float, high: float) -> float:
    """Largest value met by Brent's method: of a concave function, near its maximum."""
    found: Any = minimize_scalar(
        lambda t: -function(t), bounds=(low, high), method="bounded",
        options={"xatol": 1e-9 * (high - low)},
    )  # fmt: skip
    return max(-float(found.fun), function(low), function(high))
