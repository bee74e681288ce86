"""Label shift: the classes' shares move, what they look like stays."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.special import expit, logit

from drojko._validation import did_you_mean, floats, is_real, shown
from drojko.ambiguity.base import AmbiguitySet
from drojko.ambiguity.cells import ShareRange
from drojko.ambiguity.group import BoundCells
from drojko.ambiguity.total_variation import TotalVariation
from drojko.exceptions import InvalidDataError

__all__ = ["ClassShift"]


class ClassShift(AmbiguitySet):
    r"""Distributions whose class shares differ from those in the data.

    .. math:: P = \sum_k q_k P_0(\cdot \mid y = k), \qquad
        \sup_P E_P \ell = \max_q \sum_k q_k\, E_0(\ell \mid y = k)

    over shares q with :math:`\tfrac12 \sum_k |q_k - q^0_k| \le` ``radius``, or whose log odds are
    within a range of those in the data, :math:`\mathrm{low} \le \mathrm{logit}\, q_k -
    \mathrm{logit}\, q^0_k \le \mathrm{high}`. With a ``direction`` that class alone gains
    (``radius``), or its log odds alone move (``between``), and all others keep their proportions.

    Parameters
    ----------
    radius : float, default=None
        Mass that may change its class, in [0, 1].
    between : (float, float), default=None
        Range of the moves of log odds; it holds 0. (-1, 1) multiplies odds by up to e = 2.7 or
        divides them. Exactly one of radius and between must be given.
    direction : class label, default=None
        What is known of the move: the class that becomes more frequent (``radius``), or that whose
        log odds move in the range (``between``; None: that of every class).

    Raises
    ------
    InvalidDataError
        From `validate`, and at `fit` for a direction that names no class, or a regression.

    Notes
    -----
    Where the direction of a move is known, this is the set that paid most often on shifts that
    occurred in nature; where it is not, a set in both directions is a bet.

    References
    ----------
    M. Saerens, P. Latinne, C. Decaestecker (2002), Adjusting the outputs of a classifier to new a
    priori probabilities. J. Zhang, A. Menon, A. Veit, S. Bhojanapalli, S. Kumar, S. Sra (2021),
    Coping with label shift via distributionally robust optimisation, arXiv 2010.12230.

    Examples
    --------
    >>> from drojko.ambiguity import ClassShift
    >>> y, losses = [0, 0, 0, 1], [1.0, 1.0, 1.0, 3.0]
    >>> ClassShift(radius=0.25).bind(None, y, None).dual(losses).value
    2.0
    >>> ClassShift(between=(0.0, 1.0), direction=0).bind(None, y, None).dual(losses).value
    1.5
    """

    sees_points = False
    _hints = {"radius": " and at most 1, where every share is possible"}

    def __init__(
        self,
        radius: float | None = None,
        *,
        between: Sequence[float] | None = None,
        direction: Any = None,
    ):
        self.radius = radius
        self.between = between
        self.direction = direction

    penalty = None

    @property
    def budget(self) -> float:
        """Bound of the mass that changes its class."""
        return 1.0 if self.radius is None else float(self.radius)

    candidates = TotalVariation.candidates

    def needs_largest(self, penalty: float) -> bool:
        """Never: the worst case is a mixture of means."""
        return False

    def resized(self, size: float) -> Self:
        """Return a copy with another radius, in the same direction."""
        return super().resized(size).set_params(between=None)

    def _validate_params(self) -> None:
        if (self.radius is None) == (self.between is None):
            raise InvalidDataError(
                f"ClassShift got radius={self.radius} and between={self.between}: give one of "
                "them, such as ClassShift(radius=0.1) or ClassShift(between=(-0.5, 0.5))"
            )
        if self.radius is not None:
            self._check_number("radius", self.radius, zero="allowed")
            if self.radius > 1:
                raise InvalidDataError(
                    f"ClassShift got radius={self.radius!r}; it is a share of mass, at most 1"
                )
            return
        ends = self.between
        pair = np.size(ends) == 2 and all(is_real(end) for end in ends)  # type: ignore[union-attr]
        if not pair or not ends[0] <= 0.0 <= ends[1]:  # type: ignore[index]
            raise InvalidDataError(
                f"ClassShift got between={shown(ends)}; expected (low, high), low <= 0 <= high: "
                "moves of log odds around those in the data. To move the centre itself, give "
                "class_weight or sample_weight"
            )

    def for_data(self, names: Any, classes: Any) -> Self:
        """Return the set with the direction as a class index."""
        if classes is None:
            raise InvalidDataError(
                "ClassShift is about classes, and a regression has none: for targets that move use "
                "Wasserstein(radius=..., label_cost=...), for groups of rows Group()"
            )
        found = copy.copy(self)
        if self.direction is not None:
            known = np.asarray(classes).tolist()
            if self.direction not in known:
                hint = did_you_mean(self.direction, map(str, known), "the classes are: ")
                raise InvalidDataError(
                    f"ClassShift got direction={self.direction!r}, which names no class; {hint}"
                )
            found._index = known.index(self.direction)
        return found

    _index: int | None = None

    def bind(self, x: Any, y: Any, weights: Any, groups: Any = None) -> BoundCells:
        """Return the set on rows with class indices y (n,)."""
        self._validate_params()
        y = groups if y is None else y
        if y is None:
            raise InvalidDataError("ClassShift needs the classes of the rows: give y, or groups")
        labels = floats(y, "y").astype(np.int64)
        index = self.direction if self._index is None else self._index
        if index is not None:
            return _Directed(self, weights, labels == index)
        classes = np.unique(labels)
        bound = BoundCells(self, weights, np.eye(classes.size)[np.searchsorted(classes, labels)],
                           classes.tolist())  # fmt: skip
        if self.radius is not None:
            bound.of_shares = TotalVariation(radius=self.radius)
        else:
            bound.of_shares = _odds(bound.shares, *self.between)  # type: ignore[misc]
        return bound

    def on(self, x: Any = None, weights: Any = None, groups: Any = None) -> BoundCells:
        """Return the set on rows whose classes are given as ``groups`` (n,)."""
        return self.bind(x, groups, weights)


class _Directed(BoundCells):
    """One class and the rest, whose proportions stay."""

    def __init__(self, ambiguity: ClassShift, weights: Any, inside: np.ndarray):
        if not inside.any() or inside.all():
            raise InvalidDataError(
                "ClassShift: the rows are all of the class of direction=, or none of them is; its "
                "share cannot move"
            )
        members = np.column_stack([inside, ~inside]).astype(np.float64)
        super().__init__(ambiguity, weights, members, ["direction", "rest"])
        share = float(self.shares[0])
        if ambiguity.radius is not None:
            low, high = share, min(share + float(ambiguity.radius), 1.0)
        else:
            low, high = (float(expit(logit(share) + move)) for move in ambiguity.between)  # type: ignore[union-attr]
        self.of_shares = ShareRange(np.array([low, 1.0 - high]), np.array([high, 1.0 - low]))


def _odds(shares: np.ndarray, low: float, high: float) -> ShareRange:
    """Shares whose log odds are within a range of given ones."""
    if len(shares) == 1:
        return ShareRange(shares, shares)
    with np.errstate(divide="ignore"):
        there = logit(shares)
    ends = expit(there + low), expit(there + high)
    return ShareRange(np.minimum(ends[0], shares), np.maximum(ends[1], shares))
