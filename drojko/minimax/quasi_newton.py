"""Full-batch quasi-Newton on the exact robust gradient: linear models and small data."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from drojko._driver import Status
from drojko.inner.objective import Objective
from drojko.minimax.problem import Callback, RobustProblem, TrainResult
from drojko.models import flatten_parameters, views_like

__all__ = ["QuasiNewton"]


class Stop(Exception):
    """Ends SciPy's loop from within its callback."""

    def __init__(self, status: Status) -> None:
        self.status = status


@dataclass(frozen=True)
class QuasiNewton:
    r"""L-BFGS on (theta, lambda) of :math:`\lambda r^2 + E\sup_z\{\ell - \lambda c\}`.

    By Danskin's theorem the gradient is the model's gradient at the moved samples, and
    :math:`r^2 - E c` in lambda: for a linear model a jointly convex problem. The particles (the
    worst-case position of every draw) are carried from one evaluation to the next and corrected
    ``corrections`` times.

    After Byrd, Lu, Nocedal and Zhu (1995), as implemented in SciPy.
    """

    corrections: int = 6
    memory: int = 20

    def solve(
        self,
        problem: RobustProblem,
        generator: torch.Generator,
        *,
        max_iter: int,
        tol: float,
        max_time: float | None = None,
        callback: Callback | None = None,
        n_draws: int = 2000,
        penalty: float | None = None,
    ) -> TrainResult:
        """Train ``problem.model`` in place; its best parameters are left in it."""
        run = _Run(self, problem, generator, n_draws, penalty, max_time, callback, tol)
        start = run.start()
        status, message = Status.MAX_ITER, Status.MAX_ITER.advice
        try:
            if max_iter > 0:
                result = minimize(
                    run.evaluate,
                    start,
                    jac=True,
                    method="L-BFGS-B",
                    bounds=run.bounds(),
                    callback=run.iteration,
                    options={
                        "maxiter": max_iter,
                        "maxfun": 3 * max_iter + 20,
                        "maxcor": self.memory,
                        "ftol": 0.0,
                        "gtol": 0.0,
                    },
                )
                if result.status != 1 or run.slope <= tol:
                    # A line search that finds no further descent ends at a kink: a minimum of a
                    # nonsmooth function as far as first-order information can tell.
                    status, message = Status.CONVERGED, Status.CONVERGED.advice
        except Stop as stop:
            status, message = stop.status, stop.status.advice
        except KeyboardInterrupt:
            status, message = Status.INTERRUPTED, Status.INTERRUPTED.advice
        run.load(run.best_point)
        return TrainResult(
            str(status),
            f"Stopped after {len(run.history)} iterations. {message}",
            len(run.history),
            run.penalty_of(run.best_point),
            run.best_slope,
            history_columns(run.history),
        )


@dataclass
class _Run:
    """One optimisation: the draws, the particles and the best point so far."""

    settings: QuasiNewton
    problem: RobustProblem
    generator: torch.Generator
    n_draws: int
    penalty0: float | None
    max_time: float | None
    callback: Callback | None
    tol: float
    history: list[dict[str, float]] = field(default_factory=list)
    best_value: float = math.inf
    best_slope: float = math.inf
    slope: float = math.inf
    last: dict[str, float] = field(default_factory=dict)

    def start(self) -> np.ndarray:
        p = self.problem
        self.began = time.perf_counter()
        self.flat = flatten_parameters(p.model)
        self.x, self.y, self.w = merged_rows(*p.draw(self.n_draws, self.generator))
        self.coordinates = p.objective(self.x, 1.0, reduce=False).coordinates
        parameters = list(p.model.parameters())
        self.decay = torch.zeros_like(self.flat)
        self.free = torch.ones_like(self.flat)
        views = zip(
            views_like(self.decay, parameters),
            views_like(self.free, parameters),
            p.decay(),
            parameters,
            strict=True,
        )
        for decay, free, alpha, parameter in views:
            decay.fill_(alpha)
            free.fill_(1.0 if parameter.requires_grad else 0.0)
        batch = self._objective(1.0).batch(self.x, self.y)
        self.displacement = torch.zeros_like(batch.q0)
        point = self.flat.detach().double().cpu().numpy().copy()
        if p.radius:
            # Not from the gradient: at theta = 0 there is none, and lambda = 0 would be kept.
            start = self.penalty0 or 1.0 / (self.coordinates.scale * p.radius)
            self.unit = start
            point = np.append(point, 1.0)
        self.best_point = point.copy()
        return point

    def _objective(self, penalty: float) -> Objective:
        return Objective(self.problem.model, self.problem.loss, self.coordinates, penalty)

    def penalty_of(self, point: np.ndarray) -> float:
        if self.problem.penalty is not None:
            return self.problem.penalty
        return self.unit * float(point[-1]) if self.problem.radius else math.inf

    def bounds(self) -> list[tuple[float | None, float | None]]:
        """No bounds on theta; a multiplier above 0."""
        free: list[tuple[float | None, float | None]] = [(None, None)] * self.flat.numel()
        return [*free, (1e-6, None)] if self.problem.radius else free

    def load(self, point: np.ndarray) -> None:
        n = self.flat.numel()
        self.flat.copy_(torch.as_tensor(point[:n]))

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        p = self.problem
        self.load(point)
        penalty = self.penalty_of(point)
        objective = self._objective(penalty)
        batch = objective.batch(self.x, self.y)
        steps = self.settings.corrections if self.history else 3 * self.settings.corrections
        adversary = p.adversary(objective, steps)
        moved = p.move(adversary, batch, batch.q0 + self.displacement, steps)
        gradient = p.parameter_gradient(objective, moved, self.w)
        whole = torch.cat([g.reshape(-1) for g in gradient]).double()
        flat = self.flat.double()
        whole = ((whole + self.decay * flat) * self.free).cpu().numpy()
        risk = float(moved.risk.double() @ self.w)
        cost = float(moved.cost.double() @ self.w)
        value = risk + 0.5 * float((self.decay * flat) @ flat)
        if p.penalty is not None:
            value -= penalty * cost
        elif p.radius:
            value += penalty * (p.radius**2 - cost)
            whole = np.append(whole, self.unit * (p.radius**2 - cost))
        if not math.isfinite(value):
            return 1e300, np.zeros_like(point)  # the line search backs off
        slope = float(np.linalg.norm(whole)) / (1.0 + abs(value))
        self.slope = slope
        self.last = {
            "robust_risk": value,
            "penalty": penalty,
            "transport_cost": cost,
            "stationarity": slope,
        }
        if value < self.best_value:
            self.best_value, self.best_slope = value, slope
            self.best_point = point.copy()
            self.displacement = moved.q - batch.q0
        return value, whole

    def iteration(self, intermediate_result: Any) -> None:
        """Called by SciPy after each accepted iterate."""
        seconds = time.perf_counter() - self.began
        self.history.append({"iteration": len(self.history) + 1, "seconds": seconds, **self.last})
        if self.callback is not None:
            self.load(self.best_point)
            if self.callback(len(self.history), self.last):
                raise Stop(Status.CALLBACK)
        if self.slope <= self.tol * 1e-5 or settled(self.history, 1e-6 * self.tol):
            raise Stop(Status.CONVERGED)
        if self.max_time is not None and seconds >= self.max_time:
            raise Stop(Status.MAX_TIME)


def settled(history: list[dict[str, float]], accuracy: float) -> bool:
    """Whether ten iterations together gained next to nothing, as at a kink."""
    if len(history) < 11:
        return False
    before = history[-11]["robust_risk"]
    gained = before - min(row["robust_risk"] for row in history[-10:])
    return gained <= accuracy * abs(before)


def history_columns(history: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """The history as arrays, one per column."""
    names = history[0] if history else {}
    return {name: np.array([row[name] for row in history]) for name in names}


def merged_rows(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equal rows as one row with their total mass, in a fixed order: copies are weights."""
    rows = torch.cat([x, y.to(x.dtype)[:, None]], 1)
    unique, index = torch.unique(rows, dim=0, return_inverse=True)
    mass = torch.zeros(len(unique), dtype=w.dtype, device=w.device).index_add_(0, index, w)
    return unique[:, :-1].contiguous(), unique[:, -1].to(y.dtype), mass
