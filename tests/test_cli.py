"""The command line: what it prints, what it writes, and its exit codes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_diabetes, load_iris

import drojko
from drojko._cli import main

ROOT = Path(drojko.__file__).parent.parent


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def iris():
    data = load_iris(as_frame=True)
    return data.data.assign(species=data.target_names[data.target])


@pytest.fixture(scope="module")
def tables(tmp_path_factory, iris):
    """A folder with the same table in several forms, and some that cannot be used."""
    folder = tmp_path_factory.mktemp("tables")
    iris.to_csv(folder / "iris.csv", index=False)
    iris.to_csv(folder / "iris.xyz", index=False)
    two = iris.iloc[50:]
    two.to_csv(folder / "two.csv", index=False)
    two.to_csv(folder / "two.tsv", index=False, sep="\t")
    two.to_parquet(folder / "two.parquet")
    iris.assign(colour="red").to_csv(folder / "text.csv", index=False)
    holes = iris.copy()
    holes.iloc[3, 0] = np.nan
    holes.to_csv(folder / "holes.csv", index=False)
    load_diabetes(as_frame=True, scaled=False).frame.to_csv(folder / "diabetes.csv", index=False)
    return folder


def run_python(*arguments, cwd):
    environment = {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


# Help and usage ---------------------------------------------------------------------------------


def test_help_loads_neither_torch_nor_the_rest(tmp_path):
    script = (
        "import sys\n"
        "from drojko._cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'sklearn', 'numpy', 'pandas', 'matplotlib', 'rich', 'cvxpy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = run_python("-c", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert "demo" in result.stdout
    assert "fit" in result.stdout


def test_version(invoke):
    result = invoke("--version")
    assert result.exit_code == 0
    assert drojko.__version__ in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command"),
        (["fit", "missing.csv", "--target", "y", "-o", "m"], "does not exist"),
        (["fit", "{}/iris.csv", "-o", "m"], "--target"),
        (["fit", "{}/iris.csv", "--target", "species"], "--output"),
        (["fit", "{}/iris.csv", "--target", "specis", "-o", "m"], "did you mean 'species'"),
        (["fit", "{}/iris.csv", "--target", "y", "-o", "m"], "columns: sepal length"),
        (["fit", "{}/iris.csv", "--target", "species", "-o", "no/m"], "no does not exist"),
        (
            ["fit", "{}/iris.csv", "--target=species", "-o", "m", "--radius=1", "--penalty=1"],
            "not both",
        ),
        (
            ["fit", "{}/iris.csv", "--target", "species", "-o", "m", "--radius", "-1"],
            "not in the range",
        ),
        (
            ["fit", "{}/iris.csv", "--target", "species", "-o", "m", "--immutable", "age"],
            "no column 'age'",
        ),
        (
            ["fit", "{}/iris.csv", "--target", "species", "-o", "m", "--loss", "huber"],
            "not for classification",
        ),
        (["demo", "--out", "no/picture.png"], "no does not exist"),
        *[
            (["fit", "{}/iris.csv", "--target=species", "-o", "m", *option], message)
            for option, message in [
                (["--radius=nan"], "not a finite number"),
                (["--penalty=inf"], "not a finite number"),
                (["--random-state=-1"], "not in the range"),
                (["--output=/dev/null"], "no regular file"),
                (["--output={}/iris.csv"], "would be replaced"),
            ]
        ],
        *[
            (["audit", "{}/iris.csv", "{}/iris.csv", "--target=species", *option], "separated by")
            for option in (
                ["--radii=-1"],
                ["--radii=nan"],
                ["--radii=,"],
                ["--set=cvar", "--radii=2"],
            )
        ],
        *[
            (["audit", "{}/iris.csv", "{}/iris.csv", "--target=species", option], "--limit")
            for option in ("--limit=much", "--limit=accuracy=", "--limit=accuracy=.8,risk")
        ],
    ],
)
def test_usage_errors_exit_with_2(invoke, tables, arguments, message):
    result = invoke(*(argument.format(tables) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text.csv", "--target", "species"], "column 'colour' holds str"),
        (["text.csv", "--target", "species"], "--drop 'colour'"),
        (["iris.xyz", "--target", "species"], ".csv, .tsv or .parquet"),
        (["holes.csv", "--target", "species"], "column 'sepal length (cm)' is missing in 1 of 150"),
        (["iris.csv", "--target", "species", "--task", "regression"], "use --task classification"),
        (["diabetes.csv", "--target", "bmi", "--task", "classification"], "--task regression"),
    ],
)
def test_failures_exit_with_1_and_say_what_to_do(invoke, tables, tmp_path, arguments, message):
    result = invoke("fit", tables / arguments[0], *arguments[1:], "-o", "m.drojko")
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert not (tmp_path / "m.drojko").exists()


def test_an_audit_says_by_its_exit_code_whether_a_limit_is_crossed(invoke, tables):
    file = tables / "iris.csv"
    assert not invoke("fit", file, "--target", "species", "-o", "m.drojko").exit_code
    ask = ["audit", "m.drojko", file, "--target", "species", "--set", "kl", "--radii", "0.1,0.5"]
    held = invoke(*ask, "--limit", "accuracy=0.1", "--json")
    assert held.exit_code == 0, held.output
    assert json.loads(held.stdout)["decision"]["limits"][0].startswith("Limit: ")
    crossed = invoke(*ask, "--limit", "accuracy=0.1,risk=1e-6")
    assert crossed.exit_code == 3, crossed.output
    assert "missed today" in crossed.output
    wrong = invoke(*ask, "--limit", "speed=1")
    assert (wrong.exit_code, "accuracy or auc" in wrong.output) == (1, True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("header.csv", b"a,b,y\n", "has a header and no rows"),
        ("empty.csv", b"", "cannot be read as a .csv table"),
        ("latin.csv", "a,y\n1,\xe9\n2,b\n".encode("latin-1"), "--encoding latin-1"),
        ("utf16.csv", "a,y\n1,x\n2,b\n".encode("utf-16"), "--encoding utf-16"),
        ("binary.csv", bytes(range(256)) * 9, "it holds binary data"),
        ("ragged.csv", b"a,y\n1,x\n1,2,3\n", "saw 3"),
        ("quote.csv", b'a,y\n"1,x\n', "EOF inside string"),
        ("one.csv", b"a,y\n1,x\n", "1 sample"),
        ("huge.csv", b"a,y\n1e999,x\n1,z\n", ("inf in row 0", "'1e999'")),  # by pandas
        ("no.parquet", b"PAR1 PAR1", "cannot be read as a .parquet table"),
        ("empty.parquet", b"", "cannot be read as a .parquet table"),
    ],
)
def test_bad_files_are_named_and_end_in_no_traceback(invoke, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    result = invoke("fit", name, "--target", "y", "-o", "m.drojko")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert result.output.startswith("Error: ")
    messages = (message,) if isinstance(message, str) else message
    assert any(words in result.output for words in messages)
    assert name in result.output or name in ("one.csv", "huge.csv")
    assert not (tmp_path / "m.drojko").exists()


def test_an_encoding_can_be_named(invoke, tmp_path):
    text = "a,y\n" + "1,b\n2,\xe9\n" * 10
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        result = invoke("fit", "t.csv", "--target=y", "-o", "m", "--encoding", encoding)
        assert result.exit_code == 0, result.output
        assert list(drojko.load(tmp_path / "m").classes_) == ["b", "\xe9"]


def test_labels_and_columns_are_no_markup(invoke, tmp_path):
    """And no formulas, where they are written for a spreadsheet."""
    rows = [(k % 7, k % 5, "[/red]x" if k % 2 else "=y") for k in range(40)]
    frame = pd.DataFrame(rows, columns=["[/bold]", "=a:smile:", "[link=b]"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    shown = invoke("fit", "t.csv", "--target", "[link=b]", "-o", "m.drojko")
    assert shown.exit_code == 0, shown.output
    assert "(=y, [/red]x)" in shown.output
    arguments = ("--radii=0.1", "--csv=r.csv", "--samples=s.csv", "--html=r.html")
    shown = invoke("audit", "m.drojko", "t.csv", "--target", "[link=b]", *arguments)
    assert shown.exit_code == 0, shown.output
    samples = pd.read_csv(tmp_path / "s.csv")
    assert list(samples.columns) == ["[/bold]", "'=a:smile:", "target"]
    assert set(samples.target) == {"'=y", "[/red]x"}
    assert samples["'=a:smile:"].dtype == float


def test_a_model_without_its_end_is_refused(invoke, tables):
    assert invoke("fit", tables / "two.csv", "--target=species", "-o", "m").exit_code == 0
    data = Path("m").read_bytes()
    for cut in (1, 64, 78, 500):
        Path("m").write_bytes(data[:-cut])
        result = invoke("audit", "m", tables / "two.csv", "--target=species")
        assert result.exit_code == 1
        assert "cut" in result.output


@pytest.mark.promise(13)
def test_ctrl_c_writes_what_there_is_and_exits_with_130(invoke, tables, tmp_path, monkeypatch):
    def stop(self, found, approach):
        raise KeyboardInterrupt

    monkeypatch.setattr(drojko.DROClassifier, "_keep", stop)
    arguments = ("fit", tables / "two.csv", "--target=species", "--standardize", "-o", "m.drojko")
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "interrupted"
    assert "m.drojko.partial" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["m.drojko.partial"]
    model = drojko.load("m.drojko.partial")
    assert model[-1].status_ == "interrupted"
    assert len(model.predict(pd.read_csv(tables / "two.csv").iloc[:, :4])) == 100
    Path("m.drojko.partial").unlink()
    # Before the first iteration there is nothing.
    monkeypatch.setattr(drojko.DROClassifier, "_fit", lambda *args, **kwargs: stop(*args[:3]))
    assert invoke(*arguments).exit_code == 130
    assert not list(tmp_path.iterdir())


def test_errors_that_nobody_foresaw_are_no_tracebacks(invoke, tables, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("surprise")

    monkeypatch.setattr(drojko.DROClassifier, "_fit", fail)
    result = invoke("fit", tables / "two.csv", "--target", "species", "-o", "m")
    assert (result.exit_code, result.output) == (1, "Error: AssertionError: surprise\n")


def test_errors_of_the_library_exit_with_1(invoke, tables):
    table = pd.read_csv(tables / "two.csv").query("species == 'virginica'")
    table.to_csv("one.csv", index=False)
    result = invoke("fit", "one.csv", "--target", "species", "-o", "m")
    assert result.exit_code == 1
    assert "1 class" in result.output


# fit --------------------------------------------------------------------------------------------


def fit_json(invoke, *arguments):
    result = invoke("fit", *arguments, "-o", "m.drojko", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["two.csv", "two.tsv", "two.parquet"])
def test_every_format_gives_the_model_of_the_library(invoke, tables, iris, name):
    summary = fit_json(invoke, tables / name, "--target", "species", "--reference", "empirical")
    assert summary["task"] == "classification"
    assert summary["rows"] == 100
    model = drojko.load("m.drojko")
    expected = drojko.DROClassifier(reference="empirical", random_state=0)
    X, y = iris[50:].drop(columns="species"), iris[50:]["species"].to_numpy(dtype=str)
    expected.fit(X, y)
    np.testing.assert_array_equal(model.predict(X), expected.predict(X))
    assert summary["certificate"]["upper"] == pytest.approx(expected.certificate_.upper, rel=1e-9)
    assert summary["certificate"]["radius"] == 0.1


def test_a_folder_is_read_batch_by_batch(invoke, iris, tmp_path):
    folder = tmp_path / "iris"
    folder.mkdir()
    two = iris[50:].sample(frac=1.0, random_state=0)
    two[:40].to_parquet(folder / "1.parquet")
    two[40:].to_parquet(folder / "2.parquet")
    summary = fit_json(invoke, folder, "--target", "species", "--drop", two.columns[0])
    assert summary["rows"] == 100
    assert summary["features"] == two.columns[1:4].tolist()
    X, y = two[two.columns[1:4]], two["species"].to_numpy(dtype=str)
    expected = drojko.DROClassifier(reference="empirical").fit(X, y)
    assert summary["certificate"]["upper"] == pytest.approx(expected.certificate_.upper, rel=1e-8)
    np.testing.assert_array_equal(drojko.load("m.drojko").predict(X), expected.predict(X))
    shown = invoke("fit", folder, "--target", "species", "-o", "m.drojko")
    assert "100 rows, 4 features" in shown.output
    for options, words in (
        (["--standardize"], "--standardize"),
        (["--drop", "colour"], "no such column"),
        (["--reference", "kde"], "reference='kde'"),
    ):
        result = invoke("fit", folder, "--target", "species", "-o", "m.drojko", *options)
        assert result.exit_code != 0
        assert words in result.output


def test_the_certificate_is_printed(invoke, tables):
    result = invoke("fit", tables / "two.csv", "--target", "species", "-o", "m.drojko")
    assert result.exit_code == 0, result.output
    assert "classification into 2 classes (versicolor, virginica)" in result.output
    assert "upper bound [ridge-1d]" in result.output
    assert "saved: m.drojko" in result.output
    certificate = drojko.load("m.drojko").certificate_
    assert f"{certificate.upper:.6g}" in result.output


def test_regression_with_options(invoke, tables):
    summary = fit_json(
        invoke, tables / "diabetes.csv", "--target", "target", "--loss", "absolute",
        "--penalty", "100", "--immutable", "sex", "--drop", "s1", "--standardize",
    )  # fmt: skip
    assert summary["task"] == "regression"
    assert "s1" not in summary["features"]
    assert summary["certificate"]["radius"] is None  # JSON has no NaN, and there is no radius
    assert summary["certificate"]["penalty"] == 100
    pipeline = drojko.load("m.drojko")
    moved = pipeline[-1].worst_case_.displacement().set_index("feature")["share"]
    assert moved["sex"] == 0.0
    assert moved.sum() == pytest.approx(1.0)


def test_scales_that_differ_are_remarked_on(invoke, tables):
    table = pd.read_csv(tables / "two.csv")
    table["petal width (cm)"] *= 1000
    table.to_csv("wide.csv", index=False)
    result = invoke("fit", "wide.csv", "--target", "species", "-o", "m")
    assert "'petal width (cm)' spreads" in result.output
    assert "--standardize" in result.output
    result = invoke("fit", "wide.csv", "--target", "species", "-o", "m", "--standardize")
    assert "spreads" not in result.output


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b"] * 20, "classification"),
        ([True, False] * 20, "classification"),
        ([0, 1] * 20, "classification"),
        ([0.0, 1.0] * 20, "classification"),
        ([0.5, 1.0] * 20, "regression"),
        (range(40), "regression"),
        (range(5), "regression"),
    ],
)
def test_the_task_is_read_off_the_target(values, task):
    from drojko._cli.tables import task_of

    assert task_of(pd.Series(values)) == task


def test_an_identifier_is_no_class(invoke, tables):
    table = pd.read_csv(tables / "two.csv")
    table["species"] = [f"flower {i}" for i in range(len(table))]
    table.to_csv("ids.csv", index=False)
    result = invoke("fit", "ids.csv", "--target", "species", "-o", "m")
    assert result.exit_code == 1
    assert "identifier" in result.output


# bench ------------------------------------------------------------------------------------------

checkout = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "run.py").exists(), reason="an installed package has no benchmarks"
)


@checkout
@pytest.mark.slow
@pytest.mark.promise(16)
def test_bench_runs_the_harness(invoke, tmp_path):
    result = invoke("bench", "linear", "--smoke", "--out", "tables")
    assert result.exit_code == 0
    with (tmp_path / "tables" / "results" / "linear.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["form"] for row in rows} == {"smoke"}
    assert "smoke run" in (tmp_path / "tables" / "RESULTS.md").read_text(encoding="utf-8")


@checkout
def test_bench_hands_the_exit_code_on(invoke):
    assert invoke("bench", "nothing", "--smoke").exit_code == 2
    result = invoke("bench", "--smoke", "--full")
    assert result.exit_code == 2
    assert "exclude each other" in result.output


def test_bench_without_a_checkout_says_where_benchmarks_are(invoke, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "drojko._cli.__file__", str(tmp_path / "site" / "drojko" / "_cli" / "__init__.py")
    )
    result = invoke("bench", "linear")
    assert result.exit_code == 1
    assert "come with the source" in result.output
    assert "pip install -e ." in " ".join(result.output.split())


# demo and the real process ----------------------------------------------------------------------


def test_demo_prints_both_models_and_saves_a_picture(invoke, tmp_path):
    from drojko._cli.demo import RADII

    result = invoke("demo", "--out", "picture.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "upper bound [ridge-1d]" in result.output
    lines = result.output.splitlines()
    rows = [line.split() for line in lines if line.rstrip().endswith("ridge-1d")]
    assert [float(row[0]) for row in rows] == list(RADII)
    for row in rows:
        attained_plain, bound_plain, attained_robust, bound_robust = map(float, row[1:5])
        assert attained_plain <= bound_plain
        assert attained_robust <= bound_robust
    # The trade: better far away, worse at home.
    assert float(rows[-1][4]) < float(rows[-1][2])
    assert float(rows[0][2]) < float(rows[0][4])


@pytest.mark.slow
def test_python_m_drojko_is_the_same(tables, tmp_path):
    arguments = ["fit", str(tables / "two.csv"), "--target", "species", "-o", "m.drojko", "--json"]
    result = run_python("-m", "drojko", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert drojko.load(tmp_path / "m.drojko").certificate_.upper == pytest.approx(
        summary["certificate"]["upper"]
    )
    assert run_python("-m", "drojko", "nothing", cwd=tmp_path).returncode == 2


# Tables with text, and predictions ---------------------------------------------------------------


def test_a_table_with_text_and_gaps_is_fitted_and_predicted(invoke, iris):
    frame = iris.iloc[50:].reset_index(drop=True)
    frame["colour"] = np.where(np.arange(len(frame)) % 3 == 0, "red", "blue")
    frame.iloc[3, 0] = np.nan
    frame.to_csv("mixed.csv", index=False, sep=";")
    given = (
        "fit",
        "mixed.csv",
        "--target",
        "species",
        "--reference",
        "empirical",
        "-o",
        "m.drojko",
    )
    assert "add --sep ';'" in invoke(*given).output
    assert "--categorical auto" in invoke(*given, "--sep", ";").output
    found = invoke(*given, "--sep", ";", "--categorical", "auto", "--set", "kl")
    assert found.exit_code == 0, found.output
    assert "colour: one column a category" in found.output
    frame[frame.columns[::-1]].to_csv("new.csv", index=False)
    found = invoke("predict", "m.drojko", "new.csv", "-o", "p.csv")
    assert found.exit_code == 0
    assert "unknown" not in found.output
    frame.replace("blue", "green").to_csv("green.csv", index=False)
    found = invoke("predict", "m.drojko", "green.csv", "-o", "green-p.csv")
    assert "'colour': 'green' (66 rows)" in found.output
    said, model = pd.read_csv("p.csv"), drojko.load("m.drojko")
    X = frame.drop(columns="species")
    assert said["prediction"].tolist() == model.predict(X).tolist()
    np.testing.assert_allclose(said.iloc[:, 1:], model.predict_proba(X), rtol=1e-12)
    dated = frame.assign(day="2024-01-02")
    dated.to_csv("dated.csv", index=False)
    given = ("fit", "dated.csv", "--target", "species", "--categorical", "auto", "-o", "m.drojko")
    assert "column 'day' holds dates" in invoke(*given).output
