"""What a flow gives, and what the solvers of flows have in common."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from drojko._driver import Outcome, Status, columns_of
from drojko.exceptions import ConvergenceWarning
from drojko.measures.base import Measure
from drojko.transport.maps import TransportMap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FlowResult", "FlowSolver", "Steps", "finish", "result_of"]


@dataclass(frozen=True, eq=False)
class FlowResult:
    """What a flow gave.

    Attributes
    ----------
    measures : list of Measure
        The initial measure, then one for each step: a `FlowStep`, or what the scheme makes.
    status, message : str
        Why it ended, and what to do about it.
    columns : dict of ndarray
        Of `history`.
    n_steps : int
        JKO steps taken.
    """

    measures: list[Measure]
    status: str
    message: str
    columns: dict[str, np.ndarray]

    @property
    def n_steps(self) -> int:
        """JKO steps taken."""
        return len(self.measures) - 1

    @property
    def maps(self) -> tuple[TransportMap, ...]:
        """T_1, ..., T_k."""
        return getattr(self.measures[-1], "maps", ())

    @property
    def history(self) -> pd.DataFrame:
        """A row per step.

        Columns: ``step``, ``time`` (the sum of step sizes), ``energy`` (F on particles that no
        map was trained on), ``movement`` (E|T - x|^2 / (2 h), the same), ``decrease`` of F in
        this step, ``translation`` and ``linear`` (what the optimality conditions along constant
        and linear fields miss on the training particles, relative to sqrt(E|T - x|^2)/h and to
        E|T - x|^2/h + d * the entropy's share), ``refined`` (1 where a network beat the affine
        map), ``seconds``; with adaptive steps also ``error``, what halving the step changed.
        """
        import pandas as pd

        return pd.DataFrame(self.columns)

    def __repr__(self) -> str:
        energy = self.columns.get("energy", np.array([np.nan]))
        return (
            f"FlowResult(n_steps={self.n_steps}, energy={float(energy[-1]):.6g}, "
            f"status={self.status!r})"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Steps:
    """What states of flows share: all measures so far, and the last step's row of the history."""

    measures: tuple[Measure, ...]
    time: float = 0.0
    last: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.measures) - 1

    def after(
        self, measure: Measure, h: float, began: float, numbers: dict[str, float], **changes: Any
    ) -> Self:
        """The state after a step of size h that began at a time of the clock."""
        row = {"step": self.step + 1, "time": self.time + h, **numbers}
        row["step_seconds"] = time.perf_counter() - began
        measures = (*self.measures, measure)
        return replace(self, measures=measures, time=row["time"], last=row, **changes)


class FlowSolver:
    """The driver's functions that flows share; the first state is of a measure and a generator."""

    def terminate(self, state: Any) -> Status | None:
        """A flow goes on for as many steps as asked for."""
        return None

    def record(self, state: Any) -> dict[str, float]:
        """The last step's numbers."""
        return state.last

    def advice(self, columns: dict[str, np.ndarray]) -> str:
        """What the history says against the flow, which becomes a warning; or nothing."""
        return ""


def finish(solver: FlowSolver, outcome: Outcome, *, complete: bool = True) -> FlowResult:
    """The result of a flow's run; KeyboardInterrupt, with it, where that ended the run.

    ``complete``: the number of steps was all that was asked for.
    """
    ended = outcome.status is Status.MAX_ITER and complete
    status = Status.CONVERGED if ended else outcome.status
    stopped = status is Status.INTERRUPTED
    result = result_of(outcome.state, status, outcome.history)
    if stopped:
        error: Any = KeyboardInterrupt(
            f"Interrupted after {result.n_steps} steps: what they gave is the exception's `result`."
        )
        error.result = result
        raise error
    words = solver.advice(result.columns)
    if not words:
        return result
    warnings.warn(words, ConvergenceWarning, stacklevel=6)
    told = Status.STALLED if status is Status.CONVERGED else status
    return result_of(outcome.state, told, outcome.history, words)


def result_of(
    state: Any, status: Status, rows: list[dict[str, float]], words: str = ""
) -> FlowResult:
    """A state as a result, with a row of the history per step."""
    columns = {k: v for k, v in columns_of(rows).items() if k not in ("iteration", "seconds")}
    columns["seconds"] = columns.pop("step_seconds", np.empty(0))
    message = f"Took {state.step} steps. {words or status.advice}"
    return FlowResult(list(state.measures), str(status), message, columns)
