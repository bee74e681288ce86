import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.ambiguity import GroundCost
from drojko.inner import Pointwise, proximal_ascent
from drojko.inner.transport.bounds import is_ridge, lipschitz_bound, structure, upper_bound
from drojko.losses import CallableLoss, Softmax, get_loss
from drojko.models import MLP, ModuleModel

SMOOTH = ["softplus", "tanh", "silu"]
DEPTHS = [(), (4,), (4, 3), (3, 4, 3)]


def network(hidden, n_outputs, activation, number, spread=1.0):
    gen = torch.Generator().manual_seed(number)
    model = MLP(3, n_outputs, hidden=hidden, activation=activation, generator=gen)
    for p in model.parameters():
        p.data.copy_(spread * torch.randn(p.shape, generator=gen, dtype=torch.float64))
    return model, gen


def labels(n, n_outputs, gen):
    return torch.randint(max(2, n_outputs), (n,), generator=gen)


networks = st.tuples(
    st.sampled_from(DEPTHS),
    st.sampled_from([1, 3]),
    st.sampled_from(SMOOTH),
    st.integers(0, 10**6),
    st.floats(0.1, 2.0),
)


@given(networks, st.booleans())
def test_curvature_bound_dominates_measured_hessians(build, drawn, weighted):
    model, gen = network(*drawn)
    x = 2 * torch.randn(60, 3, generator=gen, dtype=torch.float64)
    cost = GroundCost(np.array([0.5, 3.0, np.inf])) if weighted else None
    adversary, batch = build(model, "logistic", x, labels(60, model.n_outputs, gen), cost=cost)
    known = structure(adversary.objective)
    hessian = adversary.objective.loss_hessian(batch, batch.q0)
    largest = float(torch.linalg.eigvalsh(hessian).max())
    assert math.isfinite(known.curvature)
    assert largest <= known.curvature * (1 + 1e-9)


@given(networks, st.booleans())
def test_lipschitz_bound_dominates_measured_slopes(build, drawn, weighted):
    model, gen = network(*drawn)
    x = 2 * torch.randn(60, 3, generator=gen, dtype=torch.float64)
    cost = GroundCost(np.array([0.5, 3.0, np.inf])) if weighted else None
    adversary, batch = build(model, "logistic", x, labels(60, model.n_outputs, gen), cost=cost)
    objective = adversary.objective
    known = structure(objective)
    f, backward = model.linearise(objective.decode(batch, batch.q0))
    if model.n_outputs == 1:
        slopes = objective.coordinates.pull(backward(torch.ones_like(f))).norm(dim=1)
        assert float(slopes.max()) <= float(known.norms) * (1 + 1e-9)
        return
    for j in range(3):
        for k in range(3):
            g = torch.zeros_like(f)
            g[:, j] += 1.0
            g[:, k] -= 1.0
            slopes = objective.coordinates.pull(backward(g)).norm(dim=1)
            assert float(slopes.max()) <= float(known.norms[j, k]) * (1 + 1e-9) + 1e-15


def test_the_bounds_are_attained_by_simple_models(build, linear):
    """Logistic with s = 0: curvature |theta|^2 / 4; softmax: (range of w'v)^2 / 4 at p = 1/2."""
    x = torch.zeros(4, 2, dtype=torch.float64)
    adversary, batch = build(linear([3.0, 4.0]), "logistic", x, torch.tensor([0, 1, 0, 1]))
    known = structure(adversary.objective)
    assert known.norms == pytest.approx(5.0)
    assert known.curvature == pytest.approx(25 / 4)
    hessian = adversary.objective.loss_hessian(batch, batch.q0)
    assert float(torch.linalg.eigvalsh(hessian).max()) == pytest.approx(25 / 4)
    rows = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [0.0, 0.0]])
    model = linear(rows)
    model.biases[0].data.copy_(torch.tensor([0.0, 0.0, -50.0]))  # leaves two classes
    adversary, batch = build(model, "logistic", x, torch.tensor([0, 1, 0, 1]))
    assert structure(adversary.objective).curvature == pytest.approx(25.0)
    hessian = adversary.objective.loss_hessian(batch, batch.q0)
    assert float(torch.linalg.eigvalsh(hessian).max()) == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("loss", "hidden", "activation", "expected"),
    [
        ("hinge", (), "tanh", math.inf),
        ("squared", (), "tanh", 2.0),
        ("huber", (), "tanh", 1.0),
        ("squared", (4,), "tanh", math.inf),  # an unbounded slope meets a bent activation
        ("logistic", (4,), "relu", math.inf),
    ],
)
def test_where_nothing_is_known_the_curvature_is_infinite(
    build, loss, hidden, activation, expected, seed
):
    model, gen = network(hidden, 1, activation, seed)
    x = torch.randn(5, 3, generator=gen, dtype=torch.float64)
    adversary, _ = build(model, loss, x, torch.ones(5, dtype=torch.long))
    known = structure(adversary.objective)
    if math.isfinite(expected):
        expected *= float(known.norms) ** 2
    assert known.curvature == pytest.approx(expected)


def test_a_constant_model_is_flat_whatever_the_loss(build):
    x, y = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1])
    for loss, n_outputs in (("hinge", 1), ("logistic", 1), ("hinge", 3)):
        model, _ = network((), n_outputs, "tanh", 0, spread=0.0)
        adversary, _ = build(model, loss, x, y)
        assert structure(adversary.objective).curvature == 0.0


def test_ridge_models_are_recognised(build, linear, generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    own = CallableLoss(lambda f, y: f)
    cases = [
        (linear([1.0, 2.0, 3.0]), "hinge", True),
        (linear(torch.ones(3, 3)), "hinge", False),
        (MLP(3, 1, hidden=(2,)), "hinge", False),
        (linear([1.0, 2.0, 3.0]), own, False),
        (ModuleModel(torch.nn.Linear(3, 1).double(), 1), "hinge", False),
    ]
    for model, loss, expected in cases:
        adversary, batch = build(model, loss, x, y)
        assert is_ridge(adversary.objective) is expected
    known = structure(build(linear([1.0, 2.0, 3.0]), own, x, y)[0].objective)
    assert (known.norms, known.curvature) == (None, math.inf)
    assert lipschitz_bound(adversary.objective, batch, torch.tensor(1.0)) is not None


def brute_force(objective, batch, gen, starts=24, steps=40):
    """Largest value over many ascents from points far and near."""
    best = objective.value(batch, batch.q0)
    for k in range(starts):
        q = batch.q0 + 10.0 ** (k % 4 - 2) * torch.randn(
            batch.q0.shape, generator=gen, dtype=torch.float64
        )
        best = torch.maximum(best, proximal_ascent(objective, batch, q, steps).value)
    return best


@pytest.mark.promise(1)
@pytest.mark.parametrize("penalty", [0.02, 0.5, 50.0])
@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize(
    ("loss", "n_outputs"), [("logistic", 1), ("logistic", 3), ("hinge", 1), ("hinge", 3)]
)
def test_no_point_beats_the_upper_bound(build, loss, n_outputs, hidden, penalty, seed):
    model, gen = network(hidden, n_outputs, "tanh", seed)
    x = torch.randn(20, 3, generator=gen, dtype=torch.float64)
    adversary, batch = build(model, loss, x, labels(20, n_outputs, gen), penalty)
    adversary = Pointwise().fit(adversary.objective, batch, gen)
    moved = adversary.solve(batch)
    bound, proof = adversary.upper(moved)
    best = torch.maximum(moved.value, brute_force(adversary.objective, batch, gen))
    assert proof in ("ridge-1d", "strong-concavity", "lipschitz")
    # Proven, so the slack is for rounding only.
    assert bool((bound >= best - 1e-12 * (1 + best.abs())).all())
    if proof == "strong-concavity":  # the ascent has converged: no gap is left
        torch.testing.assert_close(bound, moved.value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "hidden", "penalty", "expected"),
    [
        ("logistic", (), 0.01, "ridge-1d"),
        ("logistic", (4,), 1e4, "strong-concavity"),
        ("logistic", (4,), 0.1, "lipschitz"),
        ("hinge", (4,), 1e4, "lipschitz"),
        ("callable", (4,), 1.0, "local-estimate"),
    ],
)
def test_the_proof_is_named(build, loss, hidden, penalty, expected, seed):
    model, gen = network(hidden, 1, "softplus", seed)
    x = torch.randn(10, 3, generator=gen, dtype=torch.float64)
    loss = CallableLoss(lambda f, y: torch.tanh(f)) if loss == "callable" else loss
    adversary, batch = build(model, loss, x, torch.ones(10, dtype=torch.long), penalty)
    found = proximal_ascent(adversary.objective, batch, batch.q0, 50)
    bound, proof = upper_bound(adversary.objective, batch, found)
    assert proof == expected
    assert bool((bound >= found.value).all())


@pytest.mark.promise(1)
@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared", "absolute", "huber", "quantile"])
@pytest.mark.parametrize("ratio", [1.05, 3.0, 100.0])
def test_ridge_bound_is_attained(build, linear, loss, ratio, generator):
    """One-dimensional problems are solved globally: upper equals lower."""
    theta = torch.randn(4, generator=generator, dtype=torch.float64)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    task = get_loss(loss).task
    y = torch.randn(60, generator=generator, dtype=torch.float64)
    y = (y > 0).long() if task == "classification" else y
    penalty = ratio * float(theta.square().sum()) * (1.0 if loss == "squared" else 0.02)
    adversary, batch = build(linear(theta, 0.3), loss, x, y, penalty)
    moved = adversary.solve(batch)
    bound, proof = adversary.upper(moved)
    assert proof == "ridge-1d"
    torch.testing.assert_close(moved.value, bound, rtol=1e-10, atol=1e-10)
    assert float(moved.cost.sum()) > 0
    best = brute_force(adversary.objective, batch, generator, starts=20)
    assert bool((bound >= best - 1e-11 * (1 + best.abs())).all())


@pytest.mark.parametrize("penalty", [0.05, 0.5, 5.0])
def test_ridge_on_a_box_is_bracketed(build, linear, penalty, generator):
    theta = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    x = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    cost = GroundCost(np.ones(3), np.zeros(3), np.ones(3))
    y = torch.randint(2, (40,), generator=generator)
    adversary, batch = build(linear(theta), "logistic", x, y, penalty, cost=cost)
    adversary = Pointwise().fit(adversary.objective, batch, generator)
    moved = adversary.solve(batch)
    bound, proof = adversary.upper(moved)
    assert proof in ("ridge-1d", "strong-concavity")
    z = adversary.objective.decode(batch, moved.q)
    assert float(z.min()) >= -1e-12
    assert float(z.max()) <= 1 + 1e-12
    # A grid of the box, 21 points a side: nothing on it beats either side.
    axis = torch.linspace(0, 1, 21, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis)
    f = grid @ theta
    for i in range(40):
        loss = get_loss("logistic").value(f, y[i].expand(len(f)))
        best = float((loss - penalty * (grid - x[i]).square().sum(1)).max())
        assert best <= float(moved.value[i]) + 1e-9
        assert float(moved.value[i]) <= float(bound[i]) + 1e-12


def test_a_ridge_on_a_box_is_proven_where_it_is_unbounded_without(build, linear, generator):
    """Squared loss below its growth: finite on the box, and searched on the line within it."""
    x = torch.rand(20, 2, generator=generator, dtype=torch.float64)
    cost = GroundCost(np.ones(2), np.zeros(2), np.ones(2))
    adversary, batch = build(linear([2.0, 1.0]), "squared", x, x[:, 0], 1.0, cost=cost)
    adversary = Pointwise().fit(adversary.objective, batch, generator)
    moved = adversary.solve(batch)
    bound, proof = adversary.upper(moved)
    assert proof == "ridge-1d"
    torch.testing.assert_close(bound, moved.value)
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    loss = (corners @ torch.tensor([2.0, 1.0], dtype=torch.float64) - x[:, :1]).square()
    best = (loss - torch.cdist(x, corners).square()).max(1).values
    assert bool((moved.value >= best - 1e-9).all())  # convex along the line: corners are best


PEAK = math.atanh(1 / math.sqrt(3))  # where |tanh''| is largest, 0.77


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_the_bend_of_a_unit_is_bounded_tightly(build, n_outputs):
    """A unit at the peak of its bend, a loss of slope one: the bound is nearly attained."""
    model = MLP(1, n_outputs, hidden=(1,), activation="tanh")
    out = [[-0.01]] if n_outputs == 1 else [[-0.005], [0.005]]
    offset = [-50.0] if n_outputs == 1 else [-50.0, 50.0]
    for p, value in zip(model.parameters(), ([[3.0]], out, [-PEAK], offset), strict=True):
        p.data.copy_(torch.tensor(value))
    y = torch.full((1,), 1 if n_outputs == 1 else 0)
    loss = get_loss("logistic") if n_outputs == 1 else Softmax()
    adversary, batch = build(model, loss, torch.zeros(1, 1).double(), y)
    values = []
    for sign in (1.0, -1.0):
        model.biases[0].data.fill_(sign * PEAK)
        hessian = adversary.objective.loss_hessian(batch, batch.q0)
        values.append(float(hessian.max()))
    bound = structure(adversary.objective).curvature
    assert 0.98 * bound < max(values) <= bound


def test_the_bend_behind_another_layer_is_bounded_tightly(build):
    """The second unit bends; the first contributes its squared slope, 0.1^2."""
    model = MLP(1, 1, hidden=(1, 1), activation="tanh")
    weights = ([[0.1]], [[100.0]], [[1e-4]], [0.0], [-PEAK], [-50.0])
    for p, value in zip(model.parameters(), weights, strict=True):
        p.data.copy_(torch.tensor(value))
    adversary, batch = build(model, "logistic", torch.zeros(1, 1).double(), torch.zeros(1).long())
    model.biases[2].data.fill_(50.0)
    values = []
    for sign in (1.0, -1.0):
        model.biases[1].data.fill_(sign * PEAK)
        values.append(float(adversary.objective.loss_hessian(batch, batch.q0).max()))
    bound = structure(adversary.objective).curvature
    assert 0.97 * bound < max(values) <= bound
