"""Reference measures by name, set up so that they stay well inside the ambiguity set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import clone

from drojko.ambiguity import GroundCost
from drojko.ambiguity.ground.columns import Categories
from drojko.exceptions import InvalidDataError
from drojko.measures import (
    KDE,
    ClassConditional,
    Empirical,
    FlowMeasure,
    Gaussian,
    GaussianMixture,
    Grouped,
    Joint,
    LabelledMeasure,
    Measure,
)
from drojko.measures.base import components

__all__ = [
    "NAMES", "atoms_of", "build_reference", "by_class", "count_atoms", "empirical", "is_sampled",
]  # fmt: skip

NAMES = ("empirical", "gaussian", "kde", "mixture", "flow")

#: Bandwidth of a kernel density where no radius limits it, in standard deviations of a class: rules
#: for estimating densities give 0.8 at thirty columns, which doubles the risk of a linear model.
NARROW = 0.1


def build_reference(
    reference: Any, cost: GroundCost, smoothing: float | None, classification: bool, seed: int
) -> LabelledMeasure:
    """Unfitted labelled measure for a name or a measure; fitted ones pass through.

    ``smoothing``: how far (root mean square) a kernel density may move its samples.
    """
    if cost.categories is not None:
        reference = _without_noise(reference, cost.categories)
    if isinstance(reference, LabelledMeasure):
        fitted = reference.__sklearn_is_fitted__()
        return reference if fitted else cast(LabelledMeasure, clone(reference))
    if isinstance(reference, str) and reference in NAMES:
        template = _template(reference, cost, smoothing, seed)
    elif isinstance(reference, Measure):
        template = cast(Measure, clone(reference))
    else:
        raise InvalidDataError(
            f"reference={reference!r}; expected one of {', '.join(NAMES)} or a measure from "
            "drojko.measures"
        )
    return ClassConditional(template) if classification else Joint(template)


def _without_noise(reference: Any, categories: Categories) -> Any:
    """The reference, if it leaves categories as they are; a KDE is told to."""
    columns = categories.every_column
    if isinstance(reference, KDE):
        fixed = [] if reference.fixed is None else np.atleast_1d(reference.fixed).tolist()
        return cast(Any, clone(reference)).set_params(fixed=[*fixed, *columns.tolist()])
    smooths = reference in ("gaussian", "mixture", "flow") if isinstance(reference, str) else False
    if isinstance(reference, Measure):
        smooths = not isinstance(reference, Empirical)
    elif isinstance(reference, LabelledMeasure) and reference.__sklearn_is_fitted__():
        for part in components(reference):
            width = getattr(part, "bandwidth_", None)
            smooths |= width is not None and bool(np.asarray(width)[columns].any())
            smooths |= width is None and not isinstance(part, Empirical)
    if smooths:
        raise InvalidDataError(
            f"reference={reference!r} would smooth the categorical columns, whose values are "
            "categories: use 'kde', which leaves them as they are, or 'empirical'"
        )
    return reference


def _template(name: str, cost: GroundCost, smoothing: float | None, seed: int) -> Measure:
    if name == "kde":
        return KDE(
            "auto" if smoothing is not None else NARROW,
            max_shift=smoothing,
            shift_weights=np.where(cost.mutable, cost.weights, 0.0).tolist(),
            fixed=np.flatnonzero(~cost.mutable).tolist(),
        )
    if name in ("mixture", "flow"):
        return (GaussianMixture if name == "mixture" else FlowMeasure)(random_state=seed)
    return Gaussian() if name == "gaussian" else Empirical()


def empirical(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, groups: Any, classification: bool
) -> LabelledMeasure:
    """The empirical measure of rows, of each group where ``groups`` (members, names) are given."""
    plain = ClassConditional(Empirical()) if classification else Joint(Empirical())
    if groups is None:
        if classification and not (mass := np.bincount(y, weight)).all():
            # Of one rank, whose rows need not have all classes.
            return by_class(lambda rows: Empirical(), x, y, weight, len(mass))
        return plain.fit(x, y, sample_weight=weight)
    members, names = groups
    fitted = Grouped(plain).fit(x, y, sample_weight=weight, groups=members)
    fitted.names_ = names
    return fitted


def by_class(
    template: Callable[[int], Any], x: np.ndarray, labels: np.ndarray, mass: np.ndarray, n: int
) -> ClassConditional:
    """A measure per class, by its number of rows; classes without mass keep their place."""
    parts: list[Measure] = []
    for k in range(n):
        inside = (labels == k) & (mass > 0)
        if not inside.any():  # never drawn
            parts.append(Empirical(x[:1])._ready())
        else:
            parts.append(template(int(inside.sum())).fit(x[inside], mass[inside]))
    return ClassConditional.from_measures(parts, np.bincount(labels, mass, n))


def atoms_of(reference: LabelledMeasure, count: int) -> tuple[Any, np.ndarray | None]:
    """All points of an empirical reference, and the index of the group of each."""
    unused = torch.Generator()
    if isinstance(reference, Grouped):
        *points, index = reference.grouped_points(count, unused)
        return tuple(points), index.numpy()
    return reference.points(count, unused), None


def is_sampled(reference: LabelledMeasure) -> bool:
    """Whether expectations under the reference are Monte-Carlo averages."""
    return not all(isinstance(part, Empirical) for part in components(reference))


def count_atoms(reference: LabelledMeasure, n: int) -> int:
    """How many points an empirical reference has; ``n`` for other ones."""
    parts = components(reference)
    sizes = [len(part.atoms_) for part in parts if hasattr(part, "atoms_")]
    return sum(sizes) if len(sizes) == len(parts) else n
