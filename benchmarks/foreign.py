"""Other people's packages: an environment each, and fits in processes with a time limit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, SKIPPED

WORKER = Path(__file__).resolve().parent / "worker.py"
TORCH = "torch==2.13.0"  # first and pinned: what a package asks for by itself may be gigabytes
PATIENCE = 6.0
_COMMON = ("numpy", "scipy", "pandas", "scikit-learn", "cvxpy")

#: Package: version, what it needs, in the order of installation (its own dependencies are not
#: followed: of ``dro`` only the linear models are used, which need the common ones and torch).
PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dro": ("0.4.3", _COMMON),
    "skwdro": (
        "1.1.1",
        (*_COMMON, "cvxopt", "joblib", "dask[distributed]", "mechanic-pytorch", "prodigyopt",
         "sqwash"),
    ),
}  # fmt: skip


class Unavailable(Exception):
    """A package that is not there, and why."""


def cache() -> Path:
    """Folder of the environments, outside of the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "drojko-benchmarks"


def title(package: str) -> str:
    return f"{package} {PACKAGES[package][0]}" if package in PACKAGES else package


def interpreter(package: str, *, create: bool) -> Path:
    """Python of the environment that holds a package; made on demand."""
    if package not in PACKAGES:
        return Path(sys.executable)
    version, needs = PACKAGES[package]
    folder = cache() / f"{package}-{version}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    failed, ready = folder / "failed.txt", folder / "ready.txt"
    if ready.exists():
        return python
    if not create:
        raise Unavailable(f"{SKIPPED}: not installed; --full makes an environment for it")
    failed.unlink(missing_ok=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
        for names in ([TORCH], list(needs), ["--no-deps", f"{package}=={version}"]):
            _pip(python, names)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{SKIPPED}: cannot be installed: {_last(error)}") from error
    found = subprocess.run(
        [str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=False
    )
    ready.write_text(found.stdout, encoding="utf-8")
    return python


def importable(package: str) -> None:
    """Put a package alone, in a folder of its own, on the path of this process: it uses ours."""
    version, _ = PACKAGES[package]
    folder = cache() / f"{package}-{version}-alone"
    if not (folder / package).exists():
        try:
            _pip(Path(sys.executable), ["--no-deps", "--target", str(folder),
                                        f"{package}=={version}"])  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"{SKIPPED}: cannot be installed: {_last(error)}") from error
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _pip(python: Path, names: Sequence[str]) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", *names],
        capture_output=True, text=True, check=True, timeout=1800,
    )  # fmt: skip


def _last(error: Exception) -> str:
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return (lines or ["no message"])[-1][:150]


def fits(
    package: str,
    jobs: list[dict[str, Any]],
    X: np.ndarray,
    y: np.ndarray,
    *,
    limit: float,
    create: bool = False,
) -> list[dict[str, Any]]:
    """Results of `worker.run` for each job; what was not reached has the reason as its status.

    ``limit`` is in CPU seconds of the process, all jobs together, so that a busy machine takes
    nothing away; after `PATIENCE` times that on the clock it is over in any case.
    """
    try:
        python = interpreter(package, create=create)
    except Unavailable as error:
        return [{"status": str(error)} for _ in jobs]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        variables[name] = "1"
    if package not in PACKAGES:
        variables["PYTHONPATH"] = os.pathsep.join([str(WORKER.parent), str(ROOT)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job, data = folder / "job.json", folder / "data.npz"
        job.write_text(json.dumps(jobs), encoding="utf-8")
        np.savez(data, X=X, y=y)
        process = subprocess.Popen(
            [str(python), str(WORKER), str(job), str(data), str(math.ceil(limit))],
            env=variables, cwd=folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=PATIENCE * limit)
            word = _died(process.returncode, err)
            if process.returncode == -signal.SIGXCPU:
                word = f"time-out: {limit:.0f} s of CPU"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            word = f"time-out: {PATIENCE * limit:.0f} s on the clock"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [*found, *({"status": word} for _ in jobs[len(found) :])]


def _died(code: int, err: str) -> str:
    lines = err.strip().splitlines()
    return f"failed: exit code {code}: {lines[-1][:150] if lines else 'no message'}"
