"""Processes that work on parts of one problem: sums, rows and errors that all of them see.

Every exchange begins with a word on how each rank is: one that has failed, or was interrupted,
says so where others expect a sum, and all end together. The word has room for a short sum, which
needs no other exchange: what takes time are exchanges, not their bytes. Sums are made in float64
and in one order, so that ranks which compute the same from them stay equal bit by bit.
"""

from __future__ import annotations

import builtins
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from drojko import exceptions
from drojko.exceptions import DrojkoError, InvalidDataError

__all__ = ["Ranks", "exchanged", "joined", "world"]

T = TypeVar("T")

#: How a rank is; what it does there, which has to be the same on all.
_WELL, _INTERRUPTED, _FAILED = 0, 1, 2
_END, _SUM, _GATHER, _OBJECTS, _LARGEST, _SAME = range(1, 7)
#: A word: ranks that failed, that were interrupted, digits of what they do and their squares, by
#: which sums tell whether all do the same; then a sum of so many numbers at most.
_DIGITS, _BASE = 6, 1024
_HEAD = 2 + 2 * (1 + _DIGITS)
_SHORT = 112
#: Seconds after which another Ctrl-C no longer waits for the other ranks.
_PATIENT = 1.0


def world(group: Any = None) -> tuple[int, int]:
    """How many processes there are, and which one this is: (1, 0) where there are no others.

    >>> world()
    (1, 0)
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    return max(distributed.get_world_size(group), 1), max(distributed.get_rank(group), 0)


def exchanged(part: Any, group: Any = None) -> list[Any]:
    """The parts of all ranks, in their order; a part that is an error is raised on all of them.

    >>> exchanged("mine")
    ['mine']
    """
    ranks = world(group)[0]
    parts: list[Any] = [part]
    if ranks > 1:
        parts = [None] * ranks
        distributed.all_gather_object(parts, part, group=group)
    for number, other in enumerate(parts):
        if isinstance(other, DrojkoError):
            raise type(other)(f"rank {number}: {other}") if ranks > 1 else other
    return parts


def joined(name: str, parts: Sequence[Any]) -> Any:
    """One array of the ranks' parts; some may have none only where all have none.

    >>> joined("losses", [np.ones(1), np.zeros(2)]), joined("weights", [None, None])
    (array([1., 0., 0.]), None)
    """
    given = [part is not None for part in parts]
    if not any(given):
        return None
    if not all(given):
        raise InvalidDataError(
            f"{name}: rank {given.index(False)} gave none and rank {given.index(True)} did; give "
            "them on every rank or on none"
        )
    if len(parts) == 1:
        return parts[0]
    if all(hasattr(part, "columns") for part in parts):
        import pandas as pd

        return pd.concat(parts, ignore_index=True)
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise InvalidDataError(f"{name} of the ranks do not fit together: {error}") from error


class Ranks:
    """The processes of a group, and what they have said to each other.

    Parameters
    ----------
    group : ProcessGroup
        Of a backend that takes tensors of the CPU (gloo).

    Attributes
    ----------
    size, rank : int
    busy : bool
        Whether all ranks work on the same problem, within `together`.
    calls, sent : int
        Exchanges so far, and the bytes that this rank gave to them.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.size, self.rank = world(group)
        self.busy = False
        self.calls = self.sent = 0
        self._interrupted: float | None = None
        self._error: BaseException | None = None
        self._lost = False

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, size={self.size})"

    # All of them ---------------------------------------------------------------------------------

    def together(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, where it ends well on all ranks; otherwise an error on all.

        Ctrl-C, on whichever rank, is `KeyboardInterrupt` on all of them at the next exchange.
        """
        if self.busy:
            return work()
        self.busy, self._error, self._interrupted = True, None, None
        handler, main = None, threading.current_thread() is threading.main_thread()
        try:
            if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                handler = signal.signal(signal.SIGINT, self._interrupt)
            try:
                found = work()
                self._say(_END)
            except BaseException as error:
                self._fail(error)
                raise
        finally:
            self.busy = False
            if handler is not None:
                signal.signal(signal.SIGINT, handler)
        if self._interrupted is not None:  # after the last exchange
            raise KeyboardInterrupt
        return found

    def _interrupt(self, number: int, frame: Any) -> None:
        """Wait for an exchange, so that no rank is left in one; not for ever."""
        now = time.monotonic()
        if self._interrupted is not None and now - self._interrupted > _PATIENT:
            self._lost = True  # perhaps within an exchange: the others find the line cut
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or now

    def _say(
        self, what: int, size: int = 0, how: int | None = None, part: np.ndarray | None = None
    ) -> np.ndarray:
        """Tell how this rank is and hear of the others, who do the same; raise what ended one.

        Returns the sum of short parts.
        """
        if self._error is not None:  # the others have left
            raise self._error
        if how is None:
            how = _WELL if self._interrupted is None else _INTERRUPTED
        heard = self._heard(what, size, how, part)
        self.calls += 1
        failed, interrupted = heard[:2]
        if failed:
            self._error = self._told(None)
            raise self._error
        if interrupted:
            self._interrupted = None
            raise KeyboardInterrupt("Ctrl-C on one of the ranks")
        digits, squares = heard[2:_HEAD].reshape(2, -1)
        if (self.size * squares != digits**2).any():  # equal only where all say the same
            self._lost = True
            self._error = DrojkoError(
                "the ranks are out of step: they got different numbers from the same data, or run "
                "different code. Start them with the same program and versions on like processors"
            )
            raise self._error
        return heard[_HEAD:]

    def _heard(self, what: int, size: int, how: int, part: np.ndarray | None = None) -> np.ndarray:
        """The sum of the words of all ranks."""
        word = np.zeros(_HEAD + _SHORT)
        word[:2] = how == _FAILED, how == _INTERRUPTED
        digits = [what, *(size // _BASE**k % _BASE for k in range(_DIGITS))]
        word[2:_HEAD] = *digits, *(digit * digit for digit in digits)
        if part is not None:
            word[_HEAD : _HEAD + part.size] = part.ravel()
        self._reached(lambda: distributed.all_reduce(torch.from_numpy(word), group=self.group))
        return word

    def _reached(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            self._lost = True
            self._error = DrojkoError(
                f"another rank has ended, or cannot be reached ({str(error).splitlines()[0]}): "
                "see what it printed"
            )
            raise self._error from error

    def _fail(self, error: BaseException) -> None:
        """Tell the others why this rank leaves, unless they know, or are gone."""
        if error is self._error or self._lost:
            return
        if self._error is None:
            with suppress(BaseException):
                self._heard(0, 0, _FAILED)
                self._told(error)
        self._error = error

    def _told(self, error: BaseException | None) -> BaseException:
        """The error of the first rank that has one, as the others raise it."""
        names = [kind.__name__ for kind in type(error).__mro__]
        own = None if error is None else (names, str(error))
        parts: list[Any] = [None] * self.size
        self._reached(lambda: distributed.all_gather_object(parts, own, group=self.group))
        rank, (names, text) = next((k, part) for k, part in enumerate(parts) if part is not None)
        if names[0] == "KeyboardInterrupt":
            return KeyboardInterrupt(f"rank {rank} was interrupted")
        known = [getattr(exceptions, name, None) for name in names]
        known += [getattr(builtins, name) for name in names if name in _PLAIN]
        kind = next(filter(None, known), DrojkoError)
        return kind(f"rank {rank}: {text}" if text else f"rank {rank}: {names[0]}")

    # Exchanges -----------------------------------------------------------------------------------

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of the ranks' arrays of one shape, float64, the same bits on all of them."""
        out = np.array(array, dtype=np.float64)
        self.sent += out.nbytes
        if out.size <= _SHORT:
            return self._say(_SUM, out.size, part=out)[: out.size].reshape(out.shape)
        self._say(_SUM, out.size)
        flat = torch.from_numpy(out.reshape(-1))
        self._reached(lambda: distributed.all_reduce(flat, group=self.group))
        return out

    def any(self, flag: bool) -> bool:
        """Whether it holds on one of the ranks."""
        return self.largest(float(flag)) > 0.0

    def largest(self, value: Any) -> Any:
        """The largest of the ranks' numbers, or entry by entry of their arrays."""
        out = np.array(value, dtype=np.float64)
        self._say(_LARGEST, out.size)
        flat = torch.from_numpy(out.reshape(-1))
        most = distributed.ReduceOp.MAX
        self._reached(lambda: distributed.all_reduce(flat, most, self.group))
        self.sent += out.nbytes
        return out if np.ndim(value) else float(out)

    def gather(self, part: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
        """The ranks' rows one below the other; ``sizes`` says how many each of them has."""
        part = np.ascontiguousarray(part)
        each = int(np.prod(part.shape[1:], dtype=int))
        most = max(sizes)
        self._say(_GATHER, most * each)
        whole = np.empty((self.size, most, *part.shape[1:]), dtype=part.dtype)
        if whole.size:
            own = np.zeros(whole.shape[1:], dtype=part.dtype)
            own[: len(part)] = part
            into = list(torch.from_numpy(whole).unbind())
            out = torch.from_numpy(own)
            self._reached(lambda: distributed.all_gather(into, out, group=self.group))
        self.sent += part.nbytes
        if min(sizes) == most:
            return whole.reshape(-1, *part.shape[1:])
        return np.concatenate([rows[:count] for rows, count in zip(whole, sizes, strict=True)])

    def check_same(self, array: np.ndarray) -> None:
        """Raise where an array has other bits on some rank."""
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        self._say(_SAME, int.from_bytes(digest[:7], "big"))

    def objects(self, part: Any) -> list[Any]:
        """A picklable object of each rank, in their order."""
        self._say(_OBJECTS)
        parts: list[Any] = [None] * self.size
        self._reached(lambda: distributed.all_gather_object(parts, part, group=self.group))
        return parts


#: Errors of Python itself that another rank may raise with a sentence.
_PLAIN = {"ArithmeticError", "MemoryError", "OSError", "RuntimeError", "TypeError", "ValueError"}
