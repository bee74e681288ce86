"""The benchmark harness: complete tables, a status in each row, failures that stay (promise 16)."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "run.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.exists(), reason="an installed package has no benchmarks"
)


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import harness

    yield harness
    sys.modules.pop("harness", None)


@pytest.mark.slow
@pytest.mark.promise(16)
def test_smallest_suite_gives_a_complete_table(tmp_path):
    found = run("linear", "--smoke", "--out", tmp_path)
    assert found.returncode == 0, found.stderr
    rows = read(tmp_path / "results" / "linear.csv")
    assert {row["method"] for row in rows} == {"DROClassifier", "DRORegressor"}
    for row in rows:
        for column in ("suite", "case", "seed", "threads", "commit", "torch", "python", "target"):
            assert row[column], column
        assert row["status"] == "ok"
        assert row["threads"] == "1"
        # Not only a table: the numbers are right, by solvers that share nothing with drojko.
        assert abs(float(row["robust risk"]) / float(row["optimum"]) - 1.0) < 1e-4
        assert float(row["lower"]) <= float(row["upper"])
    report = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "never edited by hand" in report
    assert "python benchmarks/run.py linear" in report


@pytest.mark.promise(16)
def test_failures_stay_in_the_table(harness, tmp_path):
    def breaks(context):
        yield {"method": "first", "value": 1.0, "target": "value <= 2", "met": True}
        raise ValueError("no such\nsolution")

    module = SimpleNamespace(
        TITLE="Title", ABOUT="About.", COLUMNS=("value",),
        cases=lambda smoke: [("case", breaks), ("other", lambda context: [{"value": 3.0}])],
        summary=lambda rows: [harness.Check("aim", "1 | 2", False)],
    )  # fmt: skip
    suite = harness.Suite("made", module)
    calls = []
    harness.run_suite(suite, harness.Context(True, 0), lambda *call: calls.append(call))
    assert calls == [("made: case", 0, 2), ("made: other", 1, 2), ("made", 2, 2)]
    harness.write_csv(suite.rows, tmp_path / "made.csv")
    rows = harness.read_csv(tmp_path / "made.csv")
    assert [row["status"] for row in rows] == ["ok", "ValueError: no such solution", "ok"]
    assert [row["value"] for row in rows] == [1.0, None, 3.0]
    assert harness.verdicts(rows) == (1, 2)
    report = harness.markdown({"made": module}, tmp_path, "python benchmarks/run.py", True)
    assert "ValueError: no such solution" in report
    assert "| made | every row ends well | 1 failed | **no** |" in report


def test_a_suite_that_cannot_start_is_a_row(harness):
    def cases(smoke):
        raise RuntimeError("no data")

    suite = harness.Suite("made", SimpleNamespace(cases=cases))
    harness.run_suite(suite, harness.Context(True, 0))
    assert [row["status"] for row in suite.rows] == ["RuntimeError: no data"]


def test_unknown_suites_are_usage_errors():
    found = run("nothing", "--smoke")
    assert found.returncode == 2
    assert "unknown suites" in found.stderr
