r"""Radii by inference: from the profile law of an estimator, or from a confidence bound.

Calibration: with phi''(1) = kappa the divergence of P_n dP = 1 + s is kappa / 2 E_n s^2 to second
order, hence

    sup { E_P loss : D(P, P_n) <= radius }  =  E_n loss + sqrt(2 radius / kappa  Var_n loss) + ...

which is the one-sided upper confidence bound of level 1 - level at
radius = kappa z^2 / (2 n), z the (1 - level) quantile of the standard normal law: kappa / (2 n)
times the (1 - 2 level) quantile of the chi-square law of one degree of freedom.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning

from drojko._random import spawn
from drojko._sklearn import checked_data, checked_weight
from drojko.estimators.radius.profile import NormLaw, ProfileLaw, profile_law
from drojko.estimators.scoring import Rows, split_last
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.losses import get_loss

__all__ = ["by_calibration", "by_profile", "calibrated_radius", "law_of_fit"]

#: Probabilities of error that tables show beside the one asked for.
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.01)

_OFFERED = (
    'method="rwpi" is for model="linear" in a Wasserstein ball without bounds: of order 2 with the '
    "logistic loss (two classes), the squared or the huber loss; of order 1 with the logistic loss "
    'and no immutable columns. Got {}; use method="cv"'
)


def by_profile(
    estimator: Any, rows: Rows, level: float, n_draws: int, rng: torch.Generator
) -> dict[str, Any]:
    """Fields of a `RadiusSelection`; the arguments are those of `select_radius`, checked."""
    import pandas as pd

    steps, last = split_last(estimator)
    count, law = rows.count, law_of_fit(last, rows.seen(steps), rows.y, rows.weight)
    draws = law.sample(n_draws, spawn(rng))
    levels = np.array(sorted({*LEVELS, float(level)}, reverse=True))
    quantiles = np.quantile(draws, 1.0 - levels)
    # Binomial counts: a quantile's rank is known up to that many draws.
    width = np.sqrt(levels * (1.0 - levels) / n_draws)
    low, high = (np.quantile(draws, np.clip(1.0 - levels + s * width, 0, 1)) for s in (-1, 1))
    table = pd.DataFrame(
        {
            "level": levels,
            "quantile": quantiles,
            "quantile_se": (high - low) / 2.0,
            "radius": quantiles ** (1.0 / law.order) / np.sqrt(count),
        }
    )
    radius = float(table["radius"][levels == level].iloc[0])
    least = "at least " if law.order == 1 else ""
    message = (
        f"With probability {least}{1 - level:g} the ball of this radius around {count:.6g} samples "
        "holds a distribution for which the true coefficients are optimal (asymptotically)."
    )
    return {"radius": radius, "table": table, "message": message}


def law_of_fit(
    estimator: Any, X: Any, y: Any, sample_weight: np.ndarray | None
) -> ProfileLaw | NormLaw:
    """The limit law at the nominal fit of an estimator, which is not changed.

    Raises
    ------
    UnsupportedError
        For a set, a loss or a model that the theory is not offered for.
    InvalidDataError
        Where there is no nominal fit: separable classes, more columns than rows.
    """
    ambiguity, loss = estimator._nested("ambiguity"), estimator._get_loss(1)
    order, classifier = ambiguity.order, is_classifier(estimator)
    n_classes = len(np.unique(y)) if classifier else 0
    smooth = loss.structured and loss.convex and math.isfinite(loss.curvature or math.inf)
    for excluded, what in (
        (order is None, type(ambiguity).__name__),
        (order == 1 and not classifier, "order=1 in regression"),
        (getattr(ambiguity, "bounds", None) is not None, "bounds"),
        (estimator.model != "linear", f"model={estimator.model!r}"),
        (not smooth or (order == 1 and loss != get_loss("logistic")), f"loss={estimator.loss!r}"),
        (n_classes > 2, f"{n_classes} classes"),
    ):
        if excluded:
            raise UnsupportedError(_OFFERED.format(what))

    pilot: Any = clone(estimator)
    if order == 1:  # needs no fit: only the covariance of the columns
        X, _ = checked_data(pilot, X, y, ensure_min_samples=2)
    else:
        pilot.set_params(
            ambiguity=ambiguity.resized(0.0), reference="empirical", warm_start=False, tol=1e-8
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told below, with what to do
            pilot.fit(X, y, sample_weight=sample_weight)
        if pilot.status_ == "unbounded":
            raise InvalidDataError(
                'method="rwpi": the classes can be separated, so that there is no nominal fit to '
                'start from: give the estimator alpha > 0, or use method="cv"'
            )
        X, y = pilot._known(X, y)
    X = np.asarray(X, dtype=np.float64)
    weight = checked_weight(sample_weight, X)
    weight, keep = weight / weight.sum(), weight > 0
    names = getattr(pilot, "feature_names_in_", None)
    cost = ambiguity.validate(X.shape[1], None if names is None else list(names))
    if order == 1:
        if not cost.mutable.all():
            raise UnsupportedError(_OFFERED.format("immutable columns"))
        centred = X - weight @ X if estimator.fit_intercept else X
        return NormLaw(centred.T @ (weight[:, None] * centred), cost.weights, float(ambiguity.norm))
    free = int(keep.sum()) - X.shape[1] - int(estimator.fit_intercept)
    if free < 1 and estimator.alpha == 0:
        raise InvalidDataError(
            f'method="rwpi" got {int(keep.sum())} rows for {X.shape[1]} columns, too few for a '
            'nominal fit: give the estimator alpha > 0, or use method="cv"'
        )
    return profile_law(
        X[keep],
        y[keep],
        weight[keep],
        np.ravel(pilot.coef_).astype(np.float64),
        float(np.ravel(pilot.intercept_)[0]) if estimator.fit_intercept else None,
        loss,
        cost.inverse_weights,
        # Label flips are too dear to be of use at radii of order n^(-1/2); targets move smoothly.
        np.inf if classifier else float(ambiguity.label_cost),
    )


def by_calibration(ambiguity: Any, count: float, level: float, two_sided: bool) -> dict[str, Any]:
    """Fields of a `RadiusSelection`; the arguments are those of `select_radius`, checked."""
    import pandas as pd

    levels = sorted({*LEVELS, float(level)}, reverse=True)
    radii = [calibrated_radius(ambiguity, count, value, two_sided) for value in levels]
    table = pd.DataFrame({"level": levels, "radius": radii})
    kind = "the upper end of a two-sided" if two_sided else "an upper"
    message = (
        f"The worst-case risk over {count:.6g} samples is {kind} confidence bound of level "
        f"{1 - level:g} (asymptotically)."
    )
    return {"radius": radii[levels.index(float(level))], "table": table, "message": message}


def calibrated_radius(ambiguity: Any, n: float, level: float, two_sided: bool = False) -> float:
    """Radius at which the worst-case mean of n samples covers the mean, see the module's text.

    Raises
    ------
    UnsupportedError
        For sets that are no smooth divergence.
    """
    kappa = ambiguity.curvature
    if kappa is None:
        raise UnsupportedError(
            'method="calibration" is for KL, ChiSquare and CressieRead, and for other smooth '
            "divergences, whose worst case is the "
            f"mean plus a multiple of the standard deviation; got {type(ambiguity).__name__}. "
            'Use method="cv"'
        )
    z = -float(ndtri(level / 2.0 if two_sided else level))
    return kappa * max(z, 0.0) ** 2 / (2.0 * n)
