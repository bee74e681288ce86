"""One labelled measure for each group."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures._arrays import masses, matrix, members_of, queries, vector
from drojko.measures.base import LabelledMeasure, Measure, choose, components, draws
from drojko.measures.class_conditional import ClassConditional, class_indices
from drojko.measures.joint import Joint

__all__ = ["Grouped"]


class Grouped(LabelledMeasure):
    """P = sum_g q_g P_g: shares of groups, and a labelled measure for each.

    Parameters
    ----------
    template : LabelledMeasure, default=None
        `ClassConditional` or `Joint`, cloned and fitted to the rows of each group; None:
        `ClassConditional()`. A group need not have all classes.

    Attributes
    ----------
    parts_ : list of LabelledMeasure
    shares_ : ndarray of shape (G,)
        q: masses of the groups over the sum of these; groups may overlap.
    names_ : list
        Labels of the groups.
    classes_ : list of ndarray
        With `ClassConditional`, the class indices that each group has.

    Examples
    --------
    >>> from drojko.measures import ClassConditional, Gaussian, Grouped
    >>> X, y = [[0.0], [2.0], [10.0], [14.0]], [0, 0, 0, 1]
    >>> P = Grouped(ClassConditional(Gaussian())).fit(X, y, groups=["a", "a", "b", "b"])
    >>> P.names_, P.shares_.tolist(), [classes.tolist() for classes in P.classes_]
    (['a', 'b'], [0.5, 0.5], [[0], [0, 1]])
    >>> x, y, w, g = P.grouped_points(100)
    >>> g.bincount().tolist(), round(float(w[g == 1].sum()), 9)
    ([50, 50], 0.5)
    >>> P.mixture([0.0, 1.0]).shares_.tolist()
    [0.0, 1.0]
    """

    _state = "parts_"
    _remedy = "call fit(X, y, groups=...) first"

    def __init__(self, template: LabelledMeasure | None = None):
        self.template = template

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Fit a clone of the template per group.

        Parameters
        ----------
        X : (n, d)
        y : (n,)
        sample_weight : (n,), default=None
        groups : indicator array (n, G), frame of 0/1 columns, or labels (n,)

        Raises
        ------
        InvalidDataError
            Without groups, for rows in no group, groups without weight.
        """
        rows = matrix(X)
        labels = vector(y, len(rows)).numpy()
        weights = masses(sample_weight, len(rows))
        if groups is None:
            raise InvalidDataError("Grouped needs groups=: a label per row, or columns of 0 and 1")
        members, names = members_of(groups, weights)
        mass = weights @ members
        template = ClassConditional() if self.template is None else self.template
        by_class = isinstance(template, ClassConditional)
        self.parts_, self.classes_ = [], []
        for member in members.T:
            inside = (member > 0) & (weights > 0)
            target = labels[inside]
            if by_class:  # a group numbers the classes that it has
                classes, target = np.unique(target.astype(np.int64), return_inverse=True)
                self.classes_.append(classes)
            part: Any = clone(template)
            self.parts_.append(part.fit(rows[inside], target, sample_weight=weights[inside]))
        self.names_, self.shares_ = names, mass / mass.sum()
        return self

    def mixture(self, shares: Any) -> Grouped:
        """Return the same groups with other shares (G,): nonnegative, normalised here."""
        self._ready()
        weights = masses(shares, len(self.parts_), "shares")
        other = Grouped(self.template)
        other.parts_, other.classes_, other.names_ = self.parts_, self.classes_, self.names_
        other.shares_ = weights / weights.sum()
        return other

    @property
    def measures_(self) -> list[Measure]:
        """The measures of all groups and classes."""
        return [measure for part in self._ready().parts_ for measure in components(part)]

    @property
    def dim(self) -> int:
        return self._ready().parts_[0].dim

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n pairs: a group by its share, then a pair of that group."""
        x, y, _ = self.grouped_sample(n, generator)
        return x, y

    def grouped_sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `sample` does, and the index of the group of each pair."""
        self._ready()
        n, generator = draws(n, generator)
        groups = choose(self.shares_, n, generator)
        x = torch.empty((n, self.dim), dtype=torch.float64)
        y = torch.empty(n, dtype=torch.long if self.classes_ else torch.float64)
        for g, part in enumerate(self.parts_):
            inside = groups == g
            if count := int(inside.sum()):
                x[inside], labels = part.sample(count, generator)
                y[inside] = self._outward(labels, g)
        return x, y, groups

    def points(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the groups' points, group after group, ceil(q_g n) requested of each."""
        return self.grouped_points(n, generator)[:3]

    def grouped_points(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `points` does, and the index of the group of each pair, shape (m,).

        Groups of share 0 are left out.
        """
        self._ready()
        n, generator = draws(n, generator)
        parts = []
        for g, (part, share) in enumerate(zip(self.parts_, self.shares_, strict=True)):
            if share > 0:
                x, y, w = part.points(max(1, int(np.ceil(share * n))), generator)
                index = torch.full((len(x),), g)
                parts.append((x, self._outward(y, g), w * float(share), index))
        x, y, w, groups = (torch.cat(column) for column in zip(*parts, strict=True))
        return x, y, w, groups

    def log_prob(self, x: Any, y: Any) -> Tensor:
        """Log density of x given y, shape (n,): log of sum_g q_g p_g(x, y) / sum_g q_g p_g(y)."""
        joint, label = self._log_joint(x, y)
        density = torch.logsumexp(label, 0)
        value = torch.logsumexp(joint, 0) - density
        return torch.where(density > -torch.inf, value, -torch.inf)

    def log_responsibilities(self, x: Any, y: Any) -> Tensor:
        """Log probability of each group given (x, y), shape (n, G); -inf where no group has it."""
        joint = self._log_joint(x, y)[0]
        total = torch.logsumexp(joint, 0).clamp_min(torch.finfo(joint.dtype).min)
        return (joint - total).T

    def _log_joint(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Log of q_g p_g(x, y) and of q_g p_g(y), shapes (G, n)."""
        x = queries(x, self.dim)
        y = vector(y, len(x)).to(x.device)
        joint, label = [], []
        for g, (part, share) in enumerate(zip(self.parts_, self.shares_, strict=True)):
            log_share = float(np.log(share)) if share > 0 else -np.inf
            of_label, given = self._part_log_prob(part, g, x, y)
            label.append(log_share + of_label)
            joint.append(log_share + of_label + given)
        return torch.stack(joint), torch.stack(label)

    def _part_log_prob(self, part: Any, g: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Log p_g(y) and log p_g(x given y); the latter 0 where the former is -inf."""
        of_label = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        given = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if isinstance(part, ClassConditional):
            y = class_indices(y, len(x), 1 + max(int(c.max()) for c in self.classes_))
            for k, label in enumerate(self.classes_[g]):
                inside = y == int(label)
                if inside.any():
                    of_label[inside] = float(np.log(part.weights_[k]))
                    given[inside] = part.measures_[k].log_prob(x[inside]).double()
            return of_label, given
        if not isinstance(part, Joint):
            raise UnsupportedError(
                f"{type(part).__name__} has no density of labels; use ClassConditional or Joint"
            )
        of_label = part.measure_.marginal([self.dim]).log_prob(y.double()[:, None])
        given = part.log_prob(x, y).double()
        return of_label, torch.where(of_label > -torch.inf, given, 0.0)

    def _outward(self, labels: Tensor, g: int) -> Tensor:
        return torch.from_numpy(self.classes_[g])[labels] if self.classes_ else labels
