"""Linear fits of this checkout and of the one before the solvers became one, in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from harness import ROOT, Check, Context, numbers

TITLE = "Before and after"
#: The last commit whose linear solvers were one a set, without a proven gap.
BEFORE = "db09240"
ABOUT = f"""
CPU time of whole fits (certificate included) at default settings, in two processes that take turns
in one run: this checkout, and commit {BEFORE}, the last one whose sets each had a solver of their
own and no proof of the model. Least of the turns. What `now` does and `before` did not: it proves
that no other coefficients are better by more than `tol`.
"""
COLUMNS = ("set", "loss", "n", "d", "before ms", "now ms", "ratio", "status now", "target")
SETS = {
    "W2": "Wasserstein(0.1)",
    "W2, penalty": "Wasserstein(penalty=5.0)",
    "W2, labels": "Wasserstein(0.3, label_cost=2.0)",
    "W1": "Wasserstein(0.1, order=1)",
    "KL": "KL(0.1)",
    "KL, penalty": "KL(penalty=5.0)",
    "chi-square": "ChiSquare(0.5)",
    "Cressie-Read 1.5": "CressieRead(1.5, 0.2)",
    "TV": "TotalVariation(0.2)",
    "CVaR": "CVaR(0.5)",
    "Sinkhorn": "Sinkhorn(0.1, 0.1)",
    "Group": "Group()",
    "Group, radius": "Group(radius=0.2)",
}
LOSSES = ("logistic", "hinge", "squared", "absolute", "huber", "quantile")
SMOOTH = ("logistic", "squared", "huber")
#: n, d, turns.
SIZES = ((1_000, 10, 5), (10_000, 50, 3), (100_000, 50, 2))
CODE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import *
known = {}
for line in sys.stdin:
    text, loss, n, d = json.loads(line)
    if (n, d) not in known:
        rng = np.random.default_rng(0)
        X, theta = rng.normal(size=(n, d)), rng.normal(size=d) / d**0.5
        known = {(n, d): (X, X @ theta + 0.5 * rng.logistic(size=n))}
    X, y = known[n, d]
    kind, target = DRORegressor, y
    if loss in ("logistic", "hinge"):
        kind, target = DROClassifier, (y > 0).astype(int)
    groups = {"groups": np.arange(n) % 4} if text.startswith("Group") else {}
    model = kind(eval(text), loss=loss, reference="empirical", random_state=0, max_iter=500)
    try:
        start = time.process_time()
        model.fit(X, target, **groups)
        print(json.dumps([time.process_time() - start, model.status_]), flush=True)
    except Exception as error:
        print(json.dumps([None, type(error).__name__]), flush=True)
"""


def cases(smoke: bool):
    for n, d, turns in SIZES[:1] if smoke else SIZES:
        for name in ("W2", "KL") if smoke else SETS:
            yield f"{name}, n = {n:g}, d = {d}", _case(name, n, d, 1 if smoke else turns)


def _case(name: str, n: int, d: int, turns: int):
    def case(context: Context) -> Iterator[dict[str, Any]]:
        losses = LOSSES[:2] if name == "W2, labels" else LOSSES
        losses = [loss for loss in losses if (name, loss) != ("W1", "squared")]
        with _sides(context.smoke) as ask:
            for loss in losses:
                found = {side: [ask(side, loss)] for side in ("before", "now")}  # not counted
                for _ in range(turns):
                    for side in found:
                        found[side].append(ask(side, loss))
                yield _row(name, loss, n, d, found)

    @contextmanager
    def _sides(smoke: bool):
        # An export has no history: there, this checkout stands for both.
        roots = {"before": ROOT if smoke else _earlier(), "now": ROOT}
        children = {side: _child(root) for side, root in roots.items()}

        def ask(side: str, loss: str) -> list[Any]:
            child = children[side]
            child.stdin.write(json.dumps([SETS[name], loss, n, d]) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        try:
            yield ask
        finally:
            for child in children.values():
                child.stdin.close()
                child.wait()

    return case


def _row(name: str, loss: str, n: int, d: int, found: dict[str, list]) -> dict[str, Any]:
    times = {side: min(turn[0] for turn in turns[1:]) for side, turns in found.items()}
    ratio = times["now"] / times["before"]
    large = n >= 100_000 and loss in SMOOTH and name in ("W2", "KL", "chi-square")
    most = 1.0 / 3.0 if large else 1.1
    return {
        "method": f"{name}, {loss}",
        "set": name,
        "loss": loss,
        "n": n,
        "d": d,
        "before ms": 1e3 * times["before"],
        "now ms": 1e3 * times["now"],
        "seconds": times["now"],
        "peak MiB": None,  # other processes do the work
        "ratio": ratio,
        "status now": found["now"][-1][1],
        "target": "<= 1/3" if large else "<= 1.1",
        "met": ratio <= most,
    }


@cache
def _earlier() -> Path:
    """The tree of the earlier commit, in a folder that goes with the process."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", BEFORE, "drojko"], capture_output=True, check=True
    ).stdout
    folder = tempfile.TemporaryDirectory(prefix="drojko-before-")
    _KEPT.append(folder)
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder.name, filter="data")
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


def _child(root: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )


def summary(rows: list[dict]) -> list[Check]:
    usual = [row for row in rows if row.get("target") == "<= 1.1"]
    slow = sorted((row for row in usual if not row.get("met")), key=lambda row: -row["ratio"])
    names = ", ".join(f"{r['method']}, {r['n']:g} x {r['d']:g} ({r['ratio']:.2f})" for r in slow)
    ratios = sorted(numbers(usual, "ratio"))
    middle = ratios[len(ratios) // 2] if ratios else float("nan")
    checks = [
        Check(
            "no linear fit slower than 1.1 x",
            f"{len(usual) - len(slow)} of {len(usual)} rows, median {middle:.2f} x"
            + (f"; slower: {names}" if slow else ""),
            not slow,
        )
    ]
    large = [row for row in rows if row.get("target") == "<= 1/3"]
    if large:
        speeds = ", ".join(f"{row['method']} {1.0 / row['ratio']:.1f} x" for row in large)
        target = "1e5 rows, smooth losses, W2, KL, chi-square: at least 3 x faster"
        checks.append(Check(target, speeds, all(row["met"] for row in large)))
    return checks
