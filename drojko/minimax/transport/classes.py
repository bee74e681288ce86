r"""Linear models of several classes under order-2 Wasserstein, with a proven gap.

.. math:: \min_{W, b, \lambda}\; \lambda r^2 + E \max_p \big\{ c^\top (Wx + b) + h(p)
          + \tfrac1{4\lambda} \|W^\top c\|^2_{C^{-1}} \big\} + \tfrac\alpha2 \|W\|^2,
          \qquad c = p - e_y,

which is jointly convex: L-BFGS in coordinates in which the curvature is about the identity.

**Proof.** Any plan p, held with shares s_i in [0, 1] of the rows (the rest stays where it is) such
that E s c = 0, gives for every model and multiplier, with A = E s c x' and M = E s cc',

.. math:: E\,s\,h(p) + \langle A, W\rangle + r \|M^{1/2} W C^{-1/2}\|_F + \tfrac\alpha2 \|W\|^2 ,

and the minimum of that over W is a lower bound. Shares by class make E s c vanish: they are the
stationary law of the chain that goes from class y to class j with the mean of p_j in class y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
import torch

from drojko._driver import Limits, Status
from drojko.losses.class_moves import Moves
from drojko.minimax.lbfgs import LBFGSRun
from drojko.minimax.newton import LinearFit
from drojko.minimax.transport.class_risk import class_robust_risk
from drojko.minimax.transport.risk import RidgeData
from drojko.minimax.transport.linear import turn
from drojko.rows import Rows, is_wide, rows_of

__all__ = ["class_lower_bound", "solve_classes"]

#: Kinks between worst cases of a row are smoothed at these widths, over the mean loss; of the
#: hinge, whose kinks are everywhere, at all of them.
_WIDTHS = (1e-2, 1e-3, 1e-4)
#: How far from a fixed point worst cases may be, at first and at last, over the slope.
_ROUGH, _FINE = 1e-3, 1e-9
_GOAL = 0.1  # of the tolerance: what is worked for
_EVERY = 5  # iterations between proofs
_MEMORY = 20


@dataclass(frozen=True, eq=False)
class _Set:
    """Ball or price, ridge and costs in the coordinates of the rows."""

    radius: float | None
    penalty: float | None
    cost: np.ndarray  # (d,), inverse
    ridge: np.ndarray

    @property
    def ball(self) -> bool:
        """Whether there is a multiplier to find."""
        return bool(self.radius)

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return self.radius == 0.0 or not self.cost.any()


@dataclass
class _Run(LBFGSRun):
    """One run in whitened coordinates: a point is (V, b, log of the multiplier)."""

    rows: Rows = None  # type: ignore[assignment]
    ground: _Set = None  # type: ignore[assignment]
    loss: Any = None
    root: np.ndarray = field(default_factory=lambda: np.empty(0))
    mu: float = 0.0
    moves: Moves | None = None
    lower: float = -math.inf
    proven_at: int = 0
    unit_risk: float = 1.0
    accuracy: float = _ROUGH
    n_classes: int = 0

    # points -----------------------------------------------------------------------------------

    def split(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Weights and intercepts in the coordinates of the rows, and the penalty."""
        k, d = self.n_classes, self.rows.d
        W = self._unwhitened(point[: k * d].reshape(k, d))
        b = point[k * d : k * d + k] if self.rows.intercept else np.zeros(k)
        ground = self.ground
        if ground.still:
            return W, b, math.inf
        if ground.penalty is not None:
            return W, b, ground.penalty
        return W, b, math.exp(min(max(float(point[-1]), -700.0), 700.0)) * self.unit

    def _unwhitened(self, V: np.ndarray) -> np.ndarray:
        if self.root.ndim == 1:
            return V * self.root
        return scipy.linalg.solve_triangular(self.root, V.T, trans="T", lower=True).T

    def _whitened(self, gradient: np.ndarray) -> np.ndarray:
        if self.root.ndim == 1:
            return gradient * self.root
        return scipy.linalg.solve_triangular(self.root, gradient.T, lower=True).T

    def joined(self, W: np.ndarray, b: np.ndarray, penalty: float) -> np.ndarray:
        """The point of a model."""
        V = W / self.root if self.root.ndim == 1 else W @ self.root
        parts = [V.ravel()]
        if self.rows.intercept:
            parts.append(b)
        if self.ground.ball and not self.ground.still:
            parts.append(np.array([math.log(penalty / self.unit)]))
        return np.concatenate(parts)

    # the first point and the last --------------------------------------------------------------

    def begin(self, constant: np.ndarray, warm: Any) -> np.ndarray:
        """A model along the means of the classes, as far as pays, and the metric there."""
        rows, ground, k = self.rows, self.ground, self.n_classes
        d, plain = rows.d, rows.wide
        own = np.zeros((rows.n, k))
        own[np.arange(rows.n), rows.y] = rows.w
        mass = own.sum(axis=0)
        means = (rows.sum(own)[:d] / mass).T
        reach = (ground.radius or 0.0) ** 2 * ground.cost
        if plain:
            cov = np.ones(d)
            within = cov + reach
            W = means / within
        else:
            cov = rows.gram(rows.w)[:d, :d]
            within = cov - (means.T * mass) @ means
            within[np.diag_indices(d)] += reach + 1e-3
            W = scipy.linalg.solve(within, means.T, assume_a="pos").T
        W[:, rows.dead] = 0.0
        b = np.log(mass) - 0.5 * (W * means).sum(axis=1) if rows.intercept else constant
        self.root = np.ones(d)
        self.unit_risk = 1e-300
        options = []
        for share in (1.0, 0.3, 0.1, 0.01):
            V, at = share * W, share * b + (1.0 - share) * constant
            options.append(self._first(V, at))
        if warm is not None:
            coef, intercept, penalty = warm
            V = np.where(rows.dead, 0.0, coef * rows.scale)
            at = intercept + coef @ rows.mean if rows.intercept else np.zeros(k)
            if V.any():
                options = [self._first(V, at, penalty)]
        value, W, b, penalty = min(options, key=lambda option: option[0])
        self.unit_risk = max(value, 1e-300)
        held = ground.cost * (0.0 if math.isinf(penalty) else 0.5 / penalty) + k * ground.ridge
        if plain:
            self.root = 1.0 / np.sqrt(cov + held)
        else:
            cov[np.diag_indices(d)] += held + 1e-6
            cov[rows.dead] = cov[:, rows.dead] = 0.0
            cov[rows.dead, rows.dead] = 1.0
            self.root = np.linalg.cholesky(cov)
        self.best_point = self.joined(W, b, penalty)
        return self.best_point

    def _first(self, W: np.ndarray, b: np.ndarray, penalty: Any = None) -> tuple:
        """The objective of a model at about its best multiplier."""
        ground, rows = self.ground, self.rows
        if ground.still:
            penalty = math.inf
        elif ground.penalty is not None:
            penalty = ground.penalty
        elif penalty is None or not 0.0 < penalty < math.inf:
            gram = (W * ground.cost) @ W.T
            f = self.logits(W, b)
            moves = self.loss.class_moves(f, rows.y, gram, 0.0, None, 1e-3)
            _, _, second = moves.plan(rows.w, 1e-2)
            spent = max(float((second * gram).sum()), 1e-300)
            penalty = 0.5 * math.sqrt(spent) / (ground.radius or 1.0)
        self.moves = None
        value, _ = self.evaluate(self.joined(W, b, penalty))
        self.best_value, self.moves = math.inf, None
        return value, W, b, penalty

    def fitted(self, data: RidgeData, status: Status, constant: np.ndarray, alpha: float):
        """The best point, or the best constant where that is no worse, and what is proven."""
        rows, ground = self.rows, self.ground
        W, b, penalty = self.split(self.best_point)
        form: dict[str, Any] = {"radius": ground.radius, "penalty": ground.penalty}

        def judged(W: np.ndarray, b: np.ndarray, guess: float | None) -> tuple:
            coef, intercept = outward(rows, W, b)
            risk = class_robust_risk(data, coef, intercept, **form, guess=guess)
            ridge = 0.5 * alpha * float((coef * coef).sum())
            return risk.attained + ridge, risk.value + ridge, risk, coef, intercept

        found = judged(W, b, penalty)
        if not ground.still:
            flat = judged(np.zeros_like(W), constant, None)
            if flat[0] <= found[0] * (1.0 + 1e-9):
                found, W, b = flat, np.zeros_like(W), constant
        attained, objective, risk, coef, intercept = found
        lower, tol = min(max(self.lower, 0.0), attained), self.tol
        message = f"Stopped after {len(self.history)} iterations. "
        proven = objective - lower <= tol * abs(objective)
        ended = status
        if status in (Status.CONVERGED, Status.MAX_ITER):
            near = attained - lower <= tol * abs(attained)
            if near:
                ended = Status.CONVERGED
            elif status == Status.CONVERGED and not ground.still:
                ended = Status.STALLED
            if near and not proven:  # of what is attained, not of what may be
                share = (objective - attained) / objective
                message += (
                    "The worst case that was found is proven least within tol; that no worse one "
                    f"of this model exists is proven to {share:.1%}, see certificate_. "
                )
                lower = -math.inf
        if ground.still and not proven:
            lower = -math.inf
        return LinearFit(
            coef, intercept, risk.penalty, objective, lower, str(ended), message + ended.advice,
            len(self.history), self.best_slope, self.columns(), self.unit_risk, risk=risk,
        )  # fmt: skip

    # what LBFGSRun asks -----------------------------------------------------------------------

    def free(self) -> list[tuple[float | None, float | None]]:
        """Nothing is bounded: the multiplier is a logarithm."""
        return [(None, None)] * len(self.best_point)

    bounds = free

    def penalty_of(self, point: np.ndarray) -> float:
        """See the base."""
        return self.split(point)[2]

    def load(self, point: np.ndarray) -> dict[str, Any]:
        """The model of a point: there is no module."""
        W, b, _ = self.split(point)
        coef, intercept = outward(self.rows, W, b)
        return {"coef": coef, "intercept": intercept}

    def logits(self, W: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Outputs of all rows, shape (n, K)."""
        z = np.concatenate([W, b[:, None]], axis=1) if self.rows.intercept else W
        return self.rows.predict(np.ascontiguousarray(z.T))

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Smoothed robust risk and its gradient."""
        ground, rows = self.ground, self.rows
        W, b, penalty = self.split(point)
        half = 0.5 / penalty
        turned = W * ground.cost
        gram = turned @ W.T
        f = self.logits(W, b)
        if not (np.isfinite(f).all() and np.isfinite(gram).all()):
            return self.wall(point)
        done = min(self.accuracy, max(0.1 * self.slope, _FINE))
        self.moves = self.loss.class_moves(f, rows.y, gram, half, self.moves, done)
        risk, pull, bend = self.moves.sums(rows.w, self.mu)
        total = rows.sum(pull)
        gW = total[: rows.d].T + bend @ turned + ground.ridge * W
        parts = [self._whitened(gW).ravel()]
        if rows.intercept:
            parts.append(total[-1])
        spent = 0.5 * float((bend * gram).sum())  # penalty times cost
        value = risk + 0.5 * float((ground.ridge * W * W).sum())
        if ground.ball and not ground.still:
            value += penalty * ground.radius**2
            parts.append(np.array([penalty * ground.radius**2 - spent]))
        gradient = np.concatenate(parts)
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            return self.wall(point)
        cost = spent / penalty if math.isfinite(penalty) else 0.0
        self.record(point, value, gradient, penalty, cost)
        return value, gradient

    def finished(self) -> bool:
        """Whether a proof says so, or no progress is left at this width."""
        count = len(self.history) - self.stage
        if self.slope <= 1e-9 or self.settled(1e-3 * self.tol, self.stage):
            return True
        if count % _EVERY or self.slope > 0.1 * math.sqrt(self.tol):
            return False
        return self.proven(_GOAL * self.tol)

    def proven(self, tol: float) -> bool:
        """Whether the best point is proven to a tolerance, at the width of the stage."""
        self.lower = max(self.lower, self.bound(self.best_point))
        return self.best_value - self.lower <= tol * abs(self.best_value)

    def bound(self, point: np.ndarray) -> float:
        """The proven lower bound of the plan at a point."""
        W, b, penalty = self.split(point)
        gram = (W * self.ground.cost) @ W.T
        f = self.logits(W, b)
        moves = self.loss.class_moves(f, self.rows.y, gram, 0.5 / penalty, self.moves, 1e-7)
        return class_lower_bound(self.rows, moves, self.ground, W, self.mu)

    def optimise(self, point: np.ndarray, max_iter: int) -> Status:
        """Stage by stage, as long as widths are more than the tolerance allows."""
        status = Status.MAX_ITER
        for mu in _WIDTHS:
            self.mu, self.stage, self.best_value = mu * self.unit_risk, len(self.history), math.inf
            self.moves = None
            status = self.minimise(point, max_iter, _MEMORY)
            point = self.best_point.copy()
            if self.proven(_GOAL * self.tol):
                return Status.CONVERGED
            if not self.kinked:
                break
            self.accuracy = min(self.accuracy, 1e-1 * mu)
        return status

    @property
    def kinked(self) -> bool:
        """Whether rows have moves that compete."""
        rows = getattr(self.moves, "rows", None)
        return rows is None or rows.size > 0


def _constant(data: RidgeData, k: int) -> np.ndarray:
    """The best constant outputs that the loss names, shape (K,)."""
    y, w, loss = data.y, data.weight, data.loss
    labels, options = torch.from_numpy(y), [np.zeros(k), *loss.constants(y, w, k)]

    def risk(option: np.ndarray) -> float:
        f = torch.from_numpy(option).expand(len(y), k).contiguous()
        return float(loss.value(f, labels).numpy() @ w)

    return min(options, key=risk)


def outward(rows: Rows, W: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (K, d) and intercepts (K,) in the units of the data."""
    coef = np.where(rows.dead, 0.0, W / rows.scale)
    return coef, b - coef @ rows.mean if rows.intercept else b


def class_lower_bound(rows: Rows, moves: Moves, ground: Any, W: np.ndarray, mu: float) -> float:
    """The lower bound of a plan (this module's proof), -inf where nothing is proven.

    ``ground`` has ``radius`` or ``penalty``, ``cost`` and ``ridge`` of shape (d,); W (K, d) is a
    model near the best, in whose direction a ridge takes its part.
    """
    k, y = len(W), rows.y
    share, w = np.ones(k), rows.w
    _, pull, _ = moves.plan(w, mu)
    if rows.intercept:
        from_class = np.zeros((k, k))
        np.add.at(from_class, y, pull)
        share = _stationary(from_class)
        if share is None:
            return -math.inf
    worth, pull, second = moves.plan(w * share[y], mu)
    total = rows.sum(pull)
    A = total[: rows.d].T
    if rows.intercept:
        # What is left is rounding; E s c = 0 must hold exactly: take it off the worth.
        if np.abs(total[-1]).max() > 1e-9 * max(np.abs(pull).sum(), 1e-300):
            return -math.inf
    held = np.zeros_like(A)
    if ground.ridge.any():
        held = -ground.ridge * (W - W.mean(axis=0))
    ball = A - held
    alive, free = ground.cost > 0.0, ground.ridge > 0.0
    # Columns that cannot move are held by the ridge alone.
    held[:, ~alive] = A[:, ~alive]
    stuck = ~alive & ~free & ~rows.dead
    if np.abs(A[:, stuck]).max(initial=0.0) > 1e-9 * max(np.abs(pull).sum(), 1e-300):
        return -math.inf
    values, vectors = np.linalg.eigh(second)
    solid = values > 1e-10 * values.max(initial=0.0)
    within = vectors[:, solid].T @ ball[:, alive]
    beyond = ball[:, alive] - vectors[:, solid] @ within
    scaled = np.sqrt(ground.cost[alive])
    size = float(np.abs(ball[:, alive] * scaled).max(initial=0.0))
    if np.abs(beyond * scaled).max(initial=0.0) > 1e-7 * max(size, 1e-300):
        return -math.inf
    spent = float(((within * scaled) ** 2 / values[solid, None]).sum())
    ridge = float((held[:, free] ** 2 / ground.ridge[free]).sum())
    if ground.penalty is not None and not ground.still:
        # Over shares t of the whole plan: t worth - t penalty spent - t^2 ridge / 2.
        gain = worth - ground.penalty * spent
        t = 1.0 if ridge <= gain else max(gain, 0.0) / max(ridge, 1e-300)
        return t * gain - 0.5 * t * t * ridge
    budget = (ground.radius or 0.0) ** 2
    most = 1.0 if spent <= budget else budget / spent
    if ridge > 0.0:
        most = min(most, worth / ridge)
    return most * worth - 0.5 * most * most * ridge


def _stationary(from_class: np.ndarray) -> np.ndarray | None:
    """Shares in (0, 1] of the classes with which their pulls add up to nothing; None: there are none."""
    # Rows sum to 0; entries off the diagonal are >= 0: minus a generator of a chain.
    k = len(from_class)
    scale = np.maximum(-from_class.diagonal(), 0.0)
    if not (scale > 0.0).all():
        return None
    rate = from_class / scale[:, None]
    system = np.vstack([rate.T, np.ones((1, k))])
    law = np.linalg.lstsq(system, np.append(np.zeros(k), 1.0), rcond=None)[0]
    for _ in range(2):  # refined: what is left over is rounding
        left = np.append(np.zeros(k), 1.0) - system @ law
        law = law + np.linalg.lstsq(system, left, rcond=None)[0]
    share = law / scale
    if not (share > 0.0).all():
        return None
    return share / share.max()


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
    rows = rows_of(data.X, data.y, data.weight, intercept=fit_intercept)
    unit = 1.0 / rows.scale**2
    alive = ~rows.dead
    ground = _Set(radius, penalty, data.inverse_cost * unit * alive, alpha * unit)
    k, loss = n_classes, data.loss
    b = _constant(data, k) if fit_intercept else np.zeros(k)
    run = _Run(
        tol=limits.tol, max_time=limits.time_left, callback=limits.callback, rows=rows,
        ground=ground, loss=loss, n_classes=k,
    )  # fmt: skip
    status = run.ended(run.begin(b, warm_start), limits.max_iter)
    return run.fitted(data, status, b, alpha)
