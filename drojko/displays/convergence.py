"""How a fit went: objective, transport cost and stationarity over the iterations."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from drojko._validation import checked, shown
from drojko.displays._style import COLOURS, MUTED, Display, note, tidy, unwrap
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ConvergenceDisplay"]

_TITLES = {
    "robust_risk": "robust risk",
    "transport_cost": "transport cost",
    "penalty": "penalty",
    "stationarity": "stationarity",
}


@checked()
@dataclass(eq=False, repr=False)
class ConvergenceDisplay(Display):
    r"""The history of a fit, one panel for each quantity, over the iterations.

    Parameters
    ----------
    history : DataFrame
        As ``estimator.history_``: columns ``iteration``, ``robust_risk``, ``penalty``,
        ``transport_cost`` and ``stationarity``.
    budget : float, default=None
        The transport cost that the ambiguity set allows, radius**2: a line in its panel.
    status : str, default=None
        How the fit ended; part of the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The first panel.
    axes_ : ndarray of Axes
        All panels.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier
    >>> from drojko.displays import ConvergenceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = DROClassifier(random_state=0).fit(X[:100], y[:100])
    >>> display = ConvergenceDisplay.from_estimator(clf)
    >>> len(display.history) == clf.n_iter_, display.axes_.shape
    (True, (3,))
    """

    history: Any
    _: KW_ONLY
    budget: float | None = None
    status: str | None = None

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None, **settings: Any) -> Self:
        """Take the history of a fitted estimator and plot it.

        Parameters
        ----------
        estimator : object
            A fitted drojko estimator, or a pipeline or search that ends in one.
        ax : matplotlib Axes, default=None
        **settings
            For `plot`.
        """
        estimator, _ = unwrap(estimator)
        ambiguity = estimator._nested("ambiguity")
        display = cls(estimator.history_, budget=ambiguity.budget, status=estimator.status_)
        return display.plot(ax, **settings)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        quantities: tuple[str, ...] = ("robust_risk", "transport_cost", "stationarity"),
    ) -> Self:
        """Draw the panels one below the other; within ``ax``, which is divided, or a new figure.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        quantities : tuple of str
            Columns of the history.
        """
        listed = isinstance(quantities, list | tuple) and len(quantities) > 0
        if not listed or not all(isinstance(name, str) and name in _TITLES for name in quantities):
            raise InvalidDataError(
                f"quantities={shown(quantities)}; choose among {', '.join(_TITLES)}"
            )
        self.axes_ = self._panels(ax, len(quantities))
        self.ax_ = self.axes_[0]
        iteration = np.asarray(self.history["iteration"], dtype=float)
        for panel, name in zip(self.axes_, quantities):
            values = np.asarray(self.history[name], dtype=float)
            known = np.isfinite(values)
            marker = "o" if known.sum() <= 40 else ""
            panel.plot(
                iteration[known], values[known], color=COLOURS[0], marker=marker, markersize=3.5
            )
            panel.set_ylabel(_TITLES[name])
            if name in ("stationarity", "penalty") and known.any() and (values[known] > 0).all():
                panel.set_yscale("log")
            if name == "transport_cost" and self.budget:
                panel.axhline(self.budget, color=MUTED, linestyle="--", linewidth=1)
                note(panel, "radius²", (1, self.budget), 3, xycoords=("axes fraction", "data"))
            if not known.any():
                panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center")
            tidy(panel)
        self.axes_[-1].set_xlabel("iteration")
        if self.status:
            self.ax_.set_title(f"status: {self.status}", loc="left", fontsize="medium")
        return self

    def _panels(self, ax: Axes | None, count: int) -> np.ndarray:
        """Axes below each other, in place of the given one or of that of a new figure."""
        ax = self._begin(ax, figsize=(6.4, 1.2 + 1.7 * count))
        if count == 1:
            return np.array([ax])
        spec = ax.get_subplotspec()
        if spec is None:
            raise InvalidDataError(
                "several quantities need axes from plt.subplots, which can be divided; or pass one "
                "quantity, or ax=None"
            )
        ax.set_axis_off()
        grid: Any = spec.subgridspec(count, 1)
        return grid.subplots(sharex=True, squeeze=False)[:, 0]
