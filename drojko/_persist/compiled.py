"""Compiled objects in model files: numbers, checked before anything reads them.

Trees, search indices and splines live in compiled code that trusts its arrays: a child or a column
that does not exist is read beyond their end. A file holds plain arrays in their place, and
`restored` makes the objects again once these fit together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko._validation import is_whole
from drojko.exceptions import InvalidDataError

__all__ = ["held", "restored"]


def held(whole: Any, parts: Iterable[Any]) -> Any:
    """A copy of an object in which plain arrays stand for its compiled parts; itself without any.

    >>> from sklearn.tree import DecisionTreeRegressor
    >>> tree = DecisionTreeRegressor().fit([[0.0], [1.0]], [0.0, 1.0])
    >>> copied = held(tree, [tree, tree.tree_])
    >>> type(copied.tree_).__name__, type(tree.tree_).__name__
    ('StoredTree', 'Tree')
    """
    memo: dict[int, Any] = {}
    for part in parts:
        kind = _KINDS.get(f"{type(part).__module__}.{type(part).__name__}")
        if kind is not None and (stored := kind(part)) is not None:
            memo[id(part)] = stored
    return copy.deepcopy(whole, memo) if memo else whole


def restored(whole: Any, parts_of: Callable[[Any], Iterable[Any]]) -> Any:
    """What `held` was made of; its arrays have been checked one by one."""
    parts = list(parts_of(whole))
    free = StoredIndex | StoredSpline
    stored = [part for part in parts if isinstance(part, StoredTree | StoredLeaves | free)]
    if not stored:
        return whole
    owned = {id(tree) for part in parts for tree in _owned(part)}
    _fits(all(isinstance(one, free) or id(one) in owned for one in stored))
    found = copy.deepcopy(whole, {id(part): part.made() for part in stored})
    for part in parts_of(found):
        boosted = type(part).__module__ == "sklearn.ensemble._gb" and hasattr(part, "estimators_")
        if boosted:  # whose compiled sums trust where they start
            start = part._raw_predict_init(np.zeros((2, part.n_features_in_), np.float32))
            _fits(start.shape == (2, part.n_trees_per_iteration_) and start.dtype == np.float64)
    return found


def _owned(owner: Any) -> list[Any]:
    """The trees of an estimator, which read no columns but those that it has."""
    home, width = type(owner).__module__, getattr(owner, "n_features_in_", None)
    if home == "sklearn.tree._classes" and hasattr(owner, "tree_"):
        tree = owner.tree_
        _fits(isinstance(tree, StoredTree) and tree.columns == width)
        return [tree]
    forest = home in ("sklearn.ensemble._forest", "sklearn.ensemble._gb")
    if forest and hasattr(owner, "estimators_"):
        own = np.array(owner.estimators_, dtype=object)
        trees = [one.tree_ for one in own.ravel()]
        _fits(all(isinstance(one, StoredTree) and one.columns == width for one in trees))
        if home.endswith("_gb"):
            _fits(own.ndim == 2 and own.shape[1] == owner.n_trees_per_iteration_)
            _fits(all(one.outputs == 1 for one in trees))
        return trees
    if home == "sklearn.ensemble._iforest" and hasattr(owner, "estimators_"):
        trees = [one.tree_ for one in owner.estimators_]
        widths = [len(columns) for columns in owner.estimators_features_]
        _fits({*widths, *(one.columns for one in trees)} == {owner._max_features})
        return trees
    if home.startswith("sklearn.ensemble._hist_grad") and hasattr(owner, "_predictors"):
        categories = np.asarray(owner._bin_mapper.is_categorical_, dtype=bool)
        leaves = [one for each in owner._predictors for one in each]
        _fits(categories.shape == (width,) and all(isinstance(p, StoredLeaves) for p in leaves))
        for one in leaves:
            one.check_columns(categories)
        return leaves
    return []


def _fits(good: Any) -> None:
    if not good:
        raise InvalidDataError("a tree does not fit the model that holds it")


def _check_children(left: np.ndarray, right: np.ndarray) -> int:
    """Depth of a tree of which inner nodes have these children, -1 in leaves.

    Raises InvalidDataError where nodes do not form one tree with the root first.
    """
    inner = left >= 0
    every = np.concatenate([left[inner], right[inner]])
    good = (inner == (right >= 0)).all() and (every < len(left)).all()
    if not good or len(every) != len(left) - 1 or len(np.unique(every)) != len(every):
        raise InvalidDataError("the nodes of a tree do not fit together")
    depth, level, seen = 0, np.zeros(1, dtype=np.int64), 1
    while len(level := level[inner[level]]):
        level = np.concatenate([left[level], right[level]])
        depth, seen = depth + 1, seen + len(level)
        if seen > len(left):
            raise InvalidDataError("the nodes of a tree do not fit together")
    if seen != len(left):
        raise InvalidDataError("the nodes of a tree do not fit together")
    return depth


@dataclass(eq=False)
class StoredTree:
    """A tree of scikit-learn: its nodes, and the values (nodes, outputs, classes) in them."""

    columns: int
    classes: np.ndarray
    outputs: int
    nodes: np.ndarray
    values: np.ndarray
    depth: int = 0

    @staticmethod
    def of(tree: Any) -> StoredTree:
        state, classes = tree.__getstate__(), np.atleast_1d(np.asarray(tree.n_classes))
        return StoredTree(
            int(tree.n_features), classes, int(tree.n_outputs), state["nodes"], state["values"],
            int(tree.max_depth),
        )  # fmt: skip

    def _check_stored(self) -> None:
        from sklearn.tree._tree import NODE_DTYPE

        nodes, classes, values = self.nodes, self.classes, self.values
        good = all(isinstance(part, np.ndarray) for part in (nodes, classes, values))
        good = good and is_whole(self.columns, 1) and is_whole(self.outputs, 1)
        good = good and nodes.dtype == NODE_DTYPE and nodes.ndim == 1 and len(nodes) > 0
        good = good and classes.dtype == np.intp and classes.shape == (self.outputs,)
        good = good and (classes >= 1).all() and values.dtype == np.float64
        if not good or values.shape != (len(nodes), self.outputs, int(classes.max())):
            raise InvalidDataError("a tree holds arrays that do not fit each other")
        self.depth = _check_children(nodes["left_child"], nodes["right_child"])
        inner = nodes["feature"][nodes["left_child"] >= 0]
        if ((inner < 0) | (inner >= self.columns)).any():
            raise InvalidDataError("a tree splits columns that it does not have")

    def made(self) -> Any:
        from sklearn.tree._tree import Tree

        tree = Tree(self.columns, self.classes, self.outputs)
        state = {"max_depth": self.depth, "node_count": len(self.nodes)}
        arrays = {"nodes": self.nodes, "values": np.ascontiguousarray(self.values)}
        tree.__setstate__(state | arrays)
        return tree


@dataclass(eq=False)
class StoredLeaves:
    """A tree of scikit-learn's histogram boosting: its nodes, and sets of categories as bits."""

    nodes: np.ndarray
    binned: np.ndarray
    raw: np.ndarray

    @staticmethod
    def of(tree: Any) -> StoredLeaves:
        return StoredLeaves(tree.nodes, tree.binned_left_cat_bitsets, tree.raw_left_cat_bitsets)

    def _check_stored(self) -> None:
        from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

        nodes, sets = self.nodes, (self.binned, self.raw)
        good = all(isinstance(part, np.ndarray) for part in (nodes, *sets))
        good = good and nodes.dtype == PREDICTOR_RECORD_DTYPE and nodes.ndim == 1 and len(nodes)
        good = good and self.raw.shape == self.binned.shape == (len(self.raw), 8)
        if not good or any(part.dtype != np.uint32 for part in sets):
            raise InvalidDataError("a tree holds arrays that do not fit each other")
        leaf = nodes["is_leaf"].astype(bool)
        children = [np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right")]
        _check_children(*children)
        by_set = nodes[~leaf & nodes["is_categorical"].astype(bool)]
        if (by_set["bitset_idx"] >= len(self.raw)).any():
            raise InvalidDataError("a tree splits by categories that it does not have")

    def check_columns(self, categories: np.ndarray) -> None:
        """Whether all columns exist, and those split by categories are such."""
        inner = self.nodes[~self.nodes["is_leaf"].astype(bool)]
        columns = inner["feature_idx"]
        _fits(((columns >= 0) & (columns < len(categories))).all())
        _fits(categories[columns[inner["is_categorical"].astype(bool)]].all())

    def made(self) -> Any:
        from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

        return TreePredictor(self.nodes, self.binned, self.raw)


@dataclass(eq=False)
class StoredIndex:
    """The index of a search for neighbours: its rows, from which it is built again."""

    kind: str
    rows: np.ndarray
    leaf_size: int
    metric: str
    power: float

    @staticmethod
    def of(index: Any) -> StoredIndex | None:
        rows, metric = np.asarray(index.data), index.__getstate__()[-2]
        name = type(metric).__name__.partition("Distance")[0].lower()
        if name not in _METRICS or type(metric).__name__.endswith("32"):
            return None
        power = float(metric.__getstate__()[0]) if name == "minkowski" else 2.0
        return StoredIndex(type(index).__name__, rows, int(index.__getstate__()[4]), name, power)

    def _check_stored(self) -> None:
        good = self.kind in ("KDTree", "BallTree") and self.metric in _METRICS
        good = good and isinstance(self.rows, np.ndarray) and self.rows.dtype == np.float64
        good = good and self.rows.ndim == 2 and self.rows.size > 0 and is_whole(self.leaf_size, 1)
        if not good or not np.isfinite(self.rows).all() or not self.power >= 1.0:
            raise InvalidDataError("an index of neighbours holds what does not fit")

    def made(self) -> Any:
        from sklearn import neighbors

        own = {"p": self.power} if self.metric == "minkowski" else {}
        kind = getattr(neighbors, self.kind)
        return kind(self.rows, leaf_size=self.leaf_size, metric=self.metric, **own)


@dataclass(eq=False)
class StoredSpline:
    """SciPy's splines of one column, whose constructor checks them: knots and coefficients."""

    knots: np.ndarray
    coefficients: np.ndarray
    degree: int
    extrapolate: bool | str

    @staticmethod
    def of(spline: Any) -> StoredSpline | None:
        if spline.axis != 0:
            return None
        return StoredSpline(spline.t, spline.c, int(spline.k), spline.extrapolate)

    def _check_stored(self) -> None:
        arrays = (self.knots, self.coefficients)
        good = all(isinstance(part, np.ndarray) and part.dtype == np.float64 for part in arrays)
        good = good and is_whole(self.degree, 0) and self.extrapolate in (True, False, "periodic")
        good = good and self.knots.ndim == 1 and self.coefficients.ndim >= 1
        if not good or not all(np.isfinite(part).all() for part in arrays):
            raise InvalidDataError("a spline holds what does not fit")

    def made(self) -> Any:
        from scipy.interpolate import BSpline

        try:
            extrapolate: Any = self.extrapolate  # "periodic" as well, which stubs do not know
            return BSpline(self.knots, self.coefficients, self.degree, extrapolate)
        except ValueError as error:
            raise InvalidDataError(f"a spline holds what does not fit: {error}") from error


_METRICS = ("euclidean", "manhattan", "chebyshev", "minkowski")
_KINDS = {
    "sklearn.tree._tree.Tree": StoredTree.of,
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor": StoredLeaves.of,
    "sklearn.neighbors._kd_tree.KDTree": StoredIndex.of,
    "sklearn.neighbors._ball_tree.BallTree": StoredIndex.of,
    "scipy.interpolate._bsplines.BSpline": StoredSpline.of,
}
