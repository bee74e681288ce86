r"""Linear models of several classes under order-2 Wasserstein, with a proven gap.

.. math:: \min_{W, b, \lambda}\; \lambda r^2 + E \max_p \big\{ c^\top (Wx + b) + h(p)
          + \tfrac1{4\lambda} \|W^\top c\|^2_{C^{-1}} \big\} + \tfrac\alpha2 \|W\|^2,
          \qquad c = p - e_y,

is jointly convex: L-BFGS in coordinates in which the curvature is about the identity.
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
from drojko.minimax.transport.class_bound import ClassGround, class_lower_bound
from drojko.minimax.transport.class_risk import class_robust_risk
from drojko.minimax.transport.linear import turn
from drojko.minimax.transport.risk import RidgeData
from drojko.rows import Rows, is_wide, rows_of

__all__ = ["solve_classes"]

#: Kinks between worst cases of a row are smoothed at these widths.
_WIDTHS = (2e-3, 2e-4)
#: How far from a fixed point worst cases may be, at first and at last.
_ROUGH, _FINE = 1e-3, 1e-9
_GOAL = 0.1  # of the tolerance: what is worked for
_EVERY = 5  # iterations between proofs
_MEMORY = 20
_RENEWED = 100  # iterations after which coordinates are chosen anew
_LEAST = 1e-7  # curvature of a class over their mean


@dataclass
class _Run(LBFGSRun):
    """One run: a point is (V, log of the multiplier), with V the model in its coordinates."""

    rows: Rows = None  # type: ignore[assignment]
    ground: ClassGround = None  # type: ignore[assignment]
    loss: Any = None
    n_classes: int = 0
    root: np.ndarray = field(default_factory=lambda: np.empty(0))  # of columns: (D, D), or (D,)
    mixed: np.ndarray = field(default_factory=lambda: np.empty(0))  # of classes: (K, K)
    mu: float = 0.0
    moves: Moves | None = None
    lower: float = -math.inf
    unit_risk: float = 1.0
    accuracy: float = _ROUGH

    # points -----------------------------------------------------------------------------------

    def split(self, point: np.ndarray) -> tuple[np.ndarray, float]:
        """The model in the coordinates of the rows, shape (K, D), and the penalty."""
        k, size = self.n_classes, self.rows.size
        V = point[: k * size].reshape(k, size)
        V = V / self.root if self.root.ndim == 1 else _solved(self.root, V.T, 1).T
        Z = _solved(self.mixed, V, 1)
        ground = self.ground
        if ground.still:
            return Z, math.inf
        return Z, ground.penalty or math.exp(min(max(float(point[-1]), -600.0), 600.0))

    def joined(self, Z: np.ndarray, penalty: float) -> np.ndarray:
        """The point of a model."""
        V = self.mixed.T @ Z
        V = V * self.root if self.root.ndim == 1 else V @ self.root
        return np.append(V.ravel(), [math.log(penalty)] if self.ground.ball else [])

    def begin(self, constant: np.ndarray, warm: Any) -> np.ndarray:
        """A model along the means of the classes as far as that pays, and coordinates there."""
        rows, k = self.rows, self.n_classes
        self.root, self.mixed, self.unit_risk = np.ones(rows.size), np.eye(k), 1e-300
        flat = np.zeros((k, rows.size))
        if rows.intercept:
            flat[:, -1] = constant
        if warm is not None and np.any(warm[0]):
            Z = rows.inward_classes(warm[0], warm[1])
            options = [self._first(Z, warm[2])]
        else:
            Z = self._discriminant()
            options = [self._first(s * Z + (1.0 - s) * flat) for s in (1.0, 0.3, 0.1, 0.01)]
        value, Z, penalty = min(options, key=lambda option: option[0])
        self.unit_risk = max(value, 1e-300)
        return self.renewed(Z, penalty)

    def _discriminant(self) -> np.ndarray:
        """Fisher's discriminant of classes that share a covariance, which the ball widens."""
        rows, k, d = self.rows, self.n_classes, self.rows.d
        own = np.zeros((rows.n, k))
        own[np.arange(rows.n), rows.y] = rows.w
        mass = own.sum(axis=0)
        means = (rows.sum(own)[:d] / mass).T
        reach = (self.ground.radius or 0.0) ** 2 * self.ground.cost[:d]
        if rows.wide:
            W = means / (1.0 + reach)
        else:
            within = rows.gram(rows.w)[:d, :d] - (means.T * mass) @ means
            within[np.diag_indices(d)] += reach + 1e-3
            W = scipy.linalg.solve(within, means.T, assume_a="pos").T
        W[:, rows.dead] = 0.0
        if not rows.intercept:
            return W
        b = np.log(mass) - 0.5 * (W * means).sum(axis=1)
        return np.concatenate([W, b[:, None]], axis=1)

    def _first(self, Z: np.ndarray, penalty: float | None = None) -> tuple:
        """The objective of a model at about its best multiplier."""
        ground, rows = self.ground, self.rows
        if not ground.ball:
            penalty = ground.penalty or math.inf
        elif penalty is None or not 0.0 < penalty < math.inf:
            gram = (Z * ground.cost) @ Z.T
            moves = self.loss.class_moves(self.logits(Z), rows.y, gram, 0.0, None, _ROUGH)
            spent = float((moves.plan(rows.w, 1e-2)[2] * gram).sum())
            penalty = 0.5 * math.sqrt(max(spent, 1e-300)) / (ground.radius or 1.0)
        self.moves = None
        value, _ = self.evaluate(self.joined(Z, penalty))
        self.best_value, self.moves = math.inf, None
        return value, Z, penalty

    def renewed(self, Z: np.ndarray, penalty: float) -> np.ndarray:
        """The point of a model in coordinates that suit it: rows count by how unsure they are."""
        rows, ground, k = self.rows, self.ground, self.n_classes
        half = 0.5 / penalty
        gram = (Z * ground.cost) @ Z.T
        moves = self.loss.class_moves(self.logits(Z), rows.y, gram, half, self.moves, 1e-4)
        bend, unsure = moves.bend(rows.w, self.mu or _WIDTHS[0])
        size = float(np.trace(bend)) / k or 1.0
        whole = bend + size * (np.full((k, k), 1.0 / k) + _LEAST * np.eye(k))
        self.mixed = np.linalg.cholesky(whole)
        held = ground.cost * half + ground.ridge / size
        if rows.wide:
            self.root = np.sqrt(1.0 + held)
        else:
            total = float(unsure.sum()) or 1.0
            whole = rows.gram(unsure) / total
            fixed = ~rows.free
            whole[fixed] = whole[:, fixed] = 0.0
            whole[fixed, fixed] = 1.0
            whole[np.diag_indices(rows.size)] += held + 1e-6
            self.root = np.linalg.cholesky(whole)
        self.best_point = self.joined(Z, penalty)
        return self.best_point

    # what LBFGSRun asks -----------------------------------------------------------------------

    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Nothing is bounded: the multiplier is a logarithm."""
        return [(None, None)] * len(self.best_point)

    free = bounds

    def penalty_of(self, point: np.ndarray) -> float:
        """See the base."""
        return self.split(point)[1]

    def load(self, point: np.ndarray) -> dict[str, Any]:
        """The model of a point: there is no module."""
        coef, intercept = outward(self.rows, self.split(point)[0])
        return {"coef": coef, "intercept": intercept}

    def logits(self, Z: np.ndarray) -> np.ndarray:
        """Outputs of all rows, shape (n, K)."""
        return self.rows.predict(np.ascontiguousarray(Z.T))

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Smoothed robust risk and its gradient."""
        ground, rows = self.ground, self.rows
        Z, penalty = self.split(point)
        turned = Z * ground.cost
        gram, f = turned @ Z.T, self.logits(Z)
        if not (np.isfinite(f).all() and np.isfinite(gram).all()):
            return self.wall(point)
        done = min(self.accuracy, max(0.1 * self.slope, _FINE))
        self.moves = moves = self.loss.class_moves(f, rows.y, gram, 0.5 / penalty, self.moves, done)
        risk, pull, bend = moves.sums(rows.w, self.mu)
        gradient = _solved(self.mixed, rows.sum(pull).T + bend @ turned + ground.ridge * Z, 0)
        if self.root.ndim == 1:
            gradient = gradient / self.root
        else:
            gradient = _solved(self.root, gradient.T, 0).T
        gradient = gradient.ravel()
        spent = 0.5 * float((bend * gram).sum())  # penalty times cost
        value = risk + 0.5 * float((ground.ridge * Z * Z).sum())
        if ground.ball:
            budget = penalty * (ground.radius or 0.0) ** 2
            value, gradient = value + budget, np.append(gradient, budget - spent)
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            return self.wall(point)
        self.record(point, value, gradient, penalty, spent / penalty)
        return value, gradient

    def finished(self) -> bool:
        """Whether a proof says so, or no progress is left at this width."""
        count = len(self.history) - self.stage
        if self.slope <= 1e-10 or self.settled(1e-5 * self.tol, self.stage):
            return True
        if count % _EVERY or self.slope > math.sqrt(self.tol):
            return False
        return self.proven()

    def proven(self) -> bool:
        """Whether the best point is proven to what is aimed at, at the width of the stage."""
        Z, penalty = self.split(self.best_point)
        gram = (Z * self.ground.cost) @ Z.T
        moves = self.loss.class_moves(
            self.logits(Z), self.rows.y, gram, 0.5 / penalty, self.moves, 1e-7
        )
        self.lower = max(self.lower, class_lower_bound(self.rows, moves, self.ground, Z, self.mu))
        return self.best_value - self.lower <= _GOAL * self.tol * abs(self.best_value)

    def optimise(self, point: np.ndarray, max_iter: int) -> Status:
        """Stage by stage, as long as widths are more than the tolerance allows."""
        status = Status.MAX_ITER
        for mu in _WIDTHS:
            self.mu, self.stage, self.best_value = mu, len(self.history), math.inf
            self.moves = None
            while True:
                first = len(self.history)
                status = self.minimise(point, min(max_iter - first, _RENEWED), _MEMORY)
                if self.proven():
                    return Status.CONVERGED
                left = max_iter - len(self.history)
                if self.finished() or left <= 0 or len(self.history) == first:
                    break
                point = self.renewed(*self.split(self.best_point))
            point = self.best_point.copy()
            rows = getattr(self.moves, "rows", None)
            if (rows is not None and not rows.size) or left <= 0:  # no moves compete
                break
            self.accuracy = min(self.accuracy, 0.1 * mu)
            point = self.renewed(*self.split(point))
        return status

    def fitted(
        self, data: RidgeData, status: Status, constant: np.ndarray, alpha: float
    ) -> LinearFit:
        """The best point, or the best constant where that is no worse, and what is proven."""
        ground = self.ground
        Z, penalty = self.split(self.best_point)
        form: dict[str, Any] = {"radius": ground.radius, "penalty": ground.penalty}

        def judged(coef: np.ndarray, intercept: np.ndarray, guess: float | None) -> tuple:
            risk = class_robust_risk(data, coef, intercept, **form, guess=guess)
            ridge = 0.5 * alpha * float((coef * coef).sum())
            return risk.attained + ridge, risk.value + ridge, risk, coef, intercept

        found = judged(*outward(self.rows, Z), penalty)
        if not ground.still:
            flat = judged(np.zeros_like(found[3]), constant, None)
            found = flat if flat[0] <= found[0] * (1.0 + 1e-9) else found
        attained, objective, risk, coef, intercept = found
        lower, tol = min(max(self.lower, 0.0), attained), self.tol
        proven = objective - lower <= tol * abs(objective)
        said, ended = "", status
        if math.isinf(self.lower):  # columns that cannot move, which no plan balances exactly
            lower = -math.inf
        elif status in (Status.CONVERGED, Status.MAX_ITER):
            if attained - lower <= tol * abs(attained):
                ended = Status.CONVERGED
                if not proven:  # of what is attained, not of what may be
                    share, lower = (objective - attained) / objective, -math.inf
                    said = (
                        "The worst case that was found is proven least within tol; that this "
                        f"model has no worse one is proven to {share:.1%}, see certificate_. "
                    )
            elif not ground.still:
                ended = Status.STALLED if status == Status.CONVERGED else status
        if ground.still and not proven:
            lower = -math.inf
        message = f"Stopped after {len(self.history)} iterations. {said}{ended.advice}"
        return LinearFit(
            coef, intercept, risk.penalty, objective, lower, str(ended), message,
            len(self.history), self.best_slope, self.columns(), self.unit_risk, risk=risk,
        )  # fmt: skip


def _solved(root: np.ndarray, right: np.ndarray, trans: int) -> np.ndarray:
    return scipy.linalg.solve_triangular(root, right, trans=trans, lower=True)


def outward(rows: Rows, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (K, d) and intercepts (K,) in the units of the data."""
    coef, intercept = rows.outward(Z.T)
    return coef.T, intercept + np.zeros(len(Z))


def _constant(data: RidgeData, k: int) -> np.ndarray:
    """The best constant outputs that the loss names, shape (K,)."""
    y, w, loss = data.y, data.weight, data.loss
    labels, options = torch.from_numpy(y), [np.zeros(k), *loss.constants(y, w, k)]

    def risk(option: np.ndarray) -> float:
        f = torch.from_numpy(option).expand(len(y), k).contiguous()
        return float(loss.value(f, labels).numpy() @ w)

    return min(options, key=risk)


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
    constant = _constant(data, n_classes) if fit_intercept else np.zeros(n_classes)
    run = _Run(
        tol=limits.tol, max_time=limits.time_left, callback=limits.callback, rows=rows,
        ground=ClassGround.of(rows, data.inverse_cost, radius, penalty, alpha), loss=data.loss,
        n_classes=n_classes,
    )  # fmt: skip
    return run.fitted(
        data, run.ended(run.begin(constant, warm_start), limits.max_iter), constant, alpha
    )
