"""Several models under the same shifts: one table, one picture, one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drojko._files import write_json
from drojko._validation import checked, shown
from drojko.auditing.reporting.export import plain_of
from drojko.auditing.reporting.page import inline, write_page
from drojko.auditing.reporting.report import AuditReport
from drojko.displays.robustness_curve import RobustnessCurveDisplay
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Comparison", "compare"]


@checked(constructor=False)
@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `audit` returns for a dict of models.

    ``comparison["name"]`` is the `AuditReport` of one of them.

    Attributes
    ----------
    reports : dict of AuditReport
        By the names of the models, in their order.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from drojko import audit
    >>> from drojko.ambiguity import Wasserstein
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[50:], y[50:]
    >>> models = {f"C={C}": LogisticRegression(C=C, max_iter=1000).fit(X, y) for C in (0.1, 10.0)}
    >>> both = audit(models, X, y, Wasserstein(), radii=[0.1, 0.3], random_state=0)
    >>> both.table[["model", "radius", "worst_case_risk"]].round(2)
        model  radius  worst_case_risk
    0   C=0.1     0.1             0.39
    1   C=0.1     0.3             0.50
    2  C=10.0     0.1             0.27
    3  C=10.0     0.3             0.87
    """

    reports: Mapping[str, AuditReport]

    @property
    def table(self) -> pd.DataFrame:
        """The tables of the models under each other, the name in front as ``model``."""
        return compare(self.reports)

    @property
    def findings(self) -> list[str]:
        """All findings, each with the model's name."""
        return [f"{name}: {text}" for name, one in self.reports.items() for text in one.findings]

    def __getitem__(self, name: str) -> AuditReport:
        if name not in self.reports:
            raise InvalidDataError(
                f"{shown(name)} is none of the models: {', '.join(self.reports)}"
            )
        return self.reports[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reports)

    def __len__(self) -> int:
        return len(self.reports)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table

    def plot(self, ax: Axes | None = None, **settings: Any) -> RobustnessCurveDisplay:
        """Draw the curves of all models in the same axes."""
        display: Any = None
        for name, report in self.reports.items():
            ax = ax if display is None else display.ax_
            display = RobustnessCurveDisplay.from_report(report, name=name, ax=ax, **settings)
        return display

    def to_html(self, path: Any) -> Path:
        """Write one self-contained HTML page, whole or not at all, and return its path."""
        return write_page(path, self.reports)

    def to_json(self, path: Any = None) -> str:
        """``{"schema": 1, "models": {name: AuditReport.to_json}}`` as strict JSON."""
        models = {name: plain_of(report) for name, report in self.reports.items()}
        return write_json(path, {"schema": 1, "models": models})

    def _repr_html_(self) -> str:
        return inline(self.reports)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.reports.values()))

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
