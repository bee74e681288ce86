"""One torch thread for small work, and the caller's setting given back.

Small tensor work runs 10 to 100 times faster on one thread, because the OpenMP pools of torch and
scikit-learn spin while they wait for each other. The thread count is a setting of the process,
so the context manager counts its users: only the first one in saves the caller's setting and only
the last one out restores it. Saving and restoring in each fit would race: a fit that starts while
another one runs would save "1" and restore it for good.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Number of matrix entries below which one thread is the better choice.
SMALL = 1_000_000

_lock = threading.Lock()
_depth = 0
_outer = 1


@contextmanager
def one_torch_thread(active: bool = True) -> Iterator[None]:
    """Run the block on one torch thread; nests, and is safe in concurrent fits.

    Parameters
    ----------
    active : bool, default=True
        False leaves the setting alone, for work that is large enough to share.

    Examples
    --------
    >>> import torch
    >>> from drojko._threads import SMALL, one_torch_thread
    >>> before = torch.get_num_threads()
    >>> with one_torch_thread(1000 < SMALL):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    global _depth, _outer
    if not active:
        yield
        return
    with _lock:
        if _depth == 0:
            _outer = torch.get_num_threads()
        _depth += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                torch.set_num_threads(_outer)
