"""Linear models against reweightings, beside cvxpy; networks, beside full-batch training."""

import warnings
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression

from drojko._driver import Limits
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation, Wasserstein
from drojko.approaches.base import trained
from drojko.inner import Pointwise
from drojko.losses import Absolute, CallableLoss, get_loss
from drojko.measures import ClassConditional, Empirical, Gaussian, Joint
from drojko.minimax.problem import RobustProblem
from drojko.minimax.reweighting.passes import train_network
from drojko.minimax.reweighting.solve import solve_linear
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import MLP, Linear, is_linear

SETS = {
    "kl": KL(0.15),
    "kl-penalty": KL(penalty=1.5),
    "chi-square": ChiSquare(0.6),
    "chi-square-penalty": ChiSquare(penalty=0.8),
    "cressie-read": CressieRead(3.0, 0.1),
    "cressie-read-penalty": CressieRead(1.5, penalty=1.0),
    "tv": TotalVariation(0.15),
    "tv-penalty": TotalVariation(penalty=0.9),
    "cvar": CVaR(0.3),
    "kl-everything": KL(30.0),
}
LOSSES = ("logistic", "hinge", "squared", "absolute")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def solve_reweighted(p, ambiguity, generator, limits=None, n_draws=2000, groups=None, outer=None):
    """Train the module of a problem, a linear one by arrays, which it takes the answer of."""
    limits, model = limits or Limits(), p.model
    tell = limits.callback
    if not is_linear(model):
        return train_network(
            p, ambiguity, generator, n_draws=n_draws, groups=groups, outer=outer, limits=limits
        )
    *points, bound = p.support(ambiguity, n_draws, generator, groups)
    parts = model.weights[0], model.biases[0]

    def load(coef, intercept):
        for part, value in zip(parts, (coef, intercept), strict=model.bias):
            part.data.copy_(torch.as_tensor(np.reshape(value, part.shape)))

    def callback(iteration, info):
        load(info["coef"], info["intercept"])
        return tell is not None and tell(iteration, info)

    found = solve_linear(
        *(part.numpy() for part in points),
        bound,
        p.loss,
        n_outputs=model.n_outputs,
        alpha=p.alpha,
        fit_intercept=model.bias,
        limits=replace(limits, callback=callback),
        start=tuple(part.detach().numpy() for part in parts),
        warm=model.warm,
    )
    load(found.coef, found.intercept)
    return trained(found)[1]


def data(seed, loss, n=60, d=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.5, 3.0, d)
    score = X @ rng.normal(size=d) + rng.normal(size=n)
    y = (score + rng.normal(size=n) > 0).astype(int)
    if loss in ("squared", "absolute"):
        y = score / np.std(score) + 3.0
    else:
        y[:4] = [0, 1, 0, 1]
        X[2], X[3] = X[1], X[0]  # no plane separates these
    return X, y


def problem(X, y, loss, model=None, alpha=0.0, weight=None, reference=None):
    regression = loss in ("squared", "absolute", "huber")
    task = "regression" if regression else "classification"
    wrapper = Joint if regression else ClassConditional
    classes = 0 if regression else int(max(y)) + 1
    named = get_loss(loss, task, None if regression else classes) if isinstance(loss, str) else loss
    return RobustProblem(
        wrapper(reference or Empirical()).fit(X, y, sample_weight=weight),
        model or Linear(X.shape[1], classes if classes > 2 else 1),
        named,
        Wasserstein(1.0).resolve(X.shape[1]),
        Pointwise(),
        radius=0.0,
        alpha=alpha,
        n_labels=classes,
    )


def parameters(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def value_of(ambiguity, given_problem, seed=0):
    """Robust objective of the problem's model on its atoms, by the exact dual."""
    x, y, w = given_problem.draw(10, gen(seed))
    with torch.no_grad():
        losses = given_problem.loss.value(given_problem.model(x), y)
    weights = [p for p in given_problem.model.parameters() if p.ndim > 1]
    ridge = 0.5 * given_problem.alpha * sum(float(p.detach().square().sum()) for p in weights)
    return ambiguity.dual(losses, w).value + ridge


def optimum(ambiguity, X, y, loss, alpha=0.0):
    """The same problem as a conic program."""
    n, d = X.shape
    theta, b = cp.Variable(d), cp.Variable()
    f, sign = X @ theta + b, 2 * y - 1
    losses = {
        "logistic": lambda: cp.logistic(cp.multiply(-sign, f)),
        "hinge": lambda: cp.pos(1 - cp.multiply(sign, f)),
        "squared": lambda: cp.square(f - y),
        "absolute": lambda: cp.abs(f - y),
    }[loss]()
    u, eta, constraints = cp.Variable(n), cp.Variable(), []
    constraints.append(u >= losses)
    penalised = ambiguity.penalty is not None
    if isinstance(ambiguity, CVaR):
        value = eta + cp.sum(cp.pos(u - eta)) / (n * ambiguity.alpha)
    elif isinstance(ambiguity, TotalVariation):
        top = cp.Variable()
        constraints.append(u <= top)
        if penalised:
            value = top - ambiguity.penalty + cp.sum(cp.pos(u - top + ambiguity.penalty)) / n
        else:
            r = ambiguity.radius
            value = r * top + (1 - r) * eta + cp.sum(cp.pos(u - eta)) / n
    elif isinstance(ambiguity, KL):
        lam = ambiguity.penalty if penalised else cp.Variable(nonneg=True)
        v = cp.Variable(n)
        constraints.append(cp.ExpCone(u - eta, lam * np.ones(n), v))
        constraints.append(cp.sum(v) / n <= lam)
        value = eta + (0 if penalised else lam * ambiguity.radius)
    else:
        k, size = 2.0, ambiguity.penalty if penalised else ambiguity.radius
        if isinstance(ambiguity, CressieRead):
            k = ambiguity.k
        elif penalised:
            size = 2.0 * size
        else:
            size = 0.5 * size
        star = k / (k - 1)
        excess = cp.pos(u - eta)
        if penalised:
            # lam f*((u - eta') / lam) with 1 + (k - 1) t = (k - 1) (u - eta) / lam
            scale = size * ((k - 1) / size) ** star / k
            value = eta + size / (k - 1) - size / k
            value += scale * cp.sum(cp.power(excess, star)) / n
        else:
            value = eta + (1 + k * (k - 1) * size) ** (1 / k) * cp.pnorm(excess, star) / n ** (
                1 / star
            )
    goal = cp.Problem(cp.Minimize(value + 0.5 * alpha * cp.sum_squares(theta)), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an inaccurate solution: its status says so
        goal.solve(solver=cp.CLARABEL)
    assert goal.status in ("optimal", "optimal_inaccurate")
    # Feasible, hence an upper bound: the exact objective of the solver's model.
    g = X @ theta.value + b.value
    target = torch.from_numpy(y)
    task = "regression" if loss in ("squared", "absolute") else "classification"
    found = get_loss(loss, task).value(torch.from_numpy(g), target)
    ridge = 0.5 * alpha * float(theta.value @ theta.value)
    lower = goal.value if goal.status == "optimal" else -np.inf
    return lower, ambiguity.dual(found).value + ridge


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SETS)
def test_linear_models_reach_the_conic_optimum(name, loss, seed):
    ambiguity = SETS[name]
    X, y = data(seed + 7 * LOSSES.index(loss), loss)
    alpha = 0.05 if loss in ("logistic", "absolute") else 0.0
    p = problem(X, y, loss, alpha=alpha)
    result = solve_reweighted(p, ambiguity, gen(), limits=Limits(max_iter=500))
    lower, upper = optimum(ambiguity, X, y, loss, alpha)
    value = value_of(ambiguity, p)
    assert result.status == "converged"
    assert value <= upper + 1e-5 * abs(upper) + 1e-8
    # The cone solver's own accuracy is 1e-8; its powers and exponentials are scaled by the data.
    assert value >= lower - 1e-5 * abs(lower) - 1e-6
    assert value <= result.history["robust_risk"].min() * (1 + 1e-9)


@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared"])
@pytest.mark.parametrize("name", ["kl", "cvar", "tv-penalty"])
def test_quasi_newton_agrees_with_newton(name, loss, seed, monkeypatch):
    ambiguity = SETS[name]
    X, y = data(seed + 3, loss)
    first, second = problem(X, y, loss, alpha=0.1), problem(X, y, loss, alpha=0.1)
    solve_reweighted(first, ambiguity, gen(), limits=Limits(max_iter=300))
    monkeypatch.setattr("drojko.minimax.reweighting.solve.WIDE", 0)
    result = solve_reweighted(second, ambiguity, gen(), limits=Limits(max_iter=300))
    assert result.status == "converged"
    exact = value_of(ambiguity, first)
    assert value_of(ambiguity, second) == pytest.approx(exact, rel=2e-5)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("name", ["kl", "chi-square", "cvar"])
def test_many_classes(name, loss, seed):
    """No direction descends by more than rounding: the problem is convex."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(90, 2))
    y = np.argmax(X @ rng.normal(size=(2, 3)) + rng.normal(size=(90, 3)), 1)
    p = problem(X, y, loss, alpha=0.01)
    result = solve_reweighted(p, SETS[name], gen(), limits=Limits(max_iter=400))
    assert result.status == "converged"
    value = value_of(SETS[name], p)
    start = [q.detach().clone() for q in p.model.parameters()]
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            for q, first in zip(p.model.parameters(), start):
                q.data.copy_(first + size * torch.from_numpy(rng.normal(size=first.shape)))
            assert value_of(SETS[name], p) >= value * (1 - 1e-5)


def test_radius_zero_is_the_plain_fit():
    X, y = data(1, "logistic", n=200)
    plain = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(X, y)
    for ambiguity in (KL(0.0), ChiSquare(0.0), CressieRead(3.0, 0.0), CVaR(1.0)):
        p = problem(X, y, "logistic")
        solve_reweighted(p, ambiguity, gen())
        expected = np.append(plain.coef_[0], plain.intercept_)
        assert parameters(p.model) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", [KL, ChiSquare, TotalVariation])
def test_the_optimum_grows_with_the_radius(family):
    X, y = data(2, "logistic")
    values = []
    for radius in (0.0, 0.01, 0.1, 0.5, 1.0):
        p = problem(X, y, "logistic")
        solve_reweighted(p, family(radius), gen())
        values.append(value_of(family(radius), p))
    assert (np.diff(values) >= -1e-6).all()
    assert values[-1] > values[0] + 1e-3


@pytest.mark.parametrize("name", ["kl", "chi-square", "cvar", "tv-penalty"])
def test_copies_are_weights_and_order_says_nothing(name):
    X, y = data(4, "logistic", n=40)
    weight = np.arange(40) % 3 + 1.0
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(40), weight.astype(int)))
    first, second = problem(X, y, "logistic", weight=weight), problem(X[rows], y[rows], "logistic")
    solve_reweighted(first, SETS[name], gen())
    solve_reweighted(second, SETS[name], gen())
    value = value_of(SETS[name], first)
    assert value_of(SETS[name], second) == pytest.approx(value, rel=4e-6)
    if name in ("kl", "chi-square"):  # smooth: the minimiser itself is found to rounding
        assert parameters(first.model) == pytest.approx(parameters(second.model), abs=1e-7)


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_columns_of_any_scale(seed):
    X, y = data(seed, "logistic")
    units = np.array([1e-6, 1.0, 1e6])
    first, second = problem(X, y, "logistic"), problem(X * units + 5.0 * units, y, "logistic")
    solve_reweighted(first, KL(0.1), gen())
    solve_reweighted(second, KL(0.1), gen())
    values = value_of(KL(0.1), first), value_of(KL(0.1), second)
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_separable_classes_have_no_minimum(classes):
    X = np.arange(12.0)[:, None] + np.arange(12)[:, None] // (12 // classes) * 5.0
    X = np.column_stack([X, X**2])
    y = np.arange(12) // (12 // classes)
    for ambiguity in (KL(0.1), CVaR(0.5)):
        p = problem(X, y, "logistic")
        result = solve_reweighted(p, ambiguity, gen())
        assert result.status == "unbounded"
        assert "alpha" in result.message
        assert solve_reweighted(problem(X, y, "logistic", alpha=0.1), ambiguity, gen()).status in (
            "converged",
        )


def test_callable_losses_and_wide_tables():
    X, y = data(5, "squared")
    p = problem(X, y, "squared")
    solve_reweighted(p, KL(0.1), gen())
    q = problem(X, y, "squared")
    q = replace(q, loss=CallableLoss(lambda f, t: (f - t) ** 2, task="regression"))
    solve_reweighted(q, KL(0.1), gen(), limits=Limits(max_iter=300))
    assert value_of(KL(0.1), q) == pytest.approx(value_of(KL(0.1), p), rel=1e-6)


def test_callbacks_stop_and_see_the_model():
    X, y = data(6, "logistic")
    seen = []
    p = problem(X, y, "logistic")

    def callback(iteration, info):
        seen.append((iteration, info["robust_risk"], parameters(p.model).copy()))
        return iteration == 2

    result = solve_reweighted(p, KL(0.1), gen(), limits=Limits(callback=callback))
    assert result.status == "callback"
    assert [row[0] for row in seen] == [1, 2]
    assert value_of(KL(0.1), p) == pytest.approx(min(row[1] for row in seen), rel=1e-12)


def test_interrupts_keep_the_best_model():
    X, y = data(6, "logistic")

    def callback(iteration, info):
        raise KeyboardInterrupt

    for model in (None, MLP(3, hidden=(4,), generator=gen())):
        p = problem(X, y, "logistic", model)
        result = solve_reweighted(p, KL(0.1), gen(), limits=Limits(callback=callback))
        assert result.status == "interrupted"
        assert np.isfinite(parameters(p.model)).all()


# Networks ---------------------------------------------------------------------------------------


def full_batch(p, ambiguity, steps=1500):
    """Plain gradient descent with momentum on the exact robust objective of all rows."""
    from scipy.optimize import minimize

    from drojko.models import flatten_parameters

    x, y, w = p.draw(10, gen())
    flat = flatten_parameters(p.model)

    def evaluate(point):
        flat.copy_(torch.from_numpy(point))
        f, backward = p.model.linearise(x)
        dual = ambiguity.dual(p.loss.value(f, y), w)
        mass = w * torch.from_numpy(dual.ratio)
        parts = backward(p.loss.gradient(f, y) * mass, parameters=True)
        alphas = p.decay()
        ridge = sum(
            a * float(q.detach().square().sum()) for a, q in zip(alphas, p.model.parameters())
        )
        rows = [g + a * q.detach() for g, a, q in zip(parts, alphas, p.model.parameters())]
        return dual.value + 0.5 * ridge, torch.cat([r.reshape(-1) for r in rows]).numpy()

    found = minimize(evaluate, flat.numpy().copy(), jac=True, options={"maxiter": steps})
    return float(found.fun)


@pytest.mark.parametrize("name", ["kl", "chi-square", "cvar"])
def test_networks_reach_full_batch_training(name):
    X, y = data(8, "logistic", n=150, d=2)
    ambiguity = SETS[name]
    exact = min(
        full_batch(
            problem(X, y, "logistic", MLP(2, hidden=(5,), generator=gen(s)), 0.02), ambiguity
        )
        for s in range(2)
    )
    p = problem(X, y, "logistic", MLP(2, hidden=(5,), generator=gen(0)), 0.02)
    result = solve_reweighted(
        p,
        ambiguity,
        gen(1),
        outer=Subgradient(learning_rate=5e-2, batch_size=50),
        limits=Limits(max_iter=400, tol=1e-5),
    )
    assert value_of(ambiguity, p) <= 1.01 * exact
    assert len(result.history["robust_risk"]) == result.n_iter
    assert result.history["transport_cost"][-1] >= 0


def test_networks_are_deterministic_and_resist_shifts():
    X, y = data(9, "logistic", n=80)
    results = []
    for _ in range(2):
        p = problem(X, y, "logistic", MLP(3, hidden=(4,), generator=gen(2)))
        solve_reweighted(p, KL(0.2), gen(3), limits=Limits(max_iter=10))
        results.append(parameters(p.model))
    assert np.array_equal(*results)


def test_continuous_references_are_drawn_anew():
    X, y = data(10, "squared", n=80)
    p = problem(X, y, "squared", MLP(3, hidden=(6,), generator=gen(2)), reference=Gaussian())
    before = value_of(ChiSquare(0.3), p, seed=5)
    outer = Subgradient(learning_rate=2e-2)
    limits = Limits(max_iter=30)
    solve_reweighted(p, ChiSquare(0.3), gen(3), n_draws=500, outer=outer, limits=limits)
    x, t, w = p.draw(4000, gen(7))
    after = ChiSquare(0.3).dual(p.loss.value(p.model(x).detach(), t), w).value
    assert after < 0.5 * before or after < 1.0


def test_a_larger_ball_in_few_steps():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4000, 30))
    y = (rng.random(4000) < 1 / (1 + np.exp(-3 * X @ rng.standard_normal(30) / 30**0.5))).astype(
        int
    )
    model = Linear(30, 1)
    result = solve_reweighted(problem(X, y, "logistic", model), TotalVariation(0.1), gen())
    assert result.status == "converged"
    assert result.n_iter <= 45


@pytest.mark.parametrize("penalty", [1e-8, 1e-5, 1e-2])
@pytest.mark.parametrize("ambiguity", [KL, ChiSquare], ids=["KL", "chi-square"])
def test_a_price_far_below_the_losses_asks_for_the_largest_one(ambiguity, penalty):
    # The largest absolute loss, less at most what all mass on one row costs; a linear program.
    rng = np.random.default_rng(3)
    n, d = 150, 3
    X = rng.normal(size=(n, d))
    y = 40.0 * X[:, 0] + 100.0 * rng.standard_t(3, size=n)
    A = np.block([[X, np.ones((n, 1)), -np.ones((n, 1))], [-X, -np.ones((n, 2))]])
    program = linprog([*np.zeros(d + 1), 1.0], A, np.append(y, -y), bounds=(None, None))
    largest = program.fun
    bound = ambiguity(penalty=penalty).bind(X, y, np.full(n, 1.0 / n))
    found = solve_linear(X, y, None, bound, Absolute())
    assert found.status == "converged"
    assert found.relative_gap < 1e-5
    one = np.append(float(n), np.zeros(n - 1))  # all mass on one row
    most = penalty * ambiguity(penalty=penalty).discrepancy(one, np.full(n, 1.0 / n))
    assert largest - most - 1e-5 * largest <= found.lower
    assert found.lower <= largest
