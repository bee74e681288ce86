"""How far a set would have to reach to hold one environment beside all others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit

from drojko.ambiguity import KL, AmbiguitySet, ChiSquare, CVaR, TotalVariation, Wasserstein
from drojko.estimators.observed import observed_shift
from drojko.exceptions import InvalidDataError

__all__ = ["Reach", "auc", "cells", "reach_of_ratios", "reach_of_shares", "reach_of_transport"]

#: Mass of the other rows below the scores at which they are cut into cells.
_CUTS = (0.5, 0.75, 0.9, 0.97)
_SHUFFLES = 20
#: Rows that are compared at a time, and rows that can be compared at all.
_ROWS, _LEAST = 200, 16


@dataclass(frozen=True)
class Reach:
    """Sizes (G,) that a set needs for each environment, and what that means."""

    name: str
    size: str
    needed: np.ndarray
    meaning: str


def auc(score: np.ndarray, inside: np.ndarray) -> float:
    """Probability that a row of the environment scores above another, halves for ties."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(inside, score))


def cells(score: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Cell (n,) of each row, by quantiles of the scores of the other rows."""
    cuts = np.unique(np.quantile(score[~inside], _CUTS, method="higher"))
    return np.searchsorted(cuts, score, side="right")


def reach_of_ratios(
    cell: list[np.ndarray], inside: list[np.ndarray], rng: np.random.Generator
) -> list[Reach]:
    """Sizes of sets of density ratios, at least: by rows that were told apart in cells.

    Merging rows to cells only lowers a divergence, so that the ball has to be as large as that of
    the cells; what random labels show by chance is taken off.
    """
    sets: list[tuple[str, AmbiguitySet, str]] = [
        ("KL", KL(radius=1.0), "radius"),
        ("ChiSquare", ChiSquare(radius=1.0), "radius"),
        ("TotalVariation", TotalVariation(radius=1.0), "radius"),
        ("CVaR", CVaR(alpha=0.5), "alpha"),
    ]
    found = []
    for name, ambiguity, size in sets:
        needed = [_beyond_chance(ambiguity, *pair, rng) for pair in zip(cell, inside, strict=True)]
        values = np.array(needed)
        if size == "alpha":
            values, words = 1.0 / (1.0 + values), "at most: rows as frequent as 1 / alpha times"
        else:
            words = "at least: rows in the proportions of the environment"
        found.append(Reach(name, size, values, words))
    return found


def _beyond_chance(
    ambiguity: Any, cell: np.ndarray, inside: np.ndarray, rng: np.random.Generator
) -> float:
    def discrepancy(labels: np.ndarray) -> float:
        count = int(cell.max()) + 1
        there, here = (np.bincount(cell[rows], minlength=count) + 0.5 for rows in (~labels, labels))
        there, here = there / there.sum(), here / here.sum()
        return float(ambiguity.discrepancy(here / there, there))

    chance = np.mean([discrepancy(rng.permutation(inside)) for _ in range(_SHUFFLES)])
    return max(discrepancy(inside) - float(chance), 0.0)


def reach_of_shares(y: np.ndarray, inside: list[np.ndarray], count: int) -> list[Reach]:
    """Mass that changes its class, and the largest move of log odds of a class."""
    mass, odds = [], []
    for here in inside:
        a, b = (np.bincount(y[rows], minlength=count) + 0.5 for rows in (here, ~here))
        a, b = a / a.sum(), b / b.sum()
        mass.append(0.5 * float(np.abs(a - b).sum()))
        odds.append(float(np.abs(logit(a) - logit(b)).max()))
    words = "if classes look the same everywhere and only their shares move"
    return [
        Reach("ClassShift", "radius", np.array(mass), words),
        Reach("ClassShift", "between", np.array(odds), f"+- this, {words}"),
    ]


def reach_of_transport(
    X: np.ndarray, y: np.ndarray | None, inside: list[np.ndarray], seed: int
) -> Reach:
    """Distances in the units of X, within the classes of y where these have rows enough."""
    found = []
    for here in inside:
        distance = math.nan
        if _LEAST <= here.sum() <= len(here) - _LEAST:
            labels = {} if y is None else {"y_old": y[~here], "y_new": y[here]}
            try:
                distance = _distance(X, here, labels, seed)
            except InvalidDataError:  # too few rows of a class
                distance = _distance(X, here, {}, seed)
        found.append(distance)
    words = "in the units of X; moves of y given x are not among what it holds"
    return Reach("Wasserstein", "radius", np.array(found), words)


def _distance(X: np.ndarray, here: np.ndarray, labels: dict[str, Any], seed: int) -> float:
    found = observed_shift(
        X[~here], X[here], ambiguity=Wasserstein(radius=1.0), max_rows=_ROWS, random_state=seed,
        **labels,
    )  # fmt: skip
    return found.distance
