"""One linear fit on one process and on two: the same answer, time, and what is exchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT, Check, Context, numbers

TITLE = "Ranks: linear logistic models on two processes, d = 50"
ABOUT = """
Synthetic float32 rows, standard normal, which each rank draws for itself; labels are the sign of a
linear model with noise. `torchrun --nproc-per-node=N`, gloo, one thread a rank; a fit of few rows
before loads everything. `wall` and `seconds` (CPU), of the median of three fits, are those of the
slowest rank, certificate included; `difference` is the largest one to one process, of coefficients
over the largest of them and of the upper bound over itself; `bits` says whether all ranks have the
same. `bytes` are what a rank gives to exchanges. `speed` is the wall time of one process over that
of two: it needs two idle cores.
"""
COLUMNS = ("set", "n", "ranks", "wall", "seconds", "speed", "bytes", "difference", "bits", "target")
SETS = {"Wasserstein": "Wasserstein(0.1)", "KL": "KL(0.1)", "CVaR": "CVaR(0.3)"}
BLOCK = 1000
CODE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
torch.set_num_threads(1)
from drojko import DROClassifier
from drojko.ambiguity import CVaR, KL, Wasserstein
from drojko.distributed import sharded

n, d, block, ambiguity, out = json.loads(sys.argv[1])

def data(low, high):
    theta = np.random.default_rng(0).normal(size=d).astype(np.float32) / d**0.5
    X, y = np.empty((high - low, d), dtype=np.float32), np.empty(high - low, dtype=int)
    for start in range(low, high, block):
        rng, part = np.random.default_rng([1, start]), slice(start - low, start - low + block)
        rng.standard_normal(out=X[part], dtype=np.float32)
        y[part] = X[part] @ theta + rng.standard_normal(block) > 0
    return X, y

with sharded() as ranks:
    count, k = n // block, ranks.rank
    X, y = data(*(block * (count * j // ranks.size) for j in (k, k + 1)))
    new = lambda: DROClassifier(eval(ambiguity), reference="empirical")
    new().fit(X[:500], y[:500])
    times = []
    for _ in range(3):
        sent, cpu, wall = ranks.sent, time.process_time(), time.perf_counter()
        clf = new().fit(X, y)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = sorted(times)[1]
    found = [*clf.coef_[0].tolist(), float(clf.intercept_[0]), clf.certificate_.upper]
    with open(f"{out}/{ranks.size}-{k}.json", "w") as file:
        json.dump([wall, cpu, ranks.sent - sent, found, clf.optimality_gap_, clf.status_], file)
"""


def cases(smoke: bool):
    for name in list(SETS)[:1] if smoke else SETS:
        yield name, _case(name)


def _ranks(count: int, folder: str, arguments: str) -> list[list]:
    """What each of so many ranks found."""
    path = Path(folder, "fit.py")
    path.write_text(CODE, encoding="utf-8")
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    paths = os.pathsep.join([str(ROOT), *(p for p in [os.environ.get("PYTHONPATH")] if p)])
    done = subprocess.run(
        [sys.executable, *start, str(path), arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False, timeout=3600, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    files = [Path(folder, f"{count}-{k}.json") for k in range(count)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _case(name: str):
    def case(context: Context) -> Iterator[dict]:
        n = 4_000 if context.smoke else 2_000_000
        walls, alone = {}, []
        for count in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                found = _ranks(count, folder, json.dumps([n, 50, BLOCK, SETS[name], folder]))
            values = [one[3] for one in found]
            alone = alone or values[0]
            walls[count] = max(one[0] for one in found)
            size = max(map(abs, alone[:-2]))
            gaps = [abs(a - b) / size for a, b in zip(alone[:-1], values[0][:-1], strict=True)]
            difference = max(*gaps, abs(values[0][-1] / alone[-1] - 1.0))
            speed = walls[1] / walls[count]
            bar = 1e-8 if context.smoke else 1e-10  # few rows end on another path
            goals = {f"difference <= {bar:g}": difference <= bar}
            goals["same bits"] = all(one == values[0] for one in values)
            if not context.smoke:
                goals[">= 1.5 x faster"] = speed >= 1.5
            yield {
                "method": "DROClassifier",
                "set": name,
                "n": float(n),
                "d": 50,
                "ranks": count,
                "wall": walls[count],
                "seconds": max(one[1] for one in found),
                "speed": speed,
                "bytes": float(max(one[2] for one in found)),
                "difference": difference,
                "bits": "same" if goals["same bits"] else "other",
                "gap": found[0][4],
                "fit status": found[0][5],
                "peak MiB": None,  # other processes do the work
                "target": ", ".join(goals) if count > 1 else "",
                "met": all(goals.values()) if count > 1 else None,
            }

    return case


def summary(rows: list[dict]) -> list[Check]:
    two = [row for row in rows if row.get("ranks") == 2 and row["status"] == "ok"]
    most = max((row["difference"] for row in two), default=float("nan"))
    speeds = numbers(two, "speed", set="Wasserstein")
    speed = speeds[0] if speeds else float("nan")
    return [
        Check("two ranks within 1e-10 of one process", f"{most:.1e}", most <= 1e-10),
        Check(
            "the same bits on all ranks",
            ", ".join(str(row["bits"]) for row in two),
            bool(two) and all(row["bits"] == "same" for row in two),
        ),
        Check("two idle cores, order 2: >= 1.5 x faster", f"{speed:.2f} x", speed >= 1.5),
    ]
