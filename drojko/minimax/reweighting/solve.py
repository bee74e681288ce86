r"""Training against sets that reweight the reference: the points stay, their masses change.

.. math:: \min_\theta\; V(\ell(\theta; x_1, y_1), \dots, \ell(\theta; x_n, y_n))
          + \tfrac\alpha2\|\theta\|^2, \qquad
          V(\ell) = \sup\{E_0\,q\,\ell : q = dP/dP_0,\; D(q) \le r\}

or its penalised form. V is convex and nondecreasing, so that a linear model with a convex loss is
a convex problem: Newton's method with a proven gap, or L-BFGS for several outputs, callables and
MMD, and before Newton's method where there are many columns. The gradient is Danskin's,
E q grad loss. Networks take stochastic steps (`drojko.minimax.reweighting.passes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from drojko._driver import Limits, Status
from drojko._numerics import separated
from drojko.ambiguity.divergence import Priced, Tails
from drojko.losses import CrammerSinger, Loss
from drojko.minimax.lbfgs import LBFGSRun
from drojko.minimax.newton import MOST, LinearFit, Start, fit
from drojko.minimax.reweighting.many_rows import Divergent
from drojko.minimax.reweighting.objective import SEPARABLE, Reweighted
from drojko.minimax.reweighting.tails import Tailed
from drojko.minimax.samples import AMPLE, fit_many, from_sample
from drojko.rows import Rows, is_wide, rows_of
from drojko.rows.rotated import Rotation
from drojko.rows.sparse import SparseTable

if TYPE_CHECKING:
    from drojko.minimax.reweighting.saddle import Saddle

__all__ = ["solve_linear"]

#: Relative accuracy of the objective of linear models, whatever tol is.
ACCURACY = 2e-6
#: More columns than these are for L-BFGS: a Gram matrix costs n d^2.
WIDE = 2500


def solve_linear(
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None,
    bound: Any,
    loss: Loss,
    *,
    n_outputs: int = 1,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    limits: Limits | None = None,
    start: tuple[Any, Any] | None = None,
    warm: bool = True,
) -> LinearFit:
    """Train a linear model on arrays.

    Parameters
    ----------
    X : array of shape (n, d)
    y : array of shape (n,)
        Targets, or class indices.
    weight : array of shape (n,), default=None
        Positive masses; only proportions matter. None: equal.
    bound : object
        The set on these points, as ``ambiguity.bind(X, y, weight, groups)`` gives it: it knows
        its radius or penalty.
    loss : Loss
    n_outputs : int, default=1
    alpha : float, default=0.0
    fit_intercept : bool, default=True
    limits : Limits, default=None
        The callback finds the model in its record, as "coef" and "intercept".
    start : tuple of coefficients and intercepts, default=None
    warm : bool, default=True
        Whether ``start`` is near the optimum, so that schedules may begin late.

    Returns
    -------
    LinearFit
        ``coef`` of shape (d,), with several outputs (n_outputs, d) and as many intercepts; what
        has no proof has no lower bound, and its relative gap is NaN.
    """
    limits = limits or Limits()

    def turned() -> LinearFit | None:
        """The same in the space of the rows."""
        rotation = Rotation.of(X, weight, np.ones(X.shape[1]), fit_intercept)
        if rotation is None:
            return None
        found = solve_linear(
            rotation.X, y, weight, bound, loss, n_outputs=n_outputs, alpha=alpha,
            fit_intercept=fit_intercept, limits=rotation.limits(limits), warm=warm,
            start=None if start is None else rotation.inward(*start),
        )  # fmt: skip
        return rotation.back(found)

    found = turned() if is_wide(X) else None
    if found is not None:
        return found
    rows = rows_of(X, y, weight, intercept=fit_intercept)
    first = None
    if start is not None:
        pairs = zip(np.atleast_2d(start[0]), np.atleast_1d(start[1]), strict=True)
        first = np.stack([rows.inward(coef, float(b)) for coef, b in pairs])
    task = _Task(rows, loss, bound, alpha, limits, n_outputs)
    proven = loss.convex and n_outputs == 1 and hasattr(bound, "levels")
    if proven and rows.large:
        many = _many_rows(task)
        if many is not None:
            return many
    if proven and rows.size > WIDE and isinstance(X, SparseTable) and rows.n < min(rows.d, MOST):
        found = turned()
        if found is not None:
            return found
    if proven and (rows.size <= WIDE or (rows.size > MOST and bound.cells is None)):
        return _newton(task, Start(first[0]) if first is not None and warm else None)
    try:
        near = _near(task)
    except KeyboardInterrupt as interrupt:
        (last,) = getattr(interrupt, "result", None) or [None]
        if last is None:
            raise
        return _quasi_newton(task, last.theta[None], warm, last)[0]
    found, z = _quasi_newton(task, first if near is None else near.theta[None], warm, near)
    proven = proven and rows.size <= MOST  # groups ask for a matrix, which has no room
    if proven and found.status in (Status.CONVERGED, Status.MAX_ITER):
        return _newton(task, Start(z[0], None, 10.0 * ACCURACY))
    return found


@dataclass(frozen=True)
class _Task:
    """A linear problem on arrays."""

    rows: Rows
    loss: Loss
    bound: Any
    alpha: float
    limits: Limits
    n_outputs: int

    @property
    def ridge(self) -> np.ndarray:
        """Penalties of the parameters (D,) in standardised columns; none of the intercept."""
        decay = self.alpha / self.rows.scale**2
        return np.append(decay, 0.0) if self.rows.intercept else decay

    @property
    def accuracy(self) -> float:
        """The relative gap aimed at."""
        return min(self.limits.tol, AMPLE if self.rows.ample else ACCURACY)


def _many_rows(task: _Task) -> LinearFit | None:
    """A smooth loss under an f-divergence, from a sample of many rows."""
    rows, loss, bound = task.rows, task.loss, task.bound
    smooth = math.isfinite(loss.curvature or math.inf) and bound.cells is None
    if not smooth:
        return None
    levels = bound.levels(1.0)
    if isinstance(levels, Priced):
        objective = Divergent(rows, loss, bound.ambiguity, task.alpha)
    elif (
        isinstance(levels, Tails)
        and levels.cap is not None
        and not (rows.wide or rows.own() is not rows)
    ):
        objective = Tailed(rows, loss, bound.ambiguity, levels.cap, task.alpha, task.accuracy)
    else:
        return None
    classes = loss.task == "classification"
    return fit_many(objective, task.limits, classes=classes, goal=task.accuracy)


def _newton(task: _Task, start: Start | None) -> LinearFit:
    """The joint Newton's method, with a proven gap."""
    return fit(
        Reweighted(task.rows, task.loss, task.bound, task.alpha, task.accuracy),
        task.limits,
        goal=task.accuracy,
        start=start,
        sampled=from_sample,
    )


def _near(task: _Task) -> Saddle | None:
    """A point near the minimum, of sets whose worst case is a quadratic program."""
    if not (hasattr(task.bound, "saddle") and task.loss.convex and task.n_outputs == 1):
        return None
    rows = task.rows
    # A path has no points on the way that are worth keeping: no limit of time could end it.
    if rows.size > WIDE or task.limits.time_left is not None:
        return None
    from drojko.minimax.reweighting.saddle import near_saddle  # no other set needs it

    outputs, labels = torch.zeros(rows.n, dtype=torch.float64), torch.from_numpy(rows.y)
    unit = float(rows.w @ np.abs(task.loss.value(outputs, labels).numpy()))
    return near_saddle(rows, task.loss, task.bound, task.ridge, unit or 1.0)


def _quasi_newton(
    task: _Task, first: np.ndarray | None, warm: bool, near: Saddle | None = None
) -> tuple[LinearFit, np.ndarray]:
    """L-BFGS, with nothing proven; and the point in standardised columns.

    From ``near``, which is as far as an interrupted path came where it has no masses.
    """
    limits = task.limits
    run = _Run(None, None, 0, None, limits.tol, limits.time_left, limits.callback)  # type: ignore[arg-type]
    run.task, run.near = task, near
    status, start = Status.INTERRUPTED, run.begin(first, warm)
    if near is None or near.mass is not None:
        status = run.ended(start, limits.max_iter)
    word, message = str(status), run.told(status)
    if status is not Status.INTERRUPTED and run.separated():
        word, message = "unbounded", SEPARABLE
    coef, intercept = run.model(run.best_point)
    found = LinearFit(
        coef,
        intercept,
        run.multiplier,
        run.best_value,
        -math.inf,
        word,
        message,
        len(run.history),
        run.best_slope,
        run.columns(),
        run.unit_risk,
    )
    return found, run.best_point.reshape(run.shape)


_STAGES = 7  # smoothings of L-BFGS, each a tenth of the one before


@dataclass
class _Run(LBFGSRun):
    """Stages of less and less smoothing; ``gap`` is what the smoothing of a stage may cost."""

    mu: float = 1.0
    gap: float = math.inf
    multiplier: float = math.inf

    task: _Task = None  # type: ignore[assignment]
    near: Saddle | None = None  # where the first point is the minimum, nearly

    def begin(self, first: np.ndarray | None, warm: bool) -> np.ndarray:
        """The first point, and the units there."""
        self.rows, self.loss, self.bound = self.task.rows, self.task.loss, self.task.bound
        start = np.zeros((self.task.n_outputs, self.rows.size)) if first is None else first
        self.shape = start.shape
        self.labels = torch.from_numpy(self.rows.y)
        outputs = self._outputs(start)
        sizes = [float(self.rows.w @ np.abs(self._jet(f, 1e-3)[0])) for f in (outputs, outputs + 1)]
        self.unit_risk = sizes[0] or max(sizes[1], 1e-300)  # a loss may vanish at the start
        early = 1e-3 if warm and first is not None else 1e-1
        self.mu = (early if self.near is None else 0.1 * ACCURACY) * self.unit_risk
        self.decay = self.task.ridge
        self.best_point = start.ravel().copy()
        return self.best_point

    def optimise(self, point: np.ndarray, max_iter: int) -> Status:
        """Stage by stage, until smoothing costs nothing."""
        status = Status.MAX_ITER
        if self.near is not None:
            self.judge(self.near)
        for _ in range(_STAGES):
            status = self.minimise(point, max_iter, memory=30)
            point = self.best_point.copy()
            if self.accurate:
                break
            self.enter()
        within = status is Status.MAX_ITER and self.settled(0.1 * self.tol, self.stage)
        return Status.CONVERGED if within else status

    def judge(self, near: Saddle) -> None:
        r"""The first point as an iteration, which ends the run where the masses q there show it.

        Slopes s of the losses at which E q s x + alpha theta = 0 make E q inf_f (l(f) - s f), less
        what q costs, a lower bound of all models.
        """
        mass: Any = near.mass
        value, _ = self.evaluate(self.best_point)
        z = self.best_point.reshape(self.shape)
        f = self._outputs(z)
        losses, slope, low = self._jet(f, near.smoothing)
        gradient = self.rows.sum(mass[:, None] * slope).T + self.decay * z
        exact = self.bound.dual(self._exact(f, losses, low)).value
        gap = max(exact - float(mass @ low) + self.bound_price() * near.square, 0.0)
        steep = float(np.linalg.norm(gradient)) / (1.0 + abs(value))
        if gap < self.gap and steep < self.slope:
            self.gap, self.slope, self.best_slope = gap, steep, steep
            self.last["stationarity"] = steep
        self.iteration(None)

    def _outputs(self, z: np.ndarray) -> np.ndarray:
        """Predictions of shape (n, outputs)."""
        return self.rows.outputs(z)

    def enter(self) -> None:
        """Begin the next stage: values at another smoothing do not compare."""
        self.mu *= 0.1
        self.stage, self.best_value = len(self.history), math.inf

    @property
    def accurate(self) -> bool:
        """Whether the smoothing costs no more than the accuracy aimed at."""
        return self.gap <= ACCURACY * max(abs(self.best_value), 1e-10 * self.unit_risk)

    def finished(self) -> bool:
        if self.accurate:
            return self.slope <= 1e-6 * self.tol or self.settled(1e-5 * self.tol, self.stage)
        share = 0.1 * self.gap / max(abs(self.best_value), 1e-300)
        return self.slope <= 1e-2 * self.gap or self.settled(share, self.stage)

    def free(self) -> list[tuple[float | None, float | None]]:
        return [(None, None)] * (self.shape[0] * self.shape[1])

    def falls(self) -> bool:
        """With a smoothing that numbers far away have room for."""
        mu, self.mu = self.mu, max(self.mu, 1e-3 * abs(self.best_value))
        found = super().falls()
        self.mu = mu
        return found

    def rays(self) -> list[np.ndarray]:
        """The best point, and its intercepts alone."""
        plain = self.best_point.copy().reshape(self.shape)
        plain[:, : self.rows.d] = 0.0
        return [self.best_point, plain.ravel()]

    def bounds(self) -> list[tuple[float | None, float | None]]:
        return self.free()

    def model(self, point: np.ndarray) -> tuple[Any, Any]:
        """Coefficients and intercepts of the outputs."""
        pairs = [self.rows.outward(z) for z in point.reshape(self.shape)]
        if len(pairs) == 1:
            return pairs[0]
        return np.stack([coef for coef, _ in pairs]), np.array([b for _, b in pairs])

    def load(self, point: np.ndarray) -> None:
        coef, intercept = self.model(point)
        self.last = {**self.last, "coef": coef, "intercept": intercept}

    def _jet(self, f: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Smoothed loss, gradient in f of shape (n, outputs), and an affine minorant at f."""
        loss = self.loss
        if isinstance(loss, CrammerSinger):
            own = torch.nn.functional.one_hot(self.labels, f.shape[1]).double().numpy()
            scores = f - (f * own).sum(1, keepdims=True) + 1.0 - own
            top = scores.max(1, keepdims=True)
            share = np.exp((scores - top) / mu)
            total = share.sum(1, keepdims=True)
            share /= total
            value = top[:, 0] + mu * np.log(total[:, 0])
            return value, share - own, (share * scores).sum(1)
        if loss.convex and f.shape[1] == 1:
            jet = loss.smoothed(f[:, 0], self.rows.y, mu)
            least = loss.least(jet.slope, self.rows.y, f[:, 0])
            return jet.value, jet.slope[:, None], jet.slope * f[:, 0] + least
        outputs = torch.from_numpy(f[:, 0].copy() if f.shape[1] == 1 else f)
        value = loss.value(outputs, self.labels).detach().numpy()
        slope = loss.gradient(outputs, self.labels).detach().numpy()
        return value, slope.reshape(f.shape), value

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        z = point.reshape(self.shape)
        f = self._outputs(z)
        losses, slope, low = self._jet(f, self.mu)
        if not np.isfinite(losses).all():
            return self.wall(point)
        dual = self.bound.dual(losses, self.mu)
        mass = self.rows.w * dual.ratio
        gradient = self.rows.sum(mass[:, None] * slope).T + self.decay * z
        value = dual.value + 0.5 * float((self.decay * z**2).sum())
        if self.record(point, value, gradient.ravel(), dual.penalty, dual.radius):
            self.multiplier = dual.penalty
            price = self.bound_price() * dual.radius
            exact = self.bound.dual(self._exact(f, losses, low)).value
            self.gap = max(exact - float(mass @ low) + price, 0.0)
        return value, gradient.ravel()

    def bound_price(self) -> float:
        """The penalty of the penalised form; 0 for a ball."""
        return float(getattr(self.bound.ambiguity, "penalty", None) or 0.0)

    def _exact(self, f: np.ndarray, losses: np.ndarray, low: np.ndarray) -> np.ndarray:
        if low is losses:
            return losses
        outputs = torch.from_numpy(f[:, 0].copy() if f.shape[1] == 1 else f)
        return self.loss.value(outputs, self.labels).numpy()

    def separated(self) -> bool:
        """Whether scaling the model up drives its cross-entropy to zero."""
        if self.task.alpha or self.loss.attained:
            return False
        return separated(self._outputs(self.best_point.reshape(self.shape)), self.rows.y)
