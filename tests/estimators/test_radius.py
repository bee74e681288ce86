"""Choosing the radius: cross-validation and calibration."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2, norm
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, DRORegressor, make_robust_scorer, radius_path
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation, Wasserstein
from drojko.estimators import RadiusSelection, select_radius
from drojko.estimators.radius.inference import calibrated_radius
from drojko.exceptions import InvalidDataError, UnsupportedError
from tests.estimators._cases import binary, classes, frame, linear, losses, mlp, regression

# Calibration -------------------------------------------------------------------------------------

DIVERGENCES = [KL(), ChiSquare(), CressieRead(1.5), CressieRead(3.0), CressieRead(0.5)]
N = 400


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("two_sided", [False, True])
def test_calibrated_worst_cases_are_normal_confidence_bounds(divergence, two_sided, rng):
    """Mean + z sd / sqrt(n) to first order: what is left falls as 1/n."""
    level, symmetric = 0.05, rng.normal(size=20_000)
    quantile = chi2.ppf(1 - level if two_sided else 1 - 2 * level, df=1)
    radius = calibrated_radius(divergence, 20_000, level, two_sided)
    assert radius == pytest.approx(quantile / 20_000 / (1 if divergence == DIVERGENCES[1] else 2))
    dual = clone(divergence).set_params(radius=radius).dual(symmetric)
    z = norm.isf(level / 2 if two_sided else level)
    bound = symmetric.mean() + z * symmetric.std() / np.sqrt(20_000)
    assert dual.value == pytest.approx(
        bound, abs=1e-3 * symmetric.std() / np.sqrt(20_000) * z + 1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("divergence", DIVERGENCES[:4], ids=repr)
def test_calibrated_worst_cases_cover_a_skewed_mean(divergence, rng):
    samples = rng.exponential(size=(1500, N))
    X, y = np.zeros((N, 1)), np.zeros(N)
    estimator = DRORegressor(clone(divergence).set_params(radius=1.0))
    radius = select_radius(estimator, X, y, method="calibration", level=0.05).radius
    bounds = [clone(divergence).set_params(radius=radius).dual(row).value for row in samples]
    # Skewness 2 costs at most 0.22 / sqrt(n) = 0.011 of coverage (chi-square, the Edgeworth
    # expansion of Student's ratio); the standard error is 0.006. 1.96 and 1.28 deviations in the
    # place of 1.64 would be 0.975 and 0.90.
    assert 0.925 < np.mean(np.array(bounds) >= 1.0) < 0.967


def test_calibration_counts_effective_samples():
    X, y = binary()
    model = DROClassifier(ChiSquare(0.1))
    known = select_radius(model, X, y, method="calibration", level=0.1)
    assert known.radius == pytest.approx(chi2.ppf(0.8, df=1) / 100)
    assert known.params == {"ambiguity__radius": known.radius, "ambiguity__penalty": None}
    half = select_radius(model, X, y, method="calibration", level=0.1, sample_weight=y)
    assert half.radius == pytest.approx(2 * known.radius)
    assert select_radius(model, X, y, method="calibration", level=0.7).radius == 0.0
    wide = select_radius(model, X, y, method="calibration", level=0.2, two_sided=True)
    assert wide.radius == pytest.approx(known.radius)


@pytest.mark.parametrize("ambiguity", [Wasserstein(0.1), TotalVariation(0.1), CVaR(0.5)], ids=repr)
def test_what_calibration_is_not_for(ambiguity):
    with pytest.raises(UnsupportedError, match="KL, ChiSquare and CressieRead"):
        select_radius(DROClassifier(ambiguity), *binary(), method="calibration")


# Cross-validation --------------------------------------------------------------------------------


def test_cross_validation_is_what_a_loop_over_folds_finds():
    X, y = binary()
    radii, at, folds = [0.4, 0.0, 0.1], Wasserstein(0.3), KFold(3, shuffle=True, random_state=1)
    found = select_radius(linear(alpha=0.01), X, y, radii=radii, at=at, cv=folds)
    upper, nominal = np.zeros((3, 3)), np.zeros((3, 3))
    for k, (train, test) in enumerate(folds.split(X)):
        for j, radius in enumerate(sorted(radii)):
            model = linear(radius=radius, alpha=0.01).fit(X[train], y[train])
            upper[k, j] = -model.robust_score(X[test], y[test], at)
            nominal[k, j] = losses(model, X[test], y[test]).mean()
    table = found.table
    assert table["radius"].tolist() == [0.0, 0.1, 0.4]
    # Warm starts end where cold ones do, up to the tolerance of the solver.
    np.testing.assert_allclose(table["upper_bound"], upper.mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["nominal_risk"], nominal.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        table["upper_bound_se"], upper.std(0, ddof=1) / np.sqrt(3), rtol=1e-3
    )
    assert found.radius == sorted(radii)[int(upper.mean(0).argmin())]
    assert (table[["proven", "converged"]] == 1.0).all(axis=None)
    assert found.at is at


def test_the_evaluation_set_decides():
    """Whoever fears no shift needs no radius; the larger the feared shift, the larger it is."""
    X, y = regression()
    radii = [0.0, 0.05, 0.1, 0.2, 0.4]
    chosen = [
        select_radius(linear(DRORegressor), X, y, radii=radii, at=at, cv=3, random_state=0).radius
        for at in (0.0, 0.5)
    ]
    assert chosen[0] < chosen[1]


def test_the_default_evaluation_set():
    X, y = binary()
    own = select_radius(linear(radius=0.25), X, y, radii=[0.1, 0.2], cv=2, random_state=0)
    assert own.at.radius == 0.25
    for model in (linear(radius=0.0), linear().set_params(ambiguity=Wasserstein(penalty=2.0))):
        middle = select_radius(model, X, y, radii=[0, 0.1, 0.2, 0.3], cv=2, random_state=0)
        assert middle.at.get_params() == Wasserstein(0.2).get_params()
    with pytest.raises(InvalidDataError, match="no ambiguity at all"):
        select_radius(linear(radius=0.0), X, y, radii=[0.0])


def test_default_candidates_scale_with_the_data():
    X, y = regression()
    one, large = (
        select_radius(linear(DRORegressor, radius=0), factor * X[:60], y[:60], cv=2, random_state=0)
        for factor in (1.0, 1000.0)
    )
    radii = one.table["radius"].to_numpy()
    assert radii[0] == 0.0
    assert radii[-1] == pytest.approx(np.sqrt(X[:60].var(0).mean()), rel=0.01)
    # Rounded to three digits for reading.
    np.testing.assert_allclose(large.table["radius"], 1000 * radii, rtol=0.01)
    assert large.radius == pytest.approx(1000 * one.radius, rel=0.01)


def test_one_standard_error_takes_the_largest_set_that_is_as_good():
    X, y = binary()
    settings = {"radii": [0.1, 0.11, 0.12, 0.3], "at": 0.1, "cv": 3, "random_state": 0}
    least = select_radius(linear(alpha=1e-3), X, y, **settings)
    largest = select_radius(linear(alpha=1e-3), X, y, rule="1se", **settings)
    table = least.table
    best = table["upper_bound"].idxmin()
    bound = table["upper_bound"][best] + table["upper_bound_se"][best]
    assert least.radius == table["radius"][best]
    assert largest.radius == table["radius"][table["upper_bound"] <= bound].max()
    assert largest.radius > least.radius


def test_a_pipeline_is_fitted_anew_in_every_fold():
    X, y = regression()
    pipeline = make_pipeline(StandardScaler(), linear(DRORegressor))
    folds = KFold(3)
    found = select_radius(pipeline, frame(X), y, radii=[0.1, 0.5], at=0.2, cv=folds)
    upper = np.zeros((3, 2))
    scorer = make_robust_scorer(Wasserstein(0.2))
    for k, (train, test) in enumerate(folds.split(X)):
        for j, radius in enumerate([0.1, 0.5]):
            model = clone(pipeline).set_params(droregressor__ambiguity__radius=radius)
            upper[k, j] = -scorer(model.fit(X[train], y[train]), X[test], y[test])
    np.testing.assert_allclose(found.table["upper_bound"], upper.mean(0), rtol=1e-5)
    fitted = clone(pipeline).set_params(**found.params).fit(X, y)
    assert fitted[-1].certificate_.radius == found.radius


def test_weights_and_groups_reach_the_folds():
    X, y = binary()
    weight = np.r_[np.zeros(10), np.ones(90)]
    groups = np.arange(100) % 4
    settings = {"radii": [0.1, 0.3], "at": 0.2}
    found = select_radius(
        linear(), X, y, cv=GroupKFold(4), groups=groups, sample_weight=weight, **settings
    )
    rest = select_radius(linear(), X[10:], y[10:], cv=GroupKFold(4), groups=groups[10:], **settings)
    np.testing.assert_allclose(found.table["upper_bound"], rest.table["upper_bound"], rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_fits_that_do_not_converge_are_counted_not_warned_about():
    X, y = np.arange(40.0)[:, None], np.arange(40) > 19
    found = select_radius(linear(), X, y, radii=[0.0, 1.0], at=1.0, cv=2, random_state=0)
    assert found.table["converged"].tolist() == [0.0, 1.0]
    assert found.radius == 1.0
    assert "converged in" not in found.message
    found = select_radius(linear(), X, y, radii=[0.0], at=1.0, cv=2, random_state=0)
    assert "converged in 0% of the folds only" in found.message


def test_cross_validation_of_a_perceptron_on_several_classes():
    X, y = classes()
    model = mlp(inner="pointwise", max_iter=2)
    found = select_radius(model, X, y, radii=[0.05, 0.3], at=0.2, cv=2, random_state=0)
    assert np.isfinite(found.table["upper_bound"]).all()
    assert (found.table["upper_bound"] >= found.table["nominal_risk"]).all()


# The value, and the arguments --------------------------------------------------------------------


def test_a_selection_is_a_frozen_value_that_prints_its_table():
    X, y = binary()
    model = linear()
    before = repr(model.get_params())
    found = select_radius(model, X, y, radii=[0.1, 0.3], cv=2, random_state=0)
    assert isinstance(found, RadiusSelection)
    assert repr(model.get_params()) == before
    assert not hasattr(model, "coef_")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.radius = 1.0
    text = repr(found)
    for word in ("radius=", "method='cv'", "upper_bound", found.message):
        assert word in text


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"method": "guess"}, "cv, environments, rwpi, calibration"),
        ({"rule": "best"}, "1se"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"radii": []}, "empty"),
        ({"radii": [-1.0]}, "radius=-1.0"),
        ({"n_draws": 3}, "1000"),
        ({"sample_weight": [1.0]}, "sample_weight"),
    ],
)
def test_arguments_without_meaning(settings, match):
    with pytest.raises(ValueError, match=match):
        select_radius(linear(), *binary(), **settings)


def test_only_drojko_estimators_have_a_radius():
    with pytest.raises(InvalidDataError, match="LogisticRegression is no drojko estimator"):
        select_radius(make_pipeline(StandardScaler(), LogisticRegression()), *binary())


# Paths -------------------------------------------------------------------------------------------


def test_a_path_takes_radii_in_any_order_and_penalised_estimators():
    X, y = binary()
    estimator = linear().set_params(ambiguity=Wasserstein(penalty=3.0))
    path = radius_path(estimator, X, y, [0.3, 0.0, 0.1], sample_weight=np.ones(100))
    assert [model.certificate_.radius for model in path] == [0.3, 0.0, 0.1]
    for model in path:
        alone = linear(radius=model.certificate_.radius).fit(X, y)
        assert model.certificate_.upper == pytest.approx(alone.certificate_.upper, rel=1e-6)


def test_a_path_of_pipelines_fits_the_scaler_once():
    X, y = regression()
    pipeline = make_pipeline(StandardScaler(), linear(DRORegressor))
    path = radius_path(pipeline, X, y, [0.1, 0.2])
    assert path[0][0] is path[1][0]
    assert not hasattr(pipeline[0], "mean_")
    alone = clone(pipeline).set_params(droregressor__ambiguity__radius=0.2).fit(X, y)
    np.testing.assert_allclose(path[1].predict(X), alone.predict(X), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_path_does_not_start_from_a_model_without_a_minimum():
    X, y = np.arange(40.0)[:, None], np.arange(40) > 19
    path = radius_path(linear(), X, y, [0.0, 1.0])
    alone = linear(radius=1.0).fit(X, y)
    np.testing.assert_array_equal(path[1].coef_, alone.coef_)


# Other sets --------------------------------------------------------------------------------------


def test_sets_of_other_orders_are_compared_at_one_set():
    """Candidates of two geometries in one search, and one geometry judged by another's set."""
    X, y = binary()
    at = Wasserstein(0.2, order=1)
    folds = KFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(
        linear(alpha=1e-3),
        {"ambiguity__radius": [0.05, 0.2], "ambiguity__order": [1, 2]},
        scoring=make_robust_scorer(at),
        cv=folds,
    ).fit(X, y)
    # Whoever is judged by order 1 is best trained for it.
    assert search.best_params_ == {"ambiguity__radius": 0.2, "ambiguity__order": 1}
    for order in (1, 2):
        model = linear(alpha=1e-3).set_params(ambiguity__order=order)
        found = select_radius(model, X, y, radii=[0.05, 0.2], at=at, cv=folds)
        scores = search.cv_results_["mean_test_score"][
            search.cv_results_["param_ambiguity__order"] == order
        ]
        np.testing.assert_allclose(found.table["upper_bound"], -scores, rtol=1e-5)


def test_a_path_of_order_one_is_that_of_single_fits():
    X, y = binary()
    model = linear().set_params(ambiguity=Wasserstein(0.1, order=1, norm=np.inf))
    for radius, fitted in zip([0.3, 0.05], radius_path(model, X, y, [0.3, 0.05]), strict=True):
        alone = clone(model).set_params(ambiguity__radius=radius).fit(X, y)
        assert fitted.certificate_.upper == pytest.approx(alone.certificate_.upper, rel=1e-7)
