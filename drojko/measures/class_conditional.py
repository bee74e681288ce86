"""One measure for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from drojko._validation import shown
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import masses, matrix, queries, spread, vector
from drojko.measures.base import LabelledMeasure, Measure, choose, draws, room
from drojko.measures.kde import KDE

__all__ = ["ClassConditional"]


@dataclass(eq=False, repr=False)
class ClassConditional(LabelledMeasure):
    """P(dx, y = k) = pi_k P_k(dx): class weights and a measure for each class.

    Parameters
    ----------
    measure : Measure, default=None
        Template, cloned and fitted to the rows of each class; None: `KDE()`.
    measures : sequence of Measure, default=None
        The P_k themselves, for use without `fit`.
    weights : array-like of shape (K,), default=None
        With `measures`: pi, normalised; None: equal.

    Attributes
    ----------
    measures_ : list of Measure
    weights_ : ndarray of shape (K,)

    Notes
    -----
    Labels are class indices 0..K-1 (torch.long in what is drawn); each needs positive weight.
    A class may consist of one row: what needs a scale takes the standard deviations within
    classes, pooled (of the whole table where those vanish).

    Examples
    --------
    >>> from drojko.measures import ClassConditional, Gaussian
    >>> X, y = [[0.0], [2.0], [10.0], [14.0]], [0, 0, 1, 1]
    >>> P = ClassConditional(Gaussian()).fit(X, y, sample_weight=[1, 1, 3, 3])
    >>> P.weights_.tolist(), P.measures_[1].mean.tolist()
    ([0.25, 0.75], [12.0])
    >>> x, y, w = P.points(100)
    >>> x.shape, y.bincount().tolist(), round(float(w[y == 1].sum()), 9)
    (torch.Size([100, 1]), [25, 75], 0.75)
    """

    _state = "measures_"
    _remedy = "call fit(X, y) first, or use ClassConditional.from_measures"

    measure: Measure | None = None
    _: KW_ONLY
    measures: Sequence[Measure] | None = None
    weights: Any = None

    @classmethod
    def from_measures(cls, measures: Sequence[Measure], weights: Any = None) -> ClassConditional:
        """Combine fitted measures, one a class, with class weights (None: equal)."""
        given: Any = list(measures) if isinstance(measures, list | tuple) else [measures]
        return cls(measures=given, weights=weights)._ready()

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit a clone of the template per class.

        Parameters
        ----------
        X : (n, d)
        y : (n,), class indices 0..K-1.
        sample_weight : (n,), default=None
        """
        template = KDE() if self.measure is None else self.measure
        rows = matrix(X, single=template._single)
        labels = class_indices(y, len(rows)).numpy()
        weights = masses(sample_weight, len(rows))
        mass = np.bincount(labels, weights=weights)
        if not mass.all():
            raise InvalidDataError(
                f"class {mass.argmin()} has no row of positive weight; number the classes 0..K-1"
            )
        # Class after class in one array, of which each class is a slice: `points` is that array.
        order = np.argsort(labels, kind="stable")
        order = order[weights[order] > 0]
        rows, weights = rows[order], weights[order]
        ends = np.bincount(labels[order]).cumsum()
        parts = [(rows[a:b], weights[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
        # Measures with a fit of their own take no scale; on large tables it would be the dear part.
        scaled = template._fit is not None
        scale = pooled_scale(parts, mass / mass.sum()) if scaled else np.ones(rows.shape[1])
        copies: Any = [clone(template) for _ in parts]
        self.measures_ = [c._fit_class(*part, scale) for c, part in zip(copies, parts)]
        self.weights_ = mass / mass.sum()
        return self

    def _construct(self) -> None:
        if self.measures is None:
            return
        given = self.measures if isinstance(self.measures, list | tuple) else [self.measures]
        wrong = [one for one in given if not isinstance(one, Measure)]
        if wrong or not given:
            got = shown(wrong[0] if wrong else self.measures)
            raise InvalidDataError(
                f"measures holds {got}; expected a fitted measure for each class"
            )
        dims = [measure.dim for measure in self.measures]
        if len(set(dims)) != 1:
            raise InvalidDataError(f"measures live on {dims} columns; expected the same number")
        weights = masses(self.weights, len(dims), "weights")
        self.measures_, self.weights_ = list(self.measures), weights / weights.sum()

    @property
    def dim(self) -> int:
        return self._ready().measures_[0].dim

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n pairs: y by class weight, then x from its class."""
        self._ready()
        n, generator = draws(n, generator)
        y = choose(self.weights_, n, generator)
        x = torch.empty((n, self.dim), dtype=torch.float64)
        for k, measure in enumerate(self.measures_):
            if members := int((y == k).sum()):
                x[y == k] = measure.sample(members, generator)
        return x, y

    def points(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the classes' points, class after class, ceil(pi_k n) requested of each.

        Those of empirical classes share memory with their atoms: do not write into them.
        """
        self._ready()
        n, generator = draws(n, generator)
        wanted = [max(1, int(np.ceil(share * n))) if share > 0 else 0 for share in self.weights_]
        pairs = [(k, one) for k, one in enumerate(self.measures_) if wanted[k]]
        sizes: list[Any] = [one._count(wanted[k]) for k, one in pairs]
        some = [one for _, one in pairs]
        whole = None if None in sizes else room(some, sum(sizes), self.dim)
        parts: list[Tensor] = []
        labels, weights, start = [], [], 0
        for (k, one), size in zip(pairs, sizes, strict=True):
            if whole is None:
                x, w = one.points(wanted[k], generator)
                parts.append(x)
            else:  # in place: at no time are there two whole copies
                w = one._points_into(whole[start : start + size], wanted[k], generator)
                start += size
            labels.append(torch.full((len(w),), k))
            weights.append(w * float(self.weights_[k]))
        y, w = torch.cat(labels), torch.cat(weights)
        if whole is not None:
            return whole, y, w
        together = _together(self.measures_, parts)
        return torch.cat(parts) if together is None else torch.from_numpy(together), y, w

    def log_prob(self, x: Any, y: Any) -> Tensor:
        x = queries(x, self.dim)
        y = class_indices(y, len(x), len(self.measures_)).to(x.device)
        out = torch.empty(len(x), dtype=torch.float64, device=x.device)
        for k, measure in enumerate(self.measures_):
            if (y == k).any():
                out[y == k] = measure.log_prob(x[y == k])
        return out


def _together(measures: Sequence[Any], parts: list[Tensor]) -> np.ndarray | None:
    """The array whose slices the classes' points are, where they are atoms as `fit` keeps them."""
    whole = getattr(getattr(measures[0], "atoms_", None), "base", None)
    # Atoms that were loaded from a file may be views of its bytes.
    if not isinstance(whole, np.ndarray) or whole.ndim != 2:
        return None
    if len(whole) != sum(map(len, parts)):
        return None
    start = whole.ctypes.data
    for measure, part in zip(measures, parts, strict=False):
        if getattr(measure, "atoms_", whole).base is not whole or part.data_ptr() != start:
            return None
        start += part.numel() * part.element_size()
    return whole


def class_indices(y: Any, n: int, n_classes: int | None = None) -> Tensor:
    """Return labels as torch.long class indices of shape (n,)."""
    y = vector(y, n)
    whole = y.long()
    top = n_classes or n
    if not (bool((whole == y).all()) and bool(((whole >= 0) & (whole < top)).all())):
        raise InvalidDataError(
            "y must hold class indices 0..K-1"
            + (f" with K = {n_classes}" if n_classes else "")
            + "; numpy.unique(y, return_inverse=True) makes them"
        )
    return whole


def pooled_scale(parts: list[tuple[np.ndarray, np.ndarray]], shares: np.ndarray) -> np.ndarray:
    """Return each column's standard deviation within classes, or overall where that is 0."""
    parts = [(rows, weights / weights.sum()) for rows, weights in parts]
    within = np.sqrt(sum(share * spread(*part) ** 2 for share, part in zip(shares, parts)))
    if (within > 0).all():
        return within
    rows = np.concatenate([rows for rows, _ in parts])
    weights = np.concatenate([share * w for share, (_, w) in zip(shares, parts)])
    return np.where(within > 0, within, spread(rows, weights))
