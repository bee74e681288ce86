"""What surrounds a fit: scikit-learn's context, and Ctrl-C around all else."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from drojko._driver import keeping
from drojko._sklearn import _fit_context

__all__ = ["DEPTH", "fitting"]

#: Frames from `BaseDRO._fit` to who called `fit`, for warnings that point there.
DEPTH = 6


def fitting(fit: Callable) -> Callable:
    """A fit in scikit-learn's context that is there as a whole or not at all.

    One that fails before it keeps a model leaves the estimator as it was, an earlier model with
    its columns and classes included. Ctrl-C carries the estimator once an iteration has ended;
    around all else, as a signal can strike after the last line of a fit, too.
    """
    inside = _fit_context(prefer_skip_nested_validation=True)(fit)

    @wraps(fit)
    def outermost(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(self.__dict__)

        def kept() -> bool:  # another history as soon as a model of this fit is stored
            return self.__dict__.get("_history") is not before.get("_history")

        def work() -> Any:
            try:
                return inside(self, *args, **kwargs)
            except BaseException:
                if not kept():
                    self.__dict__.clear()
                    self.__dict__.update(before)
                raise

        return keeping(work, lambda: self if kept() else None)

    return outermost
