"""The worst reweighting of given losses, for sets whose points stay where they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from drojko.ambiguity import AmbiguitySet, Dual
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["best_constant_risk", "check_reweights", "worst"]

#: Scores of a constant beyond which its probabilities are 0 and 1.
_FAR = 30.0


def check_reweights(ambiguity: Any, where: str) -> None:
    """Raise unless a set reweights rows by their losses alone."""
    if not isinstance(ambiguity, AmbiguitySet):
        hint = AmbiguitySet._instead(ambiguity)
        raise InvalidDataError(f"{where} got ambiguity={ambiguity!r}; expected a set{hint}")
    name = type(ambiguity).__name__
    if ambiguity.moves or ambiguity.sees_points:
        raise UnsupportedError(
            f"{where}: {name} moves points or measures the distance between them, which trees and "
            "weights cannot follow: use a set that reweights, such as CVaR(alpha=0.5), "
            "KL(radius=0.1) or Group(), or train with DROClassifier or DRORegressor"
        )
    ambiguity._validate_params()


def worst(
    ambiguity: AmbiguitySet, losses: np.ndarray, y: np.ndarray, weights: np.ndarray, groups: Any
) -> Dual:
    """The worst case of losses (n,) over the set around rows of masses ``weights`` (n,)."""
    return ambiguity.bind(None, y, weights, groups).dual(losses)


def best_constant_risk(
    ambiguity: AmbiguitySet,
    y: np.ndarray,
    weights: np.ndarray,
    groups: Any,
    n_classes: int | None,
) -> float:
    """Worst-case risk of the best constant: class shares, or with None a number for all rows."""

    def risk(losses: np.ndarray) -> Dual:
        return worst(ambiguity, losses, y, weights, groups)

    if n_classes is None:
        low, high = float(y.min()), float(y.max())
        if low == high:
            return risk(np.zeros(len(y))).value
        return _least(lambda c: risk((y - c) ** 2).value, low, high)
    if n_classes == 2:
        return _least(lambda f: risk(np.logaddexp(0.0, (1 - 2 * y) * f)).value, -_FAR, _FAR)
    mass = weights / weights.sum()

    def of_scores(scores: np.ndarray) -> tuple[float, np.ndarray]:
        dual = risk(-log_softmax(scores)[y])
        return dual.value, softmax(scores) - np.bincount(y, mass * dual.ratio, n_classes)

    shares = np.bincount(y, mass, n_classes)
    start = np.log(np.maximum(shares, 1e-12))
    found = minimize(of_scores, start - start.mean(), jac=True, method="L-BFGS-B")
    average = shares.copy()  # the game, too: it does not mind the kinks of CVaR
    for t in range(1, 101):
        ratio = risk(-np.log(np.maximum(average, 1e-12))[y]).ratio
        average += (np.bincount(y, mass * ratio, n_classes) - average) / (t + 1)
    played = risk(-np.log(np.maximum(average, 1e-12))[y]).value
    return min(float(found.fun), played)


def _least(risk: Callable[[float], float], low: float, high: float) -> float:
    """Least value of a convex function between two points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = minimize_scalar(risk, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return min(float(found.fun), risk(low), risk(high))  # type: ignore[union-attr]
