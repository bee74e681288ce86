"""Exact duals of the reweighting sets: speed over many radii, agreement with cvxpy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from harness import Check, Context, clock, numbers

from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation

TITLE = "Duals of reweighting sets"
ABOUT = """
`path`: the values of `dual_path` for many radii on exponential losses. `cvxpy`: `dual` on random
losses, weights and radii against the primal problem over the ratios, solved by Clarabel;
`max relative error` is relative to the spread of the losses.
"""
COLUMNS = ("losses", "radii", "seconds", "instances", "max relative error", "target")
SECONDS, ERROR = 2.0, 1e-6
FAMILIES = {
    "KL": (lambda r: KL(r), lambda u: u),
    "ChiSquare": (lambda r: ChiSquare(r), lambda u: u),
    "CressieRead(3)": (lambda r: CressieRead(3.0, r), lambda u: u),
    "CressieRead(1.5)": (lambda r: CressieRead(1.5, r), lambda u: u),
    "TotalVariation": (lambda r: TotalVariation(r), lambda u: 0.9 * u),
    "CVaR": (lambda r: CVaR(r), lambda u: 0.02 + 0.9 * u),
}


def cases(smoke: bool):
    for name in list(FAMILIES)[: 2 if smoke else None]:
        yield f"{name}, path", _path(name, 10_000 if smoke else 1_000_000, 10 if smoke else 100)
        yield f"{name}, cvxpy", _cvxpy(name, 3 if smoke else 200)


def _path(name: str, n: int, m: int):
    def case(context: Context) -> Iterator[dict]:
        make, size = FAMILIES[name]
        rng = np.random.default_rng(context.seed)
        losses, radii = rng.exponential(size=n), size(np.linspace(0.001, 1.0, m))
        ambiguity = make(float(radii[0]))
        with clock() as taken:
            ambiguity.dual_path(losses, radii)
        yield {
            "method": name,
            "losses": n,
            "radii": m,
            "seconds": taken.seconds,
            "wall": taken.wall,
            "target": f"seconds <= {SECONDS:g}",
            "met": taken.seconds <= SECONDS,
        }

    return case


def _cvxpy(name: str, count: int):
    def case(context: Context) -> Iterator[dict]:
        make, size = FAMILIES[name]
        rng = np.random.default_rng(context.seed)
        worst = 0.0
        for _ in range(count):
            n = int(rng.integers(3, 30))
            losses, weights = rng.normal(size=n), rng.uniform(0.2, 1.0, n)
            weights /= weights.sum()
            ambiguity = make(float(size(rng.uniform(0.01, 1.0))))
            found = ambiguity.dual(losses, weights).value
            worst = max(worst, abs(found - _primal(ambiguity, losses, weights)) / np.ptp(losses))
        yield {
            "method": name,
            "instances": count,
            "max relative error": float(worst),
            "target": f"error <= {ERROR:g}",
            "met": bool(worst <= ERROR),
        }

    return case


def _primal(ambiguity, losses: np.ndarray, w: np.ndarray) -> float:
    import cvxpy as cp

    q = cp.Variable(len(losses), nonneg=True)
    constraints = [w @ q == 1]
    if isinstance(ambiguity, KL):
        constraints.append(w @ cp.kl_div(q, 1.0) <= ambiguity.radius)
    elif isinstance(ambiguity, ChiSquare):
        constraints.append(w @ cp.square(q - 1) <= ambiguity.radius)
    elif isinstance(ambiguity, CressieRead):
        k = ambiguity.k
        constraints.append(w @ cp.power(q, k) <= 1 + k * (k - 1) * ambiguity.radius)
    elif isinstance(ambiguity, TotalVariation):
        constraints.append(0.5 * (w @ cp.abs(q - 1)) <= ambiguity.radius)
    else:
        constraints.append(q <= 1 / ambiguity.alpha)
    goal = cp.Problem(cp.Maximize((w * losses) @ q), constraints)
    return float(goal.solve(solver=cp.CLARABEL))


def summary(rows: list[dict]) -> list[Check]:
    seconds, errors = numbers(rows, "seconds"), numbers(rows, "max relative error")
    slowest, worst = max(seconds, default=math.nan), max(errors, default=math.nan)
    return [
        Check("1e6 losses x 100 radii under 2 s", f"slowest {slowest:.3g} s", slowest <= SECONDS),
        Check("duals agree with cvxpy", f"largest error {worst:.2g}", worst <= ERROR),
    ]
