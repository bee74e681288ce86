"""The newsvendor against conic programs, closed forms, and what must not change it."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation, Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures import Gaussian
from drojko.problems import newsvendor
from tests.problems._oracles import newsvendor_optimum

SETS = [
    Wasserstein(radius=5.0), Wasserstein(penalty=0.2), KL(radius=0.1), ChiSquare(radius=0.2),
    CVaR(alpha=0.3), TotalVariation(radius=0.1),
]  # fmt: skip


@pytest.fixture
def demand(rng):
    return rng.gamma(4.0, 10.0, size=120)


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_optimum_is_that_of_a_conic_program(demand, ambiguity):
    solution = newsvendor(demand, ambiguity, holding=1.0, shortage=3.0).solve()
    optimum = newsvendor_optimum(demand, ambiguity, 1.0, 3.0)
    # Clarabel's own error is about 1e-8 of the value; tol of the solver is 1e-5.
    assert solution.objective == pytest.approx(optimum, rel=2e-5)
    assert solution.lower_bound <= optimum * (1 + 1e-6)
    assert solution.certificate.proof == "dual"
    assert solution.certificate.lower == pytest.approx(solution.certificate.upper, rel=1e-6)
    assert solution.status == "converged"


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_worst_case_attains_the_objective(demand, ambiguity):
    problem = newsvendor(demand, ambiguity, holding=1.0, shortage=3.0)
    solution = problem.solve()
    worst, certificate = solution.worst_case, solution.certificate
    z = worst.sample(20000, random_state=0)[:, 0]
    loss = np.maximum(solution.params - z, 3.0 * (z - solution.params))
    error = loss.std() / np.sqrt(len(z))
    assert abs(loss.mean() - certificate.worst_case_risk) < 5 * error
    assert worst.risk() == pytest.approx(certificate.worst_case_risk)


@pytest.mark.parametrize("form", [{"radius": 6.0}, {"penalty": 0.15}])
def test_gaussian_demand_against_its_closed_form(form):
    # Order 2, METHOD 4.6: V = E max(h(q-x) + h^2/4l, b(x-q) + b^2/4l) + l r^2. The two pieces
    # meet at c = q + (h - b)/4l: h(q - x) + h^2/4l = h(c - x) + k with k = h b / 4l, alike for b.
    m, s, h, b = 40.0, 15.0, 1.0, 3.0

    def value(c, lam):
        u = (c - m) / s
        plain = h * s * (u * norm.cdf(u) + norm.pdf(u)) + b * s * (norm.pdf(u) - u * norm.sf(u))
        return plain + h * b / (4 * lam) + (lam * form["radius"] ** 2 if "radius" in form else 0.0)

    c = m + s * norm.ppf(b / (b + h))
    lam = form.get("penalty", np.sqrt(h * b) / (2 * form.get("radius", 1.0)))
    optimum = value(c, lam)
    problem = newsvendor(Gaussian([m], [[s * s]]), Wasserstein(**form), holding=h, shortage=b)
    solution = problem.solve(random_state=0)
    q = c - (h - b) / (4 * lam)
    # 20 000 antithetic draws: a quantile's error is about 1 % of the standard deviation.
    assert solution.params == pytest.approx(q, abs=0.05 * s)
    assert value(solution.params + (h - b) / (4 * lam), lam) <= optimum * (1 + 1e-3)
    error = solution.certificate.standard_error
    assert 0 < error < 0.01 * optimum
    assert abs(solution.objective - optimum) < 5 * error + 1e-3 * optimum


def test_several_products_share_the_radius(rng):
    z = rng.gamma(4.0, 5.0, size=(60, 3))
    h, b = np.array([1.0, 2.0, 1.0]), np.array([3.0, 3.0, 1.5])
    solution = newsvendor(z, Wasserstein(penalty=0.4), holding=h, shortage=b).solve(tol=1e-6)
    # At a penalty products decouple.
    single = [
        newsvendor(z[:, j], Wasserstein(penalty=0.4), holding=h[j], shortage=b[j]).solve(tol=1e-6)
        for j in range(3)
    ]
    assert solution.objective == pytest.approx(sum(s.objective for s in single), rel=1e-5)
    ball = newsvendor(z, Wasserstein(radius=2.0), holding=h, shortage=b).solve()
    spent = ball.worst_case.displacement()["rms"].pow(2).sum()
    assert spent == pytest.approx(4.0, rel=1e-6)


def test_bounds_keep_the_worst_case_inside(demand):
    bounded = Wasserstein(radius=30.0, bounds=(0.0, demand.max()))
    solution = newsvendor(demand, bounded, shortage=3.0).solve()
    free = newsvendor(demand, Wasserstein(radius=30.0), shortage=3.0).solve()
    z = solution.worst_case.sample(2000, random_state=0)
    assert z.min() >= -1e-9  # rounding
    assert z.max() <= demand.max() + 1e-9
    assert solution.objective < 0.99 * free.objective
    assert solution.certificate.proof == "dual"
    assert solution.certificate.relative_gap < 1e-6


def test_radius_zero_is_the_quantile(demand):
    solution = newsvendor(demand, Wasserstein(radius=0.0), holding=1.0, shortage=3.0).solve(
        tol=1e-8
    )
    quantile = np.quantile(demand, 0.75, method="inverted_cdf")
    best = np.mean(np.maximum(quantile - demand, 3 * (demand - quantile)))
    assert solution.objective == pytest.approx(best, rel=1e-7)


def test_robust_cost_rises_with_the_radius_and_is_concave(demand):
    radii = np.array([0.0, 2.0, 4.0, 6.0])
    values = [newsvendor(demand, Wasserstein(radius=r), shortage=3.0).solve().objective
              for r in radii]  # fmt: skip
    assert np.all(np.diff(values) > 0)
    concave = np.interp(0.5 * radii[1:-1] ** 2, radii**2, values)
    middle = [newsvendor(demand, Wasserstein(radius=np.sqrt(0.5) * r), shortage=3.0).solve()
              .objective for r in radii[1:-1]]  # fmt: skip
    assert np.all(middle >= concave * (1 - 1e-5))


def test_kinds_of_input_agree(demand):
    expected = newsvendor(demand, KL(radius=0.1)).solve()
    series = pd.Series(demand, name="units")
    kinds = [list(demand), series, torch.tensor(demand), demand.reshape(-1, 1), series.to_frame()]
    for data in kinds:
        assert newsvendor(data, KL(radius=0.1)).solve().params == expected.params
    named = newsvendor(series, Wasserstein(radius=1.0, bounds={"units": (0, None)}))
    assert named.solve().worst_case.names == ("units",)


def test_limits_of_the_stock(demand):
    solution = newsvendor(demand, CVaR(alpha=0.5), shortage=9.0, upper=30.0).solve()
    assert solution.params == pytest.approx(30.0)
    free = newsvendor(demand, CVaR(alpha=0.5), shortage=9.0).solve()
    assert free.params > 30.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"holding": 0.0}, "holding"),
        ({"shortage": [1.0, 2.0]}, "one per column"),
        ({"lower": 3.0, "upper": 2.0}, "lower exceeds upper"),
    ],
)
def test_mistakes_name_the_setting(demand, arguments, message):
    with pytest.raises(InvalidDataError, match=message):
        newsvendor(demand, KL(radius=0.1), **arguments)


def test_bad_demand(demand):
    with pytest.raises(InvalidDataError, match="NaN"):
        newsvendor([1.0, np.nan], KL(radius=0.1))
    with pytest.raises(InvalidDataError, match="not fitted"):
        newsvendor(Gaussian(), KL(radius=0.1)).solve()
    with pytest.raises(UnsupportedError, match=r"reference|moves none"):
        newsvendor(demand, KL(radius=0.1)).solve().worst_case.transport([[1.0]])


def test_cressie_read_lies_between_mean_and_maximum(demand):
    solution = newsvendor(demand, CressieRead(k=3.0, radius=0.1), shortage=3.0).solve()
    certificate = solution.certificate
    loss = np.maximum(solution.params - demand, 3 * (demand - solution.params))
    assert certificate.nominal_risk == pytest.approx(loss.mean())
    assert loss.mean() < solution.objective < loss.max()


def constant_demand(c, h, b, ambiguity):
    """Order, optimum where all demands are c: METHOD 4.6 at one point, q not below zero."""
    if not isinstance(ambiguity, Wasserstein):
        return c, 0.0
    if ambiguity.order == 1:
        return c, ambiguity.radius * max(h, b)
    r = ambiguity.radius
    q = c + (b - h) * r / (2 * np.sqrt(h * b))
    if q >= 0:
        return q, r * np.sqrt(h * b)

    def dual(log):
        lam = np.exp(log)
        return lam * r**2 + max(-h * c + h**2 / (4 * lam), b * c + b**2 / (4 * lam))

    return 0.0, minimize_scalar(dual, bounds=(-30, 30), method="bounded").fun


@pytest.mark.parametrize(
    "ambiguity",
    [
        Wasserstein(radius=1.0), Wasserstein(radius=1.0, order=1), KL(radius=0.3), KL(penalty=2.0),
        ChiSquare(radius=0.3), CressieRead(k=3.0, radius=0.3), TotalVariation(radius=0.3),
        CVaR(alpha=0.5),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize(("h", "b"), [(1.0, 9.0), (9.0, 1.0)])
def test_constant_demand(seed, ambiguity, h, b):
    # The mean of n equal numbers is one ulp off the kink for some n, and on it for others.
    rng = np.random.default_rng(seed)
    for c in (0.0, 1e-3, 0.1, 1.0, 3.7, 5.0, 1e3, 1e6):
        for n in rng.integers(1, 61, size=3):
            solution = newsvendor(np.full(n, c), ambiguity, holding=h, shortage=b).solve()
            q, optimum = constant_demand(c, h, b, ambiguity)
            rounding = 1e-14 * max(h, b) * (c or 1.0)
            assert solution.status == "converged"
            assert solution.relative_gap <= 1e-5
            assert solution.objective == pytest.approx(optimum, rel=1.1e-5, abs=rounding)
            assert solution.lower_bound <= optimum + rounding
            assert solution.params == pytest.approx(q, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("ambiguity", [KL(radius=0.1), CVaR(alpha=0.5), Wasserstein(radius=0.5)],
                         ids=repr)  # fmt: skip
@pytest.mark.parametrize("levels", [2, 5])
def test_ties(rng, ambiguity, levels):
    demand = rng.integers(0, levels, size=40).astype(float)
    for h, b in ((1.0, 1.0), (1.0, 30.0)):
        solution = newsvendor(demand, ambiguity, holding=h, shortage=b).solve()
        optimum = newsvendor_optimum(demand, ambiguity, h, b)
        assert solution.status == "converged"
        assert solution.objective == pytest.approx(optimum, rel=1.1e-5, abs=1e-7)
        assert solution.lower_bound <= optimum + 1e-7 * (1.0 + optimum)
