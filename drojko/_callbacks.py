"""The adapter on `sklearn.callback`: progress, monitoring and early stop of a fit.

A fit is a root task with one subtask per outer iteration, ``outer``. `sklearn.callback` is
experimental, so this module is its only importer; where it is missing, or the estimator takes no
callbacks, everything is a no-op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from drojko.exceptions import UnsupportedError


class _NoCallbacks:
    """Stands in for scikit-learn's mixin; refuses callbacks, as nobody would call them."""

    def set_callbacks(self, *callbacks: Any):
        """Raise `UnsupportedError` when callbacks are given."""
        if callbacks:
            raise UnsupportedError("this scikit-learn has no sklearn.callback")
        return self


CallbackSupportMixin: Any = _NoCallbacks
ProgressBar: Any = None
_management: Any = None
try:
    from sklearn.callback import CallbackSupportMixin, ProgressBar
    from sklearn.callback._callback_support import callback_management_context as _management
except ImportError:  # the module moved: fits work, callbacks do not
    pass

__all__ = ["CallbackSupportMixin", "FitProgress"]

Attributes = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class FitProgress:
    """Report the iterations of one fit to the estimator's callbacks; a context manager.

    Parameters
    ----------
    estimator : object
        The estimator being fitted. Without callback support nothing happens. With ``verbose`` and
        neither a `ProgressBar` nor a meta-estimator above, one is attached while the fit lasts.
    max_iter : int or None
        Largest number of outer iterations; None when it is not known.
    X, y : array-like, default=None
        The validated data, ``y`` with its original labels: a monitor scores predictions with it.
    metadata : dict, default=None
        Such as ``{"sample_weight": sample_weight}``.

    Examples
    --------
    >>> from sklearn.base import BaseEstimator
    >>> from drojko._callbacks import CallbackSupportMixin, FitProgress
    >>> class StopAt:
    ...     def setup(self, estimator, context): ...
    ...     def teardown(self, estimator, context): ...
    ...     def on_fit_task_begin(self, estimator, context): ...
    ...     def on_fit_task_end(self, estimator, context):
    ...         return context.task_name == "outer" and context.task_id == 2
    >>> class Estimator(CallbackSupportMixin, BaseEstimator):
    ...     def fit(self, X, y=None):
    ...         with FitProgress(self, 10, X=X, y=y) as progress:
    ...             for self.n_iter_ in range(1, 11):
    ...                 if progress.step():
    ...                     break
    ...         return self
    >>> Estimator().set_callbacks(StopAt()).fit([[0.0]]).n_iter_
    3
    """

    def __init__(
        self,
        estimator: Any,
        max_iter: int | None,
        X: Any = None,
        y: Any = None,
        *,
        metadata: dict[str, Any] | None = None,
    ):
        self._estimator = estimator
        self._max_iter = max_iter
        self._data = {"X": X, "y": y, "metadata": metadata}
        self._root: Any = None
        self._cleanup = ExitStack()

    def __enter__(self) -> FitProgress:
        estimator = self._estimator
        if _management is None or not hasattr(estimator, "_init_callback_context"):
            return self
        with ExitStack() as stack:
            self._attach_progress_bar(stack)
            if not getattr(estimator, "_skl_callbacks", ()):
                return self  # nobody listens: keep no task tree
            # Tears the callbacks down whatever happens, also outside of _fit_context.
            stack.enter_context(_management(estimator))
            self._root = estimator._init_callback_context(max_subtasks=self._max_iter)
            self._root.call_on_fit_task_begin(estimator=estimator, **self._data)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback) -> bool | None:
        if self._root is not None and kind is None:
            with self._cleanup:
                self._root.call_on_fit_task_end(estimator=self._estimator, **self._data)
            return None
        return self._cleanup.__exit__(kind, error, traceback)

    def step(self, attributes: Attributes | None = None) -> bool:
        """End the current outer iteration and return whether a callback asks to stop.

        Parameters
        ----------
        attributes : dict or callable returning one, default=None
            Fitted attributes that suffice to predict with the current iterate. A callable costs
            nothing when no callback wants a fitted estimator.
        """
        if self._root is None:
            return False
        task = self._root.subcontext("outer", max_subtasks=0)
        task.call_on_fit_task_begin(estimator=self._estimator, **self._data)
        return task.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=attributes, **self._data
        )

    def _attach_progress_bar(self, stack: ExitStack) -> None:
        estimator = self._estimator
        own = getattr(estimator, "_skl_callbacks", [])
        nested = hasattr(estimator, "_parent_callback_ctx")
        if not getattr(estimator, "verbose", 0) or nested:
            return
        if not any(isinstance(callback, ProgressBar) for callback in own):
            stack.callback(estimator.set_callbacks, *own)
            estimator.set_callbacks(*own, ProgressBar())
