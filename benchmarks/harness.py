"""What every suite shares: rows, timing, failures that stay in the table, CSV and Markdown.

A suite is a module with

- ``TITLE``, ``ABOUT`` (what is compared, by which evaluator), ``COLUMNS`` (shown in the report),
- ``cases(smoke)``: pairs (name, function); the function takes a `Context` and yields rows,
- ``summary(rows)``: `Check` objects, one per target, computed from the rows alone,
- if it likes, ``plots(rows)``: pairs (caption, function of a matplotlib figure), and
  ``tables(rows)``: Markdown in the place of the table of all rows, which is in the CSV anyway.

A row's ``status`` is "ok", "skipped: why", or what went wrong. Rows of other people's packages
carry ``peer=True``: what they fail at stays in the table, and is no failure of the run.
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
    "target", "met", "status", "peak MiB", "took", "form", "seed", "threads", "cpu", "commit",
    "drojko", "torch", "numpy", "scikit-learn", "python",
)  # fmt: skip
NUMBERS = ("peak MiB", "took")
OK, SKIPPED = "ok", "skipped"


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
    full: bool = False

    @property
    def form(self) -> str:
        """Which form of the suites this is."""
        return "smoke" if self.smoke else "full" if self.full else "default"


class Memory:
    """Peak of the resident memory of this process, which the kernel can forget (Linux)."""

    def __init__(self) -> None:
        self.start = math.nan

    def reset(self) -> None:
        """Begin anew; without a kernel that can, nothing is measured (rather than guessed)."""
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.start = self._field("VmRSS")
        except (OSError, StopIteration):
            self.start = math.nan

    def peak(self) -> float | None:
        """MiB above what was held at `reset`."""
        if math.isnan(self.start):
            return None
        return max(self._field("VmHWM") - self.start, 0.0) / 1024.0

    @staticmethod
    def _field(name: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(name + ":")))


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


def run_suite(
    suite: Suite,
    context: Context,
    report: Callable[[str, int, int], None] = lambda *_: None,
    only: str = "",
) -> None:
    """Run all cases (with ``only`` in their names); one that raises becomes a row that says so.

    ``report(text, done, total)`` is called before each case and after the last one.
    """
    fixed = {**environment(context.seed), "form": context.form}
    start, memory = time.perf_counter(), Memory()

    def add(values: dict[str, Any]) -> None:
        measured = {"peak MiB": memory.peak(), "took": time.perf_counter() - start}
        suite.rows.append(_row(suite.name, {**fixed, **measured}, values))
        memory.reset()

    memory.reset()
    try:
        cases = [case for case in suite.module.cases(context.smoke) if only in case[0]]
    except Exception as error:
        cases = []
        add({"case": "-", "status": describe(error)})
    for done, (name, function) in enumerate(cases):
        report(f"{suite.name}: {name}", done, len(cases))
        try:
            for row in function(context):
                add({"case": name, **row})
        except Exception as error:
            add({"case": name, "status": describe(error), "met": False})
    report(suite.name, len(cases), len(cases))


def merge(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Rows of a file with those of the cases in ``rows`` replaced, at their place."""
    old = read_csv(path) if path.exists() else []
    new: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        new.setdefault(row["case"], []).append(row)
    merged: list[dict[str, Any]] = []
    for row in old:
        if row["case"] in new:
            merged += new.pop(row["case"])
        elif not any(row["case"] == done["case"] for done in rows):
            merged.append(row)
    return merged + [row for part in new.values() for row in part]


def failures(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that ended badly: neither those of other packages nor what was skipped for a reason."""
    return [
        row
        for row in rows
        if row["status"] != OK
        and not str(row["status"]).startswith(SKIPPED)
        and row.get("peer") is not True
    ]


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
    if name in FIRST + LAST and name not in NUMBERS:
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
    """The report on all CSV files in ``folder``; draws the suites' pictures beside them."""
    summary = ["| suite | target | measured | met |", "|---|---|---|---|"]
    sections: list[str] = []
    for name, module in suites.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            continue
        rows = read_csv(path)
        failed = failures(rows)
        for check in module.summary(rows):
            cells = (name, check.target, check.measured, show(check.met))
            summary.append("| " + " | ".join(map(_cell, cells)) + " |")
        if failed:
            summary.append(f"| {name} | every row ends well | {len(failed)} failed | **no** |")
        sections += [f"\n## {module.TITLE}\n", module.ABOUT.strip(), f"\n    {command} {name}\n"]
        sections.append(_origin(rows) + "\n")
        sections += [
            f"![{caption}]({folder.name}/{file})\n"
            for caption, file in pictures(name, module, rows, folder)
        ]
        if hasattr(module, "tables"):
            sections.append(module.tables(rows))
        else:
            columns = ["case", "method", *module.COLUMNS, "peak MiB", "met", "status"]
            sections.append(table(columns, [[row.get(c) for c in columns] for row in rows]))
    kind = " (smoke run: small cases, numbers mean nothing)" if smoke else ""
    head = [
        f"# Benchmarks{kind}",
        "",
        f"Generated by `{command}` or `drojko bench`; never edited by hand. All rows are in the",
        "CSV files beside it, with versions, commit, seed and threads. `seconds` is CPU time of",
        "the process, `wall` the time on the clock. The machine is shared: read ratios, not",
        "seconds. torch, BLAS and OpenMP run on one thread. Failures stay in the tables. `peak",
        "MiB` is the peak of resident memory while a row was made (reference solutions included)",
        "above what the process held before, as the Linux kernel counts it.",
        "",
    ]
    return "\n".join([*head, *summary, *sections]) + "\n"


def _origin(rows: list[dict[str, Any]]) -> str:
    """Where the rows come from, and how long making them took."""
    names = ("commit", "cpu", "torch", "scikit-learn", "numpy", "python")
    # Cases that were run again have a commit of their own.
    found = {name: dict.fromkeys(str(row.get(name)) for row in rows) for name in names}
    text = ", ".join(f"{name} {' and '.join(values)}" for name, values in found.items())
    took = max((row.get("took") or 0.0 for row in rows), default=0.0)
    if not took:
        return text
    duration = f"{took:.0f} s" if took < 120 else f"{took / 60:.0f} min"
    return f"{text}. Form `{rows[0].get('form')}`: {duration} on the clock."


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    columns = list(columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(show, row)) + " |" for row in rows]
    return "\n".join(lines)


def pictures(
    name: str, module: Any, rows: list[dict[str, Any]], folder: Path
) -> list[tuple[str, str]]:
    """Draw what a suite has to show; captions and file names."""
    found: list[tuple[str, str]] = []
    if not hasattr(module, "plots"):
        return found
    from matplotlib.figure import Figure

    for k, (caption, draw) in enumerate(module.plots(rows)):
        figure = Figure(figsize=(8.0, 4.5), layout="constrained")
        draw(figure)
        file = f"{name}.png" if k == 0 else f"{name}-{k + 1}.png"
        figure.savefig(folder / file, dpi=110, metadata={"Software": None})
        found.append((caption, file))
    return found


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
