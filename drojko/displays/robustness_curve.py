"""The risk of a fixed model over the radius: nominal, attained in the worst case, and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import clone

from drojko._validation import checked, floats, shown
from drojko.displays._style import COLOURS, Display, check_report, tidy, unwrap
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RobustnessCurveDisplay"]

_EXACT = 1e-3  # relative gap below which the two sides of a certificate are one line
_LOG = 30.0  # ratio of risks above which the axis is logarithmic
_UNPROVEN, _NO_BOUND = "local-estimate", "largest-loss"


@checked()
@dataclass(eq=False, repr=False, kw_only=True)
class RobustnessCurveDisplay(Display):
    r"""Worst-case risk of a fixed model on given data, over the radius of the ambiguity set.

    .. math:: r \mapsto \sup\{E_P\,\ell : D(P, P_0) \le r\}, \quad
              P_0 \text{ the empirical measure of } (X, y)

    Parameters
    ----------
    radii : ndarray of shape (m,)
    nominal_risk : float
        The risk on the data themselves.
    worst_case_risk, upper_bound : ndarray of shape (m,)
        Attained by a measure within the radius, and the dual bound.
    proof : sequence of str
        What proves each bound, as in `Certificate`; bounds by the largest loss are not drawn.
    name : str, default=None
        Of the model, for the legend.
    nominal_accuracy : float, default=None
    worst_case_accuracy : ndarray of shape (m,), default=None
        Under the data and the worst cases found, where known; ``plot(metric="accuracy")``.
    unit : str, default="radius (units of X)"
        What the horizontal axis shows.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier
    >>> from drojko.displays import RobustnessCurveDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[:100], y[:100]
    >>> small = DROClassifier(random_state=0).set_params(ambiguity__radius=0.1).fit(X, y)
    >>> large = DROClassifier(random_state=0).set_params(ambiguity__radius=0.5).fit(X, y)
    >>> one = RobustnessCurveDisplay.from_estimator(small, X, y, radii=[0, 0.5, 1], name="0.1")
    >>> two = RobustnessCurveDisplay.from_estimator(
    ...     large, X, y, radii=[0, 0.5, 1], name="0.5", ax=one.ax_
    ... )
    >>> bool(two.upper_bound[-1] < one.upper_bound[-1])
    True
    """

    radii: Any
    nominal_risk: float
    worst_case_risk: Any
    upper_bound: Any
    proof: Sequence[str]
    name: str | None = None
    nominal_accuracy: float | None = None
    worst_case_accuracy: Any = None
    unit: str = "radius (units of X)"

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        radii: Any = None,
        ambiguity: Any = None,
        sample_weight: Any = None,
        name: str | None = None,
        ax: Axes | None = None,
        **settings: Any,
    ) -> Self:
        """Certify a fitted estimator on (X, y) at every radius, and plot.

        Parameters
        ----------
        estimator : object
            A fitted drojko estimator, or a pipeline or search that ends in one; radii are then in
            the units of what the last step sees.
        X, y : array-like of shapes (n, d) and (n,)
            Best data that the fit has not seen.
        radii : array-like, default=None
            None: nine from 0 to twice the radius of the fit.
        ambiguity : AmbiguitySet, default=None
            Its radius is replaced; None: that of the estimator, with its weights and bounds.
        sample_weight : array-like of shape (n,), default=None
        name : str, default=None
            None: the name of the class.
        ax : matplotlib Axes, default=None
            Axes of another such display put both models into one picture.
        **settings
            For `plot`.
        """
        model, X = unwrap(estimator, X)
        if ambiguity is not None and not hasattr(ambiguity, "budget"):
            raise InvalidDataError(f"ambiguity={shown(ambiguity)}; expected an ambiguity set")
        balls: Any = clone(model._nested("ambiguity") if ambiguity is None else ambiguity)
        if radii is None:
            radius = model._nested("ambiguity").radius
            if radius is None and model.certificate_ is not None:  # what the worst case spends
                radius = float(np.sqrt(model.certificate_.transport_cost))
            radii = np.linspace(0.0, 2.0 * (radius or 0.1), 9)
        radii = floats(radii, "radii")
        if radii.ndim != 1 or not radii.size:
            raise InvalidDataError(f"radii has shape {radii.shape}; expected a list of numbers")
        certificates = [
            model.robust_certificate(
                X,
                y,
                balls.set_params(radius=float(radius), penalty=None),
                sample_weight=sample_weight,
            )
            for radius in radii
        ]
        display = cls(
            radii=radii,
            nominal_risk=certificates[0].nominal_risk,
            worst_case_risk=np.array([c.worst_case_risk for c in certificates]),
            upper_bound=np.array([c.upper for c in certificates]),
            proof=tuple(c.proof for c in certificates),
            name=type(model).__name__ if name is None else name,
        )
        return display.plot(ax, **settings)

    @classmethod
    def from_report(
        cls, report: Any, *, name: str | None = None, ax: Axes | None = None, **settings: Any
    ) -> Self:
        """Plot the table of an audit over radii; axes of another display compare two models.

        Parameters
        ----------
        report : AuditReport
        name : str, default=None
            None: the model's name in the report.
        ax : matplotlib Axes, default=None
        **settings
            For `plot`: ``metric="accuracy"`` shows accuracies instead of risks.
        """
        check_report(report)
        table = report.table
        if "radius" not in table.columns:
            raise InvalidDataError("the report has no radii: it was made with a penalty")
        table = table.sort_values("radius")
        numbers = {
            name: table[name].to_numpy(dtype=float)
            for name in ("worst_case_risk", "upper_bound", "worst_case_accuracy")
            if name in table
        }
        accurate = "nominal_accuracy" in table
        display = cls(
            radii=table["radius"].to_numpy(dtype=float),
            nominal_risk=float(table["nominal_risk"].iloc[0]),
            proof=tuple(table["proof"]),
            name=getattr(report, "name", None) if name is None else name,
            nominal_accuracy=table["nominal_accuracy"].iloc[0] if accurate else None,
            unit=_unit(getattr(report, "about", {})),
            **numbers,
        )
        return display.plot(ax, **settings)

    @property
    def exact(self) -> bool:
        """Whether attained risk and proven bound agree to a thousandth at every radius."""
        with np.errstate(invalid="ignore"):  # infinite on both sides
            gap = np.asarray(self.upper_bound) - np.asarray(self.worst_case_risk)
        return _UNPROVEN not in self.proof and bool(
            (gap <= _EXACT * np.abs(self.upper_bound)).all()
        )

    def plot(
        self,
        ax: Axes | None = None,
        *,
        upper: bool = True,
        nominal: bool = True,
        metric: str = "risk",
    ) -> Self:
        """Draw the curve; a further model in the same axes gets the next colour.

        Where the bound meets the attained risk, one line stands for both. Otherwise the bound is
        dashed, dotted where nothing proves it, and the gap between the two is shaded.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        upper : bool, default=True
            Whether to draw the bound: that of a network can be far above what is attained.
        nominal : bool, default=True
            Whether to draw the nominal risk.
        metric : {"risk", "accuracy"}, default="risk"
            Accuracies have no bound; they are those under the worst cases found.
        """
        if metric not in ("risk", "accuracy"):
            raise InvalidDataError(f"metric={metric!r}; expected 'risk' or 'accuracy'")
        values, level = self.worst_case_risk, self.nominal_risk
        accuracy, exact = metric == "accuracy", upper and self.exact
        label = "worst case (exact)" if exact else "worst case found (lower bound)"
        if accuracy:
            values, level = self.worst_case_accuracy, self.nominal_accuracy
            label = "accuracy in the worst case found"
        if values is None or (accuracy and not np.isfinite(np.asarray(values, dtype=float)).any()):
            raise InvalidDataError(
                "no accuracies are known: they are those of audits of classifiers"
            )
        ax = self._begin(ax, figsize=(6.4, 4.2))
        known: Any = ax
        count = getattr(known, "_drojko_curves", 0)
        known._drojko_curves = count + 1
        colour = COLOURS[count % len(COLOURS)]
        prefix = "" if self.name is None else f"{self.name}: "
        radii = np.asarray(self.radii)
        ax.plot(radii, values, color=colour, marker="o", markersize=4, label=prefix + label)
        if upper and not exact and not accuracy and _NO_BOUND not in self.proof:
            self._plot_upper(ax, colour, prefix)
        if nominal and level is not None:
            ax.axhline(
                level, color=colour, linestyle=(0, (1, 2)), linewidth=1.2, alpha=0.8,
                label=f"{prefix}nominal {metric}",
            )  # fmt: skip
        _scale(ax, accuracy)
        ax.set_xlabel(self.unit)
        ax.set_ylabel(metric)
        tidy(ax)
        ax.legend(frameon=False, fontsize="small")
        return self

    def _plot_upper(self, ax: Axes, colour: str, prefix: str) -> None:
        radii, bound = np.asarray(self.radii), np.asarray(self.upper_bound)
        proven = _UNPROVEN not in self.proof
        proofs = sorted({p for p, r in zip(self.proof, radii) if r > 0} or set(self.proof))
        kind = "upper bound" if proven else "upper estimate, no proof"
        ax.plot(
            radii, bound, color=colour, linestyle="--" if proven else ":", linewidth=1.4,
            label=f"{prefix}{kind} ({', '.join(proofs)})",
        )  # fmt: skip
        finite = np.isfinite(bound)
        ax.fill_between(
            radii[finite],
            np.asarray(self.worst_case_risk)[finite],
            bound[finite],
            color=colour,
            alpha=0.10,
            linewidth=0,
        )


def _unit(about: Any) -> str:
    """What an audit's sizes are, in words."""
    text = str(about.get("ambiguity", "Wasserstein"))
    if text.startswith("CVaR"):
        return "tail mass alpha"
    if text.startswith("Wasserstein"):
        return f"radius ({about.get('units', 'units of X')})"
    return f"radius ({text.split('(')[0]})"


def _scale(ax: Axes, accuracy: bool) -> None:
    """Logarithmic where risks of very different size meet, from zero otherwise; of shares to 1."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines])
    values = values[np.isfinite(values)]
    if accuracy:
        ax.set_ylim(max(-0.02, float(values.min()) - 0.1), 1.02)
    elif values.size and values.min() > 0 and values.max() / values.min() > _LOG:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(lambda value, _: "")
    elif values.size and values.min() >= 0:
        ax.autoscale(axis="y")  # another model may have been drawn on the same axes before
        ax.set_ylim(bottom=0)
