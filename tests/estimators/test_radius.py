"""Choosing the radius: cross-validation, profile inference and calibration, against theory."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import chi2, norm
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, DRORegressor, make_robust_scorer, radius_path
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation, Wasserstein
from drojko.estimators import RadiusSelection, select_radius
from drojko.estimators._calibration import calibrated_radius
from drojko.estimators._profile import profile_law
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.losses import get_loss
from tests.estimators._cases import ball, binary, classes, frame, linear, losses, mlp, regression

# Profile inference -------------------------------------------------------------------------------

SQUARED, LOGISTIC = get_loss("squared", "regression"), get_loss("logistic")
COEF, INTERCEPT = np.array([1.0, -0.5]), 0.3
FACTOR = np.linalg.cholesky(np.array([[1.0, 0.4], [0.4, 1.0]]))


def draw(kind, rng, *shape):
    """A linear or logistic model with correlated columns, at COEF and INTERCEPT."""
    X = rng.normal(size=(*shape, 2)) @ FACTOR.T + np.array([2.0, -1.0])
    f = X @ COEF + INTERCEPT
    if kind == "squared":
        return X, f + rng.normal(size=shape)
    return X, (rng.random(shape) < expit(f)).astype(np.int64)


def law(X, y, coef, intercept, loss, inverse_cost=None, **settings):
    weight = np.full(len(X), 1 / len(X))
    inverse_cost = np.ones(X.shape[1]) if inverse_cost is None else inverse_cost
    return profile_law(X, y, weight, coef, intercept, loss, inverse_cost, **settings)


def derivatives(kind, f, y):
    """First and second derivative of the loss in f, up to a common factor."""
    if kind == "squared":
        return f - y, np.ones_like(f)
    p = expit(f)
    return p - y, p * (1 - p)


def profile(kind, X, y, weights):
    """Exact min over b of R_n(COEF, b), for a stack of data sets (m, n, d).

    Newton's method on E h(x + v) = 0 and xi'E dh/db = 0; v maximises xi'h(x + v) - v'Wv, a fixed
    point that contracts as xi is of order n^(-1/2). What comes back is the transport cost E v'Wv.
    """
    m, n, d = X.shape
    move = np.vstack([np.zeros(d), np.eye(d)])
    xi, b, v = np.zeros((m, d + 1)), np.full(m, INTERCEPT), np.zeros_like(X)
    for _ in range(40):
        for _ in range(4):
            slope, bend = derivatives(kind, (X + v) @ COEF + b[:, None], y)
            s = xi[:, None, 0] + np.einsum("mnd,md->mn", X + v, xi[:, 1:])
            v = (bend * s)[..., None] * COEF + slope[..., None] * xi[:, None, 1:]
            v /= 2 * weights
        slope, bend = derivatives(kind, (X + v) @ COEF + b[:, None], y)
        one = np.concatenate([np.ones((m, n, 1)), X + v], -1)
        shift = (bend[..., None] * one).mean(1)
        D = (bend[..., None] * one)[..., :, None] * COEF + slope[..., None, None] * move
        A = np.zeros((m, d + 2, d + 2))
        A[:, :-1, :-1] = np.einsum("mnij,mnlj->mil", D / weights, D) / (2 * n)
        A[:, :-1, -1] = A[:, -1, :-1] = shift
        gradient = (slope[..., None] * one).mean(1)
        residual = np.concatenate([gradient, (shift * xi).sum(1, keepdims=True)], 1)
        if np.abs(residual).max() < 1e-8:
            return (weights * v**2).sum(-1).mean(1)
        step = np.linalg.solve(A, -residual[..., None])[..., 0]
        xi, b = xi + step[:, :-1], b + step[:, -1]
    raise AssertionError("the profile did not converge")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_the_profile_of_small_samples_follows_its_limit_law(kind, rng):
    """n R_n(theta*) against H'G^-1 H: upper quantiles within a few per cent."""
    m, n, weights = 2000, 150, np.array([1.0, 4.0])
    X, y = draw(kind, rng, m, n)
    simulated = n * profile(kind, X, y, weights)
    X, y = draw(kind, rng, 100_000)
    loss = SQUARED if kind == "squared" else LOGISTIC
    limit = law(X, y, COEF, INTERCEPT, loss, 1 / weights)
    draws = limit.sample(200_000, torch.Generator().manual_seed(0))
    for q in (0.5, 0.8, 0.9, 0.95):
        expected = np.quantile(draws, q)
        # Standard error of a simulated quantile, by the law's own density, and O(1/n).
        width = np.quantile(draws, q + 0.02) - np.quantile(draws, q - 0.02)
        error = np.sqrt(q * (1 - q) / m) * width / 0.04
        assert abs(np.quantile(simulated, q) - expected) < 4 * error + 0.03 * expected


@pytest.mark.slow
def test_the_radius_covers_the_truth_as_often_as_promised(rng):
    m, n = 400, 200
    X, y = draw("squared", rng, m, n)
    distance = profile("squared", X, y, np.ones(2))
    covered = 0
    for k in range(m):
        coef, *_ = np.linalg.lstsq(np.column_stack([np.ones(n), X[k]]), y[k], rcond=None)
        draws = law(X[k], y[k], coef[1:], coef[0], SQUARED).sample(
            20_000, torch.Generator().manual_seed(k)
        )
        covered += n * distance[k] <= np.quantile(draws, 0.9)
    # Three standard errors are 0.04, the plug-in costs some 1/n.
    assert 0.85 < covered / m < 0.94


def test_without_a_signal_the_law_is_that_of_the_gradient(rng):
    """beta = 0: moving x changes h by its residual alone, so that G = E e^2 / w."""
    X = rng.normal(size=(200, 3)) @ np.diag([1.0, 2.0, 0.5])
    e = rng.normal(size=200)
    w = np.array([1.0, 4.0, 9.0])
    found = law(X, e, np.zeros(3), None, SQUARED, 1 / w).eigenvalues
    h = X * e[:, None]
    h = h - h.mean(0)
    expected = np.linalg.eigvals(h.T @ h / 200 @ np.diag(w) / np.mean(e**2))
    np.testing.assert_allclose(np.sort(found), np.sort(expected.real), rtol=1e-9)


def test_the_law_in_one_dimension_by_hand(rng):
    x, y = rng.normal(size=50) + 3.0, rng.normal(size=50)
    coef, intercept = np.array([0.7]), -0.2
    e = x * 0.7 - 0.2 - y
    z = x - x.mean()  # the second derivative is constant
    expected = np.var(e * z) / np.mean((z * 0.7 + e) ** 2)
    found = law(x[:, None], y, coef, intercept, SQUARED).eigenvalues
    np.testing.assert_allclose(found, [expected], rtol=1e-12)
    # y moves at 2 (y - y')^2: another coordinate, along which h has the derivative -z.
    expected = np.var(e * z) / (np.mean((z * 0.7 + e) ** 2) + np.mean(z**2) / 2.0)
    found = law(x[:, None], y, coef, intercept, SQUARED, label_cost=2.0).eigenvalues
    np.testing.assert_allclose(found, [expected], rtol=1e-12)


@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_the_law_keeps_its_shape_under_changes_of_units(kind, rng):
    X, y = draw(kind, rng, 300)
    loss = SQUARED if kind == "squared" else LOGISTIC
    w = np.array([1.0, 3.0])
    known = law(X, y, COEF, INTERCEPT, loss, 1 / w).eigenvalues
    moved = law(X + 100.0, y, COEF, INTERCEPT - 100 * COEF.sum(), loss, 1 / w).eigenvalues
    np.testing.assert_allclose(moved, known, rtol=1e-8)
    larger = law(1e3 * X, y, COEF / 1e3, INTERCEPT, loss, 1 / w).eigenvalues
    np.testing.assert_allclose(larger, 1e6 * known, rtol=1e-8)
    weighted = law(X * np.sqrt(w), y, COEF / np.sqrt(w), INTERCEPT, loss).eigenvalues
    np.testing.assert_allclose(weighted, known, rtol=1e-8)
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    plain = law(X, y, COEF, INTERCEPT, loss).eigenvalues
    turned = law(X @ turn.T, y, turn @ COEF, INTERCEPT, loss).eigenvalues
    np.testing.assert_allclose(turned, plain, rtol=1e-8)


def test_less_freedom_of_movement_needs_a_larger_radius():
    X, y = regression()
    free, fixed = (
        select_radius(
            linear(DRORegressor).set_params(ambiguity=Wasserstein(1.0, immutable=columns)),
            X, y, method="rwpi", random_state=0,
        ).radius
        for columns in (None, [0, 1, 2])
    )  # fmt: skip
    assert free < fixed
    with pytest.raises(InvalidDataError, match="immutable"):
        select_radius(
            linear(DRORegressor).set_params(ambiguity=Wasserstein(1.0, immutable=range(10))),
            X, y, method="rwpi",
        )  # fmt: skip


def test_profile_inference_at_the_unpenalised_fit_of_scikit_learn(rng):
    X, y = draw("logistic", rng, 300)
    found = select_radius(linear(), X, y, method="rwpi", level=0.1, random_state=0)
    fit = LogisticRegression(C=np.inf, tol=1e-10).fit(X, y)
    draws = law(X, y, fit.coef_[0], fit.intercept_[0], LOGISTIC).sample(
        200_000, torch.Generator().manual_seed(1)
    )
    # Two Monte-Carlo quantiles with a relative error of about 0.3 % each.
    assert found.radius == pytest.approx(np.sqrt(np.quantile(draws, 0.9) / 300), rel=0.02)
    assert found.method == "rwpi"
    table = found.table
    assert (np.diff(table["level"]) < 0).all()
    assert (np.diff(table["radius"]) > 0).all()
    np.testing.assert_allclose(table["radius"] ** 2 * 300, table["quantile"])
    assert (table["quantile_se"] < 0.02 * table["quantile"]).all()


def test_profile_inference_inside_of_a_pipeline_and_with_weights():
    X, y = regression()
    model = linear(DRORegressor)
    pipeline = make_pipeline(StandardScaler(), model)
    alone = select_radius(model, (X - X.mean(0)) / X.std(0), y, method="rwpi", random_state=0)
    found = select_radius(pipeline, frame(X), y, method="rwpi", random_state=0)
    assert found.radius == pytest.approx(alone.radius, rel=1e-6)
    assert found.params["droregressor__ambiguity__radius"] == found.radius
    # A weight of zero is absence; the scale of the weights says nothing.
    weight = np.r_[np.full(80, 3.0), np.zeros(40)]
    some = select_radius(model, X, y, method="rwpi", sample_weight=weight, random_state=0)
    rest = select_radius(model, X[:80], y[:80], method="rwpi", random_state=0)
    assert some.radius == pytest.approx(rest.radius, rel=1e-5)


def test_profile_inference_falls_with_the_root_of_the_number_of_samples():
    X, y = binary()
    one = select_radius(linear(), X, y, method="rwpi", random_state=0)
    four = select_radius(linear(), np.tile(X, (4, 1)), np.tile(y, 4), method="rwpi", random_state=0)
    assert one.radius == pytest.approx(2 * four.radius, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "data", "word"),
    [
        (DROClassifier(KL(0.1)), binary, "KL"),
        (linear(loss="hinge"), binary, "hinge"),
        (linear(), classes, "3 classes"),
        (mlp(), binary, "mlp"),
        (linear().set_params(ambiguity=ball(bounds=(0, 9))), binary, "bounds"),
        (linear(DRORegressor, loss="absolute"), regression, "absolute"),
    ],
)
def test_what_profile_inference_is_not_for(model, data, word):
    with pytest.raises(UnsupportedError, match=f'linear.*got .*{word}.*method="cv"'):
        select_radius(model, *data(), method="rwpi")


def test_profile_inference_needs_a_nominal_fit():
    X, y = np.arange(20.0)[:, None], np.arange(20) > 9
    with pytest.raises(InvalidDataError, match=r"separated.*alpha > 0"):
        select_radius(linear(), X, y, method="rwpi")
    assert select_radius(linear(alpha=0.1), X, y, method="rwpi").radius > 0
    X, y = regression()
    with pytest.raises(InvalidDataError, match="10 rows for 10 columns"):
        select_radius(linear(DRORegressor), X[:10], y[:10], method="rwpi")


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
    radii = [0.0, 0.005, 0.02, 0.05]
    chosen = [
        select_radius(linear(DRORegressor), X, y, radii=radii, at=at, cv=3, random_state=0).radius
        for at in (0.0, 0.05)
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
        ({"method": "guess"}, "cv, rwpi, calibration"),
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
