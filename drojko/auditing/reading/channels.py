"""Pre-processing as an affine map of the raw columns, category indicators included.

A fitted scikit-learn transformer is followed channel by channel. A channel is either a raw column
that nothing has touched yet, or an affine function of `Key`s: raw numbers and category indicators.
What is not affine raises `NotAffine`, and the model is then audited without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Affine", "Key", "NotAffine", "Raw", "channels_of"]


class NotAffine(Exception):
    """A step that is no affine map of numbers and category indicators."""


@dataclass(frozen=True)
class Key:
    """A raw number (``category`` None), or the indicator that a column has a category."""

    column: int
    category: Any = None


@dataclass(frozen=True)
class Raw:
    """A raw column, as it came in."""

    column: int


@dataclass(frozen=True)
class Affine:
    """sum of coefficient * key + offset."""

    terms: dict[Key, float] = field(default_factory=dict)
    offset: float = 0.0

    def scaled(self, factor: float, shift: float) -> Affine:
        """Factor * self + shift."""
        terms = {key: factor * value for key, value in self.terms.items()}
        return Affine(terms, factor * self.offset + shift)


Channel = Raw | Affine


def numeric(channel: Channel) -> Affine:
    """A raw column read as a number."""
    return Affine({Key(channel.column): 1.0}) if isinstance(channel, Raw) else channel


def combined(matrix: np.ndarray, channels: list[Channel], offset: np.ndarray) -> list[Channel]:
    """Rows of matrix @ channels + offset."""
    parts = [numeric(channel) for channel in channels]
    result: list[Channel] = []
    for row, shift in zip(matrix, offset):
        terms: dict[Key, float] = {}
        total = float(shift)
        for weight, part in zip(row, parts):
            if weight == 0.0:
                continue
            total += float(weight) * part.offset
            for key, value in part.terms.items():
                terms[key] = terms.get(key, 0.0) + float(weight) * value
        result.append(Affine(terms, total))
    return result


def channels_of(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    """The channels that a fitted transformer makes of its input channels.

    ``names`` are the raw columns' names, for transformers that select by name.
    """
    if step is None or step == "passthrough":
        return channels
    kind = type(step).__name__
    handler = _HANDLERS.get(kind)
    if handler is None or not type(step).__module__.startswith("sklearn."):
        raise NotAffine(f"{kind} is no affine step that is known here")
    return handler(step, channels, names)


# Steps ------------------------------------------------------------------------------------------


def _diagonal(channels: list[Channel], factor: Any, shift: Any) -> list[Channel]:
    factors = np.broadcast_to(factor, len(channels))
    shifts = np.broadcast_to(shift, len(channels))
    return [
        numeric(c).scaled(float(f), float(s))
        for c, f, s in zip(channels, factors, shifts, strict=True)
    ]


def _standard(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    scale = step.scale_ if step.scale_ is not None else 1.0
    mean = step.mean_ if step.with_mean and step.mean_ is not None else 0.0
    return _diagonal(channels, 1.0 / np.asarray(scale), -np.asarray(mean) / np.asarray(scale))


def _min_max(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    if step.clip:
        raise NotAffine("MinMaxScaler(clip=True) clips")
    return _diagonal(channels, step.scale_, step.min_)


def _max_abs(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    return _diagonal(channels, 1.0 / step.scale_, 0.0)


def _robust(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    scale = np.asarray(step.scale_ if step.scale_ is not None else 1.0)
    centre = np.asarray(step.center_ if step.center_ is not None else 0.0)
    return _diagonal(channels, 1.0 / scale, -centre / scale)


def _components(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    matrix = np.asarray(step.components_)
    if getattr(step, "whiten", False):
        variance = np.sqrt(step.explained_variance_)
        matrix = matrix / np.maximum(variance, np.finfo(float).eps)[:, None]
    mean = getattr(step, "mean_", None)
    offset = np.zeros(len(matrix)) if mean is None else -matrix @ mean
    return combined(matrix, channels, offset)


def _imputer(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    if step.add_indicator:
        raise NotAffine("an imputer with indicators adds columns")
    statistics = np.asarray(step.statistics_, dtype=object)
    kept = [not (isinstance(s, float) and np.isnan(s)) for s in statistics]
    if not all(kept) and not step.keep_empty_features:
        return [c for c, keep in zip(channels, kept, strict=True) if keep]
    return channels  # complete rows pass unchanged


def _selection(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    return [c for c, keep in zip(channels, step.get_support(), strict=True) if keep]


def _function(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    if step.func is not None:
        raise NotAffine("FunctionTransformer with a function of its own")
    return channels


def _one_hot(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    if getattr(step, "_infrequent_enabled", False):
        raise NotAffine("OneHotEncoder that merges infrequent categories")
    dropped = step.drop_idx_ if step.drop_idx_ is not None else [None] * len(channels)
    result: list[Channel] = []
    for channel, categories, drop in zip(channels, step.categories_, dropped, strict=True):
        if not isinstance(channel, Raw):
            raise NotAffine("an encoder of a transformed column")
        # A dropped category is one all the same: the first channel names them all.
        every = {Key(channel.column, _plain(category)): 0.0 for category in categories}
        for k, key in enumerate(list(every)):
            if drop is None or k != drop:
                result.append(Affine({**every, key: 1.0}))
                every = {}
    return result


def _ordinal(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    if getattr(step, "_infrequent_enabled", False):
        raise NotAffine("OrdinalEncoder that merges infrequent categories")
    result: list[Channel] = []
    for channel, categories in zip(channels, step.categories_, strict=True):
        if not isinstance(channel, Raw):
            raise NotAffine("an encoder of a transformed column")
        terms = {Key(channel.column, _plain(c)): float(k) for k, c in enumerate(categories)}
        result.append(Affine(terms))
    return result


def _plain(category: Any) -> Any:
    return category.item() if isinstance(category, np.generic) else category


def _pipeline(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    for _, inner in step.steps:
        channels = channels_of(inner, channels, names)
    return channels


def _union(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    if step.transformer_weights:
        raise NotAffine("FeatureUnion with transformer_weights")
    parts = [channels_of(t, channels, names) for _, t in step.transformer_list if t != "drop"]
    return [channel for part in parts for channel in part]


def _columns(step: Any, channels: list[Channel], names: list[str]) -> list[Channel]:
    if step.transformer_weights:
        raise NotAffine("ColumnTransformer with transformer_weights")
    known = list(getattr(step, "feature_names_in_", names))
    result: list[Channel] = []
    for _, inner, selected in step.transformers_:
        if isinstance(inner, str) and inner == "drop":
            continue
        picked = [channels[i] for i in _indices(selected, known, len(channels))]
        if picked:
            result += channels_of(inner, picked, names)
    return result


def _indices(selected: Any, names: list[str], n: int) -> list[int]:
    """Positions of a ColumnTransformer's fitted column specification."""
    if isinstance(selected, str):
        return [names.index(selected)]
    if isinstance(selected, slice):
        if isinstance(selected.start, str) or isinstance(selected.stop, str):
            first = names.index(selected.start) if selected.start is not None else 0
            last = names.index(selected.stop) if selected.stop is not None else n - 1
            return list(range(first, last + 1))
        return list(range(n))[selected]
    if isinstance(selected, int | np.integer):
        return [int(selected)]
    items = list(selected)
    if items and isinstance(items[0], bool | np.bool_):
        return [i for i, keep in enumerate(items) if keep]
    return [names.index(item) if isinstance(item, str) else int(item) for item in items]


_HANDLERS = {
    "StandardScaler": _standard,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": _max_abs,
    "RobustScaler": _robust,
    "PCA": _components,
    "TruncatedSVD": _components,
    "SimpleImputer": _imputer,
    "VarianceThreshold": _selection,
    "SelectKBest": _selection,
    "SelectPercentile": _selection,
    "SelectFromModel": _selection,
    "RFE": _selection,
    "RFECV": _selection,
    "FunctionTransformer": _function,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "Pipeline": _pipeline,
    "FeatureUnion": _union,
    "ColumnTransformer": _columns,
}
