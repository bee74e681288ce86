"""Shifts of some columns: of their own law, or of the law of all else given them."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from torch import Tensor

from drojko._validation import floats
from drojko.ambiguity.base import AmbiguitySet, Dual
from drojko.ambiguity.cells import cells_of, check_varies
from drojko.ambiguity.cvar import CVaR
from drojko.ambiguity.divergence import Tail, Tails
from drojko.ambiguity.duals.scaling import finite_losses, masses
from drojko.ambiguity.duals.smooth import SmoothConditional, SmoothMarginal
from drojko.ambiguity.ground.columns import Columns
from drojko.ambiguity.group import BoundCells
from drojko.exceptions import InvalidDataError

__all__ = ["Conditional", "Marginal"]


class _OfColumns(AmbiguitySet):
    """What both know: a tail mass, and columns that take few values."""

    radius, penalty = None, None
    size_name, nothing = "alpha", 1.0
    _hints = {"alpha": ", the mass of a subpopulation in (0, 1]"}
    _positions: tuple[int, ...] | None = None
    smoothness: float | None = None

    def __init__(self, alpha: float, columns: Any, *, smoothness: float | None = None):
        self.alpha = alpha
        self.columns = columns
        self.smoothness = smoothness

    candidates = CVaR.candidates

    @property
    def most_draws(self) -> int | None:  # type: ignore[override]
        """Of continuous references: programs in as many variables as draws take their time."""
        return None if self.smoothness is None else 500

    @property
    def budget(self) -> float:
        """Bound of the density ratio, minus 1."""
        return 1.0 / float(self.alpha) - 1.0

    def needs_largest(self, penalty: float) -> bool:
        """Never: ratios are at most 1 / alpha."""
        return False

    def _validate_params(self) -> None:
        self._check_number("alpha", self.alpha, zero="refused")
        if self.alpha > 1:
            raise InvalidDataError(
                f"{type(self).__name__} got alpha={self.alpha!r}; it is the mass of a "
                "subpopulation, in (0, 1]"
            )
        if self.smoothness is not None:
            self._check_number("smoothness", self.smoothness, zero="allowed")

    def resolve(self, n_features: int, feature_names: Any = None) -> None:
        """Check that the columns are there."""
        self._selected(n_features, feature_names)

    def for_data(self, names: Any, classes: Any) -> Self:
        """Return the set with columns as positions."""
        found = copy.copy(self)
        if names is not None:
            found._positions = tuple(self._selected(len(names), names))
        return found

    def _selected(self, n_features: int, names: Any) -> list[int]:
        chosen = Columns(n_features, names).selection("columns", self.columns)
        if not chosen:
            raise InvalidDataError(f"{type(self).__name__} got no columns: name one or more")
        return chosen

    def _named(self, x: Any) -> tuple[np.ndarray, list[str]]:
        """The columns (n, k), which vary, and their names."""
        where = type(self).__name__
        if x is None:
            raise InvalidDataError(f"{where} looks at columns of the points: it needs x")
        rows = x.detach().cpu().numpy() if isinstance(x, Tensor) else floats(x, "x")
        chosen = self._positions or self._selected(rows.shape[1], None)
        names = [str(name) for name in np.atleast_1d(np.asarray(self.columns, dtype=object))]
        values = rows[:, list(chosen)].astype(np.float64)
        check_varies(values, names, where)
        return values, names

    def _cells(self, x: Any) -> tuple[np.ndarray, list[Any]]:
        """Index of the cell of each row, and the cells' values."""
        return cells_of(*self._named(x), type(self).__name__)


class Marginal(_OfColumns):
    r"""Subpopulations by the law of some columns, with the law of all else given them unchanged.

    .. math:: \frac{dP_Z}{dP_{0,Z}} \le \frac1\alpha, \quad P(\cdot \mid Z) = P_0(\cdot \mid Z),
        \qquad \sup_P E_P \ell = \mathrm{CVaR}_\alpha\big(E_0(\ell \mid Z)\big)

    Z are the columns: the worst mixture of their values in which each has at most 1 / alpha times
    its share. Noise of the target given Z is no reason to fear: it is averaged, not sought out, as
    `CVaR` does.

    Parameters
    ----------
    alpha : float
        Mass of the subpopulation, in (0, 1].
    columns : name, index, list of these, or mask
        Discrete columns: their distinct values are cells, whose mean losses the set is about.
        With ``smoothness``, any.
    smoothness : float, default=None
        L, at least 0, for columns of many values, whose cells have a row each: by how much
        :math:`\mu(z) = E_0(\ell \mid Z = z)` changes at most, in units of the loss per unit of
        Euclidean distance in the columns. The value is then the least upper bound, over widths
        :math:`\lambda > 0`, of

        .. math:: \max_q\; E_0\Big[q\,\ell + \frac\lambda2\, q\,\Big(\frac1\alpha - q\Big)\Big],
            \quad 0 \le q \le \frac1\alpha,\; E_0 q = 1,\;
            q \text{ is } \frac L\lambda\text{-Lipschitz in } z

        from the mean (L = 0) to `CVaR`.

    Raises
    ------
    InvalidDataError
        From `validate` and `on`: for columns that are not there, are constant, or (without
        ``smoothness``) take more values than half the number of rows.

    Notes
    -----
    Use ``reference="empirical"``: smoothed columns have no cells.

    With ``smoothness`` the value is an upper bound for every law P0 whose mu is as smooth as L
    says: the maximum without the Lipschitz rule is attained at :math:`q = \mathrm{clip}((\mu -
    \eta) / \lambda + 1 / (2 \alpha))`, which keeps that rule, and the term in lambda is not
    negative. The published bound argues so with the norm of q in the place of its bound 1 / alpha,
    a larger set. On a sample it is as uncertain as any mean of a sample; ``attained`` is what a
    member of the set attains on the rows. One column takes .3 s for 1,000 rows, several take some 3
    times as long, and a fit asks for some tens of such values (4 s of CPU for 200 rows;
    ``reference="kde"`` is 500 draws and takes 10); in many columns few rows are near each other,
    and the bound is that of `CVaR`. Fits have no proven gap: the minimum over lambda is not convex.

    References
    ----------
    J. Duchi, T. Hashimoto, H. Namkoong (2020), Distributionally robust losses for latent covariate
    mixtures, arXiv 2007.13982.

    Examples
    --------
    >>> from drojko.ambiguity import CVaR, Marginal
    >>> x, losses = [[0.0], [0.0], [1.0], [1.0]], [0.0, 4.0, 2.0, 3.0]
    >>> Marginal(0.5, columns=0).on(x).dual(losses).value, CVaR(0.5).dual(losses).value
    (2.5, 3.5)

    A column of many values, in which the mean loss is as steep as one to one at most:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(size=(400, 1))
    >>> losses = x[:, 0] * rng.exponential(size=400)
    >>> smooth = Marginal(0.25, columns=0, smoothness=1.0).on(x).dual(losses).value
    >>> bool(losses.mean() < smooth < CVaR(0.25).dual(losses).value - 0.4)
    True
    """

    def on(self, x: Any, weights: Any = None, groups: Any = None) -> BoundCells | SmoothMarginal:
        """Return the set on points x (n, d)."""
        self._validate_params()
        if self.smoothness is not None:
            return SmoothMarginal(self, weights, self._named(x)[0])
        index, values = self._cells(x)
        bound = BoundCells(self, weights, np.eye(len(values))[index], values)
        bound.of_shares = CVaR(alpha=float(self.alpha))
        return bound


class Conditional(_OfColumns):
    r"""Subpopulations of all else given some columns, whose own law stays.

    .. math:: P_Z = P_{0,Z}, \quad \frac{dP(\cdot \mid Z)}{dP_0(\cdot \mid Z)} \le \frac1\alpha,
        \qquad \sup_P E_P \ell = E_0\, \mathrm{CVaR}_\alpha(\ell \mid Z)

    Within each value of the columns Z the worst alpha of the rows: what is left to fear where one
    knows that Z will not shift.

    Parameters
    ----------
    alpha : float
        Mass of the subpopulation within each cell, in (0, 1].
    columns : name, index, list of these, or mask
        Discrete columns, as in `Marginal`; with ``smoothness``, any.
    smoothness : float, default=None
        L, at least 0, for columns of many values: the levels of the tails change by at most L, in
        units of the loss per unit of distance in the columns,

        .. math:: E_0\,\mathrm{CVaR}_\alpha(\ell \mid Z) \le \min_{\eta\; L\text{-Lipschitz}}
            E_0\Big[\eta(Z) + \frac1\alpha (\ell - \eta(Z))_+\Big]
            = \max_{0 \le q \le 1/\alpha} E_0\, q\,\ell - L\, W_1\big((q P_0)_Z, P_{0,Z}\big)

        from `CVaR` (L = 0) down.

    Raises
    ------
    InvalidDataError
        As `Marginal`.

    Notes
    -----
    Any levels give an upper bound for the law of the rows, equal where the value at risk of the
    losses given Z is as smooth as L says. But levels are fitted to the rows that they are judged
    by: with a large L, or with several columns, the value on a sample is too low, down to the mean;
    0 is on the safe side. There ``attained`` pays for the law of Z that moves.

    References
    ----------
    S. Jeong, H. Namkoong (2020), Robust causal inference under covariate shift via worst-case
    subpopulation treatment effects, arXiv 2007.02411. A. Subbaswamy, R. Adams, S. Saria (2021),
    Evaluating model robustness and stability to dataset shift, arXiv 2010.15100.

    Examples
    --------
    >>> from drojko.ambiguity import Conditional
    >>> x, losses = [[0.0], [0.0], [1.0], [1.0]], [0.0, 4.0, 2.0, 3.0]
    >>> Conditional(0.5, columns=0).on(x).dual(losses).value
    3.5
    """

    def on(
        self, x: Any, weights: Any = None, groups: Any = None
    ) -> _BoundConditional | SmoothConditional:
        """Return the set on points x (n, d)."""
        self._validate_params()
        if self.smoothness is not None:
            return SmoothConditional(self, weights, self._named(x)[0])
        index, values = self._cells(x)
        return _BoundConditional(self, weights, index, values)


class _BoundConditional:
    """The worst part of every cell."""

    #: Rows are what is reweighted, each within its cell.
    cells = None

    def __init__(self, ambiguity: Conditional, weights: Any, index: np.ndarray, names: list[Any]):
        self.ambiguity, self.index, self.names = ambiguity, index, names
        mass = masses(weights, len(index))
        self.weights = mass / mass.sum()
        self.shares = np.bincount(index, self.weights, len(names))
        if not (self.shares > 0).all():
            raise InvalidDataError(
                f"the cell {names[int(self.shares.argmin())]!r} has no row of positive weight"
            )
        self._order = np.argsort(index, kind="stable")
        self._ends = np.cumsum(np.bincount(index, minlength=len(names)))[:-1]

    def dual(self, losses: Any, smoothing: float = 0.0) -> Dual:
        """The tails of all cells, each exact or smoothed as `CVaR` is."""
        values = finite_losses(losses, len(self.index))
        tail, ratio = CVaR(alpha=float(self.ambiguity.alpha)), np.ones(len(values))
        value = penalty = shift = 0.0
        for rows, share in zip(np.split(self._order, self._ends), self.shares, strict=True):
            found = tail.on(None, self.weights[rows]).dual(values[rows], smoothing)
            ratio[rows] = found.ratio
            value += share * found.value
            penalty += share * (found.penalty if np.isfinite(found.penalty) else 0.0)
            shift += share * found.shift
        attained = float(self.weights @ (ratio * values))
        spent = tail.discrepancy(ratio, self.weights)
        return Dual(float(value), float(penalty), float(shift), ratio, attained, spent)

    def levels(self, unit: float) -> _Within:
        """A level for each cell."""
        return _Within(self)


class _Within(Tails):
    """The tails of all cells as levels."""

    def __init__(self, bound: _BoundConditional):
        cap = 1.0 / float(bound.ambiguity.alpha)
        tails = [
            Tail(f"cell {k}", np.where(bound.index == k, cap, 0.0), k, 0.0, float(share))
            for k, share in enumerate(bound.shares)
        ]
        super().__init__(bound.ambiguity, bound.weights, tails, bound.shares.tolist())
        self._bound, self._cap = bound, cap

    def inside(self, q: np.ndarray) -> tuple[np.ndarray, float]:
        """A density of mean one in each cell, on the way from 1 to q."""
        bound, q = self._bound, np.maximum(q, 0.0)
        mass = np.bincount(bound.index, self.weights * q, len(bound.shares)) / bound.shares
        known = mass[bound.index] > 0
        q = np.where(known, q / np.where(known, mass[bound.index], 1.0), 1.0)
        top = np.zeros(len(bound.shares))
        np.maximum.at(top, bound.index, q)
        room = np.where(top > self._cap, (self._cap - 1.0) / np.maximum(top - 1.0, 1e-300), 1.0)
        return 1.0 + room[bound.index] * (1.0 - 1e-14) * (q - 1.0), 0.0
