"""How the linear fit grows with the number of rows: time, memory, and time to a given accuracy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator

from harness import Check, Context, numbers, script

TITLE = "Rows: linear logistic model, W2 radius 0.1, d = 50"
ABOUT = """
Synthetic data: standard normal features, labels from a logistic model, 5 % of them flipped. Each
size runs in a process of its own, after one small fit that loads everything. `seconds` (CPU) and
`wall` are `DROClassifier(reference="empirical").fit`, certificate included. `to 1e-3`: wall seconds
after which the iterates of the same solver are within 1e-3 of the optimum, exact robust risks of
the iterates by benchmarks/exact.py afterwards (up to 1e5 rows); the optimum is the lower one of
drojko's and, up to 1e4 rows, SciPy's L-BFGS on the exact dual. `memory` is the peak of resident
memory during the fit above what the process held before the data, over the size of X, which it
includes. 1e6 rows with `--full` only.
"""
COLUMNS = (
    "n",
    "seconds",
    "wall",
    "to 1e-3",
    "microseconds per row",
    "excess",
    "gap",
    "memory",
    "target",
)
CODE = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, "benchmarks")
from exact import logistic_descent, robust_risk
from drojko import DROClassifier
from drojko.ambiguity import Wasserstein
from drojko.losses import get_loss
from drojko._driver import Limits
from drojko.minimax.transport.linear import RidgeData, solve_ridge

def peak():  # getrusage's maximum is inherited from the parent process; the kernel's own is not
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def reset():  # forget the maximum so far, where the kernel can
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass

def data(n, d, seed):
    rng = np.random.default_rng(seed)
    X = np.empty((n, d))
    rng.standard_normal(out=X)
    theta = rng.standard_normal(d) / d**0.5
    y = (rng.random(n) < 1 / (1 + np.exp(-3 * (X @ theta)))).astype(int)
    flip = rng.random(n) < 0.05
    y[flip] = 1 - y[flip]
    return X, y

n, d, seed, check = json.loads(sys.argv[1])
new = lambda: DROClassifier(Wasserstein(radius=0.1), reference="empirical", random_state=0)
new().fit(*data(200, d, 1))
base = peak()
X, y = data(n, d, seed)
reset()
cpu, wall = time.process_time(), time.perf_counter()
clf = new().fit(X, y)
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
memory = (peak() - base) / X.nbytes
risk = lambda coef, b: robust_risk("logistic", X, y, coef, b, radius=0.1)
value = best = reach = None
if check:
    value = best = risk(clf.coef_[0], float(clf.intercept_[0]))
    trace, spent = [], 0.0
    start = time.perf_counter()
    def callback(k, info):
        global spent
        t = time.perf_counter()
        trace.append((t - start - spent, np.array(info["coef"]), float(info["intercept"])))
        spent += time.perf_counter() - t
    limits = Limits(500, 1e-6, callback=callback)
    solve_ridge(RidgeData(X, y, loss=get_loss("logistic")), radius=0.1, limits=limits)
    if check > 1:
        theta, b, _ = logistic_descent(X, y, radius=0.1)
        best = min(best, risk(theta, b))
    reach = next((t for t, coef, b in trace if risk(coef, b) <= best * (1 + 1e-3)), None)
gap = clf.certificate_.relative_gap
print(json.dumps([cpu, wall, memory, value, best, reach, gap, clf.status_]))
"""


def cases(smoke: bool):
    sizes = [2_000] if smoke else [10_000, 100_000]
    if os.environ.get("DROJKO_BENCH_FULL"):
        sizes.append(1_000_000)
    for n in sizes:
        yield f"n = {n:.0e}", _case(n)


def _case(n: int):
    def case(context: Context) -> Iterator[dict]:
        check = 2 if n <= 10_000 else int(n <= 100_000)
        out = script(CODE, json.dumps([n, 50, context.seed, check]), timeout=1800)
        cpu, wall, memory, value, best, reach, gap, status = json.loads(out.splitlines()[-1])
        excess = math.nan if value is None else value / best - 1.0
        goals = {}
        if n >= 10_000:  # below, what the process itself allocates outweighs the data
            goals["memory <= 4 x data"] = memory <= 4.0
        if n == 100_000:
            goals["fit < 15 s"] = wall < 15.0
        yield {
            "method": "DROClassifier",
            "n": float(n),
            "d": 50,
            "seconds": cpu,
            "wall": wall,
            "to 1e-3": reach,
            "microseconds per row": 1e6 * cpu / n,
            "robust risk": value,
            "excess": excess,
            "gap": gap,
            "memory": memory,
            "peak MiB": memory * n * 50 * 8 / 2**20,  # of the process that does the work
            "fit status": status,
            "target": ", ".join(goals),
            "met": all(goals.values()) if goals else None,
        }

    return case


def summary(rows: list[dict]) -> list[Check]:
    walls = numbers(rows, "wall", n=100_000.0)
    sized = [r for r in rows if (r.get("n") or 0) >= 10_000 and r["status"] == "ok"]
    memory = [r["memory"] for r in sized]
    each = ", ".join(f"{r['memory']:.2f} x at {r['n']:.0e}" for r in sized)
    per_row = numbers(rows, "microseconds per row")
    growth = per_row[-1] / per_row[0] if len(per_row) > 1 else math.nan
    reach = numbers(rows, "to 1e-3", n=100_000.0)
    first = walls[0] if walls else math.nan
    there = reach[0] if reach else math.nan
    return [
        Check(
            "n = 1e5, d = 50 in less than 15 s",
            f"{first:.1f} s, to 1e-3 in {there:.1f} s",
            first < 15.0,
        ),
        Check("memory at most 4 x the data", each, bool(memory) and max(memory) <= 4.0),
        Check(
            "time linear in n (time per row grows at most 1.5 x from the smallest n)",
            f"{growth:.2f} x",
            growth <= 1.5,
        ),
    ]
