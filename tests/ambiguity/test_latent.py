"""Shifts of some columns, and of all else given them: against programs, in fits and audits."""

import warnings

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest

from drojko import DROClassifier, DRORegressor, audit
from drojko.ambiguity import KL, Conditional, CVaR, Marginal
from drojko.exceptions import InvalidDataError

SETS = [Marginal(0.4, [0, 1]), Marginal(0.7, 1), Conditional(0.5, [0]), Conditional(0.3, [0, 1])]


def table(seed, n=40):
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.integers(0, 2, n), rng.integers(0, 3, n), rng.normal(size=n)])
    return X.astype(float), rng.uniform(0.2, 2.0, n), rng.normal(size=n)


def cells(X, columns):
    return np.unique(X[:, np.atleast_1d(columns)], axis=0, return_inverse=True)[1].reshape(-1)


def program(ambiguity, X, w, losses):
    """The largest mean loss over densities of the set, by cvxpy."""
    w, index = w / w.sum(), cells(X, ambiguity.columns)
    member = np.eye(index.max() + 1)[index]
    q, cap = cp.Variable(len(w), nonneg=True), 1.0 / ambiguity.alpha
    if isinstance(ambiguity, Marginal):
        r = cp.Variable(member.shape[1], nonneg=True)
        rules = [q == member @ r, w @ q == 1, r <= cap]
    else:
        rules = [q <= cap, member.T @ cp.multiply(w, q) == member.T @ w]
    return cp.Problem(cp.Maximize(cp.sum(cp.multiply(w * losses, q))), rules).solve(
        solver=cp.CLARABEL
    )


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_the_dual_is_the_linear_program(ambiguity, seed):
    X, w, losses = table(seed)
    dual = ambiguity.on(X, w).dual(losses)
    assert dual.value == pytest.approx(program(ambiguity, X, w, losses), abs=1e-6)
    assert np.average(dual.ratio, weights=w) == pytest.approx(1.0)
    assert np.average(dual.ratio * losses, weights=w) == pytest.approx(dual.value)
    assert dual.ratio.max() <= 1 / ambiguity.alpha + 1e-9
    assert dual.value <= CVaR(ambiguity.alpha).dual(losses, w).value + 1e-12


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_smoothing_costs_no_more_than_it_says(ambiguity):
    X, w, losses = table(9)
    bound = ambiguity.on(X, w)
    for smoothing in (1e-3, 0.1, 5.0):
        smooth = bound.dual(losses, smoothing).value
        assert bound.dual(losses).value - smoothing <= smooth <= bound.dual(losses).value + 1e-12


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_linear_fits_are_proven_and_as_low_as_a_program(ambiguity, loss):
    X, w, _ = table(3, n=60)
    rng = np.random.default_rng(3)
    y = X @ [1.0, -1.0, 0.5] + rng.normal(size=60)
    fit = DRORegressor(ambiguity, loss=loss, alpha=0.1, reference="empirical", tol=1e-5)
    fit.fit(X, y, sample_weight=w)
    assert fit.status_ == "converged"
    assert 0 <= fit.optimality_gap_ <= 1e-5
    share, index = w / w.sum(), cells(X, ambiguity.columns)
    member = np.eye(index.max() + 1)[index]
    beta, shift, cap = cp.Variable(3), cp.Variable(), 1.0 / ambiguity.alpha
    error = X @ beta + shift - y
    losses = cp.square(error) if loss == "squared" else cp.abs(error)
    mass = member.T @ share
    if isinstance(ambiguity, Marginal):
        level = cp.Variable()
        means = (member / mass * share[:, None]).T @ losses
        risk = level + cap * mass @ cp.pos(means - level)
    else:
        level = cp.Variable(len(mass))
        risk = mass @ level + cap * share @ cp.pos(losses - member @ level)
    best = cp.Problem(cp.Minimize(risk + 0.05 * cp.sum_squares(beta))).solve(solver=cp.CLARABEL)
    own = fit.certificate_.upper + 0.05 * float((fit.coef_**2).sum())
    assert own == pytest.approx(best, rel=3e-5)


def test_the_law_of_the_columns_stays_under_conditional_shifts():
    X, _, _ = table(4, n=200)
    rng = np.random.default_rng(4)
    y = (3 * X[:, 2] + X[:, 0] + rng.normal(size=200) > 0).astype(int)
    model = DROClassifier(Conditional(0.8, [0]), reference="empirical").fit(X, y)
    drawn = model.worst_case_.sample(5000, random_state=0)[0]
    assert drawn[:, 0].mean() == pytest.approx(X[:, 0].mean(), abs=0.03)
    plain = DROClassifier(KL(radius=0.0), reference="empirical").fit(X, y)
    shifted = plain.robust_certificate(X, y, Marginal(0.6, [0]))
    losses = -np.log(plain.predict_proba(X)[np.arange(200), y])
    means = [losses[X[:, 0] == k].mean() for k in (0, 1)]
    worse = int(means[1] > means[0])
    share = min((X[:, 0] == worse).mean() / 0.6, 1.0)
    assert shifted.upper == pytest.approx(share * means[worse] + (1 - share) * means[1 - worse])


def test_columns_by_name_in_fits_and_audits_of_strings():
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"age": rng.normal(size=150), "site": rng.integers(0, 4, 150)})
    y = (frame["age"] + rng.normal(size=150) > 0).astype(int)
    by_name = DROClassifier(Marginal(0.5, ["site"]), reference="empirical").fit(frame, y)
    by_index = DROClassifier(Marginal(0.5, [1]), reference="empirical").fit(frame, y)
    assert by_name.certificate_.upper == pytest.approx(by_index.certificate_.upper)
    assert by_name.robust_certificate(frame, y).upper == pytest.approx(by_name.certificate_.upper)
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    words = frame.assign(site=np.array(["a", "b", "c", "d"])[frame["site"]])
    encoded = make_column_transformer((OneHotEncoder(), ["site"]), remainder="passthrough")
    model = make_pipeline(encoded, LogisticRegression()).fit(words, y)
    report = audit(model, words, y, Marginal(0.5, ["site"]), radii=[0.5], reference="empirical")
    losses = -np.log(model.predict_proba(words)[np.arange(150), y])
    means = Marginal(0.5, [0]).on(frame[["site"]].to_numpy(float)).dual(losses)
    assert report.table["upper_bound"][0] == pytest.approx(means.value, rel=1e-6)


def test_networks_train_against_them():
    X, _, _ = table(6, n=120)
    y = (X[:, 2] > 0).astype(int)
    model = DROClassifier(
        Marginal(0.5, [1]), model="mlp", hidden_layer_sizes=(4,), reference="empirical",
        max_iter=5, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five passes are not enough
        model.fit(X, y)
    assert model.certificate_.lower <= model.certificate_.upper + 1e-9


@pytest.mark.parametrize(
    ("ambiguity", "words"),
    [
        (Marginal(0.0, [0]), "alpha"),
        (Marginal(1.5, [0]), "subpopulation"),
        (Marginal(0.5, [2]), "bin what is"),
        (Conditional(0.5, [2]), "bin what is"),
        (Marginal(0.5, [7]), "column index 7"),
        (Marginal(0.5, ["site"]), "feature names"),
        (Marginal(0.5, []), "no columns"),
    ],
)
def test_bad_settings(ambiguity, words):
    X, _, y = table(7)
    with pytest.raises(InvalidDataError, match=words):
        DRORegressor(ambiguity, reference="empirical").fit(X, y)


def test_constant_columns_are_named():
    X, _, y = table(8)
    X[:, 0] = 3.0
    with pytest.raises(InvalidDataError, match="constant"):
        DRORegressor(Marginal(0.5, [0]), reference="empirical").fit(X, y)
