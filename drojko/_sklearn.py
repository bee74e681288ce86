"""The one module that imports scikit-learn's private names: nested settings, checks of arrays.

Third-party estimators need `_fit_context`, parameter constraints and `_check_sample_weight`, all of
them private in scikit-learn. When one of them moves, this file is the only one to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from numbers import Real
from typing import Any, Self, cast

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, softmax
from sklearn import get_config, set_config
from sklearn.base import ClassifierMixin, _fit_context
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

from drojko._driver import RANKS, keeping
from drojko._validation import (
    check_scale,
    culprit,
    did_you_mean,
    floats,
    is_moderate,
    is_real,
    plain_tensor,
    refuse,
    set_known,
    shown,
)
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = [
    "DEPTH",
    "ExplainedParameters",
    "HasMethods",
    "Hidden",
    "Interval",
    "InvalidParameterError",
    "LogitClassifier",
    "NestedDefaults",
    "Options",
    "StrOptions",
    "_check_feature_names_in",
    "_get_feature_names",
    "check_is_fitted",
    "checked_data",
    "checked_weight",
    "fitting",
    "plain",
    "odd_columns",
    "pandas_table",
    "validate_data",
]


#: Entries from which on a read of them counts.
_LARGE = 2**20
#: Frames from `BaseDRO._fit` to who called `fit`, for warnings that point there.
DEPTH = 6


def fitting(fit: Callable) -> Callable:
    """A fit in scikit-learn's context that is there as a whole or not at all.

    One that fails before it keeps a model leaves the estimator as it was, an earlier model with
    its columns and classes included. Ctrl-C carries the estimator once an iteration has ended;
    around all else, as a signal can strike after the last line of a fit, too.
    """
    inside = _fit_context(prefer_skip_nested_validation=True)(fit)
    inside_shards = _fit_context(prefer_skip_nested_validation=True)(_fit_shards)

    @wraps(fit)
    def outermost(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(self.__dict__)

        def kept() -> bool:  # another history as soon as a model of this fit is stored
            return self.__dict__.get("_history") is not before.get("_history")

        def work() -> Any:
            ranks = RANKS.get()
            try:
                if ranks is None:
                    return inside(self, *args, **kwargs)
                return ranks.together(lambda: inside_shards(self, *args, **kwargs))
            except BaseException:
                if not kept():
                    self.__dict__.clear()
                    self.__dict__.update(before)
                raise

        config = get_config()
        try:
            return keeping(work, lambda: self if kept() else None)
        finally:  # Ctrl-C can strike within scikit-learn's own contexts
            if get_config() != config:
                set_config(**config)

    return outermost


def _fit_shards(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The rows of this process are a part of those of all."""
    if not hasattr(self, "_fit_shards"):
        raise UnsupportedError(
            f"{type(self).__name__} is fitted on one process: within drojko.distributed.sharded() "
            "fit DROClassifier or DRORegressor"
        )
    return self._fit_shards(RANKS.get(), *args, **kwargs)


class ExplainedParameters:
    """Mixin left of `BaseEstimator`: errors of scikit-learn's checks say what to give instead."""

    _parameter_constraints: Mapping[str, Any]

    def _validate_params(self) -> None:
        try:
            super()._validate_params()
        except InvalidParameterError as error:
            raise InvalidParameterError(f"{error}{self._hint(_named(str(error)))}") from None
        for name, value in self.get_params(deep=False).items():
            number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
            if number and not is_real(value, infinite=name == "max_time"):
                raise InvalidDataError(
                    f"{type(self).__name__}: {name}={shown(value)}; expected a finite number"
                )
            kinds = self._parameter_constraints.get(name, ())
            if isinstance(value, bool | np.bool_) and not {"boolean", "verbose"} & {
                kind for kind in kinds if isinstance(kind, str)
            }:
                raise InvalidDataError(
                    f"{type(self).__name__}: {name}={value}; expected a number, not a boolean"
                )

    def _hint(self, name: str) -> str:
        """What to give instead of the value that a parameter has."""
        value = getattr(self, name, None)
        kinds = self._parameter_constraints.get(name, ())
        names = sorted(n for kind in kinds if isinstance(kind, StrOptions) for n in kind.options)
        return f" {did_you_mean(value, names)}" if isinstance(value, str) and names else ""


def _named(message: str) -> str:
    """The parameter that a message of scikit-learn names."""
    return message.partition("'")[2].partition("'")[0]


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

    def set_params(self, **params: Any) -> Self:
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
        return set_known(self, super().set_params, params)  # pyright: ignore[reportAttributeAccessIssue]

    def _nested(self, name: str) -> Any:
        """Return the settings object that parameter ``name`` stands for; the parameter stays."""
        return self._settings(name, getattr(self, name))

    def _settings(self, name: str, value: Any) -> Any:
        if value is not None and not isinstance(value, str):
            return value
        given = self._nested_defaults[name]
        factories: Mapping[Any, Callable[[], Any]] = {None: given} if callable(given) else given
        if value not in factories:
            hint = did_you_mean(value, filter(None, factories), "").split("? ")[0]
            hint = f"{hint}? " if hint.startswith("did") else ""
            raise InvalidDataError(
                f"{type(self).__name__}: {name}={shown(value)} is unknown; "
                f"{hint}give a settings object or one of {', '.join(map(repr, factories))}"
            )
        return factories[value]()


class LogitClassifier(ClassifierMixin):
    """Classes and probabilities from the logits of ``decision_function``."""

    decision_function: Any
    classes_: np.ndarray

    def _encode(self, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Keep the classes; labels, plain numbers where an object array holds such, and indices."""
        if y.dtype == object and len({type(label) for label in y} - {str}) == 1:
            values = np.array(y.tolist())
            y = values if values.dtype.kind in "biuf" else y
        try:
            classes, index = _classes(y)
        except TypeError as error:
            kinds = sorted({type(plain(label)).__name__ for label in y})
            raise InvalidDataError(
                f"y mixes labels of types that have no order ({', '.join(kinds)}): make them all "
                "numbers or all strings"
            ) from error
        if y.dtype.kind not in "biu" or 2 * len(classes) > len(y):  # whole numbers are sound
            check_classification_targets(y)
        if len(classes) < 2:
            raise InvalidDataError(
                f"{type(self).__name__} got 1 class, {plain(classes[0])!r}, in y; it needs 2 or "
                "more"
            )
        self.classes_ = classes
        return y, index

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class of each row, shape (n,)."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[index]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities, shape (n, n_classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([expit(-scores), expit(scores)])
        return softmax(scores, axis=1)


def _classes(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted labels, and the index of each row's; of few numbers without sorting all of them."""
    if y.dtype.kind not in "biu" or y.size < 20_000 or not -1e6 < y.min() <= y.max() < 1e6:
        return np.unique(y, return_inverse=True)
    least = int(y.min())
    at = y if least == 0 and y.dtype == np.int64 else y.astype(np.int64) - least
    count = np.bincount(at)
    known = np.flatnonzero(count)
    classes = (known + least).astype(y.dtype)
    return classes, at if len(known) == len(count) else (np.cumsum(count > 0) - 1)[at]


def checked_weight(sample_weight: Any, X: Any) -> np.ndarray:
    """Non-negative weights of the rows, float64, not all zero; ones for None."""
    if sample_weight is not None and not is_real(sample_weight):
        sample_weight = floats(sample_weight, "sample_weight")
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    largest = float(weight.max(initial=0.0))
    if not largest > 0:
        raise InvalidDataError("sample_weight sums to zero: no sample is left")
    if not 1e-100 < largest < 1e100:  # their sum, or a square, is no number: by a power of two
        weight = np.ldexp(weight, -math.frexp(largest)[1])
    return weight


def checked_data(
    estimator: Any,
    X: Any,
    y: Any = "no_validation",
    *,
    table: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """scikit-learn's `validate_data` to float arrays, with the culprit's column named.

    ``table`` is what takes a sparse matrix in; None: none is accepted.
    """
    kwargs = {"dtype": [np.float64, np.float32], "order": "C", **kwargs}
    X = plain_tensor(X, "X")
    if table is not None and issparse(X):
        return _checked_sparse(estimator, X, y, table, kwargs)
    columns: Any = getattr(X, "columns", None)
    if getattr(columns, "is_unique", True) is False:
        twice = columns[columns.duplicated()][0]
        raise InvalidDataError(f"X has two columns named {twice!r}: rename one of them")
    if not isinstance(y, str):
        y = _checked_targets(y, numeric=bool(kwargs.get("y_numeric")))
    sound, large = False, isinstance(X, np.ndarray) and X.size >= _LARGE
    X, found = cast("Any", X), cast("Any", None)
    try:
        if large and not isinstance(y, str) and "ensure_all_finite" not in kwargs:
            # One read tells both whether numbers are finite and how large they are.
            found = validate_data(estimator, X, y, **kwargs, ensure_all_finite=False)
            sound = is_moderate(np.asarray(found[0]))
        if not sound:
            found = validate_data(estimator, X, y, **kwargs)
        if not isinstance(y, str):  # to learn from: predictions need no squares
            if not sound:
                check_scale(np.asarray(found[0]), "X")
            if kwargs.get("y_numeric"):
                check_scale(np.asarray(found[1]), "y")
        return found
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, InvalidDataError):
            raise
        text = str(error)
        objects = isinstance(X, np.ndarray) and X.dtype == object  # scikit-learn's own words
        if "dense data is required" in text or (objects and isinstance(error, TypeError)):
            raise
        known = getattr(estimator, "feature_names_in_", None) if "feature names" in text else None
        found = odd_columns(columns, known) or culprit(X)
        if found is not None:
            raise InvalidDataError(f"{found}. {text}") from error
        if isinstance(error, ValueError):
            raise
        raise InvalidDataError(f"X is {shown(X)}, y is {shown(y)}: {text}") from error


def pandas_table(X: Any) -> Any:
    """A table of another library, such as polars, as one of pandas; all else as it is."""
    if not hasattr(X, "columns") or hasattr(X, "iloc") or not hasattr(X, "to_pandas"):
        return X
    try:
        return X.to_pandas()
    except ImportError as error:
        kind = type(X).__module__.split(".")[0]
        raise InvalidDataError(
            f"X is a table of {kind}, which {error}: give a pandas one"
        ) from None


def odd_columns(columns: Any, known: Any) -> str | None:
    """What is wrong with the columns of a table for a model that knows others; None: nothing.

    Examples
    --------
    >>> from drojko._sklearn import odd_columns
    >>> odd_columns(["a", "c"], ["a", "b"])
    "X lacks 'b' and has 'c' more than the model was fitted on: give it X[['a', 'b']]"
    """
    if columns is None:
        return None
    have = list(map(str, columns))
    if len({*have}) < len(have):
        twice = next(name for k, name in enumerate(have) if name in have[:k])
        return f"X has two columns named {twice!r}: rename one of them"
    if known is None or list(columns) == list(known):
        return None
    want = list(map(str, known))
    lost, more = ([n for n in a if n not in set(b)] for a, b in ((want, have), (have, want)))
    if len(lost) == len(want):  # names that say nothing, as a model fitted on an array has them
        return None
    wanted = f"X[{want}]" if len(want) <= 6 else "X[model.feature_names_in_]"
    if not lost and not more:
        pair = next((a, b) for a, b in zip(have, want, strict=True) if a != b)
        return (
            f"X has the columns of the fit in another order, {pair[0]!r} where {pair[1]!r} was: "
            f"reorder them, {wanted}"
        )
    names = [", ".join(map(repr, part[:5])) + ", ..." * (len(part) > 5) for part in (lost, more)]
    lacks = f"lacks {names[0]}" if lost else ""
    has = f"has {names[1]} more than the model was fitted on" if more else ""
    words = " and ".join(filter(None, (lacks, has)))
    return f"X {words}: give it {wanted}" if more else f"X {words}, which the model was fitted on"


def _checked_sparse(
    estimator: Any, X: Any, y: Any, table: Callable[[Any], Any], kwargs: dict[str, Any]
) -> Any:
    """`checked_data` of a sparse matrix: its entries are looked at, absent ones are zeros."""
    numeric = bool(kwargs.get("y_numeric"))
    if not isinstance(y, str):
        y = _checked_targets(y, numeric=numeric)
    found = validate_data(estimator, X, y, **{**kwargs, "order": None, "accept_sparse": "csr"})
    if isinstance(y, str):
        return table(found)
    X, y = found
    check_scale(X.data, "X")
    if numeric:
        check_scale(np.asarray(y), "y")
    return table(X), y


def _checked_targets(y: Any, *, numeric: bool) -> Any:
    """Labels or targets as an array, with words about what cannot be one."""
    if y is None:
        return y
    y = plain_tensor(y, "y")
    if isinstance(y, type):
        raise InvalidDataError(f"y is {shown(y)}; expected one label or target per row, (n,)")
    if len(getattr(y, "shape", ())) == 2 and y.shape[1] != 1:
        raise InvalidDataError(f"y is {shown(y)}; expected one label or target per row, (n,)")
    if numeric:
        refuse(y, "y")
        try:
            array = np.asarray(y)
        except ValueError as error:  # rows of different lengths
            raise InvalidDataError(f"y={shown(y)} is no array: {error}") from None
        if array.dtype.kind in "OUSV":
            return floats(y, "y")
        return y
    try:
        array = np.asarray(y)
        missing = [_no_label(label) for label in array.ravel()] if array.dtype == object else []
    except (TypeError, ValueError):
        missing = []
    if any(missing):
        first = missing.index(True)
        raise InvalidDataError(
            f"y[{first}] is {array.ravel()[first]} ({sum(missing)} of {len(missing)} labels are "
            "missing): drop these rows, or give them a label"
        )
    return y


def _no_label(label: Any) -> bool:
    """Whether a label is None, NaN or pandas' NA, whose comparisons are no booleans."""
    return label is None or str(label) == "<NA>" or (isinstance(label, float) and label != label)


def plain(value: Any) -> Any:
    """A numpy scalar as the Python value that messages should show."""
    return value.item() if isinstance(value, np.generic) else value
