"""Primal-dual interior-point steps for order-1 robust linear models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from drojko._driver import Status
from drojko.losses.pieces import Response
from drojko.minimax.order_one.cones import Cones
from drojko.rows import Rows

__all__ = ["InteriorPoint", "State", "System"]


@dataclass(frozen=True)
class System:
    """An order-1 problem on standardised columns; an intercept is the last parameter.

    ``loss`` are the pieces, ``scale`` (m,) the factors and ``mutable`` (m,) the indices of the
    columns whose coefficients enter the norms, ``decay`` (D,) the L2 penalties, ``radius`` the
    price of lambda; ``fixed_lam`` in penalty form.
    """

    rows: Rows
    loss: Response
    n_outputs: int
    scale: np.ndarray
    mutable: np.ndarray
    q: float
    decay: np.ndarray
    radius: float
    floor: float
    fixed_lam: float | None
    slope: float
    cones: bool
    lam_free: bool

    def pairs(self) -> list[tuple[int, int | None]]:
        """Rows of coefficients whose differences are bounded by lambda."""
        if self.n_outputs == 1:
            return [(0, None)]
        return [(j, k) for j in range(self.n_outputs) for k in range(j)]

    def vectors(self, Z: np.ndarray) -> np.ndarray:
        """The bounded vectors v_e, shape (E, m)."""
        part = Z[:, self.mutable] * (self.scale * self.slope)
        rows = [part[j] if k is None else part[j] - part[k] for j, k in self.pairs()]
        return np.array(rows).reshape(len(rows), len(self.mutable))

    def largest(self, Z: np.ndarray) -> float:
        """The largest norm of them."""
        return float(np.linalg.norm(self.vectors(Z), ord=self.q, axis=1).max(initial=0.0))

    def scatter(self, gradient: np.ndarray, dv: np.ndarray) -> None:
        """Add what a gradient in the vectors is in the parameters (K, D)."""
        dv = dv * (self.scale * self.slope)
        for e, (j, k) in enumerate(self.pairs()):
            gradient[j, self.mutable] += dv[e]
            if k is not None:
                gradient[k, self.mutable] -= dv[e]

    def linear(self, Z: np.ndarray) -> np.ndarray:
        """How responses change with the parameters, shape (n, K)."""
        return np.stack([self.rows.predict(z) for z in Z], axis=1) * self.loss.sign

    def responses(self, Z: np.ndarray) -> np.ndarray:
        """Responses u = sign * (predictions) + offset, shape (n, K)."""
        return self.linear(Z) + self.loss.offset

    def pull(self, g: np.ndarray, Z: np.ndarray) -> np.ndarray:
        """Gradient in the parameters (K, D) of slopes (n, K) of the rows, and of the ridge at Z."""
        return self.rows.sum(g * (self.rows.w[:, None] * self.loss.sign)).T + self.decay * Z

    def objective(self, Z: np.ndarray, u: np.ndarray, lam: float) -> float:
        """The objective at a lambda no less than the norms."""
        value = float(self.rows.w @ self.loss.value(u, lam)) + 0.5 * float(
            (self.decay * Z**2).sum()
        )
        return value + (self.radius * lam if self.lam_free else 0.0)


@dataclass(frozen=True)
class State:
    """An iterate: parameters Z (K, D), lambda, responses u, and the dual variables."""

    Z: np.ndarray
    lam: float
    u: np.ndarray
    p: np.ndarray
    top: np.ndarray
    cones: Cones | None
    gap: float = math.inf
    residual: float = math.inf
    objective: float = math.inf
    status: Status | None = None
    worse: int = 0


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
        return float(np.square(self.system.rows.w).sum() ** 0.75)

    def _count(self, state: State) -> float:
        """Products of the gap, weighted."""
        cones = state.cones
        return self.system.loss.n_pieces + (self.share * cones.count if cones is not None else 0.0)

    # -- the loop's interface ----------------------------------------------------------------

    def init(self, problem: np.ndarray) -> State:
        """First state from the parameters."""
        sys, Z = self.system, problem
        u = sys.responses(Z)
        target = 0.1
        lam, cones = sys.fixed_lam or 0.0, None
        size = sys.largest(Z)
        if sys.lam_free:
            count = 2.0 * sys.scale.size + 1.0
            lam = max(count * self.share * target / sys.radius, 1e-8) + max(1.1 * size, sys.floor)
        elif sys.cones and size > 0.9 * lam:
            Z = Z.copy()
            Z[:, : sys.rows.d] *= 0.9 * lam / size
            u = sys.responses(Z)
        J = sys.loss.n_pieces
        p = np.full((len(u), J), 1.0 / max(J, 1))
        # Equal shares p of slopes +-delta sum to zero: the curved term does not matter here.
        top = sys.loss.affine(u, lam).max(axis=1) + 1.0 if J else np.zeros(len(u))
        if sys.cones:
            cones = Cones(sys.q, sys.fixed_lam is not None, sys.floor, sys.vectors(Z), lam)
            cones.start(self.share * target)
        return self._measured(State(Z, lam, u, p, top, cones))

    def finite(self, state: State) -> bool:
        """Whether all that matters is finite."""
        return bool(np.isfinite(state.Z).all())

    def terminate(self, state: State) -> Status | None:
        """Converged when the duality gap and the gradient are within the goal."""
        return state.status

    def record(self, state: State) -> dict[str, float]:
        """A row of the history, in standardised units."""
        return {
            "robust_risk": state.objective,
            "penalty": state.lam,
            "stationarity": state.residual,
        }

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

    def _norm(self, state: State, smooth: np.ndarray) -> float:
        """Largest entry of the gradient of the Lagrangian at the current multipliers."""
        gZ, glam = lagrangian_gradient(self.system, state, smooth, state.p)
        largest = float(np.abs(gZ).max(initial=0.0))
        if self.system.lam_free:
            largest = max(largest, abs(glam) / max(self.system.radius, 1e-300))
        if state.cones is not None:
            largest = max(largest, state.cones.force()[2])
        return largest

    def _measured(self, state: State) -> State:
        sys = self.system
        smooth, _ = sys.loss.smooth.derivatives(state.u)
        gap = 0.0
        if sys.loss.n_pieces:
            gap += float(sys.rows.w @ (state.p * self._slack(state)).sum(axis=1))
        if state.cones is not None:
            gap += state.cones.products()
        residual = self._norm(state, smooth)
        objective = sys.objective(state.Z, state.u, state.lam)
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
        total = float(self.system.rows.w @ (p * ds).sum(axis=1))
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
        Z = state.Z + alpha * step["dZ"]
        lam = state.lam + alpha * step["dlam"]
        cones = state.cones
        if cones is not None:
            cones = cones.moved(sys.vectors(Z), lam, alpha, step["du"], step["dy"], step["dyf"])
            if not cones.inside:
                return None
        u = state.u + alpha * step["dresponse"]
        p = state.p + alpha * step["dp"]
        if p.size and not sys.loss.curved:  # there the slacks depend on p
            p = p / p.sum(axis=1, keepdims=True)
        top = state.top + alpha * step["dtop"]
        return replace(state, Z=Z, lam=lam, u=u, p=p, top=top, cones=cones)

    # -- linear algebra ----------------------------------------------------------------------

    def _bend(self, D: np.ndarray, total: np.ndarray) -> np.ndarray:
        slopes = self.system.loss.slopes[:, 0]
        return (D[:, 0] * D[:, 1] / total * (slopes[1] - slopes[0]) ** 2)[:, None]

    def _solve(self, state, factor, smooth, s, parts, t, tc, tf) -> dict[str, Any]:
        sys, loss = self.system, self.system.loss
        D, mean, total = parts
        J = loss.n_pieces
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
                glam += float(sys.rows.w @ ((h * loss.prices).sum(axis=1) - mean_e * excess))
        gZ = sys.pull(g, state.Z)
        if state.cones is not None:
            along, bottom = state.cones.pull(tc, tf)
            sys.scatter(gZ, along[:, :-1])
            glam += float(along[:, -1].sum()) + bottom
        right = gZ.ravel()
        if sys.lam_free:
            right = np.append(right, glam)
        chol, diagonal, scaled = factor
        target = -right / diagonal
        x = cho_solve(chol, target)
        x += cho_solve(chol, target - scaled @ x)
        x /= diagonal
        dZ = x[: gZ.size].reshape(gZ.shape)
        du = sys.linear(dZ)
        step: dict[str, Any] = {"dZ": dZ, "dlam": float(x[-1]) if sys.lam_free else 0.0}
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
            dv = sys.vectors(dZ)
            found = state.cones.direction(dv, step["dlam"], tc, tf)
            step["du"], step["dcs"], step["dy"], step["dyf"] = found
        return step


# -- the Newton systems: one weighted Gram matrix, and the cones' blocks -------------------------


def factorise(sys: System, state: State, hessian: np.ndarray, s: np.ndarray):
    """Cholesky factor of the Newton system at hessian (n, K, K) and slacks s (n, J).

    Returns the factor with its scaling, and what the pieces' elimination needs again.

    Raises
    ------
    numpy.linalg.LinAlgError, ValueError
        Where rounding leaves no positive definite system.
    """
    loss = sys.loss
    width, K, J, w = sys.rows.size, sys.n_outputs, loss.n_pieces, sys.rows.w
    size = K * width
    H = np.zeros((size + 1, size + 1))
    D = mean = total = None
    cross = np.zeros((len(s), K))
    price = 0.0
    if J:
        D = state.p / s
        total = D.sum(axis=1)
        mean = (D @ loss.slopes) / total[:, None]
        if J == 2 and K == 1:
            a = float(loss.slopes[1, 0] - loss.slopes[0, 0])
            joint = D[:, 0] * D[:, 1] / total
            if loss.curved:
                joint = joint / (1.0 + joint * a * a)
            hessian = hessian + (joint * a * a)[:, None, None]
            e = loss.prices[:, 1] - loss.prices[:, 0]
            cross = (joint * a * e)[:, None]
            price = float(w @ (joint * e * e))
        else:
            weighted = D[:, :, None] * (loss.slopes[None] - mean[:, None, :])
            hessian = hessian + np.einsum("njk,jl->nkl", weighted, loss.slopes)
            if sys.lam_free and loss.prices.any():
                mean_e = (D * loss.prices).sum(axis=1) / total
                off = D * (loss.prices - mean_e[:, None])
                cross = off @ loss.slopes
                price = float(w @ (off * loss.prices).sum(axis=1))
    view = H[:size, :size].reshape(K, width, K, width)
    for k in range(K):
        for j in range(k + 1):
            block = _gram(sys.rows, w * hessian[:, k, j])
            view[k, :, j, :] = block
            view[j, :, k, :] = block.T
    H[np.arange(size), np.arange(size)] += np.tile(sys.decay, K)
    if sys.lam_free:
        column = sys.rows.sum(cross * (w[:, None] * loss.sign))
        H[size, :size] = H[:size, size] = column.T.ravel()
        H[size, size] = price
    if state.cones is not None:
        _add_cones(sys, H, state.cones, width, size)
    if not sys.lam_free:
        H = H[:size, :size]
    _regularise(H, K, width)
    diagonal = np.sqrt(np.maximum(np.diag(H), 1e-300))
    scaled = H / diagonal[:, None] / diagonal[None]
    for shift in (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6):
        try:
            scaled[np.diag_indices_from(scaled)] = 1.0 + shift
            return (cho_factor(scaled, lower=True), diagonal, scaled), (D, mean, total)
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("the Newton system is not positive definite")


def _gram(rows: Rows, h: np.ndarray) -> np.ndarray:
    """B' diag(h) B, for h of any sign."""
    out = rows.gram(np.maximum(h, 0.0))
    return out - rows.gram(np.maximum(-h, 0.0)) if (h < 0).any() else out


def _regularise(H: np.ndarray, K: int, width: int) -> None:
    # A vector added to all rows of W changes nothing: give that direction some curvature.
    if K > 1:
        view = H[: K * width, : K * width].reshape(K, width, K, width)
        size = np.einsum("kiki->i", view) / K**2 + 1e-30
        index = np.arange(width)
        for k in range(K):
            for j in range(K):
                view[k, index, j, index] += size


def lagrangian_gradient(
    sys: System, state: State, smooth: np.ndarray, p: np.ndarray
) -> tuple[np.ndarray, float]:
    """Derivative of the Lagrangian in Z and lambda at shares p and the cones' multipliers."""
    loss, glam = sys.loss, sys.radius
    g = smooth + (0.0 if loss.linear is None else loss.linear)
    if loss.n_pieces:
        g = g + p @ loss.slopes
        glam += float(sys.rows.w @ (p * loss.prices).sum(axis=1))
    gZ = sys.pull(g, state.Z)
    if state.cones is not None:
        dv, dlam, _ = state.cones.force()
        sys.scatter(gZ, dv)
        glam += dlam
    return gZ, glam


def _add_cones(sys: System, H: np.ndarray, cones: Cones, width: int, size: int) -> None:
    m = len(sys.mutable)
    factor = sys.scale * sys.slope
    blocks = cones.blocks()
    square = blocks[:, :m, :m] * factor[:, None] * factor[None]
    line = blocks[:, :m, m] * factor
    for e, (j, k) in enumerate(sys.pairs()):
        at = j * width + sys.mutable
        H[np.ix_(at, at)] += square[e]
        H[at, size] += line[e]
        H[size, at] += line[e]
        if k is None:
            continue
        to = k * width + sys.mutable
        H[np.ix_(to, to)] += square[e]
        H[np.ix_(at, to)] -= square[e]
        H[np.ix_(to, at)] -= square[e].T
        H[to, size] -= line[e]
        H[size, to] -= line[e]
    H[size, size] += blocks[:, m, m].sum() + cones.floor_curvature
