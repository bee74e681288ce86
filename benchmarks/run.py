"""Run benchmark suites:  python benchmarks/run.py [SUITE ...] [--smoke] [--full] [--out DIR].

`drojko bench` is the same from a checkout. Without a suite all of them run. Each writes
``results/<suite>.csv``, and ``RESULTS.md`` is made anew from all CSV files there. ``--smoke`` runs
the smallest cases of everything in a minute, into a temporary folder unless ``--out`` names one.
``--full`` adds the cases of many minutes, and makes the environments of other packages.
``--report`` only makes RESULTS.md anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# Before numpy and torch start their thread pools: one thread for everything.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import harness  # noqa: E402

if TYPE_CHECKING:
    from rich.console import Console

SUITES = (
    "linear",
    "before",
    "inner",
    "networks",
    "threshold",
    "training",
    "density",
    "scaling",
    "ranks",
    "decisions",
    "sinkhorn",
    "imports",
    "peers",
    "shift",
    "natural",
    "duals",
    "gaussian",
    "reweighting",
    "flows",
    "importance",
    "semidual",
    "audit",
    "gpu",
)
#: Other names of suites.
ALIASES = {"mlp": "training"}


def main(arguments: list[str] | None = None) -> int:
    """Run the suites; the exit code is 1 if a row failed (not if a target is missed)."""
    parser = argparse.ArgumentParser(description="Benchmarks of drojko.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--smoke", action="store_true", help="smallest cases only")
    parser.add_argument("--full", action="store_true", help="also the cases that take minutes")
    parser.add_argument("--out", type=Path, help="folder of results/ and RESULTS.md")
    parser.add_argument("--report", action="store_true", help="only make RESULTS.md anew")
    parser.add_argument("--case", default="", metavar="TEXT",
                        help="only cases with TEXT in their names; other rows stay")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    given.suites = [ALIASES.get(name, name) for name in given.suites]
    unknown = [name for name in given.suites if name not in SUITES]
    if unknown:
        parser.error(f"unknown suites {unknown}; choose from {', '.join(SUITES)}")

    import torch
    from rich.console import Console

    torch.set_num_threads(1)  # noqa: TID251  this process is the benchmark's own
    if given.full:
        os.environ["DROJKO_BENCH_FULL"] = "1"
    out = given.out or (Path(tempfile.mkdtemp(prefix="drojko-bench-")) if given.smoke else HERE)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    context = harness.Context(given.smoke, given.seed, given.full)
    modules = {name: import_module(f"suites.{name}") for name in SUITES}
    failed = 0
    for name in () if given.report else given.suites or SUITES:
        suite = harness.Suite(name, modules[name])
        path = out / "results" / f"{name}.csv"
        part = path.with_name(f"{name}.partial.csv")
        with _bar(console) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they would say is in the rows: status, gap

            def report(text: str, done: int, total: int, suite=suite, part=part, bar=bar) -> None:
                bar(text, done, total)
                if suite.rows:  # what an interrupted run has found so far
                    harness.write_csv(suite.rows, part)

            harness.run_suite(suite, context, report, given.case)
        if given.case:
            suite.rows = harness.merge(suite.rows, path)
        harness.write_csv(suite.rows, path)
        part.unlink(missing_ok=True)
        failed += len(harness.failures(suite.rows))
        console.print(_table(suite))
    text = harness.markdown(modules, out / "results", "python benchmarks/run.py", given.smoke)
    (out / "RESULTS.md").write_text(text, encoding="utf-8")
    console.print(f"{out / 'RESULTS.md'}: {failed} failed rows")
    return 1 if failed else 0


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar over the cases of a suite (invisible where there is no screen)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def report(text: str, done: int, total: int) -> None:
            progress.update(task, description=text, completed=done, total=total)

        yield report


def _table(suite: harness.Suite):
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=suite.module.TITLE)
    columns = ["case", "method", *suite.module.COLUMNS, "peak MiB", "met", "status"]
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in suite.rows:
        table.add_row(*(escape(harness.show(row.get(c)).replace("**", "")) for c in columns))
    return table


if __name__ == "__main__":
    sys.exit(main())
