r"""Newton's method for the exact robust risk of a linear model.

With σ = n²/(4λ) the radius form is jointly convex in (z, b, σ),

.. math:: F(z, b, \sigma) = \frac{r^2 n^2}{4\sigma} + E\,G(u, \sigma)
          + \tfrac{\alpha}{2}\|\theta\|^2,

and its kinks lie on hyperplanes. In the penalty form σ = n²/(4λ) is a function of z; where labels
may flip, λ is the extra variable instead of σ. Kinks are smoothed by ``mu`` and the vertex θ = 0 by
``eps``, as n² + eps², both lowered by a factor per stage while a few Newton steps per stage keep up
(path following); both are exact zeros at the end where the loss allows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from drojko._driver import Status
from drojko.losses.jets import Jet, jet, kinks
from drojko.minimax.transport.data import Ground, RidgeData
from drojko.rows import Rows

__all__ = ["Newton", "State"]


@dataclass(frozen=True)
class State:
    """An iterate in internal coordinates; ``value`` is smoothed, ``bias`` bounds the excess."""

    z: np.ndarray
    h: float  # the extra variable: σ, or λ where labels flip; λ in the penalty form
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
    s: float = 0.0
    ss: float = 0.0
    curve_s: float = 0.0
    l: float = 0.0  # noqa: E741
    sl: float = 0.0
    ll: float = 0.0

    def add(self, w: np.ndarray, j: Jet) -> None:
        for name in ("value", "bias", "s", "ss", "curve_s", "l", "sl", "ll"):
            x = getattr(j, name)
            if isinstance(x, np.ndarray):
                setattr(self, name, getattr(self, name) + float(w @ x))
            elif x != 0.0:
                setattr(self, name, getattr(self, name) + x * float(w.sum()))


class Newton:
    LAST = 1e-4
    """Settings of one run on rows and their ground.

    `free` marks the parameters that may be nonzero; `goal` is the relative accuracy aimed at.
    """

    def __init__(
        self,
        rows: Rows,
        data: RidgeData,
        ground: Ground,
        *,
        goal: float,
        free: np.ndarray | None = None,
    ) -> None:
        self.rows, self.data, self.ground = rows, data, ground
        radius = self.radius = ground.radius
        self.penalty = ground.penalty
        self.budget = 1.0 if radius is None else radius * radius
        self.robust = ground.moves
        self.goal = goal
        self.by_sigma = radius is not None and not data.flips  # what State.h is
        self.free = rows.free if free is None else free & rows.free
        self.columns = np.flatnonzero(self.free)
        self.constant = rows.intercept and self.columns.tolist() == [rows.d]
        self.scale = 0.0  # a typical size of the loss; set by init

    # -- the function ---------------------------------------------------------------------------

    def norm(self, s: State) -> float:
        """Return n² of a state, smoothed."""
        return self.ground.square(s.z) + s.eps * s.eps

    def sigma(self, s: State) -> float:
        """Return σ = n² / (4 λ) of a state; 0 for the plain risk."""
        if not self.robust:
            return 0.0
        return s.h if self.by_sigma else 0.25 * self.norm(s) / s.h

    def lam(self, s: State) -> float:
        """Return the penalty λ of a state."""
        if not self.robust:
            return math.inf
        return 0.25 * self.norm(s) / s.h if self.by_sigma else s.h

    def _jet(self, rows: slice, s: State, duals: np.ndarray | None = None) -> Jet:
        price = (s.h, self.data.label_cost) if self.data.flips and self.robust else None
        part = None if duals is None else duals[:, :, rows]
        data = self.data
        return jet(data.loss, s.u[rows], data.y[rows], self.sigma(s), s.mu, price, part)

    def _sums(self, s: State) -> _Sums:
        out = _Sums()
        for rows in self.rows.blocks():
            out.add(self.data.weight[rows], self._jet(rows, s))
        return out

    def _cost(self, s: State, sums: _Sums) -> float:
        """Transport cost over radius²: the derivative in `h` vanishes when it is 1."""
        if self.by_sigma:
            return 4.0 * s.h * s.h * sums.s / (self.budget * self.norm(s))
        return (sums.s * self.sigma(s) / s.h - sums.l) / self.budget if self.robust else 0.0

    def _evaluate(self, s: State, polish: bool) -> State:
        """Fill in value, bias and cost; with `polish`, bring `h` near its optimum first."""
        low, high = 0.0, math.inf
        rising = 1.0 if self.by_sigma else -1.0
        for attempt in range(30):
            sums = self._sums(s)
            cost = self._cost(s, sums)
            if self.radius is None or not polish:
                break
            off = rising * math.log(max(cost, 1e-300))
            if abs(off) <= 0.05 or attempt == 29 or high - low <= 1e-9 * high:
                break
            low, high = (low, s.h) if off > 0 else (s.h, high)
            # cost is close to a power law in h: Newton's method on logarithms, in a bracket.
            power = 2.0
            if self.by_sigma:
                power += s.h * sums.ss / max(sums.s, 1e-300)
            h = s.h * math.exp(min(max(-off / power, -6.0), 6.0))
            outside = not low < h < high or attempt % 4 == 3
            if outside and low > 0.0 and high < math.inf:
                h = math.sqrt(low * high)
            s = replace(s, h=h)
        value = sums.value + self.ground.decay(s.z)
        bias = sums.bias
        if self.by_sigma:
            value += 0.25 * self.budget * self.norm(s) / s.h
            bias += 0.25 * self.budget * s.eps**2 / s.h
        elif self.radius is not None:
            value += s.h * self.budget
            bias += 0.25 * sums.s * s.eps**2 / s.h
        return replace(s, value=value, bias=bias, cost=cost)

    # -- the driver's interface -----------------------------------------------------------------

    def init(self, problem: tuple[np.ndarray, float | None, float]) -> State:
        """First state from (z, λ or None, typical size of the loss)."""
        z, lam, self.scale = problem
        lip = self.data.loss.lipschitz or 1.0
        s = State(z, 1.0, self.rows.predict(z), 0.1 * self.scale, 0.0)
        if self.penalty is not None:
            s = replace(s, h=self.penalty)
        elif self.radius is not None:
            s = replace(s, eps=0.3 * self.scale / (self.radius * lip))
            if lam is None:
                lam = 0.5 * math.sqrt(self.norm(s)) * lip / self.radius
            s = replace(s, h=0.25 * self.norm(s) / lam if self.by_sigma else lam)
        s = self._evaluate(s, polish=True)
        if self._smooth(s) and not self.data.loss.straight:
            s = self._evaluate(replace(s, mu=0.0), polish=True)
        return s

    def finite(self, s: State) -> bool:
        return bool(np.isfinite(s.z).all()) and math.isfinite(s.value)

    def record(self, s: State) -> dict[str, float]:
        return {
            "robust_risk": s.value - self.ground.decay(s.z),
            "penalty": self.lam(s),
            "transport_cost": s.cost * self.budget,
            "stationarity": s.stationarity,
        }

    def terminate(self, state: State) -> Status | None:
        if state.diverged:
            return Status.MAX_ITER  # the caller says why
        return Status.CONVERGED if state.done else None

    @np.errstate(over="ignore", invalid="ignore")  # steps that go too far are rejected
    def step(self, state: State) -> State:
        s = state
        if s.mu == 0.0 and not self._smooth(s):
            # The iterates have come to where the loss has kinks: smooth them from here on.
            s = self._evaluate(replace(s, mu=0.1 * self.scale, kinked=True), polish=True)
        direction, step_h, gradient, slope_h, size, duals = self._newton_step(s)
        if step_h < -0.9 * s.h:
            # Far off in h, where a quadratic model overshoots: take its best value first.
            s = self._evaluate(s, polish=True)
            direction, step_h, gradient, slope_h, size, duals = self._newton_step(s)
        slope = float(gradient @ direction) + slope_h * step_h
        decrement = max(-0.5 * slope, 0.0)
        stationarity = float(np.abs(gradient).max(initial=0.0)) / max(size, 1e-300)
        s = replace(s, decrement=decrement, stationarity=stationarity, duals=duals)
        small = decrement <= 1e-13 * abs(s.value) + 1e-15 * self.scale
        if small:
            return self._advance(_moved(s, 0.0), exact=True)
        dz = np.zeros_like(s.z)
        dz[self.columns] = direction
        du = self.rows.predict(dz)
        t = min(1.0, 0.9 * s.h / -step_h) if step_h < 0 else 1.0
        new = s
        for _ in range(40):
            trial = replace(s, z=s.z + t * dz, u=s.u + t * du, h=s.h + t * step_h)
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
        gradient, slope_h, hessian, cross, bend, size = self._second_order(s, duals)
        direction, step_h = self._solve(gradient, slope_h, hessian, cross, bend)
        return direction, step_h, gradient, slope_h, size, duals

    def _separated(self, s: State) -> bool:
        """Whether logistic risk falls to zero along a ray: its minimum is not attained."""
        data = self.data
        if data.loss.attained:
            return False
        held = self.penalty is not None or self.ground.ridge.any()
        if held and np.ptp(data.y[data.weight > 0]) > 0:
            return False  # only the intercept of a single class is free to grow
        if (held or self.radius is not None) and s.value > 1e-10 * self.scale:
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
        flips = self.data.flips and self.robust
        return not s.kinked and not flips and self.data.loss.kink_free(self.sigma(s))

    def _next_stage(self, s: State) -> State:
        mu = 0.0 if self._smooth(s) and s.mu < self.LAST * self.scale else 0.1 * s.mu
        # Away from the vertex, where n >> eps, eps has nothing left to smooth.
        near = s.eps > 1e-3 * math.sqrt(self.norm(replace(s, eps=0.0)))
        eps = 0.1 * s.eps if near else 0.0
        return replace(s, mu=mu, eps=eps, decrement=math.inf, full_step=False)

    # -- second-order model -----------------------------------------------------------------------

    def _second_order(self, s: State, duals: np.ndarray | None):
        cols, size, data = self.columns, self.columns.size, self.data
        sums, columns, weight = _Sums(), np.zeros((s.u.size, 3)), np.empty_like(s.u)
        for rows in self.rows.blocks():
            w = data.weight[rows]
            j = self._jet(rows, s, duals)
            sums.add(w, j)
            for k, part in enumerate((j.u, j.us, j.ul)):
                columns[rows, k] = w * part
            weight[rows] = np.maximum(w * j.uu, 0.0)
        # Far from a kink most rows have no curvature at all.
        weight[weight <= 1e-13 * weight.max(initial=0.0)] = 0.0
        live = data.weight > 0
        slope_square = float((columns[live, 0] ** 2 / data.weight[live]).sum())
        if self.constant:
            gradient, mixed, label = columns.sum(axis=0)[:, None]
            hessian = np.array([[weight.sum()]])
        else:
            gradient, mixed, label = self.rows.sum(columns)[cols].T
            hessian = self.rows.gram(weight)[np.ix_(cols, cols)]
        z, diagonal = s.z[cols], np.arange(size)
        gradient += self.ground.ridge[cols] * z
        hessian[diagonal, diagonal] += self.ground.ridge[cols]
        az = self.ground.cost[cols] * z
        slope_h, cross, bend = 0.0, np.zeros(size), 0.0
        if self.by_sigma:
            ball, norm = self.budget, self.norm(s)
            gradient += ball / (2.0 * s.h) * az
            hessian[diagonal, diagonal] += ball / (2.0 * s.h) * self.ground.cost[cols]
            slope_h = sums.s - 0.25 * ball * norm / s.h**2
            cross = mixed - ball / (2.0 * s.h**2) * az
            bend = sums.ss + 0.5 * ball * norm / s.h**3
        elif self.robust:
            sigma, v = self.sigma(s), az / (2.0 * s.h)  # v = dσ/dz
            gradient += sums.s * v
            hessian += np.outer(mixed, v) + np.outer(v, mixed) + sums.ss * np.outer(v, v)
            hessian[diagonal, diagonal] += sums.curve_s / (2.0 * s.h) * self.ground.cost[cols]
            if self.radius is not None:
                slope_h = self.budget - sums.s * sigma / s.h + sums.l
                cross = label + sums.sl * v
                cross -= (mixed * sigma + (sums.ss * sigma + sums.curve_s) * v) / s.h
                bend = (sums.ss * sigma + 2.0 * sums.curve_s) * sigma / s.h**2
                bend += sums.ll - 2.0 * sums.sl * sigma / s.h
                # Rounding may eat the curvature in λ; the power law λ^-2 gives its usual size.
                bend = max(bend, 0.1 * self.budget / s.h)
        return gradient, slope_h, hessian, cross, bend, math.sqrt(slope_square)

    def _solve(self, gradient, slope_h, hessian, cross, bend):
        """Newton direction in (z, b) and h, regularised until the system is positive definite."""
        if self.radius is not None:
            gradient = gradient - cross * (slope_h / bend)
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
        step_h = 0.0
        if self.radius is not None:
            step_h = -(slope_h + float(cross @ direction)) / bend
        return direction, step_h
