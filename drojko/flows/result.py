"""What a flow gives, and what the solvers of flows have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from drojko._driver import Outcome, Status
from drojko.exceptions import ConvergenceWarning
from drojko.measures.base import Measure
from drojko.transport.maps import TransportMap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FlowResult", "FlowSolver", "finish"]


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


class FlowSolver:
    """The driver's functions that flows share; states have a ``last`` row of numbers."""

    def terminate(self, state: Any) -> Status | None:
        """A flow goes on for as many steps as asked for."""
        return None

    def record(self, state: Any) -> dict[str, float]:
        """The last step's numbers."""
        return state.last


def finish(
    outcome: Outcome,
    measures: list[Measure],
    advice: Callable[[dict[str, np.ndarray]], str] = lambda columns: "",
    *,
    complete: bool = True,
) -> FlowResult:
    """The result of a flow's run; KeyboardInterrupt, with it, where that ended the run.

    ``advice`` looks at the columns: what it says is a warning, and the message. ``complete``:
    the number of steps was all that was asked for.
    """
    columns = {k: v for k, v in outcome.columns().items() if k not in ("iteration", "seconds")}
    columns["seconds"] = columns.pop("step_seconds", np.empty(0))
    ended = outcome.status is Status.MAX_ITER and complete
    status = Status.CONVERGED if ended else outcome.status
    interrupted = status is Status.INTERRUPTED
    words = "" if interrupted else advice(columns)
    if words:
        warnings.warn(words, ConvergenceWarning, stacklevel=4)
    message = f"Took {len(measures) - 1} steps. {words or status.advice}"
    result = FlowResult(measures, str(status), message, columns)
    return _interrupt(result) if interrupted else result


def _interrupt(result: FlowResult) -> NoReturn:
    error: Any = KeyboardInterrupt(
        f"Interrupted after {result.n_steps} steps: what they gave is the exception's `result`."
    )
    error.result = result
    raise error
