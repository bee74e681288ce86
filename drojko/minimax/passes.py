"""What the stochastic solvers share: parameters as one vector, rates, limits, the best of a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Limits, Status, run
from drojko._numerics import Adam
from drojko.minimax.norms import NormProduct
from drojko.minimax.problem import Callback, RobustProblem, TrainResult
from drojko.models import flatten_parameters, views_like

__all__ = ["PassState", "Passes", "flattened", "levelled"]

_PATIENCE = 20  # passes without progress that end a run


def levelled(risks: np.ndarray, tol: float) -> bool:
    """Whether the last tenth of the passes gained less than ``tol`` a pass on the one before."""
    size = max(1, len(risks) // 10)
    if len(risks) < 3 * size or size < 3:
        return False
    before, after = np.median(risks[-2 * size : -size]), np.median(risks[-size:])
    return bool(before - after <= tol * size * abs(after))


def flattened(problem: RobustProblem) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters as one vector, their decay, and 1 where they are trained."""
    flat, parameters = flatten_parameters(problem.model), list(problem.model.parameters())
    decay, trained = torch.zeros_like(flat), torch.ones_like(flat)
    for view, alpha in zip(views_like(decay, parameters), problem.decay(), strict=True):
        view.fill_(alpha)
    for view, parameter in zip(views_like(trained, parameters), parameters, strict=True):
        view.fill_(1.0 if parameter.requires_grad else 0.0)
    return flat, decay, trained


@dataclass
class PassState:
    """Parameters, their average and the optimiser's moments after some passes.

    ``carried`` is what a solver hands from pass to pass beside them, ``penalty`` the penalty or the
    multiplier of the radius, ``stale`` counts the passes since the best risk improved by tol: the
    one of the points held out, ``held``, where there are any.
    """

    flat: Tensor
    average: Tensor
    adam: Adam
    carried: Any
    penalty: float = math.inf
    iteration: int = 0
    risk: float = math.inf
    cost: float = 0.0
    slope: float = math.inf
    best: float = math.inf
    stale: int = 0
    held: float = math.nan

    @property
    def score(self) -> float:
        """What the best state has least of."""
        return self.risk if math.isnan(self.held) else self.held


class Passes(ABC):
    """A solver of the driver whose ``step`` is one pass over the draws, ``self.x``."""

    batch_size: int
    x: Tensor
    drawn: Tensor

    def __init__(
        self,
        settings: Any,
        problem: RobustProblem,
        generator: torch.Generator,
        max_iter: int,
        tol: float,
        n_draws: int,
    ) -> None:
        self.settings = settings
        self.problem = problem
        self.generator = generator
        self.max_iter, self.tol, self.n_draws = max_iter, tol, n_draws

    @abstractmethod
    def init(self, problem: None = None) -> PassState:
        """Return the first state."""

    @abstractmethod
    def draw(self) -> None:
        """Take the points of the next passes from the reference, and remember from where."""

    def carried(self) -> Any:
        """What goes from pass to pass beside the states: where the generator is and was."""
        stream = getattr(self.problem, "stream", None)  # of draws within a pass
        return self.drawn, self.generator.get_state(), stream and stream.get_state()

    def restore(self, carried: Any) -> None:
        """As it was when `carried` said so, points included."""
        drawn, now, within = carried
        if not torch.equal(drawn, self.drawn):
            self.generator.set_state(drawn)
            self.draw()
        self.generator.set_state(now)
        if within is not None:
            cast(Any, self.problem).stream.set_state(within)

    @abstractmethod
    def step(self, state: PassState) -> PassState:
        """Return the state after one more pass."""

    @abstractmethod
    def evaluate(self, flat: Tensor, state: PassState) -> tuple[float, float]:
        """Robust risk of parameters on all draws, and the norm of its gradient."""

    def held_out_risk(self, penalty: float) -> float:
        """Robust risk of the present model on the points held out; NaN: there are none."""
        return math.nan

    def first(self, carried: Any, penalty: float = math.inf) -> PassState:
        """The state before the first pass."""
        zero = torch.zeros_like(self.flat)
        return PassState(self.flat.clone(), zero, Adam.like(self.flat), carried, penalty)

    def opened(self, state: PassState) -> tuple[Adam, list[Tensor], Sequence[Tensor]]:
        """A pass begins: moments of its own, the gradient by parameter, and the batches' rows.

        Of points on several processes these are the rows here, which may be none.
        """
        self.load(state.flat)
        adam = replace(state.adam, first=state.adam.first.clone(), second=state.adam.second.clone())
        views = views_like(adam.gradient, list(self.problem.model.parameters()))
        order = torch.randperm(self.count, generator=self.generator).to(self.x.device)
        shards = self.problem.shards
        if shards is not None:
            return adam, views, shards.batches(order, self.batch_size)
        return adam, views, order.split(self.batch_size)

    @property
    def count(self) -> int:
        """How many points there are, on all processes."""
        shards = self.problem.shards
        return len(self.x) if shards is None else len(shards)

    def summed(
        self, gradient: list[Tensor] | None, sums: list[float], views: list[Tensor]
    ) -> tuple[list[Tensor], list[float]]:
        """A gradient and sums over all points, from those over the points here; None: no points."""
        if self.problem.shards is None and gradient is not None:
            return gradient, sums
        flat = torch.zeros(sum(view.numel() for view in views) + len(sums), dtype=torch.float64)
        flat[: len(sums)] = torch.tensor(sums, dtype=torch.float64)
        if gradient is not None:
            flat[len(sums) :] = torch.cat([g.reshape(-1).cpu() for g in gradient])
        flat = self.problem.total(flat)
        parts = flat[len(sums) :].split([view.numel() for view in views])
        whole = [part.view_as(view) for part, view in zip(parts, views, strict=True)]
        return whole, flat[: len(sums)].tolist()

    def closed(self, state: PassState, value: float, slope: float, **changes: Any) -> PassState:
        """The state after a pass of this value and squared slope per batch."""
        value += self.ridge()
        held = self.held_out_risk(changes.get("penalty", state.penalty))
        best, stale = self.progress_of(state, value if math.isnan(held) else held)
        return replace(
            state,
            flat=self.flat.clone(),
            average=self.averaged(state),
            iteration=state.iteration + 1,
            risk=value,
            slope=math.sqrt(slope),
            best=best,
            stale=stale,
            held=held,
            **changes,
        )

    def record(self, state: PassState) -> dict[str, float]:
        """A row of the history."""
        row = {
            "robust_risk": state.risk,
            "penalty": state.penalty,
            "transport_cost": state.cost,
            "stationarity": state.slope / (1.0 + abs(state.risk)),
        }
        return row if math.isnan(state.held) else {**row, "held_out_risk": state.held}

    def prepare(self) -> None:
        """Flatten the model; the decay of each parameter and which ones are trained."""
        self.flat, self.decay, self.frozen = flattened(self.problem)
        self.decays, self.freezes = bool(self.decay.any()), not bool(self.frozen.all())
        self.norms = NormProduct(self.problem) if self.problem.certified else None

    def batch_size_of(self, n: int) -> int:
        """Draws per step: those asked for, or 64 growing with the number of draws."""
        return min(self.settings.batch_size or min(512, max(64, n // 200)), n)

    def load(self, flat: Tensor) -> None:
        """Put parameters into the model."""
        self.flat.copy_(flat)

    def finite(self, state: Any) -> bool:
        """Whether a state is finite; an infinite risk is legal before the first pass."""
        return bool(torch.isfinite(state.flat).all()) and not math.isnan(state.risk)

    def rate(self, progress: float, count: int) -> float:
        """Learning rate of a step; ``progress`` in [0, 1]."""
        eta = self.settings.learning_rate
        if self.settings.step == "adam":
            return eta * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))
        return eta / math.sqrt(count) if self.settings.step == "diminishing" else eta

    def descend(
        self, adam: Adam, views: list[Tensor], gradient: list[Tensor], progress: float
    ) -> float:
        """One step along a stochastic gradient of the risk; returns its squared norm."""
        for view, g in zip(views, gradient, strict=True):
            view.copy_(g)
        if self.decays:
            adam.gradient.addcmul_(self.decay, self.flat)
        if self.norms is not None:
            self.norms.add_gradient(views)
        if self.freezes:
            adam.gradient.mul_(self.frozen)
        eta = self.rate(progress, adam.count + 1)
        if self.settings.step == "adam":
            adam.step(self.flat, eta)
        else:
            adam.count += 1
            self.flat.add_(adam.gradient, alpha=-eta)
        return float(adam.gradient @ adam.gradient)

    def averaged(self, state: Any) -> Tensor:
        """The mean of the parameters of the last fifth of the passes, this one included."""
        tail = state.iteration + 1 - int(0.8 * self.max_iter)
        if tail <= 0:
            return state.average
        return state.average + (self.flat - state.average) / tail

    def progress_of(self, state: Any, value: float) -> tuple[float, int]:
        """The best value so far and how many passes ago it was reached."""
        best, stale = state.best, state.stale + 1
        if not math.isfinite(best) or value < best - self.tol * abs(best):
            return value, 0
        return best, stale

    def ridge(self) -> float:
        """What is added to the risk: alpha / 2 times the squared norm, and the product of norms."""
        square = 0.5 * float((self.decay * self.flat).double() @ self.flat.double())
        return square if self.norms is None else square + self.norms.value()

    def ridge_gradient(self) -> Tensor:
        """Its gradient, flat."""
        whole = self.decay * self.flat
        if self.norms is not None:
            self.norms.add_gradient(views_like(whole, list(self.problem.model.parameters())))
        return whole

    def terminate(self, state: Any) -> Status | None:
        """Converged after long without progress, in the second half of the schedule.

        Points held out decide at any time, after so many passes as the settings say.
        """
        if not math.isnan(state.held):
            return Status.CONVERGED if state.stale >= self.settings.patience else None
        done = state.stale >= 2 * _PATIENCE and state.iteration > 0.5 * self.max_iter
        return Status.CONVERGED if done else None

    def choose(self, best: Any, last: Any) -> float:
        """Best of the last, the best and the averaged parameters, on all draws or those held out.

        It is loaded. Returns the norm of the gradient there, relative to 1 + the risk.
        """
        options = [last.flat] if best is last else [last.flat, best.flat]
        if self.settings.averaging and last.iteration > int(0.8 * self.max_iter) + 1:
            options.append(last.average)
        if math.isnan(last.held):
            found = [self.evaluate(flat, last) for flat in options]
            at = int(np.nanargmin([value for value, _ in found]))
        else:
            found = {}
            at = int(np.nanargmin([self._held_by(flat, last) for flat in options]))
            found[at] = self.evaluate(options[at], last)
        self.load(options[at])
        value, slope = found[at]
        return slope / (1.0 + abs(value))

    def _held_by(self, flat: Tensor, state: Any) -> float:
        self.load(flat)
        return self.held_out_risk(state.penalty)

    def train(self, limits: Limits, callback: Callback | None) -> TrainResult:
        """Run; the best parameters are left in the model."""
        state = self.init(None)

        def report(current: Any) -> bool:
            if callback is None:
                return False
            self.load(current.flat)
            return callback(current.iteration, self.record(current))

        outcome = run(
            self,
            state,
            max_iter=self.max_iter,
            max_time=limits.time_left,
            callback=report,
            best=lambda s: s.score,
            keeper=limits.keeper,
        )
        best, last = outcome.best_state, outcome.state
        stationarity = self.choose(best, last)
        status, columns = outcome.status, outcome.columns()
        if (
            status is Status.MAX_ITER
            and math.isnan(last.held)
            and levelled(columns["robust_risk"], self.tol)
        ):
            status = Status.CONVERGED
        return TrainResult(
            str(status),
            f"Stopped after {outcome.n_iter} passes. {status.advice}",
            outcome.n_iter,
            last.penalty,
            stationarity,
            columns,
        )
