"""Scores of rows by models that have not seen them, and what environments add to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit
from scipy.stats import chi2

__all__ = [
    "FOLDS", "Moves", "columns_of", "gain_of_moves", "gain_of_slopes", "losses", "moves", "scores",
]  # fmt: skip

#: Penalties of the pooled models, of columns of unit spread.
_ALPHAS = (1e-5, 1e-3, 3e-2, 1.0)
#: The same of what an environment has of its own; the last of them leaves next to nothing.
_OWN = (0.03, 0.3, 3.0, 1e6)
#: Folds that rows are scored in.
FOLDS = 5
#: Rows below which an environment is given no slopes of its own.
_FEW = 20
#: Log odds that no intercept is believed to exceed: the spread of a weak prior.
_FAR = 3.0
#: Slope of the objective, in units of y, at which a fit ends.
_FLAT = 1e-6


def losses(score: np.ndarray, y: np.ndarray, logistic: bool) -> np.ndarray:
    """Of each row: log(1 + exp(-s f)), or half the squared error."""
    if logistic:
        return np.logaddexp(0.0, (1.0 - 2.0 * y) * score)
    return 0.5 * (score - y) ** 2


def columns_of(X: np.ndarray, y: np.ndarray | None = None, *, squares: bool = True) -> np.ndarray:
    """Columns in which laws are told apart: x, its squares where they are few, and y times x.

    Centred, of unit spread; constant ones are left out.
    """
    parts = [X, _unit(X) ** 2] if squares and X.shape[1] <= 30 else [X]
    if y is not None:
        parts += [y[:, None], _unit(X) * (y - y.mean())[:, None]]
    return _unit(np.hstack(parts))


def _unit(X: np.ndarray) -> np.ndarray:
    top = np.abs(X).max(axis=0)
    X = X[:, top > 0] / top[top > 0]
    centred = X - X.mean(axis=0)
    spread = centred.std(axis=0)
    return centred[:, spread > 1e-12] / spread[spread > 1e-12]


def scores(X: np.ndarray, y: np.ndarray, logistic: bool, fold: np.ndarray) -> np.ndarray:
    """Scores (n,) of an L2 penalised linear model, each from the folds that lack the row.

    The penalty for a fold is the best one of the others.
    """
    folds = int(fold.max()) + 1
    risk = np.zeros((len(_ALPHAS), folds))
    found = np.zeros((len(_ALPHAS), len(y)))
    for k in range(folds):
        out = fold == k
        start = np.zeros(X.shape[1] + 1)
        for i in reversed(range(len(_ALPHAS))):
            start = _fit(X[~out], y[~out], np.zeros(int((~out).sum())), _ALPHAS[i], logistic, start)
            found[i, out] = start[0] + X[out] @ start[1:]
            risk[i, k] = losses(found[i, out], y[out], logistic).sum()
    best = [int((risk.sum(1) - risk[:, k]).argmin()) for k in range(folds)]
    return found[np.array(best)[fold], np.arange(len(y))]


def _fit(
    X: np.ndarray, y: np.ndarray, offset: np.ndarray, alpha: float, logistic: bool,
    start: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Intercept and slopes of mean loss(offset + a + X b) + alpha/2 |b|^2."""
    n, d = X.shape
    design = np.column_stack([np.ones(n), X])
    ridge = np.full(d + 1, alpha)
    ridge[0] = 1.0 / (_FAR**2 * n) if logistic else 0.0

    def answers(b: np.ndarray) -> np.ndarray:
        f = offset + design @ b
        return expit(f) if logistic else f

    def value(b: np.ndarray) -> tuple[float, np.ndarray]:
        mean = float(losses(offset + design @ b, y, logistic).mean())
        return mean + 0.5 * float(ridge @ b**2), design.T @ (answers(b) - y) / n + ridge * b

    def hessian(b: np.ndarray) -> np.ndarray:
        p = answers(b)
        bend = p * (1.0 - p) if logistic else np.ones(n)
        return (design * bend[:, None]).T @ design / n + np.diag(ridge)

    found = minimize(value, start, jac=True, hess=hessian, method="trust-exact",
                     options={"gtol": _FLAT * float(np.abs(y).mean() + 1e-300)})  # fmt: skip
    return found.x


@dataclass(frozen=True)
class Moves:
    """How far E(y | x) lies from the common model in each environment.

    ``move`` and ``error`` (G,) in log odds or units of y; ``spread`` is the standard deviation
    between environments beyond chance, ``kept`` (G,) the moves shrunk by it, and ``p`` the
    probability of such moves by chance.
    """

    move: np.ndarray
    error: np.ndarray
    spread: float
    p: float

    @property
    def kept(self) -> np.ndarray:
        weight = 1.0 / (self.error**2 + self.spread**2)
        centre = float(weight @ self.move / weight.sum())
        return centre + (self.move - centre) * self.spread**2 * weight


def moves(score: np.ndarray, y: np.ndarray, place: np.ndarray, count: int, logistic: bool) -> Moves:
    """Intercepts of environments beside given scores (spread by Paule and Mandel)."""
    move, error = np.zeros(count), np.zeros(count)
    left = y - score
    noise = float(left.var()) + 1e-300
    for g in range(count):
        rows = place == g
        n = int(rows.sum())
        if not logistic:
            mine = left[rows]
            own = float(((mine - mine.mean()) ** 2).sum()) if n else 0.0
            move[g] = mine.mean() if n else 0.0
            error[g] = np.sqrt((own + 5.0 * noise) / (n + 5.0) / max(n, 1))
            continue
        if n == 0:
            error[g] = _FAR
            continue
        empty = np.empty((n, 0))
        move[g] = _fit(empty, y[rows], score[rows], 0.0, True, np.zeros(1))[0]
        p = 0.5 * (1.0 + np.tanh(0.5 * (score[rows] + move[g])))
        error[g] = 1.0 / np.sqrt(float((p * (1.0 - p)).sum()) + 1.0 / _FAR**2)
    excess = _excess(move, error, 0.0)
    spread = 0.0
    if excess > count - 1:
        most = float(move.var(ddof=1))
        root = brentq(lambda t: _excess(move, error, t) - (count - 1), 0.0, most)
        spread = float(np.sqrt(cast("float", root)))
    return Moves(move, error, spread, float(chi2.sf(excess, count - 1)))


def _excess(move: np.ndarray, error: np.ndarray, variance: float) -> float:
    """Sum of squares of moves in units of their errors and a variance between environments."""
    weight = 1.0 / (error**2 + variance)
    return float(weight @ (move - weight @ move / weight.sum()) ** 2)


def gain_of_moves(
    score: np.ndarray, y: np.ndarray, place: np.ndarray, count: int, logistic: bool,
    fold: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Fall of each row's loss by intercepts from the other folds, and the new scores."""
    moved = score.copy()
    for k in range(FOLDS):
        out = fold == k
        found = moves(score[~out], y[~out], place[~out], count, logistic)
        moved[out] += found.kept[place[out]]
    return losses(score, y, logistic) - losses(moved, y, logistic), moved


def gain_of_slopes(
    X: np.ndarray, score: np.ndarray, y: np.ndarray, place: np.ndarray, count: int,
    logistic: bool, fold: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Fall of each row's loss by slopes of the environments' own, from the other folds.

    ``score`` has their intercepts already. The penalty for a fold is the best one of the others,
    the same for all environments.
    """
    found = np.repeat(score[None], len(_OWN), axis=0)
    for g in range(count):
        if (place == g).sum() < _FEW:
            continue
        for k in range(FOLDS):
            out, rest = (place == g) & (fold == k), (place == g) & (fold != k)
            start = np.zeros(X.shape[1] + 1)
            for i in reversed(range(len(_OWN) - 1)):
                start = _fit(X[rest], y[rest], score[rest], _OWN[i], logistic, start)
                found[i, out] += X[out] @ start[1:] + start[0]
    every = np.stack([losses(row, y, logistic) for row in found])
    risk = np.stack([every[:, fold == k].sum(1) for k in range(FOLDS)], axis=1)
    best = [int((risk.sum(1) - risk[:, k]).argmin()) for k in range(FOLDS)]
    chosen = every[np.array(best)[fold], np.arange(len(y))]
    return losses(score, y, logistic) - chosen
