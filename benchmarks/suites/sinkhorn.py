"""Sinkhorn sets: linear models against the optimum in closed form, and their speed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from fixtures import diabetes
from harness import Check, Context, clock, median, numbers
from scipy.optimize import brentq, minimize_scalar

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Sinkhorn

TITLE = "Sinkhorn sets, linear models, empirical reference"
ABOUT = """
`DRORegressor(Sinkhorn(...))` with the squared loss against the exact optimum: along the ridge path
theta(tau) the robust risk has the closed form lambda / (lambda - a) MSE - (lambda epsilon / 2)
log(1 - a / lambda), a = |theta|^2, and the optimal tau is the root of tau = MSE / (lambda - a) +
epsilon / 2 (benchmarks/suites/sinkhorn.py, without drojko). `excess` is that closed form at the
returned coefficients over the optimum, minus 1; a model whose coefficients are all zero counts by
its MSE. The logistic rows are about time: no other solver is at hand to compare with, so they have
no `excess`. `gap` is the certificate's.
"""
COLUMNS = ("robust risk", "optimum", "excess", "upper", "gap", "iterations", "seconds", "target")
EXCESS, GAP, SECONDS = 1e-6, 1e-9, 2.0


def robust_risk(coef, X, y, epsilon, radius=None, penalty=None) -> float:
    """The closed form at coefficients, with the best intercept and multiplier."""
    X, y = X - X.mean(0), y - y.mean()
    return _value(coef @ coef, np.mean((y - X @ coef) ** 2), epsilon, radius, penalty)[0]


def _value(a: float, mse: float, epsilon: float, radius, penalty) -> tuple[float, float]:
    if penalty is not None:
        if a >= penalty:
            return math.inf, penalty
        entropy = 0.5 * penalty * epsilon * math.log1p(-a / penalty)
        return penalty / (penalty - a) * mse - entropy, penalty
    if a == 0.0:
        return mse, 0.0

    def dual(t: float) -> float:
        lam = a + math.exp(t)
        entropy = 0.5 * lam * epsilon * math.log1p(-a / lam)
        return lam * radius + lam / (lam - a) * mse - entropy

    found = minimize_scalar(dual, bounds=(-30, 30), method="bounded", options={"xatol": 1e-12})
    return float(found.fun), a + math.exp(float(found.x))


def optimum(X, y, epsilon, radius=None, penalty=None) -> float:
    """Smallest robust risk, by one root on the ridge path."""
    X, y = X - X.mean(0), y - y.mean()
    e, U = np.linalg.eigh(X.T @ X / len(X))
    c, total = U.T @ (X.T @ y) / len(X), y @ y / len(X)

    def at(tau: float) -> tuple[float, float]:
        t = c / (e + tau)
        return t @ t, total - 2 * t @ c + t @ (e * t)

    def slope(log_tau: float) -> float:
        a, mse = at(math.exp(log_tau))
        value, lam = _value(a, mse, epsilon, radius, penalty)
        return 1.0 if math.isinf(value) else mse / (lam - a) + epsilon / 2 - math.exp(log_tau)

    if slope(16.0) > 0.0:  # no path: the constant model is best
        return float(total)
    return _value(*at(math.exp(brentq(slope, -20, 16, xtol=1e-13))), epsilon, radius, penalty)[0]


def synthetic(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features, unit signal and noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    theta = rng.normal(size=d)
    return X, X @ theta / np.linalg.norm(theta) + rng.normal(size=n)


def cases(smoke: bool):
    """Synthetic data by dimension, diabetes, and large classification."""
    for d in (5, 20, 50) if not smoke else (5,):
        yield f"synthetic d={d}", lambda context, d=d: _regression(context, d)
    yield "diabetes", lambda context: _regression(context, None)
    yield "logistic", _logistic


def _regression(context: Context, d: int | None) -> Iterator[dict]:
    X, y = diabetes() if d is None else synthetic(20 * d, d, context.seed)
    scale = 1.0 if d is not None else float(np.var(y))
    sizes = [{"radius": 0.05}, {"radius": 0.3}, {"penalty": 3.0 * scale}]
    for epsilon in (0.1,) if context.smoke else (0.01, 0.1, 1.0):
        for size in sizes:
            with clock() as time:
                reg = DRORegressor(Sinkhorn(epsilon, **size), reference="empirical").fit(X, y)
            best = optimum(X, y, epsilon, **size)
            found = robust_risk(reg.coef_, X, y, epsilon, **size)
            excess = found / best - 1.0
            form = ", ".join(f"{k}={v:.4g}" for k, v in size.items())
            yield {
                "method": f"epsilon={epsilon:g}, {form}",
                "robust risk": found,
                "optimum": best,
                "excess": excess,
                "upper": reg.certificate_.upper,
                "gap": reg.certificate_.relative_gap,
                "iterations": float(reg.n_iter_),
                "seconds": time.seconds,
                "target": f"excess <= {EXCESS:g}",
                "met": excess <= EXCESS and reg.certificate_.relative_gap <= GAP,
            }


def _logistic(context: Context) -> Iterator[dict]:
    n, d = (500, 10) if context.smoke else (10_000, 50)
    X, f = synthetic(n, d, context.seed)
    y = (f > 0).astype(int)
    for epsilon in (0.1,) if context.smoke else (0.01, 0.1, 1.0):
        with clock() as time:
            clf = DROClassifier(Sinkhorn(epsilon, radius=0.05), reference="empirical").fit(X, y)
        c = clf.certificate_
        yield {
            "method": f"n={n}, d={d}, epsilon={epsilon:g}, radius=0.05",
            "robust risk": c.upper,
            "upper": c.upper,
            "gap": c.relative_gap,
            "iterations": float(clf.n_iter_),
            "seconds": time.seconds,
            "target": f"{SECONDS:g} s",
            "met": time.seconds <= SECONDS and c.relative_gap <= GAP,
        }


def summary(rows) -> list[Check]:
    """Excess over the closed optimum, gaps, time."""
    squared = [row for row in rows if row["case"] != "logistic"]
    excess, gaps = numbers(squared, "excess"), numbers(rows, "gap")
    seconds = numbers(rows, "seconds", case="logistic")
    return [
        Check(
            f"squared loss within {EXCESS:g} of the closed optimum, every row",
            f"{sum(v <= EXCESS for v in excess)} of {len(squared)} rows; largest excess "
            f"{max(excess, default=math.nan):.2g}",
            bool(excess) and max(excess) <= EXCESS and len(excess) == len(squared),
        ),
        Check(
            f"relative gap of the certificate at most {GAP:g}, every row",
            f"largest {max(gaps, default=math.nan):.2g}",
            bool(gaps) and max(gaps) <= GAP and len(gaps) == len(rows),
        ),
        Check(
            f"logistic loss in at most {SECONDS:g} s",
            f"median {median(seconds):.2g} s",
            bool(seconds) and max(seconds) <= SECONDS,
        ),
    ]
