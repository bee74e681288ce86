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
    """A fit in scikit-learn's context; Ctrl-C carries the estimator once an iteration has ended.

    Around all else: a signal can strike after the last line of a fit, too.
    """
    inside = _fit_context(prefer_skip_nested_validation=True)(fit)

    @wraps(fit)
    def outermost(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.__dict__.get("_history")  # another one as soon as a model of this fit is kept

        def found() -> Any:
            return None if self.__dict__.get("_history") is before else self

        return keeping(lambda: inside(self, *args, **kwargs), found)

    return outermost
