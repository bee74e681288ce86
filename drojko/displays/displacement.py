"""Which features the worst case moves: the share of the transport budget that each one takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from drojko._validation import checked, shown
from drojko.displays._style import (
    COLOURS,
    INK,
    MUTED,
    Display,
    check_report,
    label_of,
    note,
    tidy,
    unwrap,
)
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DisplacementDisplay"]


@checked()
@dataclass(eq=False, repr=False)
class DisplacementDisplay(Display):
    r"""Bars: the share of the transport budget by feature, split by class.

    .. math:: \text{share}_{jk} = w_j E[(T(x)_j - x_j)^2\, 1\{y = k\}] \,/\, E\,c(x, T(x))

    Under sets that reweight: the share of the change of the columns' distributions, in standard
    deviations, with the change of each class's mass in the legend.

    Parameters
    ----------
    displacement : DataFrame
        As `WorstCase.displacement` returns it: columns ``feature``, ``share``, ``mean`` and, for
        classification, ``class``.
    share_of : str
        What the shares are shares of, as the axis says it.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier
    >>> from drojko.displays import DisplacementDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = DROClassifier(random_state=0).fit(X[:100], y[:100])
    >>> display = DisplacementDisplay.from_estimator(clf)
    >>> display.ranking()[0]
    'x2'
    """

    displacement: Any
    share_of: str = "transport budget"

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None, **settings: Any) -> Self:
        """Measure the worst case of a fitted estimator and plot it.

        Parameters
        ----------
        estimator : object
            A fitted drojko estimator, or a pipeline or search that ends in one; features are then
            those that the last step sees.
        ax : matplotlib Axes, default=None
        **settings
            For `plot`.
        """
        estimator, _ = unwrap(estimator)
        worst = estimator.worst_case_
        return cls(worst.displacement(), worst.share_of).plot(ax, **settings)

    @classmethod
    def from_report(
        cls, report: Any, *, radius: float | None = None, ax: Axes | None = None, **settings: Any
    ) -> Self:
        """Plot the worst case of an audit, at ``radius`` or else the report's last row."""
        check_report(report)
        worst = report.worst_case(radius)
        return cls(worst.displacement(), worst.share_of).plot(ax, **settings)

    def __post_init__(self) -> None:
        if not {"feature", "share"} <= set(getattr(self.displacement, "columns", ())):
            raise InvalidDataError(
                f"displacement={shown(self.displacement)}; expected what "
                "worst_case_.displacement() returns"
            )

    def ranking(self) -> list[str]:
        """Features, the largest share of the budget first."""
        shares = self.displacement.groupby("feature", sort=False)["share"].sum()
        return shares.sort_values(ascending=False, kind="stable").index.tolist()

    def plot(self, ax: Axes | None = None, *, max_features: int = 10) -> Self:
        """Draw the bars of the ``max_features`` largest shares; the axis label names the rest."""
        if max_features < 1:
            raise InvalidDataError(f"max_features={max_features}; it must be at least 1")
        ranking = self.ranking()
        top, rest = ranking[:max_features], ranking[max_features:]
        frame = self.displacement
        ax = self._begin(ax, figsize=(6.4, 1.6 + 0.34 * len(top)))
        place = np.arange(len(top))
        left = np.zeros(len(top))
        groups = list(frame["class"].unique()) if "class" in frame.columns else [None]
        for k, group in enumerate(groups):
            part = frame if group is None else frame[frame["class"] == group]
            share = part.set_index("feature")["share"].reindex(top).fillna(0.0).to_numpy()
            ax.barh(
                place,
                share,
                left=left,
                height=0.7,
                color=COLOURS[k % len(COLOURS)],
                edgecolor="white",
                linewidth=0.8,
                label=None if group is None else f"class {label_of(group)}{_mass(part)}",
            )
            left = left + share
        for row, value in enumerate(left):
            note(ax, f"{value:.0%}" if value >= 0.005 or value == 0 else "<1%", (value, row), 4)
        ax.set_yticks(place, [str(name) for name in top])
        ax.set_ylim(len(top) - 0.4, -0.6)
        ax.set_xlim(0, max(1e-9, 1.12 * left.max()))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        others = ""
        if rest:
            pooled = float(frame[frame["feature"].isin(rest)]["share"].sum())
            others = f" ({len(rest)} other feature{'s' if len(rest) > 1 else ''}: {pooled:.0%})"
        ax.set_xlabel(f"share of the {self.share_of}{others}")
        tidy(ax, grid="x")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_color(MUTED)
        if len(groups) > 1:
            ax.legend(
                frameon=False,
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                borderaxespad=0.2,
                ncols=min(4, len(groups)),
            )
        if not left.any():
            ax.text(0.5, 0.5, "nothing moves", transform=ax.transAxes, ha="center", color=INK)
        return self


def _mass(part: Any) -> str:
    """How the mass of a class changes, where it does."""
    moved = float(part["mass"].iloc[0]) if "mass" in part.columns else 0.0
    return f" (mass {100 * moved:+.1f} points)" if moved else ""
