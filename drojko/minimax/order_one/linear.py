r"""Exact minimax for linear models under order-1 Wasserstein.

.. math:: \min_{\theta, b} \inf_{\lambda \ge L\|\theta\|_*} \lambda r
          + E \max_{y'} \{\ell(\theta'x + b, y') - \lambda\kappa [y' \ne y]\}
          + \tfrac\alpha2\|\theta\|^2

L is the Lipschitz constant of the loss, with more than two classes the norm is the largest of
those of differences of rows. Solved by an interior-point method (`lipschitz_newton`).

S. Shafieezadeh-Abadeh, D. Kuhn, P. Mohajerin Esfahani, 2019, Regularization via Mass
Transportation, arXiv 1710.10016; J. Blanchet, K. Murthy, 2019, arXiv 1604.01446.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from drojko._driver import Limits, Outcome, Status, run
from drojko._numerics import endless
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.losses import Loss
from drojko.minimax.newton import ENDLESS, LinearFit, telling
from drojko.minimax.order_one.interior import InteriorPoint, State, System, lagrangian_gradient
from drojko.rows import Rows, rows_of

__all__ = ["slope_bound", "solve_lipschitz"]

#: Largest number of unknowns of a Newton system.
MOST_UNKNOWNS = 6000

_DUAL = {1: math.inf, 2: 2, math.inf: 1}


def slope_bound(loss: Loss) -> float:
    r"""L such that the worst slope of the loss in x is :math:`L \max_e \|\theta_e\|_*`.

    With more than two classes theta_e are differences of rows, and L = 1.

    Raises
    ------
    UnboundedRiskError
        For the squared loss: under order 1 every radius > 0 gives an infinite worst case.
    UnsupportedError
        Where no Lipschitz constant is known.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> slope_bound(get_loss("quantile", q=0.9))
    0.9
    """
    if loss.lipschitz is None or not (loss.scalar or loss.has_pairs):
        raise UnsupportedError(
            "order=1 needs a loss with a known Lipschitz constant: use logistic, hinge, absolute, "
            "huber or quantile, or order=2"
        )
    if math.isinf(loss.lipschitz):
        raise UnboundedRiskError(
            f"order=1: the {loss.name} loss grows faster than distance, so its worst case is "
            "infinite for every radius > 0 (and every penalty): use order=2, or the loss 'huber'"
        )
    return float(loss.lipschitz) if loss.scalar else 1.0


def solve_lipschitz(
    X: np.ndarray,
    y: np.ndarray,
    *,
    loss: Loss,
    weight: np.ndarray | None = None,
    n_outputs: int = 1,
    radius: float | None = None,
    penalty: float | None = None,
    norm: float = 2,
    inverse_weights: np.ndarray | None = None,
    label_cost: float = math.inf,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    limits: Limits | None = None,
    warm_start: tuple[np.ndarray, np.ndarray] | None = None,
) -> LinearFit:
    r"""Minimise the order-1 worst-case risk of a linear model, exactly.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    y : ndarray of shape (n,)
        Class indices, or targets of a regression.
    loss : Loss
        Lipschitz and convex: maxima of affine functions, or smooth.
    weight : ndarray of shape (n,), default=None
        Masses; only proportions matter.
    n_outputs : int
        Rows of coefficients: 1, or the number of classes.
    radius, penalty : float
        Exactly one of them; W1 <= radius in the units of X.
    norm : {1, 2, inf}
        Norm of the ground cost.
    inverse_weights : ndarray of shape (d,), default=None
        1 / weights of the columns; 0 where a column cannot move.
    label_cost : float
        Distance between two labels; in regression per unit of y.
    alpha, fit_intercept, limits
        As in `solve_ridge`.
    warm_start : (coef, intercept)

    Returns
    -------
    LinearFit
        ``coef`` (K, d) and ``intercept`` (K,), K = 1 for two classes and regression; of several
        outputs no bound is proven.

    Raises
    ------
    UnboundedRiskError
        Squared loss, or a penalty below the price of moving targets.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> found = solve_lipschitz(X, y, loss=get_loss("hinge"), radius=0.1)
    >>> found.status, round(found.objective, 6), found.coef.round(6).tolist()
    ('converged', 0.2, [[2.0]])
    """
    if (radius is None) == (penalty is None):
        raise InvalidDataError("give exactly one of radius and penalty")
    limits = limits or Limits(200, 1e-6)
    units = _Units.of(rows_of(X, y, weight, intercept=fit_intercept), loss)
    if penalty is not None and math.isinf(penalty):
        radius, penalty = 0.0, None
    still = radius == 0.0
    inverse = np.ones(X.shape[1]) if inverse_weights is None else np.asarray(inverse_weights)
    system = _system(units, n_outputs, radius, penalty, norm, inverse, label_cost, alpha)
    unknowns = n_outputs * (X.shape[1] + 1)
    if unknowns > MOST_UNKNOWNS:
        raise UnsupportedError(
            f"order=1 solves Newton systems of {unknowns} unknowns here, more than "
            f"{MOST_UNKNOWNS}: reduce the number of columns, or use order=2"
        )
    zero = np.zeros((n_outputs, system.rows.size))
    plain = system.loss.value(system.responses(zero), system.fixed_lam or 0.0)
    solver = InteriorPoint(system, 0.01 * min(limits.tol, 1e-6), float(system.rows.w @ plain))
    first = units.inward(*(warm_start or _first(units, n_outputs)))

    def outward(row: dict[str, float]) -> dict[str, float]:
        return {
            **row,
            "robust_risk": row["robust_risk"] * units.loss_unit,
            "penalty": math.inf if still else row["penalty"] * units.loss_unit,
            "transport_cost": math.nan if radius is None else float(radius),
        }

    outcome = run(
        solver,
        solver.init(first),
        max_iter=limits.max_iter,
        max_time=limits.time_left,
        callback=telling(
            limits, lambda st: outward(solver.record(st)), lambda st: units.outward(st.Z)
        ),
    )
    outcome = replace(outcome, history=[outward(row) for row in outcome.history])
    return _finish(solver, units, outcome, still, limits.tol)


@dataclass(frozen=True)
class _Units:
    """Standardised columns and targets; only the scale of the loss and of lambda changes.

    ``loss`` is the loss at ``target``, in these units: the given one is ``loss_unit`` times it.
    """

    rows: Rows
    target: np.ndarray
    middle: float
    target_unit: float
    loss: Loss
    loss_unit: float

    @staticmethod
    def of(rows: Rows, loss: Loss) -> _Units:
        y, w = np.asarray(rows.y), rows.w
        middle, unit, scaled = 0.0, 1.0, None
        if loss.rescaled(1.0) is not None:
            kept = w > 0
            order = np.argsort(y[kept])
            if rows.intercept:
                at = np.searchsorted(np.cumsum(w[kept][order]), 0.5).clip(0, len(order) - 1)
                middle = float(y[kept][order][at])
            unit = float(w @ np.abs(y - middle)) or 1.0
            scaled = loss.rescaled(unit)
        if loss.task == "regression":
            y = (y - middle) / unit
        return _Units(rows, y, middle, unit, *(scaled or (loss, 1.0)))

    def inward(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Parameters (K, D) in these units from those in the units of the data."""
        pairs = zip(np.atleast_2d(coef), np.atleast_1d(intercept) - self.middle, strict=True)
        inward = self.rows.inward
        return np.stack([inward(c / self.target_unit, b / self.target_unit) for c, b in pairs])

    def outward(self, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `inward`."""
        coefs, intercepts = zip(*(self.rows.outward(z) for z in Z), strict=True)
        unit = self.target_unit
        return np.array(coefs) * unit, np.array(intercepts) * unit + self.middle


def _system(
    units: _Units,
    n_outputs: int,
    radius: float | None,
    penalty: float | None,
    norm: float,
    inverse: np.ndarray,
    label_cost: float,
    alpha: float,
) -> System:
    loss, rows, still = units.loss, units.rows, radius == 0.0
    cost = label_cost
    slope, floor = 0.0, 0.0
    if not still:
        slope = slope_bound(loss)
    if loss.task == "regression":
        cost = label_cost * units.target_unit
        floor = slope / cost
    factor = np.where(rows.dead, 0.0, np.sqrt(inverse) / rows.scale)
    mutable = np.flatnonzero(factor > 0)
    pieces = loss.pieces(units.target, n_outputs, math.inf if still else cost)
    flips = pieces.prices.any()
    bounded = bool(not still and (mutable.size > 0 or flips or floor > 0))
    lam = None if penalty is None else penalty / units.loss_unit
    if lam is not None and bounded and floor > lam:
        raise UnboundedRiskError(
            f"penalty={penalty:g}: moving targets alone makes the worst case infinite below "
            f"penalty = {floor * units.loss_unit:.6g}; raise the penalty or label_cost"
        )
    if lam is not None and not lam > 0 and bounded:
        raise UnboundedRiskError(
            f"penalty = {penalty!r}: the worst case of every model but a constant one is "
            "infinite; give a penalty > 0"
        )
    decay = np.zeros(rows.size)
    ridge = alpha * (units.target_unit / rows.scale) ** 2 / units.loss_unit
    decay[: rows.d] = np.where(rows.dead, 1.0, ridge)
    return System(
        rows=rows,
        loss=pieces,
        n_outputs=n_outputs,
        scale=factor[mutable],
        mutable=mutable,
        q=_DUAL[norm],
        decay=decay,
        radius=0.0 if radius is None or not bounded else float(radius),
        floor=floor,
        fixed_lam=lam if bounded else None,
        slope=slope,
        cones=bool(bounded and not (lam is not None and mutable.size == 0)),
        lam_free=bounded and lam is None,
    )


def _first(units: _Units, n_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    loss, rows = units.loss, units.rows
    coef, intercept = np.zeros((n_outputs, rows.d)), np.zeros(n_outputs)
    if loss.task == "regression" and rows.intercept:
        intercept += units.middle
    elif rows.intercept:
        mass = np.bincount(rows.y, weights=rows.w, minlength=max(2, n_outputs))
        logs = np.log(np.maximum(mass, 1e-12))
        intercept = logs - logs.mean() if n_outputs > 1 else logs[1:] - logs[:1]
        if loss.scalar or not loss.calibrated:
            intercept = np.clip(intercept, -1.0, 1.0)
    return coef, intercept


_SEPARABLE = (
    "The classes can be separated by columns that cannot move, or without a radius, so the risk "
    "falls to zero as the coefficients grow and no minimum exists: add alpha > 0 or a radius > 0 "
    "on columns that may move."
)


def _objective(system: System, Z: np.ndarray, lam: float) -> tuple[float, float]:
    """Objective at Z and the best lambda for it."""
    least = max(system.floor, 0.0)
    if system.cones and system.mutable.size:
        least = max(least, system.largest(Z))
    if system.fixed_lam is not None:
        lam = system.fixed_lam if least <= system.fixed_lam * (1 + 1e-9) else math.inf
    elif system.lam_free:
        lam = max(lam, least) if system.loss.prices.any() else least
    if math.isinf(lam):
        return math.inf, lam
    return system.objective(Z, system.responses(Z), lam), lam


def _finish(
    solver: InteriorPoint,
    units: _Units,
    outcome: Outcome[State],
    still: bool,
    tol: float,
) -> LinearFit:
    state, system, loss = outcome.state, solver.system, units.loss
    least = -math.inf
    if system.n_outputs == 1:
        least = float(units.rows.w @ loss.least(np.zeros(units.rows.n), units.target))
    Z = state.Z
    objective, lam = _objective(system, Z, state.lam)
    if system.cones and system.mutable.size:
        Z, objective, lam = _rounded(system, Z, objective, lam)
    lower = lower_bound(system, state, objective, least)
    coef, intercept = units.outward(Z)
    found = LinearFit(
        coef,
        intercept,
        math.inf if still else lam * units.loss_unit,
        objective * units.loss_unit,
        lower * units.loss_unit,
        str(outcome.status),
        outcome.message,
        outcome.n_iter,
        state.residual,
        outcome.columns(),
        solver.unit * units.loss_unit,
    )
    diverging = not system.cones and not loss.attained and not system.decay.any()
    if diverging and objective < 1e-6 and outcome.status in (Status.CONVERGED, Status.MAX_ITER):
        return replace(found, status="unbounded", message=_SEPARABLE)
    if objective < 0.0 and endless(lambda t: _objective(system, t * Z, t * lam)[0]):
        return replace(found, status="unbounded", message=ENDLESS)
    return found if math.isnan(found.relative_gap) else found.judged(tol)


def _rounded(
    system: System, Z: np.ndarray, objective: float, lam: float
) -> tuple[np.ndarray, float, float]:
    """Coefficients that an exact solution has at zero, where that costs nothing."""
    if len(Z) > 1:  # only differences of rows matter
        Z = Z - Z.mean(axis=0)
    scaled, movable = np.zeros_like(Z), np.zeros(Z.shape, bool)
    scaled[:, system.mutable] = np.abs(Z[:, system.mutable]) * system.scale
    movable[:, system.mutable] = True
    size = scaled.max(initial=0.0)
    for share in (math.inf, 1e-3, 1e-5, 1e-7):
        trial = np.where(movable & (scaled <= share * size), 0.0, Z)
        value, at = _objective(system, trial, lam)
        if value <= objective + 2e-9 * abs(objective):
            return trial, value, at
    return Z, objective, lam


def lower_bound(system: System, state: State, objective: float, least: float) -> float:
    r"""A proven lower bound for one output, from an iterate's multipliers; -inf without one.

    .. math:: F^* \ge L(x) + \min_{x' \in B} \nabla L(x)^\top (x' - x)

    for the Lagrangian L, which is convex in x = (theta, b, lambda, u) and below F wherever the
    norms are below lambda. The gradient is small but not zero, so B must hold a minimiser: radius
    lambda <= F - inf loss bounds lambda and the norms, the ridge bounds coefficients of columns
    that cannot move, and the mean loss of constant models, less what coefficients of that size
    change, the intercept. ``objective`` is a value that is attained, ``least`` the mean over the
    samples of the infimum of the loss.
    """
    cones = state.cones
    if system.n_outputs > 1 or not math.isfinite(least):
        return -math.inf
    excess = max(objective - least, 0.0)
    top = float(system.fixed_lam or 0.0)
    if system.lam_free:
        top = max(excess / system.radius, system.floor, state.lam)
    smooth, _ = system.loss.smooth.derivatives(state.u)
    p = _shares(state.p)
    gZ, glam = lagrangian_gradient(system, state, smooth, p)
    value, g, z, rows = _lagrangian(system, state, p), gZ[0], state.Z[0], system.rows

    # Coefficients: inside the norm where there is one, or inside the ridge.
    normed = slice(None) if cones is not None else slice(0)
    mutable, scale = system.mutable[normed], system.scale[normed] * system.slope
    order = _DUAL[system.q]
    value -= float(g[: rows.d] @ z[: rows.d])
    value -= float(np.linalg.norm(g[mutable] / scale, ord=order)) * top

    def sizes(block: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(block[:, mutable] / scale, ord=order, axis=1)
        return np.column_stack([np.abs(block), norm])

    spread = rows.mean_of(sizes, rows.size + 1)
    reach = float(spread[-1]) * top
    for j in np.setdiff1d(np.arange(rows.d), mutable):
        if g[j] == 0.0 and spread[j] == 0.0:
            continue
        if not system.decay[j] > 0.0:
            return -math.inf
        size = math.sqrt(2.0 * excess / system.decay[j])
        value -= abs(g[j]) * size
        reach += size * float(spread[j])
    if system.lam_free:
        value += min(glam * (top - state.lam), glam * (system.floor - state.lam))
    if cones is not None and cones.u.size:
        value -= float((np.abs(cones.rest()) * (top + np.abs(cones.u))).sum())
    if rows.intercept and g[-1] != 0.0:
        value -= abs(g[-1]) * _intercept(system, float(z[-1]), objective + reach * system.slope)
    # Rounding of the sums above.
    rounding = 1e-14 * (abs(value) + abs(objective)) * math.sqrt(rows.n)
    return float(value - rounding)


def _shares(p: np.ndarray) -> np.ndarray:
    p = np.maximum(p, 0.0)
    return p / p.sum(axis=1, keepdims=True) if p.size else p


def _lagrangian(system: System, state: State, p: np.ndarray) -> float:
    loss, cones = system.loss, state.cones
    values = loss.smooth.value(state.u)
    if loss.linear is not None:
        values = values + (loss.linear * state.u).sum(axis=1)
    if loss.n_pieces:
        values = values + (p * loss.affine(state.u, state.lam)).sum(axis=1)
        if loss.curved:
            values = values - 0.5 * (p @ loss.slopes)[:, 0] ** 2
    total = float(system.rows.w @ values) + 0.5 * float((system.decay * state.Z**2).sum())
    total += system.radius * state.lam if system.lam_free else 0.0
    return total if cones is None else total - cones.products()


def _intercept(system: System, b: float, most: float) -> float:
    """How far from b an intercept may be at which a constant model's mean loss is at most."""

    def risk(at: float) -> float:
        u = at * system.loss.sign + system.loss.offset
        # At a high price labels stay, and that is the least that the loss can be.
        return float(
            system.rows.w @ system.loss.value(np.broadcast_to(u, (system.rows.n, 1)), 1e100)
        )

    far = 1.0 + abs(b)
    while not (risk(b - far) > most and risk(b + far) > most):
        far *= 2.0
        if far > 1e100:
            return math.inf
    return far
