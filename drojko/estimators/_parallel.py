"""Independent jobs, one after the other or on joblib's workers, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from joblib import effective_n_jobs
from sklearn.utils.parallel import Parallel, delayed

from drojko._threads import one_thread
from drojko._validation import is_whole, shown
from drojko.exceptions import DrojkoError, InvalidDataError

__all__ = ["in_parallel", "named", "workers"]


def workers(n_jobs: Any, jobs: int) -> int:
    """How many of some jobs run at once, by joblib's rules and its `parallel_config`.

    >>> workers(None, 5), workers(3, 2)
    (1, 2)
    """
    if n_jobs is not None and (isinstance(n_jobs, bool) or n_jobs == 0 or not _whole(n_jobs)):
        raise InvalidDataError(
            f"n_jobs={shown(n_jobs)}; expected a number of jobs, -1 for one on each core, or None"
        )
    known: Any = effective_n_jobs
    return min(int(known(n_jobs)), jobs)


def _whole(value: Any) -> bool:
    return is_whole(value, 1) or (is_whole(value, -(2**31)) and value < 0)


def in_parallel(
    function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], n_jobs: Any
) -> Generator[Any, None, None]:
    """Yield ``function(*job)`` of each job, in their order, each as soon as it is known.

    With a number of jobs, 1 too, BLAS and torch have one thread each, so that results are the same
    bit by bit; None leaves torch its threads. close() ends what still waits.

    >>> list(in_parallel(pow, [(2, 3), (3, 2)], None))
    [8, 9]
    """
    todo = list(jobs)
    if workers(n_jobs, len(todo)) <= 1:
        if n_jobs is None:
            return (function(*job) for job in todo)
        return (_alone(function, job) for job in todo)
    try:
        run = Parallel(n_jobs=n_jobs, return_as="generator")
    except ValueError:  # a backend that gives all results at once
        run = Parallel(n_jobs=n_jobs)
    found: Any = run(delayed(_alone)(function, job) for job in todo)
    return (result for result in found) if isinstance(found, list) else found


def _alone(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    with one_thread():
        return function(*job)


@contextmanager
def named(where: str) -> Iterator[None]:
    """Say of an error within the block where it was.

    >>> with named("radius=0.1"):
    ...     raise InvalidDataError("X holds NaN")
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: X holds NaN (at radius=0.1)
    """
    try:
        yield
    except DrojkoError as error:
        error.args = (f"{error} (at {where})", *error.args[1:])
        raise
    except Exception as error:  # of a user's own: its message stays
        error.add_note(f"at {where}")
        raise
