"""What every suite shares: rows, timing, failures that stay in the table, CSV and Markdown.

A suite is a module with

- ``TITLE``, ``ABOUT`` (what is compared, by which evaluator), ``COLUMNS`` (shown in the report),
- ``cases(smoke)``: pairs (name, function); the function takes a `Context` and yields rows,
- ``summary(rows)``: `Check` objects, one per target, computed from the rows alone.
"""

from __future__ import annotations

import csv
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: Columns that every row has, in this order; a suite's own columns stand between them.
FIRST = ("suite", "case", "method")
LAST = (
    "target", "met", "status", "seed", "threads", "cpu", "commit",
    "drojko", "torch", "numpy", "scikit-learn", "python",
)  # fmt: skip
OK = "ok"


@dataclass
class Clock:
    """CPU and wall seconds of a block."""

    seconds: float = math.nan
    wall: float = math.nan


@contextmanager
def clock() -> Iterator[Clock]:
    """Time a block: ``time.process_time`` (CPU) and ``time.perf_counter`` (wall)."""
    found = Clock()
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.process_time() - cpu
        found.wall = time.perf_counter() - wall


@dataclass
class Context:
    """What a case may know about the run."""

    smoke: bool
    seed: int


@dataclass(frozen=True)
class Check:
    """One line of the summary: a target, what was measured, and whether that meets it."""

    target: str
    measured: str
    met: bool | None


@dataclass
class Suite:
    """A suite's module and the rows of a run."""

    name: str
    module: Any
    rows: list[dict[str, Any]] = field(default_factory=list)


def environment(seed: int) -> dict[str, Any]:
    """What identifies a run: versions, commit, threads, processor."""
    import torch

    import drojko

    return {
        "seed": seed,
        "threads": torch.get_num_threads(),
        "cpu": processor(),
        "commit": commit(),
        "drojko": drojko.__version__,
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "scikit-learn": version("scikit-learn"),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Short hash of the checkout, with ``+changes`` if the package differs from it."""

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "--", "drojko") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """Name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def run_suite(suite: Suite, context: Context, report: Callable[[str], None]) -> None:
    """Run all cases; a case that raises becomes a row with the error as its status."""
    fixed = environment(context.seed)
    try:
        cases = list(suite.module.cases(context.smoke))
    except Exception as error:
        cases = []
        suite.rows.append(_row(suite.name, fixed, {"case": "-", "status": describe(error)}))
    for name, function in cases:
        report(f"{suite.name}: {name}")
        try:
            for row in function(context):
                suite.rows.append(_row(suite.name, fixed, {"case": name, **row}))
        except Exception as error:
            failed = {"case": name, "status": describe(error), "met": False}
            suite.rows.append(_row(suite.name, fixed, failed))


def describe(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _row(suite: str, fixed: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    row = {"suite": suite, "method": "-", "target": "", "met": None, "status": OK, **fixed}
    row.update(values)
    return row


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """One CSV per suite; numbers with all their digits."""
    own = dict.fromkeys(key for row in rows for key in row)
    names = [*FIRST, *(key for key in own if key not in FIRST + LAST), *LAST]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, with numbers and truth values read back."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: _parse(k, v) for k, v in row.items()} for row in csv.DictReader(file)]


def _parse(name: str, text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    if name in FIRST + LAST:
        return text
    try:
        return float(text)
    except ValueError:
        return text


def numbers(rows: Iterable[dict[str, Any]], column: str, **where: Any) -> list[float]:
    """Finite values of a column among the rows that ended well and match ``where``."""
    found = []
    for row in rows:
        value = row.get(column)
        matches = row["status"] == OK and all(row.get(k) == v for k, v in where.items())
        if matches and isinstance(value, int | float) and math.isfinite(value):
            found.append(float(value))
    return found


def verdicts(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """How many rows with a target meet it, and how many rows have one (failures included)."""
    aimed = [row for row in rows if row.get("met") is not None]
    return sum(bool(row["met"]) for row in aimed), len(aimed)


def median(values: list[float]) -> float:
    """Median; NaN of nothing."""
    return statistics.median(values) if values else math.nan


# Reports ----------------------------------------------------------------------------------------


def show(value: Any) -> str:
    """A cell: four significant digits, booleans as words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return _cell(value)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")


def markdown(suites: dict[str, Any], folder: Path, command: str, smoke: bool) -> str:
    """The report on all CSV files in ``folder``."""
    summary = ["| suite | target | measured | met |", "|---|---|---|---|"]
    tables: list[str] = []
    for name, module in suites.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            continue
        rows = read_csv(path)
        failures = [row for row in rows if row["status"] != OK]
        for check in module.summary(rows):
            cells = (name, check.target, check.measured, show(check.met))
            summary.append("| " + " | ".join(map(_cell, cells)) + " |")
        if failures:
            summary.append(f"| {name} | every row ends well | {len(failures)} failed | **no** |")
        tables += [f"\n## {module.TITLE}\n", module.ABOUT.strip(), f"\n    {command} {name}\n"]
        where = {
            k: rows[0][k] for k in ("commit", "cpu", "torch", "scikit-learn", "numpy", "python")
        }
        tables.append(", ".join(f"{k} {v}" for k, v in where.items()) + "\n")
        columns = ["case", "method", *module.COLUMNS, "met", "status"]
        tables.append("| " + " | ".join(columns) + " |")
        tables.append("|" + "---|" * len(columns))
        tables += ["| " + " | ".join(show(row.get(c)) for c in columns) + " |" for row in rows]
    kind = " (smoke run: small cases, numbers mean nothing)" if smoke else ""
    head = [
        f"# Benchmarks{kind}",
        "",
        "Generated by `python benchmarks/run.py`; never edited by hand. All rows are in the CSV",
        "files beside it, with versions, commit, seed and threads. `seconds` is CPU time of the",
        "process, `wall` the time on the clock. The machine is shared: read ratios, not seconds.",
        "torch, BLAS and OpenMP run on one thread. Failures stay in the tables.",
        "",
    ]
    return "\n".join([*head, *summary, *tables]) + "\n"


def script(code: str, *arguments: str, timeout: float = 600.0) -> str:
    """Standard output of Python code in a fresh process with this checkout first on its path."""
    import os

    variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join([str(ROOT), *(p for p in [os.environ.get("PYTHONPATH")] if p)])
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**variables, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if found.returncode:
        raise RuntimeError(found.stderr.strip().splitlines()[-1] if found.stderr else "it died")
    return found.stdout
