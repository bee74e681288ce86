"""The zoo: each pipeline with each model, against each set, and through a model file."""

from __future__ import annotations

import atexit
import functools
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

import drojko
from drojko.ambiguity import KL, CVaR, Group, Wasserstein
from drojko.exceptions import DrojkoError
from tests.zoo.models import MODELS, MODULES, NATIVE, REGRESSORS
from tests.zoo.pipelines import PIPELINES, build, flights

SETS: dict[str, Any] = {
    "wasserstein": lambda: Wasserstein(radius=0.3),
    "order one": lambda: Wasserstein(radius=0.05, order=1),
    "kl": lambda: KL(radius=0.1),
    "cvar": lambda: CVaR(alpha=0.5),
    "group": lambda: Group(),
}


@dataclass
class Outcome:
    """``works``, or a sentence: the message of an error that is meant for users."""

    pipeline: str
    model: str
    task: str
    state: str  # "works", "says", "fails"
    words: str = ""
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        return self.state == "fails"


def meaningful(pipeline: str, model: str) -> bool:
    """Whether anybody could fit that: text and categories need a model or an encoder for them."""
    if pipeline == "categories":
        return model in NATIVE
    return model not in MODULES or pipeline in ("numbers", "counts")


def fitted(pipeline: str, model: str) -> tuple[Any, Any, Any]:
    """A model fitted to the table of a pipeline, that table, and its target."""
    table, labels, numbers = flights()
    X = PIPELINES[pipeline][0](table)
    y = numbers if model in REGRESSORS else labels
    native = pipeline == "categories"
    whole = build(pipeline, MODELS[model](native))
    X = X.astype(float) if model in MODULES else X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.fit(X, y)
    return whole, X, y


def judged(pipeline: str, model: str, task: str, work: Any) -> Outcome:
    began = time.process_time()

    def outcome(state: str, words: str = "") -> Outcome:
        return Outcome(pipeline, model, task, state, words, time.process_time() - began)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            for foreign in ("torch", "skorch", "lightgbm", "catboost", "xgboost", "sklearn"):
                warnings.filterwarnings("ignore", module=rf"{foreign}(\.|$)")
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            odd = work()
    except DrojkoError as error:
        words = str(error)
        return outcome("says" if words and "\n" not in words.strip() else "fails", words)
    except Exception as error:  # what a user must never see
        return outcome("fails", f"{type(error).__name__}: {error}")
    return outcome("works" if odd is None else "fails", odd or "")


def audited(whole: Any, X: Any, y: Any, kind: str) -> str | None:
    """What is wrong with the report of an audit; None: nothing."""
    ambiguity = SETS[kind]()
    groups = (np.arange(len(X)) % 3) if kind == "group" else None
    model = getattr(whole, "module_", whole)
    target = (y == "on time").astype(int) if hasattr(whole, "module_") else y
    scale = "standard" if kind in ("wasserstein", "order one") else None
    report = drojko.audit(
        model, X, target, ambiguity, groups=groups, scale=scale, random_state=0,
        max_evaluations=4_000,
    )  # fmt: skip
    row = report.table.iloc[-1]
    if np.isposinf(row.worst_case_risk) and "infinite worst case" in row.finding:
        return None  # of losses that grow without end, which it says
    if not np.isfinite(row.worst_case_risk) or row.worst_case_risk < row.nominal_risk - 1e-9:
        return f"worst case {row.worst_case_risk} of nominal {row.nominal_risk}"
    if not row.upper_bound >= row.worst_case_risk - 1e-9:
        return f"bound {row.upper_bound} below {row.worst_case_risk}"
    if model is whole and hasattr(whole, "classes_"):
        own = float(np.mean(np.ravel(whole.predict(X)) == y))
        if abs(own - row.nominal_accuracy) > 1e-9:
            return f"accuracy {row.nominal_accuracy}, by predict {own}"
    return None


_ASK = """
import sys, warnings
import numpy as np, pandas as pd
warnings.simplefilter("ignore")
import drojko
for line in sys.stdin:
    file, table, answer = line.rstrip("\\n").split("\\t")
    try:
        np.save(answer, np.asarray(drojko.load(file).predict(pd.read_pickle(table))).astype(str))
        print("done", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
"""


@functools.cache
def _elsewhere() -> Any:
    """A process that has seen no fit and none of the classes of the zoo."""
    command = [sys.executable, "-c", _ASK]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # its input ends, and so does it
    return process


def stored(whole: Any, X: Any, folder: Path, fresh: bool = True) -> str | None:
    """What is wrong with a model that was saved and loaded in a process of its own."""
    file, table, answer = folder / "model.drojko", folder / "X.pkl", folder / "y.npy"
    drojko.save(whole, file)
    if fresh:
        pd.to_pickle(X, table)
        process = _elsewhere()
        print(file, table, answer, sep="\t", file=process.stdin, flush=True)
        said = process.stdout.readline().strip()
        if said != "done":
            return said
        found = np.load(answer)
    else:
        found = np.asarray(drojko.load(file).predict(X)).astype(str)
    same = np.array_equal(found, np.asarray(whole.predict(X)).astype(str))
    return None if same else "other predictions after loading"


def animal(pipeline: str, model: str, fresh: bool = True) -> list[Outcome]:
    """All that becomes of one model behind one pipeline."""
    whole, X, y = fitted(pipeline, model)
    found = [
        judged(pipeline, model, kind, lambda kind=kind: audited(whole, X, y, kind)) for kind in SETS
    ]
    if model not in MODULES:
        with tempfile.TemporaryDirectory() as folder:
            work = lambda: stored(whole, X, Path(folder), fresh)  # noqa: E731
            found.append(judged(pipeline, model, "file", work))
    return found


def trained(pipeline: str, kind: str) -> Outcome:
    """drojko's own linear classifier behind a pipeline, trained for a set."""
    table, labels, _ = flights()
    X, groups = PIPELINES[pipeline][0](table), np.arange(len(table)) % 3

    def work() -> str | None:
        estimator = drojko.DROClassifier(SETS[kind](), reference="empirical", random_state=0)
        whole = build(pipeline, estimator)
        name = "groups" if whole is estimator else f"{type(estimator).__name__.lower()}__groups"
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=".*The optimum is a constant model")
            whole.fit(X, labels, **({name: groups} if kind == "group" else {}))
        found = estimator.certificate_
        if not found.lower <= found.upper + 1e-9:
            return "lower above upper"
        if caught and not estimator.optimality_gap_ <= estimator.tol:  # it says "optimum"
            return f"{caught[0].message}, and a gap of {estimator.optimality_gap_}"
        return None

    return judged(pipeline, "fit", kind, work)


def summary(every: list[Outcome]) -> str:
    """Each sentence once, every failure, the share that works, and what took longest."""
    lines = []
    words = Counter((one.model, one.task, one.words[:300]) for one in every if one.state == "says")
    for (model, task, text), count in sorted(words.items()):
        lines.append(f"says   {model}, {task} ({count}): {text}")
    lines += [
        f"FAILS  {one.pipeline}, {one.model}, {one.task}: {one.words}" for one in every if one.bad
    ]
    states = Counter(one.state for one in every)
    lines.append(
        f"{len(every)} cases: {states['works']} work ({states['works'] / len(every):.1%}), "
        f"{states['says']} say why not, {states['fails']} fail"
    )
    slow = sorted(every, key=lambda one: -one.seconds)[:5]
    lines.append("slowest: " + "; ".join(f"{_name(one)} {one.seconds:.1f} s" for one in slow))
    return "\n".join(lines)


def _name(one: Outcome) -> str:
    return f"{one.pipeline}/{one.model}/{one.task}"


def main(only: str = "", part: int = 1, parts: int = 1) -> int:
    """What of the zoo has ``only`` in its name, the part-th of parts; the number of failures."""
    names = [
        (pipeline, model)
        for pipeline in PIPELINES
        for model in (*MODELS, "fit")
        if (pipeline != "categories" if model == "fit" else meaningful(pipeline, model))
        and only in f"{pipeline}/{model}"
    ]
    if not names:
        print(f"nothing has {only!r} in its name; names are PIPELINE/MODEL, such as one-hot/forest")
        return 1
    every: list[Outcome] = []
    for pipeline, model in names[part - 1 :: parts]:
        fit = model == "fit"
        found = [trained(pipeline, kind) for kind in SETS] if fit else animal(pipeline, model)
        for one in found:
            state = f"{one.state:5} {_name(one)} {one.seconds:.1f} s"
            print(f"{state}: {one.words}" if one.words else state, flush=True)
        every += found
    print(summary(every))
    return sum(one.bad for one in every)
