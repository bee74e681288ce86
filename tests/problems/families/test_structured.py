"""Losses with structure: global maximisers, exact duals, agreement with a search."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.ambiguity import Wasserstein
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.measures import Gaussian
from drojko.problems import MaxAffine, MinimaxProblem, Quadratic, SeparableMaxAffine

PRICES = {
    "plain": {}, "weighted": {"weights": [1.0, 4.0]}, "immutable": {"immutable": [1]},
    "bounded": {"bounds": (-1.5, 1.5)}, "both": {"bounds": (-1.5, 1.5), "weights": [2.0, 0.5]},
}  # fmt: skip


def grid(cost, low=-4.0, high=4.0, steps=321):
    """Points to try: all of the plane, or the part that the set allows."""
    line = np.linspace(low, high, steps)
    if "bounds" in cost:
        line = np.linspace(*cost["bounds"], steps)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def on_grid(loss, params, x, cost, penalty):
    """sup over the grid of loss - penalty * cost, for one x."""
    z = grid(cost)
    weights = np.asarray(cost.get("weights", [1.0, 1.0]))
    if "immutable" in cost:
        z[:, 1] = x[1]
    price = ((z - x) ** 2) @ weights
    with torch.no_grad():
        return float((loss(params, torch.tensor(z)).numpy() - penalty * price).max())


def pieces(t):
    return torch.stack([t, -0.5 * t, t.flip(0)]), torch.stack([t[0], t[1], t.sum()])


def columns(t):
    return torch.stack([t, -2.0 * t, 0.0 * t]), torch.stack([t, 0.3 * t, t.abs()])


def bent(t):
    a = torch.outer(t, t) - 0.7 * torch.eye(2, dtype=t.dtype)
    return a, t.flip(0), t.sum()


@pytest.mark.parametrize("cost", PRICES.values(), ids=PRICES)
@pytest.mark.parametrize("kind", ["max", "columns", "quadratic"])
def test_supremum_by_a_grid(kind, cost, rng):
    loss = {"max": MaxAffine(pieces), "columns": SeparableMaxAffine(columns),
            "quadratic": Quadratic(bent)}[kind]  # fmt: skip
    params = torch.tensor([0.8, -0.4], dtype=torch.float64)
    x = rng.uniform(-1, 1, size=(3, 2))
    problem = MinimaxProblem(loss, params, x, Wasserstein(penalty=1.3, **cost), inner="pointwise")
    certificate, worst = problem.evaluate()
    best = np.mean([on_grid(loss, params, row, cost, 1.3) for row in x])
    # A grid of step 0.025 (or finer) misses a maximum by slope * step / 2 at kinks, less elsewhere.
    assert certificate.lower <= certificate.upper
    assert best - 1e-9 <= certificate.upper <= best + 0.02
    assert certificate.relative_gap < 1e-7
    assert certificate.proof in {"dual", "strong-concavity"}
    if "immutable" in cost:
        np.testing.assert_allclose(worst.transport(x)[:, 1], x[:, 1], atol=1e-12)


def test_the_quadratic_closed_form(rng):
    # METHOD 4.1 for a Gaussian: V, the map, and the density of the worst case.
    A, b, c0 = np.array([[1.0, 0.3], [0.3, -0.5]]), np.array([0.2, -1.0]), 0.7
    m, S, lam = np.array([0.5, -0.2]), np.array([[1.0, 0.2], [0.2, 0.6]]), 1.5
    loss = Quadratic(lambda t: (t * torch.tensor(A), torch.tensor(b), c0))
    problem = MinimaxProblem(loss, 1.0, Gaussian(m, S), Wasserstein(penalty=lam))
    certificate, worst = problem.evaluate(random_state=0)
    M = 2 * lam * np.eye(2) - A
    h = 2 * lam * m + b
    value = (0.5 * h @ np.linalg.solve(M, h) + 2 * lam**2 * np.trace(np.linalg.solve(M, S))
             - lam * (m @ m + np.trace(S)) + c0)  # fmt: skip
    assert abs(certificate.upper - value) < 5 * certificate.standard_error
    inverse = np.linalg.inv(M)
    spent = np.sum((inverse @ (A @ m + b)) ** 2) + np.trace(inverse @ A @ S @ A @ inverse)
    assert certificate.transport_cost == pytest.approx(spent, rel=0.05)  # 20 000 draws
    x = rng.normal(size=(5, 2))
    np.testing.assert_allclose(worst.transport(x), (2 * lam * x + b) @ inverse, rtol=1e-9)
    image = Gaussian(inverse @ h, 4 * lam**2 * inverse @ S @ inverse)
    np.testing.assert_allclose(worst.log_prob(x), image.log_prob(x).numpy(), rtol=1e-7)


def test_thresholds_of_quadratics():
    loss = Quadratic(lambda t: (t * torch.eye(2, dtype=torch.float64), torch.zeros(2), 0.0))
    for weights, least in ((None, 1.5), ([4.0, 1.0], 1.5), ([4.0, 4.0], 0.375)):
        ambiguity = Wasserstein(penalty=0.99 * least, weights=weights)
        problem = MinimaxProblem(loss, 3.0, [[0.0, 1.0], [1.0, 0.0]], ambiguity)
        with pytest.raises(UnboundedRiskError, match=f"above {least:g}"):
            problem.evaluate()


@given(st.integers(0, 10_000))
def test_known_structure_agrees_with_search(seed):
    # A convex function without threshold: ascent from each sample can only find less.
    rng = np.random.default_rng(seed)
    slopes, offsets = torch.tensor(rng.normal(size=(3, 2))), torch.tensor(rng.normal(size=3))
    z, t = rng.normal(size=(6, 2)), rng.normal()
    known = MaxAffine(lambda t: (t * slopes, offsets))
    ambiguity = Wasserstein(radius=float(rng.uniform(0.1, 2.0)))
    exact = MinimaxProblem(known, t, z, ambiguity).evaluate()[0]
    dark = MinimaxProblem(lambda t, z: known(t, z), t, z, ambiguity, inner="pointwise").evaluate(
        random_state=0
    )[0]
    assert dark.lower <= exact.upper * (1 + 1e-9) + 1e-9
    assert exact.lower == pytest.approx(exact.upper, rel=1e-6, abs=1e-9)
    assert exact.transport_cost <= ambiguity.radius**2 * (1 + 1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        MaxAffine(lambda t: (torch.ones(2, 3), torch.zeros(2))),
        MaxAffine(lambda t: (torch.ones(2, 2), torch.zeros(3))),
        SeparableMaxAffine(lambda t: (torch.ones(2, 2), torch.zeros(2, 1))),
        Quadratic(lambda t: (torch.ones(2, 2), torch.zeros(3), 0.0)),
    ],
)
def test_shapes_are_checked(loss):
    problem = MinimaxProblem(loss, 1.0, np.eye(2), Wasserstein(radius=0.1))
    with pytest.raises(InvalidDataError, match="expected"):
        problem.evaluate()
