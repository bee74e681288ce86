r"""Interior point for linear models under total variation: a largest loss and a tail mean.

.. math:: \min_{\theta, M, \eta, s}\; c_M M + c_\eta \eta + \sum_i w_i s_i
          + \tfrac\alpha2\|\theta\|^2 \quad\text{s.t.}\quad
          \ell_i(\theta) \le M,\quad \ell_i(\theta) - \eta \le s_i,\quad 0 \le s_i

A ball of radius r has c = (r, 1 - r); in the penalised form eta = M - penalty, c_M = 1, c_eta = 0.
The multipliers p of the first and q of the second constraints are the worst-case masses p_i + q_i;
those of the third are w_i - q_i. Iterates stay inside: where a step would cross a loss, s_i and M
are lifted with it. For losses with a second derivative; the worst masses come out with the model.

S. Mehrotra (1992), On the implementation of a primal-dual interior point method; S. Boyd,
L. Vandenberghe (2004), Convex Optimization, section 11.7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from drojko._driver import Status
from drojko.ambiguity import Reweighting
from drojko.losses import Logistic, Loss
from drojko.minimax.reweighting.newton import LossJet, Points, loss_jet

__all__ = ["InteriorState", "TailInterior"]

_BACK = 0.99  # share of the way to the boundary that a step may go
_SMALL = 1e-7  # relative complementarity and residual at which it ends, if the goal is not coarser
_ROUNDING = 1e-15  # least slack, in units of the loss
_FOLLOW = 1.0  # least complementarity to aim at, over the residual: it is not to fall faster
_CENTRED = 1e-3  # least product of a slack and its multiplier, over the mean
_STUCK = 3  # steps without progress after which it ends


@dataclass(frozen=True, eq=False)
class InteriorState:
    """An iterate with slacks u = M - loss and v = s - (loss - eta).

    ``objective`` is exact; ``gap`` is the complementarity and ``residual`` the largest entry of the
    gradient of the Lagrangian. Where that is 0, objective - gap is a lower bound of the minimum.
    """

    point: np.ndarray
    f: np.ndarray
    levels: np.ndarray  # M and eta
    s: np.ndarray
    p: np.ndarray
    q: np.ndarray
    jet: LossJet
    u: np.ndarray
    v: np.ndarray
    gap: float
    residual: float
    objective: float
    penalty: float
    radius: float
    separated: bool
    stuck: int = 0

    decrement = 0.0  # what a Newton step could gain is in the gap

    @property
    def size(self) -> float:
        """What tolerances are relative to."""
        return abs(self.objective)

    @property
    def slope(self) -> float:
        """The residual relative to 1 + the objective."""
        return self.residual / (1.0 + self.size)

    @property
    def merit(self) -> float:
        """What steps are to lower."""
        return self.gap + self.residual


class _Move(NamedTuple):
    point: np.ndarray
    levels: np.ndarray
    f: np.ndarray
    s: np.ndarray
    p: np.ndarray
    q: np.ndarray
    u: np.ndarray
    v: np.ndarray


class TailInterior:
    """The solver of the driver; ``goal`` is the relative accuracy of the objective aimed at."""

    def __init__(self, points: Points, loss: Loss, bound: Reweighting, alpha: float, goal: float):
        self.points, self.loss, self.bound, self.goal = points, loss, bound, goal
        decay = alpha / points.scale**2
        self.decay = np.append(decay, 0.0) if points.intercept else decay
        ambiguity: Any = bound.ambiguity
        self.ball = ambiguity.penalty is None
        self.size = float(ambiguity.radius if self.ball else ambiguity.penalty)
        # How M and eta depend on the free levels, and what those cost.
        self.tie = np.eye(2) if self.ball else np.ones((2, 1))
        self.cost = np.array([self.size, 1.0 - self.size]) if self.ball else np.ones(1)
        self.w, self.live = points.w, points.w > 0
        self.divergent = alpha == 0.0 and isinstance(loss, Logistic)
        self.floor, self.unit = 0.0, 1.0

    def init(self, problem: tuple[np.ndarray, float]) -> InteriorState:
        """First state at a point, with slacks of a share of the mean loss there."""
        point, share = problem
        f = self.points.matrix @ point
        losses = loss_jet(self.loss, f, self.points.y, 0.0).value
        self.unit = max(float(self.w @ np.abs(losses)), 1e-290)
        self.floor = 1e-10 * self.unit
        room = max(share, 1e-3) * self.unit
        top = float(losses[self.live].max()) + room
        mass = self.size if self.ball else 0.5  # on the largest loss
        eta = top - self.size
        if self.ball:
            order = np.argsort(losses)
            cut = int(np.searchsorted(np.cumsum(self.w[order]), mass))
            eta = float(losses[order[min(cut, len(order) - 1)]])
        s = np.maximum(losses - eta, 0.0) + room
        levels = np.array([top, eta])
        return self._at(point, f, levels, s, mass * self.w, (1.0 - mass) * self.w, None)

    def _at(self, point, f, levels, s, p, q, back: InteriorState | None) -> InteriorState:
        """The state at an iterate; slacks that the step from ``back`` has crossed open again."""
        jet = loss_jet(self.loss, f, self.points.y, 0.0)
        value = jet.value
        if back is not None:
            if not np.isfinite(value).all():  # the step is too long
                return replace(back, gap=math.inf)
            even = _CENTRED * back.gap / (3.0 * len(self.w)) * self.live
            least = np.maximum((1.0 - _BACK) * back.u, even / np.maximum(p, 1e-300))
            rise = max(float((value + least - levels[0])[self.live].max()), 0.0)
            levels = levels + (np.array([rise, 0.0]) if self.ball else rise)
            least = np.maximum((1.0 - _BACK) * back.v, even / np.maximum(q, 1e-300))
            s = np.maximum(s, value - levels[1] + least)
        tiny = _ROUNDING * self.unit
        u, s = np.maximum(levels[0] - value, tiny), np.maximum(s, tiny)
        v = np.maximum(s - (value - levels[1]), tiny)
        mass = p + q
        gradient = self.points.matrix.T @ (mass * jet.slope) + self.decay * point
        excess = self.tie.T @ np.array([p.sum(), q.sum()]) - self.cost
        dual = self.bound.dual(value)
        return InteriorState(
            point,
            f,
            levels,
            s,
            p,
            q,
            jet,
            u,
            v,
            gap=float((p * u + q * v + (self.w - q) * s)[self.live].sum()),
            residual=float(np.abs(gradient).max(initial=0.0))
            + self.unit * float(np.abs(excess).max()),
            objective=dual.value + 0.5 * float(self.decay @ point**2),
            penalty=dual.penalty,
            radius=dual.radius,
            separated=self.divergent and bool((f * (2.0 * self.points.y - 1.0) > 0).all()),
        )

    def slope(self, s: InteriorState) -> float:
        """The residual relative to 1 + the objective."""
        return s.slope

    def step(self, state: InteriorState) -> InteriorState:
        """One step of predictor and corrector, shortened until it lowers the merit."""
        st, system = state, _System(self, state)
        first = system.move(0.0)
        t = min(1.0, system.reach(first))
        now, count = system.complementarity(), 3.0 * float(self.live.sum())
        sigma = min(max(system.complementarity(first, t) / max(now, 1e-300), 0.0), 1.0) ** 3
        target = max(sigma * now, min(0.5 * now, _FOLLOW * st.residual)) / count
        move = system.move(target, first, t * t)
        t = min(1.0, _BACK * system.reach(move))
        best = None
        for _ in range(12):
            new = self._at(
                st.point + t * move.point, st.f + t * move.f, st.levels + t * move.levels,
                st.s + t * move.s, st.p + t * move.p, st.q + t * move.q, st,
            )  # fmt: skip
            if math.isfinite(new.merit) and (best is None or new.merit < best.merit):
                best = new
            if new.merit <= (1.0 - 0.05 * t) * st.merit:
                break
            t *= 0.5
        if best is None:
            return replace(st, stuck=_STUCK)
        return replace(best, stuck=st.stuck + 1 if best.merit >= 0.999 * st.merit else 0)

    def terminate(self, state: InteriorState) -> Status | None:
        """Converged where complementarity and residual are small."""
        size = max(state.size, self.floor)
        if state.separated or state.size <= self.floor:
            return Status.CONVERGED
        if state.merit <= min(_SMALL, 0.5 * self.goal) * size:
            return Status.CONVERGED
        if state.stuck >= _STUCK:
            good = state.merit <= 0.5 * self.goal * size
            return Status.CONVERGED if good else Status.MAX_ITER
        return None

    def finite(self, state: InteriorState) -> bool:
        """Whether the iterate is."""
        return bool(np.isfinite(state.point).all()) and math.isfinite(state.gap)

    def record(self, state: InteriorState) -> dict[str, float]:
        """A row of the history."""
        return {
            "robust_risk": state.objective,
            "penalty": state.penalty,
            "transport_cost": state.radius,
            "stationarity": state.slope,
        }


class _System:
    """The optimality conditions linearised at a state, factorised once for several moves.

    Rows are eliminated: with the rates of q and z = w - q the change of s is explicit, and what is
    left are the model's parameters and the free levels.
    """

    def __init__(self, solver: TailInterior, st: InteriorState):
        self.solver, self.st = solver, st
        live, matrix, jet = solver.live, solver.points.matrix, st.jet
        self.z = np.maximum(solver.w - st.q, _ROUNDING * solver.w)
        self.steep_p = np.where(live, st.p / st.u, 0.0)
        self.rate_q = np.where(live, st.q / st.v, 0.0)
        self.rate_z = np.where(live, self.z / st.s, 0.0)
        self.rate = np.maximum(self.rate_q + self.rate_z, 1e-300)
        self.steep_q = self.rate_q * self.rate_z / self.rate
        steep = self.steep_p + self.steep_q
        hessian = solver.points.gram((st.p + st.q) * jet.second + steep * jet.slope**2)
        hessian[np.diag_indices_from(hessian)] += solver.decay
        pairs = np.column_stack([self.steep_p, self.steep_q])
        border = -matrix.T @ (jet.slope[:, None] * pairs) @ solver.tie
        corner = solver.tie.T @ np.diag(pairs.sum(0)) @ solver.tie
        self.factor = _factor(np.block([[hessian, border], [border.T, corner]]))

    def move(self, target: float, first: _Move | None = None, share: float = 0.0) -> _Move:
        """Move to complementarity ``target``, with the second order of a first move."""
        solver, st, jet = self.solver, self.st, self.st.jet
        bend_u: Any = 0.0
        bend_v = bend_s = bend = bend_u
        if first is not None:
            curve = 0.5 * jet.second * first.f**2
            bend_u = share * (first.p * first.u - st.p * curve)
            bend_v = share * (first.q * first.v - st.q * curve)
            bend_s = -share * first.q * first.s
            bend = share * (first.p + first.q) * jet.second * first.f
        live, matrix = solver.live, solver.points.matrix
        base_p = np.where(live, (target - bend_u) / st.u, 0.0) - st.p
        to_v = np.where(live, (target - bend_v) / st.v, 0.0) - st.q
        to_s = np.where(live, (target - bend_s) / st.s, 0.0) - self.z
        base_q = (to_v * self.rate_z - to_s * self.rate_q) / self.rate
        p, q = st.p + base_p, st.q + base_q
        pull = -(matrix.T @ ((p + q) * jet.slope + bend)) - solver.decay * st.point
        levels = solver.tie.T @ np.array([p.sum(), q.sum()]) - solver.cost
        right = np.concatenate([pull, levels])
        solution = scipy.linalg.cho_solve(self.factor, right, check_finite=False)
        point, levels = solution[: len(pull)], solver.tie @ solution[len(pull) :]
        f = matrix @ point
        rise = jet.slope * f - levels[1]
        s = (to_v + to_s + self.rate_q * rise) / self.rate
        u = levels[0] - jet.slope * f
        p, q = base_p - self.steep_p * u, base_q + self.steep_q * rise
        return _Move(point, levels, f, s, p, q, u, s - rise)

    def reach(self, move: _Move) -> float:
        """Longest step that keeps slacks and multipliers positive, to first order."""
        st = self.st
        pairs = (
            (st.u, move.u), (st.v, move.v), (st.s, move.s),
            (st.p, move.p), (st.q, move.q), (self.z, -move.q),
        )  # fmt: skip
        return min(_reach(x, dx, self.solver.live) for x, dx in pairs)

    def complementarity(self, move: _Move | None = None, t: float = 0.0) -> float:
        """Sum of slacks times multipliers, after a step."""
        st, m = self.st, move
        if m is None:
            total = st.p * st.u + st.q * st.v + self.z * st.s
        else:
            total = (st.p + t * m.p) * (st.u + t * m.u) + (st.q + t * m.q) * (st.v + t * m.v)
            total += (self.z - t * m.q) * (st.s + t * m.s)
        return float(total[self.solver.live].sum())


def _factor(system: np.ndarray) -> Any:
    """Cholesky factor, with as little added to the diagonal as that takes."""
    unit, ridge = np.maximum(system.diagonal(), 1e-300), 1e-14
    while True:
        try:
            return scipy.linalg.cho_factor(system + np.diag(ridge * unit), check_finite=False)
        except np.linalg.LinAlgError:
            ridge *= 100.0


def _reach(x: np.ndarray, dx: np.ndarray, live: np.ndarray) -> float:
    """Longest step t with x + t dx >= 0."""
    falling = live & (dx < 0)
    return float((-x[falling] / dx[falling]).min(initial=math.inf))
