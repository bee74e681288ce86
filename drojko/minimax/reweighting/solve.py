r"""Training against sets that reweight the reference: the points stay, their masses change.

.. math:: \min_\theta\; V(\ell(\theta; x_1, y_1), \dots, \ell(\theta; x_n, y_n))
          + \tfrac\alpha2\|\theta\|^2, \qquad
          V(\ell) = \sup\{E_0\,q\,\ell : q = dP/dP_0,\; D(q) \le r\}

or its penalised form. V is convex and nondecreasing, so that a linear model with a convex loss is
a convex problem: Newton's method (`reweighted_newton`), or L-BFGS for several outputs, callables,
many columns and sets without second derivatives. Networks take stochastic steps with ratios from
stale losses (`reweighted_passes`). The gradient is that of Danskin's theorem, E q grad loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from drojko._driver import Status, run
from drojko._random import spawn
from drojko.ambiguity import AmbiguitySet, TotalVariation
from drojko.losses import CallableLoss, CrammerSinger, Logistic, Loss, Softmax
from drojko.minimax.conditioning import Conditioned
from drojko.minimax.lbfgs import LBFGSRun, Stop
from drojko.minimax.problem import Callback, RobustProblem, TrainResult
from drojko.minimax.reweighting.interior import TailInterior
from drojko.minimax.reweighting.newton import Newton, Points, loss_jet
from drojko.minimax.reweighting.passes import ReweightedPasses
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import MLP

__all__ = ["Limits", "solve_reweighted"]

#: Relative accuracy of the objective of linear models, whatever tol is.
ACCURACY = 2e-6
#: More columns than these are for L-BFGS: a Gram matrix costs n d^2.
WIDE = 800

_SEPARABLE = (
    "The classes can be separated, and a set that reweights moves no point: without alpha the "
    "worst-case risk falls to zero as the coefficients grow and no minimum exists: add alpha > 0."
)


@dataclass(frozen=True)
class Limits:
    """When training ends, and who is told."""

    max_iter: int = 200
    tol: float = 1e-3
    max_time: float | None = None
    callback: Callback | None = None


def solve_reweighted(
    problem: RobustProblem,
    ambiguity: AmbiguitySet,
    generator: torch.Generator,
    *,
    n_draws: int = 2000,
    groups: Any = None,
    outer: Subgradient | None = None,
    limits: Limits | None = None,
) -> TrainResult:
    """Train ``problem.model`` in place; its best parameters are left in it.

    Parameters
    ----------
    problem : RobustProblem
        Its radius, penalty and cost are not used: the set is ``ambiguity``.
    ambiguity : AmbiguitySet
        With ``on(x, weights, groups)``, as the density-ratio sets.
    generator : torch.Generator
    n_draws : int
        Requested of a continuous reference.
    groups : array of shape (n,), default=None
        What the points of an empirical reference belong to.
    outer : Subgradient, default=None
        Rates and batches for networks.
    limits : Limits, default=None

    Returns
    -------
    TrainResult
        ``penalty`` is the multiplier of the radius; in the history ``transport_cost`` is D(P*, P0).
    """
    limits = limits or Limits()
    model = problem.model
    if not (isinstance(model, MLP) and len(model.weights) == 1):
        return _network(problem, ambiguity, generator, n_draws, groups, outer, limits)
    x, y, w, bound = problem.support(ambiguity, n_draws, generator, groups)
    points = _points(x, y, w, model)
    named = problem.loss.scalar and not isinstance(problem.loss, CallableLoss)
    narrow = points.matrix.shape[1] <= WIDE
    if named and model.n_outputs == 1 and narrow and hasattr(bound, "curve"):
        return _newton(problem, points, bound, limits)
    return _quasi_newton(problem, points, bound, generator, limits)


def _points(x: Tensor, y: Tensor, w: Tensor, model: MLP) -> Points:
    return Points(x.double().cpu().numpy(), y.cpu().numpy(), w.cpu().numpy(), model.bias)


def _parameters(model: MLP, points: Points) -> np.ndarray:
    """The model's parameters on standardised columns, shape (outputs, columns)."""
    weight = model.weights[0].detach().double().cpu().numpy()
    bias = model.biases[0].detach().double().cpu().numpy()
    return np.stack([points.inward(coef, float(b)) for coef, b in zip(weight, bias, strict=True)])


def _load(model: MLP, points: Points, rows: np.ndarray) -> None:
    for k, row in enumerate(rows):
        coef, intercept = points.outward(row)
        model.weights[0].data[k] = torch.as_tensor(coef)
        if points.intercept:
            model.biases[0].data[k] = intercept


def _newton(problem: RobustProblem, points: Points, bound: Any, limits: Limits) -> TrainResult:
    """Newton's method; for total variation with a smooth loss the interior point before it."""
    model: Any = problem.model
    accuracy = min(limits.tol, ACCURACY)
    start = _parameters(model, points)[0]
    if problem.loss.task == "regression" and points.intercept and not model.warm:
        start[-1] = float(points.w @ points.y)
    settings = (points, problem.loss, bound, problem.alpha, accuracy)
    if _tailed(bound.ambiguity, problem.loss):
        share = 1e-3 if model.warm else 1.0
        result = _solve(problem, points, TailInterior(*settings), (start, share), limits)
        if result.status != Status.MAX_ITER or result.n_iter >= limits.max_iter:
            return result
        start = _parameters(model, points)[0]
    newton = Newton(*settings)
    # Losses of regressions have longer tails: a largest loss takes more smoothing to begin with.
    share = 1.0 if newton.barred and problem.loss.task == "regression" else 0.1
    return _solve(problem, points, newton, (start, 1e-3 if model.warm else share), limits)


def _tailed(ambiguity: AmbiguitySet, loss: Loss) -> bool:
    """Whether the set is a largest loss and a tail mean, both of some mass, and the loss smooth."""
    if not isinstance(ambiguity, TotalVariation) or not math.isfinite(loss.curvature or math.inf):
        return False
    return ambiguity.penalty is not None or 0.0 < float(ambiguity.radius or 0.0) < 1.0


def _solve(
    problem: RobustProblem, points: Points, solver: Any, start: Any, limits: Limits
) -> TrainResult:
    model: Any = problem.model

    def report(state: Any) -> bool:
        if limits.callback is None:
            return False
        _load(model, points, state.point[None])
        return limits.callback(int(report.count), solver.record(state))

    report.count = 0

    def call(state: Any) -> bool:
        report.count += 1
        return report(state)

    outcome = run(
        solver,
        solver.init(start),
        max_iter=limits.max_iter,
        max_time=limits.max_time,
        callback=call,
        best=lambda state: state.objective,
    )
    best, last = outcome.best_state, outcome.state
    _load(model, points, best.point[None])
    status, message = outcome.status, outcome.message
    left = last.gap + 0.5 * last.decrement
    if status is Status.MAX_ITER and left <= limits.tol * max(last.size, solver.floor):
        status = Status.CONVERGED
        message = f"Stopped after {outcome.n_iter} iterations. {status.advice}"
    # The best iterate may be where all losses are equal, a kink: it is the last one, of the least
    # smoothing, that is nearly stationary beside it.
    slope = min(best.slope, last.slope)
    slope = slope if math.isfinite(slope) else solver.slope(best)
    result = TrainResult(
        str(status), message, outcome.n_iter, best.penalty, slope, outcome.columns()
    )
    if last.separated:
        return replace(result, status="unbounded", message=_SEPARABLE)
    return result


def _quasi_newton(
    problem: RobustProblem, points: Points, bound: Any, generator: torch.Generator, limits: Limits
) -> TrainResult:
    run = _Run(problem, generator, 0, None, limits.tol, limits.max_time, limits.callback)
    run.points, run.bound = points, bound
    point, status = run.start(), Status.MAX_ITER
    try:
        for _ in range(_STAGES):
            status = run.minimise(point, limits.max_iter, memory=30)
            point = run.best_point.copy()
            if run.accurate:
                break
            run.enter()
        if status is Status.MAX_ITER and run.settled(0.1 * limits.tol, run.stage_start):
            status = Status.CONVERGED
    except Stop as stop:
        status = stop.status
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    result = run.result(status)
    if run.separated():
        return replace(result, status="unbounded", message=_SEPARABLE)
    return result


_STAGES = 7  # smoothings of L-BFGS, each a tenth of the one before


@dataclass
class _Run(LBFGSRun):
    """Stages of less and less smoothing; ``gap`` is what the smoothing of a stage may cost."""

    mu: float = 1.0
    gap: float = math.inf
    stage_start: int = 0
    multiplier: float = math.inf

    points: Points = None  # type: ignore[assignment]
    bound: Any = None

    def start(self) -> np.ndarray:
        model: Any = self.problem.model
        rows = _parameters(model, self.points)
        self.shape = rows.shape
        self.labels = torch.from_numpy(self.points.y)
        losses = self._jet(self.points.matrix @ rows.T, 1e-3)[0]
        self.unit_risk = max(float(self.points.w @ np.abs(losses)), 1e-300)
        self.mu = (1e-3 if model.warm else 1e-1) * self.unit_risk
        decay = self.problem.alpha / self.points.scale**2
        self.decay = np.append(decay, 0.0) if self.points.intercept else decay
        self.best_point = rows.ravel().copy()
        return self.best_point

    def enter(self) -> None:
        """Begin the next stage: values at another smoothing do not compare."""
        self.mu *= 0.1
        self.stage_start, self.best_value = len(self.history), math.inf

    @property
    def accurate(self) -> bool:
        """Whether the smoothing costs no more than the accuracy aimed at."""
        return self.gap <= ACCURACY * max(abs(self.best_value), 1e-10 * self.unit_risk)

    def finished(self) -> bool:
        if self.accurate:
            return self.slope <= 1e-6 * self.tol or self.settled(1e-5 * self.tol, self.stage_start)
        share = 0.1 * self.gap / max(abs(self.best_value), 1e-300)
        return self.slope <= 1e-2 * self.gap or self.settled(share, self.stage_start)

    def free(self) -> list[tuple[float | None, float | None]]:
        return [(None, None)] * (self.shape[0] * self.shape[1])

    def bounds(self) -> list[tuple[float | None, float | None]]:
        return self.free()

    def penalty_of(self, point: np.ndarray) -> float:
        return self.multiplier

    def load(self, point: np.ndarray) -> None:
        model: Any = self.problem.model
        _load(model, self.points, point.reshape(self.shape))

    def _jet(self, f: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Smoothed loss, gradient in f of shape (n, outputs), and an affine minorant at f."""
        loss = self.problem.loss
        if isinstance(loss, CrammerSinger):
            own = torch.nn.functional.one_hot(self.labels, f.shape[1]).double().numpy()
            scores = f - (f * own).sum(1, keepdims=True) + 1.0 - own
            top = scores.max(1, keepdims=True)
            share = np.exp((scores - top) / mu)
            total = share.sum(1, keepdims=True)
            share /= total
            value = top[:, 0] + mu * np.log(total[:, 0])
            return value, share - own, (share * scores).sum(1)
        if loss.scalar and not isinstance(loss, CallableLoss):
            jet = loss_jet(loss, f[:, 0], self.points.y, mu)
            return jet.value, jet.slope[:, None], jet.low
        outputs = torch.from_numpy(f[:, 0].copy() if f.shape[1] == 1 else f)
        value = loss.value(outputs, self.labels).detach().numpy()
        slope = loss.gradient(outputs, self.labels).detach().numpy()
        return value, slope.reshape(f.shape), value

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        rows = point.reshape(self.shape)
        f = self.points.matrix @ rows.T
        losses, slope, low = self._jet(f, self.mu)
        if not np.isfinite(losses).all():
            return 1e300, np.zeros_like(point)  # the line search backs off
        dual = self.bound.dual(losses, self.mu)
        mass = self.points.w * dual.ratio
        gradient = (mass[:, None] * slope).T @ self.points.matrix + self.decay * rows
        value = dual.value + 0.5 * float((self.decay * rows**2).sum())
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
        return self.problem.loss.value(outputs, self.labels).numpy()

    def separated(self) -> bool:
        """Whether scaling the model up drives its cross-entropy to zero."""
        if self.problem.alpha or not isinstance(self.problem.loss, Logistic | Softmax):
            return False
        f = self.points.matrix @ self.best_point.reshape(self.shape).T
        y = self.points.y
        if f.shape[1] == 1:
            return bool((f[:, 0] * (2.0 * y - 1.0) > 0).all())
        rows = np.arange(len(y))
        own = f[rows, y].copy()
        f[rows, y] = -np.inf
        return bool((own > f.max(1)).all())


def _network(
    problem: RobustProblem,
    ambiguity: AmbiguitySet,
    generator: torch.Generator,
    n_draws: int,
    groups: Any,
    outer: Subgradient | None,
    limits: Limits,
) -> TrainResult:
    """Passes in units in which the draws have mean 0 and spread 1; the set sees its own units."""
    shift = not isinstance(problem.model, MLP) or problem.model.bias
    conditioned = Conditioned.of(problem, shift, n_draws, generator)
    unit = conditioned.loss_unit
    inner: Any = clone(ambiguity)
    if inner.penalty is not None:
        inner.set_params(penalty=float(inner.penalty) / unit)
    solver = ReweightedPasses(
        outer or Subgradient(),
        conditioned.problem,
        spawn(generator),
        limits.max_iter,
        limits.tol,
        n_draws,
    )
    solver.ambiguity, solver.groups = inner, groups
    result = solver.train(limits.max_time, conditioned.wrap(limits.callback))
    conditioned.undo()
    history = dict(result.history)
    for name in ("robust_risk", "penalty"):
        if name in history:
            history[name] = history[name] * unit
    return replace(result, penalty=result.penalty * unit, history=history)
