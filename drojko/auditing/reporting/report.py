"""What an audit found: a table over the radii, checks, certificates, and the worst cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drojko._files import check_path, write_json, write_table
from drojko._validation import checked
from drojko.auditing.reading.space import Space
from drojko.auditing.reporting.decision import Decision, crossings, decide, useful_bounds
from drojko.auditing.reporting.export import plain_of
from drojko.auditing.reporting.meaning import meaning_of
from drojko.auditing.reporting.moves import (
    Moves,
    carriers_of,
    moves_of,
    shares_of,
    slices_of,
    swaps_of,
    top_moves,
)  # fmt: skip
from drojko.auditing.reporting.page import inline, write_page
from drojko.certificates import Certificate
from drojko.displays.robustness_curve import RobustnessCurveDisplay
from drojko.estimators.observed import ObservedShift
from drojko.exceptions import InvalidDataError
from drojko.inner.worst_case import WorstCase

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["COLUMNS", "AuditReport"]

#: Columns of `AuditReport.table` after the first one, "radius" or "penalty".
COLUMNS = (
    "nominal_risk", "random_noise_risk", "ascent_risk", "worst_case_risk", "upper_bound", "proof",
    "transport_cost", "nominal_accuracy", "worst_case_accuracy", "nominal_auc", "worst_case_auc",
    "nominal_brier", "worst_case_brier", "nominal_ece", "worst_case_ece", "finding",
)  # fmt: skip


@checked(constructor=False)
@dataclass(frozen=True, eq=False, repr=False)
class AuditReport:
    r"""How bad the worst shift of each size is, and what it looks like.

    Attributes
    ----------
    table : DataFrame
        A row per size, the mildest first: ``radius`` (or ``penalty``; of `CVaR` alpha), then
        ``nominal_risk``, ``random_noise_risk`` (noise of the same transport cost),
        ``ascent_risk`` (gradient ascent of every row, with restarts, within the budget; NaN
        without gradients), ``worst_case_risk`` (attained: the worst that was found),
        ``upper_bound`` (no distribution within the transport cost does worse) and its ``proof``,
        ``transport_cost``; of classifications (NaN elsewhere) accuracies, areas under the ROC
        curve and, of probabilities, Brier scores and expected calibration errors; and ``finding``:
        what a reader must know, empty where there is nothing.
    checks : DataFrame
        A row per size and check: ``check``, ``value``, ``passed``, ``detail``.
    certificates : tuple of Certificate
        One per row of the table.
    worst_cases : tuple of WorstCase
        One per row of the table, by `worst_case`.
    problem : object
        Model, rows and loss as they were audited, which the methods ask.
    name : str
        The audited model.
    about : dict
        How it was audited: note on gradients, ambiguity set, loss, reference, units, counts.
    space : Space
        Between the user's table and the matrix whose rows move.
    classes : ndarray or None
        Labels; None for regression.
    image_shape : tuple of int or None
        Rows of X as pictures.
    ambiguity : AmbiguitySet
        The set as the user gave it.
    limit : dict
        What must not be crossed, by "accuracy", "auc" or "risk".
    observed : ObservedShift or None
        The shift that a new sample shows, in the units of the set.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from drojko import audit
    >>> from drojko.ambiguity import Wasserstein
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X[:100], y[:100])
    >>> report = audit(model, X[:100], y[:100], Wasserstein(), radii=[0, 0.5, 1], random_state=0)
    >>> report.table[["radius", "worst_case_risk", "upper_bound"]].round(3).to_numpy().tolist()
    [[0.0, 0.023, 0.023], [0.5, 0.214, 0.214], [1.0, 0.639, 0.639]]
    >>> report.displacement().groupby("feature")["share"].sum().idxmax()
    'petal length (cm)'
    """

    table: pd.DataFrame
    checks: pd.DataFrame
    certificates: tuple[Certificate, ...]
    worst_cases: tuple[WorstCase | None, ...]
    name: str
    about: Mapping[str, Any]
    space: Space
    classes: np.ndarray | None
    problem: Any = field(default=None)
    image_shape: tuple[int, int] | None = None
    ambiguity: Any = None
    limit: Mapping[str, float] = field(default_factory=dict)
    observed: ObservedShift | None = None

    # -- what it says ------------------------------------------------------------------------

    @property
    def crossed(self) -> dict[str, float]:
        """The smallest size at which each limit was found crossed, of those that were."""
        return crossings(self)

    @cached_property
    def decision(self) -> Decision:
        """What a reader needs first: see `Decision`; its parts are sentences, ``str`` all of it."""
        return decide(self)

    @cached_property
    def meaning(self) -> pd.DataFrame:
        """What each size means in the data, a row for each.

        Where rows move: ``length``, how far they go on average (root mean square in order 2), in
        the units of the set, ``share_of_spread`` of the distance of rows from their mean,
        ``times_halves``, the distance between two random halves of at most 250 rows of a class,
        and ``times_observed``, the shift that was seen (`audit`'s ``compare_to``). Where masses
        change: ``effective_share`` of the rows, the ``largest_ratio`` by which a row counts more,
        ``mass_moved``, and ``times_observed``. NaN where there is nothing to compare with.
        """
        sizes, kept = self.table[self.size], range(len(self.table))
        moves = [self._moves(k) if self.worst_cases[k] is not None else None for k in kept]
        parts = (self.problem, self.certificates, moves, self.observed, self.size)
        return meaning_of(sizes.tolist(), *parts)

    @cached_property
    def bounds(self) -> np.ndarray:
        """The upper bounds that say something, one a row; NaN where none is useful.

        Left out: estimates without a proof, the largest loss of any answer, and bounds far above
        both what was found and every loss in the worst case.
        """
        kept = range(len(self.table))
        largest = [
            math.nan if self.worst_cases[k] is None else self._moves(k).after.losses.max()
            for k in kept
        ]
        return useful_bounds(self.table, np.array(largest))

    # -- looking up --------------------------------------------------------------------------

    @property
    def size(self) -> str:
        """Name of the first column: "radius" or "penalty"."""
        return str(self.table.columns[0])

    @property
    def findings(self) -> list[str]:
        """All findings, once each, in the order of the rows."""
        parts = [p for text in self.table["finding"] for p in str(text).split("; ") if p]
        return list(dict.fromkeys(parts))

    def _index(self, radius: float | None) -> int:
        if radius is None:
            return len(self.table) - 1
        sizes = self.table[self.size].to_numpy(dtype=float)
        near = np.flatnonzero(np.abs(sizes - radius) <= 1e-9 * np.maximum(1.0, np.abs(sizes)))
        if not len(near):
            known = ", ".join(f"{s:g}" for s in sizes)
            raise InvalidDataError(
                f"{self.size}={radius!r} was not audited; known: {known}. Give it to audit as one "
                "of radii"
            )
        return int(near[0])

    def certificate(self, radius: float | None = None) -> Certificate:
        """The certificate at a radius of the table; None: of the last row."""
        return self.certificates[self._index(radius)]

    def worst_case(self, radius: float | None = None) -> WorstCase:
        """The worst case at a radius of the table; None: of the last row.

        Raises `InvalidDataError` for a radius that was not audited, or without a worst case (the
        model's answers are not finite).
        """
        worst = self.worst_cases[self._index(radius)]
        if worst is None:
            raise InvalidDataError(
                f"there is no worst case: {'; '.join(self.findings) or 'nothing was measured'}"
            )
        return worst

    def _moves(self, index: int) -> Moves:
        """Rows before and after at one size, computed once."""
        known = self.__dict__.setdefault("_known", {})
        if index not in known:
            worst = self.worst_cases[index]
            assert worst is not None
            known[index] = moves_of(worst, self.problem)
        return known[index]

    def _at(self, radius: float | None) -> tuple[Moves, WorstCase]:
        worst = self.worst_case(radius)
        return self._moves(self._index(radius)), worst

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_known"}

    def displacement(self, radius: float | None = None) -> pd.DataFrame:
        """Which features move: a row per feature and class, with its ``share`` of the budget.

        Under sets that reweight: how their distributions change, and ``share`` in standard
        deviations.
        """
        found = self.worst_case(radius).displacement()
        if self.space.missing is None:
            return found
        # Of columns with missing values, for which a number stands, nothing is known.
        lost = (self.problem.x == self.space.missing).any(0).tolist()
        hidden = [name for name, odd in zip(self.space.names, lost, strict=True) if odd]
        numbers = [name for name in found if name not in ("class", "feature", "mass")]
        found.loc[found.feature.isin(hidden), numbers] = math.nan
        found["share"] /= found.share.sum() or 1.0
        return found

    def moves(self, n: int = 10, radius: float | None = None) -> pd.DataFrame:
        """The most harmful moves: rows before and after, as the user's table shows them.

        Under sets that reweight: the rows of the largest worst-case mass times loss.

        Two rows per move, indexed by ``row`` (position in X) and ``state`` ("before", "after");
        the columns of X, then ``target``, ``prediction``, ``loss``, ``mass`` and ``harm``, the
        part of the rise of the risk that this move makes.
        """
        return top_moves(self._at(radius)[0], self.problem, n)

    def carriers(self, radius: float | None = None) -> pd.DataFrame:
        """Which columns of X carry the shift: a row for each, the largest share first.

        ``share`` of the transport budget, swaps of categories at their price; under sets that
        reweight, of the change of the columns in standard deviations, whatever their units.
        ``mean`` move in the units of X and ``in_spreads``, in standard deviations of the column;
        NaN for categories.
        """
        return carriers_of(*self._at(radius), self.problem)

    def swaps(self, radius: float | None = None) -> pd.DataFrame:
        """Categories that change, a row for each pair: ``column``, ``before``, ``after``, ``mass``.

        The largest ``mass``, the share of the rows, first; labels that change are swaps of the
        "target". Empty where nothing is swapped.
        """
        return swaps_of(self._at(radius)[0], self.problem)

    @property
    def groups(self) -> pd.DataFrame:
        """`shares` of the groups that `audit` was given, in the last row; empty without any."""
        return self.shares("group")

    def shares(self, by: str = "class", radius: float | None = None) -> pd.DataFrame:
        """Which classes or groups the worst case is made of: a row for each.

        Columns: ``by`` ("class" or "group"), ``mass``, ``risk`` (mean loss) and ``accuracy`` today
        (NaN for regression), and ``worst_case_mass``, ``worst_case_risk``, ``worst_case_accuracy``.
        Empty for the classes of a regression, and where `audit` was given no groups.
        """
        if by not in ("class", "group"):
            raise InvalidDataError(f"by={by!r}; expected 'class' or 'group'")
        moves, worst = self._at(radius)
        return shares_of(moves, worst, self.problem, by)

    def slices(self, by: Any, radius: float | None = None, *, bins: int = 4) -> pd.DataFrame:
        """Mass, mean loss and accuracy of the rows, slice by slice of a column.

        Parameters
        ----------
        by : str, int or array-like of shape (n,)
            A column of X, "target" for the labels, or a value of your own for each row of X.
            Numbers of more than ten values are cut at quantiles of today's rows; missing values
            are a slice of their own. Rows are in the slice where they were before the move.
        radius : float, default=None
            As in `worst_case`.
        bins : int, default=4
            How many quantiles.

        Returns
        -------
        DataFrame
            Columns as of `shares`, the first named as the column (``mass_`` of a column "mass").

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from drojko import audit
        >>> from drojko.ambiguity import KL
        >>> X, y = load_iris(return_X_y=True, as_frame=True)
        >>> model = LogisticRegression(max_iter=1000).fit(X, y)
        >>> report = audit(model, X, y, KL(radius=0.1), random_state=0)
        >>> report.slices("petal width (cm)", bins=3)[["mass", "worst_case_mass"]].round(2)
           mass  worst_case_mass
        0  0.38             0.30
        1  0.30             0.35
        2  0.32             0.35
        """
        return slices_of(self._at(radius)[0], self.problem, by, bins)

    def images(self, n: int = 10, radius: float | None = None) -> np.ndarray:
        """The most harmful moves as pictures, shape (n, 2, height, width): before and after.

        Raises `InvalidDataError` unless the audit was given ``images=(height, width)``.
        """
        if self.image_shape is None:
            raise InvalidDataError("rows are pictures only where audit was given images=(h, w)")
        found = self._at(radius)[0].top(n)
        pairs = np.stack([found.before.x, found.after.x], axis=1)
        return pairs.reshape(len(pairs), 2, *self.image_shape)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def samples(self, n: int = 1000, radius: float | None = None, random_state: Any = 0) -> Any:
        """``n`` draws of the worst case as a DataFrame like X, the label in ``target``."""
        x, y = self.worst_case(radius).sample(n, random_state)
        decoded = self.space.table(x)
        name = "target"
        while name in decoded.columns:
            name = f"{name}_"
        decoded[name] = y
        return decoded

    def export(self, path: Any, radius: float | None = None, n: int = 1000) -> Path:
        """Write ``n`` worst-case samples to a .csv or .parquet file and return its path.

        Text that a spreadsheet would take for a formula is written with an apostrophe before it.
        """
        path = check_path(path)
        write_table(self.samples(n, radius), path)
        return path

    # -- pictures ----------------------------------------------------------------------------

    def plot(self, ax: Axes | None = None, **settings: Any) -> RobustnessCurveDisplay:
        """Draw the curves over the radii."""
        return RobustnessCurveDisplay.from_report(self, ax=ax, **settings)

    def to_html(self, path: Any) -> Path:
        """Write one self-contained HTML page, whole or not at all, and return its path.

        Where the audit was given ``groups``, it says how they differ (`drojko.shift_report`).
        """
        return write_page(path, {self.name: self})

    def to_json(self, path: Any = None) -> str:
        """The report as strict JSON; with a path it is written there as well, whole or not at all.

        An object with ``schema`` (1), ``drojko`` (version), ``name``, ``about``, ``size`` ("radius"
        or "penalty"), ``findings``, ``decision`` (``headline``, ``limits``, ``meaning``,
        ``carriers``: sentences; ``steps``: ``text`` and ``code``), ``observed`` (``distance``,
        ``interval``, ``noise``, ``message``; null without one), and lists of objects, one a row:
        ``table``, ``meaning`` and ``checks``, as the frames of these names, with ``useful_bound``
        in the table. ``shifts`` holds an object a size: the size, ``carriers``, ``classes``,
        ``groups`` and ``swaps`` (null without a worst case). What is no number, or infinite, is
        null, as JSON has neither; an infinite worst case is among the findings.
        """
        return write_json(path, plain_of(self))

    def _repr_html_(self) -> str:
        return inline({self.name: self})

    def __str__(self) -> str:
        shown = self.table.drop(columns="finding")
        lines = [f"Audit of {self.name} ({self.about.get('rows', '?')} rows)", ""]
        lines += [*(f"- {text}" for text in self.findings), ""] if self.findings else []
        if self.problem is not None:
            shown["upper_bound"] = self.bounds  # none where none is useful
            lines += [str(self.decision), ""]
        text = shown.to_string(index=False, float_format=lambda v: f"{v:.4g}", na_rep="-")
        lines.append(text)
        return "\n".join(lines)

    __repr__ = __str__
