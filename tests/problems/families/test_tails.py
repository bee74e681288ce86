"""Infinite exponential moments are found, or at least not taken for proofs."""

import pickle
import warnings

import numpy as np
import pytest

from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation
from drojko.exceptions import ConvergenceWarning, UnboundedRiskError
from drojko.measures import KDE, Gaussian, GaussianMixture
from drojko.problems import MinimaxProblem, least_squares, newsvendor


def distance(t, z):
    return ((z - t) ** 2).sum(1)


@pytest.fixture
def standard():
    return Gaussian([0.0, 0.0], np.eye(2))


def test_the_smallest_finite_penalty_is_named(standard):
    # (a x - b)^2 with a, b standard normal: 2 (1 + x^2), at x = 0.7.
    for penalty, finite in ((2.9, False), (2.97, False), (2.99, True), (9.0, True)):
        problem = least_squares(standard, None, KL(penalty=penalty), start=[0.7])
        if not finite:
            with pytest.raises(UnboundedRiskError, match=r"penalty above 2\.98"):
                problem.evaluate(random_state=0)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # just above draws say little
            assert problem.evaluate(random_state=0)[0].upper > 1.49
    with pytest.raises(UnboundedRiskError, match="penalty above 2"):
        least_squares(standard, None, KL(penalty=0.5)).solve(random_state=0)


def test_far_above_it_the_value_is_the_formula(standard):
    # -penalty/2 log(1 - 2 s / penalty) of s times a chi-square variable.
    certificate = least_squares(standard, None, KL(penalty=20.0), start=[1.0]).evaluate(
        random_state=0
    )[0]
    assert certificate.proof == "dual"
    expected = -10.0 * np.log(1 - 4.0 / 20.0)
    assert certificate.upper == pytest.approx(expected, abs=5 * certificate.standard_error)


@pytest.mark.parametrize("measure", [GaussianMixture(2, random_state=0), KDE(0.5)], ids=repr)
def test_mixtures_are_as_bad_as_their_widest_part(rng, measure):
    z = rng.normal(size=(60, 2))
    reference = measure.fit(z)
    covariances = getattr(reference, "covariances_", None)
    if covariances is None:
        covariances = [np.diag(reference.bandwidth_**2)]
    u = np.array([1.0, -1.0])
    least = max(2.0 * u @ np.asarray(s) @ u for s in covariances)
    problem = least_squares(reference, None, KL(penalty=0.99 * least), start=[1.0])
    with pytest.raises(UnboundedRiskError, match=f"above {least:.6g}"):
        problem.evaluate()


def test_estimates_that_rest_on_few_draws_prove_nothing(standard):
    problem = MinimaxProblem(distance, np.zeros(2), standard, KL(penalty=0.5))
    with pytest.warns(ConvergenceWarning, match="draws"):
        certificate = problem.solve(random_state=0).certificate
    assert certificate.proof == "local-estimate"
    assert "ESTIMATE" in str(certificate)
    calm = MinimaxProblem(distance, np.zeros(2), standard, KL(penalty=8.0)).solve(random_state=0)
    assert calm.certificate.proof == "dual"


@pytest.mark.parametrize(
    ("ambiguity", "proof"),
    [(ChiSquare(0.2), "dual"), (CVaR(0.2), "dual"), (TotalVariation(0.1), "local-estimate")],
    ids=repr,
)
def test_what_other_sets_prove_on_draws(ambiguity, proof):
    problem = newsvendor(Gaussian([50.0], [[25.0]]), ambiguity)
    assert problem.evaluate(random_state=0)[0].proof == proof


def test_atoms_are_all_there_is(rng):
    z = rng.normal(size=(5, 2))  # few, but exact
    solution = MinimaxProblem(distance, np.zeros(2), z, KL(penalty=0.01), convex=True).solve()
    assert solution.certificate.proof == "dual"


@pytest.mark.promise(1)
@pytest.mark.parametrize("ambiguity", [TotalVariation(0.1), CressieRead(0.5, 0.05), KL(0.1)])
def test_the_attained_risk_is_that_of_fresh_draws(ambiguity):
    """Of a continuous reference no draw is the largest: mass there is nothing that it can give."""
    demand = Gaussian([10.0], [[4.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = newsvendor(demand, ambiguity, shortage=3.0).solve(random_state=0)
    worst, certificate = solution.worst_case, solution.certificate
    z = np.asarray(worst.sample(50_000, random_state=1)).ravel()
    q = float(solution.params)
    losses = np.maximum(q - z, 3.0 * (z - q))
    # The certificate's own draws are a few thousand.
    assert worst.risk() == pytest.approx(losses.mean(), abs=5 * losses.std() / np.sqrt(2000))
    assert certificate.lower == pytest.approx(worst.risk())
    assert certificate.lower <= certificate.upper


def test_solutions_of_reweighting_sets_are_pickled():
    demand = np.random.default_rng(0).gamma(4.0, 25.0, size=50)
    solution = newsvendor(demand, KL(0.1)).solve()
    copy = pickle.loads(pickle.dumps(solution))
    np.testing.assert_array_equal(
        copy.worst_case.sample(5, random_state=0), solution.worst_case.sample(5, random_state=0)
    )
