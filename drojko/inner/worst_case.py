"""What every worst case offers: it is a measure, and it says what it moved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko._validation import Checked, plain_tensor, shown
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import matrix, vector

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WorstCase", "quantiles", "which"]


class WorstCase(Checked, ABC):
    r"""A worst-case distribution, as a fitted estimator or an audit returns it.

    Of a transport set it is the image of the reference under a map (`TransportedWorstCase`); other
    kinds of sets have subclasses of their own.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = DROClassifier(random_state=0).fit(X[:100], y[:100])
    >>> Z, labels = clf.worst_case_.sample(5, random_state=0)
    >>> Z.shape, labels.shape
    ((5, 4), (5,))
    """

    _shapes = {"x": "n d any", "y": "n real"}

    #: Class labels, or None for regression; names and cost weights of the columns, if any.
    classes: np.ndarray | None
    feature_names: tuple[str, ...] | None
    cost_weights: np.ndarray | None
    attained_risk: Any
    _pairs: Any
    #: What the ``share`` of `displacement` is a share of.
    share_of = "transport budget"

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Number of columns of X."""

    @abstractmethod
    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` samples: X of shape (n, d) and labels of shape (n,)."""

    @abstractmethod
    def transport(self, X: Any, y: Any) -> np.ndarray:
        """Where rows X with labels y are moved, shape (n, d)."""

    @abstractmethod
    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log density of X given y, shape (n,)."""

    def risk(self) -> float:
        """Mean loss under this measure, on the draws of the certificate."""
        return self.attained_risk

    @overload
    def pairs(self, *, as_frame: Literal[True]) -> pd.DataFrame: ...
    @overload
    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]: ...
    def pairs(self, *, as_frame: bool = False) -> Any:
        """Reference draws, their images, labels and masses; computed once.

        ``as_frame``: as a table with columns ("before", name), ("after", name), ("", "target") and
        ("", "mass"), a row for each move; rows of a mixture of two maps are there twice.
        """
        with torch.no_grad():
            x, image, y, w = self._pairs
        if not as_frame:
            return x, image, y, w
        import pandas as pd

        names = [(when, name) for when in ("before", "after") for name in self.names]
        columns = pd.MultiIndex.from_tuples([*names, ("", "target"), ("", "mass")])
        parts = dict(zip(columns, [*x.T, *image.T, y, w], strict=True))
        return pd.DataFrame(parts, columns=columns)

    def displacement(self) -> pd.DataFrame:
        """What moves: a row per class and feature.

        Columns: ``class`` (absent for regression), ``feature``, ``mean``, ``q05``, ``median``,
        ``q95`` of the displacement in the units of X, ``rms``, and ``share`` of the whole
        transport budget; the shares sum to one when anything moves.
        """
        import pandas as pd

        rows, spent = [], []
        for group in [None] if self.classes is None else self.classes:
            label = {} if group is None else {"class": group}
            for name, (row, cost) in zip(self.names, self._changes(group)):
                rows.append({**label, "feature": name, **row})
                spent.append(cost)
        total = sum(spent) or 1.0
        for row, cost in zip(rows, spent):
            row["share"] = float(cost / total)
        return pd.DataFrame(rows)

    def _changes(self, group: Any) -> Iterator[tuple[dict[str, float], float]]:
        """Column by column what moves in a class (None: in all), and its part of the budget."""
        x, image, y, w = self.pairs()
        rows = np.ones(len(y), bool) if group is None else y == group
        if rows.any():
            mass, moves = w[rows] / w[rows].sum(), (image - x)[rows]
            spent = w[rows] @ self._costs(x, image)[rows]
            for move, cost in zip(moves.T, spent):
                low, middle, high = quantiles(move, mass)
                rms = float(np.sqrt(mass @ move**2))
                row = {"mean": float(mass @ move), "q05": low, "median": middle, "q95": high}
                yield {**row, "rms": rms}, cost

    def _costs(self, x: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Ground cost of each row's move, by columns, shape (n, d)."""
        costs = (image - x) ** 2
        if self.cost_weights is not None:
            costs = costs * np.where(np.isfinite(self.cost_weights), self.cost_weights, 0.0)
        return costs

    def to_frame(self, n: int = 1000, random_state: Any = 0) -> pd.DataFrame:
        """``n`` worst-case samples with named columns, the label in ``target``."""
        import pandas as pd

        X, y = self.sample(n, random_state)
        frame = pd.DataFrame(X, columns=list(self.names))
        frame["target"] = y
        return frame

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names, x0, x1, ... where the data had none."""
        if self.feature_names is not None:
            return self.feature_names
        return tuple(f"x{j}" for j in range(self.n_features))

    def _repr_html_(self) -> str:
        """Risk and what moves, in short; nothing is drawn or computed that is not known."""
        from drojko._html import table_of

        kind = "regression" if self.classes is None else f"{len(self.classes)} classes"
        risk = self.attained_risk if hasattr(self, "attained_risk") else self.risk()
        names = ", ".join(self.names[:6]) + (", ..." if self.n_features > 6 else "")
        rows = [
            ("risk", "not known yet" if risk is None else f"{float(risk):.6g}"),
            ("columns", f"{self.n_features}: {names}"),
            ("target", kind),
        ]
        note = "sample(n) draws from it, displacement() says what moves."
        return table_of("Worst case", rows, note)

    # -- labels as they came in -------------------------------------------------------------

    def _points(self, X: Any, **like: Any) -> Tensor:
        """Rows of X as a tensor of shape (n, d), float64 unless ``like`` says otherwise."""
        x = torch.as_tensor(np.array(matrix(X, name="X")), **like)
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise InvalidDataError(f"X has shape {tuple(x.shape)}; expected (n, {self.n_features})")
        return x

    def _queries(self, X: Any, y: Any, **like: Any) -> tuple[Tensor, Tensor]:
        """Rows and their labels as class indices or targets, checked."""
        x = self._points(X, **like)
        labels = self._encode(y, x)
        if len(labels) != len(x):
            raise InvalidDataError(f"X has {len(x)} rows and y has {len(labels)}")
        return x, labels

    def _arrays(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        x, labels = self._queries(X, y)
        return x.numpy(), labels.numpy()

    def _encode(self, y: Any, x: Tensor) -> Tensor:
        if self.classes is None:
            return vector(y, len(x)).detach().to(x)
        try:
            y = np.asarray(plain_tensor(y, "y"))
        except ValueError as error:  # rows of different lengths
            raise InvalidDataError(f"y={shown(y)} is no array: {error}") from None
        known = {label: index for index, label in enumerate(self.classes.tolist())}
        try:
            index = np.array([known.get(label, -1) for label in y.ravel().tolist()], dtype=int)
        except TypeError:  # what is no label at all
            raise InvalidDataError(f"y is {shown(y)}; known labels: {[*known]}") from None
        if y.ndim != 1 or (index < 0).any():
            unknown = sorted(set(y.ravel().tolist()) - set(known), key=str) if y.ndim else [y]
            raise InvalidDataError(f"y holds labels {shown(unknown)}; known: {[*known]}")
        return torch.as_tensor(index, device=x.device)

    def _decode(self, y: Tensor) -> np.ndarray:
        y_array = y.cpu().numpy()
        return y_array if self.classes is None else self.classes[y_array]


def which(share: np.ndarray, gain: np.ndarray, random_state: Any = None) -> np.ndarray:
    """Which rows take the first of two moves, each with probability ``share`` of shape (n,).

    Evenly along the rows sorted by ``gain``, what the first adds, so that sums over the rows are
    those of the mixture up to one row; without a random state never more: a budget is kept.

    Examples
    --------
    >>> which(np.full(6, 0.5), np.arange(6.0)).tolist()
    [True, False, True, False, True, False]
    """
    start = 0.0
    if random_state is not None:
        start = float(torch.rand((), generator=make_generator(random_state), dtype=torch.float64))
    order = np.argsort(-gain, kind="stable")
    taken = np.floor(np.cumsum(np.r_[start, share[order]]) + 1e-12)
    first = np.empty(len(share), bool)
    first[order] = np.diff(taken) > 0
    return first


def quantiles(values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The quantiles at 5, 50 and 95 % of values (n,) with masses that sum to 1."""
    order = np.argsort(values, kind="stable")
    at = np.searchsorted(np.cumsum(mass[order]), (0.05, 0.5, 0.95))
    return values[order][np.minimum(at, len(values) - 1)]
