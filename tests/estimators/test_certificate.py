"""Promises 1 and 2: the certificate holds from both sides, and follows the radius."""

import dataclasses
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LinearRegression, LogisticRegression, QuantileRegressor

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.exceptions import UnboundedRiskError
from tests.estimators._cases import (
    CHEAP,
    KINDS,
    ball,
    binary,
    classes,
    fitted,
    linear,
    losses,
    mlp,
    regression,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PROVEN = {"ridge-1d", "strong-concavity", "lipschitz", "linear-bounds", "branch-and-bound", "dual"}


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", KINDS)
def test_sandwich(name):
    model, _, _ = fitted(name)
    c = model.certificate_
    noise = 6 * c.standard_error
    assert c.nominal_risk <= c.lower * (1 + 1e-9) + noise
    assert c.lower <= c.upper
    if c.radius is None:
        assert c.lower == pytest.approx(c.worst_case_risk - c.penalty * c.transport_cost)
    else:
        assert c.transport_cost <= c.radius**2 * (1 + 1e-4)
        assert c.lower == pytest.approx(c.worst_case_risk)


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", KINDS)
def test_proofs_are_honest(name):
    """A callable loss may do anything: no bound of it is called proven.

    The modules here are perceptrons in another dress, and recognised as that.
    """
    model, _, _ = fitted(name)
    c = model.certificate_
    if name.startswith("callable"):
        assert c.proof == "local-estimate"
        assert "ESTIMATE" in str(c)
    else:
        assert c.proof in PROVEN
        assert "upper bound" in str(c)


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", KINDS)
def test_no_random_attack_beats_the_upper_bound(name):
    """Attacks inside the budget, from outside: gradients by differences, random directions."""
    model, X, y = fitted(name)
    c = model.robust_certificate(X, y)
    rng = np.random.default_rng(0)
    amount = model._nested("ambiguity")
    low, high = (0.0, 9.0) if amount.bounds is not None else (-np.inf, np.inf)
    base = losses(model, X, y)
    assert c.nominal_risk == pytest.approx(base.mean())
    step = 1e-4 * X.std()
    slope = np.zeros_like(X)
    for _ in range(8):
        v = rng.normal(size=X.shape)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        slope += ((losses(model, X + step * v, y) - base) / step)[:, None] * v
    for direction in (slope, rng.normal(size=X.shape), X - X.mean(0)):
        size = np.sqrt((direction**2).sum(1).mean())
        move = 0.0 if size == 0 else direction * (amount.radius or 0.3) / size
        Z = np.clip(X + move, low, high)
        risk = losses(model, Z, y).mean()
        price = 0.0 if amount.radius else amount.penalty * ((Z - X) ** 2).sum(1).mean()
        # A local estimate has no proof, but it should not fall to random directions either.
        assert risk - price <= c.upper * (1 + 1e-9)


@pytest.mark.promise(1)
@pytest.mark.parametrize("radius", [0.005, 0.02, 0.2])
def test_squared_certificate_is_the_closed_form(radius):
    model, X, y = linear(DRORegressor, radius), *regression()
    model.fit(X, y)
    c = model.certificate_
    exact = (
        np.sqrt(np.mean((model.predict(X) - y) ** 2)) + radius * np.linalg.norm(model.coef_)
    ) ** 2
    assert c.upper == pytest.approx(exact, rel=1e-9)
    assert c.lower == pytest.approx(exact, rel=1e-9)
    # The penalty form at the multiplier: penalty * MSE / (penalty - |theta|^2).
    if np.isfinite(c.penalty):
        penalised = model.robust_certificate(X, y, Wasserstein(penalty=c.penalty))
        a = model.coef_ @ model.coef_
        assert penalised.upper == pytest.approx(c.penalty * c.nominal_risk / (c.penalty - a))


@pytest.mark.promise(1)
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("radius", [0.05, 0.3, 1.0])
def test_binary_certificate_is_the_dual_in_one_dimension(loss, radius):
    """min over penalties of penalty r^2 + mean max_t l(f + t) - penalty t^2 / |theta|^2."""
    X, y = binary()
    model = linear(loss=loss, radius=0.2).fit(X, y)
    margin = (2 * y - 1) * model.decision_function(X)
    norm = np.linalg.norm(model.coef_)
    grid = np.linspace(0, 60, 6001)  # lowering the margin, in its own units

    def dual(log_penalty):
        penalty = math.exp(log_penalty)
        moved = margin[:, None] - grid
        value = np.logaddexp(0, -moved) if loss == "logistic" else np.maximum(0, 1 - moved)
        return penalty * radius**2 + (value - penalty * (grid / norm) ** 2).max(1).mean()

    exact = minimize_scalar(dual, bounds=(-8, 8), method="bounded").fun
    # The grid's step of 0.01 misses a maximiser by at most 0.005, to first order by nothing.
    assert model.robust_certificate(X, y, ball(radius)).upper == pytest.approx(exact, rel=2e-4)


@pytest.mark.promise(1)
@pytest.mark.parametrize("radius", [0.1, 0.5])
def test_hinge_training_agrees_with_conic_programming(radius):
    import cvxpy as cp

    X, y = binary()
    theta, b, t, s = cp.Variable(4), cp.Variable(), cp.Variable(), cp.Variable(nonneg=True)
    # lambda r^2 + mean (1 - s f + |theta|^2 / 4 lambda)_+ with t >= |theta|^2 / 4 lambda.
    margin = cp.multiply(2 * y - 1, X @ theta + b)
    cone = [cp.quad_over_lin(theta, 4 * s) <= t]
    risk = s * radius**2 + cp.sum(cp.pos(1 - margin + t)) / len(y)
    best = cp.Problem(cp.Minimize(risk), cone).solve(solver=cp.CLARABEL)
    model = linear(loss="hinge", radius=radius).fit(X, y)
    assert model.certificate_.upper == pytest.approx(best, rel=1e-6)


# -- radius ----------------------------------------------------------------------------------------


@pytest.mark.promise(2)
def test_radius_zero_is_logistic_regression():
    X, y = binary()
    ours = linear(radius=0.0).fit(X, y)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)


@pytest.mark.promise(2)
def test_radius_zero_is_multinomial_logistic_regression():
    X, y = classes()
    ours = linear(radius=0.0, tol=1e-6, max_iter=2000).fit(X, y)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(X, y)
    theirs_risk = -np.log(theirs.predict_proba(X)[np.arange(len(y)), y]).mean()
    assert ours.certificate_.upper == pytest.approx(theirs_risk, rel=1e-6)


@pytest.mark.promise(2)
def test_radius_zero_is_least_squares_and_quantile_regression():
    X, y = regression()
    ours = linear(DRORegressor, 0.0).fit(X, y)
    np.testing.assert_allclose(ours.predict(X), LinearRegression().fit(X, y).predict(X), rtol=1e-6)
    ours = linear(DRORegressor, 0.0, loss="quantile", quantile=0.8).fit(X, y)
    theirs = QuantileRegressor(quantile=0.8, alpha=0).fit(X, y)
    r = y - theirs.predict(X)
    # Linear programmes have flat optima: the objective is unique, the predictions are not.
    assert ours.certificate_.upper == pytest.approx(np.maximum(0.8 * r, -0.2 * r).mean(), rel=1e-6)


@pytest.mark.promise(2)
@pytest.mark.parametrize("name", ["linear", "linear-classes-hinge", "squared", "mlp"])
@settings(max_examples=3)
@given(radii=st.lists(st.integers(-30, 10), min_size=3, max_size=3, unique=True))
def test_certificates_grow_with_the_radius_and_are_concave_in_its_square(name, radii):
    model, X, y = fitted(name)
    squares = np.sort(10.0 ** (np.array(radii) / 10)) * X.var()
    found = [model.robust_certificate(X, y, ball(math.sqrt(s))) for s in squares]
    # Upper against lower bounds, so that a loose bound of a perceptron cannot fail by itself.
    for a, b in pairwise(found):
        assert a.lower <= b.upper * (1 + 1e-9)
        assert a.nominal_risk == pytest.approx(b.nominal_risk)
    share = (squares[2] - squares[1]) / (squares[2] - squares[0])
    chord = share * found[0].lower + (1 - share) * found[2].lower
    assert chord <= found[1].upper * (1 + 1e-9)


@pytest.mark.promise(2)
@pytest.mark.parametrize("name", ["linear", "squared"])
def test_exact_certificates_grow_and_are_concave(name):
    model, X, y = fitted(name)
    squares = X.var() * np.array([0.0, 1e-3, 0.1, 0.5, 1.0, 3.0])
    values = np.array([model.robust_certificate(X, y, ball(math.sqrt(s))).upper for s in squares])
    slopes = np.diff(values) / np.diff(squares)
    assert (slopes > 0).all()
    assert (np.diff(slopes) < 0).all()


@pytest.mark.promise(2)
@pytest.mark.parametrize("radius", [1e3, 1e12, 1e30, 1e59])
@pytest.mark.parametrize("name", ["linear", "linear-classes", "linear-bounds", "squared", "huber"])
def test_a_huge_radius_gives_the_constant_model(name, radius):
    estimator, X, y = KINDS[name]
    model = type(estimator)(**estimator.get_params(deep=False))
    model.set_params(ambiguity=Wasserstein(radius, bounds=estimator.ambiguity.bounds))
    with pytest.warns(UserWarning, match="optimum is a constant model"):
        model.fit(X, y)
    assert np.ptp(model.predict(X)) == 0.0
    assert model.certificate_.upper == pytest.approx(model.certificate_.nominal_risk, rel=1e-9)


@pytest.mark.promise(2)
@pytest.mark.parametrize("radius", [30.0, 1e9, 1e30])
@pytest.mark.parametrize("kind", [DROClassifier, DRORegressor])
def test_a_huge_radius_of_a_perceptron_is_finite_and_told(kind, radius):
    X, y = binary() if kind is DROClassifier else regression()
    loss = "logistic" if kind is DROClassifier else "absolute"
    model = mlp(kind, radius, loss=loss, max_iter=150, tol=0.5)
    with pytest.warns(match="that of the best constant prediction"):
        model.fit(X, y)
    assert np.isfinite([model.certificate_.lower, model.certificate_.upper]).all()


@pytest.mark.promise(2)
@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_a_penalty_below_the_growth_names_one_that_works(model):
    X, y = regression()
    if model == "linear":
        fit = linear(DRORegressor, 0.02).fit(X, y)

        def attempt(penalty):
            return fit.robust_certificate(X, y, Wasserstein(penalty=penalty))

    else:

        def attempt(penalty):
            estimator = mlp(DRORegressor).set_params(ambiguity=Wasserstein(penalty=penalty))
            return estimator.fit(X, y).certificate_

    with pytest.raises(UnboundedRiskError, match=r"finite for .*penalty") as caught:
        attempt(1e-3)
    named = float(re.search(r"penalty (?:above|>) ([\d.e+-]+\d)", str(caught.value))[1])
    assert named > 0
    # "Above" it, and to the six digits that the message shows.
    assert np.isfinite(attempt(named * (1 + 1e-4)).upper)


@pytest.mark.promise(2)
def test_a_label_cost_below_the_growth_names_one_that_works():
    X, y = regression()
    ambiguity = Wasserstein(penalty=0.5, label_cost=1.0)
    with pytest.raises(UnboundedRiskError, match="penalty > 1"):
        DRORegressor(ambiguity, reference="empirical").fit(X, y)
    ambiguity.set_params(penalty=1.001)
    assert np.isfinite(DRORegressor(ambiguity, reference="empirical").fit(X, y).certificate_.upper)


@pytest.mark.promise(1)
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_bounds_make_the_risk_smaller_and_the_bound_no_looser(loss):
    X, y = binary()
    model = linear(loss=loss, radius=0.5).fit(X, y)
    free = model.robust_certificate(X, y, ball(2.0))
    box = np.column_stack([X.min(0), X.max(0)])
    boxed = model.robust_certificate(X, y, ball(2.0, bounds=box))
    assert boxed.lower <= boxed.upper <= free.upper * (1 + 1e-9)
    assert boxed.lower < free.lower


@pytest.mark.promise(1)
@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared", "absolute", "huber", "quantile"])
def test_bounds_that_bind_nowhere_change_nothing(loss):
    """Another solver, particles in a box: the same optimum as the exact one without the box."""
    kind = DROClassifier if loss in ("logistic", "hinge") else DRORegressor
    X, y = binary() if kind is DROClassifier else regression()
    radius = 0.3 if kind is DROClassifier else 0.01
    exact = linear(kind, radius, loss=loss).fit(X, y).certificate_
    boxed = linear(kind, loss=loss, inner="pointwise")
    boxed.set_params(ambiguity=ball(radius, bounds=(-1e3, 1e3))).fit(X, y)
    # Kinks stop a quasi-Newton method a little short of the optimum.
    rel = 1e-5 if loss in ("logistic", "squared") else 5e-3
    assert boxed.certificate_.upper == pytest.approx(exact.upper, rel=rel)
    assert boxed.certificate_.upper >= exact.upper * (1 - 1e-9)


@pytest.mark.promise(1)
def test_the_certificate_is_a_plain_frozen_value():
    c = fitted("linear")[0].certificate_
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.upper = 0.0
    for field in dataclasses.fields(c):
        assert type(getattr(c, field.name)) in (float, str, type(None))
    assert c.gap == c.upper - c.lower
    assert c.standard_error == 0.0
    assert fitted("linear-kde")[0].certificate_.standard_error > 0
    assert CHEAP.steps == 5  # settings are not changed by fits
