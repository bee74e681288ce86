"""Convex programs against the exact duals, against our own solvers, and against each other."""

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    CressieRead,
    CVaR,
    Group,
    TotalVariation,
    Wasserstein,
)
from drojko.baselines import ConvexDROClassifier, ConvexDRORegressor
from drojko.exceptions import InvalidDataError, SolverError, UnboundedRiskError, UnsupportedError

RATIO = [
    KL(radius=0.1),
    KL(penalty=0.7),
    ChiSquare(radius=0.5),
    ChiSquare(penalty=0.7),
    CressieRead(3.0, radius=0.2),
    CressieRead(1.5, radius=0.2),
    CressieRead(1.5, penalty=0.7),
    CressieRead(0.5, radius=0.1),
    CressieRead(0.5, penalty=0.7),
    TotalVariation(radius=0.1),
    TotalVariation(penalty=0.7),
    CVaR(alpha=0.4),
]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = (X @ [1.0, -0.5, 0.2] + rng.logistic(size=60) > 0).astype(int)
    target = X @ [1.0, -0.5, 0.2] + rng.standard_t(3, size=60)
    weight = rng.integers(0, 4, size=60).astype(float)
    return X, y, target, weight


def numeric(model, f, y):
    return model._loss().value(torch.as_tensor(f), torch.as_tensor(y)).numpy()


def losses_of(model, X, y):
    if isinstance(model, ConvexDRORegressor):
        return numeric(model, model.predict(X), y)
    f = model.decision_function(X)
    if f.ndim == 2:
        own = f[np.arange(len(y)), y]
        if model.loss == "logistic":
            return np.log(np.exp(f).sum(1)) - own
        margins = f + 1.0
        margins[np.arange(len(y)), y] -= 1.0
        return margins.max(1) - own
    return numeric(model, f, y)


@pytest.mark.parametrize("ambiguity", RATIO, ids=repr)
@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared", "absolute"])
def test_the_objective_is_the_exact_dual_at_the_solution_and_no_neighbour_is_better(
    table, ambiguity, loss
):
    X, y, target, weight = table
    if loss in ("logistic", "hinge"):
        model = ConvexDROClassifier(ambiguity, loss=loss, alpha=0.01).fit(X, y, weight)
        goal = y
    else:
        goal = target
        model = ConvexDRORegressor(ambiguity, loss=loss, alpha=0.01).fit(X, goal, weight)
    assert model._program.problem.is_dpp()

    def objective():
        coef = np.ravel(model.coef_)
        value = ambiguity.dual(losses_of(model, X, goal), weight).value
        return value + 0.005 * float(coef @ coef)

    best = objective()
    assert model.objective_ == pytest.approx(best, rel=1e-5, abs=1e-7)
    masses = model.worst_case_weights_
    assert masses.sum() == pytest.approx(1.0)
    coef = np.ravel(model.coef_)
    attained = masses @ losses_of(model, X, goal) + 0.005 * coef @ coef
    if ambiguity.penalty is None:  # the solver's multipliers are a worst case
        assert attained == pytest.approx(best, rel=1e-3)
    rng = np.random.default_rng(1)
    kept = model.coef_.copy()
    for _ in range(5):
        model.coef_ = kept + 0.05 * rng.normal(size=kept.shape)
        assert objective() >= best - 1e-6
    model.coef_ = kept


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_several_classes(loss):
    X, y = load_iris(return_X_y=True)
    X = scale(X)
    model = ConvexDROClassifier(KL(radius=0.1), loss=loss, alpha=0.05).fit(X, y)
    dual = KL(radius=0.1).dual(losses_of(model, X, y)).value
    assert model.objective_ == pytest.approx(dual + 0.025 * np.sum(model.coef_**2), rel=1e-5)
    assert model.score(X, y) > 0.9


def test_a_large_penalty_is_plain_regularised_training(table):
    X, y, *_ = table
    plain = LogisticRegression(C=1 / (0.1 * len(X)), tol=1e-10).fit(X, y)
    model = ConvexDROClassifier(KL(penalty=1e5), alpha=0.1).fit(X, y)
    assert model.coef_ == pytest.approx(plain.coef_, abs=1e-3)


def test_refit_solves_the_compiled_program_for_another_size(table):
    X, _, target, weight = table
    model = ConvexDRORegressor(CVaR(alpha=0.5), loss="absolute").fit(X, target, weight)
    program = model._program.problem
    moved = model.refit(0.2).objective_
    assert model._program.problem is program
    fresh = ConvexDRORegressor(CVaR(alpha=0.2), loss="absolute").fit(X, target, weight)
    assert moved == pytest.approx(fresh.objective_, rel=1e-6)
    with pytest.raises(InvalidDataError, match="alpha"):
        model.refit(1.5)
    with pytest.raises(InvalidDataError, match="call fit"):
        pickle.loads(pickle.dumps(model)).refit(0.3)


@pytest.mark.parametrize("size", [{"radius": 0.3}, {"penalty": 20.0}])
@pytest.mark.parametrize("loss", ["squared", "absolute", "quantile"])
@pytest.mark.parametrize("label_cost", [math.inf, 2.0])
def test_order_two_regression_agrees_with_our_solver(loss, size, label_cost):
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:150], scale(y)[:150]
    ball = Wasserstein(**size, label_cost=label_cost, weights=[2.0] + [1.0] * 9, immutable=[3])
    theirs = ConvexDRORegressor(ball, loss=loss, quantile=0.3).fit(X, y)
    ours = DRORegressor(ball, loss=loss, quantile=0.3, reference="empirical").fit(X, y)
    assert ours.certificate_.upper == pytest.approx(theirs.objective_, rel=1e-4)
    assert ours.coef_ == pytest.approx(theirs.coef_, abs=2e-2)


@pytest.mark.parametrize("size", [{"radius": 0.2}, {"penalty": 2.0}])
@pytest.mark.parametrize("label_cost", [math.inf, 0.5])
def test_order_two_hinge_agrees_with_our_solver(size, label_cost):
    X, y = load_breast_cancer(return_X_y=True)
    X, y = scale(X[:, :8])[:200], y[:200]
    ball = Wasserstein(**size, label_cost=label_cost)
    theirs = ConvexDROClassifier(ball, loss="hinge").fit(X, y)
    ours = DROClassifier(ball, loss="hinge", reference="empirical").fit(X, y)
    assert ours.certificate_.upper == pytest.approx(theirs.objective_, rel=1e-4)


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_atoms_of_order_two_attain_the_worst_case_within_the_budget(loss):
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:100], scale(y)[:100]
    model = ConvexDRORegressor(Wasserstein(radius=0.2), loss=loss).fit(X, y)
    moved = model.worst_case_atoms_
    assert ((moved - X) ** 2).sum(1).mean() <= 0.04 * (1 + 1e-3)
    attained = numeric(model, model.predict(moved), y).mean()
    assert attained == pytest.approx(model.objective_, rel=2e-3)


def test_order_two_hinge_atoms_attain_the_penalised_worst_case():
    X, y = load_breast_cancer(return_X_y=True)
    X, y = scale(X[:, :5])[:120], y[:120]
    model = ConvexDROClassifier(Wasserstein(penalty=1.0), loss="hinge").fit(X, y)
    moved = model.worst_case_atoms_
    attained = losses_of(model, moved, y).mean() - ((moved - X) ** 2).sum(1).mean()
    assert attained == pytest.approx(model.objective_, rel=1e-5)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_order_one_is_the_nominal_risk_plus_the_dual_norm(table, loss):
    X, y, *_ = table
    model = ConvexDROClassifier(Wasserstein(radius=0.1, order=1), loss=loss).fit(X, y)
    expected = losses_of(model, X, y).mean() + 0.1 * np.linalg.norm(model.coef_)
    assert model.objective_ == pytest.approx(expected, rel=1e-6)
    flipping = Wasserstein(radius=0.1, order=1, label_cost=0.5)
    assert ConvexDROClassifier(flipping, loss=loss).fit(X, y).objective_ > model.objective_


def test_order_one_penalty_bounds_the_norm(table):
    X, _, target, _ = table
    ball = Wasserstein(penalty=0.3, order=1)
    model = ConvexDRORegressor(ball, loss="huber").fit(X, target)
    assert 1.35 * np.linalg.norm(model.coef_) <= 0.3 * (1 + 1e-6)


def test_radius_zero_is_the_plain_fit(table):
    X, _, target, weight = table
    model = ConvexDRORegressor(KL(radius=0.0)).fit(X, target, weight)
    A = np.column_stack([X, np.ones(60)]) * np.sqrt(weight)[:, None]
    theta = np.linalg.lstsq(A, target * np.sqrt(weight), rcond=None)[0]
    assert np.append(model.coef_, model.intercept_) == pytest.approx(theta, abs=1e-5)


def test_bad_input_is_named(table):
    X, y, target, _ = table
    with pytest.raises(UnboundedRiskError, match="order=2"):
        ConvexDRORegressor(Wasserstein(radius=0.1, order=1)).fit(X, target)
    with pytest.raises(UnsupportedError, match="Supported: Wasserstein"):
        ConvexDROClassifier(Wasserstein(radius=0.1)).fit(X, y)
    with pytest.raises(InvalidDataError, match="solver='MOSEK'"):
        ConvexDROClassifier(KL(radius=0.1), solver="MOSEK").fit(X, y)
    with pytest.raises(InvalidDataError, match="1 class"):
        ConvexDROClassifier(KL(radius=0.1)).fit(X, np.ones(60))
    with pytest.raises(SolverError, match="HIGHS"):
        ConvexDROClassifier(KL(radius=0.1), solver="highs").fit(X, y)
    hurried = ConvexDRORegressor(Wasserstein(penalty=9.0), solver_options={"max_iter": 2})
    with pytest.raises(SolverError, match="CLARABEL"):
        hurried.fit(X, target)


ON_SUPPORT = [
    MMD(radius=0.2),
    MMD(penalty=1.5),
    MMD("energy", radius=0.3),
    MMD("laplace", 1.0, radius=0.2),
    Group(),
    Group(radius=0.2),
    Group(penalty=0.4),
]


@pytest.mark.parametrize("ambiguity", ON_SUPPORT, ids=repr)
@pytest.mark.parametrize("loss", ["logistic", "squared", "absolute"])
def test_sets_on_the_support_agree_with_their_duals_and_our_solver(table, ambiguity, loss):
    X, y, target, weight = table
    weight = np.maximum(weight, 0.5)
    groups = np.where(X[:, 0] > 0.7, "high", np.where(X[:, 1] > 0, "mid", "low"))
    given = {"groups": groups} if isinstance(ambiguity, Group) else {}
    goal = y if loss == "logistic" else target
    convex, ours = (ConvexDROClassifier, DROClassifier)
    if loss != "logistic":
        convex, ours = (ConvexDRORegressor, DRORegressor)
    model = convex(ambiguity, loss=loss, alpha=0.01).fit(X, goal, weight, **given)
    losses = losses_of(model, X, goal)
    bound = ambiguity.on(X, weight, labels=goal) if not given else ambiguity.on(X, weight, groups)
    ridge = 0.005 * float(np.sum(model.coef_**2))
    dual = bound.dual(losses)
    assert model.objective_ == pytest.approx(dual.value + ridge, rel=1e-5)
    masses = model.worst_case_weights_
    price = (ambiguity.penalty or 0.0) * dual.radius
    assert masses @ losses - price == pytest.approx(dual.value, rel=1e-3)
    fitted = ours(ambiguity, loss=loss, alpha=0.01, reference="empirical")
    fitted.fit(X, goal, sample_weight=weight, **given)
    ridge = 0.005 * float(np.sum(fitted.coef_**2))
    assert fitted.certificate_.upper + ridge == pytest.approx(model.objective_, rel=1e-4)


def test_overlapping_groups(table):
    X, y, *_ = table
    members = np.column_stack([X[:, 0] > 0, X[:, 1] > -1.0, np.ones(60, bool)])
    model = ConvexDROClassifier(Group(), alpha=0.05).fit(X, y, groups=members)
    losses = losses_of(model, X, y)
    worst = max(losses[inside].mean() for inside in members.T)
    assert model.objective_ == pytest.approx(worst + 0.025 * np.sum(model.coef_**2), rel=1e-6)
    assert model.worst_case_weights_ @ losses == pytest.approx(worst, rel=1e-4)
    with pytest.raises(InvalidDataError, match="groups="):
        ConvexDROClassifier(Group()).fit(X, y)
    with pytest.raises(InvalidDataError, match="call fit"):
        model.refit(0.3)


CROSS = [
    *RATIO,
    *(
        Wasserstein(radius=0.1, order=1, norm=norm, label_cost=cost)
        for norm in (1, 2, math.inf)
        for cost in (math.inf, 0.8)
    ),
    Wasserstein(penalty=0.3, order=1),
]


@pytest.mark.filterwarnings("ignore:.*optimum is a constant model")
@pytest.mark.parametrize("ambiguity", CROSS, ids=repr)
@pytest.mark.parametrize("loss", ["logistic", "hinge", "absolute", "huber", "quantile"])
def test_our_solver_reaches_the_value_of_the_program(table, ambiguity, loss):
    X, y, target, weight = table
    kind = (ConvexDROClassifier, DROClassifier)
    goal = y
    if loss not in ("logistic", "hinge"):
        kind, goal = (ConvexDRORegressor, DRORegressor), target
    theirs = kind[0](ambiguity, loss=loss, alpha=0.01).fit(X, goal, weight)
    ours = kind[1](ambiguity, loss=loss, alpha=0.01, reference="empirical")
    ours.fit(X, goal, sample_weight=weight)
    value = ours.certificate_.upper + 0.005 * float(np.sum(ours.coef_**2))
    assert value == pytest.approx(theirs.objective_, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(
    "ambiguity", [KL(radius=0.1), KL(radius=0.5), CressieRead(0.5, radius=0.1)], ids=repr
)
def test_units_of_columns_and_targets_do_not_matter(ambiguity, scale):
    """Raw diabetes, whose columns lie between 1 and 300: results in the units of the user."""
    X, y = load_diabetes(return_X_y=True, scaled=False)
    X, y = X[:120, :4], y[:120]
    first = ConvexDRORegressor(ambiguity, loss="absolute").fit(X, y)
    other = ConvexDRORegressor(ambiguity, loss="absolute").fit(
        X * [1.0, 1e3, 1e-3, scale], y * scale
    )
    assert other.objective_ == pytest.approx(scale * first.objective_, rel=1e-6)
    value = np.abs(y - first.predict(X))
    assert ambiguity.dual(value).value == pytest.approx(first.objective_, rel=1e-6)
    assert first.worst_case_weights_ @ value == pytest.approx(first.objective_, rel=1e-4)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_penalties_and_ridges_are_in_the_users_units(fit_intercept):
    X, y = load_diabetes(return_X_y=True, scaled=False)
    X, y = X[:80, 2:5], y[:80]
    settings = {"loss": "absolute", "alpha": 3.0, "fit_intercept": fit_intercept}
    model = ConvexDRORegressor(KL(penalty=60.0), **settings).fit(X, y)
    value = KL(penalty=60.0).dual(np.abs(y - model.predict(X))).value
    assert model.objective_ == pytest.approx(value + 1.5 * model.coef_ @ model.coef_, rel=1e-6)
    again = model.refit(30.0).objective_
    value = KL(penalty=30.0).dual(np.abs(y - model.predict(X))).value
    assert again == pytest.approx(value + 1.5 * model.coef_ @ model.coef_, rel=1e-6)
