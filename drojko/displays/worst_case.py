"""The worst case seen in two features: where the reference is, and where its mass is moved to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from drojko._validation import checked, shown
from drojko.displays._style import (
    COLOURS,
    INK,
    MARKERS,
    MUTED,
    Display,
    check_report,
    label_of,
    tidy,
    unwrap,
)
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["WorstCaseDisplay"]

_MOST_CLASSES = len(COLOURS)


@checked()
@dataclass(eq=False, repr=False, kw_only=True)
class WorstCaseDisplay(Display):
    r"""Draws x of the reference, arrows x -> T(x), and their images in the worst case.

    Parameters
    ----------
    source, target : ndarray of shape (n, 2)
        The draws and where they are moved to, in the two features of the picture.
    y : ndarray of shape (n,)
        Their labels.
    features : tuple of str
        Names of the two features.
    classes : ndarray, default=None
        All labels of a classification; None: regression, coloured by y.
    share : float, default=None
        Share of the transport budget that these two features take.
    boundary : tuple of ndarray, default=None
        ``(first, second, margins)``: grids of shape (k,) and (m,), and by how much each class is
        preferred to all others there, of shape (n_classes, m, k). For models of two features.
    columns : tuple of int, default=(0, 1)
        Indices of the two features.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier
    >>> from drojko.displays import WorstCaseDisplay
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> clf = DROClassifier(random_state=0).fit(X[:100], y[:100])
    >>> display = WorstCaseDisplay.from_estimator(clf, n_samples=50)
    >>> display.features, display.source.shape
    (('sepal width (cm)', 'petal length (cm)'), (50, 2))
    """

    source: Any
    target: Any
    y: Any
    features: tuple[str, str]
    classes: Any = None
    share: float | None = None
    boundary: tuple[Any, Any, Any] | None = None
    columns: tuple[int, int] = (0, 1)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        features: tuple[Any, Any] | None = None,
        n_samples: int = 200,
        random_state: int | None = 0,
        ax: Axes | None = None,
        **settings: Any,
    ) -> Self:
        """Draw from the worst case of a fitted estimator, and plot.

        Parameters
        ----------
        estimator : object
            A fitted drojko estimator, or a pipeline or search that ends in one; features are then
            those that the last step sees.
        features : pair of names or indices, default=None
            None: the two that take the largest share of the transport budget.
        n_samples : int, default=200
        random_state : int or None, default=0
            Chooses the draws.
        ax : matplotlib Axes, default=None
        **settings
            For `plot`.
        """
        model, _ = unwrap(estimator)
        display = cls._from_worst_case(model.worst_case_, features, n_samples, random_state)
        if display.classes is not None and model.n_features_in_ == 2:
            display.boundary = _boundary(model, display)
        return display.plot(ax, **settings)

    @classmethod
    def from_report(
        cls,
        report: Any,
        *,
        radius: float | None = None,
        features: tuple[Any, Any] | None = None,
        n_samples: int = 200,
        random_state: int | None = 0,
        ax: Axes | None = None,
        **settings: Any,
    ) -> Self:
        """Plot the worst case of an audit, at ``radius`` or else the report's last row."""
        check_report(report)
        worst = report.worst_case(radius)
        return cls._from_worst_case(worst, features, n_samples, random_state).plot(ax, **settings)

    @classmethod
    def _from_worst_case(cls, worst: Any, features: Any, n_samples: int, seed: Any) -> Self:
        if n_samples < 1:
            raise InvalidDataError(f"n_samples={n_samples}; it must be at least 1")
        x, image, y, w = worst.pairs()
        names = worst.names
        if len(names) < 2:
            raise InvalidDataError("a picture of the worst case needs 2 features; there is 1")
        spent = worst.displacement().groupby("feature", sort=False)["share"].sum()
        if features is None:
            order = np.argsort(-spent.to_numpy(), kind="stable")[:2]
            columns = sorted(int(j) for j in order)
        else:
            if not isinstance(features, list | tuple):
                raise InvalidDataError(f"features={shown(features)}; expected two names or indices")
            columns = [_column(name, names) for name in features]
            if len(set(columns)) != 2:
                raise InvalidDataError(f"features={features!r}; expected two different ones")
        rows = np.random.default_rng(seed).choice(
            len(w), size=min(n_samples, int((w > 0).sum())), replace=False, p=w / w.sum()
        )
        first, second = columns
        return cls(
            source=x[rows][:, columns],
            target=image[rows][:, columns],
            y=np.asarray(y)[rows],
            features=(str(names[first]), str(names[second])),
            classes=worst.classes,
            share=float(spent.iloc[first] + spent.iloc[second]),
            columns=(first, second),
        )

    def plot(self, ax: Axes | None = None, *, arrows: bool = True, boundary: bool = True) -> Self:
        """Draw: hollow marks for the reference, filled ones for the worst case.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        arrows : bool, default=True
            Whether to connect each draw with its image.
        boundary : bool, default=True
            Whether to draw the decision regions, where they are known.
        """
        ax = self._begin(ax, figsize=(6.4, 5.0))
        source, target = np.asarray(self.source), np.asarray(self.target)
        if boundary and self.boundary is not None:
            _draw_boundary(ax, *self.boundary)
        if arrows:
            _draw_arrows(ax, source, target)
        handles = self._plot_rows(ax, source, target)
        handles.append(_handle("o", MUTED if self.classes is None else INK, False, "reference"))
        handles.append(_handle("o", INK, True, "worst case"))
        ax.legend(
            handles=handles, loc="upper right", frameon=True, framealpha=0.9, edgecolor="none",
            fontsize="small",
        )  # fmt: skip
        ax.set_xlabel(self.features[0])
        ax.set_ylabel(self.features[1])
        if self.share is not None and 0.0 < self.share < 0.995:
            ax.set_title(
                f"these two features take {self.share:.0%} of the budget",
                loc="left", fontsize="small", color=INK,
            )  # fmt: skip
        tidy(ax, grid=None)
        return self

    def _plot_rows(self, ax: Axes, source: np.ndarray, target: np.ndarray) -> list[Any]:
        """Marks of the rows by class, or coloured by y; what the legend says of classes."""
        before: dict[str, Any] = {"facecolor": "white", "zorder": 2}
        after: dict[str, Any] = {"edgecolor": "white", "s": 28, "zorder": 4}
        if self.classes is None:
            ax.scatter(*source.T, edgecolor=MUTED, linewidth=0.9, s=26, **before)
            colours = np.asarray(self.y, float)
            drawn = ax.scatter(*target.T, c=colours, cmap="cividis", linewidth=0.4, **after)
            self.figure_.colorbar(drawn, ax=ax, label="y", fraction=0.05)
            return []
        if len(self.classes) > _MOST_CLASSES:
            raise InvalidDataError(
                f"{len(self.classes)} classes; at most {_MOST_CLASSES} can be told apart"
            )
        handles = []
        for label, colour, marker in zip(self.classes, COLOURS, MARKERS):
            rows, mark = np.asarray(self.y) == label, {"marker": marker}
            ax.scatter(*source[rows].T, edgecolor=colour, linewidth=0.8, s=18, **mark, **before)
            ax.scatter(*target[rows].T, facecolor=colour, linewidth=0.5, **mark, **after)
            handles.append(_handle(marker, colour, True, f"class {label_of(label)}"))
        return handles


def _handle(marker: str, colour: str, filled: bool, label: str) -> Any:
    from matplotlib.lines import Line2D

    face = colour if filled else "white"
    return Line2D(
        [], [], linestyle="", marker=marker, markerfacecolor=face, markeredgecolor=colour,
        label=label,
    )  # fmt: skip


def _column(name: Any, names: tuple[str, ...]) -> int:
    if isinstance(name, str) and name in names:
        return names.index(name)
    if isinstance(name, int | np.integer) and -len(names) <= name < len(names):
        return int(name) % len(names)
    raise InvalidDataError(
        f"feature {name!r} is unknown; give an index below {len(names)} or one of "
        f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    )


def _boundary(model: Any, display: WorstCaseDisplay, size: int = 150) -> tuple[Any, Any, Any]:
    """Margins of all classes on a grid around all marks."""
    both = np.concatenate([display.source, display.target])
    edge = 0.08 * np.ptp(both, axis=0) + 1e-12
    low, high = both.min(axis=0) - edge, both.max(axis=0) + edge
    first, second = (np.linspace(low[j], high[j], size) for j in range(2))
    grid = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    if display.columns == (1, 0):
        grid = grid[:, ::-1]
    scores = model._predictions(np.ascontiguousarray(grid))
    if scores.ndim == 1:
        scores = np.column_stack([-scores, scores])
    # The margin over the best other class: positive where this class is predicted.
    top = np.sort(scores, axis=1)[:, -2:]
    other = np.where(scores == top[:, 1:], top[:, :1], top[:, 1:])
    return first, second, (scores - other).T.reshape(-1, size, size)


def _draw_boundary(ax: Axes, first: Any, second: Any, margins: Any) -> None:
    for colour, margin in zip(COLOURS, margins):
        if margin.max() > 0:
            ax.contourf(
                first, second, margin, levels=[0.0, np.inf], colors=[colour], alpha=0.12, zorder=0
            )
        if margin.min() < 0 < margin.max():
            ax.contour(first, second, margin, levels=[0.0], colors=[INK], linewidths=1.0, zorder=1)
    ax.set_xlim(first[0], first[-1])
    ax.set_ylim(second[0], second[-1])


def _draw_arrows(ax: Axes, source: np.ndarray, target: np.ndarray) -> None:
    move = target - source
    extent = np.ptp(np.concatenate([source, target]), axis=0) + 1e-300
    seen = np.abs(move / extent).max(axis=1) > 2e-3  # shorter ones would be dots
    if seen.any():
        ax.quiver(
            *source[seen].T, *move[seen].T, angles="xy", scale_units="xy", scale=1,
            width=0.0018, headwidth=5, headlength=6, headaxislength=5, color="#6B6B6B",
            alpha=0.75, zorder=3,
        )  # fmt: skip
