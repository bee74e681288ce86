"""When training ends, and who is told: one value and one clock, handed from solver to solver."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Callback", "Limits"]

Callback = Callable[[int, dict[str, Any]], bool]


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

    @property
    def time_left(self) -> float | None:
        """Seconds until ``max_time``, at least 0; None without a limit."""
        if self.max_time is None:
            return None
        return max(self.max_time - (time.perf_counter() - self.began), 0.0)
