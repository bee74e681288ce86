"""Shifted test data, and exact evaluation of linear models on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from exact import robust_risk
from scipy.ndimage import gaussian_filter, rotate, shift
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from drojko.ambiguity import CVaR

#: Sizes of the shifts, in standard deviations of the columns where they have a unit.
NOISE, DRIFT, MISSING = (0.5, 1.0), 0.5, (0.2, 0.4)
TILT, TAILS, BUDGETS, RADII = (-1.0, 1.0), (0.3, 0.1), (0.25, 0.5), (0.1, 0.3)
FAMILIES = (
    "covariate shift", "noise", "units", "missing", "images", "subpopulation", "adversarial",
    "W2 worst case",
)  # fmt: skip


@dataclass
class Data:
    """A data set; ``side`` is the width of the images in X, or 0."""

    name: str
    X: np.ndarray
    y: np.ndarray
    side: int = 0
    task: str = "classification"


def load(name: str) -> Data:
    """Data that come with scikit-learn, as they are there."""
    if name == "breast cancer":
        return Data(name, *datasets.load_breast_cancer(return_X_y=True))
    if name == "wine":
        X, y = datasets.load_wine(return_X_y=True)
        return Data(name, X, (y == 1).astype(int))
    if name == "diabetes":
        X, y = datasets.load_diabetes(return_X_y=True)
        return Data(name, X, (y - y.mean()) / y.std(), task="regression")
    low, high = (int(digit) for digit in name.removeprefix("digits ").split("-"))
    X, y = datasets.load_digits(return_X_y=True)
    keep = (y == low) | (y == high)
    return Data(name, X[keep] / 16.0, (y[keep] == high).astype(int), side=8)


class Scale:
    """Standardised columns; images are centred and divided by one number, the mean deviation."""

    def __init__(self, data: Data, X: np.ndarray) -> None:
        scaler = StandardScaler().fit(X)
        self.mean = scaler.mean_
        self.scale = np.full_like(scaler.scale_, X.std(0).mean()) if data.side else scaler.scale_

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean) / self.scale


@dataclass
class Line:
    """A linear model."""

    coef: np.ndarray
    intercept: float
    task: str

    @property
    def loss(self) -> str:
        return "squared" if self.task == "regression" else "logistic"

    def errors(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Residuals, or margins."""
        f = X @ self.coef + self.intercept
        return f - y if self.task == "regression" else (2.0 * y - 1.0) * f

    def of(self, s: np.ndarray) -> np.ndarray:
        """Losses at residuals or margins."""
        return s * s if self.task == "regression" else np.logaddexp(0.0, -s)


@dataclass
class Score:
    """Mean loss and accuracy (NaN for regression)."""

    loss: float
    accuracy: float


def evaluate(
    data: Data,
    line: Line,
    scale: Scale,
    source: np.ndarray,
    X: np.ndarray,
    y: np.ndarray,
    seed: int,
) -> dict[str, Score]:
    """Scores on the clean test rows X and under every family of shifts, means over its sizes.

    Everything that is drawn depends on the seed alone, so that all models see the same shifts.
    """
    found = {"clean": _score(line, scale(X), y)}
    rng = np.random.default_rng(seed)
    Z = scale(X)
    found["covariate shift"] = _mean(
        [_score(line, Z, y, weights) for weights in _tilts(scale(source), Z)]
    )
    found["noise"] = _mean(
        [_score(line, Z + size * rng.standard_normal(Z.shape), y) for size in NOISE]
    )
    gains = np.exp(0.4 * rng.standard_normal(Z.shape[1]))
    drifts = DRIFT * rng.standard_normal(Z.shape[1])
    found["units"] = _mean([_score(line, Z * gains, y), _score(line, Z + drifts, y)])
    holes = [rng.random(Z.shape) < share for share in MISSING]
    found["missing"] = _mean([_score(line, np.where(hole, 0.0, Z), y) for hole in holes])
    if data.side:
        found["images"] = _mean([_score(line, scale(V), y) for V in _images(X, data.side)])
    losses = line.of(line.errors(Z, y))
    found["subpopulation"] = _mean([_tail(line, Z, y, losses, alpha) for alpha in TAILS])
    found["adversarial"] = _mean([_attacked(line, Z, y, budget) for budget in BUDGETS])
    risks = [
        robust_risk(line.loss, Z, y, line.coef, line.intercept, radius=radius) for radius in RADII
    ]
    found["W2 worst case"] = Score(float(np.mean(risks)), math.nan)
    return found


def _score(line: Line, Z: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> Score:
    return _from_errors(line, line.errors(Z, y), weights)


def _from_errors(line: Line, s: np.ndarray, weights: np.ndarray | None = None) -> Score:
    right = math.nan
    if line.task != "regression":
        right = float(np.average(s > 0, weights=weights))
    return Score(float(np.average(line.of(s), weights=weights)), right)


def _mean(scores: list[Score]) -> Score:
    return Score(
        float(np.mean([score.loss for score in scores])),
        float(np.mean([score.accuracy for score in scores])),
    )


def _tilts(source: np.ndarray, Z: np.ndarray) -> list[np.ndarray]:
    """Weights of a sampling bias along the source's first principal component, both ways."""
    axis = np.linalg.svd(source - source.mean(0), full_matrices=False)[2][0]
    along = (source - source.mean(0)) @ axis
    t = (Z - source.mean(0)) @ axis / along.std()
    return [np.exp(np.clip(size * t, -4.0, 4.0)) for size in TILT]


def _tail(line: Line, Z: np.ndarray, y: np.ndarray, losses: np.ndarray, alpha: float) -> Score:
    """The subpopulation of mass alpha that suffers most (for accuracy: that is misclassified)."""
    loss = float(CVaR(alpha=alpha).dual(losses).value)
    if line.task == "regression":
        return Score(loss, math.nan)
    wrong = float((line.errors(Z, y) <= 0).mean())
    return Score(loss, 1.0 - min(wrong / alpha, 1.0))


def _attacked(line: Line, Z: np.ndarray, y: np.ndarray, budget: float) -> Score:
    """Every row moves by the budget, the worst way: exact for a linear model."""
    s, push = line.errors(Z, y), budget * float(np.linalg.norm(line.coef))
    s = s + np.where(s < 0, -push, push) if line.task == "regression" else s - push
    return _from_errors(line, s)


def _images(X: np.ndarray, side: int) -> list[np.ndarray]:
    pictures = X.reshape(-1, side, side)

    def each(change) -> np.ndarray:
        return np.stack([change(picture) for picture in pictures]).reshape(len(X), -1)

    return [
        each(lambda p: rotate(p, 15.0, reshape=False, order=1)),
        each(lambda p: rotate(p, -15.0, reshape=False, order=1)),
        each(lambda p: gaussian_filter(p, 0.7)),
        each(lambda p: shift(p, (0.0, 1.0), order=1)),
    ]
