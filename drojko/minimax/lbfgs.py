"""What the quasi-Newton solvers share: best point, history, limits, SciPy's L-BFGS-B."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from drojko._driver import Limits, Status, agreed
from drojko._numerics import endless
from drojko.minimax.kinked import DETOURS, MOST_PARAMETERS, minimise_kinked
from drojko.minimax.newton import ENDLESS, FAR
from drojko.minimax.problem import Callback, RobustProblem, TrainResult

__all__ = ["LBFGSRun", "Stop", "merged_rows"]


class Stop(Exception):
    """Ends SciPy's loop from within its callback."""

    def __init__(self, status: Status) -> None:
        self.status = status


@dataclass
class LBFGSRun(ABC):
    """One optimisation of a robust objective over (parameters, multiplier).

    In radius form the last entry of a point is the multiplier over ``unit``. Every evaluation
    reports through `record`; the best point so far is kept, also when the run is cut short. An
    instance without a problem holds settings: `solve` runs a copy.
    """

    problem: RobustProblem = None  # type: ignore[assignment]
    generator: torch.Generator = None  # type: ignore[assignment]
    n_draws: int = 2000
    penalty0: float | None = None
    tol: float = 1e-3
    max_time: float | None = None
    callback: Callback | None = None
    unit: float = 1.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_point: np.ndarray = field(default_factory=lambda: np.empty(0))
    best_value: float = math.inf
    best_slope: float = math.inf
    best_gradient: np.ndarray = field(default_factory=lambda: np.empty(0))
    slope: float = math.inf
    last: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    stage: int = 0
    polishing: bool = False
    deep: float = -math.inf  # a value from which on a fall may have no end

    def solve(
        self,
        problem: RobustProblem,
        generator: torch.Generator,
        limits: Limits,
        *,
        n_draws: int = 2000,
        penalty: float | None = None,
    ) -> TrainResult:
        """Train ``problem.model`` in place; its best parameters are left in it."""
        run = replace(
            self, problem=problem, generator=generator, n_draws=n_draws, penalty0=penalty,
            tol=limits.tol, max_time=limits.time_left, callback=limits.callback, history=[],
            began=time.perf_counter(),
        )  # fmt: skip
        return run.result(run.ended(run.start(), limits.max_iter))

    def ended(self, point: np.ndarray, max_iter: int) -> Status:
        """Optimise until something ends it: what it was."""
        try:
            status = self.optimise(point, max_iter)
            return Status.UNBOUNDED if self.best_value < 0.0 and self.falls() else status
        except Stop as stop:
            return stop.status
        except KeyboardInterrupt:
            return Status.INTERRUPTED

    def optimise(self, point: np.ndarray, max_iter: int) -> Status:
        """The stages of a run from its first point."""
        raise NotImplementedError

    @abstractmethod
    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Robust objective and its gradient."""

    @abstractmethod
    def load(self, point: np.ndarray) -> dict[str, Any] | None:
        """Put a point's parameters into the model; where there is none, return them."""

    @abstractmethod
    def free(self) -> list[tuple[float | None, float | None]]:
        """Bounds of the parameters, without the multiplier."""

    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Bounds of a point: a multiplier stays positive."""
        return [*self.free(), (1e-6, None)] if self.problem.radius else self.free()

    def penalty_of(self, point: np.ndarray) -> float:
        """The penalty, or the multiplier of the radius at a point."""
        if self.problem.penalty is not None:
            return self.problem.penalty
        return self.unit * float(point[-1]) if self.problem.radius else math.inf

    def finished(self) -> bool:
        """Whether an accepted iterate is good enough."""
        accuracy = (1e-4 if self.polishing else 1e-6) * self.tol
        return self.slope <= 1e-5 * self.tol or self.settled(accuracy, self.stage)

    def falls(self) -> bool:
        """Whether the objective falls without end along a ray; the best point then lies on it."""
        trial = copy.copy(self)

        def value(point: np.ndarray) -> float:
            return trial.evaluate(point)[0]

        for ray in self.rays():
            if endless(lambda t, ray=ray: value(t * ray)):
                while np.abs(ray).max() > 10.0 and value(0.1 * ray) < self.deep:
                    ray = 0.1 * ray
                self.best_point, self.best_value = ray, value(ray)
                return True
        self.deep *= 100.0
        return False

    def rays(self) -> list[np.ndarray]:
        """Points whose multiples are asked: the best one."""
        return [self.best_point]

    def settled(self, accuracy: float, since: int = 0) -> bool:
        """Whether ten iterations together gained next to nothing, as at a kink."""
        history = self.history[since:]
        if len(history) < 11:
            return False
        before = history[-11]["robust_risk"]
        gained = before - min(row["robust_risk"] for row in history[-10:])
        return gained <= accuracy * abs(before)

    def record(
        self, point: np.ndarray, value: float, gradient: np.ndarray, penalty: float, cost: float
    ) -> bool:
        """Note an evaluation; whether it is the best so far."""
        self.slope = float(np.linalg.norm(gradient)) / (1.0 + abs(value))
        self.last = {
            "robust_risk": value,
            "penalty": penalty,
            "transport_cost": cost,
            "stationarity": self.slope,
        }
        if self.deep == -math.inf:
            self.deep = -FAR * abs(value)
        if not value < self.best_value:
            return False
        self.best_value, self.best_slope = value, self.slope
        self.best_point, self.best_gradient = np.array(point), np.array(gradient)
        return True

    def wall(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """What stands for an infinite objective: the line search comes back by some.

        From a number as large as there are it would come back to where it was, and end.
        """
        flat = np.zeros_like(point)
        if not math.isfinite(self.best_value):  # the first point, or that of a stage
            return 1e300, flat
        expected = abs(float(self.best_gradient @ (point - self.best_point)))
        last = self.history[-1]["robust_risk"] if self.history else self.best_value
        level = max(last, self.best_value)
        return level + max(expected, 1e-3 * abs(level), 1e-300), flat

    def iteration(self, intermediate_result: Any) -> None:
        """Called by SciPy after each accepted iterate."""
        seconds = time.perf_counter() - self.began
        self.history.append({"iteration": len(self.history) + 1, "seconds": seconds, **self.last})
        if self.callback is not None:
            model = self.load(self.best_point) or {}
            if agreed(bool(self.callback(len(self.history), {**self.last, **model}))):
                raise Stop(Status.CALLBACK)
        if self.best_value < self.deep and self.falls():
            raise Stop(Status.UNBOUNDED)
        if self.finished():
            raise Stop(Status.CONVERGED)
        if self.max_time is not None and agreed(seconds >= self.max_time):
            raise Stop(Status.MAX_TIME)

    def minimise(self, point: np.ndarray, max_iter: int, memory: int) -> Status:
        """L-BFGS-B from ``point`` (Byrd, Lu, Nocedal, Zhu, 1995); CONVERGED or MAX_ITER.

        The loop is SciPy's own: `iteration` holds our limits in its callback.
        A line search that finds no further descent ends at a kink: a minimum of a nonsmooth
        function as far as first-order information can tell. Other ways to end raise `Stop`.
        """
        options = {"maxiter": max_iter, "maxfun": 10 * max_iter + 50, "maxcor": memory}
        try:
            result = minimize(
                self.evaluate,
                point,
                jac=True,
                method="L-BFGS-B",
                bounds=self.bounds(),
                callback=self.iteration,
                options={**options, "ftol": 0.0, "gtol": 0.0},
            )
        except Stop as stop:
            if stop.status is Status.CONVERGED:
                return stop.status
            raise
        return Status.MAX_ITER if result.status == 1 else Status.CONVERGED

    def moving(self) -> Any:
        """1 for the numbers of a point that change, 0 for those that are held."""
        return 1.0

    def polish(self, max_iter: int) -> Status:
        """From the best point along kinks, where there are not too many parameters for that."""
        if len(self.best_point) > MOST_PARAMETERS:
            return Status.CONVERGED
        least = np.array([-math.inf if low is None else low for low, _ in self.bounds()])
        self.polishing = True

        def function(point: np.ndarray) -> tuple[float, np.ndarray]:
            if (point < least).any():
                return math.inf, np.zeros_like(point)
            return self.evaluate(point)

        def report() -> None:
            self.iteration(None)

        noise = np.random.default_rng(0)  # the same detours in every run
        ended, least_gain = True, 1e-4 * self.tol
        for k, size in enumerate(DETOURS):
            self.stage, before = len(self.history), self.best_value
            # On a kink no subgradient need descend: BFGS starts beside it.
            scale = size * (1.0 + np.abs(self.best_point)) * self.moving()
            start = np.maximum(self.best_point + scale * noise.standard_normal(len(scale)), least)
            try:
                ended = minimise_kinked(function, start, max_iter, report)
            except Stop as stop:
                if stop.status is not Status.CONVERGED:
                    raise
                ended = True
            if before - self.best_value <= least_gain * abs(before):
                ended = True
                if k > 0:
                    break
        return Status.CONVERGED if ended else Status.MAX_ITER

    def result(self, status: Status) -> TrainResult:
        """Load the best point and say how the run ended."""
        self.load(self.best_point)
        return TrainResult(
            str(status),
            self.told(status),
            len(self.history),
            self.penalty_of(self.best_point),
            self.best_slope,
            self.columns(),
        )

    def told(self, status: Status) -> str:
        """A sentence on how the run ended."""
        advice = ENDLESS if status is Status.UNBOUNDED else status.advice
        return f"Stopped after {len(self.history)} iterations. {advice}"

    def columns(self) -> dict[str, np.ndarray]:
        """The history as arrays."""
        names = self.history[0] if self.history else {}
        return {name: np.array([row[name] for row in self.history]) for name in names}


def merged_rows(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equal rows as one row with their total mass, in a fixed order: copies are weights."""
    rows = torch.cat([x, y.to(x.dtype)[:, None]], 1)
    unique, index = torch.unique(rows, dim=0, return_inverse=True)
    mass = torch.zeros(len(unique), dtype=w.dtype, device=w.device).index_add_(0, index, w)
    return unique[:, :-1].contiguous(), unique[:, -1].to(y.dtype), mass
