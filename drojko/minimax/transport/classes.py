r"""Linear models of several classes under order-2 Wasserstein, with a proven gap.

.. math:: \min_{W, b, \lambda}\; \lambda r^2 + E \max_p \big\{ c^\top (Wx + b) + h(p)
          + \tfrac1{4\lambda} \|W^\top c\|^2_{C^{-1}} \big\} + \tfrac\alpha2 \|W\|^2,
          \qquad c = p - e_y,

is jointly convex. Newton's steps by conjugate gradients: a row answers in the space of class
probabilities, so that a product with the second derivative costs about as much as a gradient.
Where the worst cases of a row compete they are smoothed, by less from stage to stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve

from drojko._driver import Limits, Outcome, Status, run
from drojko._numerics import separated
from drojko.exceptions import NonFiniteError
from drojko.losses.class_moves import Moves, squares_of
from drojko.losses.everywhere import Everywhere
from drojko.minimax.newton import LinearFit, relative_gap, telling
from drojko.minimax.problem import NOT_FINITE
from drojko.minimax.transport.class_bound import ClassGround, class_lower_bound
from drojko.minimax.transport.class_risk import class_robust_risk
from drojko.minimax.transport.class_step import ClassPoint, class_step
from drojko.minimax.transport.linear import turn
from drojko.minimax.transport.objective import SEPARABLE
from drojko.minimax.transport.risk import RidgeData
from drojko.rows import Rows, is_wide, products, rows_of

__all__ = ["solve_classes"]

_WIDTH, _COOLING = 0.03, 0.1  # of smoothing: the first over the risk, and the next over the last
#: How far from a fixed point worst cases may be, at first and at last.
_ROUGH, _FINE = 1e-3, 1e-9
_GOAL = 0.8  # of the tolerance: what is worked for
_LEAST = 1e-7  # width of smoothing over the risk
_RISE, _LOOKS = 0.1, 8  # share of moves at the start, and steps towards its multiplier
_COME = 0.1  # of the width, that basins which come and go may change a value by
_NOTHING = 1e-9  # of the risk, that moves may add to that of a constant model
_FLAT = 100  # steps towards the best constant model
_BIAS = 0.5  # of the accuracy, that smoothing may cost
_STUCK = 3  # steps without progress


@dataclass(frozen=True, eq=False)
class _State:
    """An iterate at a width of smoothing, the best one so far, and a proven bound."""

    at: ClassPoint
    best: ClassPoint
    mu: float
    lower: float = -math.inf
    decrement: float = math.inf
    slope: float = math.inf
    stage: float = math.inf
    stuck: int = 0
    ended: Status | None = None
    #: Moves whose shares balance in the model of the last step; those of the best bound, and mu.
    plan: Moves | None = None
    proof: tuple[Moves, float] | None = None


@dataclass(frozen=True, eq=False)
class _Newton:
    """The solver of the driver.

    ``tol`` is the proven relative gap aimed at, ``unit`` a loss of ordinary size.
    """

    rows: Rows
    ground: ClassGround
    loss: Any
    n_classes: int
    tol: float
    unit: float

    # Points -------------------------------------------------------------------------------------

    def point(
        self, Z: np.ndarray, penalty: float, mu: float, near: Any = None, done: float = _ROUGH
    ) -> ClassPoint | None:
        """What is known at a model; None where that is not finite."""
        turned = Z * self.ground.cost
        gram, f = turned @ Z.T, self.rows.predict(np.ascontiguousarray(Z.T))
        half, rows = 0.5 / penalty, self.rows
        wild = not (np.isfinite(f).all() and np.isfinite(half * gram).all())
        if rows.total(np.array(wild, dtype=float)):
            return None
        near = near and near.here
        moves = Everywhere(self.loss.class_moves(f, rows.y, gram, half, near, done), rows.total)
        found = self.weighed(Z, penalty, moves, turned, gram, mu)
        sane = math.isfinite(found.value) and np.isfinite(found.second).all()
        return found if sane else None

    def weighed(
        self,
        Z: np.ndarray,
        penalty: float,
        moves: Moves,
        turned: np.ndarray,
        gram: np.ndarray,
        mu: float,
    ) -> ClassPoint:
        """With moves that compete smoothed by mu."""
        ground, w = self.ground, self.rows.w
        risk, pull, second = moves.sums(w, mu)
        rest = 0.5 * float((ground.ridge * Z * Z).sum())
        if ground.ball:
            rest += penalty * (ground.radius or 0.0) ** 2
        exact = risk
        if moves.competing:
            exact = float(self.rows.total(w @ moves.values(0.0)))
        return ClassPoint(Z, penalty, moves, turned, gram, risk + rest, exact + rest, pull, second)

    def first(self, Z: np.ndarray, penalty: float | None = None) -> ClassPoint | None:
        """A model at about its best multiplier."""
        ground, rows = self.ground, self.rows
        if not ground.ball:
            return self.point(Z, ground.penalty or math.inf, 0.0)
        radius = ground.radius or 1.0
        if penalty is None or not 0.0 < penalty < math.inf:
            gram = (Z * ground.cost) @ Z.T
            spent = float(rows.total(rows.w @ squares_of(gram).mean(axis=0)[rows.y]))
            penalty = _RISE * math.sqrt(max(spent, 1e-300)) / radius
        found = self.point(Z, penalty, 0.0)
        for _ in range(_LOOKS):  # until about the radius is spent
            step = 1.0 if found is None else math.sqrt(max(found.spent, 1e-300)) / radius
            if 0.3 <= step <= 3.0 and found is not None:
                break
            penalty *= min(max(step, 0.01), 100.0)
            new = self.point(Z, penalty, 0.0)
            if new is None or (found is not None and new.value >= found.value):
                break
            found = new
        return found

    def discriminant(self) -> np.ndarray:
        """Fisher's discriminant of classes that share a covariance, which the ball widens."""
        rows, k, d = self.rows, self.n_classes, self.rows.d
        own = np.zeros((len(rows.y), k))
        own[np.arange(len(rows.y)), rows.y] = rows.w
        mass = np.maximum(rows.total(own.sum(axis=0)), 1e-300)
        means = (rows.sum(own)[:d] / mass).T
        reach = (self.ground.radius or 0.0) ** 2 * self.ground.cost[:d]
        if rows.wide:
            W = means / (1.0 + reach)
        else:
            within = rows.gram(rows.w)[:d, :d] - (means.T * mass) @ means
            within[np.diag_indices(d)] += reach + 1e-3
            W = solve(within, means.T, assume_a="pos").T
        W[:, rows.dead] = 0.0
        if not rows.intercept:
            return W
        b = np.log(mass) - 0.5 * (W * means).sum(axis=1)
        return np.concatenate([W, b[:, None]], axis=1)

    # The solver ---------------------------------------------------------------------------------

    def init(self, problem: tuple[np.ndarray, Any]) -> _State:
        """From a warm start, or a model along the means of the classes as far as that pays."""
        constant, warm = problem
        rows = self.rows
        flat = np.zeros((self.n_classes, rows.size))
        if rows.intercept:
            flat[:, -1] = constant
        if warm is not None and np.any(warm[0]):
            options = [self.first(rows.inward_classes(warm[0], warm[1]), warm[2])]
        else:
            Z, options = self.discriminant(), []
            Z, flat = Z - Z.mean(axis=0), flat - flat.mean(axis=0)
            for share in (0.3, 1.0, 0.1, 0.01):
                options.append(self.first(share * Z + (1.0 - share) * flat))
                if len(options) == 2 and options[1] is min(options, key=_value):
                    break
        start = min(options, key=_value)
        if start is None:
            raise NonFiniteError(NOT_FINITE)
        mu = _WIDTH * start.value
        return self.cooled(_State(start, start, mu))

    def cooled(self, state: _State) -> _State:
        """The state at its width of smoothing."""
        at = state.at
        at = self.weighed(at.Z, at.penalty, at.moves, at.turned, at.gram, state.mu)
        return replace(state, at=at)

    def step(self, state: _State) -> _State:
        """One step, a bound where that can decide, and the next width where a stage ends."""
        at = state.at
        found = class_step(self.rows, self.ground, at, state.mu)
        move, decrement = found.move, found.decrement
        slope = float(np.linalg.norm(found.gradient)) / (1.0 + abs(at.value))
        state = replace(state, decrement=decrement, slope=slope, plan=found.plan)
        dZ, rise = move[: at.Z.size].reshape(at.Z.shape), move[at.Z.size :]
        dZ = dZ - dZ.mean(axis=0)  # what all classes have in common has no say: no drift
        rounding = 1e-14 * abs(at.value)
        done = min(max(1e-2 * decrement / max(abs(at.value), 1e-300), _FINE), _ROUGH)
        t = 1.0
        for _ in range(30):
            penalty = at.penalty
            if rise.size:  # near a constant model both fall, and do not hold the intercepts back
                penalty = max(penalty + t * float(rise[0]), 0.1 * penalty)
            new = self.point(at.Z + t * dZ, penalty, state.mu, at.moves, done)
            goal = at.value - 1e-4 * t * decrement + rounding
            if new is not None and new.value <= goal:
                around = new.moves.looked_around()
                if around.competing:
                    new = self.weighed(new.Z, new.penalty, around, new.turned, new.gram, state.mu)
                # Basins come and go, which moves smoothed values by less than the width.
                if new.value <= goal + _COME * state.mu:
                    break
            t *= 0.5 if t > 0.1 else 0.2
        else:
            # Worst cases that had not settled are what may have been in the way.
            again = self.point(at.Z, at.penalty, state.mu, at.moves, _FINE) or at
            return self.scheduled(replace(state, at=again, stuck=state.stuck + 1))
        slow = new.value >= state.stage - rounding
        state = replace(
            state,
            at=new,
            best=new if new.attained <= state.best.attained else state.best,
            stage=min(state.stage, new.value),
            stuck=state.stuck + 1 if slow else 0,
        )
        return self.scheduled(state)

    def scheduled(self, state: _State) -> _State:
        """A bound where it may decide, and the next width."""
        at, tol = state.at, self.tol
        size = abs(at.value)
        bias = at.value - at.attained
        if state.decrement <= 0.1 * tol * size + bias or state.stuck:
            state = self.bounded(state)
            if state.ended is not None:
                return state
        reach = (self.ground.radius or math.inf) * math.sqrt(float(at.gram.diagonal().max()))
        if reach <= _NOTHING * size:  # a constant model, which `_fitted` proves
            return replace(state, ended=Status.STALLED)
        dear = bias > _BIAS * tol * size
        # Where smoothing costs little, what is left is a balance that a proof asks for.
        stuck = state.stuck > (1 if dear else _STUCK)
        cool = state.decrement <= 0.1 * bias and dear
        if at.moves.competing and (cool or stuck) and state.mu > _LEAST * size:
            return self.cooled(replace(state, mu=_COOLING * state.mu, stuck=0, stage=math.inf))
        if state.stuck > _STUCK:
            return replace(state, ended=Status.STALLED)
        return state

    def bounded(self, state: _State) -> _State:
        """With the bound of this iterate, which may end the run."""
        at, best, mu = state.at, state.best, state.mu
        lower, proof = state.lower, state.proof
        for plan in (at.moves, state.plan or at.moves):
            found = class_lower_bound(self.rows, plan, self.ground, at.Z, mu)
            if found > lower:
                lower, proof = found, (plan, mu)
        proven = relative_gap(best.attained, max(lower, 0.0), self.unit) <= self.tol
        ended = Status.CONVERGED if proven else None
        return replace(state, lower=lower, proof=proof, ended=ended)

    def terminate(self, state: _State) -> Status | None:
        """Converged on a proof, stalled where nothing moves any more."""
        return state.ended

    def finite(self, state: _State) -> bool:
        """Points are, or are not taken."""
        return math.isfinite(state.at.value)

    def record(self, state: _State) -> dict[str, float]:
        """A row of the history."""
        at = state.at
        return {
            "robust_risk": at.attained,
            "penalty": at.penalty,
            "transport_cost": at.spent,
            "stationarity": state.slope,
        }


def _value(point: ClassPoint | None) -> float:
    return math.inf if point is None else point.value


def _flat_bound(solver: _Newton, constant: np.ndarray) -> float:
    """What the best plan against constant models proves against all."""
    rows = solver.rows
    some = rows.blank()
    ground = ClassGround.of(some, np.zeros(1), 0.0, None, 0.0)
    flat = replace(solver, rows=some, ground=ground, tol=0.1 * solver.tol)
    found = run(flat, flat.init((constant, None)), max_iter=_FLAT).state
    plan, mu = found.proof or (found.at.moves, found.mu)
    Z = np.zeros((solver.n_classes, rows.size))
    return class_lower_bound(rows, plan, solver.ground, Z, mu)


def _fitted(
    solver: _Newton, outcome: Outcome[_State], data: RidgeData, constant: np.ndarray, alpha: float,
    tol: float,
) -> LinearFit:  # fmt: skip
    """The best point, or the best constant where that is no worse, and what is proven."""
    ground, state = solver.ground, outcome.state
    form: dict[str, Any] = {"radius": ground.radius, "penalty": ground.penalty}

    def judged(coef: np.ndarray, intercept: np.ndarray, guess: float | None) -> tuple:
        risk = class_robust_risk(data, coef, intercept, **form, guess=guess)
        ridge = 0.5 * alpha * float((coef * coef).sum())
        return risk.attained + ridge, risk.value + ridge, risk, coef, intercept

    found = judged(*outward(solver.rows, state.best.Z), state.best.penalty)
    if not ground.still:
        flat = judged(np.zeros_like(found[3]), constant, None)
        if flat[0] <= found[0] * (1.0 + 1e-9):
            found, before = flat, state.lower
            if not relative_gap(flat[0], max(before, 0.0), solver.unit) <= tol:
                state = replace(state, lower=max(before, _flat_bound(solver, constant)))
    attained, objective, risk, coef, intercept = found
    status, lower = outcome.status, min(max(state.lower, 0.0), attained)
    said, ended = "", status
    if status in (Status.CONVERGED, Status.STALLED, Status.MAX_ITER):
        near = relative_gap(attained, lower, solver.unit) <= tol
        ended = Status.STALLED if status == Status.CONVERGED else status
        ended = Status.CONVERGED if near else ended
        if near and relative_gap(objective, lower, solver.unit) > tol:
            # Of what is attained, not of what may be.
            share, lower = (objective - attained) / objective, -math.inf
            said = (
                "The worst case that was found is proven least within tol; that this "
                f"model has no worse one is proven to {share:.1%}, see certificate_. "
            )
    message = f"Stopped after {outcome.n_iter} iterations. {said}{ended.advice}"
    free = ground.still and not alpha and not data.loss.attained
    some = data.weight > 0
    if free and separated((products(data.X, coef.T) + intercept)[some], data.y[some]):
        ended, message = Status.UNBOUNDED, SEPARABLE
    return LinearFit(
        coef, intercept, risk.penalty, objective, lower, str(ended), message, outcome.n_iter,
        state.slope, outcome.columns(), solver.unit, risk=risk,
    )  # fmt: skip


def outward(rows: Rows, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (K, d) and intercepts (K,) in the units of the data."""
    coef, intercept = rows.outward(Z.T)
    return coef.T, intercept + np.zeros(len(Z))


def _constant(data: RidgeData, k: int) -> np.ndarray:
    """The best constant outputs that the loss names, shape (K,)."""
    options = [np.zeros(k), *data.loss.constants(data.y, data.weight, k)]
    return min(options, key=lambda option: _risk(data, option))


def _risk(data: RidgeData, outputs: np.ndarray) -> float:
    """The mean loss of constant outputs."""
    labels = torch.from_numpy(data.y)
    f = torch.from_numpy(outputs).expand(len(data.y), len(outputs)).contiguous()
    return float(data.loss.value(f, labels).numpy() @ data.weight)


def solve_classes(
    data: RidgeData,
    n_classes: int,
    *,
    radius: float | None = None,
    penalty: float | None = None,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    limits: Limits | None = None,
    warm_start: tuple[np.ndarray, np.ndarray, float | None] | None = None,
) -> LinearFit:
    """Minimise the worst-case risk of a linear model of several classes.

    Parameters
    ----------
    data : RidgeData
        With class indices y and a loss of several outputs.
    n_classes : int
    radius, penalty, alpha, fit_intercept, limits, warm_start
        See `drojko.minimax.transport.linear.solve_ridge`; coefficients are (K, d), intercepts (K,).

    Returns
    -------
    LinearFit
        ``lower`` is a proven bound of the minimum; ``risk`` holds the worst case.
    """
    limits = limits or Limits(200, 1e-3)
    if is_wide(data.X):
        turned = turn(data, alpha, fit_intercept)
        if turned is not None:
            rotation, data = turned
            if warm_start is not None:
                warm_start = (*rotation.inward(*warm_start[:2]), *warm_start[2:])
            found = solve_classes(
                data, n_classes, radius=radius, penalty=penalty, alpha=alpha,
                fit_intercept=fit_intercept, limits=rotation.limits(limits), warm_start=warm_start,
            )  # fmt: skip
            return rotation.back(found)
    if penalty is not None and math.isinf(penalty):
        radius, penalty = 0.0, None
    rows = rows_of(data.X, data.y, data.weight, intercept=fit_intercept).own()
    constant = _constant(data, n_classes) if fit_intercept else np.zeros(n_classes)
    ground = ClassGround.of(rows, data.inverse_cost, radius, penalty, alpha)
    unit = _risk(data, constant)
    solver = _Newton(rows, ground, data.loss, n_classes, _GOAL * limits.tol, unit)
    outcome = run(
        solver,
        solver.init((constant, warm_start)),
        max_iter=limits.max_iter,
        max_time=limits.time_left,
        callback=telling(limits, solver.record, lambda st: outward(rows, st.best.Z)),
    )
    return _fitted(solver, outcome, data, constant, alpha, limits.tol)
