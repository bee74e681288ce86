"""Robust linear equations: square-root regularisation, penalties, fixed right-hand sides."""

import numpy as np
import pandas as pd
import pytest

from drojko.ambiguity import KL, Wasserstein
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.measures import Gaussian
from drojko.problems import least_squares
from tests.problems._oracles import least_squares_optimum


@pytest.fixture
def equations(rng):
    A = rng.normal(size=(40, 4))
    return A, A @ np.array([1.0, -1.0, 2.0, 0.5]) + 0.5 * rng.normal(size=40)


@pytest.mark.parametrize("radius", [0.05, 0.3, 1.0])
def test_ball_is_square_root_regularisation(equations, radius):
    solution = least_squares(*equations, Wasserstein(radius=radius)).solve()
    optimum = least_squares_optimum(*equations, radius)
    assert solution.objective == pytest.approx(optimum, rel=2e-5)
    assert solution.certificate.proof == "dual"
    assert solution.certificate.relative_gap < 1e-7


def test_penalised_form(equations):
    # METHOD 4.2 with u = (x, -1): V = lambda R / (lambda - |u|^2).
    A, b = equations
    x, penalty = np.array([0.5, -0.5, 1.0, 0.0]), 10.0
    certificate, worst = least_squares(A, b, Wasserstein(penalty=penalty)).evaluate(x)
    square = x @ x + 1.0
    expected = penalty * np.mean((A @ x - b) ** 2) / (penalty - square)
    assert certificate.upper == pytest.approx(expected, rel=1e-12)
    assert certificate.lower == pytest.approx(expected, rel=1e-12)
    rows = np.column_stack([A, b])
    u = np.append(x, -1.0)
    moved = rows + np.outer(rows @ u, u) / (penalty - square)
    np.testing.assert_allclose(worst.transport(rows), moved, rtol=1e-9)


def test_below_the_threshold_the_message_names_it(equations):
    problem = least_squares(*equations, Wasserstein(penalty=0.5))
    with pytest.raises(UnboundedRiskError, match="above 1"):  # |(0, -1)|^2
        problem.evaluate(np.zeros(4))
    with pytest.raises(UnboundedRiskError, match="first decision"):
        problem.solve()


def test_fixed_right_hand_side(equations):
    A, b = equations
    frame = pd.DataFrame(A, columns=list("pqrs"))
    named = least_squares(frame, pd.Series(b, name="y"), Wasserstein(radius=0.3, immutable=["y"]))
    by_index = least_squares(A, b, Wasserstein(radius=0.3, immutable=[4]))
    found = named.solve()
    np.testing.assert_allclose(found.params, by_index.solve().params, atol=1e-9)
    x = found.params
    risk = (np.sqrt(np.mean((A @ x - b) ** 2)) + 0.3 * np.linalg.norm(x)) ** 2
    assert found.objective == pytest.approx(risk, rel=1e-9)


def test_systems_as_samples(rng):
    # One system as the only sample: sup over |Delta|_F <= r of |(A + Delta)x - b - delta|^2 is
    # (|Ax - b| + r |(x, -1)|)^2.
    A, b = rng.normal(size=(1, 5, 3)), rng.normal(size=(1, 5))
    x = np.array([0.3, -0.2, 0.1])
    certificate, _ = least_squares(A, b, Wasserstein(radius=0.4)).evaluate(x)
    expected = (np.linalg.norm(A[0] @ x - b[0]) + 0.4 * np.linalg.norm([*x, 1.0])) ** 2
    assert certificate.upper == pytest.approx(expected, rel=1e-9)
    shared = least_squares(A, b[0], Wasserstein(radius=0.4)).evaluate(x)[0]
    assert shared.upper == certificate.upper


def test_gaussian_rows(rng):
    # E (u'z)^2 of a Gaussian is known: the ball gives (sqrt(E) + r |u|)^2.
    S = np.eye(3) + 0.3
    m = np.array([1.0, 0.0, 2.0])
    x, radius = np.array([0.5, 1.0]), 0.2
    problem = least_squares(Gaussian(m, S), None, Wasserstein(radius=radius))
    u = np.array([0.5, 1.0, -1.0])
    expected = (np.sqrt(u @ (S + np.outer(m, m)) @ u) + radius * np.linalg.norm(u)) ** 2
    certificate, worst = problem.evaluate(x, random_state=0)
    assert abs(certificate.upper - expected) < 5 * certificate.standard_error
    z = worst.sample(4000, random_state=1)
    assert np.isfinite(worst.log_prob(z[:10])).all()


def test_reweighting_and_constraints(equations):
    solution = least_squares(*equations, KL(radius=0.1), constraint="nonnegative").solve()
    assert solution.params.min() >= 0
    assert solution.objective > solution.certificate.nominal_risk


@pytest.mark.parametrize(("a", "b"), [((3, 2), (2,)), ((2, 3, 2), (3, 3)), ((4,), (4,))])
def test_shapes_must_belong_together(a, b):
    with pytest.raises(InvalidDataError, match="expected"):
        least_squares(np.ones(a), np.ones(b), KL(radius=0.1))
