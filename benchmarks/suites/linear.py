"""Linear models: the estimators against optima found by other people's solvers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import growth
import numpy as np
from exact import optimum, robust_risk
from fixtures import classification, diabetes
from harness import Check, Context, clock, median, numbers, table

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein

TITLE = "Linear models, empirical reference"
ABOUT = """
First table, order-2 Wasserstein on real data, standardised: `DROClassifier` and `DRORegressor` with
`reference="empirical"` at default settings. `robust risk` is the exact robust risk of the returned
coefficients by one evaluator (benchmarks/exact.py, one-dimensional duals, without drojko);
`optimum` the same of the solution of cvxpy with Clarabel: a conic program (hinge, squared), or
cutting planes, whose relaxation gives a lower bound of the true optimum (logistic). `excess` is
drojko's robust risk over that lower bound (hinge, squared: over the program's value) minus 1; up to
a relative 1e-5 of it is the relaxation's tolerance, and slightly negative values are Clarabel's
own. A risk below 1e-6 counts as 1e-6 there.
`upper` is the certificate's bound and `gap` its relative gap. `seconds` is the whole fit with its
certificate, `reference seconds` the other solver's.

Second table, every set on synthetic rows (standard normal features, labels from a logistic model,
5 % of them flipped). `to 1e-3` and `to 1e-4`: CPU seconds after which an iterate is that close to
the exact robust optimum, by one evaluator; the optimum is the best of a fit at tol=1e-7, the fit in
the row and, up to 5e5 numbers, SciPy's L-BFGS. `seconds` is the fit at default settings with its
certificate; W2 at 1e6 rows has no other column, as the referee takes too long. 1e6 rows, and 1e5
rows with 500 columns, with `--full` only.
"""
COLUMNS = (
    "robust risk",
    "optimum",
    "excess",
    "upper",
    "gap",
    "seconds",
    "reference seconds",
    "target",
)
EXCESS, GAP, FLOOR = 1e-4, 1e-3, 1e-6
DATA = ("breast cancer", "wine", "digits 3-8", "digits parity", "iris", "diabetes median")
RADII, PENALTIES = (0.05, 0.1, 0.5), (0.5, 5.0)


def cases(smoke: bool):
    if smoke:
        yield "iris, logistic, radius=0.1", _case("iris", "logistic", {"radius": 0.1})
        yield "diabetes, squared, radius=0.1", _case("diabetes", "squared", {"radius": 0.1})
        yield from growth.cases(smoke)
        return
    forms = [{"radius": r} for r in RADII] + [{"penalty": p} for p in PENALTIES]
    pairs = [(name, loss) for name in DATA for loss in ("logistic", "hinge")]
    for name, loss in [*pairs, ("diabetes", "squared")]:
        for form in forms:
            (key, value) = next(iter(form.items()))
            yield f"{name}, {loss}, {key}={value:g}", _case(name, loss, form)
    yield from growth.cases(smoke)


def _case(name: str, loss: str, form: dict[str, float]):
    def case(context: Context) -> Iterator[dict]:
        X, y = diabetes() if loss == "squared" else classification(name)
        estimator = DRORegressor if loss == "squared" else DROClassifier
        with clock() as taken:
            fitted = estimator(
                Wasserstein(**form), loss=loss, reference="empirical", random_state=context.seed
            ).fit(X, y)
        coef, intercept = np.ravel(fitted.coef_), float(np.ravel(fitted.intercept_)[0])
        value = robust_risk(loss, X, y, coef, intercept, **form)
        with clock() as other:
            theta, b, lower, how = optimum(loss, X, y, **form)
        best = robust_risk(loss, X, y, theta, b, **form)
        certificate = fitted.certificate_
        # Against the lower bound where there is one: the reference's own error counts against us.
        excess = (value - min(lower, best)) / max(best, FLOOR)
        yield {
            "method": type(fitted).__name__,
            "robust risk": value,
            "optimum": best,
            "optimum's bound": lower,
            "excess": excess,
            "lower": certificate.lower,
            "upper": certificate.upper,
            "gap": certificate.relative_gap,
            "proof": certificate.proof,
            "fit status": fitted.status_,
            "seconds": taken.seconds,
            "wall": taken.wall,
            "reference": how,
            "reference seconds": other.seconds,
            "target": f"excess <= {EXCESS:g}, gap <= {GAP:g}",
            "met": excess <= EXCESS and certificate.relative_gap <= GAP,
        }

    return case


def _parts(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Rows of the first and of the second table."""
    return [r for r in rows if not r.get("set")], [r for r in rows if r.get("set")]


def tables(rows: list[dict]) -> str:
    parts = zip(_parts(rows), (COLUMNS, growth.COLUMNS), strict=True)
    shown = [
        (part, ["case", "method", *names, "peak MiB", "met", "status"]) for part, names in parts
    ]
    return "\n\n".join(
        table(c, [[row.get(n) for n in c] for row in part]) for part, c in shown if part
    )


def summary(rows: list[dict]) -> list[Check]:
    rows, grown = _parts(rows)
    done = [r for r in grown if r["status"] == "ok" and r.get("excess") is not None]
    slowest = max(
        (r["to 1e-3"] for r in done if r["n"] == 10_000 and r["d"] == 50), default=math.nan
    )
    excess, gaps = numbers(rows, "excess"), numbers(rows, "gap")
    speed = [
        r["reference seconds"] / r["seconds"] for r in rows if r["status"] == "ok" and r["seconds"]
    ]
    met = sum(v <= EXCESS for v in excess)
    close = sum(v <= GAP for v in gaps)
    return [
        Check(
            "robust risk within 1e-4 of the exact optimum, every row",
            f"{met} of {len(rows)} rows; largest excess {max(excess, default=math.nan):.2g}, "
            f"smallest {min(excess, default=math.nan):.2g}; median {median(speed):.1f} x faster "
            "than the reference solver",
            met == len(rows),
        ),
        Check(
            "relative gap of the certificate at most 1e-3, every row",
            f"{close} of {len(rows)} rows; largest {max(gaps, default=math.nan):.2g}",
            close == len(rows),
        ),
        Check(
            "every set within 1e-4 of the exact optimum, n up to 1e6, d up to 500",
            f"{sum(r['met'] for r in done)} of {len(done)} rows; n = 1e4, d = 50 to 1e-3 in "
            f"{slowest:.2g} s or less",
            all(r["met"] for r in done) if done else None,
        ),
    ]


def plots(rows: list[dict]):
    rows, grown = _parts(rows)
    if any(row["status"] == "ok" for row in rows):
        yield "Seconds to a certified fit against the reference solver's", lambda f: _draw(f, rows)
    if any(row["status"] == "ok" and row["n"] >= 1_000 for row in grown):
        yield "Seconds to 1e-3 of the optimum, every set", lambda f: growth.draw(f, grown)


def _draw(figure, rows: list[dict]) -> None:
    """Every fit: below the diagonals drojko is 1, 10, 100 times faster."""
    axis = figure.subplots()
    good = [row for row in rows if row["status"] == "ok"]
    for loss, marker in (("logistic", "o"), ("hinge", "s"), ("squared", "^")):
        mine = [row for row in good if f", {loss}, " in str(row["case"])]
        if mine:
            x, y = [r["reference seconds"] for r in mine], [r["seconds"] for r in mine]
            axis.loglog(x, y, marker, alpha=0.7, markeredgecolor="white", label=loss)
    times = [row["reference seconds"] for row in good]
    ends = np.array([0.7 * min(times), 1.4 * max(times)])
    for factor in (1.0, 10.0, 100.0):
        axis.plot(ends, ends / factor, color="0.75", linewidth=0.8, zorder=0)
        axis.annotate(
            f"{factor:g} x", (ends[1], ends[1] / factor), textcoords="offset points",
            xytext=(3, 0), va="center", fontsize=8, color="0.4",
        )  # fmt: skip
    axis.set(
        xlabel="CPU seconds of the reference solver",
        ylabel="CPU seconds of drojko",
        title=f"{len(good)} fits, all within {max(r['excess'] for r in good):.1g} of the optimum",
    )
    axis.legend(frameon=False)
