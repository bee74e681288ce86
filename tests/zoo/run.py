"""The zoo: each pipeline with each model, against each set, and through a model file."""

from __future__ import annotations

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
X = pd.read_pickle(sys.argv[2])
np.save(sys.argv[3], np.asarray(drojko.load(sys.argv[1]).predict(X)).astype(str))
"""


def stored(whole: Any, X: Any, folder: Path, fresh: bool = True) -> str | None:
    """What is wrong with a model that was saved and loaded in a fresh process."""
    file, table, answer = folder / "model.drojko", folder / "X.pkl", folder / "y.npy"
    drojko.save(whole, file)
    if fresh:
        pd.to_pickle(X, table)
        command = [sys.executable, "-c", _ASK, *map(str, (file, table, answer))]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            return ran.stderr.strip().splitlines()[-1]
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


def main(only: str = "") -> None:
    every: list[Outcome] = []
    for pipeline in PIPELINES:
        for model in MODELS:
            if only in f"{pipeline}/{model}" and meaningful(pipeline, model):
                every += animal(pipeline, model)
                print(".", end="", flush=True)
        if pipeline != "categories" and only in f"{pipeline}/fit":
            every += [trained(pipeline, kind) for kind in SETS]
    print()
    words = Counter((one.model, one.task, one.words[:200]) for one in every if one.state == "says")
    for (model, task, text), count in sorted(words.items()):
        print(f"says   {model}, {task} ({count}): {text}")
    for one in every:
        if one.bad:
            print(f"FAILS  {one.pipeline}, {one.model}, {one.task}: {one.words}")
    states = Counter(one.state for one in every)
    share = states["works"] / len(every)
    print(
        f"{len(every)} cases: {states['works']} work ({share:.1%}), {states['says']} say why not, "
        f"{states['fails']} fail"
    )
    slow = sorted(every, key=lambda one: -one.seconds)[:5]
    print("slowest:", "; ".join(f"{o.pipeline}/{o.model}/{o.task} {o.seconds:.1f} s" for o in slow))
