"""What the displays share: colours, axes, notes, and the way into meta-estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from drojko._validation import shown
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "MARKERS", "MUTED", "Display", "label_of", "note", "tidy", "unwrap"]

#: Colours that colour-blind readers tell apart, after M. Okabe and K. Ito (2008), "Color universal
#: design"; yellow comes last, as it is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
#: Classes differ in shape as well, for print without colour.
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
INK, MUTED = "#333333", "#9A9A9A"


class Display:
    """What is drawn knows where: ``ax_`` and ``figure_`` once ``plot`` was called."""

    ax_: Axes
    figure_: Figure

    def _begin(self, ax: Axes | None, **figure: Any) -> Axes:
        """The axes to draw in: the given ones, or those of a new figure."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(layout="constrained", **figure)[1]
        if isinstance(ax, type) or not hasattr(ax, "get_subplotspec"):
            raise InvalidDataError(f"ax={shown(ax)}; expected axes of matplotlib, or None")
        self.ax_, self.figure_ = ax, ax.figure  # pyright: ignore
        return self.ax_


def note(ax: Axes, text: str, at: tuple[float, float], right: float, **where: Any) -> None:
    """Small text a few points to the right of a place."""
    style = {"va": "center", "fontsize": "small", "color": INK}
    ax.annotate(text, at, xytext=(right, 0), textcoords="offset points", **style, **where)


def tidy(ax: Axes, *, grid: str | None = "both") -> None:
    """Take away the frame that carries no information, and draw a faint grid behind the data."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
    ax.tick_params(color=MUTED)
    ax.set_axisbelow(True)
    if grid is not None:
        ax.grid(True, axis=grid, color="#E6E6E6", linewidth=0.8)  # pyright: ignore


def unwrap(estimator: Any, X: Any = None) -> tuple[Any, Any]:
    """Return the fitted drojko estimator inside of a search or pipeline, and X as it sees it."""
    if hasattr(estimator, "best_estimator_"):
        return unwrap(estimator.best_estimator_, X)
    if hasattr(estimator, "steps"):
        if X is not None and len(estimator.steps) > 1:
            X = estimator[:-1].transform(X)
        return unwrap(estimator.steps[-1][1], X)
    if not hasattr(estimator, "robust_certificate"):
        raise InvalidDataError(
            f"{type(estimator).__name__} is no drojko estimator, nor a pipeline or search that "
            "ends in one"
        )
    return estimator, X


def check_report(report: Any) -> None:
    """Raise unless an object is a report of an audit."""
    if isinstance(report, type) or not hasattr(
        report, "worst_case" if hasattr(report, "worst_case") else "table"
    ):
        raise InvalidDataError(f"report={shown(report)}; expected what drojko.audit returns")


def label_of(value: Any) -> str:
    """Return how a legend writes a class label: numpy scalars as plain numbers."""
    return str(value.item() if isinstance(value, np.generic) else value)
