"""Networks on each rank: ``torchrun --nproc-per-node=3 _networks.py OUT``, the second empty."""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, Wasserstein
from drojko.distributed import sharded
from tests.distributed._fits import Then, cuts

N = 120


class Net(nn.Module):
    """Two channels of three columns, as images have."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(4, 1))

    def forward(self, x):
        return self.inner(x[:, None])


def network(ambiguity, kind=DROClassifier, **options):
    own = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 4, **options}
    return kind(ambiguity, model=own.pop("model", "mlp"), reference="empirical", **own)


NAMES = (
    "nominal_risk", "lower", "upper", "worst_case_risk", "penalty", "transport_cost", "proof",
)  # fmt: skip
BOX = Wasserstein(0.5, bounds=(-9.0, 9.0), label_cost=1.0)
#: Estimator, its targets, and whether rows are weighted.
CASES = {
    "two classes": (network(Wasserstein(0.2)), "two", True),
    "three classes, first layer": (
        network(Wasserstein(0.2), hidden_layer_sizes=(2,), effort="none"), "three", False,
    ),
    "priced, two layers": (
        network(Wasserstein(penalty=2.0), hidden_layer_sizes=(4, 4), alpha=1e-3), "two", False,
    ),
    "regression": (network(Wasserstein(0.1), DRORegressor, loss="huber"), "real", False),
    "module": (network(Wasserstein(0.2), model=Net), "two", False),
    "held out": (
        network(Wasserstein(0.2), early_stopping=True, batch_size=7, effort="none"), "two", True,
    ),
    "bounds, labels": (network(BOX, max_iter=1), "two", False),
    "nothing moves": (network(Wasserstein(0.0)), "two", False),
    "searched": (network(Wasserstein(0.5), max_iter=30, learning_rate=0.05), "two", False),
    "thorough": (network(Wasserstein(0.2), effort="thorough"), "two", False),
}  # fmt: skip


def data():
    """Rows whose first third is all of one class."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(N, 3))
    f = np.sin(2.0 * X[:, 0]) + X[:, 1] ** 2 - 1.0 + 0.2 * rng.normal(size=N)
    order = np.argsort(f < 0.0, kind="stable")
    f, X, w = f[order], X[order], rng.uniform(0.5, 2.0, size=N)
    w[[5, 100]] = 0.0
    targets = {"two": np.array(["no", "yes"])[(f > 0).astype(int)], "real": f}
    return X, {**targets, "three": np.digitize(f, [-0.5, 0.5])}, w


def fitted(name, rank=0, size=1):
    estimator, target, weighted = CASES[name]
    X, targets, w = data()
    own = slice(*cuts(size, N)[rank : rank + 2])
    options = {"sample_weight": w[own]} if weighted else {}
    return estimator.fit(X[own], targets[target][own], **options)


def numbers(estimator):
    """Parameters, certificate and history."""
    c: Any = estimator.certificate_ or SimpleNamespace(**dict.fromkeys(NAMES, 0.0), search="")
    history = estimator.history_.drop(columns="seconds").to_numpy()
    return {
        "parameters": [float(v) for p in estimator.parameters_.values() for v in p.ravel()],
        "certificate": [getattr(c, name) for name in NAMES[:5]],
        "cost": c.transport_cost, "proof": c.proof, "search": c.search,
        "history": history.ravel().tolist(), "status": estimator.status_,
    }  # fmt: skip


def attained(estimator, rank, size):
    """Loss and cost of the worst case on the rank's own rows, times their mass."""
    X, targets, w = data()
    own = slice(*cuts(size, N)[rank : rank + 2])
    X, y, w = X[own], targets["two"][own], w[own] / w.sum()
    if not len(y):
        return [0.0, 0.0]
    moved = estimator.worst_case_.transport(X[w > 0], y[w > 0])
    sign = np.where(y == "yes", 1.0, -1.0)[w > 0]
    loss = np.logaddexp(0.0, -sign * estimator.decision_function(moved))
    return [float(w[w > 0] @ loss), float(w[w > 0] @ ((moved - X[w > 0]) ** 2).sum(axis=1))]


def raises():
    raise ValueError("mine")


def mistakes(rank):
    """Name -> what the rank does; the last rank does it wrong where one has to."""
    X, targets, _ = data()
    y, wrong = targets["two"], rank == 2

    def late(what):
        return network(Wasserstein(0.2)).set_callbacks(Then(2, what if wrong else bool))

    def fit(**options):
        return network(Wasserstein(0.2), **options).fit(X, y)

    return {
        "settings": lambda: fit(hidden_layer_sizes=(7 if wrong else 6,)),
        "KL": lambda: network(KL(0.1)).fit(X, y),
        "swaps": lambda: network(
            Wasserstein(0.1, categorical_features=[[0, 1]], swap_cost=1.0)
        ).fit(np.eye(3)[np.arange(N) % 3], y),
        "no hidden layer": lambda: fit(hidden_layer_sizes=()),
        "certified": lambda: fit(certified="auto"),
        "checkpoint": lambda: fit(checkpoint="never.ckpt"),
        "raises": lambda: late(raises).fit(X, y),
        "Ctrl-C": lambda: late(lambda: os.kill(os.getpid(), signal.SIGINT)).fit(X, y),
    }


def main(out):
    warnings.simplefilter("ignore")
    found = {"cases": {}, "errors": {}}
    with sharded(timeout=120) as ranks:
        rank, size = ranks.rank, ranks.size
        for name in CASES:
            estimator = fitted(name, rank, size)
            found["cases"][name] = numbers(estimator)
            if name == "two classes":
                found["attained"] = attained(estimator, rank, size)
        for name, work in mistakes(rank).items():
            try:
                work()
                found["errors"][name] = None
            except BaseException as error:
                found["errors"][name] = [type(error).__name__, str(error)]
        X, targets, _ = data()
        own = slice(*cuts(size, N)[rank : rank + 2])
        X, y = X[own], targets["two"][own]
        # Each draws a seed of its own, and they have to agree on one.
        model = network(Wasserstein(0.2), random_state=None, effort="none").fit(X, y)
        found["seedless"] = [float(v) for v in model.parameters_["weights.0"].ravel()]
        found["later"] = len(y) == 0 or bool(np.isfinite(model.worst_case_.transport(X, y)).all())
        slow = Then(1, lambda: bool(time.sleep(rank % 2)))  # clocks that differ
        model = network(Wasserstein(0.2), max_time=0.5, max_iter=10**6).set_callbacks(slow)
        found["max_time"] = model.fit(X, y).status_
        model = network(Wasserstein(0.2)).set_callbacks(Then(2, lambda: rank == 1))
        found["callback"] = model.fit(X, y).status_
    Path(out, f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
