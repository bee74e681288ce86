"""The joint Newton's method on problems of the tests' own, and what a linear fit says of itself."""

import math
import time

import numpy as np
import pytest

from drojko._driver import Limits, Status
from drojko.losses.smoothing import Kink, conjugate_bound
from drojko.minimax.newton import Newton, Start, Terms, fit, relative_gap, solve_symmetric
from drojko.rows import Rows


class LeastSquares:
    """sum w (u - y)^2 / 2 + |z|^2 / 2: smooth, no extra variables, a bound by strong convexity."""

    positive = ()
    first_smoothing, cooling, unit = 1e-6, 0.3, 1.0

    def __init__(self, X, y, proof=True):
        self.rows, self.proof = Rows(X, y), proof

    def start(self):
        return np.zeros(self.rows.size), np.zeros(0)

    def terms(self, z, p, u, mu, duals, second=True):
        r, w = u - self.rows.y, self.rows.w
        value = 0.5 * float(w @ r**2) + 0.5 * float(z @ z)
        return Terms(value, w * r, w, z, np.eye(len(z)))

    def tidy(self, z, u, p, mu):
        return p

    def restart(self, z, u, p, mu):
        return p

    def unbounded(self, state):
        return None

    def bias(self, state):
        return 0.0

    def lower(self, state, need):
        gradient = self.rows.sum(state.terms.gu) + state.z
        return state.terms.value - 0.5 * float(gradient @ gradient) if self.proof else -math.inf

    def record(self, state, exact=False):
        r = state.u - self.rows.y
        value = 0.5 * float(self.rows.w @ r**2) + 0.5 * float(state.z @ state.z)
        return {"robust_risk": value, "penalty": 0.0, "transport_cost": 0.0}


@pytest.fixture
def least_squares(rng=None):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3)) * [1.0, 10.0, 0.1] + 2.0
    return X, X @ [1.0, -0.2, 3.0] + rng.normal(size=30)


def test_a_problem_of_ones_own(least_squares):
    X, y = least_squares
    found = fit(LeastSquares(X, y), Limits(tol=1e-9))
    rows = Rows(X, y)
    B = rows.block(slice(None))
    z = np.linalg.solve(B.T @ B / 30 + np.eye(4), B.T @ y / 30)
    coef, intercept = rows.outward(z)
    assert found.status == "converged"
    assert found.coef == pytest.approx(coef, rel=1e-9)
    assert found.intercept == pytest.approx(intercept, rel=1e-9)
    assert 0 <= found.gap <= 1e-9 * found.objective
    assert found.relative_gap <= 1e-9
    assert len(found.history["robust_risk"]) == found.n_iter


def test_without_a_proof_nothing_is_called_converged(least_squares):
    found = fit(LeastSquares(*least_squares, proof=False), Limits(max_iter=50))
    assert found.status in ("stalled", "max_iter")
    assert math.isnan(found.relative_gap)
    assert Status(found.status).advice in found.message


def test_limits_end_a_fit(least_squares):
    objective = LeastSquares(*least_squares, proof=False)
    assert fit(objective, Limits(max_iter=3)).n_iter == 3
    seen = []

    def callback(iteration, record):
        seen.append((iteration, record["robust_risk"]))
        return iteration == 2

    assert fit(objective, Limits(callback=callback)).status == "callback"
    assert [row[0] for row in seen] == [1, 2]
    spent = Limits(max_time=0.0)
    assert fit(objective, spent).status == "max_time"


def test_one_clock_for_all_solvers_of_a_fit():
    limits = Limits(max_time=10.0)
    time.sleep(0.02)
    assert limits.time_left <= 9.98
    assert Limits().time_left is None


def test_a_given_start_is_used(least_squares):
    X, y = least_squares
    best = fit(LeastSquares(X, y), Limits(tol=1e-12))
    objective = LeastSquares(X, y)
    z = objective.rows.inward(best.coef, best.intercept)
    state = Newton(objective, 1e-6).init(Start(z))
    assert state.upper == pytest.approx(best.objective, rel=1e-12)


def test_gaps_are_relative_to_the_objective():
    assert relative_gap(2.0, 1.0, 1.0) == 0.5
    assert relative_gap(1.0, 1.0 + 1e-12, 1.0) == 0.0
    assert relative_gap(-2.0, -3.0, 1.0) == 0.5
    assert math.isnan(relative_gap(1.0, -math.inf, 1.0))
    assert relative_gap(1e-13, 0.0, 1.0) == 1e-13  # zero to rounding: relative to the unit


def test_singular_systems_are_solved_as_far_as_they_can_be():
    A = np.array([[1.0, 1.0], [1.0, 1.0]]) * 1e6
    x = solve_symmetric(A, np.array([2e6, 2e6]))
    assert A @ x == pytest.approx([2e6, 2e6], rel=1e-6)


@pytest.mark.parametrize("mu", [1e-8, 1e-3, 1.0])
def test_smoothed_kinks(mu):
    x = np.concatenate([[-1e9, 1e9, 0.0], np.random.default_rng(0).normal(size=50)])
    kink = Kink(x, mu)
    over = kink.value - np.maximum(x, 0.0)
    assert (over >= 0).all()
    assert (over <= mu).all()
    step = 1e-4 * mu
    inner = x[2:]
    ahead, behind = Kink(inner + step, mu), Kink(inner - step, mu)
    slope, second = Kink(inner, mu).slope, Kink(inner, mu).second
    assert (ahead.value - behind.value) / (2 * step) == pytest.approx(slope, abs=1e-3)
    assert (ahead.slope - behind.slope) / (2 * step) == pytest.approx(second, rel=1e-3, abs=1e-9)
    assert (np.abs(kink.moved(Kink(x + 1.0, mu), 1.0)) <= 1.0).all()


def test_lower_bounds_of_infima_by_tangents():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40) * 10, rng.uniform(0.1, 5.0, 40)

    def line(f):
        r = f - a
        return b * r**4 + r**2, 4 * b * r**3 + 2 * r, 12 * b * r**2 + 2

    found = conjugate_bound(line, rng.normal(size=40) * 100)
    assert (found <= 0).all()
    assert found == pytest.approx(np.zeros(40), abs=1e-6)
    # Without a minimum there is no bound.
    straight = conjugate_bound(lambda f: (f, np.ones_like(f), np.zeros_like(f)), np.zeros(2))
    assert (straight == -np.inf).all()
