"""Radii from the robust Wasserstein profile, against the profile itself."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, Wasserstein
from drojko.estimators import select_radius
from drojko.estimators.radius.profile import profile_law
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.losses import get_loss
from tests.estimators._cases import ball, binary, classes, frame, linear, mlp, regression

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
        (linear(DRORegressor).set_params(ambiguity=Wasserstein(1.0, order=1)), regression, "order"),
        (linear().set_params(ambiguity=Wasserstein(1, order=1, immutable=[0])), binary, "immu"),
    ],
)
def test_what_profile_inference_is_not_for(model, data, word):
    with pytest.raises(UnsupportedError, match=f'linear.*Got .*{word}.*method="cv"'):
        select_radius(model, *data(), method="rwpi")


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_the_bound_of_order_one_is_the_norm_of_the_gradient(p, rng):
    """At beta* = 0 it is twice the norm of root n E_n h: here of independent labels."""
    X = rng.normal(size=(400, 3)) * [1.0, 2.0, 0.5]
    weights = np.array([1.0, 0.25, 4.0])
    model = DROClassifier(Wasserstein(0.1, order=1, norm=p, weights=weights))
    y = rng.random(400) < 0.5
    found = select_radius(model, X, y, method="rwpi", level=0.1, random_state=0)
    labels = rng.random((4000, 400)) < 0.5
    slopes = 0.5 - labels
    gradients = (slopes - slopes.mean(1, keepdims=True)) @ (X - X.mean(0)) / 400
    sizes = np.linalg.norm(2 * np.sqrt(weights) * gradients, ord=p, axis=1)
    # 4000 draws leave 2 % of a 0.9 quantile.
    assert found.radius == pytest.approx(np.quantile(sizes, 0.9), rel=0.05)


def test_profile_inference_of_order_one_takes_separable_classes():
    X, y = np.arange(20.0)[:, None], np.arange(20) > 9
    model = DROClassifier(Wasserstein(0.1, order=1), reference="empirical")
    found = select_radius(model, X, y, method="rwpi", level=0.05, random_state=0)
    assert found.radius == pytest.approx(norm.isf(0.025) * X.std() / np.sqrt(20), rel=0.01)


def test_profile_inference_needs_a_nominal_fit():
    X, y = np.arange(20.0)[:, None], np.arange(20) > 9
    with pytest.raises(InvalidDataError, match=r"separated.*alpha > 0"):
        select_radius(linear(), X, y, method="rwpi")
    assert select_radius(linear(alpha=0.1), X, y, method="rwpi").radius > 0
    X, y = regression()
    with pytest.raises(InvalidDataError, match="10 rows for 10 columns"):
        select_radius(linear(DRORegressor), X[:10], y[:10], method="rwpi")
