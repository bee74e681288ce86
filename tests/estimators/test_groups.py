"""Group and MMD sets in the estimators."""

import pickle

import numpy as np
import pytest
import sklearn
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, DRORegressor, load, make_robust_scorer, select_radius
from drojko.ambiguity import KL, MMD, Group
from drojko.exceptions import InvalidDataError


def planted(seed, n=400, share=0.1):
    """A small group in which the first feature means the opposite, the second the same."""
    rng = np.random.default_rng(seed)
    groups = np.where(rng.random(n) < share, "few", "many")
    x = rng.normal(size=(n, 3))
    sign = np.where(groups == "few", -1.0, 1.0)
    y = (2 * sign * x[:, 0] + x[:, 1] + rng.normal(size=n) > 0).astype(int)
    return x, y, groups


def risks(model, x, y, groups):
    """Mean logistic loss of each group, from the coefficients alone."""
    margin = (2 * y - 1) * (x @ model.coef_[0] + model.intercept_[0])
    loss = -np.log(expit(margin))
    return np.array([loss[groups == g].mean() for g in np.unique(groups)])


@pytest.fixture
def data(seed):
    return planted(seed)


def test_worst_group_is_better_off_than_under_the_mean(data):
    x, y, groups = data
    erm = LogisticRegression(C=np.inf, tol=1e-8).fit(x, y)
    robust = DROClassifier(Group(), reference="empirical").fit(x, y, groups=groups)
    before, after = risks(erm, x, y, groups).max(), risks(robust, x, y, groups).max()
    assert after < 0.6 * before
    # Known optimum: no constant shares of the groups have a larger minimum (minimax theorem).
    dual = max(
        np.array([t, 1 - t])
        @ risks(
            LogisticRegression(C=np.inf, tol=1e-8).fit(
                x, y, np.where(groups == "few", t / (groups == "few").sum(),
                               (1 - t) / (groups == "many").sum()) * len(y)
            ), x, y, groups,
        )
        for t in np.linspace(0.3, 0.7, 41)
    )  # fmt: skip
    assert dual - 1e-6 <= after <= dual * (1 + 2e-3)  # tol, and the grid of shares
    assert robust.certificate_.upper == pytest.approx(after, abs=1e-9)


@pytest.mark.parametrize("size", [{}, {"radius": 0.2}, {"penalty": 0.5}, {"radius": 0.0}])
def test_certificate_is_exact(data, size):
    x, y, groups = data
    model = DROClassifier(Group(**size), reference="empirical").fit(x, y, groups=groups)
    expected = Group(**size).on(None, None, groups)
    margin = (2 * y - 1) * (x @ model.coef_[0] + model.intercept_[0])
    dual = expected.dual(-np.log(expit(margin)))
    for certificate in (model.certificate_, model.robust_certificate(x, y, groups=groups)):
        assert certificate.upper == pytest.approx(dual.value, abs=1e-9)
        assert certificate.lower == pytest.approx(dual.value, abs=1e-9)
        assert certificate.proof == "dual"
    if "radius" in size:
        assert model.certificate_.radius == size["radius"]


def test_radius_0_is_the_mean(data):
    x, y, groups = data
    erm = LogisticRegression(C=np.inf, tol=1e-8).fit(x, y)
    model = DROClassifier(Group(0.0), reference="empirical", tol=1e-6).fit(x, y, groups=groups)
    np.testing.assert_allclose(model.coef_, erm.coef_, atol=2e-3)


def test_worst_case_is_a_mixture(data):
    x, y, groups = data
    model = DROClassifier(Group(0.3), reference="gaussian", random_state=0)
    worst = model.fit(x, y, groups=groups).worst_case_
    shares = worst.group_weights
    few = (groups == "few").mean()
    assert shares["few"] == pytest.approx(few + 0.3, abs=1e-9)
    drawn, labels = worst.sample(4000, random_state=0)
    assert drawn.shape == (4000, 3)
    # In the small group the first feature goes against the label: that shows in the draws.
    here = np.corrcoef(drawn[:, 0], labels)[0, 1]
    assert here < np.corrcoef(x[:, 0], y)[0, 1] - 0.1
    assert np.isfinite(worst.log_prob(x, y)).all()
    np.testing.assert_array_equal(worst.transport(x, y), x)
    assert worst.risk() == model.certificate_.worst_case_risk


def test_overlapping_groups(data, rng):
    x, y, _ = data
    members = np.column_stack([np.ones(len(x)), x[:, 0] > 0, x[:, 1] > 0.5])
    model = DROClassifier(Group(), reference="empirical").fit(x, y, groups=members)
    margin = (2 * y - 1) * (x @ model.coef_[0] + model.intercept_[0])
    loss = -np.log(expit(margin))
    expected = max(loss[column > 0].mean() for column in members.T)
    assert model.certificate_.upper == pytest.approx(expected, abs=1e-9)
    assert model.robust_certificate(x, y, groups=members).upper == pytest.approx(expected, abs=1e-9)


def test_regression(seed):
    rng = np.random.default_rng(seed)
    x, groups = rng.normal(size=(300, 2)), rng.random(300) < 0.1
    y = np.where(groups, -1.0, 1.0) * x[:, 0] + 0.1 * rng.normal(size=300)
    model = DRORegressor(Group(), reference="empirical").fit(x, y, groups=groups)
    residual = (model.predict(x) - y) ** 2
    worst = max(residual[groups].mean(), residual[~groups].mean())
    erm = ((x @ np.linalg.lstsq(x, y, rcond=None)[0] - y) ** 2)[groups].mean()
    assert worst < 0.5 * erm
    assert model.certificate_.upper == pytest.approx(worst, abs=1e-8)
    assert -model.robust_score(x, y, groups=groups) == pytest.approx(worst, abs=1e-8)


def test_networks(data):
    x, y, groups = data
    common = {"model": "mlp", "hidden_layer_sizes": (8,), "reference": "empirical"}
    settings = {**common, "max_iter": 150, "random_state": 0}
    model = DROClassifier(Group(), **settings).fit(x, y, groups=groups)
    plain = DROClassifier(Group(0.0), **settings).fit(x, y, groups=groups)
    assert model.certificate_.gap <= 1e-9
    certificates = [m.robust_certificate(x, y, Group(), groups=groups) for m in (model, plain)]
    assert certificates[0].upper < certificates[1].upper


@pytest.mark.promise(4)
def test_invariances(data):
    x, y, groups = data
    settings = {"ambiguity": Group(0.3), "reference": "empirical", "tol": 1e-6}
    model = DROClassifier(**settings).fit(x, y, groups=groups)
    order = np.random.default_rng(0).permutation(len(x))
    permuted = DROClassifier(**settings).fit(x[order], y[order], groups=groups[order])
    np.testing.assert_allclose(permuted.coef_, model.coef_, atol=1e-3)
    twice = DROClassifier(**settings).fit(x, y, np.full(len(x), 2.0), groups=groups)
    np.testing.assert_allclose(twice.coef_, model.coef_, atol=1e-6)


def test_groups_travel_through_pipelines_and_searches(data):
    x, y, groups = data
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = DROClassifier(Group(), reference="empirical").set_fit_request(groups=True)
        pipeline = make_pipeline(StandardScaler(), classifier).fit(x, y, groups=groups)
        assert pipeline[-1].worst_case_.group_weights.keys() == {"few", "many"}
        search = GridSearchCV(classifier, {"ambiguity__radius": [0.1, 0.3]}, cv=2)
        search.fit(x, y, groups=groups)
        assert search.best_estimator_.ambiguity.radius in (0.1, 0.3)


def test_the_radius_of_groups_is_selected(data):
    x, y, groups = data
    model = DROClassifier(Group(0.1), reference="empirical", alpha=0.01)
    found = select_radius(model, x, y, groups=groups, radii=[0.0, 0.3], cv=3, random_state=0)
    assert set(found.table["radius"]) == {0.0, 0.3}
    columns = np.c_[groups == "few", groups == "many", x[:, 1] > 0].astype(int)
    overlapping = select_radius(model, x, y, groups=columns, cv=3, random_state=0)
    assert len(overlapping.table) == 9
    other = DROClassifier(KL(0.1), reference="empirical", alpha=0.01)
    judged = select_radius(other, x, y, groups=groups, at=Group(0.8), radii=[0, 0.5], cv=3,
                           random_state=0)  # fmt: skip
    # The few are worse off than the many, and tilting helps them.
    assert judged.radius == 0.5
    with pytest.raises(InvalidDataError, match="groups"):
        select_radius(model, x, y, radii=[0.1], cv=3)


def test_scorers_ask_for_groups(data):
    x, y, groups = data
    model = DROClassifier(Group(0.1), reference="empirical", alpha=0.01)
    with pytest.raises(RuntimeError, match="enable_metadata_routing"):
        make_robust_scorer(Group(0.2)).set_score_request(groups=True)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_robust_scorer(Group(0.2)).set_score_request(groups=True)
        search = GridSearchCV(
            model.set_fit_request(groups=True), {"ambiguity__radius": [0.1, 0.4]}, scoring=scorer,
            cv=3,
        ).fit(x, y, groups=groups)  # fmt: skip
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        with pytest.raises(TypeError, match="no 'weights'"):
            scorer.set_score_request(weights=True)


def test_model_files(data, tmp_path):
    x, y, groups = data
    for ambiguity in (Group(0.2), MMD(penalty=5.0)):
        settings = {"reference": "empirical", "max_iter": 20}
        model = DROClassifier(ambiguity, **settings).fit(x[:80], y[:80], groups=groups[:80])
        model.save(tmp_path / "model.drojko")
        for other in (load(tmp_path / "model.drojko"), pickle.loads(pickle.dumps(model))):
            np.testing.assert_array_equal(other.predict(x), model.predict(x))
            expected = model.worst_case_.sample(20, random_state=0)
            for a, b in zip(other.worst_case_.sample(20, random_state=0), expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_mistakes(data):
    x, y, groups = data
    model = DROClassifier(Group(), reference="empirical")
    with pytest.raises(InvalidDataError, match="needs the groups of the rows: give groups="):
        model.fit(x, y)
    with pytest.raises(InvalidDataError, match="groups has 3 rows and X has 400"):
        model.fit(x, y, groups=groups[:3])
    with pytest.raises(InvalidDataError, match="group 'few' has no row of positive weight"):
        model.fit(x, y, (groups == "many") * 1.0, groups=groups)
    model.fit(x, y, groups=groups)
    with pytest.raises(InvalidDataError, match="needs the groups of the rows"):
        model.robust_certificate(x, y)
    with pytest.raises(InvalidDataError, match="row 0 of groups is in no group"):
        model.robust_certificate(x, y, groups=np.zeros((400, 2)))


def test_other_sets_leave_groups_aside(data):
    x, y, groups = data
    model = DROClassifier(MMD(penalty=5.0), reference="empirical").fit(x[:60], y[:60])
    other = DROClassifier(MMD(penalty=5.0), reference="empirical")
    other.fit(x[:60], y[:60], groups=groups[:60])
    np.testing.assert_array_equal(other.coef_, model.coef_)


# MMD --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [{"radius": 0.03}, {"penalty": 5.0}])
def test_mmd_certificate_is_exact(data, size):
    x, y, _ = data
    x, y = x[:120], y[:120]
    model = DROClassifier(MMD(**size), reference="empirical").fit(x, y)
    margin = (2 * y - 1) * (x @ model.coef_[0] + model.intercept_[0])
    dual = MMD(**size).on(x, labels=y).dual(-np.log(expit(margin)))
    for certificate in (model.certificate_, model.robust_certificate(x, y)):
        assert certificate.upper == pytest.approx(dual.value, abs=1e-8)
        assert certificate.gap <= 1e-8
    # Trained against the set, the model is better there than the minimiser of the mean.
    erm = LogisticRegression(C=np.inf).fit(x, y)
    margin = (2 * y - 1) * (x @ erm.coef_[0] + erm.intercept_[0])
    mean = MMD(**size).on(x, labels=y).dual(-np.log(expit(margin)))
    assert dual.value < mean.value - 1e-4
    # The worst case is the points with other masses.
    drawn, _ = model.worst_case_.sample(50, random_state=0)
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in x}


def test_mmd_of_radius_0_is_the_mean(data):
    x, y, _ = data
    erm = LogisticRegression(C=np.inf, tol=1e-8).fit(x, y)
    model = DROClassifier(MMD(radius=0.0), reference="empirical", tol=1e-6).fit(x, y)
    np.testing.assert_allclose(model.coef_, erm.coef_, atol=2e-3)


def test_mmd_regression(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(80, 2))
    y = x[:, 0] + 0.3 * rng.normal(size=80)
    model = DRORegressor(MMD(penalty=3.0), reference="empirical").fit(x, y)
    assert 0 <= model.certificate_.gap <= 1e-7
    assert model.certificate_.nominal_risk < model.certificate_.upper
    assert model.worst_case_.sample(5, random_state=0)[1].shape == (5,)
