"""The command line: thin commands that parse, call the public interface and print.

Exit codes: 0 fine, 1 failure, 2 usage, 3 an audit crossed a limit, 130 stopped by Ctrl-C. No error
and no bad file ends in a traceback. Everything but click is imported inside of the commands,
so that ``drojko --help`` answers at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from drojko import __version__
from drojko._cli.report import print_certificate, print_fit, screen, summary

_LOSSES = {
    "classification": ("logistic", "hinge"),
    "regression": ("squared", "absolute", "huber", "quantile"),
}
_SETS = ["wasserstein", "kl", "chi-square", "tv", "cvar"]


class _Program(click.Group):
    """Whatever ends a command early is a line on standard error and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # names of files and columns can hold anything
            getattr(stream, "reconfigure", dict)(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            raise click.ClickException(_words(error)) from error


def _words(error: Exception) -> str:
    """What an error says; of those that are not meant for users, its kind as well."""
    from drojko.exceptions import DrojkoError

    known = isinstance(error, DrojkoError | OSError | ValueError | ImportError)
    return str(error) if known and str(error) else f"{type(error).__name__}: {error}"


class _Number(click.FloatRange):
    """A number that is one: neither NaN nor infinity."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not math.isfinite(number := super().convert(value, param, ctx)):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


# What several commands take.
_IN = click.Path(exists=True, dir_okay=False, path_type=Path)
_TABLES = click.Path(exists=True, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)
_immutable = click.option(
    "--immutable", multiple=True, help="Column that never moves; may be repeated."
)
_encoding = click.option(
    "--encoding", default="utf-8", show_default=True, help="Of a text table, such as latin-1."
)
_sep = click.option(
    "--sep", callback=lambda _, __, value: "\t" if value in ("tab", "\\t") else value,
    help="What separates the cells of a text table, such as ';' or tab.",
)  # fmt: skip
_SEED = click.IntRange(0, 2**32 - 1)
_drop = click.option("--drop", multiple=True, help="Column to leave out; may be repeated.")


@click.group(
    cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="drojko")
def main() -> None:
    """Distributionally robust models with certified worst cases."""


# -- demo ----------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--radius", default=0.3, show_default=True, type=_Number(min=0, min_open=True),
    help="Radius the robust model is trained for, in standard deviations.",
)  # fmt: skip
@click.option(
    "--out", default="drojko-demo.png", show_default=True,
    type=_OUT, help="Where the picture goes.",
)  # fmt: skip
def demo(radius: float, out: Path) -> None:
    """Plain against robust on real data, in seconds."""
    _check_folder(out)
    from drojko._cli.demo import run_demo

    found = run_demo(radius)
    found.save(out)
    console = screen()
    console.print(
        f"Breast cancer data: {found.rows[0]} rows to train on, {found.rows[1]} held out, "
        "30 standardised features.\n"
        "plain:  logistic regression with scikit-learn's default L2 penalty (radius 0)\n"
        f"robust: logistic regression for every shift of W2 distance up to {radius:g}\n",
    )
    console.print("Certificate of the robust model, around its training data", style="bold")
    print_certificate(console, found.robust.certificate_)
    console.print("\nRisk on the held-out rows in the worst case of each radius", style="bold")
    console.print(_comparison(found.plain_certificates, found.robust_certificates))
    accuracy = [model.score(found.X, found.y) for model in (found.plain, found.robust)]
    console.print(
        f"Held-out accuracy: plain {accuracy[0]:.3f}, robust {accuracy[1]:.3f}. Picture: {out}",
    )


def _comparison(plain: Any, robust: Any) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("radius", "plain: attained", "bound", "robust: attained", "bound", "proof"):
        table.add_column(name, justify="left" if name == "proof" else "right")
    for one, two in zip(plain, robust):
        table.add_row(
            f"{one.radius:g}",
            *(f"{value:.4f}" for value in (one.lower, one.upper, two.lower, two.upper)),
            ", ".join(sorted({one.proof, two.proof})),
        )
    return table


# -- fit -----------------------------------------------------------------------------------------


@main.command()
@click.argument("data", type=_TABLES)
@click.option("--target", required=True, help="Column to predict.")
@click.option(
    "--set", "kind", type=click.Choice(_SETS), default="wasserstein", show_default=True,
    help="Ambiguity set.",
)  # fmt: skip
@click.option(
    "--radius", type=_Number(min=0),
    help="Size of the set, of wasserstein in the units of the columns, of cvar a share of the "
    "rows (0.1 unless --penalty).",
)  # fmt: skip
@click.option(
    "--penalty", type=_Number(min=0, min_open=True),
    help="Price of transport instead of a radius.",
)  # fmt: skip
@click.option("--model", type=click.Choice(["linear", "mlp"]), default="linear", show_default=True)
@click.option(
    "--loss", type=click.Choice(sorted({name for names in _LOSSES.values() for name in names})),
    help="Default: logistic for classification, squared for regression.",
)  # fmt: skip
@click.option(
    "--reference", type=click.Choice(["empirical", "gaussian", "kde", "mixture", "flow"]),
    help="Measure at the centre of the ball: kde, and empirical for a folder.",
)  # fmt: skip
@click.option("--alpha", type=_Number(min=0), default=0.0, show_default=True, help="L2 penalty.")
@_immutable
@_drop
@_encoding
@_sep
@click.option(
    "--categorical", type=click.Choice(["none", "auto"]), default="none", show_default=True,
    help="auto: text becomes a column for each category, gaps are filled, and neither categories "
    "nor whole numbers move by fractions; the model takes the table as it is.",
)  # fmt: skip
@click.option(
    "--standardize", is_flag=True,
    help="Scale the columns to unit variance first; the radius is then in standard deviations.",
)  # fmt: skip
@click.option(
    "--task", type=click.Choice(["auto", "classification", "regression"]), default="auto",
    show_default=True,
    help="auto: text, or at most 20 different integers, are classes.",
)  # fmt: skip
@click.option("--max-iter", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--random-state", type=_SEED, default=0, show_default=True)
@click.option("-o", "--output", required=True, type=_OUT, help="Model file; drojko.load reads it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def fit(data: Path, target: str, output: Path, as_json: bool, **options: Any) -> None:
    """Fit, certify and save a model of a table.

    DATA is a CSV or Parquet file of numbers, one column of which is the target, or a folder of
    Parquet files, which are read batch by batch and may be larger than memory; with --categorical
    auto also a file with text, booleans and gaps. Ctrl-C ends the fit with exit code 130; the model
    so far, without a certificate, is written to OUTPUT.partial.

    torchrun --nproc-per-node=N -m drojko fit ... is one fit on N processes, each with a part of
    the rows; a worst case of the saved model is that of the first part.
    """
    if options["radius"] is not None and options["penalty"] is not None:
        raise click.UsageError("give --radius or --penalty, not both")
    _check_folder(output, data)
    options["as_json"] = as_json
    from drojko.distributed import sharded

    with sharded() as ranks:
        done = _fitted(data, target, output, options, ranks)
    if ranks.rank:
        return
    task, estimator, X, y, caught = done
    from drojko.exceptions import ConvergenceWarning

    for warning in caught:
        told = issubclass(warning.category, ConvergenceWarning) and not as_json
        if issubclass(warning.category, UserWarning) and not told:
            click.echo(f"warning: {warning.message}", err=True)
    if as_json:
        click.echo(json.dumps(summary(task, estimator, X, output), indent=2, allow_nan=False))
        return
    print_fit(task, estimator, X, y, options, output)


def _fitted(
    data: Path, target: str, output: Path, options: dict[str, Any], ranks: Any
) -> tuple[Any, ...]:
    """Task, estimator, table and warnings; the first of several processes saves the model."""
    from drojko._cli.folder import read_folder
    from drojko._cli.tables import labels, task_of

    batched = data.is_dir()
    if batched and options["standardize"]:
        raise click.UsageError("--standardize needs a table in memory: scale the files' columns")
    auto = options["categorical"] == "auto"
    if batched and auto:
        raise click.UsageError("--categorical auto needs a table in memory: encode the files")
    plain = "empirical" if batched or ranks.size > 1 else "kde"
    options["reference"] = options["reference"] or plain
    X: Any
    if batched:
        X = read_folder(data, target, options["drop"], ranks.rank, ranks.size)
        y = X.y
    else:
        X, y = _table(data, target, options, numbers=not auto, gaps=auto)
    task = task_of(y) if options["task"] == "auto" else options["task"]
    y = labels(y, task)
    model, estimator = _build(task, options, X)
    from drojko._persist import save

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if batched:
                estimator.fit_batches(X)
            elif ranks.size == 1:
                model.fit(X, y)
            else:
                scaled = X if model is estimator else model[:-1].fit_transform(X)
                own = slice(*(len(X) * k // ranks.size for k in (ranks.rank, ranks.rank + 1)))
                estimator.fit(scaled[own], y[own])
        if not ranks.rank:
            save(model, output)
    except KeyboardInterrupt:
        if hasattr(estimator, "status_") and not ranks.rank:
            partial = output.with_name(f"{output.name}.partial")
            save(model, partial)
            click.echo(f"the model after {estimator.n_iter_} iterations: {partial}", err=True)
        raise
    return task, estimator, X, y, caught


def _build(task: str, options: dict[str, Any], X: Any) -> tuple[Any, Any]:
    """The model to fit, and the drojko estimator inside of it."""
    loss = options["loss"] or _LOSSES[task][0]
    if loss not in _LOSSES[task]:
        raise click.UsageError(
            f"--loss {loss} is not for {task}; choose one of {', '.join(_LOSSES[task])}"
        )
    from drojko import DROClassifier, DRORegressor
    from drojko._cli.build import encoded, make_set

    radius, penalty = options["radius"], options["penalty"]
    auto, moves = options["categorical"] == "auto", options["kind"] == "wasserstein"
    ambiguity = make_set(
        options["kind"],
        0.1 if radius is None and penalty is None else radius,
        penalty,
        immutable=list(options["immutable"]) or None,
        categorical_features="auto" if auto and moves else None,
    )
    names = ("model", "reference", "alpha", "max_iter", "random_state")
    kind = DROClassifier if task == "classification" else DRORegressor
    estimator = kind(ambiguity, loss=loss, **{name: options[name] for name in names})
    from sklearn.pipeline import make_pipeline

    if auto:
        steps, said = encoded(X, options["standardize"])
        for words in said if not options["as_json"] else ():
            click.echo(words)
        return make_pipeline(steps, estimator), estimator
    if not options["standardize"]:
        return estimator, estimator
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().set_output(transform="pandas")  # keeps the columns' names
    return make_pipeline(scaler, estimator), estimator


# -- audit ---------------------------------------------------------------------------------------


@main.command()
@click.argument("model", type=_IN)
@click.argument("data", type=_TABLES)
@click.option("--target", required=True, help="Column with the labels.")
@click.option(
    "--radii", default="0.1,0.2,0.4", show_default=True,
    help="Sizes of the shift, separated by commas.",
)  # fmt: skip
@click.option(
    "--set", "kind", default="wasserstein", show_default=True,
    type=click.Choice(_SETS), help="Ambiguity set.",
)  # fmt: skip
@click.option(
    "--categorical", type=click.Choice(["none", "auto"]), default="none", show_default=True,
    help="auto: whole numbers move in whole steps, columns without a negative value get none.",
)  # fmt: skip
@click.option("--loss", help="Such as logistic, zero-one, squared or absolute.")
@click.option("--limit", metavar="NAME=NUMBER,...",
              help="What must hold: accuracy or auc at least, risk at most.")  # fmt: skip
@click.option("--standardize", is_flag=True, help="Distances in standard deviations of columns.")
@_immutable
@_drop
@_encoding
@_sep
@click.option("--html", type=_OUT, help="Write a page.")
@click.option("--csv", type=_OUT, help="Write the table.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--samples", type=_OUT,
              help="Write 1000 draws of the worst case, .csv or .parquet.")  # fmt: skip
@click.option("--trust", multiple=True,
              help="Type that a skops file may hold, such as my.module.Class.")  # fmt: skip
@click.option("--unsafe-pickle", is_flag=True,
              help="Load a pickle or joblib file: it can run any code.")  # fmt: skip
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.pass_context
def audit(
    context: click.Context, model: Path, data: Path, target: str, radii: str, kind: str,
    **given: Any,
) -> None:  # fmt: skip
    """Find the worst shift of a model: how bad, how sure, which columns.

    MODEL is a file of drojko, or of skops with trusted types; DATA a CSV or Parquet table, or a
    folder of Parquet files. Exit code 3 where a --limit is crossed.
    """
    limit = _limits(given["limit"])
    sizes = _sizes(radii, 1.0 if kind == "cvar" else math.inf)
    wanted = {name: path for name in ("html", "csv", "samples") if (path := given[name])}
    for path in wanted.values():
        _check_folder(path, model, data)
    from drojko._cli.tables import labels
    from drojko._files import write_table
    from drojko._persist import load_any

    console = screen()
    from drojko._cli.build import make_set
    from drojko.auditing import audit as run

    fitted = load_any(model, trusted=given["trust"], unsafe=given["unsafe_pickle"])
    X, y = _table(data, target, given, numbers=False, gaps=True)
    X = _as_fitted(fitted, X, data)
    y = labels(y, "classification" if hasattr(fitted, "classes_") else "regression")
    chosen = make_set(
        kind, sizes[0], immutable=list(given["immutable"]) or None,
        categorical_features="auto" if given["categorical"] == "auto" else None,
    )  # fmt: skip
    report = run(
        fitted, X, y, chosen, radii=sizes, random_state=given["seed"], name=model.stem,
        scale="standard" if given["standardize"] else None, verbose=sys.stderr.isatty(),
        loss=given["loss"], limit=limit,
    )  # fmt: skip
    savers = {
        "html": report.to_html,
        "csv": lambda path: write_table(report.table, path, ".csv"),
        "samples": report.export,
    }
    for name, path in wanted.items():
        savers[name](path)
    if given["as_json"]:
        click.echo(report.to_json())
    else:
        console.print(str(report), soft_wrap=True)
        for name, path in wanted.items():
            console.print(f"{name}: {path}")
    context.exit(3 if report.crossed else 0)


# -- predict -------------------------------------------------------------------------------------


@main.command()
@click.argument("model", type=_IN)
@click.argument("data", type=_TABLES)
@click.option("-o", "--output", required=True, type=_OUT, help="Table to write, .csv or .parquet.")
@_encoding
@_sep
@click.option("--trust", multiple=True,
              help="Type that a skops file may hold, such as my.module.Class.")  # fmt: skip
@click.option("--unsafe-pickle", is_flag=True,
              help="Load a pickle or joblib file: it can run any code.")  # fmt: skip
def predict(model: Path, data: Path, output: Path, **given: Any) -> None:
    """Predict with a model file: a row for each row of DATA.

    The columns of the table are found by name, in whatever order; others are left aside. OUTPUT
    has a column "prediction" and, of classifiers, one for the probability of each class.
    """
    _check_folder(output, model, data)
    import pandas as pd

    from drojko._cli.tables import read_table
    from drojko._files import write_table
    from drojko._persist import load_any
    from drojko.auditing.reading.categories import unknown_categories

    fitted = load_any(model, trusted=given["trust"], unsafe=given["unsafe_pickle"])
    X = _as_fitted(fitted, read_table(data, given["encoding"], given["sep"]), data)
    for words in unknown_categories(fitted, X):
        click.echo(f"note: unknown to the model, answered as if there were none: {words}", err=True)
    found = pd.DataFrame({"prediction": fitted.predict(X)})
    if hasattr(fitted, "predict_proba"):
        names = [f"probability of {label}" for label in fitted.classes_]
        found = pd.concat([found, pd.DataFrame(fitted.predict_proba(X), columns=names)], axis=1)
    write_table(found, output, output.suffix.lower())
    click.echo(f"{len(found)} rows: {output}")


def _as_fitted(fitted: Any, X: Any, data: Path) -> Any:
    """The columns that a model was fitted on, in its order; says what was left aside or moved."""
    known = getattr(fitted, "feature_names_in_", None)
    if known is None or not set(known) & set(X.columns):
        return X
    if lost := [name for name in known if name not in X.columns]:
        has = ", ".join(list(X.columns)[:12])
        raise click.ClickException(
            f"{data} lacks the column {lost[0]!r} that the model was fitted on; it has {has}"
        )
    if more := [name for name in X.columns if name not in known]:
        click.echo(f"note: not among the columns of the model, left aside: {more}", err=True)
    elif list(known) != list(X.columns):
        click.echo("note: reordered the columns as the model has them", err=True)
    return X[list(known)]


def _limits(text: str | None) -> Any:
    """``--limit`` as `audit` takes it: names with numbers, or one number."""
    if text is None:
        return None
    with suppress(ValueError):
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, _, value in pairs}
    raise click.UsageError(
        f"--limit {text!r}: expected a number, or names with numbers, as in accuracy=0.8,risk=0.7"
    )


def _sizes(text: str, most: float) -> list[float]:
    with suppress(ValueError):
        sizes = [float(part) for part in text.split(",")]
        zero = most == math.inf or all(sizes)
        if zero and all(0.0 <= size <= most and math.isfinite(size) for size in sizes):
            return sizes
    kind = "numbers of at least 0" if most == math.inf else "shares above 0, of at most 1,"
    raise click.UsageError(f"--radii {text!r}: expected {kind} separated by commas, as in 0.1,0.2")


# -- bench ---------------------------------------------------------------------------------------


@main.command()
@click.argument("suites", nargs=-1, metavar="[SUITE]...")
@click.option("--smoke", is_flag=True, help="The smallest cases only: a minute, no numbers.")
@click.option(
    "--full", is_flag=True,
    help="Also the cases of many minutes, and environments for the packages compared with.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for RESULTS.md and results/  [default: benchmarks/ of the checkout; with "
    "--smoke a temporary one]",
)  # fmt: skip
@click.option("--report", is_flag=True, help="Run nothing, only make RESULTS.md anew.")
@click.option("--case", default="", metavar="TEXT",
              help="Only cases with TEXT in their names; other rows stay.")  # fmt: skip
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.pass_context
def bench(context: click.Context, suites: tuple[str, ...], out: Path | None, **given: Any) -> None:
    """Run benchmarks: tables, pictures and a report, from a checkout of the source.

    Without SUITE all suites run. The same as `python benchmarks/run.py`, in a process of its own
    with one thread. Exit code 1 if a row failed; a missed target is a result, no failure.
    """
    import subprocess

    if given["smoke"] and given["full"]:
        raise click.UsageError("--smoke and --full exclude each other")
    command = [sys.executable, str(_benchmarks()), *suites, "--seed", str(given["seed"])]
    command += [f"--{name}" for name in ("smoke", "full", "report") if given[name]]
    command += ["--out", str(out.resolve())] if out else []
    command += ["--case", given["case"]] if given["case"] else []
    context.exit(subprocess.run(command, check=False).returncode)


def _benchmarks() -> Path:
    """The harness: benchmarks are no part of the installed package."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
    if not script.is_file():
        raise click.ClickException(
            f"there is no {script}: benchmarks come with the source, not with the installed "
            "package. Get the source of the same version (the source archive or a clone), then "
            'run "pip install -e ." in it and "drojko bench" again, or in it '
            '"python benchmarks/run.py"'
        )
    return script


# -- plumbing ------------------------------------------------------------------------------------


def _table(
    data: Path, target: str, options: dict[str, Any], *, numbers: bool, gaps: bool = False
) -> tuple[Any, Any]:
    """Features and target of a file, with the columns that were named checked."""
    from drojko._cli.tables import read_table, split_target

    frame = read_table(data, options["encoding"], options["sep"])
    _check_columns("target", (target,), frame.columns)
    _check_columns("drop", options["drop"], frame.columns)
    X, y = split_target(frame, target, options["drop"], numbers=numbers, gaps=gaps)
    _check_columns("immutable", options["immutable"], X.columns)
    return X, y


def _check_columns(option: str, wanted: Any, known: Any) -> None:
    for name in wanted:
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"columns: {', '.join(known[:12])}"
            raise click.BadParameter(
                f"there is no column {name!r}; {hint}", param_hint=f"--{option}"
            )


def _check_folder(path: Path, *inputs: Path) -> None:
    """What cannot be written is found out before the work, not after it."""
    found = Path(os.path.realpath(path))
    if not found.parent.is_dir():
        raise click.UsageError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(found.parent, os.W_OK):
        raise click.UsageError(f"{path}: the folder {path.parent} cannot be written to")
    if found.exists() and not found.is_file():
        raise click.UsageError(f"{path} is no regular file, and is not replaced")
    if any(found == Path(os.path.realpath(given)) for given in inputs):
        raise click.UsageError(f"{path} is read, and would be replaced: choose another name")
