import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.certificates import Certificate, certify
from drojko.exceptions import UnboundedRiskError
from drojko.inner import Adversary, BallSolution, Coordinates, Objective, Pointwise
from drojko.losses import CallableLoss, get_loss
from drojko.measures import ClassConditional, Gaussian
from drojko.models import MLP, Linear


def network(hidden, seed, n_outputs=1, activation="tanh", spread=1.0):
    gen = torch.Generator().manual_seed(seed)
    model = MLP(3, n_outputs, hidden=hidden, activation=activation, generator=gen)
    for w in model.weights:
        w.data *= spread
    return model.requires_grad_(False)


def problem(model, loss, x, y, penalty=1.0, n_labels=0, cost=None):
    loss = get_loss(loss, n_classes=max(2, model.n_outputs)) if isinstance(loss, str) else loss
    cost = GroundCost(np.ones(x.shape[1])) if cost is None else cost
    coordinates = Coordinates.build(cost, x, model.first_layer())
    objective = Objective(model, loss, coordinates, penalty)
    batch = objective.batch(x, y)
    return Pointwise(anchors=0).fit(objective, batch, None, n_labels=n_labels), batch


def data(n, seed, classes=2):
    gen = torch.Generator().manual_seed(seed + 50)
    x = torch.randn(n, 3, generator=gen, dtype=torch.float64)
    w = torch.rand(n, generator=gen, dtype=torch.float64) + 0.1
    return x, torch.randint(classes, (n,), generator=gen), w / w.sum()


PROVEN = {"ridge-1d", "strong-concavity", "lipschitz", "linear-bounds", "branch-and-bound", "dual"}


@pytest.mark.promise(1)
@pytest.mark.parametrize("form", ["radius", "penalty"])
@pytest.mark.parametrize("size", [0.03, 0.5, 5.0])
@pytest.mark.parametrize(
    ("hidden", "loss", "n_outputs"),
    [((), "logistic", 1), ((), "hinge", 3), ((4,), "logistic", 1), ((4, 3), "logistic", 3)],
)
def test_sandwich(hidden, loss, n_outputs, size, form, seed):
    """nominal <= attained <= upper; what is attained is inside the set."""
    model = network(hidden, seed, n_outputs)
    x, y, w = data(40, seed, max(2, n_outputs))
    adversary, batch = problem(model, loss, x, y, 1.0 / size)
    radius = size if form == "radius" else None
    found = certify(adversary, batch, w, radius=radius, sampled=False)
    c = found.certificate
    assert c.nominal_risk <= c.lower <= c.upper
    assert c.proof in PROVEN
    assert c.standard_error == 0.0
    assert c.gap == c.upper - c.lower
    assert c.worst_case_risk >= c.nominal_risk
    if form == "radius":
        assert c.transport_cost <= size**2 * (1 + 1e-9)
        assert c.lower == c.worst_case_risk
        assert isinstance(found.worst, BallSolution)
    else:
        expected = c.worst_case_risk - c.penalty * c.transport_cost
        assert c.lower == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert c.penalty == 1.0 / size
        assert c.radius is None
    if not hidden and n_outputs == 1:
        assert c.proof == "ridge-1d"
        assert c.relative_gap <= 1e-9


@pytest.mark.promise(1)
@pytest.mark.parametrize("radius", [0.02, 0.3, 3.0])
def test_the_two_forms_agree(radius, seed):
    """lower(radius) = lower(penalty) + penalty * radius^2 at the multiplier, no gap, both forms."""
    x, y, w = data(60, seed)
    adversary, batch = problem(network((), seed), "logistic", x, y)
    ball = certify(adversary, batch, w, radius=radius, sampled=False).certificate
    priced = adversary.with_penalty(ball.penalty)
    line = certify(priced, batch, w, sampled=False).certificate
    assert line.lower + ball.penalty * radius**2 == pytest.approx(ball.lower, rel=1e-9)
    assert line.transport_cost == pytest.approx(radius**2, rel=1e-2)


@pytest.mark.promise(1)
def test_quadratic_loss_with_a_gaussian_reference(seed):
    """METHOD section 4, case 2: the squared error's penalised and ball values from moments."""
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    model = Linear(3)
    model.weights[0].data.copy_(theta[None])
    x, _, w = data(200, seed)
    y = x[:, 0] + 0.3
    a, mse = float(theta.square().sum()), float((y - x @ theta).square() @ w)
    adversary, batch = problem(model, "squared", x, y, 2.0 * a)
    line = certify(adversary, batch, w, sampled=False).certificate
    assert line.lower == pytest.approx(2 * mse, rel=1e-12)
    assert line.upper == pytest.approx(2 * mse, rel=1e-12)
    assert line.transport_cost == pytest.approx(mse / a, rel=1e-9)  # R a / (penalty - a)^2
    ball = certify(adversary, batch, w, radius=0.7, sampled=False).certificate
    assert ball.upper == pytest.approx((math.sqrt(mse) + 0.7 * math.sqrt(a)) ** 2, rel=1e-9)
    assert ball.proof == "ridge-1d"
    with pytest.raises(UnboundedRiskError, match="penalty above"):
        certify(adversary.with_penalty(0.99 * a), batch, w)


def test_proven_bounds_come_before_smaller_estimates(seed):
    """A squared loss on a perceptron: proven only at penalties above its growth."""
    x, _, w = data(30, seed)
    y = x.sum(1)
    adversary, batch = problem(network((4,), seed, activation="softplus"), "squared", x, y)
    for radius in (0.01, 1.0, 100.0):
        c = certify(adversary, batch, w, radius=radius, sampled=False).certificate
        assert c.proof in PROVEN
        assert math.isfinite(c.upper)
        assert c.lower <= c.upper
        norm = np.prod(
            [float(torch.linalg.matrix_norm(m, 2)) for m in adversary.objective.model.weights]
        )
        # (sqrt(R) + radius * Lipschitz)^2, the order-one bound of the squared loss.
        simple = (math.sqrt(c.nominal_risk) + radius * norm) ** 2
        assert c.upper <= simple * (1 + 1e-6)


@pytest.mark.parametrize("radius", [0.05, 1.0, 20.0])
def test_lipschitz_dual_is_no_worse_than_the_order_one_bound(radius, seed):
    """E loss + radius * Lip, which holds for every Lipschitz loss."""
    model = network((5,), seed, activation="relu", spread=1.5)
    x, y, w = data(30, seed)
    adversary, batch = problem(model, "hinge", x, y)
    c = certify(adversary, batch, w, radius=radius, sampled=False).certificate
    norm = np.prod([float(torch.linalg.matrix_norm(m, 2)) for m in model.weights])
    assert c.proof in {"lipschitz", "linear-bounds", "branch-and-bound"}
    assert c.upper <= (c.nominal_risk + radius * norm) * (1 + 1e-6)


@pytest.mark.promise(1)
def test_what_is_not_proven_is_called_an_estimate(seed):
    x, y, w = data(20, seed)
    loss = CallableLoss(lambda f, y: torch.nn.functional.softplus(-f * (2 * y - 1)))
    adversary, batch = problem(network((4,), seed), loss, x, y)
    for radius in (None, 0.1):
        c = certify(adversary, batch, w, radius=radius).certificate
        assert c.proof == "local-estimate"
        assert "upper ESTIMATE [local-estimate]" in str(c)
        assert "upper bound" not in str(c)


@pytest.mark.promise(2)
def test_radius_zero_is_the_nominal_risk(seed):
    x, y, w = data(20, seed)
    adversary, batch = problem(network((4,), seed), "logistic", x, y)
    c = certify(adversary, batch, w, radius=0.0, sampled=False).certificate
    assert c.nominal_risk == c.lower == c.upper == c.worst_case_risk
    assert c.transport_cost == 0.0
    assert c.penalty == math.inf
    assert c.proof == "dual"
    assert "nan%" not in str(c)


@pytest.mark.promise(2)
def test_certified_risk_is_monotone_in_the_radius(seed):
    x, y, w = data(30, seed)
    adversary, batch = problem(network((4,), seed), "logistic", x, y)
    found = [
        certify(adversary, batch, w, radius=r, sampled=False).certificate
        for r in (0.0, 0.01, 0.1, 0.5, 2.0, 10.0)
    ]
    for a, b in pairwise(found):
        assert a.lower <= b.lower * (1 + 1e-6)
        assert a.upper <= b.upper * (1 + 1e-6)


@pytest.mark.parametrize("radius", [None, 0.3])
def test_standard_error_is_that_of_the_mean(radius, seed):
    """It falls like 1/sqrt(n), and covers the spread of certificates from fresh draws."""
    reference = ClassConditional.from_measures(
        [Gaussian([m, 0.0, 0.0], np.eye(3)) for m in (-1.0, 1.0)]
    )
    model = Linear(3)
    model.weights[0].data.copy_(torch.tensor([[2.0, -1.0, 0.5]]))
    errors, values = {}, []
    for n in (500, 2000, 8000):
        for k in range(12 if n == 500 else 1):
            gen = torch.Generator().manual_seed(seed + 1000 + k)
            x, y = reference.sample(n, gen)
            w = torch.full((n,), 1 / n, dtype=torch.float64)
            adversary, batch = problem(model, "logistic", x, y, 4.0)
            c = certify(adversary, batch, w, radius=radius).certificate
            errors[n] = c.standard_error
            if n == 500:
                values.append(c.upper)
    # Four times the draws, half the error; a sample variance varies by some ten percent.
    assert errors[2000] == pytest.approx(errors[500] / 2, rel=0.3)
    assert errors[8000] == pytest.approx(errors[2000] / 2, rel=0.2)
    # Twelve values: the ratio of chi-square(11) to its mean is within (0.3, 2.1), p > 0.999.
    ratio = np.var(values, ddof=1) / errors[500] ** 2
    assert 0.15 < ratio < 3.5


def test_movable_labels_are_covered(seed):
    """Both labels' best values bound the mean from below, the certificate from above."""
    x, y, w = data(30, seed)
    model = network((4,), seed)
    alone, batch = problem(model, "logistic", x, y, 5.0)
    free = dataclasses.replace(alone, n_labels=2, label_cost=0.05)
    fixed = certify(alone, batch, w, sampled=False).certificate
    moved = certify(free, batch, w, sampled=False).certificate
    assert moved.lower >= fixed.lower - 1e-12
    other = alone.solve(alone.objective.batch(x, 1 - y)).value - 5.0 * 0.05
    best = torch.maximum(alone.solve(batch).value, other)
    assert moved.lower == pytest.approx(float(best @ w), rel=1e-6)
    assert moved.upper >= float(best @ w) - 1e-9
    ball = certify(free, batch, w, radius=0.2, sampled=False).certificate
    assert ball.transport_cost <= 0.04 * (1 + 1e-9)
    assert ball.lower <= ball.upper


def test_the_adversary_of_an_evaluation_repeats_it(seed):
    x, y, w = data(40, seed)
    adversary, batch = problem(network((4,), seed, spread=2.0), "logistic", x, y)
    for radius in (None, 0.5):  # a plan for any draw; that of atoms is kept row by row
        found = certify(adversary, batch, w, radius=radius, sampled=radius is not None)
        assert isinstance(found.adversary, Adversary)
        if radius is None:
            again = found.adversary.solve(batch)
            assert float(again.value @ w) == pytest.approx(found.certificate.lower, rel=1e-12)
            continue
        ball = found.worst
        low = found.adversary.with_penalty(ball.low_penalty).solve(batch)
        high = found.adversary.with_penalty(ball.high_penalty).solve(batch)
        cost = float(ball.mix(low.cost, high.cost) @ w)
        assert cost == pytest.approx(found.certificate.transport_cost, rel=1e-12)
        assert cost == pytest.approx(0.25, rel=1e-9)


def test_printing():
    c = Certificate(0.5, 0.6, 0.75, 0.6, 0.1, 2.0, 0.01, 0.002, 1e-4, "lipschitz")
    text = str(c)
    assert repr(c) == text
    lines = text.splitlines()
    assert lines[0] == "Certificate"
    assert len(lines) == 1 + len(c.rows())
    assert len({line.index(value) for line, (_, value) in zip(lines[1:], c.rows())}) == 1
    for part in (
        "attained risk (lower bound)",
        "upper bound [lipschitz]",
        "0.15 (20.00%)",
        "0.002",
    ):
        assert part in text
    priced = dataclasses.replace(c, radius=None)
    assert "attained risk - penalty * cost (lower bound)" in str(priced)
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.lower = 0.0
    assert dataclasses.replace(c, upper=math.inf).relative_gap == math.inf
    assert dataclasses.replace(c, lower=0.0, upper=0.0).relative_gap == 0.0


@pytest.mark.parametrize(
    ("proof", "upper", "said"),
    [("lipschitz", 9.0, True), ("lipschitz", 0.61, False), ("linear-bounds", 9.0, False)],
)
def test_where_only_lipschitz_constants_speak_the_table_says_so(proof, upper, said):
    found = Certificate(0.5, 0.6, upper, 0.6, 50.0, 0.1, 0.4, proof=proof)
    assert ("only Lipschitz constants" in str(found)) == said
