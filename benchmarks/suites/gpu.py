"""A graphics processor beside the processor: linear fits, a network, a step of an ICNN."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from fixtures import generator
from harness import ROOT, Check, Context, median, numbers

from drojko import DROClassifier
from drojko.ambiguity import KL, CVaR, Wasserstein
from drojko.flows.icnn.map_state import MapState

TITLE = "A graphics processor"
ABOUT = """
Wall seconds on the processor (threads as set) and on the CUDA device, which has ended its work when
the clock is read; the first call on a device is not counted. "linear": W2, KL and CVaR logistic
fits to 1e6 rows of 50 columns with their certificates, which run on the processor whatever `device`
says: columns of numbers are read a handful of times, and no copy pays. "network": a pass of
training (784-256-1, `Wasserstein(0.5)`, batches of 512) over 60,000 rows of 784 columns, float32.
"ICNN step": a modified JKO step of a map in 32 dimensions, widths (64, 64), at 4,096 points, four
fits, float64. "tests": those marked `gpu`. Eight minutes at most: what is left out then says so.
Without a device the processor's column is all there is.
"""
COLUMNS = ("cpu seconds", "cuda seconds", "ratio", "target")
LIMIT = 480.0  # seconds, of everything
_began = [time.perf_counter()]


def cases(smoke: bool):
    _began[0] = time.perf_counter()
    yield "tests", _tests
    yield "network", _network
    yield "ICNN step", _icnn
    yield "linear", _linear


def _left() -> float:
    return LIMIT - (time.perf_counter() - _began[0])


def _timed(work: Callable[[str], object], device: str, runs: int) -> float:
    """Median wall seconds, after one run that is not counted."""
    found = []
    for run in range(runs + 1):
        start = time.perf_counter()
        work(device)
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
        if run and _left() < 0.0:
            break
    return median(found[1:])


def _beside(method: str, work: Callable[[str], object], runs: int = 3) -> dict:
    """A row of both devices."""
    row = {"method": method, "cpu seconds": _timed(work, "cpu", runs), "status": "ok"}
    if not torch.cuda.is_available():
        return {**row, "cuda seconds": math.nan, "ratio": math.nan, "status": _NONE}
    if _left() < 0.0:
        return {**row, "status": "skipped: the eight minutes are over"}
    cuda = _timed(work, "cuda", runs)
    return {**row, "cuda seconds": cuda, "ratio": cuda / row["cpu seconds"]}


_NONE = "skipped: no CUDA device"


def _tests(context: Context) -> Iterator[dict]:
    if not torch.cuda.is_available():
        yield {"method": "pytest -m gpu", "status": _NONE}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=max(_left(), 1.0)
    )
    said = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    yield {"method": "pytest -m gpu", "status": "ok" if done.returncode == 0 else said}


def _rows(n: int, d: int, seed: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((n, d), dtype=np.float32).astype(dtype, copy=False)
    y = X[:, :5].sum(axis=1) + draw.standard_normal(n) > 0.0
    return X, y.astype(np.int64)


def _linear(context: Context) -> Iterator[dict]:
    n = 20_000 if context.smoke else 1_000_000
    X, y = _rows(n, 50, context.seed, np.float64)
    for name, ambiguity in (("W2", Wasserstein(0.1)), ("KL", KL(0.1)), ("CVaR", CVaR(0.1))):

        def fit(device: str, ambiguity=ambiguity) -> None:
            DROClassifier(ambiguity, reference="empirical", device=device).fit(X, y)

        yield _beside(f"{name} logistic, {n:,} x 50", fit, 1)


def _network(context: Context) -> Iterator[dict]:
    n, passes = (2_000, 1) if context.smoke else (60_000, 1)
    X, y = _rows(n, 784, context.seed, np.float32)

    def fit(device: str) -> None:
        DROClassifier(
            Wasserstein(0.5), model="mlp", hidden_layer_sizes=(256,), reference="empirical",
            dtype="float32", device=device, batch_size=512, max_iter=passes, effort="none",
            random_state=0,
        ).fit(X, y)  # fmt: skip

    yield _beside(f"a pass, {n:,} x 784", fit, 1)


def _icnn(context: Context) -> Iterator[dict]:
    n, dim = (256 if context.smoke else 4_096), 32
    points = torch.randn(n, dim, generator=generator(context.seed), dtype=torch.float64)

    def steps(device: str) -> None:
        own = points.to(device)
        flow = MapState.start(own, generator=generator(context.seed))
        for _ in range(20):
            flow.advance(own, None, lambda at: 0.9 * at + 0.1, 1e-2, 4)

    yield _beside(f"20 steps, {n:,} points in {dim} dimensions", steps)


def summary(rows: list[dict]) -> list[Check]:
    """Ratios where there is a device; that there is none, where not."""
    found = [row for row in rows if row.get("status") == "ok" and numbers([row], "ratio")]
    if not found:
        return [Check("CPU beside CUDA", "not yet run on a GPU: no CUDA device", None)]
    return [
        Check(f"{row['case']}: {row['method']}", f"{row['ratio']:.2f} x the processor's time", None)
        for row in found
    ]
