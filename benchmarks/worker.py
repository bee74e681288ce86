"""Trains one linear model per line of a job, in whatever environment it is run: a file by itself.

    python worker.py JOB.json DATA.npz CPU_SECONDS

DATA holds X and y (0 and 1, or numbers). JOB is a list of fits: ``package``, ``set``, ``size``,
``loss``, and perhaps ``rows`` (indices into X), ``options``, ``repeat``, ``warm``. One line of JSON
per fit goes to standard output as soon as it is there, so that a time limit loses only the fit that
it cuts off.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import resource
import signal
import statistics
import sys
import time
import types
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

#: Address space in bytes beyond which a fit is a MemoryError instead of a machine that swaps.
LIMIT = 14 * 2**30
#: Fits are repeated while they take less than the first, in seconds, and for at least the second.
LONG, SHORT = 3.0, 0.5


def ambiguity(name, size):
    from drojko import ambiguity as sets

    return {
        "W1": lambda: sets.Wasserstein(radius=size, order=1),
        "W2": lambda: sets.Wasserstein(radius=size),
        "KL": lambda: sets.KL(radius=size),
        "chi-square": lambda: sets.ChiSquare(radius=size),
        "CVaR": lambda: sets.CVaR(alpha=size),
        "TV": lambda: sets.TotalVariation(radius=size),
        "Sinkhorn": lambda: sets.Sinkhorn(epsilon=0.1, radius=size),
    }[name]()


def new_drojko(fit):
    from drojko import DROClassifier, DRORegressor

    estimator = DRORegressor if fit["loss"] in ("squared", "absolute", "huber") else DROClassifier
    return estimator(
        ambiguity(fit["set"], fit["size"]), loss=fit["loss"], reference="empirical",
        random_state=0, **fit["options"],
    )  # fmt: skip


def fit_drojko(fit, X, y):
    model = new_drojko(fit).fit(X, y)
    return model.coef_, model.intercept_, model.certificate_.upper, model.status_


class Trace:
    """A scikit-learn callback: CPU seconds and parameters of every iterate."""

    def __init__(self):
        self.rows, self.start = [], time.process_time()

    def setup(self, estimator, context): ...

    def teardown(self, estimator, context): ...

    def on_fit_task_begin(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "outer" and fitted_estimator is not None:
            seconds = time.process_time() - self.start
            coef, b = np.ravel(fitted_estimator.coef_), fitted_estimator.intercept_
            self.rows.append((seconds, coef.copy(), float(np.ravel(b)[0])))
        return False


def first_within(rows, goal, risk):
    """Seconds of the first iterate of a trace below the goal; risks fall along the way."""
    low, high = -1, len(rows) - 1
    if high < 0 or risk(*rows[high][1:]) > goal:
        return math.nan
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if risk(*rows[middle][1:]) <= goal else (middle, high)
    return rows[high][0]


def trace_drojko(fit, X, y):
    """The iterates of one more fit, for the time to a given accuracy."""
    model, trace = new_drojko(fit), Trace()
    model.set_callbacks(trace)
    trace.start = time.process_time()
    model.fit(X, y)
    return [(seconds, coef.tolist(), b) for seconds, coef, b in trace.rows]


def fit_cvxpy(fit, X, y):
    from drojko.baselines import ConvexDROClassifier, ConvexDRORegressor

    regression = fit["loss"] in ("squared", "absolute", "huber")
    estimator = ConvexDRORegressor if regression else ConvexDROClassifier
    model = estimator(ambiguity(fit["set"], fit["size"]), loss=fit["loss"], **fit["options"])
    model.fit(X, y)
    return model.coef_, model.intercept_, model.objective_, "optimal"


def fit_scipy(fit, X, y):
    from exact import dual_descent

    coef, intercept, value, status = dual_descent(fit["set"], fit["size"], fit["loss"], X, y)
    return coef, intercept, value, status


def fit_dro(fit, X, y):
    """Linear models of dro, without its __init__, which needs every optional package."""
    if "dro" not in sys.modules:
        package = types.ModuleType("dro")
        package.__path__ = list(find_spec("dro").submodule_search_locations)
        sys.modules["dro"] = package
    from dro import linear_model

    kind = {"logistic": "logistic", "hinge": "svm", "squared": "ols"}[fit["loss"]]
    name, size, d = fit["set"], fit["size"], X.shape[1]
    names = {"W1": "WassersteinDRO", "W2": "WassersteinDRO", "KL": "KLDRO", "chi-square": "Chi2DRO"}
    names |= {"CVaR": "CVaRDRO", "TV": "TVDRO"}
    model = getattr(linear_model, names[name])(d, kind, **fit["options"])
    if name in ("W1", "W2"):
        model.update({"eps": size**2 if name == "W2" else size, "p": 2})
    else:
        model.update({"alpha" if name == "CVaR" else "eps": size})
    model.fit(X, y if kind == "ols" else 2.0 * y - 1.0)
    return model.theta, model.b, model.robust_obj, "solved"


def fit_skwdro(fit, X, y):
    from skwdro.linear_models import LinearRegression, LogisticRegression

    if fit["loss"] == "squared":
        model = LinearRegression(rho=fit["size"], **fit["options"]).fit(X, y)
    else:
        model = LogisticRegression(rho=fit["size"], **fit["options"]).fit(X, 2.0 * y - 1.0)
    reported = getattr(model, "robust_loss_", getattr(model, "result_", None))
    return model.coef_, model.intercept_, reported, "ended"


def memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024.0


def forget_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return memory("VmRSS")
    except OSError:
        return None


def number(value):
    try:
        value = float(np.ravel(value)[0])
    except (TypeError, ValueError, IndexError):
        return None
    return value if math.isfinite(value) else None


def run(fit, X, y):
    train = globals()["fit_" + fit["package"]]
    fit = {"options": {}, **fit}
    if fit.get("warm"):  # imports and caches are not part of a fit
        rng = np.random.default_rng(0)
        few = rng.permutation(len(X))[:60]
        try:
            train(fit, X[few], y[few])
        except Exception as error:
            print(f"warm-up: {error!r}", file=sys.stderr)
    start = forget_peak()
    times = []
    most, total = fit.get("repeat", 1), 0.0
    # The clock of a process ticks every few milliseconds: short fits are made until ticks average.
    while not times or (most > 1 and total < (LONG if len(times) < most else SHORT)):
        cpu, wall = time.process_time(), time.perf_counter()
        coef, intercept, reported, status = train(fit, X, y)
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
        total += times[-1][1]
    coef = np.ravel(np.asarray(coef, dtype=np.float64))
    if coef.shape != (X.shape[1],) or not np.isfinite(coef).all():
        raise ArithmeticError(f"coefficients of shape {coef.shape}, not all finite")
    trace = {"trace": trace_drojko(fit, X, y)} if fit.get("trace") else {}
    return {
        **trace,
        "status": "ok",
        "coef": coef.tolist(),
        "intercept": number(intercept) or 0.0,
        "reported": number(reported),
        "its word": str(status),
        "seconds": statistics.fmean(t for t, _ in times),
        "wall": statistics.fmean(t for _, t in times),
        "runs": len(times),
        "peak MiB": None if start is None else memory("VmHWM") - start,
    }


def end_with_parent():
    """Nobody waits for the answer once the run that asked is gone (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main():
    warnings.simplefilter("ignore")
    end_with_parent()
    job, data = json.loads(Path(sys.argv[1]).read_text()), np.load(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    seconds = int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    out = sys.stdout
    sys.stdout = sys.stderr  # what packages print is not part of the answer
    for fit in job:
        X, y = data["X"], data["y"]
        if fit.get("rows") is not None:
            X, y = X[fit["rows"]], y[fit["rows"]]
        try:
            found = run(fit, np.ascontiguousarray(X), y)
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            found = {"status": f"failed: {type(error).__name__}: {text}"[:200]}
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
