"""One thread for BLAS, and for torch where work is small, and the caller's setting given back.

Sums over blocks of rows that stay in cache are products too small to share: on several threads
BLAS spends five times the processor time on them. Small tensor work runs 10 to 100 times faster on
one thread, because the OpenMP pools of torch and scikit-learn spin while they wait for each other.

A thread count is a setting of the process, so it is counted who holds it: only the first one in
saves the caller's setting and only the last one out restores it. Saving and restoring in each fit
would race: a fit that starts while another one runs would save "1" and restore it for good.

Large work is shared block by block instead (`sharing`, `in_order`): whole blocks go to threads that
have one BLAS thread each, and what they give is taken in the order of the blocks, so that sums are
bitwise the same on any number of threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import is_grad_enabled

#: Number of matrix entries below which one torch thread is the better choice.
SMALL = 1_000_000

#: Numbers of an array on which an operation takes longer than handing over the interpreter.
_SLAB = 1 << 17

_lock = threading.Lock()
_threads: ContextVar[int] = ContextVar("threads", default=1)


class _Held:
    """A setting that is one as long as anybody holds it; ``write(None)`` sets it to one.

    Ctrl-C strikes between any two instructions: who leaves twice has left, whatever the first
    time was cut short. A setting ``by_thread`` is the calling thread's own, so that each thread
    restores it when it lets go for the last time.
    """

    def __init__(
        self, read: Callable[[], Any], write: Callable[[Any], object], by_thread: bool
    ) -> None:
        self.read, self.write, self.by_thread = read, write, by_thread
        self.before: Any = None
        self.holders: set[tuple[int, object]] = set()

    def enter(self, holder: tuple[int, object]) -> None:
        """Hold the setting; the first one notes how it was."""
        with _lock:
            if not self.holders:
                self.before = self.read()
            self.holders.add(holder)
            self.write(None)

    def leave(self, holder: tuple[int, object]) -> None:
        """Let go; the last one restores."""
        with _lock:
            self.holders.discard(holder)
            others = any(thread == holder[0] or not self.by_thread for thread, _ in self.holders)
            if not others and self.before is not None:
                self.write(self.before)
            if not self.holders:
                self.before = None


@cache
def _libraries() -> Any:
    """BLAS of NumPy and SciPy. MKL follows torch, which may share it."""
    return ThreadpoolController().select(internal_api=["openblas", "blis", "flexiblas"])


def _blas_threads() -> list[int]:
    return [library.num_threads for library in _libraries().lib_controllers]


def _set_blas_threads(before: list[int] | None) -> None:
    known = _libraries().lib_controllers
    for library, number in zip(known, before or [1] * len(known), strict=True):
        library.set_num_threads(number)


_torch = _Held(torch.get_num_threads, lambda before: torch.set_num_threads(before or 1), True)
_blas = _Held(_blas_threads, _set_blas_threads, False)


@contextmanager
def one_thread(small: bool = True) -> Iterator[None]:
    """Run the block on one BLAS thread; nests, and is safe in concurrent fits.

    Torch's gradient mode and NumPy's handling of errors are restored as well: Ctrl-C can strike
    within ``no_grad`` or ``errstate`` itself.

    Parameters
    ----------
    small : bool, default=True
        Torch is held to one thread as well. False for work that is large enough to share.

    Examples
    --------
    >>> import torch
    >>> from drojko._threads import SMALL, one_thread
    >>> before = torch.get_num_threads()
    >>> with one_thread(1000 < SMALL):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    held, gradients = (_blas, _torch) if small else (_blas,), is_grad_enabled()
    errors = np.geterr()
    holder = threading.get_ident(), object()

    def leave() -> None:
        for setting in held:
            setting.leave(holder)
        torch.set_grad_enabled(gradients)
        np.seterr(**errors)

    try:
        for setting in held:
            setting.enter(holder)
        yield
    finally:
        try:
            leave()
        finally:
            leave()


@contextmanager
def sharing(count: int) -> Iterator[None]:
    """Let `in_order` use so many threads in this block, and in this thread only."""
    before = _threads.set(count)
    try:
        yield
    finally:
        _threads.reset(before)


def slabs(n: int) -> Iterator[slice]:
    """Slices of n numbers for `in_order`, long enough that threads seldom wait for each other.

    They do between any two operations, for the interpreter: of short arrays, two threads are slower
    than one.
    """
    for start in range(0, n, _SLAB):
        yield slice(start, min(start + _SLAB, n))


def in_order(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """``work(item)`` of all items, in their order, on the threads that `sharing` lends.

    Items are taken as they are needed. An error, Ctrl-C too, waits for what is being worked on and
    for nothing else.

    Examples
    --------
    >>> with sharing(2):
    ...     list(in_order(lambda x: x * x, range(5)))
    [0, 1, 4, 9, 16]
    """
    count, errors, left = _threads.get(), np.geterr(), iter(items)
    start = list(islice(left, 2)) if count > 1 else []
    left = chain(start, left)
    if len(start) < 2:  # nothing to share
        yield from map(work, left)
        return
    taking, ended = threading.Lock(), threading.Event()
    room = threading.Semaphore(2 * count)  # for items that are taken and not yet yielded
    waiting: deque[Future] = deque()

    def one() -> bool:
        """Work on the next item, if there is one."""
        with taking:
            future: Future = Future()
            try:
                item = next(left)
            except StopIteration:
                return False
            except BaseException as error:
                future.set_exception(error)
                waiting.append(future)
                return False
            waiting.append(future)
        try:
            with sharing(1):
                future.set_result(work(item))
        except BaseException as error:
            future.set_exception(error)
        return True

    def helping() -> None:
        with one_thread(), np.errstate(**errors):
            while room.acquire() and not ended.is_set() and one():
                pass

    def first() -> Any:
        found = waiting.popleft().result()
        room.release()
        return found

    helpers = [threading.Thread(target=helping, daemon=True) for _ in range(count - 1)]
    try:
        for helper in helpers:
            helper.start()
        # The caller's thread works as well: none has to be woken for each item.
        while True:
            if not room.acquire(blocking=False):
                yield first()
            elif not one():
                break
            while waiting and waiting[0].done():
                yield first()
        while waiting:
            yield first()
    finally:
        ended.set()
        room.release(count)
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
