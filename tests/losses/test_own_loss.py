"""Losses of a user's own, written outside the package: every set trains with them and certifies."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import softplus

import drojko
from drojko import DROClassifier, DRORegressor, audit
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    CressieRead,
    CVaR,
    Group,
    Sinkhorn,
    TotalVariation,
    Wasserstein,
)
from drojko.baselines import ConvexDROClassifier, ConvexDRORegressor
from drojko.exceptions import (
    ConvergenceWarning,
    InvalidDataError,
    UnboundedRiskError,
    UnsupportedError,
)
from drojko.losses import Loss, get_loss


class LogCosh(Loss):
    """The logarithm of the hyperbolic cosine of the residual."""

    name = "log-cosh"
    task = "regression"
    lipschitz = curvature = 1.0
    growth = 0.0
    convex = True

    def value(self, f, y):
        r = (f - y).abs()
        return r + softplus(-2.0 * r) - math.log(2.0)

    def gradient(self, f, y):
        return torch.tanh(f - y)

    def second_derivative(self, f, y):
        return 1.0 - torch.tanh(f - y).square()


class SmoothHinge(Loss):
    """Half the square of 1 - margin between 0 and 1, a line beyond."""

    name = "smooth-hinge"
    lipschitz = curvature = 1.0
    growth = 0.0
    convex = True

    def _short(self, f, y):
        s = 2.0 * y.to(f.dtype) - 1.0
        return s, 1.0 - s * f

    def value(self, f, y):
        short = self._short(f, y)[1]
        return torch.where(short > 1.0, short - 0.5, 0.5 * short.clamp_min(0.0).square())

    def gradient(self, f, y):
        s, short = self._short(f, y)
        return -s * short.clamp(0.0, 1.0)

    def second_derivative(self, f, y):
        short = self._short(f, y)[1]
        return ((short > 0.0) & (short < 1.0)).to(f.dtype)

    def conic(self, f, y):
        return 0.5 * cp.huber(cp.pos(1.0 - cp.multiply(2.0 * y - 1.0, f)), 1.0)


class Insensitive(Loss):
    """Absolute error beyond a margin: three lines and nothing else."""

    name = "insensitive"
    task = "regression"
    lipschitz = 1.0
    curvature = math.inf
    growth = 0.0
    kinks = (-0.2, 0.2)
    convex = True
    lines = ((-1.0, -0.2), (0.0, 0.0), (1.0, -0.2))

    def value(self, f, y):
        return ((f - y).abs() - 0.2).clamp_min(0.0)

    def gradient(self, f, y):
        return torch.sign(f - y) * ((f - y).abs() > 0.2)

    def second_derivative(self, f, y):
        return torch.zeros_like(f)


class Moved(Insensitive):
    """The same with its worst case, but without derivatives of it."""

    def _shift(self, f, y, kappa):
        u = f - y
        gains = [a * u + b + a * a / (4.0 * kappa) for a, b in self.lines]
        best = torch.stack(gains).argmax(0)
        return torch.tensor([a for a, _ in self.lines], dtype=f.dtype)[best] / (2.0 * kappa)


class Bare(Loss):
    """Nothing but values: no derivative, nothing stated."""

    def value(self, f, y):
        return (f - y).square()


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    score = X @ [1.0, -1.0, 0.5]
    target = score + 0.3 * rng.normal(size=60)
    return X, target, (score + 0.5 * rng.normal(size=60) > 0).astype(int), np.arange(60) % 3


#: Sets, and within how much (relative) the certificate must be closed.
SETS = {
    "W2": (Wasserstein(radius=0.1), 1e-3),
    "W2-penalty": (Wasserstein(penalty=2.0), 1e-3),
    "W1": (Wasserstein(radius=0.1, order=1), 2e-3),
    "KL": (KL(0.1), 1e-6),
    "chi-square": (ChiSquare(0.1), 1e-6),
    "Cressie-Read": (CressieRead(radius=0.1, k=3), 1e-6),
    "CVaR": (CVaR(0.5), 1e-6),
    "TV": (TotalVariation(0.1), 1e-6),
    "groups": (Group(), 1e-6),
    "MMD": (MMD(radius=0.1), 1e-6),
    "Sinkhorn": (Sinkhorn(0.1, radius=0.05), 0.2),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_trains_under_every_set_with_a_certificate(table, kind, name):
    X, target, labels, groups = table
    ambiguity, gap = SETS[name]
    settings = {"reference": "empirical", "inner": "pointwise", "random_state": 0}
    if kind == "regression":
        y, loss = target, LogCosh()
        model = DRORegressor(ambiguity, loss=loss, **settings)
        constant = loss.value(torch.zeros(60, dtype=torch.float64), torch.tensor(y)).mean()
    else:
        y, loss = labels, SmoothHinge()
        model = DROClassifier(ambiguity, loss=loss, **settings)
        constant = torch.tensor(0.5)
    model.fit(X, y, groups=groups)
    found = model.certificate_
    assert found.lower <= found.upper <= found.lower * (1.0 + gap)
    assert found.proof in ("strong-concavity", "lipschitz", "dual")
    assert found.nominal_risk <= found.worst_case_risk <= found.upper + 3.0  # penalty: no bound
    assert found.upper < 0.9 * float(constant)
    # The same model, certified again around the same points.
    again = model.robust_certificate(X, y, groups=groups)
    assert again.upper == pytest.approx(found.upper, rel=max(gap, 1e-6))
    f = torch.as_tensor(X @ np.ravel(model.coef_) + np.ravel(model.intercept_)[0])
    assert again.nominal_risk == pytest.approx(float(loss.value(f, torch.as_tensor(y)).mean()))


@pytest.mark.parametrize("radius", [0.01, 0.1, 0.5])
def test_order_one_of_a_smooth_loss_is_the_optimum(table, radius):
    X, _, labels, _ = table
    ball = Wasserstein(radius=radius, order=1)
    ours = DROClassifier(ball, loss=SmoothHinge(), reference="empirical").fit(X, labels)
    theirs = ConvexDROClassifier(ball, loss=SmoothHinge()).fit(X, labels)
    assert ours.status_ == "converged"
    assert ours.certificate_.upper == pytest.approx(theirs.objective_, rel=1e-6)
    assert ours.certificate_.lower >= 0.998 * ours.certificate_.upper


@pytest.mark.parametrize("label_cost", [math.inf, 2.0])
def test_lines_are_enough_for_order_one_and_for_conic_programs(table, label_cost):
    X, target, _, _ = table
    ball = Wasserstein(radius=0.2, order=1, label_cost=label_cost)
    ours = DRORegressor(ball, loss=Insensitive(), reference="empirical").fit(X, target)
    theirs = ConvexDRORegressor(ball, loss=Insensitive()).fit(X, target)
    assert ours.status_ == "converged"
    assert ours.certificate_.upper == pytest.approx(theirs.objective_, rel=1e-5)
    assert ours.certificate_.lower >= 0.99 * ours.certificate_.upper
    # Order 2: lines are raised by slope^2 sigma, exactly; a dual bound of ours lies above.
    ball = Wasserstein(radius=0.2)
    exact = ConvexDRORegressor(ball, loss=Insensitive()).fit(X, target)
    assert (
        exact.objective_
        > ConvexDRORegressor(Wasserstein(radius=0.0), loss=Insensitive()).fit(X, target).objective_
    )
    model = DRORegressor(ball, loss=Insensitive(), reference="empirical", inner="pointwise")
    with pytest.warns(ConvergenceWarning, match="training saw"):  # quasi-Newton at kinks
        found = model.fit(X, target).certificate_
    assert model.status_ == "stalled"
    assert found.upper >= exact.objective_ * (1.0 - 1e-6)
    # The search from many starts sees all of the worst case: 2.02 % above the optimum.
    assert found.lower <= exact.objective_ * 1.03
    model.set_params(loss=Moved()).fit(X, target)
    assert model.certificate_.proof == "ridge-1d"
    assert model.certificate_.upper == pytest.approx(exact.objective_, rel=0.02)
    assert model.certificate_.relative_gap < 1e-6


def test_networks_have_proven_bounds(table):
    X, target, _, _ = table
    model = DRORegressor(
        Wasserstein(penalty=20.0), loss=LogCosh(), model="mlp", hidden_layer_sizes=(8,),
        reference="empirical", inner="pointwise", tol=0.1, random_state=0,
    ).fit(X, target)  # fmt: skip
    found = model.certificate_
    assert found.proof in ("strong-concavity", "lipschitz", "linear-bounds", "branch-and-bound")
    assert found.lower <= found.upper <= 1.2 * found.lower


def test_audit_takes_an_instance(table):
    X, _, labels, _ = table
    model = LogisticRegression().fit(X, labels)
    report = audit(model, X, labels, Wasserstein(radius=0.1), loss=SmoothHinge(), random_state=0)
    row = report.table.iloc[0]
    f = torch.as_tensor(model.decision_function(X))
    nominal = float(SmoothHinge().value(f, torch.as_tensor(labels)).mean())
    assert row["nominal_risk"] == pytest.approx(nominal, rel=1e-6)
    assert nominal < row["worst_case_risk"] <= row["upper_bound"] * (1.0 + 1e-9)


def test_what_is_missing_is_named(table):
    X, target, labels, _ = table
    small = Wasserstein(radius=0.1)
    cases = [
        (lambda: DROClassifier(small, loss=Bare()).fit(X, labels), "Bare has no `gradient`"),
        (
            lambda: DROClassifier(small, loss=SmoothHinge()).fit(X, np.arange(60) % 3),
            "SmoothHinge has no `multiclass`, which more than two classes need",
        ),
        (
            lambda: DROClassifier(
                Wasserstein(radius=0.1, order=1, label_cost=1.0), loss=SmoothHinge()
            ).fit(X, labels),
            "SmoothHinge has no `pieces`, which order=1 with a finite label_cost needs",
        ),
        (lambda: ConvexDRORegressor(KL(0.1), loss=LogCosh()).fit(X, target), "no `conic`"),
        (lambda: LogCosh().shift(torch.ones(1), torch.ones(1), 0.4), "LogCosh has no `worst_jet`"),
        (lambda: LogCosh().tilt(np.ones(1), np.ones(1), 1.0, 1.0), "no `_tilt`, which .*Sinkhorn"),
    ]
    for call, message in cases:
        with pytest.raises(UnsupportedError, match=message):
            call()
    with pytest.raises(InvalidDataError, match="is for regression, but the task is class"):
        DROClassifier(loss=LogCosh()).fit(X, labels)
    with pytest.raises(InvalidDataError, match="is the class LogCosh; give an instance"):
        get_loss(LogCosh)


def test_nothing_is_proven_of_what_is_not_stated(table):
    class Unstated(LogCosh):
        lipschitz = curvature = None
        growth = math.inf

    X, target, _, _ = table
    model = DRORegressor(
        Wasserstein(radius=0.1), loss=Unstated(), reference="empirical", inner="pointwise"
    ).fit(X, target)
    assert model.certificate_.proof == "local-estimate"
    order_one = DRORegressor(Wasserstein(radius=0.1, order=1), loss=Unstated())
    with pytest.raises(UnsupportedError, match="Lipschitz"):
        order_one.fit(X, target)

    class Steep(LogCosh):
        lipschitz = math.inf

    with pytest.raises(UnboundedRiskError, match="log-cosh loss grows faster"):
        DRORegressor(Wasserstein(radius=0.1, order=1), loss=Steep()).fit(X, target)


@pytest.mark.parametrize("loss", [LogCosh(), Insensitive(), SmoothHinge()])
def test_generic_bounds_hold(loss, seed):
    """Bounds from slopes and curvatures lie above a dense search, and deficits are losses."""
    gen = torch.Generator().manual_seed(seed)
    f = 3.0 * torch.randn(40, generator=gen, dtype=torch.float64)
    y = torch.randn(40, generator=gen, dtype=torch.float64)
    y = (y > 0).long() if loss.task == "classification" else y
    steps = torch.linspace(-6.0, 6.0, 2001, dtype=torch.float64)
    values = torch.stack([loss.value(f + t, y) for t in steps])
    for rate, strength in ((1.0, 0.3), (0.5, 2.0), (2.0, 2.5)):
        best = (values - strength * (steps / rate).square()[:, None]).amax(0)
        bound = loss.rate_bound(f, y, torch.tensor(rate), strength)
        assert bool((bound >= best - 1e-12).all())
        assert bool((bound <= best + loss.lipschitz**2 * rate**2 / (4.0 * strength) + 1e-9).all())
    still = loss.rate_bound(f, y, torch.tensor(0.0), 1.0)
    torch.testing.assert_close(still, loss.value(f, y))
    reach = torch.rand(40, generator=gen, dtype=torch.float64)
    inside = steps.abs()[:, None] <= reach
    within = torch.where(inside, values, -math.inf).amax(0)
    assert bool((loss.value_within(f, y, reach[:, None]) >= within - 1e-12).all())
    fall, rise = loss.far_deficits(f.numpy(), y.numpy())
    assert (np.minimum(fall, rise) >= -1e-8).all()
    far = 1e5
    sign = 2.0 * y.double() - 1.0 if loss.task == "classification" else torch.ones_like(f)
    moved = loss.value(f - sign * far, y).numpy() - loss.value(f, y).numpy()
    np.testing.assert_allclose(moved, far - fall, atol=1e-7)


def test_a_clone_keeps_the_loss(table, tmp_path):
    X, target, _, _ = table
    model = DRORegressor(KL(0.1), loss=LogCosh(), reference="empirical")
    twin = clone(model)
    assert twin.loss == model.loss
    assert repr(twin.loss) == "LogCosh()"
    assert "loss=LogCosh()" in repr(model)
    np.testing.assert_array_equal(model.fit(X, target).coef_, twin.fit(X, target).coef_)
    model.save(tmp_path / "own.drojko")
    with pytest.raises(InvalidDataError, match="LogCosh"):
        drojko.load(tmp_path / "own.drojko")
    again = drojko.load(tmp_path / "own.drojko", trusted=[LogCosh])
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_a_loss_in_numpy_is_refused_by_name(rng):
    X = rng.normal(size=(30, 2))
    with pytest.raises(InvalidDataError, match=r"the loss calls NumPy .*torch\.abs"):
        DRORegressor(KL(radius=0.1), loss=lambda f, y: np.abs(f - y)).fit(X, X[:, 0])
