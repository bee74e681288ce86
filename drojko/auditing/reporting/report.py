"""What an audit found: a table over the radii, checks, certificates, and the worst cases."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drojko._files import check_path, replacing, write_table
from drojko._validation import checked, shown
from drojko.auditing.reading.space import Space
from drojko.auditing.reporting.moves import moves_of, shares_of, top_moves
from drojko.auditing.reporting.page import render
from drojko.certificates import Certificate
from drojko.displays.robustness_curve import RobustnessCurveDisplay
from drojko.exceptions import InvalidDataError
from drojko.inner.worst_case import WorstCase

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["COLUMNS", "AuditReport", "compare"]

#: Columns of `AuditReport.table` after the first one, "radius" or "penalty".
COLUMNS = (
    "nominal_risk", "random_noise_risk", "ascent_risk", "worst_case_risk", "upper_bound", "proof",
    "transport_cost", "nominal_accuracy", "worst_case_accuracy", "nominal_auc", "worst_case_auc",
    "finding",
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
        ``transport_cost``, accuracies and areas under the ROC curve (NaN for regression), and
        ``finding``: what a reader must know, empty where there is nothing.
    checks : DataFrame
        A row per size and check: ``check``, ``value``, ``passed``, ``detail``.
    certificates : tuple of Certificate
        One per row of the table.
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
        return top_moves(self.worst_case(radius), self.problem, n)

    @property
    def groups(self) -> pd.DataFrame:
        """`shares` of the groups that `audit` was given, in the last row; empty without any."""
        return self.shares("group")

    def shares(self, by: str = "class", radius: float | None = None) -> pd.DataFrame:
        """Which classes or groups the worst case is made of: a row for each.

        Columns: ``by`` ("class" or "group"), ``mass`` and ``risk`` (mean loss) today, and
        ``worst_case_mass`` and ``worst_case_risk``. Empty for the classes of a regression, and
        where `audit` was given no groups.
        """
        if by not in ("class", "group"):
            raise InvalidDataError(f"by={by!r}; expected 'class' or 'group'")
        return shares_of(self.worst_case(radius), self.problem, by)

    def images(self, n: int = 10, radius: float | None = None) -> np.ndarray:
        """The most harmful moves as pictures, shape (n, 2, height, width): before and after.

        Raises `InvalidDataError` unless the audit was given ``images=(height, width)``.
        """
        if self.image_shape is None:
            raise InvalidDataError("rows are pictures only where audit was given images=(h, w)")
        found = moves_of(self.worst_case(radius), self.problem, n)
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
        """Write one self-contained HTML page, whole or not at all, and return its path."""
        path = check_path(path)
        page = render(self).encode("utf-8", "xmlcharrefreplace")
        with replacing(path) as file:
            file.write(page)
        return path

    def __str__(self) -> str:
        shown = self.table.drop(columns="finding")
        lines = [f"Audit of {self.name} ({self.about.get('rows', '?')} rows)", ""]
        lines.append(shown.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
        lines += ["", *(f"- {text}" for text in self.findings)] if self.findings else []
        return "\n".join(lines)

    __repr__ = __str__


def compare(
    reports: Mapping[str, AuditReport] | Sequence[AuditReport],
) -> pd.DataFrame:
    """The tables of several audits under each other, with the model's name in front.

    Parameters
    ----------
    reports : mapping from names to AuditReport, or sequence of AuditReport

    Examples
    --------
    >>> compare([])
    Traceback (most recent call last):
        ...
    drojko.exceptions.InvalidDataError: compare needs one report or more
    """
    import pandas as pd

    pairs = list(reports.items()) if isinstance(reports, Mapping) else []
    if not pairs and isinstance(reports, list | tuple | Iterator):
        pairs = [(getattr(one, "name", ""), one) for one in reports]
    wrong = [one for _, one in pairs if not isinstance(one, AuditReport)]
    if wrong:
        raise InvalidDataError(f"compare: {shown(wrong[0])} is no AuditReport")
    tables: dict[str, pd.DataFrame] = {}
    seen: Counter[str] = Counter()
    for name, report in pairs:
        seen[name] += 1
        tables[f"{name} ({seen[name]})" if seen[name] > 1 else str(name)] = report.table
    if not tables:
        raise InvalidDataError("compare needs one report or more")
    return pd.concat(tables, names=["model"]).reset_index("model").reset_index(drop=True)
