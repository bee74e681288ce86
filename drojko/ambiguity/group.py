"""Mixtures of groups: the worst shares of known subpopulations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from drojko._validation import check_number, checked, is_whole, shown
from drojko.ambiguity.base import AmbiguitySet, Dual
from drojko.ambiguity.divergence import Levels
from drojko.ambiguity.duals.scaling import finite_losses, masses
from drojko.ambiguity.total_variation import TotalVariation
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import NO_GROUPS, membership

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BoundCells", "BoundGroup", "Group", "GroupDual", "crossing", "group_columns", "membership",
]  # fmt: skip


class Group(AmbiguitySet):
    r"""Mixtures of groups whose shares differ from those in the data.

    .. math:: P = \sum_g q_g P_g, \qquad
        D(P, P_0) = \tfrac12 \sum_g |q_g - q^0_g| \le \mathrm{radius}, \qquad
        \sup_P E_P \ell = \max_q \sum_g q_g E_{P_g} \ell

    P_g is the data of group g by weight, and q^0_g its mass over the sum of the groups' masses.
    Groups may overlap (an age group and a region): the centre, sum_g q^0_g P_g, then counts a row
    once for each of its groups. Without radius and penalty, q is any mixture: the worst group.

    Parameters
    ----------
    radius : float, default=None
        Mass that may move between groups, in [0, 1]; from 1 minus the share of the worst group on,
        the worst case is that group.
    penalty : float, default=None
        Price of moving all mass, in the units of the loss. At most one of radius and penalty.

    Raises
    ------
    InvalidDataError
        From `validate` and `on`, naming the parameter, the row or the group. The constructor only
        stores.

    Notes
    -----
    Training needs the groups of the rows: ``fit(X, y, groups=...)``. A worst group is the one
    whose risk is largest, which label noise can make it: compare with the group's own best risk. A
    fit warns where a group of fewer than 10 rows takes all the weight: `group_columns` joins small
    groups, and makes overlapping ones of several columns of labels.

    References
    ----------
    S. Sagawa, P. W. Koh, T. B. Hashimoto, P. Liang (2020), Distributionally robust neural networks
    for group shifts, arXiv 1911.08731. Y. Oren, S. Sagawa, T. B. Hashimoto, P. Liang (2019),
    Distributionally robust language modeling, arXiv 1909.02060.

    Examples
    --------
    >>> from drojko.ambiguity import Group
    >>> groups = ["a", "a", "a", "b"]
    >>> dual = Group().on(None, [0.25, 0.25, 0.25, 0.25], groups).dual([0.0, 1.0, 2.0, 5.0])
    >>> dual.value, dual.group_risks.tolist(), dual.group_weights.tolist()
    (5.0, [1.0, 5.0], [0.0, 1.0])
    >>> near = Group(radius=0.25).on(None, None, groups).dual([0.0, 1.0, 2.0, 5.0])
    >>> near.value, near.group_weights.tolist(), near.ratio.round(3).tolist()
    (3.0, [0.5, 0.5], [0.667, 0.667, 0.667, 2.0])
    """

    knows_groups = True
    sees_points = False
    conic_form = "group"

    def __init__(self, radius: float | None = None, *, penalty: float | None = None):
        self.radius = radius
        self.penalty = penalty

    @property
    def budget(self) -> float | None:
        """Bound of the total variation of shares; 1 for any mixture. None in penalty form."""
        if self.radius is None and self.penalty is None:
            return 1.0
        return self.radius

    def on(self, x: Any = None, weights: Any = None, groups: Any = None) -> BoundGroup:
        """Return the set for rows with given groups.

        Parameters
        ----------
        x : ignored
        weights : array or tensor of shape (n,), default=None
            The reference: nonnegative, normalised here; None: all equal.
        groups : array-like of shape (n,) or (n, G)
            A label per row, or columns of 0 and 1 (a frame or an array), one per group.

        Returns
        -------
        BoundGroup
        """
        self._validate_params()
        return BoundGroup(self, weights, groups)

    candidates = TotalVariation.candidates

    def needs_largest(self, penalty: float) -> bool:
        """Never: the worst case is a mixture of means."""
        return False

    def _validate_params(self) -> None:
        if self.radius is None and self.penalty is None:
            return
        super()._validate_params()
        if self.radius is not None and self.radius > 1:
            raise InvalidDataError(
                f"Group got radius={self.radius!r}; it is a share of mass, at most 1, where every "
                "mixture is inside: Group() is the worst group"
            )


def group_columns(labels: Any, *, min_rows: int = 1) -> pd.DataFrame:
    """Overlapping groups from columns of labels, none of fewer rows than ``min_rows``.

    Parameters
    ----------
    labels : DataFrame, array-like of shape (n, k) or (n,)
        A label per row and column: age band, region, device.
    min_rows : int, default=1
        Smaller groups of a column are joined, with the next larger ones until they are as large: of
        a few rows the worst group is mostly noise.

    Returns
    -------
    DataFrame of 0 and 1, shape (n, G)
        For ``groups=``, a column per group, "region = north"; "region = others" for those that
        were joined. A column whose rows are all in one group then is left out, unless it is the
        only one.

    Raises
    ------
    InvalidDataError
        For missing labels, or a ``min_rows`` that is not in 1 to n.

    Examples
    --------
    >>> import pandas as pd
    >>> from drojko.ambiguity import Group, group_columns
    >>> labels = pd.DataFrame({"age": list("ooyy"), "region": list("nsws")})
    >>> groups = group_columns(labels, min_rows=2)
    >>> list(groups.columns)
    ['age = o', 'age = y', 'region = s', 'region = others']
    >>> Group().on(groups=groups).dual([0.0, 4.0, 1.0, 2.0]).value
    3.0
    """
    import pandas as pd

    try:
        frame = pd.DataFrame(labels)
    except (TypeError, ValueError) as error:
        raise InvalidDataError(
            f"labels={shown(labels)}; expected a table with a label per row and column ({error})"
        ) from None
    n = len(frame)
    if not is_whole(min_rows, 1) or min_rows > n:
        raise InvalidDataError(f"min_rows={shown(min_rows)}; expected 1 to {n}, the number of rows")
    found: dict[str, np.ndarray] = {}
    for name, column in frame.items():
        members, names = membership(np.asarray(column))
        rows = members.sum(axis=0)
        order = np.argsort(rows, kind="stable")
        joined = int((rows < min_rows).sum())
        while 0 < joined < len(order) and rows[order[:joined]].sum() < min_rows:
            joined += 1
        kept = np.sort(order[joined:])
        parts = {f"{name} = {names[k]}": members[:, k] for k in kept}
        if joined:
            parts[f"{name} = others"] = members[:, order[:joined]].sum(axis=1)
        if len(parts) > 1 or frame.shape[1] == 1:
            found |= parts
    if not found:
        raise InvalidDataError(f"no column has two groups of {min_rows} rows: lower min_rows")
    return pd.DataFrame(found, index=frame.index).astype(int)


@dataclass(frozen=True, eq=False, repr=False)
class GroupDual(Dual):
    """A `Dual` with the worst mixture.

    ``radius`` is the total variation between worst and given shares, ``shift`` and ``penalty`` are
    its multipliers.

    Attributes
    ----------
    group_weights : ndarray of shape (G,)
        q*, the shares of the groups in the worst case.
    group_risks : ndarray of shape (G,)
        Mean loss of each group.
    """

    group_weights: np.ndarray = field(default_factory=lambda: np.empty(0))
    group_risks: np.ndarray = field(default_factory=lambda: np.empty(0))


class BoundCells:
    """A set of mixtures of cells on n weighted rows.

    Attributes
    ----------
    names : list
        What the cells are called.
    members : ndarray of shape (n, G)
        Whether a row is in a cell.
    shares : ndarray of shape (G,)
        q^0, the cells' shares of the mass.
    of_shares : set
        Of the shares: which may become which.
    """

    of_shares: Any = None

    def __init__(self, ambiguity: Any, weights: Any, members: np.ndarray, names: list[Any]):
        self.ambiguity, self.members, self.names = ambiguity, members, names
        mass = masses(weights, len(members))
        self.weights = mass / mass.sum()
        mass = self.weights @ members
        if not (mass > 0).all():
            empty = names[int(mass.argmin())]
            raise InvalidDataError(
                f"group {empty!r} has no row of positive weight: drop it, or give its rows weight"
            )
        self._density = members / mass  # dP_g/dP0 of the rows
        self.shares = mass / mass.sum()

    @property
    def cells(self) -> np.ndarray:
        """Mass of each row in each cell, (n, G): columns sum to 1."""
        return self.weights[:, None] * self._density

    def levels(self, unit: float) -> Levels:
        """Return the set as a minimum over levels of the cells' mean losses."""
        return self.of_shares.levels(self.shares, unit)

    def risks(self, losses: Any) -> np.ndarray:
        """Mean losses of the cells, (G,)."""
        return (self.weights * finite_losses(losses, self.weights.size)) @ self._density

    def dual(self, losses: Any, smoothing: float = 0.0) -> Dual:
        """Return the worst mixture of the cells' mean losses; see `Reweighting.dual`."""
        risks = self.risks(losses)
        found = self.of_shares.on(None, self.shares).dual(risks, smoothing)
        return self.mixed(found, self.shares * found.ratio, risks)

    def mixed(self, found: Dual, q: np.ndarray, risks: np.ndarray) -> Dual:
        """The dual of the rows for that of the cells, whose shares become q."""
        return replace(found, ratio=self._density @ q, attained=float(q @ risks))

    def influence(self, dual: Dual, losses: Any) -> np.ndarray:
        """What each loss adds to the value when the rows of each cell are a sample of it.

        The shares of the cells are known: only losses differ from the mean of their cell.
        """
        values = finite_losses(losses, len(self.weights))
        return dual.ratio * values - self._density @ (self._worst_shares(dual) * self.risks(values))

    def _worst_shares(self, dual: Dual) -> np.ndarray:
        return self.members.T @ (self.weights * dual.ratio)


@checked()
class BoundGroup(BoundCells):
    """A group set on n weighted rows: what `Group.on` returns.

    Attributes
    ----------
    names : list
        Labels of the groups, sorted, or the names or indices of the indicator columns.
    members : ndarray of shape (n, G)
        Whether a row is in a group.
    shares : ndarray of shape (G,)
        q^0.
    """

    def __init__(self, ambiguity: Group, weights: Any, groups: Any):
        if groups is None:
            raise InvalidDataError(NO_GROUPS)
        super().__init__(ambiguity, weights, *membership(groups))

    @property
    def of_shares(self) -> TotalVariation:
        """The set of the groups' shares."""
        ambiguity = self.ambiguity
        if ambiguity.penalty is not None:
            return TotalVariation(penalty=ambiguity.penalty)
        return TotalVariation(radius=ambiguity.budget)

    def dual(self, losses: Any, smoothing: float = 0.0) -> GroupDual:
        r"""Return the worst mixture of the groups' mean losses.

        Parameters
        ----------
        losses : array or tensor of shape (n,)
            Finite; larger is worse. Rows of weight 0 count nothing.
        smoothing : float
            delta > 0 subtracts ``delta / 2 * |q - q0|^2``, so that q is continuous in the losses:
            ``value <= exact value <= value + delta * radius^2`` (1 where there is no radius).

        Returns
        -------
        GroupDual
            Exact to rounding: sorting, and for delta > 0 a piecewise linear equation.
        """
        risks = self.risks(losses)
        check_number("smoothing", smoothing, least=0.0)
        if smoothing > 0:
            return self._smooth(risks, float(smoothing))
        found = self.of_shares.dual(risks, self.shares)
        q = self.shares * found.ratio
        numbers = found.value, found.penalty, found.shift
        ratio, attained = self._density @ q, float(q @ risks)
        return GroupDual(*numbers, ratio, attained, found.radius, "dual", q, risks)

    def _worst_shares(self, dual: Any) -> np.ndarray:
        return dual.group_weights  # groups may overlap: the ratio of a row does not say them

    def _smooth(self, risks: np.ndarray, delta: float) -> GroupDual:
        """Water-filling: q = q0 + (risk - high)_+ / delta - min(q0, (low - risk)_+ / delta)."""
        shares, ambiguity = self.shares, self.ambiguity

        def rise(high: Any) -> np.ndarray:
            return np.maximum(risks - high, 0.0) / delta

        def fall(low: Any) -> np.ndarray:
            return np.minimum(shares, np.maximum(low - risks, 0.0) / delta)

        full = risks + delta * shares  # from this level on, all of a group's mass is gone
        price = 0.0 if ambiguity.penalty is None else float(ambiguity.penalty)
        edges = np.concatenate([risks, risks + price, full + price])
        high = crossing(lambda level: rise(level) - fall(level - price), 0.0, edges)
        low = high - price
        if ambiguity.radius is not None and rise(high).sum() > ambiguity.radius:
            radius = float(ambiguity.radius)
            high = crossing(rise, radius, np.append(risks, risks.max() - delta))
            low = -crossing(lambda level: fall(-level), radius, -np.concatenate([risks, full]))
        q = np.maximum(shares + rise(high) - fall(low), 0.0)
        q /= q.sum()
        radius = 0.5 * float(np.abs(q - shares).sum())
        taken = 0.5 * delta * float(((q - shares) ** 2).sum()) + price * radius
        penalty = high - low if ambiguity.penalty is None else price
        ratio, attained = self._density @ q, float(q @ risks)
        numbers = attained - taken, penalty, 0.5 * (high + low)
        return GroupDual(*numbers, ratio, attained, radius, "dual", q, risks)


def crossing(moved: Any, target: float, edges: np.ndarray) -> float:
    """Where a sum over cells, falling and linear between the edges, is the target."""
    edges = np.unique(edges)
    return float(np.interp(0.0, target - moved(edges[:, None]).sum(1), edges))
