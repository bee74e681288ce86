"""Estimators on tables with categorical columns."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import drojko
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures import KDE

FEATURES = [2, 3, [4, 5, 6]]
COSTS = {2: 0.3, 3: 0.15, 4: 0.5}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    n = 50
    X = np.column_stack(
        [rng.normal(size=(n, 2)), rng.integers(0, 2, (n, 2)), np.eye(3)[rng.integers(0, 3, n)]]
    )
    score = X[:, 0] + X[:, 2] - X[:, 4] + 0.5 * rng.normal(size=n)
    return X, (score > 0.3).astype(int), score


def ball(swap_cost=None, **size):
    costs = COSTS if swap_cost is None else swap_cost
    return Wasserstein(**size, categorical_features=FEATURES, swap_cost=costs)


def combinations(X):
    """Images of all rows under each combination of swaps, with what those cost."""
    for a, b, c in itertools.product([0, 1], [0, 1], range(3)):
        Z = X.copy()
        Z[:, 2], Z[:, 3], Z[:, 4:] = a, b, np.eye(3)[c]
        changed = [(Z[:, 2] != X[:, 2]), (Z[:, 3] != X[:, 3]), (Z[:, 4:] != X[:, 4:]).any(1)]
        yield Z, sum(price * mask for price, mask in zip(COSTS.values(), changed, strict=True))


def epigraph(X, y, loss, radius=None, penalty=None, moves=True):
    """Least robust risk of a linear model: a cone program over all swaps.

    Hinge: max(0, 1 - s f + |theta|^2 / 4 lambda - lambda fee) over swaps. Without moves any convex
    loss is the largest of loss(f(x')) - lambda fee.
    """
    cp = pytest.importorskip("cvxpy")
    theta, shift, top = cp.Variable(7), cp.Variable(), cp.Variable(len(X))
    price = penalty if radius is None else cp.Variable()
    spent = 0
    if moves:
        spent = (
            cp.sum_squares(theta[:2]) / (4 * penalty)
            if radius is None
            else cp.quad_over_lin(theta[:2], 4 * price)
        )
    sign = 2 * y - 1
    rules = [top >= 0] if loss == "hinge" else []
    for Z, fee in combinations(X):
        margin = cp.multiply(sign, Z @ theta + shift)
        value = 1 - margin + spent if loss == "hinge" else cp.logistic(-margin)
        rules.append(top >= value - price * fee)
    budget = 0 if radius is None else price * radius**2
    problem = cp.Problem(cp.Minimize(cp.sum(top) / len(X) + budget), rules)
    return problem.solve(solver=cp.CLARABEL)


@pytest.mark.parametrize("size", [{"radius": 0.3}, {"penalty": 0.5}])
@pytest.mark.parametrize("loss", ["hinge", "logistic"])
@pytest.mark.promise(1)
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_linear_training_reaches_the_optimum_of_a_cone_program(data, loss, size):
    X, y, _ = data
    # The logistic envelope is no cone; without moves the epigraph of the loss itself is.
    moves = loss == "hinge"
    ambiguity = ball(**size).set_params(immutable=None if moves else [0, 1])
    clf = DROClassifier(ambiguity, loss=loss, reference="empirical", random_state=0).fit(X, y)
    best = epigraph(X, y, loss, moves=moves, **size)
    c = clf.certificate_
    assert clf.status_ == "converged"
    assert c.proof == "ridge-1d"
    # The solver's own accuracy is 1e-8; ours is limited by following kinks.
    assert best - 1e-6 <= c.upper <= best * (1 + 1e-4)
    assert c.lower == pytest.approx(c.upper, rel=1e-9)
    assert c.transport_cost <= (size.get("radius") or math.inf) ** 2 * (1 + 1e-9)


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_infinite_costs_are_immutable_columns(data, model):
    X, y, _ = data
    settings = {
        "model": model, "hidden_layer_sizes": (4,), "max_iter": 20, "tol": 0.5,
        "inner": "pointwise", "random_state": 0,
    }  # fmt: skip
    fixed = Wasserstein(0.3, immutable=[2, 3, 4, 5, 6])
    one = DROClassifier(ball(math.inf, radius=0.3), **settings).fit(X, y)
    two = DROClassifier(fixed, **settings).fit(X, y)
    assert one.certificate_ == two.certificate_
    for name in one.parameters_:
        np.testing.assert_array_equal(one.parameters_[name], two.parameters_[name])


def test_cheaper_swaps_make_worse_worst_cases(data):
    X, y, _ = data
    clf = DROClassifier(Wasserstein(0.3), reference="empirical", random_state=0).fit(X, y)
    risks = [
        clf.robust_certificate(X, y, ball(cost, radius=0.3)).lower
        for cost in (math.inf, 10.0, 1.0, 0.1, 0.01, 1e-6)
    ]
    assert np.all(np.diff(risks) >= -1e-12)
    assert risks[-1] > risks[0] + 0.05
    # Nearly free: every group sits at its worst category, and the budget is left for moves.
    free = clf.robust_certificate(X, y, ball(1e-9, radius=0.3)).lower
    assert risks[-1] == pytest.approx(free, rel=1e-3)


@pytest.mark.parametrize("reference", ["empirical", "kde", KDE(bandwidth=0.3)])
def test_worst_cases_hold_valid_categories(data, reference):
    X, y, _ = data
    # A table whose worst case is mostly swaps.
    clf = DROClassifier(
        ball(0.05, radius=0.3), reference=reference, tol=1.0, n_draws=50, random_state=0
    ).fit(X, y)
    worst = clf.worst_case_
    Z, _ = worst.sample(400, random_state=0)
    moved = worst.transport(X, y)
    for rows in (Z, moved):
        assert set(np.unique(rows[:, 2:])) <= {0.0, 1.0}
        assert (rows[:, 4:].sum(1) == 1).all()
    swapped = (moved[:, 2:] != X[:, 2:]).any(1)
    assert swapped.any()
    frame = worst.displacement()
    assert frame["share"].sum() == pytest.approx(1.0)
    indicator = frame[frame["feature"].isin(["x2", "x3", "x4", "x5", "x6"])]
    assert indicator["share"].sum() > 0.1
    x, image, labels, w = worst.pairs()
    mask = labels == 1
    share = w[mask] @ (image[mask, 2] - x[mask, 2]) / w[mask].sum()
    row = frame[(frame["class"] == 1) & (frame["feature"] == "x2")]
    assert float(row["mean"].iloc[0]) == pytest.approx(share)
    with pytest.raises(UnsupportedError, match="swap_cost"):
        worst.log_prob(X, y)
    lower, upper = clf.certificate_.lower, clf.certificate_.upper
    assert lower == pytest.approx(upper, rel=1e-8)


def test_a_planted_column_is_what_swaps(data):
    """The label is a binary column: robust against swaps, the model must lean on the other one."""
    settings = {"reference": "empirical", "tol": 0.1, "random_state": 0}
    rng = np.random.default_rng(0)
    flag = rng.integers(0, 2, 200)
    X = np.column_stack([2 * flag - 1 + 0.5 * rng.normal(size=200), flag])
    trusting = DROClassifier(
        Wasserstein(0.2, categorical_features=[1]), alpha=1e-3, **settings
    ).fit(X, flag)
    wary = DROClassifier(
        Wasserstein(0.2, categorical_features=[1], swap_cost=0.01), alpha=1e-3, **settings
    ).fit(X, flag)
    attack = Wasserstein(0.2, categorical_features=[1], swap_cost=0.01)
    assert abs(trusting.coef_[0, 1]) > 5 * abs(wary.coef_[0, 1])
    assert (
        wary.robust_certificate(X, flag, attack).upper
        < trusting.robust_certificate(X, flag, attack).lower
    )
    frame = trusting.worst_case_.displacement()
    assert (frame.loc[frame["feature"] == "x1", "mean"] == 0).all()


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_regression(data, loss):
    X, _, y = data
    settings = {"loss": loss, "reference": "empirical", "tol": 0.01, "random_state": 0}
    reg = DRORegressor(ball(radius=0.3), **settings).fit(X, y)
    alone = DRORegressor(ball(math.inf, radius=0.3), **settings).fit(X, y)
    through = DRORegressor(ball(radius=0.3), **settings, fit_intercept=False)
    assert through.fit(X, y).intercept_ == 0.0
    attack = ball(radius=0.3)
    c = reg.certificate_
    assert c.upper == pytest.approx(c.lower, rel=1e-8)
    # Better against swaps than the model that was not trained for them, which is the better one
    # where nothing swaps.
    assert c.upper <= alone.robust_certificate(X, y, attack).upper + 1e-9
    assert (
        alone.certificate_.upper
        <= reg.robust_certificate(X, y, ball(math.inf, radius=0.3)).upper + 1e-9
    )
    with pytest.raises(UnsupportedError, match="swaps"):
        DRORegressor(ball(radius=0.3).set_params(label_cost=1.0), loss=loss).fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_other_models_keep_the_sandwich(data, model, classes):
    X, y, score = data
    target = y if classes == 2 else np.digitize(score, [-0.3, 0.6])
    clf = DROClassifier(
        ball(radius=0.2), model=model, hidden_layer_sizes=(4,), reference="empirical",
        inner="pointwise", max_iter=40, tol=1.0, random_state=0,
    ).fit(X, target)  # fmt: skip
    c = clf.certificate_
    assert c.nominal_risk <= c.lower <= c.upper
    assert c.transport_cost <= 0.04 * (1 + 1e-6)
    fixed = clf.robust_certificate(X, target, ball(math.inf, radius=0.2))
    assert c.upper >= fixed.lower - 1e-9
    if model == "linear":
        # The search of certificates of linear models is exact for every combination.
        assert c.lower >= fixed.lower - 1e-5
    moved = clf.worst_case_.transport(X, target)
    assert (moved[:, 4:].sum(1) == 1).all()


@pytest.mark.filterwarnings("ignore:.*optimum is a constant model")
def test_labels_and_categories_move_together(data):
    X, y, _ = data
    both = ball(0.1, radius=0.3).set_params(label_cost=0.4)
    clf = DROClassifier(both, reference="empirical", tol=1.0, random_state=0).fit(X, y)
    _, labels = clf.worst_case_.sample(200, random_state=0)
    attack = [
        ball(0.1, radius=0.3),
        Wasserstein(0.3, categorical_features=FEATURES, label_cost=0.4),
    ]
    for part in attack:
        assert clf.robust_certificate(X, y, part).upper <= clf.certificate_.lower + 1e-9
    assert set(labels) <= {0, 1}


def test_the_order_of_columns_does_not_matter(data):
    X, y, _ = data
    order = [4, 2, 0, 6, 3, 1, 5]
    place = {old: new for new, old in enumerate(order)}
    same = Wasserstein(
        0.3,
        categorical_features=[place[3], [place[5], place[6], place[4]], place[2]],
        swap_cost={place[k]: v for k, v in COSTS.items()},
    )
    settings = {"reference": "empirical", "tol": 0.1, "random_state": 0}
    one = DROClassifier(ball(radius=0.3), **settings).fit(X, y)
    two = DROClassifier(same, **settings).fit(X[:, order], y)
    assert one.certificate_.upper == pytest.approx(two.certificate_.upper, rel=1e-4)
    np.testing.assert_allclose(one.predict_proba(X), two.predict_proba(X[:, order]), atol=2e-2)


def test_codes_beyond_the_training_data(data):
    """Codes of more than two values; new data may bring a code, and lose none."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, 80)
    X = np.column_stack([rng.normal(size=80), code])
    y = (X[:, 0] + 0.5 * code > 0.8).astype(int)
    ambiguity = Wasserstein(0.4, categorical_features=[1], swap_cost=5.0)
    clf = DROClassifier(ambiguity, reference="empirical", tol=0.1, random_state=0).fit(X, y)
    Z, _ = clf.worst_case_.sample(200, random_state=0)
    assert set(np.unique(Z[:, 1])) <= {0.0, 1.0, 2.0, 3.0}
    few = X[code == 3][:5]
    attack = Wasserstein(0.4, categorical_features=[1], swap_cost=0.1)
    risky = clf.robust_certificate(
        few, np.ones(5), attack
    )  # may fall to codes that only fit has seen
    alone = clf.robust_certificate(few, np.ones(5), Wasserstein(0.4, immutable=[1]))
    assert risky.lower > alone.lower


def test_files_keep_the_categories(data, tmp_path):
    X, y, _ = data
    clf = DROClassifier(
        ball(0.05, radius=0.3), reference="kde", tol=1.0, n_draws=50, random_state=0
    ).fit(X, y)
    clf.save(tmp_path / "model.skops")
    again = drojko.load(tmp_path / "model.skops")
    np.testing.assert_array_equal(
        again.worst_case_.transport(X, y), clf.worst_case_.transport(X, y)
    )
    assert str(again.robust_certificate(X, y)) == str(clf.robust_certificate(X, y))


@pytest.mark.parametrize("reference", ["gaussian", "mixture", "flow"])
def test_references_that_smooth_categories_are_refused(data, reference):
    X, y, _ = data
    with pytest.raises(InvalidDataError, match=r"use 'kde'.*or 'empirical'"):
        DROClassifier(ball(radius=0.1), reference=reference).fit(X, y)


def test_text_columns_are_told_what_to_do():
    X = pd.DataFrame({"age": [1.0, 2, 3, 4], "city": ["a", "b", "a", "b"]})
    with pytest.raises(InvalidDataError, match=r"'city'.*OneHotEncoder.*categorical_features"):
        DROClassifier(Wasserstein(0.1, categorical_features=["city"])).fit(X, [0, 1, 0, 1])


def test_a_pipeline_from_a_mixed_table_to_a_tuned_model(data):
    X, y, _ = data
    table = pd.DataFrame(
        {
            "size": X[:, 0],
            "age": X[:, 1],
            "member": np.where(X[:, 2] == 1, "yes", "no"),
            "colour": np.array(["red", "green", "blue"])[X[:, 4:].argmax(1)],
        }
    )
    encode = ColumnTransformer(
        [
            ("scale", StandardScaler(), ["size", "age"]),
            ("encode", OneHotEncoder(sparse_output=False), ["member", "colour"]),
        ],
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    ambiguity = Wasserstein(
        0.2,
        categorical_features=[
            ["member_no", "member_yes"],
            ["colour_blue", "colour_green", "colour_red"],
        ],
    )
    pipeline = make_pipeline(
        encode, DROClassifier(ambiguity, reference="empirical", tol=1.0, random_state=0)
    )
    grid = {"droclassifier__ambiguity__swap_cost": [0.1, {"colour_red": 0.2}, math.inf]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(table, y)
    assert search.best_score_ > 0.7
    best = search.best_estimator_[-1]
    moved = best.worst_case_.to_frame(50)
    assert (moved[["member_no", "member_yes"]].sum(axis=1) == 1).all()
    assert best.ambiguity.swap_cost == search.best_params_["droclassifier__ambiguity__swap_cost"]
