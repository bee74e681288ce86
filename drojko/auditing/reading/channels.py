"""Pre-processing as an affine map of the raw columns, category indicators included.

A fitted scikit-learn transformer is followed channel by channel. A channel is an affine function of
`Key`s, raw numbers and category indicators; a column that nothing has touched yet is its own key.
What is not affine raises `NotAffine`, and the model is then audited without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Affine", "Key", "NotAffine", "channels_of"]


class NotAffine(Exception):
    """A step that is no affine map of numbers and category indicators."""


@dataclass(frozen=True)
class Key:
    """A raw number (``category`` None), or the indicator that a column has a category."""

    column: int
    category: Any = None


@dataclass(frozen=True)
class Affine:
    """sum of coefficient * key + offset."""

    terms: dict[Key, float] = field(default_factory=dict)
    offset: float = 0.0

    def scaled(self, factor: float, shift: float) -> Affine:
        terms = {key: factor * value for key, value in self.terms.items()}
        return Affine(terms, factor * self.offset + shift)


def combined(matrix: np.ndarray, channels: list[Affine], offset: np.ndarray) -> list[Affine]:
    """Rows of matrix @ channels + offset."""
    result: list[Affine] = []
    for row, shift in zip(matrix, offset):
        terms: dict[Key, float] = {}
        total = float(shift)
        for weight, part in zip(row, channels):
            if weight == 0.0:
                continue
            total += float(weight) * part.offset
            for key, value in part.terms.items():
                terms[key] = terms.get(key, 0.0) + float(weight) * value
        result.append(Affine(terms, total))
    return result


def channels_of(step: Any, channels: list[Affine]) -> list[Affine]:
    """The channels that a fitted transformer makes of its input channels."""
    if step is None or step == "passthrough":
        return channels
    kind = type(step).__name__
    handler = _HANDLERS.get(kind)
    if handler is None or not type(step).__module__.startswith("sklearn."):
        raise NotAffine(f"{kind} is no affine step that is known here")
    if getattr(step, "clip", False):
        raise NotAffine(f"{kind}(clip=True) clips")
    return handler(step, channels)


# Steps ------------------------------------------------------------------------------------------


def _scaler(step: Any, channels: list[Affine]) -> list[Affine]:
    """(x - centre) / scale, where the step has these."""
    centre = step.mean_ if getattr(step, "with_mean", False) else getattr(step, "center_", None)
    scale = np.asarray(1.0 if step.scale_ is None else step.scale_)
    return _diagonal(channels, 1.0 / scale, -np.asarray(0.0 if centre is None else centre) / scale)


def _min_max(step: Any, channels: list[Affine]) -> list[Affine]:
    return _diagonal(channels, step.scale_, step.min_)


def _diagonal(channels: list[Affine], factor: Any, shift: Any) -> list[Affine]:
    each = np.broadcast_to(np.stack(np.broadcast_arrays(factor, shift), -1), (len(channels), 2))
    return [c.scaled(*row) for c, row in zip(channels, each.tolist())]


def _components(step: Any, channels: list[Affine]) -> list[Affine]:
    matrix = np.asarray(step.components_)
    if getattr(step, "whiten", False):
        variance = np.sqrt(step.explained_variance_)
        matrix = matrix / np.maximum(variance, np.finfo(float).eps)[:, None]
    mean = getattr(step, "mean_", None)
    offset = np.zeros(len(matrix)) if mean is None else -matrix @ mean
    return combined(matrix, channels, offset)


def _imputer(step: Any, channels: list[Affine]) -> list[Affine]:
    if step.add_indicator:
        raise NotAffine("an imputer with indicators adds columns")
    statistics = np.asarray(step.statistics_, dtype=object)
    kept = [not (isinstance(s, float) and np.isnan(s)) for s in statistics]
    if not all(kept) and not step.keep_empty_features:
        return [c for c, keep in zip(channels, kept, strict=True) if keep]
    return channels  # complete rows pass unchanged


def _selection(step: Any, channels: list[Affine]) -> list[Affine]:
    return [c for c, keep in zip(channels, step.get_support(), strict=True) if keep]


def _function(step: Any, channels: list[Affine]) -> list[Affine]:
    if step.func is not None:
        raise NotAffine("FunctionTransformer with a function of its own")
    return channels


def _one_hot(step: Any, channels: list[Affine]) -> list[Affine]:
    dropped = step.drop_idx_ if step.drop_idx_ is not None else [None] * len(channels)
    result: list[Affine] = []
    for groups, drop in zip(_indicators(step, channels), dropped, strict=True):
        if drop is not None and any(len(group) > 1 for group in groups):
            raise NotAffine("OneHotEncoder that merges infrequent categories and drops one")
        # A dropped category is one all the same: the first channel names them all.
        every = dict.fromkeys((key for group in groups for key in group), 0.0)
        for k, group in enumerate(groups):
            if drop is None or k != drop:
                result.append(Affine({**every, **dict.fromkeys(group, 1.0)}))
                every = {}
    return result


def _ordinal(step: Any, channels: list[Affine]) -> list[Affine]:
    every = _indicators(step, channels)
    return [
        Affine({key: float(k) for k, group in enumerate(groups) for key in group})
        for groups in every
    ]


def _indicators(step: Any, channels: list[Affine]) -> list[list[list[Key]]]:
    """The categories that an encoder knows of each column, those together that it merges."""
    merged = [None] * len(channels)
    if getattr(step, "_infrequent_enabled", False):
        merged = step.infrequent_categories_
    columns = [next(iter(channel.terms)) for channel in channels if channel.terms]
    if channels != [Affine({Key(key.column): 1.0}) for key in columns]:
        raise NotAffine("an encoder of a transformed column")
    result = []
    for key, categories, rare in zip(columns, step.categories_, merged, strict=True):
        few = set() if rare is None else set(rare.tolist())
        groups = [[Key(key.column, c)] for c in categories.tolist() if c not in few]
        last = [Key(key.column, c) for c in categories.tolist() if c in few]
        result.append([*groups, last] if last else groups)
    return result


def _pipeline(step: Any, channels: list[Affine]) -> list[Affine]:
    for _, inner in step.steps:
        channels = channels_of(inner, channels)
    return channels


def _union(step: Any, channels: list[Affine]) -> list[Affine]:
    if step.transformer_weights:
        raise NotAffine("FeatureUnion with transformer_weights")
    parts = [channels_of(t, channels) for _, t in step.transformer_list if t != "drop"]
    return [channel for part in parts for channel in part]


def _columns(step: Any, channels: list[Affine]) -> list[Affine]:
    if step.transformer_weights:
        raise NotAffine("ColumnTransformer with transformer_weights")
    result: list[Affine] = []
    for name, inner, _ in step.transformers_:
        picked = [channels[i] for i in step._transformer_to_input_indices[name]]
        if picked and not (isinstance(inner, str) and inner == "drop"):
            result += channels_of(inner, picked)
    return result


_HANDLERS = {
    "StandardScaler": _scaler,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": _scaler,
    "RobustScaler": _scaler,
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
