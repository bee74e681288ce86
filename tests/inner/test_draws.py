"""Draws of every worst case have the mean loss and the discrepancy that its certificate claims.

The long form, forty seeds of every set and every reference, is ``python -m
tests.inner.test_draws 40``: it counts claims that lie outside three standard errors.
"""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
from sklearn.datasets import make_classification

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import (
    KL, MMD, ChiSquare, CressieRead, CVaR, Group, Sinkhorn, TotalVariation, Wasserstein,
)  # fmt: skip

REFERENCES = ("empirical", "kde", "gaussian", "mixture")
SETS = {
    "W2 ball": Wasserstein(radius=0.3),
    "W2 penalty": Wasserstein(penalty=2.0),
    "W2 labels": Wasserstein(radius=0.3, label_cost=2.0),
    "W2 bounds": Wasserstein(radius=0.3, bounds={0: (-9.0, 9.0), 2: (-9.0, 9.0)}),
    "W1 ball": Wasserstein(radius=0.2, order=1),
    "W1 norm": Wasserstein(radius=0.2, order=1, norm=1),
    "W1 penalty": Wasserstein(penalty=3.0, order=1),
    "W1 labels": Wasserstein(radius=0.2, order=1, label_cost=1.0),
    "Sinkhorn ball": Sinkhorn(epsilon=0.1, radius=0.2),
    "Sinkhorn penalty": Sinkhorn(epsilon=0.1, penalty=2.0),
    "KL ball": KL(radius=0.1),
    "KL wide": KL(radius=0.5),
    "KL penalty": KL(penalty=1.6),
    "chi-square ball": ChiSquare(radius=0.3),
    "chi-square penalty": ChiSquare(penalty=1.0),
    "CR(.5) ball": CressieRead(0.5, radius=0.1),
    "CR(.5) penalty": CressieRead(0.5, penalty=1.0),
    "CR(3) ball": CressieRead(3.0, radius=0.1),
    "CR(3) penalty": CressieRead(3.0, penalty=1.0),
    "TV ball": TotalVariation(radius=0.2),
    "TV penalty": TotalVariation(penalty=2.0),
    "CVaR": CVaR(alpha=0.3),
    "Group": Group(),
    "Group ball": Group(radius=0.2),
    "MMD": MMD(radius=0.1),
}
TASKS = ("logistic", "absolute", "squared")


def data(task):
    X, label = make_classification(200, 4, random_state=0, flip_y=0.1)
    groups = (X[:, 1] > 0).astype(int)
    if task == "logistic":
        return X, label, groups
    noise = np.random.default_rng(0).normal(size=200)
    return X, X @ [1.0, -0.5, 0.3, 0.0] + 0.5 * (1.0 + groups) * noise, groups


def fitted(name, reference, task, seed):
    X, y, groups = data(task)
    ambiguity = SETS[name]
    extra = {"groups": groups} if ambiguity.knows_groups else {}
    estimator = DROClassifier if task == "logistic" else DRORegressor
    if task == "squared" and name == "KL penalty":
        ambiguity = KL(penalty=6.0)
    model = estimator(ambiguity, loss=task, reference=reference, alpha=0.01, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y, **extra)


def losses(model, X, y):
    """By public predictions."""
    if model.loss == "logistic":
        return np.logaddexp(0.0, -np.where(y == 1, 1.0, -1.0) * model.decision_function(X))
    error = np.abs(y - model.predict(X))
    return error if model.loss == "absolute" else error**2


def scores(model, seed, n=4000):
    """Errors of a sample's mean loss and of the discrepancy, in standard errors; and the slack.

    Order 1 moves little mass far: what n draws see of it is a Poisson number, which the standard
    error of the sample does not know.
    """
    worst, claim = model.worst_case_, model.certificate_
    Z, label = worst.sample(n, random_state=seed + 10_000)
    value = losses(model, Z, label)
    error = math.hypot(value.std() / math.sqrt(n), claim.standard_error)
    moved = getattr(worst, "moved_mass", None)
    if moved is not None and 0 < moved < 1:
        gain = claim.worst_case_risk - claim.nominal_risk
        error = math.hypot(error, gain / math.sqrt(n * moved))
    error += 1e-9 * abs(claim.worst_case_risk)
    return (value.mean() - claim.worst_case_risk) / error, (value, claim, worst, Z)


def main(seeds: int) -> None:
    total = outside = 0
    only = [part for part in sys.argv[2:] if part != "-v"]
    verbose = "-v" in sys.argv
    for task in TASKS:
        for name in SETS:
            if only and not any(part in f"{task} {name}" for part in only):
                continue
            for reference in REFERENCES:
                found, words = [], set()
                for seed in range(seeds):
                    try:
                        found.append(scores(fitted(name, reference, task, seed), seed)[0])
                    except Exception as error:
                        words.add(f"{type(error).__name__}: {error}"[:70])
                        break
                bad = sum(abs(s) > 3 for s in found)
                total += len(found)
                outside += bad
                if found and bad == 0 and not verbose:
                    continue
                if found:
                    print(
                        f"{task:9} {name:18} {reference:9} {bad:3}/{len(found)} "
                        f"mean {np.mean(found):6.2f} rms {np.sqrt(np.mean(np.square(found))):5.2f} "
                        f"worst {found[int(np.argmax(np.abs(found)))]:6.2f}",
                        flush=True,
                    )
                else:
                    print(f"{task:9} {name:18} {reference:9} {words}", flush=True)
    print(f"{outside} of {total} outside three standard errors ({outside / max(total, 1):.2%})")


if __name__ == "__main__":
    main(int(sys.argv[1]))
