"""Primal-dual interior-point steps for order-1 robust linear models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_solve

from drojko._driver import Status
from drojko.minimax.order_one.cones import Cones
from drojko.minimax.order_one.factor import factorise
from drojko.minimax.order_one.system import State, System

__all__ = ["InteriorPoint"]


@dataclass
class InteriorPoint:
    r"""Mehrotra's predictor-corrector method on the central path of

    .. math:: \min_{\theta, \lambda} \; \lambda r + \sum_i w_i \ell_i(u_i, \lambda)
        + \tfrac\alpha2\|\theta\|^2 \quad\text{s.t.}\quad \lambda \ge L\|\theta_e\|_*

    Each sample's maximum of affine pieces carries a multiplier in a simplex, eliminated in closed
    form, as are the constraints': a step costs one weighted Gram matrix of the columns.

    S. Mehrotra, 1992, On the Implementation of a Primal-Dual Interior Point Method; Boyd,
    Vandenberghe, 2004, Convex Optimization, section 11.7.
    """

    system: System
    goal: float
    #: Loss of the first model: below a small share of it, objectives count as zero.
    unit: float = 0.0

    @property
    def share(self) -> float:
        """Products y s of a constraint relative to p s of a sample, whose weight is about 1/n.

        With equal products w p s and y s steps are long; a little more for the few constraints
        keeps them from leading (measured: 1 and 1/n take 200 and 25 steps, this 20).
        """
        if not self.system.loss.n_pieces:
            return 1.0
        return float(np.square(self.system.weight).sum() ** 0.75)

    def _count(self, state: State) -> float:
        """Products of the gap, weighted."""
        cones = state.cones
        return self.system.loss.n_pieces + (self.share * cones.count if cones is not None else 0.0)

    # -- the loop's interface ----------------------------------------------------------------

    def init(self, problem: tuple[np.ndarray, np.ndarray]) -> State:
        """First state from (W, b)."""
        sys = self.system
        W, b = problem
        u = sys.responses(W, b)
        count = 2.0 * sys.scale.size + 1.0
        target = 0.1
        lam, cones = sys.fixed_lam or 0.0, None
        v = sys.vectors(W)
        order = {1: 1, 2: 2, math.inf: math.inf}[sys.q]
        size = float(np.linalg.norm(v, ord=order, axis=1).max(initial=0.0))
        if sys.lam_free:
            lam = max(count * self.share * target / sys.radius, 1e-8) + max(1.1 * size, sys.floor)
        elif sys.cones and size > 0.9 * lam:
            W = W * (0.9 * lam / size)
            u, v = sys.responses(W, b), sys.vectors(W)
        J = sys.loss.n_pieces
        p = np.full((len(u), J), 1.0 / max(J, 1))
        # Equal shares p of slopes +-delta sum to zero: the curved term does not matter here.
        top = sys.loss.affine(u, lam).max(axis=1) + 1.0 if J else np.zeros(len(u))
        if sys.cones:
            cones = Cones(sys.q, sys.fixed_lam is not None, sys.floor, v, lam)
            cones.start(self.share * target)
        state = State(W, b, lam, u, p, top, cones, math.inf, math.inf, math.inf)
        return self._measured(state)

    def finite(self, state: State) -> bool:
        """Whether all that matters is finite."""
        return bool(np.isfinite(state.W).all() and np.isfinite(state.b).all())

    def terminate(self, state: State) -> Status | None:
        """Converged when the duality gap and the gradient are within the goal."""
        return state.status

    def record(self, state: State) -> dict[str, float]:
        """A row of the history, in standardised units."""
        return {"objective": state.objective, "lam": state.lam, "stationarity": state.residual}

    def _slack(self, state: State) -> np.ndarray:
        """How far below its top each piece of a sample is, (n, J)."""
        loss, u = self.system.loss, state.u
        if loss.curved:
            u = u - state.p @ loss.slopes
        return state.top[:, None] - loss.affine(u, state.lam)

    def _size(self, objective: float) -> float:
        """What gaps are relative to."""
        return max(abs(objective), 1e-4 * self.unit, 1e-300)

    # -- residuals ---------------------------------------------------------------------------

    def exact_objective(self, state: State) -> float:
        """The objective at these coefficients with lambda as it is, but no less than the norms."""
        sys = self.system
        value = sys.loss.value(state.u, state.lam)
        total = float(sys.weight @ value) + 0.5 * float((sys.decay * state.W**2).sum())
        return total + (sys.radius * state.lam if sys.lam_free else 0.0)

    def _gradient(self, state: State, smooth: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Derivative of the Lagrangian in W, b and lambda at the current multipliers."""
        sys, loss = self.system, self.system.loss
        g = smooth.copy()
        if loss.linear is not None:
            g += loss.linear
        glam = sys.radius
        if loss.n_pieces:
            g += state.p @ loss.slopes
            glam += float(sys.weight @ (state.p * loss.prices).sum(axis=1))
        g *= sys.weight[:, None] * loss.sign
        gW = g.T @ sys.X + sys.decay * state.W
        gb = g.sum(axis=0)
        if state.cones is not None:
            dv, dlam, _ = state.cones.force()
            self._scatter(gW, dv)
            glam += dlam
        return gW, gb, glam

    def _scatter(self, gW: np.ndarray, dv: np.ndarray) -> None:
        sys = self.system
        dv = dv * (sys.scale * sys.slope)
        for e, (j, k) in enumerate(sys.pairs()):
            gW[j, sys.mutable] += dv[e]
            if k is not None:
                gW[k, sys.mutable] -= dv[e]

    def _norm(self, state: State, smooth: np.ndarray) -> float:
        gW, gb, glam = self._gradient(state, smooth)
        largest = float(np.abs(gW).max(initial=0.0))
        if self.system.intercept:
            largest = max(largest, float(np.abs(gb).max()))
        if self.system.lam_free:
            largest = max(largest, abs(glam) / max(self.system.radius, 1e-300) * 1e-0)
        if state.cones is not None:
            largest = max(largest, state.cones.force()[2])
        return largest

    def _measured(self, state: State) -> State:
        sys = self.system
        smooth, _ = sys.loss.smooth.derivatives(state.u)
        gap = 0.0
        if sys.loss.n_pieces:
            gap += float(sys.weight @ (state.p * self._slack(state)).sum(axis=1))
        if state.cones is not None:
            gap += state.cones.products()
        residual = self._norm(state, smooth)
        objective = self.exact_objective(state)
        state = replace(state, gap=gap, residual=residual, objective=objective)
        size = self._size(objective)
        done = gap <= self.goal * size and residual <= 10.0 * self.goal * max(size, 1e-3)
        return replace(state, status=Status.CONVERGED) if done else state

    # -- a step ------------------------------------------------------------------------------

    def step(self, state: State) -> State:
        """One predictor-corrector step."""
        sys, loss = self.system, self.system.loss
        n, J = len(state.u), loss.n_pieces
        smooth, hessian = loss.smooth.derivatives(state.u)
        cones = state.cones
        share = self.share
        count = self._count(state)
        mu = state.gap / count if count else 0.0
        s = self._slack(state) if J else np.zeros((n, 0))
        try:
            with np.errstate(all="ignore"):  # at the boundary rounding leaves no system to solve
                factor, D = factorise(sys, state, hessian, s)
        except (np.linalg.LinAlgError, ValueError):
            return self._ended(state)

        def solve(t: Any, tc: Any, tf: float) -> dict[str, Any]:
            return self._solve(state, factor, smooth, s, D, t, tc, tf)

        if not count:
            return self._advance(state, solve(np.zeros((n, 0)), None, 0.0), smooth, 0.0)
        zero = None if cones is None else np.zeros_like(cones.y)
        affine = solve(np.zeros((n, J)), zero, 0.0)
        alpha = self._room(state, affine, s, 1.0)
        after = self._products(state, affine, s, alpha)
        sigma = min(1.0, max((after / state.gap) ** 3, 1e-8)) if state.gap > 0 else 0.0
        t = sigma * mu - affine["dp"] * affine["ds"]
        tc, tf = None, 0.0
        if cones is not None:
            tc = cones.target(share * sigma * mu, affine["dcs"], affine["dy"])
            tf = share * sigma * mu - affine["dyf"] * affine["dlam"]
        step = solve(t, tc, tf)
        if self._room(state, step, s, 0.995) < 0.1:  # the correction may point outwards
            safe = max(sigma, 0.3) * mu
            plain = None
            if cones is not None:
                plain = cones.target(share * safe, np.zeros_like(cones.y), np.zeros_like(cones.y))
            step = solve(np.full((n, J), safe), plain, share * safe)
        return self._advance(state, step, smooth, self._room(state, step, s, 0.995), s)

    def _room(self, state: State, step: dict, s: np.ndarray, share: float) -> float:
        """Largest step to the boundary of the linear constraints, times ``share``; at most 1."""
        alpha = 1.0 / share
        pairs = [(state.p, step["dp"]), (s, step["ds"])]
        if state.cones is not None:
            alpha = min(alpha, state.cones.room(step["dcs"], step["dy"]))
            if self.system.lam_free:
                room = np.array([state.lam - self.system.floor, state.cones.y_floor])
                pairs.append((room, np.array([step["dlam"], step["dyf"]])))
        for value, change in pairs:
            if value.size:
                rate = float((-change / value).max())
                if rate > 0:
                    alpha = min(alpha, 1.0 / rate)
        return min(1.0, share * alpha)

    def _products(self, state: State, step: dict, s: np.ndarray, alpha: float) -> float:
        p, ds = state.p + alpha * step["dp"], s + alpha * step["ds"]
        total = float(self.system.weight @ (p * ds).sum(axis=1))
        cones = state.cones
        if cones is not None:
            y, slack = cones.y + alpha * step["dy"], cones.slack() + alpha * step["dcs"]
            total += float((y * slack).sum())
            if self.system.lam_free:
                room = state.lam - self.system.floor + alpha * step["dlam"]
                total += (cones.y_floor + alpha * step["dyf"]) * room
        return max(total, 0.0)

    def _advance(self, state, step, smooth, alpha, s=None) -> State:
        """Move as far as the nonlinear constraints and a falling residual allow."""
        alpha = alpha if s is not None else 1.0
        before = state.residual
        slack = max(state.gap, 1e-14)
        for _ in range(30):
            new = self._moved(state, step, alpha)
            if new is not None:
                new = self._measured(new)
                curved = not self.system.loss.smooth.exact_zero
                falls = new.residual <= max((1.0 - 0.05 * alpha) * before, 10.0 * slack)
                if self.system.loss.smooth.guarded:
                    falls = falls and new.objective <= state.objective + slack
                if not curved or falls or not math.isfinite(before):
                    break
            alpha *= 0.5
        else:
            return self._ended(state)
        return self._judged(state, new)

    def _judged(self, state: State, new: State) -> State:
        """Rounding ends progress at some point: a gap that is small enough by then will do."""
        size = self._size(new.objective)
        rounding = 1e-12 * size
        stuck = abs(new.gap) >= 0.9 * abs(state.gap) or abs(new.gap) <= rounding
        stuck = stuck and new.residual >= 0.9 * state.residual
        worse = state.worse + 1 if stuck else 0
        new = replace(new, worse=worse)
        return replace(new, status=Status.CONVERGED) if worse >= 3 and self._near(new) else new

    def _near(self, state: State) -> bool:
        """Whether a state from which rounding allows no further step is good enough."""
        size = max(abs(state.objective), 1e-2 * self.unit)
        small = state.residual <= 1e3 * self.goal * max(self.unit, size)
        return abs(state.gap) <= 1e3 * self.goal * size and small

    def _ended(self, state: State) -> State:
        """A state that has no further step."""
        status = Status.CONVERGED if self._near(state) else Status.MAX_ITER
        return replace(state, status=status)

    def _moved(self, state: State, step: dict, alpha: float) -> State | None:
        sys = self.system
        W, b = state.W + alpha * step["dW"], state.b + alpha * step["db"]
        lam = state.lam + alpha * step["dlam"]
        cones = state.cones
        if cones is not None:
            cones = cones.moved(sys.vectors(W), lam, alpha, step["du"], step["dy"], step["dyf"])
            if not cones.inside:
                return None
        u = state.u + alpha * step["dresponse"]
        p = state.p + alpha * step["dp"]
        if p.size and not sys.loss.curved:  # there the slacks depend on p
            p = p / p.sum(axis=1, keepdims=True)
        return replace(
            state, W=W, b=b, lam=lam, u=u, p=p, top=state.top + alpha * step["dtop"], cones=cones
        )

    # -- linear algebra ----------------------------------------------------------------------

    def _bend(self, D: np.ndarray, total: np.ndarray) -> np.ndarray:
        slopes = self.system.loss.slopes[:, 0]
        return (D[:, 0] * D[:, 1] / total * (slopes[1] - slopes[0]) ** 2)[:, None]

    def _solve(self, state, factor, smooth, s, parts, t, tc, tf) -> dict[str, Any]:
        sys, loss = self.system, self.system.loss
        D, mean, total = parts
        K, J, d = sys.n_outputs, loss.n_pieces, sys.X.shape[1]
        g = smooth.copy()
        if loss.linear is not None:
            g += loss.linear
        glam = sys.radius
        h: Any = None
        excess: Any = None
        pull: Any = None
        now: Any = None
        bend: Any = None
        if J:
            h = t / s
            excess = h.sum(axis=1) - 1.0
            pull = h @ loss.slopes - mean * excess[:, None]
            if loss.curved:
                now, bend = state.p @ loss.slopes, self._bend(D, total)
                pull = now + (pull - now) / (1.0 + bend)
            g += pull
            if sys.lam_free and loss.prices.any():
                mean_e = (D * loss.prices).sum(axis=1) / total
                glam += float(sys.weight @ ((h * loss.prices).sum(axis=1) - mean_e * excess))
        g *= sys.weight[:, None] * loss.sign
        gW = g.T @ sys.X + sys.decay * state.W
        if state.cones is not None:
            along, bottom = state.cones.pull(tc, tf)
            self._scatter(gW, along[:, :-1])
            glam += float(along[:, -1].sum()) + bottom
        columns = [gW] + ([g.sum(axis=0)[:, None]] if sys.intercept else [])
        right = np.concatenate(columns, axis=1).ravel()
        if sys.lam_free:
            right = np.append(right, glam)
        chol, diagonal, scaled = factor
        target = -right / diagonal
        x = cho_solve(chol, target)
        x += cho_solve(chol, target - scaled @ x)
        x /= diagonal
        width = d + (1 if sys.intercept else 0)
        body = x[: K * width].reshape(K, width)
        step: dict[str, Any] = {
            "dW": body[:, :d].copy(),
            "db": body[:, d].copy() if sys.intercept else np.zeros(K),
            "dlam": float(x[-1]) if sys.lam_free else 0.0,
        }
        du = sys.X @ step["dW"].T
        du += step["db"]
        du *= loss.sign
        step["dresponse"] = du
        empty = np.zeros((len(s), 0))
        step["dp"], step["ds"], step["dtop"] = empty, empty, 0.0
        if J:
            inner = du
            if loss.curved:
                # pull is the new slope before du acts: d slope = pull - now + bend du / (1 + bend)
                inner = du - (pull - now + bend * du / (1.0 + bend))
            dA = inner @ loss.slopes.T + step["dlam"] * loss.prices
            dtop = ((D * dA).sum(axis=1) + excess) / total
            step["dtop"], step["ds"] = dtop, dtop[:, None] - dA
            step["dp"] = h - state.p - D * step["ds"]
        if state.cones is not None:
            dv = sys.vectors(step["dW"])
            found = state.cones.direction(dv, step["dlam"], tc, tf)
            step["du"], step["dcs"], step["dy"], step["dyf"] = found
        return step
