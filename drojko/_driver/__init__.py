"""The one loop: every iterative solver in drojko runs through `run`.

A solver is three functions on an explicit state, ``init``, ``step`` and ``terminate``; it never
loops. The loop owns what all of them need: iteration and time limits, finiteness, callbacks,
Ctrl-C, the history, and the best state so far. The outcome is data with a sentence that says what
to do. (Structure after optimistix: J. Rader, T. Lyons, P. Kidger, 2024, arXiv 2402.09983.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from drojko.exceptions import DrojkoError, NonFiniteError

__all__ = [
    "RANKS",
    "Callback",
    "Keeper",
    "Limits",
    "Outcome",
    "Solver",
    "Status",
    "agreed",
    "all_finite",
    "columns_of",
    "keeping",
    "nested",
    "run",
]

Callback = Callable[[int, dict[str, Any]], bool]

#: The processes that share their fits (`drojko.distributed.Ranks`), where there are any.
RANKS: ContextVar[Any] = ContextVar("RANKS", default=None)

S = TypeVar("S")
T = TypeVar("T")


class Status(StrEnum):
    """Why a run ended; compares equal to its string, and `advice` says what to do.

    >>> Status.MAX_ITER == "max_iter"
    True
    >>> print(Status.MAX_ITER.advice)
    The iteration limit came before the tolerance: raise max_iter, or accept a larger tol.
    """

    CONVERGED = "converged"
    MAX_ITER = "max_iter"
    MAX_TIME = "max_time"
    UNBOUNDED = "unbounded"
    CALLBACK = "callback"
    INTERRUPTED = "interrupted"
    NON_FINITE = "non_finite"
    STALLED = "stalled"

    @property
    def advice(self) -> str:
        """One sentence: what happened and what the user can do about it."""
        return _ADVICE[self]


_ADVICE = {
    Status.CONVERGED: "The tolerance is met: nothing to do.",
    Status.MAX_ITER: (
        "The iteration limit came before the tolerance: raise max_iter, or accept a larger tol."
    ),
    Status.MAX_TIME: (
        "The time limit came before the tolerance: raise max_time, or continue from here with "
        "warm_start."
    ),
    Status.UNBOUNDED: "There is no minimum: the objective falls without end along a direction.",
    Status.CALLBACK: "A callback asked to stop: the best state so far is kept.",
    Status.INTERRUPTED: (
        "Interrupted from the keyboard: the best state so far is kept and can be used."
    ),
    Status.STALLED: (
        "Progress ended before the tolerance was proven: the model is kept with the gap that is "
        "proven; rescale the columns or the target, drop near-copies of columns, or accept a "
        "larger tol."
    ),
    Status.NON_FINITE: (
        "NaN or infinity appeared: look for extreme values or scales in the data, lower the step "
        "size, or raise the penalty."
    ),
}

#: After these the same call has nothing left to do.
_FINAL = (Status.CONVERGED, Status.STALLED, Status.UNBOUNDED)


class Solver(Protocol[S]):
    """What `run` calls. Solvers hold settings only; everything that changes is in the state.

    Two more methods are used where a solver has them:

    - ``finite(state) -> bool``, when infinity is a legal value somewhere in the state
      (`all_finite` is asked otherwise);
    - ``record(state) -> dict`` of floats, one row of the history.
    """

    def init(self, problem: Any) -> S:
        """Return the first state."""
        ...

    def step(self, state: S) -> S:
        """Return the next state and leave the given one as it is."""
        ...

    def terminate(self, state: S) -> Status | None:
        """Return a status to end the run after this state, None to go on."""
        ...


class Keeper(Protocol):
    """What keeps a run where its end cannot reach it; `checkpoints.Checkpoint` in a file.

    A solver that changes itself from step to step has ``carried()``, what it needs to go on, and
    ``restore(carried)``, both called between steps.
    """

    def resumed(self, solver: Any) -> Any:
        """What `keep` was given last at an earlier call; None where there was none."""
        ...

    def keep(self, solver: Any, run: Any, last: bool = False) -> None:
        """A state between two steps; the ``last`` of this call."""
        ...

    def write(self) -> None:
        """What was kept last, now."""
        ...


@dataclass(frozen=True)
class Outcome(Generic[S]):
    """What a run gave: ``state`` is the last one, ``best_state`` the best by the caller's key.

    ``history`` holds one dict per iteration: ``iteration``, ``seconds`` since the start, and what
    the solver records.
    """

    state: S
    best_state: S
    status: Status
    message: str
    n_iter: int
    seconds: float
    history: list[dict[str, float]]

    def columns(self) -> dict[str, np.ndarray]:
        """The history as arrays, one per column; NaN where an iteration did not record it."""
        return columns_of(self.history)


def columns_of(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Rows as arrays, one per column; NaN where a row has no such entry."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def all_finite(value: Any) -> bool:
    """Whether every number in a state is finite: tensors, arrays, floats and nested containers.

    >>> all_finite({"theta": torch.ones(2), "step": 3}), all_finite((1.0, [float("nan")]))
    (True, False)
    """
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    if isinstance(value, float | np.floating):
        return math.isfinite(value)
    if isinstance(value, torch.nn.Module):
        return all(all_finite(tensor) for tensor in value.state_dict().values())
    if isinstance(value, Mapping):
        return all(all_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(all_finite(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return all(all_finite(getattr(value, part.name)) for part in fields(value))
    return True


def run(
    solver: Solver[S],
    state: S,
    *,
    max_iter: int,
    max_time: float | None = None,
    callback: Callable[[S], bool | None] | None = None,
    best: Callable[[S], float] | None = None,
    keeper: Keeper | None = None,
) -> Outcome[S]:
    """Step until the solver terminates or a limit, a callback or Ctrl-C ends the run.

    Parameters
    ----------
    solver : Solver
        Settings with ``step`` and ``terminate``.
    state : S
        The first state, as from ``solver.init(problem)``.
    max_iter : int
        Largest number of steps.
    max_time : float, default=None
        Seconds after which no further step starts.
    callback : callable, default=None
        Called with each new state; True ends the run with status ``callback``.
    best : callable, default=None
        Key of a state, smaller is better. Every state counts, the first and the last one too, and
        the later of two equals wins. None: the last state is the best one.
    keeper : Keeper, default=None
        Where an earlier call left off, and where this one leaves off. Time limits are of each call;
        a run that has converged takes no further step.

    Returns
    -------
    Outcome
        With status ``interrupted`` after Ctrl-C: the caller stores what it needs and raises
        ``KeyboardInterrupt`` again, so that a surrounding search stops as well.

    Raises
    ------
    NonFiniteError
        When a state is not finite; it carries the last finite state.

    Examples
    --------
    Heron's iteration for the square root of two:

    >>> class Heron:
    ...     def init(self, problem):
    ...         return problem
    ...     def step(self, x):
    ...         return (x + 2 / x) / 2
    ...     def terminate(self, x):
    ...         return Status.CONVERGED if abs(x * x - 2) < 1e-9 else None
    >>> outcome = run(Heron(), Heron().init(1.0), max_iter=20)
    >>> round(outcome.state, 6), outcome.n_iter, str(outcome.status)
    (1.414214, 4, 'converged')
    """
    finite = getattr(solver, "finite", all_finite)
    record = getattr(solver, "record", lambda state: {})
    # Without a key all states are equal, and the later of two equals wins.
    key = best if best is not None else lambda state: 0.0
    if not finite(state):
        raise NonFiniteError(f"The first state is not finite. {Status.NON_FINITE.advice}")

    start = time.perf_counter()
    best_state, best_key = state, key(state)
    history: list[dict[str, float]] = []
    status, n_iter, seconds, before = None, 0, 0.0, 0.0
    earlier = None if keeper is None else keeper.resumed(solver)
    if earlier is not None:
        state, best_state, history, ended = earlier
        best_key, n_iter = key(best_state), len(history)
        status, before = ended and Status(ended), history[-1]["seconds"] if history else 0.0

    def keep(last: bool) -> None:
        if keeper is not None:
            kept = status if status in _FINAL else None
            keeper.keep(solver, (state, best_state, history, kept and str(kept)), last)

    if earlier is None:
        keep(last=False)  # what cannot be kept is said before there is work to lose
    try:
        while status is None:
            if n_iter >= max_iter:
                status = Status.MAX_ITER
                break
            if max_time is not None and agreed(seconds >= max_time):
                status = Status.MAX_TIME
                break
            new = solver.step(state)
            if not finite(new):
                raise NonFiniteError(
                    f"Iteration {n_iter + 1} is not finite. {Status.NON_FINITE.advice}",
                    last_state=state,
                )
            state, n_iter = new, n_iter + 1
            new_key = key(state)
            if new_key <= best_key or math.isnan(best_key):  # NaN wins over nothing but NaN
                best_state, best_key = state, new_key
            seconds = time.perf_counter() - start
            row = {"iteration": n_iter, "seconds": before + seconds, **record(state)}
            history.append(row)
            status = solver.terminate(state)
            keep(last=False)
            # The callback sees the last state too; it cannot turn "converged" into something else.
            if callback is not None and agreed(bool(callback(state))) and status is None:
                status = Status.CALLBACK
        keep(last=True)
    except BaseException as error:
        if keeper is not None:
            keeper.write()
        if not isinstance(error, KeyboardInterrupt):
            raise
        status = Status.INTERRUPTED
    seconds = before + time.perf_counter() - start
    message = f"Stopped after {n_iter} iterations and {seconds:.3g} seconds. {status.advice}"
    return Outcome(state, best_state, status, message, n_iter, seconds, history)


def agreed(flag: bool) -> bool:
    """Whether a flag is set, on any of the processes that share a fit: they have clocks of their
    own, and end together.

    >>> agreed(True)
    True
    """
    ranks = RANKS.get()
    return flag if ranks is None or not ranks.busy else ranks.any(flag)


def nested(
    solver: Solver[S], state: S, *, max_iter: int, max_time: float | None = None
) -> Outcome[S]:
    """`run` within a step of another run: Ctrl-C ends that one, too.

    Raises
    ------
    KeyboardInterrupt
        Where it ended this run: its state is not one to go on from.
    """
    outcome = run(solver, state, max_iter=max_iter, max_time=max_time)
    if outcome.status is Status.INTERRUPTED:
        raise KeyboardInterrupt(outcome.message)
    return outcome


def keeping(work: Callable[[], T], so_far: Callable[[], Any]) -> T:
    """What work returns; Ctrl-C carries what there is by then, if anything, as its ``result``.

    No context manager: its exit would be a call of its own, in which a signal can strike.
    """
    try:
        return work()
    except KeyboardInterrupt as error:
        found = None
        with suppress(Exception):  # half a result is no reason to lose the interrupt
            found = so_far()
        if found:
            error.result = found  # type: ignore[attr-defined]
        raise


@dataclass(frozen=True)
class Limits:
    """Limits of one fit; its clock starts when the value is made.

    Parameters
    ----------
    max_iter : int
    tol : float
        Relative accuracy.
    max_time : float, default=None
        Seconds for the whole fit, however many solvers share it.
    callback : callable, default=None
        ``callback(iteration, record) -> bool``; True ends the fit.
    keeper : Keeper, default=None
        Of training that is long enough to be gone on with.

    Examples
    --------
    >>> Limits(max_iter=50).time_left is None
    True
    """

    max_iter: int = 200
    tol: float = 1e-3
    max_time: float | None = None
    callback: Callback | None = None
    began: float = field(default_factory=time.perf_counter, compare=False)
    keeper: Keeper | None = field(default=None, compare=False)

    @property
    def time_left(self) -> float | None:
        """Seconds until ``max_time``, at least 0; None without a limit."""
        if self.max_time is None:
            return None
        return max(self.max_time - (time.perf_counter() - self.began), 0.0)


@contextmanager
def arithmetic(what: str) -> Iterator[None]:
    """Overflows, divisions by zero and failed factorisations as `NonFiniteError`.

    Settings and data may each be fine, and too far from each other.
    """
    try:
        yield
    except (ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        if isinstance(error, DrojkoError):
            raise
        raise NonFiniteError(
            f"the arithmetic of {what} left the range of numbers ({error}): look for extreme "
            "values or scales in the data, and for settings (radius, penalty, alpha, costs) that "
            "are many orders of magnitude away from them"
        ) from error
