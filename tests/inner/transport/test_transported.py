import math

import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.certificates import certify
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.inner import BallSolution, Pointwise, TransportedWorstCase
from drojko.losses import get_loss
from drojko.measures import ClassConditional, Empirical, Gaussian, Joint
from drojko.models import MLP


def two_gaussians(distance=2.0, spread=1.0):
    half = 0.5 * distance
    parts = [Gaussian([m, 0.0], spread**2 * np.eye(2)) for m in (-half, half)]
    return ClassConditional.from_measures(parts)


@pytest.fixture(scope="module")
def network(seed):
    """A bent decision function of two columns."""
    model = MLP(2, 1, hidden=(4,), activation="tanh", generator=torch.Generator().manual_seed(3))
    model.weights[0].data *= 1.5
    model.weights[1].data *= 2.0
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def make(build):
    """A worst case with its certificate, from a model and a reference, as estimators make it."""

    def worst_case(model, loss, reference, *, radius=None, penalty=1.0, n=500, **settings):
        cost = settings.pop("cost", None)
        named = {k: settings.pop(k) for k in ("classes", "feature_names") if k in settings}
        gen = torch.Generator().manual_seed(11)
        x, y, w = reference.points(n, gen)
        if cost is not None:
            x = cost.project(x)
        adversary, batch = build(model, loss, x, y, penalty, cost=cost)
        n_labels = settings.pop("n_labels", 2)
        solver = settings.pop("solver", Pointwise())
        adversary = solver.fit(adversary.objective, batch, gen, n_labels=n_labels, **settings)
        result = certify(adversary, batch, w, radius=radius)
        worst = result.worst
        plan = (penalty, penalty, 0.0)
        if isinstance(worst, BallSolution):
            plan = (worst.low_penalty, worst.high_penalty, worst.share)
        classes = named.get("classes", np.arange(n_labels) if n_labels else None)
        decoded = y.numpy() if classes is None else classes[y.numpy()]
        return result.certificate, TransportedWorstCase(
            result.adversary,
            reference,
            *plan,
            result.certificate.worst_case_risk,
            (x.numpy(), decoded, w.numpy()),
            classes,
            named.get("feature_names"),
            None if cost is None else cost.weights,
        )

    return worst_case


def losses(model, loss, x, y):
    return get_loss(loss).value(model.linearise(torch.as_tensor(x))[0], torch.as_tensor(y)).numpy()


# -- the measure -----------------------------------------------------------------------------


@pytest.mark.promise(3)
@pytest.mark.parametrize("radius", [0.1, 0.5, 2.0])
def test_plan_spends_its_budget_on_the_draws_it_was_made_for(make, network, radius):
    certificate, worst = make(network, "logistic", two_gaussians(), radius=radius)
    x, y, w = worst.evaluation
    moved = worst.transport(x, y)
    spent = float(w @ ((moved - x) ** 2).sum(1))
    assert spent <= radius**2 * (1 + 1e-9)
    before, after, _, mass = worst.pairs()
    np.testing.assert_allclose(mass.sum(), 1.0, rtol=1e-12)
    mixed = float(mass @ ((after - before) ** 2).sum(1))
    np.testing.assert_allclose(mixed, certificate.transport_cost, rtol=1e-9)
    assert mixed == pytest.approx(radius**2, rel=1e-9)
    labels = worst.pairs()[2]
    risk = float(mass @ losses(network, "logistic", after, labels))
    assert risk == pytest.approx(worst.risk(), rel=1e-9)
    assert certificate.lower == worst.risk()


@pytest.mark.promise(3)
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("radius", [0.3, 1.5])
def test_samples_reproduce_the_attained_risk_and_the_budget(make, linear, loss, radius):
    """An exact plan, so that fresh draws have the same mean up to Monte-Carlo error."""
    model = linear([1.5, -0.5], 0.2)
    certificate, worst = make(model, loss, two_gaussians(), radius=radius, n=20_000)
    x, y = worst.sample(20_000, random_state=5)
    assert x.shape == (20_000, 2)
    values = losses(model, loss, x, y)
    error = math.hypot(values.std() / math.sqrt(20_000), certificate.standard_error)
    assert abs(values.mean() - worst.risk()) < 5 * error
    again, _ = worst.sample(20_000, random_state=5)
    np.testing.assert_array_equal(again, x)
    # Fresh draws of the reference, moved: the budget holds in the mean.
    fresh, labels = two_gaussians().sample(20_000, torch.Generator().manual_seed(8))
    moved = worst.transport(fresh.numpy(), labels.numpy())
    cost = ((moved - fresh.numpy()) ** 2).sum(1)
    # The deterministic map is the one of the larger penalty, at most the budget.
    assert cost.mean() <= radius**2 + 5 * cost.std() / math.sqrt(20_000)


def test_a_mixture_is_sampled_with_its_share(build, linear):
    """Two atoms below the threshold: a known share of each is moved far, the rest hardly."""
    reference = ClassConditional(Empirical()).fit([[3.0], [3.5], [-3.0]], [1, 1, 0])
    x, y, w = reference.points(3)
    adversary, batch = build(linear([4.0]), "hinge", x, y)
    result = certify(adversary, batch, w, radius=0.5, sampled=False)
    ball = result.worst
    assert 0.0 < ball.share < 1.0
    worst = TransportedWorstCase(
        adversary, reference, ball.low_penalty, ball.high_penalty, ball.share,
        result.certificate.lower, (x.numpy(), y.numpy(), w.numpy()), np.arange(2),
    )  # fmt: skip
    z, labels = worst.sample(20_000, random_state=0)
    low = adversary.with_penalty(ball.low_penalty).solve(batch)
    high = adversary.with_penalty(ball.high_penalty).solve(batch)
    ends = [adversary.objective.decode(batch, m.q)[:, 0].numpy() for m in (low, high)]
    differs = ~np.isclose(ends[0], ends[1])
    assert differs.any()
    for i in np.flatnonzero(differs):
        there = np.isclose(z[labels == y[i].item(), 0], ends[0][i]).sum()
        here = np.isclose(z[labels == y[i].item(), 0], ends[1][i]).sum()
        share = there / (there + here)
        assert abs(share - ball.share) < 5 * 0.5 / math.sqrt(there + here)
    assert repr(worst).endswith(f"plan=mixture of two maps ({ball.share:.3f}))")


def test_radius_zero_moves_nothing_whatever_the_units(make, linear):
    for unit in (1e-12, 1.0, 1e12):
        model = linear([1.0 / unit, 0.0])
        parts = [Gaussian([m * unit, 0.0], unit**2 * np.eye(2)) for m in (-1.0, 1.0)]
        reference = ClassConditional.from_measures(parts)
        certificate, worst = make(model, "logistic", reference, radius=0.0)
        x, y, _ = worst.evaluation
        np.testing.assert_array_equal(worst.transport(x, y), x)
        assert certificate.lower == certificate.upper == certificate.nominal_risk
        np.testing.assert_allclose(
            worst.log_prob(x[:5], y[:5]), reference.log_prob(x[:5], y[:5]).numpy()
        )


# -- the density -----------------------------------------------------------------------------


def grid(limit=9.0, n=241):
    axis = np.linspace(-limit, limit, n)
    xx, yy = np.meshgrid(axis, axis)
    return np.column_stack([xx.ravel(), yy.ravel()]), (axis[1] - axis[0]) ** 2


def integral(worst, label, n=241):
    points, area = grid(n=n)
    return float(np.exp(worst.log_prob(points, np.full(len(points), label))).sum() * area)


@pytest.mark.parametrize("penalty", [20.0, 4.0])
def test_density_is_the_formula_above_the_threshold(make, network, penalty):
    """p0(S(z)) det(I - hess / 2 penalty), S(z) = z - grad / 2 penalty; METHOD section 2."""
    reference = two_gaussians()
    _, worst = make(network, "logistic", reference, penalty=penalty)
    gen = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(40, 2, generator=gen, dtype=torch.float64)
    y = torch.arange(40) % 2
    expected = []
    for point, label in zip(z, y, strict=True):
        value = lambda p, label=label: get_loss("logistic").value(  # noqa: E731
            network(p[None]), label[None]
        )[0]
        gradient = torch.autograd.functional.jacobian(value, point)
        hessian = torch.autograd.functional.hessian(value, point)
        source = point - gradient / (2 * penalty)
        bend = torch.eye(2, dtype=torch.float64) - hessian / (2 * penalty)
        density = reference.log_prob(source[None], label[None])[0]
        assert float(torch.linalg.eigvalsh(bend)[0]) > 0
        expected.append(float(density + torch.logdet(bend)))
    np.testing.assert_allclose(worst.log_prob(z.numpy(), y.numpy()), expected, rtol=1e-9)


@pytest.mark.parametrize("penalty", [20.0, 4.0, 0.6, 0.25])
@pytest.mark.parametrize("label", [0, 1])
def test_density_integrates_to_one(make, network, penalty, label):
    """Above the threshold and below, where it vanishes on regions that no sample reaches."""
    solver = Pointwise(corrections=100)
    _, worst = make(network, "logistic", two_gaussians(), penalty=penalty, solver=solver)
    total = integral(worst, label)
    # Riemann sums: spectral accuracy for a smooth density; below the threshold the density
    # jumps along curves (a strip of a grid cell), and starts miss a few basins.
    assert total == pytest.approx(1.0, abs=1e-3 if penalty >= 4.0 else 0.03)


def test_density_of_a_mixture_integrates_to_one(make, network):
    certificate, worst = make(network, "logistic", two_gaussians(), radius=0.3)
    assert worst.low_penalty <= certificate.penalty <= worst.high_penalty
    assert integral(worst, 0, n=121) == pytest.approx(1.0, abs=0.02)


def test_density_agrees_with_samples(make, network):
    """Cross-entropy: mean of log p over samples of p against its integral on a grid."""
    _, worst = make(network, "logistic", two_gaussians(), penalty=4.0)
    x, y = worst.sample(4000, random_state=1)
    values = worst.log_prob(x, y)
    assert np.isfinite(values).mean() > 0.999  # samples land where the density is
    points, area = grid()
    expected = 0.0
    for label in (0, 1):
        log_p = worst.log_prob(points, np.full(len(points), label))
        p = np.exp(log_p)
        expected += 0.5 * float((p * np.where(p > 0, log_p, 0.0)).sum() * area)
    kept = values[np.isfinite(values)]
    assert abs(kept.mean() - expected) < 5 * kept.std() / math.sqrt(len(kept))


def test_density_of_a_linear_model_with_immutable_columns(make, linear):
    """Hinge: a share of the mass is translated by theta / 2 penalty, column 1 stays."""
    cost = GroundCost(np.array([2.0, np.inf]))
    reference = two_gaussians()
    _, worst = make(linear([1.0, 3.0]), "hinge", reference, penalty=1.5, cost=cost)
    points, area = grid()
    total = np.exp(worst.log_prob(points, np.zeros(len(points), int))).sum() * area
    # The moved and the unmoved part each end in a straight edge on the grid.
    assert total == pytest.approx(1.0, abs=0.03)
    x, y, _ = worst.evaluation
    np.testing.assert_array_equal(worst.transport(x, y)[:, 1], x[:, 1])


def test_what_has_no_density_says_so(make, network, linear):
    z, y = np.zeros((2, 2)), np.array([0, 1])
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [0.5, 0.1]])
    empirical = ClassConditional(Empirical()).fit(rows, [0, 1, 0, 1])
    with pytest.raises(UnsupportedError, match="Empirical has no density"):
        make(network, "logistic", empirical)[1].log_prob(z, y)
    box = GroundCost(np.ones(2), np.full(2, -3.0), np.full(2, 3.0))
    with pytest.raises(UnsupportedError, match="bounds"):
        make(network, "logistic", two_gaussians(), cost=box)[1].log_prob(z, y)
    with pytest.raises(UnsupportedError, match="label_cost"):
        make(network, "logistic", two_gaussians(), label_cost=0.5)[1].log_prob(z, y)
    relu = MLP(2, 1, hidden=(4,), activation="relu")
    with pytest.raises(UnsupportedError, match="relu"):
        make(relu, "logistic", two_gaussians())[1].log_prob(z, y)


# -- bounds and movable labels ---------------------------------------------------------------


def test_samples_stay_inside_the_bounds(make, network):
    """Draws of a reference that leaks out of the box count as lying on it."""
    box = GroundCost(np.ones(2), np.full(2, -1.0), np.full(2, 1.0))
    certificate, worst = make(network, "logistic", two_gaussians(), radius=0.3, cost=box)
    x, y = worst.sample(2000, random_state=0)
    assert np.abs(x).max() <= 1 + 1e-12
    risk = losses(network, "logistic", x, y)
    error = risk.std() / math.sqrt(2000) + certificate.standard_error
    assert abs(risk.mean() - worst.risk()) < 5 * error + 0.02 * worst.risk()


def test_labels_move_where_they_may(make, linear):
    _, worst = make(
        linear([2.0, 0.0]), "logistic", two_gaussians(), penalty=1.0, label_cost=0.1,
        classes=np.array(["no", "yes"]),
    )  # fmt: skip
    _, y = worst.sample(500, random_state=0)
    assert set(y) == {"no", "yes"}
    _, before = two_gaussians().sample(500, torch.Generator().manual_seed(0))
    assert (y != np.array(["no", "yes"])[before.numpy()]).mean() > 0.3


# -- tables and errors -----------------------------------------------------------------------


def test_displacement_adds_up(make, network):
    cost = GroundCost(np.array([1.0, 5.0]))
    _, worst = make(
        network, "logistic", two_gaussians(), radius=0.4, cost=cost,
        classes=np.array(["a", "b"]), feature_names=("age", "income"),
    )  # fmt: skip
    table = worst.displacement()
    assert list(table.columns) == [
        "class", "feature", "mean", "q05", "median", "q95", "rms", "share",
    ]  # fmt: skip
    assert table["class"].tolist() == ["a", "a", "b", "b"]
    assert table["feature"].tolist() == ["age", "income"] * 2
    assert table["share"].sum() == pytest.approx(1.0, rel=1e-12)
    assert (table["share"] >= 0).all()
    assert (table["q05"] <= table["median"]).all()
    assert (table["median"] <= table["q95"]).all()
    # rms and class masses give back the budget.
    spent = 0.5 * (table["rms"] ** 2 * np.tile([1.0, 5.0], 2)).sum()
    assert spent == pytest.approx(0.16, rel=1e-6)
    assert worst.displacement().equals(table)


def test_displacement_of_nothing_has_no_shares(make, network):
    _, worst = make(network, "logistic", two_gaussians(), radius=0.0)
    assert worst.displacement()["share"].tolist() == [0.0] * 4


def test_without_stored_draws_the_reference_is_drawn_again(make, network):
    _, worst = make(network, "logistic", two_gaussians(), penalty=4.0)
    bare = TransportedWorstCase(
        worst.adversary, worst.reference, 4.0, 4.0, 0.0, worst.risk(), None, np.arange(2)
    )
    stored, drawn = worst.displacement(), bare.displacement()
    # Two thousand stratified draws against five hundred.
    np.testing.assert_allclose(stored["mean"], drawn["mean"], atol=0.05)
    assert stored["feature"].tolist() == ["x0", "x1"] * 2


def test_regression_has_no_classes(make, build):
    gen = torch.Generator().manual_seed(0)
    model = MLP(2, 1, hidden=(4,), generator=gen)
    x = torch.randn(80, 2, generator=gen, dtype=torch.float64)
    reference = Joint(Gaussian()).fit(x.numpy(), (x[:, 0] + x[:, 1]).numpy())
    _, worst = make(model, "huber", reference, radius=0.3, n_labels=0)
    table = worst.displacement()
    assert "class" not in table.columns
    assert len(table) == 2
    frame = worst.to_frame(7)
    assert list(frame.columns) == ["x0", "x1", "target"]
    assert frame.shape == (7, 3)
    assert np.isfinite(worst.log_prob(x[:5].numpy(), x[:5, 0].numpy())).any()


def test_rows_and_labels_are_checked(make, network):
    _, worst = make(network, "logistic", two_gaussians(), classes=np.array(["a", "b"]))
    with pytest.raises(InvalidDataError, match=r"shape \(3, 4\); expected \(n, 2\)"):
        worst.transport(np.zeros((3, 4)), ["a"] * 3)
    with pytest.raises(InvalidDataError, match="X has 3 rows and y has 2"):
        worst.transport(np.zeros((3, 2)), ["a", "b"])
    with pytest.raises(InvalidDataError, match=r"labels \['c'\]"):
        worst.transport(np.zeros((2, 2)), ["a", "c"])
    assert repr(worst).endswith("plan=map)")
