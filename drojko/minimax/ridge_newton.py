r"""Newton's method for the exact robust risk of a linear model.

.. math:: F(z, b, \lambda) = \lambda r^2 + E\,G(u, \lambda / n^2) + \tfrac{\alpha}{2}\|\theta\|^2

F is jointly convex, as a supremum over transport maps of functions convex in θ and affine in λ.
Steps solve the full Newton system (λ by elimination). Kinks are smoothed by ``mu`` and the vertex
θ = 0 by ``eps``, as n² + eps², both lowered by a factor per stage while one or two Newton steps per
stage keep up (path following); both are exact zeros at the end where the loss allows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from drojko._driver import Status
from drojko.losses import Logistic
from drojko.minimax.ridge_data import RidgeData, Rows
from drojko.minimax.ridge_jets import Jet, jet, kink_free, kinks

__all__ = ["Newton", "State"]

_TINY = 1e-28  # floor of n² relative to the penalty: keeps κ finite at θ = 0


@dataclass(frozen=True)
class State:
    """An iterate in internal coordinates; ``value`` is smoothed, ``bias`` bounds the excess."""

    z: np.ndarray
    b: float
    lam: float
    u: np.ndarray
    mu: float
    eps: float
    value: float = math.inf
    bias: float = math.inf
    cost: float = math.nan
    decrement: float = math.inf
    stationarity: float = math.inf
    full_step: bool = False
    done: bool = False
    stuck: int = 0
    kinked: bool = False
    diverged: bool = False
    duals: np.ndarray | None = None


def _moved(s: State, t: float) -> State:
    """Tell the duals that a step of length `t` was taken."""
    if s.duals is not None:
        s.duals[:, 2] *= t
    return s


@dataclass
class _Sums:
    value: float = 0.0
    bias: float = 0.0
    k: float = 0.0
    kk: float = 0.0
    curve_k: float = 0.0
    l: float = 0.0  # noqa: E741
    kl: float = 0.0
    ll: float = 0.0
    slope_square: float = 0.0

    def add(self, w: np.ndarray, j: Jet) -> None:
        for name in ("value", "bias", "k", "kk", "curve_k", "l", "kl", "ll"):
            x = getattr(j, name)
            if isinstance(x, np.ndarray):
                setattr(self, name, getattr(self, name) + float(w @ x))
            elif x != 0.0:
                setattr(self, name, getattr(self, name) + x * float(w.sum()))


class Newton:
    """Settings of one run: exactly one of `radius` and `penalty`, or neither for plain risk.

    `free` marks the columns that may be nonzero; `goal` is the relative accuracy aimed at.
    """

    def __init__(
        self,
        rows: Rows,
        data: RidgeData,
        *,
        radius: float | None,
        penalty: float | None,
        alpha: float,
        fit_intercept: bool,
        goal: float,
        free: np.ndarray | None = None,
    ) -> None:
        self.rows, self.data = rows, data
        self.radius, self.penalty = radius, penalty
        self.robust = radius is not None or penalty is not None
        self.alpha = alpha * rows.inverse_scale**2
        self.fit_intercept, self.goal = fit_intercept, goal
        self.free = ~rows.dead if free is None else free & ~rows.dead
        self.columns = np.flatnonzero(self.free)
        self.scale = 0.0  # a typical size of the loss; set by init

    # -- the function ---------------------------------------------------------------------------

    def _norm(self, z: np.ndarray, eps: float) -> float:
        return float(self.rows.cost @ (z * z)) + self.data.label_norm + eps * eps

    def _kappa(self, z: np.ndarray, lam: float, eps: float) -> tuple[float, float]:
        if not self.robust:
            return math.inf, 1.0
        norm = max(self._norm(z, eps), _TINY * lam)
        return lam / norm, norm

    def _jet(
        self,
        rows: slice,
        u: np.ndarray,
        kappa: float,
        lam: float,
        mu: float,
        duals: np.ndarray | None = None,
    ) -> Jet:
        price = (lam, self.data.label_cost) if self.data.flips and self.robust else None
        part = None if duals is None else duals[:, :, rows]
        return jet(self.data.loss, u[rows], self.data.y[rows], kappa, mu, price, part)

    def _sums(self, u: np.ndarray, kappa: float, lam: float, mu: float) -> _Sums:
        out = _Sums()
        for rows in self.rows.blocks():
            out.add(self.data.weight[rows], self._jet(rows, u, kappa, lam, mu))
        return out

    def _total(self, sums: _Sums, z: np.ndarray, lam: float) -> float:
        ball = lam * self.radius**2 if self.radius is not None else 0.0
        return sums.value + ball + 0.5 * float(self.alpha @ (z * z))

    def _evaluate(self, s: State, polish: bool) -> State:
        """Fill in value, bias and cost; with `polish`, bring λ near its optimum first."""
        lam, low, high = s.lam, 0.0, math.inf
        for attempt in range(30):
            kappa, norm = self._kappa(s.z, lam, s.eps)
            sums = self._sums(s.u, kappa, lam, s.mu)
            cost = -(sums.k / norm + sums.l) if self.robust else 0.0
            if self.radius is None or not polish:
                break
            off = math.log(max(cost, 1e-300) / self.radius**2)
            if abs(off) <= 0.05 or attempt == 29 or high - low <= 1e-9 * high:
                break
            low, high = (lam, high) if off > 0 else (low, lam)
            # cost is close to a power law in λ: Newton's method on logarithms, in a bracket.
            bend = sums.kk / norm**2 + 2.0 * sums.kl / norm + sums.ll
            power = max(lam * bend / max(cost, 1e-300), 0.5)
            lam *= math.exp(min(max(off / power, -6.0), 6.0))
            outside = not low < lam < high or attempt % 4 == 3
            if outside and low > 0.0 and high < math.inf:
                lam = math.sqrt(low * high)
        bias = sums.bias
        if self.robust:
            bias += max(-sums.k, 0.0) * kappa * s.eps**2 / norm
        return replace(s, lam=lam, value=self._total(sums, s.z, lam), bias=bias, cost=cost)

    def rms_slope(self, s: State) -> float:
        """Root mean square slope of the loss at a state: a size that does not vanish with it."""
        total = 0.0
        for rows in self.rows.blocks():
            slope = self._jet(rows, s.u, math.inf, s.lam, s.mu).u
            total += float(self.data.weight[rows] @ (slope * slope))
        return math.sqrt(total)

    # -- the driver's interface -----------------------------------------------------------------

    def init(self, problem: tuple[np.ndarray, float, float | None, float]) -> State:
        """First state from (z, b, λ or None, typical size of the loss)."""
        z, b, lam, self.scale = problem
        u = self.rows.predict(z, b)
        lip = self.data.loss.lipschitz or 1.0
        lam0, eps = 1.0, 0.0
        if self.penalty is not None:
            lam0 = self.penalty
        elif self.radius is not None:
            eps = 0.3 * self.scale / (self.radius * lip)
            lam0 = 0.5 * math.sqrt(self._norm(z, eps)) * lip / self.radius if lam is None else lam
        s = self._evaluate(State(z, b, lam0, u, 0.1 * self.scale, eps), polish=True)
        if self._smooth(s):
            s = self._evaluate(replace(s, mu=0.0), polish=True)
        return s

    def finite(self, s: State) -> bool:
        return bool(np.isfinite(s.z).all()) and math.isfinite(s.b) and math.isfinite(s.value)

    def record(self, s: State) -> dict[str, float]:
        return {
            "robust_risk": s.value - 0.5 * float(self.alpha @ (s.z * s.z)),
            "penalty": s.lam if self.robust else math.inf,
            "transport_cost": s.cost,
            "stationarity": s.stationarity,
        }

    def terminate(self, s: State) -> Status | None:
        if s.diverged:
            return Status.MAX_ITER
        return Status.CONVERGED if s.done else None

    def step(self, s: State) -> State:
        if s.mu == 0.0 and not self._smooth(s):
            # The iterates have come to where the loss has kinks: smooth them from here on.
            s = self._evaluate(replace(s, mu=0.1 * self.scale, kinked=True), polish=True)
        direction, step_lam, gradient, slope_lam, size, duals = self._newton_step(s)
        if step_lam < -0.9 * s.lam:
            # Far off in λ, where a quadratic model overshoots: take its best value first.
            s = self._evaluate(s, polish=True)
            direction, step_lam, gradient, slope_lam, size, duals = self._newton_step(s)
        slope = float(gradient @ direction) + slope_lam * step_lam
        decrement = max(-0.5 * slope, 0.0)
        k = self.columns.size
        stationarity = float(np.abs(gradient).max(initial=0.0)) / max(size, 1e-300)
        s = replace(s, decrement=decrement, stationarity=stationarity, duals=duals)
        small = decrement <= 1e-13 * abs(s.value) + 1e-15 * self.scale
        if small:
            return self._advance(_moved(s, 0.0), exact=True)
        dz = np.zeros_like(s.z)
        dz[self.columns] = direction[:k]
        db = float(direction[k]) if self.fit_intercept else 0.0
        du = self.rows.predict(dz, db)
        t = min(1.0, 0.9 * s.lam / -step_lam) if step_lam < 0 else 1.0
        new = s
        for _ in range(40):
            trial = replace(
                s, z=s.z + t * dz, b=s.b + t * db, u=s.u + t * du, lam=s.lam + t * step_lam
            )
            trial = self._evaluate(trial, polish=False)
            enough = s.value + 1e-4 * t * slope + 1e-14 * abs(s.value)
            if trial.value > enough:
                trial = self._evaluate(trial, polish=True)
            if trial.value <= enough:
                new = trial
                break
            t *= 0.5 if t > 1e-2 else 0.1
        if new is s:
            # No progress in float arithmetic: the stage is as exact as it gets.
            return self._advance(_moved(replace(s, stuck=s.stuck + 1), 0.0), exact=True)
        new = replace(_moved(new, t), full_step=t == 1.0, diverged=self._separated(new))
        return self._advance(new, exact=False)

    def _newton_step(self, s: State):
        duals = None
        if s.mu > 0:
            if s.duals is None:
                duals = np.full((kinks(self.data.flips and self.robust), 4, s.u.size), np.nan)
            else:
                duals = s.duals.copy()
        gradient, slope_lam, hessian, cross, bend, size = self._second_order(s, duals)
        direction, step_lam = self._solve(gradient, slope_lam, hessian, cross, bend, s.lam)
        return direction, step_lam, gradient, slope_lam, size, duals

    def _separated(self, s: State) -> bool:
        """Whether logistic risk falls to zero along a ray: its minimum is not attained."""
        data = self.data
        if not isinstance(data.loss, Logistic) or self.penalty is not None or self.alpha.any():
            return False
        if self.radius is not None and s.value > 1e-10 * self.scale:
            return False
        return bool((((2.0 * data.y - 1.0) * s.u > 0) | (data.weight == 0)).all())

    # -- stages ---------------------------------------------------------------------------------

    def _advance(self, s: State, exact: bool) -> State:
        """Go to the next stage, or finish, when this one is solved well enough."""
        size = abs(s.value) + 1e-12 * self.scale
        final = s.mu == 0.0 and s.eps == 0.0
        enough = s.bias <= self.goal * size
        if exact or (s.full_step and s.decrement <= (1e-11 if final else 1e-5 * self.goal) * size):
            if final or enough or s.stuck > 8 or s.mu < 1e-13 * self.scale:
                return replace(s, done=True)
        elif not (s.full_step and s.decrement <= 0.5 * max(s.bias, self.goal * size)):
            return s
        if final or enough:
            return s
        return self._evaluate(self._next_stage(s), polish=False)

    def _smooth(self, s: State) -> bool:
        kappa, _ = self._kappa(s.z, s.lam, s.eps)
        return not s.kinked and not self.data.flips and kink_free(self.data.loss, kappa)

    def _next_stage(self, s: State) -> State:
        mu = 0.0 if self._smooth(s) else 0.1 * s.mu
        # Away from the vertex, where n >> eps, eps has nothing left to smooth.
        near = s.eps > 1e-3 * math.sqrt(self._norm(s.z, 0.0))
        eps = 0.1 * s.eps if near else 0.0
        return replace(s, mu=mu, eps=eps, decrement=math.inf, full_step=False)

    # -- second-order model -----------------------------------------------------------------------

    def _second_order(self, s: State, duals: np.ndarray | None):
        cols, k = self.columns, self.columns.size
        size = k + int(self.fit_intercept)
        kappa, norm = self._kappa(s.z, s.lam, s.eps)
        gradient, mixed, label = np.zeros(size), np.zeros(size), np.zeros(size)
        hessian = np.zeros((size, size))
        slope_square, sums = 0.0, _Sums()
        for rows in self.rows.blocks():
            w = self.data.weight[rows]
            j = self._jet(rows, s.u, kappa, s.lam, s.mu, duals)
            sums.add(w, j)
            slope_square += float(w @ (j.u * j.u))
            B = np.empty((w.size, size))
            B[:, k:] = 1.0
            if k:
                block = self.rows.block(rows)
                B[:, :k] = block if k == block.shape[1] else block[:, cols]
            gradient += (w * j.u) @ B
            if np.any(j.uk):
                mixed += (w * j.uk) @ B
            if np.any(j.ul):
                label += (w * j.ul) @ B
            weight = np.maximum(w * j.uu, 0.0)
            top = weight.max(initial=0.0)
            keep = weight > 1e-13 * top  # far from a kink most rows have no curvature at all
            if top > 0 and keep.mean() < 0.7:
                B, weight = B[keep], weight[keep]
            B *= np.sqrt(weight)[:, None]
            hessian += B.T @ B
        z = s.z[cols]
        ridge = self.alpha[cols]
        gradient[:k] += ridge * z
        hessian[np.arange(k), np.arange(k)] += ridge
        slope_lam, cross, bend = 0.0, np.zeros(size), 0.0
        if self.robust:
            a = self.rows.cost[cols]
            az = np.zeros(size)
            az[:k] = a * z
            v = (-2.0 * kappa / norm) * az  # dκ/dθ
            gradient += sums.k * v
            hessian += np.outer(mixed, v) + np.outer(v, mixed)
            hessian += (sums.kk + 2.0 * sums.curve_k / kappa) * np.outer(v, v)
            hessian[np.arange(k), np.arange(k)] -= 2.0 * kappa * sums.curve_k / norm * a
        if self.radius is not None:
            slope_lam = self.radius**2 + sums.k / norm + sums.l
            cross = mixed / norm + (sums.kk / norm + sums.curve_k / (kappa * norm)) * v
            cross += label + sums.kl * v
            bend = sums.kk / norm**2 + 2.0 * sums.kl / norm + sums.ll
        return gradient, slope_lam, hessian, cross, bend, math.sqrt(slope_square)

    def _solve(self, gradient, slope_lam, hessian, cross, bend, lam):
        """Newton direction in (z, b) and λ, regularised until the system is positive definite."""
        if self.radius is not None:
            # Rounding may eat the curvature in λ; the power law λ^-2 gives its usual size.
            bend = max(bend, 0.1 * self.radius**2 / lam)
            gradient = gradient - cross * (slope_lam / bend)
            hessian = hessian - np.outer(cross, cross) / bend
        if gradient.size:
            diagonal = np.maximum(np.diag(hessian), 0.0)
            diagonal = np.maximum(diagonal, 1e-12 * max(diagonal.max(initial=0.0), 1e-300))
            scale = 1.0 / np.sqrt(diagonal)
            system = hessian * scale[:, None] * scale[None, :]
            rhs, shift = -gradient * scale, 1e-13
            direction = np.zeros_like(gradient)
            while shift < 1e6:
                try:
                    shifted = system + shift * np.eye(rhs.size)
                    factor = scipy.linalg.cho_factor(shifted, check_finite=False)
                except scipy.linalg.LinAlgError:
                    shift *= 100.0
                    continue
                direction = scipy.linalg.cho_solve(factor, rhs, check_finite=False) * scale
                break
        else:
            direction = gradient
        step_lam = (
            -(slope_lam + float(cross @ direction)) / bend if self.radius is not None else 0.0
        )
        return direction, step_lam
