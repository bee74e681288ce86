"""Order-1 training against cvxpy, closed forms, limits and invariances."""

import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko._driver import Limits
from drojko.ambiguity.ground.norms import dual_norm
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.losses import (
    Absolute,
    CallableLoss,
    CrammerSinger,
    Hinge,
    Huber,
    Logistic,
    Quantile,
    Softmax,
    Squared,
)
from drojko.minimax.order_one.linear import slope_bound, solve_lipschitz

# Clarabel is asked for more digits than it always reaches; 1e-6 is what is compared.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")

DUAL = {1: "inf", 2: 2, math.inf: 1}
INVERSE = np.array([1.0, 0.5, 0.0, 2.0])


def instance(loss, seed=0, n=40):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4)) * np.array([1.0, 2.0, 0.3, 5.0]) + 1.0
    score = X[:, 0] - X[:, 1] / 2 + X[:, 2]
    if loss.task == "regression":
        return X, 3.0 * score + rng.standard_t(3, size=n) + 7.0, 1
    if loss.scalar:
        y = (score + rng.normal(size=n) > np.median(score)).astype(int)
        return X, y, 1
    y = np.clip(np.round(score + rng.normal(size=n) * 0.5), 0, 2).astype(int)
    y[:3] = [0, 1, 2]
    return X, y, 3


def _class_loss(loss, F, y, K):
    if K == 1:
        m = cp.multiply(2 * y - 1, F[:, 0])
        return cp.logistic(-m) if isinstance(loss, Logistic) else cp.pos(1 - m)
    own = np.eye(K)[y]
    chosen = cp.sum(cp.multiply(F, own), axis=1)
    top = cp.log_sum_exp(F, axis=1) if isinstance(loss, Softmax) else cp.max(F + 1 - own, axis=1)
    return top - chosen


def by_cvxpy(X, y, loss, K, radius, penalty, norm, cost, alpha=0.0, weight=None):
    """The reformulation, written down independently of the solver."""
    n, d = X.shape
    weight = np.full(n, 1 / n) if weight is None else weight
    mutable, lam = np.flatnonzero(INVERSE), cp.Variable() if penalty is None else penalty
    W, b = cp.Variable((K, d)), cp.Variable(K)
    F = X @ W.T + np.ones((n, 1)) @ cp.reshape(b, (1, K), order="C")
    root = np.sqrt(INVERSE[mutable])
    rows = [W[0]] if K == 1 else [W[j] - W[k] for j in range(K) for k in range(j)]
    slope = loss.lipschitz if K == 1 else 1.0
    bound = [lam >= slope * cp.norm(cp.multiply(root, row[mutable]), DUAL[norm]) for row in rows]
    if loss.task == "regression":
        r = F[:, 0] - y
        if isinstance(loss, Huber):
            value = cp.huber(r, loss.delta) / 2
        else:
            value = cp.maximum(loss.slopes[0] * r, loss.slopes[1] * r)
        if math.isfinite(cost):
            bound.append(lam >= slope / cost)
    else:
        value = _class_loss(loss, F, y, K)
        if math.isfinite(cost):
            for step in range(1, max(K, 2)):
                other = _class_loss(loss, F, (y + step) % max(K, 2), K)
                value = cp.maximum(value, other - lam * cost)
    total = weight @ value + alpha / 2 * cp.sum_squares(W)
    problem = cp.Problem(cp.Minimize(total + (radius * lam if penalty is None else 0)), bound)
    tight = {"tol_gap_rel": 1e-10, "tol_gap_abs": 1e-10, "tol_feas": 1e-10}
    return problem.solve(solver=cp.CLARABEL, **tight)


LOSSES = [
    Logistic(), Hinge(), Absolute(), Huber(1.0), Quantile(0.8), Softmax(), CrammerSinger(),
]  # fmt: skip


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize(
    "form", [(0.1, None, math.inf), (0.3, None, 0.6), (None, 0.4, math.inf), (None, 0.5, 3.0)]
)
def test_the_optimum_is_that_of_cvxpy(loss, norm, form):
    radius, penalty, cost = form
    X, y, K = instance(loss)
    expected = by_cvxpy(X, y, loss, K, radius, penalty, norm, cost)
    found = solve_lipschitz(
        X, y, loss=loss, n_outputs=K, radius=radius, penalty=penalty, norm=norm,
        inverse_weights=INVERSE, label_cost=cost,
    )  # fmt: skip
    assert found.status == "converged"
    assert found.objective == pytest.approx(expected, rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    loss=st.sampled_from(LOSSES),
    norm=st.sampled_from([1, 2, math.inf]),
    radius=st.floats(1e-3, 2.0),
)
def test_alpha_and_weights_too(seed, loss, norm, radius):
    X, y, K = instance(loss, seed, n=25)
    weight = np.random.default_rng(seed).dirichlet(np.ones(len(X)))
    expected = by_cvxpy(X, y, loss, K, radius, None, norm, math.inf, 0.05, weight)
    found = solve_lipschitz(
        X, y, loss=loss, n_outputs=K, radius=radius, norm=norm, inverse_weights=INVERSE,
        alpha=0.05, weight=weight,
    )  # fmt: skip
    assert found.objective == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_scaling_data_and_radius_together_changes_nothing(loss):
    X, y, K = instance(loss)
    one = solve_lipschitz(X, y, loss=loss, n_outputs=K, radius=0.2)
    two = solve_lipschitz(1e3 * X, y, loss=loss, n_outputs=K, radius=200.0)
    assert two.objective == pytest.approx(one.objective, rel=1e-7)
    again = solve_lipschitz(
        np.concatenate([X, X[:5]]), np.concatenate([y, y[:5]]), loss=loss, n_outputs=K, radius=0.2
    )
    weight = np.ones(len(X))
    weight[:5] = 2.0
    copied = solve_lipschitz(X, y, loss=loss, n_outputs=K, radius=0.2, weight=weight)
    assert again.objective == pytest.approx(copied.objective, rel=1e-7)


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_large_radius_gives_the_zero_model(loss, norm):
    X, y, K = instance(loss)
    found = solve_lipschitz(X, y, loss=loss, n_outputs=K, radius=100.0, norm=norm)
    coef = found.coef - found.coef.mean(axis=0) if K > 1 else found.coef
    assert not coef.any()  # exactly
    constant = solve_lipschitz(
        np.zeros((len(X), 1)), y, loss=loss, n_outputs=K, radius=0.0
    ).objective
    assert found.objective == pytest.approx(constant, rel=1e-7)


def test_the_l1_dual_norm_gives_exact_zeros():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 12))
    y = (X[:, 0] + 0.5 * rng.normal(size=200) > 0).astype(int)
    found = solve_lipschitz(X, y, loss=Logistic(), radius=0.1, norm=math.inf)
    assert found.coef[0, 0] > 0.5
    assert (found.coef[0, 1:] == 0).sum() >= 8


def test_lambda_is_the_slope_and_the_penalty_of_that_slope_gives_the_model_back():
    X, y, _ = instance(Logistic())
    ball = solve_lipschitz(X, y, loss=Logistic(), radius=0.2)
    assert ball.multiplier == pytest.approx(dual_norm(ball.coef[0], np.ones(4), 2), rel=1e-7)
    penalised = solve_lipschitz(X, y, loss=Logistic(), penalty=ball.multiplier)
    assert penalised.objective + 0.2 * ball.multiplier == pytest.approx(ball.objective, rel=1e-7)
    np.testing.assert_allclose(penalised.coef, ball.coef, atol=1e-4)


def test_radius_zero_is_empirical_risk_minimisation():
    from sklearn.linear_model import LogisticRegression

    X, y, _ = instance(Logistic())
    found = solve_lipschitz(X, y, loss=Logistic(), radius=0.0)
    plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(found.coef, plain.coef_, rtol=1e-4, atol=1e-5)


def test_refusals_say_what_to_do():
    X, y, _ = instance(Absolute())
    with pytest.raises(UnboundedRiskError, match="order=2"):
        solve_lipschitz(X, y, loss=Squared(), radius=0.1)
    with pytest.raises(UnboundedRiskError, match="moving targets"):
        solve_lipschitz(X, y, loss=Absolute(), penalty=0.1, label_cost=1.0)
    with pytest.raises(InvalidDataError, match="exactly one"):
        solve_lipschitz(X, y, loss=Absolute())
    with pytest.raises(UnsupportedError, match="Lipschitz"):
        slope_bound(CallableLoss(lambda f, y: f))


def test_a_callback_sees_models_and_can_stop():
    X, y, _ = instance(Logistic())
    seen = []

    def callback(iteration, info):
        seen.append(info["coef"].copy())
        return iteration == 3

    found = solve_lipschitz(
        X, y, loss=Logistic(), radius=0.1, limits=Limits(tol=1e-6, callback=callback)
    )
    assert found.status == "callback"
    assert found.n_iter == len(seen) == 3
    assert np.isfinite(seen).all()
