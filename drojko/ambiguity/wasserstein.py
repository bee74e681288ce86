"""Wasserstein balls: order 2 with a weighted Euclidean cost, order 1 with a weighted norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from sklearn.base import clone

from drojko._validation import is_real, shown
from drojko.ambiguity.base import AmbiguitySet
from drojko.ambiguity.ground.columns import (
    Columns,
    resolve_bounds,
    resolve_categories,
    resolve_weights,
)
from drojko.ambiguity.ground.cost import GroundCost
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["Wasserstein"]


class Wasserstein(AmbiguitySet):
    r"""Distributions that transport of the reference can reach at a limited cost.

    .. math:: \{P : W_2(P, P_0) \le \mathrm{radius}\}, \quad
        W_2^2(P, P_0) = \min_{\pi} E_\pi c(x, z), \quad c(x, z) = \sum_j w_j (x_j - z_j)^2

    or, in the penalised form, the worst case of E loss - penalty * W_2^2. Distances are in the
    units of the data: the radius is the root mean square displacement.

    Order 1 bounds the mean displacement instead, :math:`W_1(P, P_0) \le \mathrm{radius}` with

    .. math:: c(x, z) = \|\sqrt{w} \circ (x - z)\|_p, \quad p = \mathrm{norm}

    For linear models and Lipschitz losses its worst case is E loss + radius * (Lipschitz constant
    of the loss) * (dual norm of theta), in closed form; it is approached, not attained, by moving
    ever less mass ever further. Where the picture of the worst case matters, use order 2.

    Parameters
    ----------
    radius : float, default=None
        W_2 <= radius, in the units of X; 0 is the reference alone. Exactly one of radius and
        penalty must be given.
    penalty : float, default=None
        Price of one unit of W_2^2: loss per squared unit of X.
    order : {2, 1}, default=2
        Which moment of the displacement is bounded, as above. Order 1 needs a linear model
        and a Lipschitz loss: not the squared one, whose worst case is infinite.
    norm : {2, 1, inf}, default=2
        Norm of the ground cost of order 1; order 2 has 2 only. Its dual acts on theta: with inf,
        training is l1-regularised, with exact zeros.
    weights : sequence of shape (d,), dict or float, default=None
        Weights w_j of the columns, positive; infinity makes a column immutable. A dict maps
        feature names or indices to weights, the others have weight 1.
    immutable : sequence of feature names or indices, or mask of shape (d,), default=None
        Columns that never move.
    bounds : (lower, upper), dict or array of shape (d, 2), default=None
        Where columns may move to: one pair for all of them, or a dict from feature names or
        indices to pairs. None within a pair means unbounded.
    label_cost : float, default=inf
        Cost of changing a class label, in the units of the ground cost (order 1: a distance); in
        regression y moves at ``label_cost * (y - y')**2`` (order 1: ``label_cost * |y - y'|``).
        Infinity: labels stay.
    categorical_features : list, mask of shape (d,) or "auto", default=None
        Columns that hold categories, which never move but may be swapped: names or indices of
        columns that are codes (their categories are the values in the training data), and
        sequences of those, each a one-hot group (at most one 1 in a row; rows without a 1 are a
        category where the training data have them). `one_hot_groups` finds them. Order 2 only.
        "auto" finds in the data of `fit` or `audit`: one-hot groups (one 1 in each row, or at most
        one and names that differ after the last underscore), columns of two values, and columns
        of whole numbers. No such column moves by fractions: groups and columns of two values are
        swapped at ``swap_cost``; whole numbers stay in estimators and move in whole steps in
        audits, where text and pandas categories are categories, too, and columns without a
        negative value stay at or above 0 unless ``bounds`` say otherwise.
    swap_cost : float, dict or "auto", default=inf
        Cost of swapping the category of a group, in the units of the ground cost: a number, or a
        dict from a group or one of its columns to a number; groups not in it stay. Infinity: no
        swaps. A group with an immutable column stays. "auto": ``2 u / (1 - sum_k p_k**2)``, of
        the shares p_k of its categories and the mean weighted variance u of the columns that
        move, so that two random rows are as far apart in a category as in a number.

    Raises
    ------
    UnsupportedError
        For ``order=1`` with bounds or categories.

    References
    ----------
    J. Blanchet, K. Murthy, 2019, Quantifying Distributional Model Risk via Optimal Transport,
    arXiv 1604.01446. S. Shafieezadeh-Abadeh, D. Kuhn, P. Mohajerin Esfahani, 2019, Regularization
    via Mass Transportation, arXiv 1710.10016 (order 1).

    Examples
    --------
    >>> from drojko.ambiguity import Wasserstein
    >>> ball = Wasserstein(0.5, weights={"age": 4}, immutable=["sex"], bounds={"age": (0, None)})
    >>> ball.validate(3, ["age", "sex", "income"])
    GroundCost(d=3, weights in [1, 4], immutable: 'sex', bounded: 'age')
    >>> ball.set_params(radius=None, penalty=2.0).budget is None
    True
    """

    moves = True

    def __init__(
        self,
        radius: float | None = None,
        *,
        penalty: float | None = None,
        order: int = 2,
        norm: float = 2,
        weights: Any = None,
        immutable: Any = None,
        bounds: Any = None,
        label_cost: float = np.inf,
        categorical_features: Any = None,
        swap_cost: Any = np.inf,
    ):
        self.radius = radius
        self.penalty = penalty
        self.order = order
        self.norm = norm
        self.weights = weights
        self.immutable = immutable
        self.bounds = bounds
        self.label_cost = label_cost
        self.categorical_features = categorical_features
        self.swap_cost = swap_cost

    @property
    def budget(self) -> float | None:
        """The radius in the units of the discrepancy: E c(x, T(x)) <= radius**order."""
        return None if self.radius is None else self.radius ** (self.order or 2)

    def resolve(self, n_features: int, feature_names: Sequence[str] | None = None) -> GroundCost:
        """Return the ground cost for data with these columns; see `AmbiguitySet.resolve`."""
        columns = Columns(n_features, feature_names)
        weights, fixed = resolve_weights(self.weights, self.immutable, columns)
        categories = resolve_categories(self.categorical_features, self.swap_cost, fixed, columns)
        if categories is not None:
            weights[categories.every_column] = np.inf
        lower, upper = resolve_bounds(self.bounds, columns)
        return GroundCost(weights, lower, upper, columns.names, categories)

    def settled(
        self, X: Any, names: Sequence[str] | None = None, *, variance: Any = None
    ) -> Wasserstein:
        """The set with ``"auto"`` replaced by what rows X (n, d) show; see `AmbiguitySet.settled`.

        ``variance`` of the columns in the units of the weights, where these are not those of X.
        """
        features, price = self.categorical_features, self.swap_cost
        found = isinstance(features, str) and features == "auto"
        priced = isinstance(price, str) and price == "auto"
        if not (found or priced) or self.order != 2:
            return self
        if not isinstance(X, np.ndarray):
            raise UnsupportedError(
                'Wasserstein: "auto" looks at an array of rows: for sparse matrices and batches '
                "list categorical_features, and give swap_cost a number"
            )
        from drojko.ambiguity.ground.found import kinds_of, swap_price

        columns, changes = Columns(X.shape[1], names), dict[str, Any]()
        weights, fixed = resolve_weights(self.weights, self.immutable, columns)
        if found:
            kinds = kinds_of(X, columns.names)
            features = changes["categorical_features"] = [*kinds.groups, *kinds.codes] or None
            if kinds.whole:
                changes["immutable"] = fixed = sorted({*fixed, *kinds.whole})
                weights[fixed] = np.inf
        if priced:
            groups = resolve_categories(features, np.inf, fixed, columns)
            changes["swap_cost"] = np.inf
            if groups is not None:
                weights[groups.every_column] = np.inf
                variance = np.asarray(X, np.float64).var(axis=0) if variance is None else variance
                free = np.isfinite(weights) & (variance > 0)
                unit = float(np.mean(weights[free] * variance[free])) if free.any() else 1.0
                prices = swap_price(groups, X, unit)
                first = [int(c[0]) for c in groups.columns]
                changes["swap_cost"] = dict(zip(first, prices.tolist(), strict=True))
        return cast(Any, clone(self)).set_params(**changes)

    def candidates(self, X: np.ndarray, names: Any, weight: np.ndarray) -> np.ndarray:
        """Shares of a standard deviation: 0.01 is a rounding error, 1 mixes everything up."""
        cost = self.settled(X, names).validate(X.shape[1], names)
        return cost.spread(X, weight) * np.geomspace(0.01, 1.0, 8)

    def _validate_params(self) -> None:
        super()._validate_params()
        if not is_real(self.order) or self.order not in (1, 2):
            raise InvalidDataError(f"Wasserstein got order={shown(self.order)}; it must be 1 or 2")
        if not is_real(self.norm, infinite=True) or self.norm not in (1, 2, np.inf):
            raise InvalidDataError(
                f"Wasserstein got norm={shown(self.norm)}; it must be 1, 2 or inf"
            )
        if self.order == 2 and self.norm != 2:
            raise InvalidDataError(
                f"Wasserstein got norm={self.norm!r} with order=2, whose ground cost is the "
                "squared Euclidean one: use norm=2, or order=1"
            )
        self._check_number("label_cost", self.label_cost, zero="refused", infinite=True)
        if self.order == 1 and self.bounds is not None:
            raise UnsupportedError(
                "Wasserstein: bounds need order=2: the closed form of order 1 lets columns move "
                "without limit. Use order=2, or leave the bounds out for an upper bound"
            )
        if self.order == 1 and self.categorical_features is not None:
            raise UnsupportedError("Wasserstein: categorical_features need order=2")
