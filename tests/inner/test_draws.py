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
import torch
from sklearn.datasets import make_classification

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    CressieRead,
    CVaR,
    Group,
    Sinkhorn,
    TotalVariation,
    Wasserstein,
)  # fmt: skip
from drojko.measures.base import components

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


def score(model, seed, n=4000):
    """How far a sample's mean loss is from what the certificate claims, in standard errors.

    Order 1 moves little mass far: what n draws see of it is a Poisson number, which the standard
    error of the sample does not know.
    """
    worst, claim = model.worst_case_, model.certificate_
    value = losses(model, *worst.sample(n, random_state=seed + 10_000))
    error = math.hypot(value.std() / math.sqrt(n), claim.risk_error)
    moved = getattr(worst, "moved_mass", None)
    if moved is not None and 0 < moved < 1:
        gain = claim.worst_case_risk - claim.nominal_risk
        error = math.hypot(error, gain / math.sqrt(n * moved))
    return (value.mean() - claim.worst_case_risk) / (error + 1e-9 * abs(claim.worst_case_risk))


def task_of(name):
    """The squared loss shows most, but has no worst case in order 1 and none that moves targets."""
    return "logistic" if "labels" in name else "absolute" if "W1" in name else "squared"


@pytest.mark.parametrize("name", [name for name in SETS if name != "MMD"])  # that takes 20 s
def test_draws_have_the_mean_loss_that_is_claimed(name):
    """Five standard errors: one in two million would be outside."""
    model = fitted(name, "gaussian", task_of(name), 0)
    claim = model.certificate_
    assert 0 <= claim.risk_error <= claim.standard_error
    assert abs(score(model, 0)) < 5
    X, _ = model.worst_case_.sample(1000, random_state=0)
    assert len(np.unique(X, axis=0)) == 1000


@pytest.mark.parametrize(
    "name", [name for name in SETS if name.startswith(("KL", "chi", "CR", "TV", "CVaR"))]
)
@pytest.mark.parametrize("reference", ["kde", "mixture"])
def test_draws_spend_the_discrepancy_that_is_claimed(name, reference):
    """Fresh ratios, of mean one, have the claimed discrepancy up to sampling error."""
    model = fitted(name, reference, "absolute", 1)
    worst, claim = model.worst_case_, model.certificate_
    x, y, w = worst.reference.points(40_000, torch.Generator().manual_seed(5))
    ratio = worst._ratio(worst._losses(x, y)).numpy()
    w = w.numpy()
    error = 1e-9 + 5 * ratio.std() * (0.005 + worst.n_pool**-0.5)
    assert w @ ratio == pytest.approx(1.0, abs=error)
    spent = worst.ambiguity.discrepancy(ratio / (w @ ratio), w)
    assert spent == pytest.approx(claim.transport_cost, rel=0.2, abs=0.02)


@pytest.mark.parametrize("name", ["W2 ball", "W2 penalty"])
@pytest.mark.parametrize("reference", ["gaussian", "kde"])
def test_fresh_draws_move_as_far_as_is_claimed(name, reference):
    """Draws of the reference and where the plan takes them: E|z - x|^2 is the claimed cost."""
    model = fitted(name, reference, "squared", 0)
    worst, claim = model.worst_case_, model.certificate_
    x, y = worst.reference.sample(20_000, torch.Generator().manual_seed(5))
    cost = ((worst.transport(np.asarray(x), np.asarray(y), random_state=0) - x.numpy()) ** 2).sum(1)
    # The claim is of other draws, as many as the certificate has at least.
    error = cost.std() * (len(cost) ** -0.5 + 2_000**-0.5)
    assert cost.mean() == pytest.approx(claim.transport_cost, abs=5 * error)


def rows_of(X, Z):
    """Of each row of Z the row of X that it is, -1 for one that is none."""
    known = {row.tobytes(): k for k, row in enumerate(X)}
    return np.array([known.get(row.tobytes(), -1) for row in np.ascontiguousarray(Z)])


def test_order_one_moves_the_mass_that_it_says():
    """Mass times distance is the budget, and draws move as often."""
    X, y, _ = data("logistic")
    model = DROClassifier(Wasserstein(radius=0.2, order=1), reference="empirical", alpha=0.01)
    worst, claim = model.fit(X, y).worst_case_, model.certificate_
    spent = worst.moved_mass * worst.distance
    assert spent == pytest.approx(claim.transport_cost, rel=1e-9)
    assert spent == pytest.approx(0.2, rel=1e-9)
    n = 40_000
    Z, _ = worst.sample(n, random_state=0)
    moved = (rows_of(X, Z) < 0).mean()
    assert moved == pytest.approx(worst.moved_mass, abs=5 * (worst.moved_mass / n) ** 0.5)


@pytest.mark.parametrize("name", ["Group", "Group ball"])
def test_groups_have_the_mass_that_is_claimed(name):
    """Total variation between the shares of groups in draws and in the data."""
    X, _, groups = data("squared")
    model = fitted(name, "empirical", "squared", 0)
    Z, _ = model.worst_case_.sample(40_000, random_state=0)
    share = groups[rows_of(X, Z)].mean()
    spent = abs(share - groups.mean())
    assert spent == pytest.approx(model.certificate_.transport_cost, abs=5 * 0.5 / 200)
    assert spent > 0.1


@pytest.mark.parametrize("ambiguity", [KL(penalty=1.6), KL(radius=0.7)], ids=repr)
@pytest.mark.parametrize("reference", ["gaussian", "kde", "mixture"])
def test_kl_with_squared_errors_and_normal_components_is_exact(ambiguity, reference):
    """P* of N(m, S) has the precision S^-1 - 2 v v' / penalty, v = (-coef, 1)."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(150, 2))
    y = X @ [1.0, -0.5] + 0.5 * rng.normal(size=150)
    model = DRORegressor(ambiguity, reference=reference, random_state=0).fit(X, y)
    worst, claim = model.worst_case_, model.certificate_
    assert claim.standard_error == claim.risk_error == 0.0
    assert claim.lower == pytest.approx(claim.upper, rel=1e-9)
    Z, t = worst.sample(40_000, random_state=0)
    rows = np.column_stack([Z, t])
    assert len(np.unique(rows, axis=0)) == len(rows)
    value = losses(model, Z, t)
    assert value.mean() == pytest.approx(claim.worst_case_risk, abs=5 * value.std() / 200)
    if ambiguity.radius is not None:
        assert claim.transport_cost == pytest.approx(ambiguity.radius, rel=1e-6)
    if reference == "gaussian":
        (measure,) = components(worst.reference)
        v = np.append(-model.coef_, 1.0)
        precision = np.linalg.inv(measure.covariance.numpy()) - 2 * np.outer(v, v) / claim.penalty
        np.testing.assert_allclose(np.cov(rows.T), np.linalg.inv(precision), atol=0.05)
        mean = measure.mean.numpy() @ v - model.intercept_
        stretch = 1 - 2 * (v @ measure.covariance.numpy() @ v) / claim.penalty
        exact = (mean / stretch) ** 2 + v @ np.linalg.inv(precision) @ v
        assert claim.worst_case_risk == pytest.approx(exact, rel=1e-8)


def test_a_plateau_of_losses_is_shared_out():
    """CVaR of a hinge whose quantile is 0: the plateau keeps a part of its mass."""
    rng = np.random.default_rng(0)
    X = np.r_[rng.normal(size=(60, 1)) + 3, rng.normal(size=(60, 1)) - 3]
    label = np.repeat([1, 0], 60)
    model = DROClassifier(
        CVaR(0.9), loss="hinge", reference="gaussian", alpha=0.5, random_state=0
    ).fit(X, label)
    Z, t = model.worst_case_.sample(40_000, random_state=0)
    value = np.maximum(0.0, 1.0 - np.where(t == 1, 1, -1) * model.decision_function(Z))
    claim = model.certificate_
    error = math.hypot(value.std() / 200, claim.risk_error)
    assert abs(value.mean() - claim.worst_case_risk) < 5 * error
    assert claim.lower > claim.nominal_risk
    assert claim.upper - claim.lower < 5 * claim.standard_error


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
                        found.append(score(fitted(name, reference, task, seed), seed))
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
