"""Any torch loss: known optima, containers, constraints, limits, and what is refused."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from drojko.ambiguity import KL, ChiSquare, CVaR, TotalVariation, Wasserstein
from drojko.exceptions import (
    ConvergenceWarning,
    InvalidDataError,
    UnboundedRiskError,
    UnsupportedError,
)
from drojko.measures import Gaussian
from drojko.problems import Ball, MinimaxProblem, Quadratic, Simplex


def tilt(t, z):
    """Half |t|^2 - t'z: the worst case at penalty l is decided by t = m / (1 + 1/(2l))."""
    return 0.5 * t @ t - z @ t


def known(t):
    d = len(t)
    return torch.zeros(d, d, dtype=t.dtype), -t, 0.5 * t @ t


@pytest.fixture
def z(rng):
    return rng.normal(size=(80, 3)) + np.array([1.0, 2.0, 0.0])


@pytest.mark.parametrize("loss", [tilt, Quadratic(known)], ids=["dark", "known"])
@pytest.mark.parametrize("convex", [None, True])
def test_minimax_with_a_known_answer(z, loss, convex):
    m = z.mean(0)
    for penalty in (0.3, 2.0):
        problem = MinimaxProblem(
            loss, torch.zeros(3), z, Wasserstein(penalty=penalty), inner="pointwise", convex=convex
        )
        solution = problem.solve(tol=1e-7)
        best = m / (1 + 1 / (2 * penalty))
        assert solution.objective == pytest.approx(-0.5 * m @ best, rel=1e-6)
        np.testing.assert_allclose(solution.params, best, atol=2e-3 if convex else 1e-6)
        # In a ball: 1/2 |t|^2 - t'm + r |t|, so that t shrinks by r.
        ball = MinimaxProblem(
            loss, torch.zeros(3), z, Wasserstein(radius=0.5), inner="pointwise", convex=convex
        ).solve(tol=1e-7)
        assert ball.objective == pytest.approx(-0.5 * (np.linalg.norm(m) - 0.5) ** 2, rel=1e-6)


def test_continuous_reference_has_an_error(z):
    # Gaussian draws come in pairs around the mean: here even the draws' answer is exact.
    reference = Gaussian([1.0, 2.0], [[1.0, 0.2], [0.2, 1.0]])
    problem = MinimaxProblem(Quadratic(known), np.zeros(2), reference, Wasserstein(penalty=2.0))
    solution = problem.solve(random_state=0)
    np.testing.assert_allclose(solution.params, [0.8, 1.6], rtol=1e-5)
    assert solution.certificate.standard_error > 0
    again = problem.solve(random_state=0)
    assert np.array_equal(solution.params, again.params)


def test_containers_come_back_as_they_went_in(z):
    def loss(p, z):
        return 0.5 * (p["a"] @ p["a"] + (p["b"] - 1) ** 2) - z @ p["a"]

    params = {"a": np.zeros(3), "b": 0.0}
    solution = MinimaxProblem(loss, params, z, KL(radius=0.1)).solve(tol=1e-6)
    assert isinstance(solution.params["a"], np.ndarray)
    assert solution.params["b"] == pytest.approx(1.0, abs=1e-4)
    listed = MinimaxProblem(
        lambda p, z: loss({"a": p[0], "b": p[1]}, z),
        [torch.zeros(3), torch.tensor(0.0)], z, KL(radius=0.1),
    ).solve(tol=1e-6)  # fmt: skip
    assert listed.objective == pytest.approx(solution.objective, rel=1e-9)


@pytest.mark.parametrize("ambiguity", [KL(radius=0.2), ChiSquare(radius=0.3), CVaR(alpha=0.4),
                                       TotalVariation(radius=0.1)], ids=repr)  # fmt: skip
@pytest.mark.parametrize("constraint", ["simplex", Ball(0.5), ("box", 0.1, 0.4)], ids=repr)
def test_bundle_and_gradient_agree_with_a_fine_search(z, ambiguity, constraint):
    # Smooth in t, so both methods apply (kinks of CVaR and total variation left to the bundle).
    z = z[:, :2]
    bundle = MinimaxProblem(
        tilt, np.full(2, 0.5), z, ambiguity, constraint=constraint, convex=True
    ).solve()
    assert bundle.status == "converged"
    assert np.isfinite(bundle.optimality_gap)
    problem = MinimaxProblem(tilt, np.full(2, 0.5), z, ambiguity, constraint=constraint)
    if isinstance(ambiguity, KL | ChiSquare):
        gradient = problem.solve(tol=1e-6)
        assert gradient.objective == pytest.approx(bundle.objective, rel=1e-4)
    line = np.linspace(-0.6, 1.1, 35)
    points = torch.tensor(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2))
    inside = [t for t in points if torch.allclose(problem.region.project(t), t, atol=1e-12)]
    if constraint == "simplex":
        inside = [torch.tensor([s, 1 - s], dtype=torch.float64) for s in np.linspace(0, 1, 101)]
    values = [problem.evaluate(t.numpy())[0].upper for t in inside[:150]]
    assert bundle.objective <= min(values) * (1 + 1e-9) + 1e-5
    assert bundle.objective >= bundle.lower_bound


def test_functions_that_project_are_constraints(z):
    found = MinimaxProblem(
        tilt, np.zeros(3), z, KL(radius=0.1), convex=True,
        constraint=lambda t: t * (0.5 / t.norm().clamp_min(0.5)),
    ).solve(tol=1e-6)  # fmt: skip
    ball = MinimaxProblem(tilt, np.zeros(3), z, KL(radius=0.1), constraint=Ball(0.5), convex=True)
    assert found.objective == pytest.approx(ball.solve().objective, rel=1e-4)
    assert np.isinf(found.optimality_gap)


def test_a_loss_of_a_network_has_a_worst_case(z):
    # evaluate is for any loss: an upper estimate from search, attained from below.
    torch_net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    torch_net = torch_net.double()
    weights = [p.detach() for p in torch_net.parameters()]

    def loss(p, z):
        hidden = torch.tanh(z @ p[0].T + p[1])
        return (hidden @ p[2].T + p[3])[:, 0] ** 2

    problem = MinimaxProblem(loss, weights, z, Wasserstein(radius=0.5), inner="pointwise")
    certificate, worst = problem.evaluate(random_state=0)
    assert certificate.nominal_risk < certificate.lower <= certificate.upper
    assert certificate.proof == "local-estimate"
    assert certificate.transport_cost <= 0.25 * (1 + 1e-9)
    moved = worst.transport(z)
    assert float(loss(weights, torch.tensor(moved)).mean()) > certificate.nominal_risk


def test_limits_and_callbacks_stop_early(z):
    problem = MinimaxProblem(tilt, np.zeros(3), z, KL(radius=0.1), convex=True)
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        short = problem.solve(max_iter=2)
    assert short.status == "max_iter"
    assert len(short.history["robust_risk"]) == 2
    seen = []
    stopped = problem.solve(callback=lambda i, record: seen.append((i, record)) or i == 3)
    assert stopped.status == "callback"
    assert [i for i, _ in seen] == [1, 2, 3]
    assert set(seen[0][1]) == {"robust_risk", "lower_bound", "gap"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = problem.solve()
    assert np.all(np.diff(full.history["robust_risk"]) <= 0)
    bounds = full.history["lower_bound"]  # -inf until something is proven
    assert np.all(bounds[1:] >= bounds[:-1])
    assert np.isfinite(bounds[-1])
    assert "no decision is better" in repr(full)


def test_frames_name_the_columns(z):
    frame = pd.DataFrame(z, columns=["a", "b", "c"])
    ambiguity = Wasserstein(radius=0.5, immutable=["b"])
    worst = MinimaxProblem(Quadratic(known), np.ones(3), frame, ambiguity).evaluate()[1]
    table = worst.displacement().set_index("feature")
    assert table["rms"]["b"] == 0 < table["rms"]["a"]
    assert list(worst.to_frame(5).columns) == ["a", "b", "c"]


def test_what_is_unbounded_says_so(z):
    problem = MinimaxProblem(
        lambda t, z: t * (z**2).sum(1), 1.0, z, Wasserstein(penalty=0.5), inner="pointwise"
    )
    with pytest.raises(UnboundedRiskError):
        problem.evaluate()
    with pytest.raises(UnboundedRiskError, match="first decision"):
        problem.solve()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": 3.0}, InvalidDataError, "expected a function"),
        ({"ambiguity": 0.1}, InvalidDataError, "drojko.ambiguity"),
        ({"reference": "kde"}, InvalidDataError, "fitted measure"),
        ({"reference": Gaussian()}, InvalidDataError, "not fitted"),
        ({"params": "x"}, InvalidDataError, "numbers"),
        ({"n_draws": 0}, InvalidDataError, "n_draws"),
        ({"ambiguity": Wasserstein(radius=1.0, order=1)}, UnsupportedError, "order=2"),
        ({"ambiguity": Wasserstein(radius=1.0, label_cost=1.0)}, InvalidDataError, "no label"),
        ({"ambiguity": Wasserstein(radius=1.0, bounds=(0, 1))}, InvalidDataError, "bounds"),
        ({"loss": lambda t, z: z}, InvalidDataError, "one value per row"),
        ({"loss": lambda t, z: z[:, 0].log()}, InvalidDataError, "NaN or infinite"),
    ],
)
def test_mistakes(z, change, error, message):
    settings = {"loss": tilt, "params": np.zeros(3), "reference": z,
                "ambiguity": Wasserstein(radius=0.1)}  # fmt: skip
    with pytest.raises(error, match=message):
        MinimaxProblem(**{**settings, **change}).solve()


@pytest.mark.parametrize("settings", [{"max_iter": 0}, {"tol": -1.0}, {"tol": np.nan}])
def test_solver_settings_are_checked(z, settings):
    with pytest.raises(InvalidDataError, match=next(iter(settings))):
        MinimaxProblem(tilt, np.zeros(3), z, KL(radius=0.1)).solve(**settings)


def test_the_global_generator_is_left_alone(z):
    state = torch.get_rng_state()
    reference = Gaussian([0.0], [[1.0]])
    MinimaxProblem(lambda t, z: (t - z[:, 0]) ** 2, 0.0, reference, KL(radius=0.1)).solve()
    assert torch.equal(state, torch.get_rng_state())


def test_repr_names_what_there_is(z):
    text = repr(MinimaxProblem(tilt, {"t": np.zeros(3)}, z, KL(radius=0.1), constraint=Simplex()))
    assert all(part in text for part in ("tilt", "t[3]", "R^3", "KL"))


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_a_loss_in_numpy_is_refused_by_name(z):
    problem = MinimaxProblem(
        lambda t, z: np.abs(z @ t), torch.ones(3, dtype=torch.float64), z, KL(radius=0.1)
    )
    with pytest.raises(InvalidDataError, match=r"loss\(params, z\) calls NumPy .*torch\.abs"):
        problem.solve()


def test_a_stall_next_to_infinite_worst_cases_says_so(z):
    """exp outgrows every ball but at the constant decision, where the method can only end."""
    problem = MinimaxProblem(
        lambda t, z: torch.exp(-z @ t) + 0.1 * t @ t,
        torch.zeros(3),
        z[:20],
        Wasserstein(radius=0.1),
    )
    with pytest.warns(ConvergenceWarning, match="that were tried the worst-case risk is infinite"):
        solution = problem.solve()
    assert solution.objective == pytest.approx(1.0)
    assert float(solution.params.abs().max()) < 1e-6
