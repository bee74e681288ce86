"""The figures that reports quote are those of the benchmark's table."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drojko.estimators.shifts.figures import MEASURED, SPLITS, TASKS, Measured

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.skipif(not FOLDER.exists(), reason="an installed package has no benchmarks")
def test_figures_are_those_of_the_suite(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    from splits import PLAIN
    from suites.natural import WHAT, compared, wins

    rows = pd.read_csv(FOLDER / "results" / "natural.csv").to_dict("records")
    rows = [row for row in rows if row["status"] == "ok" and row["method"] != WHAT]
    assert len({row["task"] for row in rows}) == TASKS
    assert {row["splits"] for row in rows} == {SPLITS}
    found = {}
    for name in MEASURED:
        each = compared(rows, name, PLAIN)
        better, worse = wins(each)
        mean = round(float(np.mean([change for change, _ in each.values()])), 1)
        found[name] = Measured(len(better), len(worse), len(each), mean)
    assert found == MEASURED
