"""Infinite worst cases and problems without a minimum: never a finite number that has converged."""

import math
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from drojko import DROClassifier, DRORegressor, MinimaxProblem, audit
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
)  # fmt: skip
from drojko.exceptions import ConvergenceWarning, UnboundedRiskError
from drojko.losses import Loss
from drojko.problems import Ball, Box, newsvendor, portfolio

A, LABELS = (part[:60] for part in make_classification(200, 4, random_state=0, flip_y=0.1))
B = LABELS * 1.0
E = {"reference": "empirical", "random_state": 0, "inner": "pointwise"}


def poisson(f, y):
    return torch.exp(f) - y * f


def cubic(f, y):
    return (f - y).abs() ** 3


def error(f, y):
    return f - y


class Poisson(Loss):
    """The same as a class that states no growth."""

    name, task, convex = "poisson", "regression", True

    def value(self, f, y):
        return torch.exp(f) - y * f

    def gradient(self, f, y):
        return torch.exp(f) - y

    def second_derivative(self, f, y):
        return torch.exp(f)


class Error(Loss):
    """A loss that falls for ever, with all that is true of it stated."""

    name, task, convex, lipschitz, curvature = "error", "regression", True, 1.0, 0.0

    def value(self, f, y):
        return f - y

    def gradient(self, f, y):
        return torch.ones_like(f)

    def second_derivative(self, f, y):
        return torch.zeros_like(f)


# Fits: losses that outgrow the cost -------------------------------------------------------------


@pytest.mark.parametrize("loss", [poisson, cubic, Poisson()], ids=["poisson", "cubic", "class"])
@pytest.mark.parametrize(
    "ambiguity",
    [Wasserstein(radius=0.1), Wasserstein(penalty=5.0), Sinkhorn(0.1, radius=0.1)],
    ids=repr,
)
def test_a_loss_that_outgrows_the_cost_is_refused(loss, ambiguity):
    with pytest.raises(UnboundedRiskError, match=r"bounds=.*reweights"):
        DRORegressor(ambiguity, loss=loss, **E).fit(A, B)


def test_a_classification_loss_that_outgrows_the_cost_is_refused():
    boosting = lambda f, y: torch.exp(-f * (2.0 * y - 1.0))  # noqa: E731
    with pytest.raises(UnboundedRiskError):
        DROClassifier(Wasserstein(radius=0.1), loss=boosting, **E).fit(A, LABELS)


def test_networks_are_refused_where_their_outputs_have_no_end():
    settings = {"loss": poisson, "max_iter": 5, **E}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with pytest.raises(UnboundedRiskError):
            DRORegressor(Wasserstein(0.1), model="mlp", **settings).fit(A[:50], B[:50])

        def bounded():
            return torch.nn.Sequential(torch.nn.Linear(4, 1).double(), torch.nn.Tanh())

        fit = DRORegressor(Wasserstein(0.1), model=bounded, **settings).fit(A[:50], B[:50])
    assert fit.certificate_.nominal_risk < fit.certificate_.lower < math.e + 1.0


@pytest.mark.parametrize(
    "ambiguity",
    [
        Wasserstein(radius=0.1, bounds=(-10.0, 10.0)),
        Wasserstein(radius=0.1, bounds={0: (-10.0, 10.0)}, immutable=[1, 2, 3]),
        Wasserstein(radius=0.0),
        KL(radius=0.1),
        CVaR(alpha=0.5),
    ],
    ids=repr,
)
def test_what_is_finite_is_not_refused(ambiguity):
    fit = DRORegressor(ambiguity, loss=poisson, **E).fit(A, B)
    c = fit.certificate_
    assert fit.status_ == "converged"
    assert 0.5 < c.nominal_risk <= c.lower <= c.upper * (1 + 1e-12) < 2.0


def test_a_squared_loss_of_ones_own_grows_as_the_named_one():
    own = DRORegressor(Wasserstein(radius=0.1), loss=lambda f, y: (f - y) ** 2, **E).fit(A, B)
    named = DRORegressor(Wasserstein(radius=0.1), **E).fit(A, B)
    assert own.certificate_.lower == pytest.approx(named.certificate_.lower, rel=1e-6)
    grown = named.coef_ @ named.coef_  # at a penalty below, the worst case is infinite
    low, high = (Wasserstein(penalty=factor * grown) for factor in (0.999, 1.01))
    for fit in (own, named):
        assert math.isfinite(fit.robust_certificate(A, B, high).lower)
        with pytest.raises(UnboundedRiskError):
            fit.robust_certificate(A, B, low)


# Fits: losses without a least value --------------------------------------------------------------

SETS = [
    KL(radius=0.1), KL(penalty=1.0), ChiSquare(0.1), CVaR(0.5), TotalVariation(0.1), Group(),
    CressieRead(3, radius=0.1), MMD(radius=0.1), Wasserstein(0.1), Wasserstein(penalty=5.0),
    Wasserstein(0.0), Sinkhorn(0.1, radius=0.1),
]  # fmt: skip


@pytest.mark.parametrize("loss", [error, Error()], ids=["callable", "class"])
@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_a_loss_that_falls_for_ever_has_no_minimum(ambiguity, loss):
    groups = [0, 1] * 30 if ambiguity.knows_groups else None
    with pytest.warns(ConvergenceWarning, match="unbounded: There is no minimum"):
        fit = DRORegressor(ambiguity, loss=loss, **E).fit(A, B, groups=groups)
    assert fit.status_ == "unbounded"
    assert math.isnan(fit.optimality_gap_)
    assert abs(fit.certificate_.lower) < 10.0  # no numbers of many digits


@pytest.mark.parametrize(
    "ambiguity",
    [KL(0.1), CVaR(0.5), Group(), Wasserstein(0.1), Sinkhorn(0.1, radius=0.1)],
    ids=repr,
)
def test_a_direction_of_the_coefficients_without_a_minimum(ambiguity):
    # No constant falls under both labels; a model that tells them apart does.
    groups = [0, 1] * 30 if ambiguity.knows_groups else None
    fit = DRORegressor(ambiguity, loss=lambda f, y: f * (y - 0.5), **E)
    with pytest.warns(ConvergenceWarning, match=r"unbounded.*no minimum"):
        fit.fit(A, B, groups=groups)
    assert fit.status_ == "unbounded"
    assert np.abs(fit.coef_).max() < 1e8


def test_networks_whose_intercept_falls_for_ever():
    fit = DRORegressor(Wasserstein(0.1), model="mlp", loss=error, **E)
    with pytest.warns(ConvergenceWarning, match="unbounded"):
        fit.fit(A[:40], B[:40])
    assert fit.status_ == "unbounded"


@pytest.mark.parametrize("ambiguity", [KL(0.1), Wasserstein(0.1), CVaR(0.5)], ids=repr)
def test_a_minimum_below_zero_is_a_minimum(ambiguity):
    # The same loss with something that holds it: the ridge, and no free intercept.
    held = DRORegressor(ambiguity, loss=error, alpha=0.5, fit_intercept=False, **E).fit(A, B)
    assert held.status_ == "converged"
    # A loss that is negative by far, and still has a least value.
    low = DRORegressor(ambiguity, loss=lambda f, y: (f - y) ** 2 - 1e4, **E).fit(A, B)
    plain = DRORegressor(ambiguity, loss=lambda f, y: (f - y) ** 2, **E).fit(A, B)
    assert low.status_ == plain.status_ == "converged"
    np.testing.assert_allclose(low.coef_, plain.coef_, atol=5e-3)


# Decisions ---------------------------------------------------------------------------------------

RETURNS = np.random.default_rng(0).normal(0.001, 0.02, (8, 20))
Z = np.random.default_rng(1).normal(size=(50, 1))


def exponential(t, z):
    return torch.exp(-(t * z).sum(1))


@pytest.mark.parametrize("ambiguity", [Wasserstein(radius=0.1), Wasserstein(penalty=5.0)], ids=repr)
def test_a_decision_whose_worst_case_is_infinite(ambiguity):
    problem = MinimaxProblem(exponential, [1.0], Z, ambiguity, convex=True)
    with pytest.raises(UnboundedRiskError, match=r"first decision.*bounds="):
        problem.solve()
    with pytest.raises(UnboundedRiskError, match="every penalty"):
        problem.evaluate()


def test_the_only_decision_with_a_finite_worst_case_is_kept():
    found = MinimaxProblem(exponential, [0.0], Z, Wasserstein(0.1), convex=True).solve()
    assert found.params == 0.0
    assert found.objective == 1.0


def test_bounds_make_the_worst_case_of_a_decision_finite():
    ambiguity = Wasserstein(0.1, bounds=(-5.0, 5.0))
    problem = MinimaxProblem(exponential, [1.0], Z, ambiguity, convex=True, inner="pointwise")
    assert problem.solve().objective == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "ambiguity",
    [
        Wasserstein(0.001), Wasserstein(0.001, order=1), KL(0.1), CVaR(0.5), ChiSquare(0.1),
        TotalVariation(0.1), CressieRead(3, radius=0.1),
    ],
    ids=repr,
)  # fmt: skip
def test_short_positions_without_end(ambiguity):
    with pytest.warns(ConvergenceWarning, match=r"unbounded.*max_weight.*larger radius"):
        found = portfolio(RETURNS, ambiguity, tail=0.2, long_only=False).solve()
    assert found.status == "unbounded"
    way = found.direction["weights"]
    assert abs(way.sum()) < 1e-9 * np.abs(way).max()
    # The certificate: of a risk that is homogeneous, its value at the direction is the slope.
    problem = portfolio(RETURNS, ambiguity, tail=0.2, long_only=False)
    certificate, _ = problem.evaluate(found.direction)
    assert certificate.upper < 0.0
    for limits in ({"max_weight": 2.0}, {"long_only": True}):
        held = portfolio(RETURNS, ambiguity, tail=0.2, **{"long_only": False, **limits}).solve()
        assert held.status == "converged"


@pytest.mark.parametrize("kind", ["w2", "w1", "cvar"])
def test_unbounded_exactly_where_the_slope_of_some_direction_is_negative(kind, seed):
    rng = np.random.default_rng([seed, ord(kind[-1])])
    met = set()
    for _ in range(4):
        n, d, tail = rng.integers(4, 25), rng.integers(2, 8), rng.choice([0.2, 0.5, 1.0])
        unit = 10.0 ** rng.integers(-4, 3)
        z = rng.normal(0.05, 1.0, (n, d))
        radius, alpha = 10.0 ** rng.uniform(-2.0, 0.3), rng.uniform(0.1, 1.0)
        way, level = cp.Variable(d), cp.Variable()
        share = tail * (alpha if kind == "cvar" else 1.0)
        slope = level + cp.sum(cp.pos(-z @ way - level)) / (n * share)
        if kind != "cvar":
            slope += radius * tail ** (-0.5 if kind == "w2" else -1.0) * cp.norm(way)
        least = cp.Problem(cp.Minimize(slope), [cp.sum(way) == 0, cp.norm(way) <= 1])
        least.solve(solver="CLARABEL")
        if abs(least.value) < 1e-5 and least.value < -1e-8:
            continue  # too near to the edge for the solver of the oracle
        ambiguity = {
            "w2": Wasserstein(unit * radius),
            "w1": Wasserstein(unit * radius, order=1),
            "cvar": CVaR(alpha),
        }[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = portfolio(unit * z, ambiguity, tail=tail, long_only=False).solve()
        assert found.status == ("unbounded" if least.value < -1e-5 else "converged")
        met.add(found.status)
    assert met


@pytest.mark.parametrize("convex", [True, None])
@pytest.mark.parametrize("ambiguity", [KL(0.1), Wasserstein(0.05), TotalVariation(0.05)], ids=repr)
def test_any_loss_of_a_decision_without_a_minimum(ambiguity, convex):
    z = np.random.default_rng(1).normal(0.6, 1.0, (40, 2))
    settings = {"convex": convex, "inner": "pointwise"}
    with pytest.warns(ConvergenceWarning, match="unbounded"):
        found = MinimaxProblem(lambda t, z: -z @ t, np.zeros(2), z, ambiguity, **settings).solve()
    assert found.status == "unbounded"
    assert np.linalg.norm(found.direction) == pytest.approx(1.0)
    certificate, _ = MinimaxProblem(
        lambda t, z: -z @ t, found.direction, z, ambiguity, inner="pointwise"
    ).evaluate()
    assert certificate.lower < 0.0


@pytest.mark.parametrize(
    "loss",
    [
        lambda t, z: (t[0] - z[:, 0]) ** 2 - t[1],
        lambda t, z: (t[0] + t[1] - z[:, 0]) ** 2 - (t[0] - t[1]),
        lambda t, z: (t[0] - z[:, 0]).abs() - t[1],
    ],
    ids=["one variable", "rotated", "kink"],
)
def test_a_fall_beside_variables_that_have_a_minimum(loss):
    problem = MinimaxProblem(loss, np.zeros(2), Z, KL(0.1), convex=True)
    with pytest.warns(ConvergenceWarning, match="unbounded"):
        found = problem.solve()
    assert found.status == "unbounded"
    far = [problem.evaluate(share * found.direction)[0].upper for share in (1e6, 1e9, 1e12)]
    assert 0.0 > 2.0 * far[0] > far[1] > 0.5 * far[2]


@pytest.mark.parametrize("convex", [True, None])
@pytest.mark.parametrize(
    ("loss", "constraint", "best"),
    [
        (lambda t, z: 1e-14 * t * t - t + 0 * z[:, 0], None, -2.5e13),  # far away, but there
        (lambda t, z: 1e-6 * t * t - t + 0 * z[:, 0], None, -2.5e5),
        (lambda t, z: (t - 1e9).abs() + 0 * z[:, 0], None, 0.0),
        (lambda t, z: -t + 0 * z[:, 0], Box(None, 1e8), -1e8),
        (lambda t, z: -t + 0 * z[:, 0], Ball(1e7), -1e7),
        (lambda t, z: -t + 0 * z[:, 0], lambda t: t.clamp(max=1e6), -1e6),
    ],
)
def test_a_minimum_far_away_is_no_endless_fall(loss, constraint, best, convex):
    problem = MinimaxProblem(loss, 0.0, Z, KL(0.1), constraint=constraint, convex=convex)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = problem.solve()
    assert found.status != "unbounded"
    assert found.objective == pytest.approx(best, rel=1e-4, abs=1.0)


def test_a_newsvendor_without_holding_costs_is_not_unbounded():
    found = newsvendor(np.arange(1.0, 30.0), Wasserstein(1.0), holding=1e-9, shortage=1.0).solve()
    assert found.status == "converged"


# Audits ------------------------------------------------------------------------------------------

LINE = LinearRegression().fit(A, B)


def assert_infinite(report, row=-1):
    table = report.table
    assert table.upper_bound.iloc[row] == table.worst_case_risk.iloc[row] == math.inf
    assert table.proof.iloc[row] == "local-estimate"
    assert table.finding.iloc[row].startswith("infinite worst case")
    assert "infinite worst case" in " ".join(report.findings)
    assert "inf" in str(report)


@pytest.mark.parametrize("loss", [poisson, cubic], ids=["poisson", "cubic"])
@pytest.mark.parametrize(
    ("ambiguity", "radii"),
    [
        (Wasserstein(), [0.0, 0.1]),
        (Wasserstein(penalty=5.0), None),
        (Sinkhorn(0.1), [0.1]),
    ],
    ids=repr,
)
def test_audits_find_infinite_worst_cases(loss, ambiguity, radii, tmp_path):
    report = audit(LINE, A, B, ambiguity, radii=radii, loss=loss, random_state=0)
    assert_infinite(report)
    if radii is not None and radii[0] == 0.0:
        first = report.table.iloc[0]
        assert first.worst_case_risk == first.upper_bound == first.nominal_risk
    page = report.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "there is no end to what it can become" in page
    assert "infinite worst case" in page


def test_audits_of_models_that_outgrow_the_cost_themselves():
    powers = make_pipeline(PolynomialFeatures(2), Ridge()).fit(A, B)
    assert_infinite(audit(powers, A, B, Wasserstein(), radii=[0.1], random_state=0))
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    with torch.no_grad():
        network[2].weight.fill_(1.0)  # of the other sign the loss is flat where outputs have no end
    report = audit(network, A, B, Wasserstein(), radii=[0.1], loss=poisson, random_state=0)
    assert_infinite(report)
    assert not report.table.worst_case_risk.isna().any()


def test_audits_at_a_penalty_below_the_growth():
    grown = LINE.coef_ @ LINE.coef_
    assert_infinite(audit(LINE, A, B, Wasserstein(penalty=0.99 * grown), random_state=0))
    finite = audit(LINE, A, B, Wasserstein(penalty=1.01 * grown), random_state=0)
    assert finite.table.proof[0] == "ridge-1d"
    assert not finite.findings


def test_audits_with_bounds_are_finite():
    ambiguity = Wasserstein(bounds=(-10.0, 10.0))
    table = audit(LINE, A, B, ambiguity, radii=[0.1], loss=poisson, random_state=0).table
    assert table.nominal_risk[0] < table.worst_case_risk[0] < 2.0
    assert "infinite" not in table.finding[0]


def test_audits_of_sets_that_reweight_are_finite():
    table = audit(LINE, A, B, KL(), radii=[0.1], loss=cubic, random_state=0).table
    assert table.proof[0] == "dual"
    assert table.nominal_risk[0] < table.worst_case_risk[0] == table.upper_bound[0] < 1.0


# Proofs' words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [RandomForestClassifier(20, random_state=0), HistGradientBoostingClassifier(max_iter=5)],
)
def test_the_largest_loss_is_no_headline(model, tmp_path):
    fitted = model.fit(A, LABELS)
    report = audit(
        fitted, A, LABELS, Wasserstein(), radii=[0.0, 0.1], random_state=0, max_evaluations=3000
    )
    assert report.table.proof.tolist() == ["dual", "largest-loss"]
    assert "no upper bound" in report.table.finding[1]
    page = report.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    lead = page.split('class="lead"')[1].split("</p>")[0]
    assert "how much worse it can get is not known" in lead
    assert "13.8" not in lead
    assert "upper bound" not in page.split('<div class="charts">')[1].split('id="table"')[0].lower()
    legend = report.plot().ax_.get_legend()
    assert "upper" not in " ".join(text.get_text() for text in legend.get_texts())


def test_reweighting_of_the_same_model_keeps_its_exact_dual():
    forest = RandomForestClassifier(20, random_state=0).fit(A, LABELS)
    table = audit(forest, A, LABELS, KL(), radii=[0.1], random_state=0).table
    assert table.proof[0] == "dual"
    linear = LogisticRegression().fit(A, LABELS)
    table = audit(linear, A, LABELS, Wasserstein(), radii=[0.1], random_state=0).table
    assert table.proof[0] == "ridge-1d"


@pytest.mark.parametrize("convex", [None, True])
@pytest.mark.parametrize("ambiguity", [KL(radius=0.1), CVaR(0.5)], ids=repr)
def test_a_logarithm_falls_for_ever(convex, ambiguity):
    """-log(t z) has no minimum: by the same amount with each digit of t."""
    z = np.random.default_rng(0).uniform(0.1, 1.0, size=(50, 1))
    problem = MinimaxProblem(lambda t, z: -torch.log(t * z[:, 0]), 1.0, z, ambiguity, convex=convex)
    with pytest.warns(ConvergenceWarning, match="no minimum"):
        found = problem.solve(random_state=0)
    assert (found.status, float(found.direction)) == ("unbounded", 1.0)


@pytest.mark.parametrize("loss", [lambda s: 1.0 / s, lambda s: 1.0 / torch.log(2.0 + s)])
def test_what_only_levels_out_is_not_called_unbounded(loss):
    z = np.random.default_rng(0).uniform(0.1, 1.0, size=(50, 1))
    problem = MinimaxProblem(
        lambda t, z: loss((t * z).sum(1)), [1.0], z, KL(radius=0.1), convex=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert problem.solve(random_state=0).status != "unbounded"
