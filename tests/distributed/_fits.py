"""What each rank does: ``torchrun --nproc-per-node=2 _fits.py OUT``."""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    ClassShift,
    CressieRead,
    CVaR,
    Group,
    Sinkhorn,
    TotalVariation,
    Wasserstein,
)
from drojko.distributed import sharded

N, MANY, MORE = 150, 21_000, 75_000  # MORE: rows enough for a third sample


def classifier(ambiguity, **options):
    return DROClassifier(ambiguity, reference="empirical", **{"alpha": 1e-3, **options})


def regressor(ambiguity, **options):
    return DRORegressor(ambiguity, reference="empirical", **{"alpha": 1e-3, **options})


#: Estimator and how it is fitted: "plain", "weighted", "groups", "sparse", "batches", "many",
#: "more", "float32", "classes" (three of them).
CASES = {
    "order 2": (classifier(Wasserstein(0.2)), "weighted"),
    "order 2, alpha 0": (classifier(Wasserstein(0.2), alpha=0.0), "plain"),
    "order 2, hinge": (classifier(Wasserstein(0.2), loss="hinge"), "plain"),
    "order 2, priced": (classifier(Wasserstein(penalty=3.0)), "plain"),
    "order 2, a column stays": (classifier(Wasserstein(2.0, immutable=[2])), "plain"),
    "order 2, squared": (regressor(Wasserstein(0.2), loss="squared"), "weighted"),
    "order 2, absolute": (regressor(Wasserstein(0.2), loss="absolute"), "plain"),
    "order 2, three classes": (classifier(Wasserstein(0.2)), "classes"),
    "order 2, three classes priced": (classifier(Wasserstein(penalty=2.0)), "classes"),
    "order 2, three classes, hinge": (classifier(Wasserstein(0.1), loss="hinge"), "classes"),
    "order 1": (classifier(Wasserstein(0.2, order=1)), "weighted"),
    "order 1, huber": (regressor(Wasserstein(0.2, order=1), loss="huber"), "plain"),
    "order 1, three classes": (classifier(Wasserstein(0.1, order=1)), "classes"),
    "KL": (classifier(KL(0.2)), "weighted"),
    "KL, squared": (regressor(KL(0.2), loss="squared"), "plain"),
    "KL, three classes": (classifier(KL(0.1), alpha=0.1), "classes"),
    "KL, class weights": (classifier(KL(0.2), class_weight="balanced"), "plain"),
    "ChiSquare": (classifier(ChiSquare(0.2)), "weighted"),
    "CressieRead": (classifier(CressieRead(1.5, radius=0.2)), "plain"),
    "TotalVariation": (classifier(TotalVariation(0.2)), "weighted"),
    "CVaR": (classifier(CVaR(0.3), loss="hinge"), "weighted"),
    "Sinkhorn": (classifier(Sinkhorn(0.1, radius=0.2)), "weighted"),
    "Group": (classifier(Group()), "groups"),
    "ClassShift": (classifier(ClassShift(radius=0.1)), "weighted"),
    "sparse": (classifier(Wasserstein(0.2)), "sparse"),
    "batches": (classifier(KL(0.2)), "batches"),
    "float32": (classifier(KL(0.2)), "float32"),
    "order 2, many rows": (classifier(Wasserstein(0.2), alpha=0.0), "many"),
    "KL, many rows": (classifier(KL(0.2)), "many"),
    "CVaR, many rows": (classifier(CVaR(0.3)), "many"),
    "order 2, more rows": (classifier(Wasserstein(0.2), alpha=0.0), "more"),
    "order 2, hinge, many rows": (classifier(Wasserstein(0.05), loss="hinge"), "many"),
    "KL, more rows": (classifier(KL(0.2)), "more"),
    "no certificate": (classifier(Wasserstein(0.2), effort="none"), "plain"),
}


def cuts(size, n):
    """Uneven shards; of three ranks the second one has no rows."""
    return {1: [0, n], 2: [0, n // 3, n], 3: [0, n // 3, n // 3, n]}[size]


def data(how):
    rng = np.random.default_rng(7)
    n = {"many": MANY, "more": MORE}.get(how, N)
    X = rng.normal(size=(n, 4)) * [1.0, 2.0, 0.5, 1.0] + [0.0, 1.0, 5.0, 0.0]
    X[:, 3] = (X[:, 3] > 1.5) if how == "many" else X[:, 3]
    if how == "sparse":
        X[rng.random(X.shape) < 0.6] = 0.0
    f = X[:, 0] - 0.5 * X[:, 1] + X[:, 2] - 4.0 + rng.normal(size=n)
    names = np.array(["no", "yes"])
    y = names[(f > 0).astype(int)]
    if how == "classes":
        y = np.digitize(f, [-1.0, 1.0])
    # The classes of the first shard are not those of all.
    first = np.flatnonzero(y == np.unique(y)[0])[: n // 3]
    order = np.append(first, np.setdiff1d(np.arange(n), first))
    X, y, f = X[order], y[order], f[order]
    w = rng.uniform(0.5, 2.0, size=n)
    w[3] = 0.0
    return X, y, f, w, np.array(list("aabbbc"))[rng.integers(0, 6, size=n)]


def fitted(name, rank=0, size=1):
    """A case on the rows of a rank."""
    estimator, how = CASES[name]
    X, y, f, w, groups = data(how)
    low, high = cuts(size, len(y))[rank : rank + 2]
    own = slice(low, high)
    X, w, groups = X[own], w[own], groups[own]
    y = (f if isinstance(estimator, DRORegressor) else y)[own]
    X = X.astype(np.float32) if how in ("float32", "many", "more") else X
    options = {"weighted": {"sample_weight": w}, "groups": {"groups": groups}}.get(how, {})
    if how == "batches":
        parts = [(pd.DataFrame(X[k : k + 40]), y[k : k + 40]) for k in range(0, len(y), 40)]
        parts = [(frame.rename(columns="c{}".format), labels) for frame, labels in parts]
        return estimator.fit_batches(parts)
    return estimator.fit(sparse.csr_array(X) if how == "sparse" else X, y, **options)


def numbers(estimator):
    """All that a fit says, as floats."""
    found = [*np.ravel(estimator.coef_), *np.ravel(estimator.intercept_)]
    found += [estimator.optimality_gap_, estimator.n_iter_]
    c = estimator.certificate_
    if c is not None:
        found += [c.nominal_risk, c.lower, c.upper, c.worst_case_risk, c.penalty, c.transport_cost]
    history = estimator.history_.drop(columns="seconds").to_numpy()
    return [float(value) for value in [*found, *history.ravel()]]


class Then:
    """A callback that does something at an iteration."""

    def __init__(self, at, what):
        self.at, self.what = at, what

    def setup(self, estimator, context): ...
    def teardown(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context, **data): ...

    def on_fit_task_end(self, estimator, context, **data):
        if context.task_name == "outer" and context.task_id == self.at:
            return self.what()
        return False


def raises(error):
    raise error


def mistakes(rank, size):
    """Name -> what the rank does; rank 1 does it wrong (where a rank has to)."""
    X, y, _, w, _ = data("plain")
    # Each has all rows: what is wrong is something else.
    wrong = rank == 1
    frame = pd.DataFrame(X, columns=list("abcd"))
    mine = ValueError("mine")

    def when(flag, one, other):
        return one if flag else other

    def late(what):
        model = classifier(CVaR(0.3), loss="hinge")
        return model.set_callbacks(Then(2, what if wrong else lambda: False))

    model = classifier(KL(0.2))
    return {
        "widths": lambda: model.fit(X[:, : when(wrong, 3, 4)], y),
        "names": lambda: model.fit(frame.rename(columns=when(wrong, {"c": "z"}, {})), y),
        "dtypes": lambda: model.fit(X.astype(when(wrong, np.float32, np.float64)), y),
        "settings": lambda: classifier(KL(when(wrong, 0.3, 0.2))).fit(X, y),
        "parameter": lambda: classifier(KL(0.2), alpha=when(wrong, -1.0, 0.0)).fit(X, y),
        "weights": lambda: model.fit(X, y, sample_weight=when(wrong, None, w)),
        "kinds of labels": lambda: model.fit(X, when(wrong, np.arange(N) % 2, y)),
        "one class": lambda: model.fit(X, np.full(N, "no")),
        "NaN": lambda: model.fit(when(wrong, np.where(X > 2.0, np.nan, X), X), y),
        "MMD": lambda: classifier(MMD(radius=0.1)).fit(X, y),
        "measure": lambda: DROClassifier(KL(0.2)).fit(X, y),
        "raises": lambda: late(lambda: raises(mine)).fit(X, y),
        "Ctrl-C": lambda: late(lambda: os.kill(os.getpid(), signal.SIGINT)).fit(X, y),
        "batches": lambda: model.fit_batches(when(wrong, iter([(X, y)]), [(X, y)])),
    }


def main(out):
    warnings.simplefilter("ignore")
    found = {"cases": {}, "errors": {}}
    with sharded(timeout=120) as ranks:
        rank, size = ranks.rank, ranks.size
        for name in CASES:
            estimator = fitted(name, rank, size)
            found["cases"][name] = [value.hex() for value in numbers(estimator)]
            if name == "order 2":
                found["attained"] = attained(estimator, rank, size)
            if name == "no certificate":
                found["later"] = estimator.certificate_ is None and estimator._worst is not None
        for name, work in mistakes(rank, size).items():
            try:
                work()
                found["errors"][name] = None
            except BaseException as error:
                found["errors"][name] = [type(error).__name__, str(error)]
        model = classifier(CVaR(0.3), loss="hinge")
        model.set_callbacks(Then(2, lambda: rank == 1))
        X, y, *_ = data("plain")
        found["callback"] = model.fit(X, y).status_
        slow = Then(1, lambda: bool(time.sleep(rank % 2)))  # clocks that differ
        model = classifier(CVaR(0.3), loss="hinge", max_time=0.5)
        found["max_time"] = model.set_callbacks(slow).fit(X, y).status_
        calls, sent = ranks.calls, ranks.sent
        fitted("KL", rank, size)
        found["sent"] = [ranks.calls - calls, ranks.sent - sent]
    Path(out, f"{rank}.json").write_text(json.dumps(found))


def attained(estimator, rank, size):
    """Loss and cost of the worst case on the rank's own rows, times their mass."""
    X, y, _, w, _ = data("weighted")
    own = slice(*cuts(size, len(y))[rank : rank + 2])
    X, y, w = X[own], y[own], w[own] / w.sum()
    if not len(y):
        return [0.0, 0.0]
    moved = estimator.worst_case_.transport(X[w > 0], y[w > 0])
    sign = np.where(y == estimator.classes_[1], 1.0, -1.0)[w > 0]
    loss = np.logaddexp(0.0, -sign * estimator.decision_function(moved))
    return [float(w[w > 0] @ loss), float(w[w > 0] @ ((moved - X[w > 0]) ** 2).sum(axis=1))]


if __name__ == "__main__":
    main(sys.argv[1])
