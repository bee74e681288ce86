"""The one module that imports scikit-learn's private names, and a mixin for nested settings.

Third-party estimators need `_fit_context`, parameter constraints and `_check_sample_weight`, all of
them private in scikit-learn. When one of them moves, this file is the only one to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sklearn.base import _fit_context
from sklearn.utils._param_validation import (
    HasMethods,
    Hidden,
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_feature_names_in,
    _check_sample_weight,
    _get_feature_names,
    check_is_fitted,
    validate_data,
)

from drojko.exceptions import InvalidDataError

__all__ = [
    "HasMethods",
    "Hidden",
    "Interval",
    "InvalidParameterError",
    "NestedDefaults",
    "Options",
    "StrOptions",
    "_check_feature_names_in",
    "_check_sample_weight",
    "_fit_context",
    "_get_feature_names",
    "check_classification_targets",
    "check_is_fitted",
    "validate_data",
]


class NestedDefaults:
    """Mixin: a parameter whose default is a settings object, written as None or a shorthand.

    An object as a literal default would be shared by all estimators: one
    ``set_params(ambiguity__radius=0.7)`` would change every other estimator's default. So the
    default is a plain value, and the object is made when a ``ambiguity__*`` key arrives.

    ``_nested_defaults`` maps a parameter to what stands behind its plain values: a callable
    without arguments for None, or a mapping from plain value (None or a string) to such a callable.
    The mixin stands left of `BaseEstimator`.

    Examples
    --------
    >>> from sklearn.base import BaseEstimator
    >>> from drojko._sklearn import NestedDefaults
    >>> from drojko.ambiguity import Wasserstein
    >>> class Estimator(NestedDefaults, BaseEstimator):
    ...     _nested_defaults = {"ambiguity": lambda: Wasserstein(radius=0.1)}
    ...     def __init__(self, ambiguity=None):
    ...         self.ambiguity = ambiguity
    >>> Estimator().set_params(ambiguity__radius=0.7)
    Estimator(ambiguity=Wasserstein(radius=0.7))
    >>> Estimator()._nested("ambiguity")
    Wasserstein(radius=0.1)
    """

    _nested_defaults: Mapping[str, Callable[[], Any] | Mapping[Any, Callable[[], Any]]] = {}

    def set_params(self, **params: Any):
        """Set parameters; ``name__key`` on a plain value first makes its settings object.

        Parameters
        ----------
        **params : dict
            As in `sklearn.base.BaseEstimator.set_params`.

        Returns
        -------
        self : object
        """
        for name in self._nested_defaults:
            if any(key.startswith(f"{name}__") for key in params):
                value = params.get(name, getattr(self, name))
                params[name] = self._settings(name, value)
        return super().set_params(**params)  # pyright: ignore[reportAttributeAccessIssue]

    def _nested(self, name: str) -> Any:
        """Return the settings object that parameter ``name`` stands for; the parameter stays."""
        return self._settings(name, getattr(self, name))

    def _settings(self, name: str, value: Any) -> Any:
        if value is not None and not isinstance(value, str):
            return value
        given = self._nested_defaults[name]
        factories: Mapping[Any, Callable[[], Any]] = {None: given} if callable(given) else given
        if value not in factories:
            raise InvalidDataError(
                f"{type(self).__name__}: {name}={value!r} is unknown; give a settings object or "
                f"one of {', '.join(repr(known) for known in factories)}"
            )
        return factories[value]()
