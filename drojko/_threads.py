"""One thread for BLAS, and for torch where work is small, and the caller's setting given back.

Sums over blocks of rows that stay in cache are products too small to share: on several threads
BLAS spends five times the processor time on them. Small tensor work runs 10 to 100 times faster on
one thread, because the OpenMP pools of torch and scikit-learn spin while they wait for each other.

A thread count is a setting of the process, so it is counted who holds it: only the first one in
saves the caller's setting and only the last one out restores it. Saving and restoring in each fit
would race: a fit that starts while another one runs would save "1" and restore it for good.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

#: Number of matrix entries below which one torch thread is the better choice.
SMALL = 1_000_000

_lock = threading.Lock()


class _Held:
    """A setting held at one; ``set_one`` does it and returns how the old value is restored."""

    def __init__(self, set_one: Callable[[], Callable[[], object]]) -> None:
        self.set_one, self.depth = set_one, 0
        self.restore: Callable[[], object] = lambda: None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with _lock:
            restore = self.set_one()
            if self.depth == 0:
                self.restore = restore
            self.depth += 1
        try:
            yield
        finally:
            with _lock:
                self.depth -= 1
                if self.depth == 0:
                    self.restore()


def _one_torch_thread() -> Callable[[], object]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return lambda: torch.set_num_threads(before)


@cache
def _libraries() -> ThreadpoolController:
    """BLAS of NumPy and SciPy. MKL follows torch, which may share it."""
    return ThreadpoolController().select(internal_api=["openblas", "blis", "flexiblas"])


def _one_blas_thread() -> Callable[[], object]:
    return _libraries().limit(limits=1).restore_original_limits


_torch, _blas = _Held(_one_torch_thread), _Held(_one_blas_thread)


@contextmanager
def one_thread(small: bool = True) -> Iterator[None]:
    """Run the block on one BLAS thread; nests, and is safe in concurrent fits.

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
    with ExitStack() as held:
        held.enter_context(_blas())
        if small:
            held.enter_context(_torch())
        yield
