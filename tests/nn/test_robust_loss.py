"""The worst reweighting of a batch: values, gradients, batches' bias, running multipliers."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch

from drojko.ambiguity import (
    KL,
    MMD,
    AmbiguitySet,
    ChiSquare,
    CressieRead,
    CVaR,
    DensityRatioSet,
    Dual,
    Group,
    Sinkhorn,
    TotalVariation,
    Wasserstein,
)
from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError
from drojko.nn import RobustLoss

SETS = {
    "kl": KL(radius=0.2),
    "kl, priced": KL(penalty=2.0),
    "chi-square": ChiSquare(radius=0.5),
    "cressie-read": CressieRead(3.0, radius=0.1),
    "hellinger": CressieRead(0.5, radius=0.1),
    "cvar": CVaR(0.3),
    "tv": TotalVariation(radius=0.2),
    "group": Group(),
    "group, near": Group(radius=0.2),
    "mmd": MMD(bandwidth=1.0, radius=0.3),
}
#: Sets with a bound of each row, whose multipliers can run.
RUNNING = {name: SETS[name] for name in ("kl", "kl, priced", "chi-square", "cressie-read", "cvar")}


class Entropy(DensityRatioSet):
    """A divergence of one's own, from its formulas."""

    def __init__(self, radius=None, *, penalty=None):
        self.radius = radius
        self.penalty = penalty

    def discrepancy(self, ratio, weights):
        return float(weights @ (ratio * np.log(np.maximum(ratio, 1e-300)) - ratio + 1.0))

    def conjugate(self, t):
        return np.expm1(t)

    def log_ratio(self, t):
        return t


class Halves(AmbiguitySet):
    """A set of one's own by the protocol alone: the worse half of the rows counts 1.5 times."""

    def __init__(self, radius=None, *, penalty=None):
        self.radius = radius
        self.penalty = penalty

    def on(self, x, weights, groups=None):
        return _Halves(weights)


class _Halves:
    def __init__(self, w):
        self.w = w

    def dual(self, losses, smoothing=0.0):
        ratio = np.where(losses > np.median(losses), 1.5, 0.5)
        value = float(self.w @ (ratio * losses))
        return Dual(value, 1.0, 0.0, ratio, value, 1.0)


def batch(rng, n=24):
    losses = torch.from_numpy(rng.exponential(size=n)).requires_grad_()
    weights = rng.uniform(0.5, 2.0, size=n)
    known = {"groups": rng.integers(3, size=n), "points": rng.normal(size=(n, 2))}
    return losses, weights, known


# One batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_value_is_the_dual_and_the_gradient_its_weights(name, rng):
    losses, weights, known = batch(rng)
    value = RobustLoss(SETS[name])(losses, weights, **known)
    (3.0 * value).backward()
    w = weights / weights.sum()
    bound = SETS[name].bind(known["points"], None, w, known["groups"])
    dual = bound.dual(losses.detach())
    assert value.item() == pytest.approx(dual.value, rel=1e-9)
    np.testing.assert_allclose(losses.grad.numpy(), 3.0 * w * dual.ratio, rtol=1e-9, atol=1e-12)
    assert losses.grad.sum().item() == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("name", ["kl", "kl, priced", "chi-square", "cressie-read", "group"])
def test_gradient_is_that_of_the_value(name, rng):
    losses, weights, known = batch(rng, 8)
    robust = RobustLoss(SETS[name])
    assert torch.autograd.gradcheck(lambda t: robust(t, weights, **known), (losses,), atol=1e-5)


def test_sets_of_ones_own_work_by_the_protocol(rng):
    losses, weights, _ = batch(rng)
    assert RobustLoss(Entropy(0.2))(losses, weights).item() == pytest.approx(
        RobustLoss(KL(0.2))(losses, weights).item(), rel=1e-9
    )
    value = RobustLoss(Halves(1.0))(losses)
    value.backward()
    assert sorted(set(losses.grad.tolist())) == pytest.approx([0.5 / 24, 1.5 / 24])


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_and_device_stay(kind, device):
    losses = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=kind, device=device, requires_grad=True)
    value = RobustLoss(CVaR(0.5))(losses, weights=torch.ones(4, device=device))
    value.backward()
    assert (value.dtype, value.device) == (losses.dtype, losses.device)
    assert (losses.grad.dtype, value.item()) == (kind, 3.0)
    assert losses.grad.tolist() == [0.0, 0.0, 0.5, 0.5]


def test_weights_may_be_tensors_and_count_as_copies(rng):
    losses, _, _ = batch(rng, 6)
    counts = torch.tensor([1, 2, 3, 1, 1, 2])
    robust = RobustLoss(KL(0.3))
    copies = robust(losses.repeat_interleave(counts))
    assert robust(losses, counts).item() == pytest.approx(copies.item(), rel=1e-12)


def test_one_sample_is_its_own_worst_case():
    loss = torch.tensor([2.5], requires_grad=True)
    for name in ("kl", "chi-square", "cvar", "tv"):
        loss.grad = None
        value = RobustLoss(SETS[name])(loss)
        value.backward()
        assert (value.item(), loss.grad.item()) == (2.5, 1.0)


def test_second_derivatives_are_refused_and_first_ones_kept(rng):
    losses, _, _ = batch(rng)
    robust = RobustLoss(KL(0.2))
    (gradient,) = torch.autograd.grad(robust(losses), losses, create_graph=True)
    with pytest.raises(UnsupportedError, match="no second derivatives"):
        gradient.square().sum().backward()
    # Right in what comes after: d/ds of the gradient of s * V is the weights.
    scale = torch.tensor(2.0, requires_grad=True, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(scale * robust(losses), losses, create_graph=True)
    (slope,) = torch.autograd.grad(gradient.sum(), scale)
    assert slope.item() == pytest.approx(1.0, rel=1e-9)


def test_training_with_it_ends_where_the_estimator_does(rng):
    from drojko import DROClassifier

    x = rng.normal(size=(60, 2))
    y = (x[:, 0] + rng.normal(size=60) > 0).astype(int)
    fit = DROClassifier(KL(radius=0.1), reference="empirical", tol=1e-8, max_iter=500).fit(x, y)
    z, sign = torch.from_numpy(np.c_[x, np.ones(60)]), torch.from_numpy(2.0 * y - 1.0)
    theta, robust = torch.zeros(3, dtype=torch.float64, requires_grad=True), RobustLoss(KL(0.1))
    for _ in range(400):
        value = robust(torch.nn.functional.softplus(-sign * (z @ theta)))
        (slope,) = torch.autograd.grad(value, theta)
        theta.data -= slope
    assert value.item() == pytest.approx(fit.certificate_.upper, abs=1e-6)
    np.testing.assert_allclose(theta.detach()[:2], fit.coef_[0], atol=1e-3)


# Bad input ---------------------------------------------------------------------------------------

GOOD = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("losses", "known", "words"),
    [
        (torch.empty(0), {}, "empty"),
        (GOOD.mean(), {}, "reduction='none'"),
        (GOOD[:, None], {}, "shape"),
        (GOOD.numpy(), {}, "floating tensor"),
        (GOOD.long(), {}, "floating tensor"),
        (GOOD, {"weights": [1.0, -1.0, 1.0]}, "weights"),
        (GOOD, {"weights": [0.0, 0.0, 0.0]}, "all zero"),
        (GOOD, {"weights": [1.0, math.nan, 1.0]}, "finite"),
        (GOOD, {"weights": [1.0]}, "one per row"),
        (GOOD, {"groups": ["a"]}, "each of the 3 rows"),
        (GOOD, {"points": np.ones((2, 2))}, "points"),
    ],
)
def test_bad_batches_are_clear_errors(losses, known, words):
    with pytest.raises(InvalidDataError, match=words):
        RobustLoss(KL(0.1))(losses, **known)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_name_their_row(bad):
    with pytest.raises(NonFiniteError, match=r"losses\[1\] is") as caught:
        RobustLoss(KL(0.1))(torch.tensor([1.0, bad]))
    assert isinstance(caught.value, InvalidDataError)


def test_missing_groups_and_points_are_asked_for():
    with pytest.raises(InvalidDataError, match="groups=labels"):
        RobustLoss(Group())(GOOD)
    with pytest.raises(InvalidDataError, match="points=features"):
        RobustLoss(MMD(radius=0.1))(GOOD)


@pytest.mark.parametrize(
    "ambiguity", [Wasserstein(0.1), Wasserstein(0.1, order=1), Sinkhorn(epsilon=0.1, radius=0.1)]
)
def test_sets_that_move_rows_are_sent_to_worst_inputs(ambiguity):
    with pytest.raises(UnsupportedError, match="worst_inputs"):
        RobustLoss(ambiguity)


def test_settings_are_checked():
    with pytest.raises(InvalidDataError, match="radius or a penalty"):
        RobustLoss(KL())
    with pytest.raises(InvalidDataError, match="momentum"):
        RobustLoss(KL(0.1), running=True, momentum=0.0)
    with pytest.raises(InvalidDataError, match="running"):
        RobustLoss(KL(0.1), running="yes")


# Batches -----------------------------------------------------------------------------------------


def mean_of_batches(robust, batches, known=lambda i: {}):
    values = np.array([robust(one, **known(i)).item() for i, one in enumerate(batches)])
    return values.mean(), values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("name", [*RUNNING, "tv"])
def test_batches_are_too_small_on_average(name, rng):
    batches = torch.from_numpy(rng.exponential(size=(300, 16)))
    mean, _ = mean_of_batches(RobustLoss(SETS[name]), batches)
    # The mean of minima is below the minimum of the mean: of these very rows, without any error.
    assert mean < 0.995 * SETS[name].dual(batches.flatten()).value


def test_batches_of_groups_err_upwards(rng):
    batches = torch.from_numpy(rng.exponential(size=(300, 16)))
    groups = np.repeat([0, 1], 8)
    mean, _ = mean_of_batches(RobustLoss(Group()), batches, lambda i: {"groups": groups})
    exact = Group().on(None, None, np.tile(groups, 300)).dual(batches.flatten()).value
    assert mean > 1.005 * exact


@pytest.mark.parametrize("name", RUNNING)
def test_running_multipliers_remove_the_bias(name, rng):
    batches = torch.from_numpy(rng.exponential(size=(1600, 16)))
    robust = RobustLoss(SETS[name], running=True, momentum=None)
    for one in batches:
        robust(one)
    robust.eval()  # at the converged multipliers
    dual = SETS[name].dual(batches.flatten())
    mean, error = mean_of_batches(robust, batches)
    # Above, as any multipliers give an upper bound; and by no more than the steps' own noise.
    assert dual.value * (1.0 - 1e-12) <= mean <= dual.value + 0.25 * error
    assert error < 0.02 * dual.value
    assert robust.shift.item() == pytest.approx(dual.shift, rel=0.1)
    if SETS[name].radius is not None:
        assert robust.penalty.item() == pytest.approx(dual.penalty, rel=0.1)


def test_a_batch_is_read_at_the_multipliers_before_it(rng):
    first, second = torch.from_numpy(rng.exponential(size=(2, 16)))
    second.requires_grad_()
    robust = RobustLoss(KL(0.2), running=True)
    assert robust(first).item() == KL(0.2).dual(first).value
    penalty, shift = robust.penalty.item(), robust.shift.item()
    value = robust(second)
    value.backward()
    ratio = torch.exp((second.detach() - shift) / penalty)
    bound = shift + penalty * 0.2 + penalty * (ratio.mean() - 1.0)
    assert value.item() == pytest.approx(bound.item(), rel=1e-12)
    np.testing.assert_allclose(second.grad, ratio / 16, rtol=1e-12)
    assert (robust.penalty.item(), robust.shift.item()) != (penalty, shift)


def test_multipliers_go_through_the_state_and_stay_in_evaluation(rng):
    batches = torch.from_numpy(rng.exponential(size=(6, 16)))
    robust = RobustLoss(KL(0.2), running=True)
    for one in batches[:4]:
        robust(one)
    file = io.BytesIO()
    torch.save(robust.state_dict(), file)
    file.seek(0)
    other = RobustLoss(KL(0.2), running=True)
    other.load_state_dict(torch.load(file))
    assert set(other.state_dict()) == {"penalty", "shift", "spread", "count"}
    assert other(batches[4]).item() == robust(batches[4]).item()
    before = copy.deepcopy(robust.state_dict())
    robust.eval()
    robust(batches[5])
    assert robust.state_dict() == before
    assert not RobustLoss(KL(0.2)).state_dict()


def test_copies_and_pickles_go_on_from_the_same_multipliers(rng):
    batches = torch.from_numpy(rng.exponential(size=(3, 16)))
    robust = RobustLoss(KL(0.2), running=True)
    robust(batches[0])
    for other in (copy.deepcopy(robust), pickle.loads(pickle.dumps(robust))):
        assert other(batches[1]).item() == copy.deepcopy(robust)(batches[1]).item()
    assert repr(robust) == "RobustLoss(KL(radius=0.2), running=True, momentum=0.05)"


def test_losses_far_beyond_the_multipliers_start_anew(rng):
    robust = RobustLoss(KL(0.2), running=True)
    robust(torch.from_numpy(rng.exponential(size=16)))
    far = torch.from_numpy(1e4 * rng.exponential(size=16))
    assert robust(far).item() == KL(0.2).dual(far).value
    assert robust.shift.item() == pytest.approx(KL(0.2).dual(far).shift)


def test_equal_losses_wait_for_others():
    robust = RobustLoss(KL(0.2), running=True)
    assert robust(torch.full((4,), 2.0)).item() == 2.0
    assert robust.count.item() == 0
    assert robust(torch.tensor([1.0, 2.0])).item() == pytest.approx(KL(0.2).dual([1, 2]).value)
    assert robust.count.item() == 1


def test_without_a_radius_to_spend_the_value_is_the_mean():
    for ambiguity in (KL(radius=0.0), CVaR(1.0)):
        robust = RobustLoss(ambiguity, running=True)
        assert robust(GOOD).item() == robust(GOOD).item() == 2.0


@pytest.mark.parametrize("name", ["tv", "hellinger", "group", "mmd"])
def test_running_is_refused_where_rows_have_no_bound_of_their_own(name):
    with pytest.raises(UnsupportedError, match="Use running=False"):
        RobustLoss(SETS[name], running=True)


def test_running_multipliers_of_a_set_of_ones_own(rng):
    batches = torch.from_numpy(rng.exponential(size=(20, 16)))
    ours, theirs = RobustLoss(Entropy(0.2), running=True), RobustLoss(KL(0.2), running=True)
    for one in batches:
        assert ours(one).item() == pytest.approx(theirs(one).item(), rel=1e-5)
