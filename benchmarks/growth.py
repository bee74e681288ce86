"""Time until the iterates of a linear fit are within a given accuracy of the exact optimum."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from exact import dual_descent, exact_risk
from fixtures import logistic_model
from harness import SKIPPED, Context, clock
from worker import Trace, ambiguity, first_within

from drojko import DROClassifier

SIZES = {"W1": 0.1, "W2": 0.1, "KL": 0.1, "chi-square": 0.5, "CVaR": 0.5, "TV": 0.1}
COLUMNS = ("set", "n", "d", "to 1e-3", "to 1e-4", "seconds", "iterations", "excess", "gap")
#: Rows times columns up to which SciPy's L-BFGS looks for a better optimum.
SEARCHED = 10_000 * 50
#: Rows up to which the referee's one-dimensional problems of W2 end in reasonable time.
REFEREED = 200_000


def cases(smoke: bool):
    if smoke:
        yield "n = 400, d = 5, KL", _case("KL", 400, 5)
        return
    shapes = [(n, 50, False) for n in (1_000, 10_000, 100_000)]
    shapes += [(10_000, 10, False), (10_000, 500, False)]
    shapes += [(100_000, 500, True), (1_000_000, 50, True)]
    for n, d, large in shapes:
        for name in SIZES:
            yield f"n = {n:.0e}, d = {d}, {name}", _case(name, n, d, large)


def _case(name: str, n: int, d: int, large: bool = False):
    def case(context: Context) -> Iterator[dict[str, Any]]:
        row = {"method": "DROClassifier", "set": name, "n": float(n), "d": d}
        if large and not context.full:
            yield {**row, "status": f"{SKIPPED}: with --full only"}
            return
        if name == "TV" and n > REFEREED:
            yield {**row, "status": f"{SKIPPED}: its interior point takes minutes"}
            return
        X, y = logistic_model(n, d, context.seed)

        def new(tol: float) -> DROClassifier:
            given = ambiguity(name, SIZES[name])
            return DROClassifier(given, reference="empirical", tol=tol, random_state=0)

        new(1e-3).fit(X[:200], y[:200])  # loads everything
        with clock() as taken:
            clf = new(1e-3).fit(X, y)

        if name == "W2" and n > REFEREED:
            yield {
                **row, "seconds": taken.seconds, "wall": taken.wall, "iterations": clf.n_iter_,
                "gap": clf.certificate_.relative_gap, "fit status": clf.status_,
            }  # fmt: skip
            return

        def risk(coef: np.ndarray, b: float) -> float:
            return exact_risk(name, SIZES[name], "logistic", X, y, coef, b)

        value = best = risk(clf.coef_[0], float(clf.intercept_[0]))
        trace = Trace()
        close = new(1e-7).set_callbacks(trace)
        trace.start = time.process_time()
        close.fit(X, y)
        best = min(best, risk(close.coef_[0], float(close.intercept_[0])))
        if n * d <= SEARCHED:
            best = min(best, risk(*dual_descent(name, SIZES[name], "logistic", X, y)[:2]))
        reach = {
            f"to {goal:.0e}".replace("e-0", "e-"): first_within(trace.rows, best * (1 + goal), risk)
            for goal in (1e-3, 1e-4)
        }
        yield {
            **row,
            **reach,
            "seconds": taken.seconds,
            "wall": taken.wall,
            "iterations": clf.n_iter_,
            "robust risk": value,
            "optimum": best,
            "excess": value / best - 1.0,
            "lower": clf.certificate_.lower,
            "upper": clf.certificate_.upper,
            "gap": clf.certificate_.relative_gap,
            "fit status": clf.status_,
            "target": "excess <= 1e-4",
            "met": value / best - 1.0 <= 1e-4,
        }

    return case


def draw(figure, rows: list[dict]) -> None:
    """Seconds to 1e-3 of the optimum over rows (left) and columns (right)."""
    done = [row for row in rows if row.get("set") and row["status"] == "ok"]
    panels = (("n", "d", 50, "rows, d = 50"), ("d", "n", 10_000, "columns, n = 1e4"))
    figure.set_size_inches(8.0, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (across, fixed, at, label) in zip(axes, panels, strict=True):
        for k, name in enumerate(SIZES):
            mine = [r for r in done if r["set"] == name and r[fixed] == at and r.get("to 1e-3")]
            mine.sort(key=lambda r: r[across])
            x, t = [r[across] for r in mine], [r["to 1e-3"] for r in mine]
            axis.loglog(x, t, "os^vD*"[k] + "-", label=name, markersize=5, linewidth=1)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("CPU seconds to 1e-3 of the optimum")
    axes[1].legend(frameon=False, fontsize=8)
