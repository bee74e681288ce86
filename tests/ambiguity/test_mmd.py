import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from scipy.stats import energy_distance

from drojko.ambiguity import MMD
from drojko.ambiguity.duals import kernels as _kernels
from drojko.exceptions import InvalidDataError, UnsupportedError

SEEDS = st.integers(0, 2**31)
KERNELS = st.sampled_from(["gaussian", "laplace", "energy"])


def matrix(kernel, x, h):
    """Written once more: what the set computes with. Energy up to constants (sum p - w = 0)."""
    distance = cdist(x, x)
    if kernel == "gaussian":
        return np.exp(-(distance**2) / (2 * h**2))
    if kernel == "laplace":
        return np.exp(-distance / h)
    far = np.linalg.norm(x, axis=1)
    return (far[:, None] + far - distance) / h


def root(gram):
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(values, 0))


def instance(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    weights = rng.uniform(0.1, 1, size=n)
    return rng, x, weights / weights.sum(), rng.integers(-6, 7, size=n) / 2


def program(losses, weights, gram, radius=None, penalty=None):
    """The optimal value by cvxpy."""
    p = cp.Variable(len(losses), nonneg=True)
    distance = root(gram).T @ (p - weights)
    if radius is not None:
        limits, price = [cp.norm(distance) <= radius], 0
    else:
        limits, price = [], penalty * cp.sum_squares(distance)
    problem = cp.Problem(cp.Maximize(losses @ p - price), [cp.sum(p) == 1, *limits])
    return problem.solve(solver=cp.CLARABEL)


# The exact value --------------------------------------------------------------------------------


@settings(max_examples=200)
@example(seed=2415, n=2, kernel="energy", h=1.2109375, radius=0.001)  # once ended at the boundary
@example(seed=1433925211, n=12, kernel="gaussian", h=0.5348754663705474, radius=2.3e-4)
@given(SEEDS, st.integers(2, 12), KERNELS, st.floats(0.3, 2), st.floats(1e-3, 1))
def test_ball_is_the_cone_program(seed, n, kernel, h, radius):
    _, x, weights, losses = instance(seed, n)
    dual = MMD(kernel, h, radius=radius).on(x, weights).dual(losses)
    expected = program(losses, weights, matrix(kernel, x, h), radius=radius)
    assert dual.value == pytest.approx(expected, abs=1e-6)  # Clarabel's accuracy
    assert dual.attained == pytest.approx(dual.value, abs=1e-9)


@settings(max_examples=200)
@given(SEEDS, st.integers(2, 12), KERNELS, st.floats(0.3, 2), st.floats(0.01, 100))
def test_penalised_form_is_the_quadratic_program(seed, n, kernel, h, penalty):
    _, x, weights, losses = instance(seed, n)
    dual = MMD(kernel, h, penalty=penalty).on(x, weights).dual(losses)
    expected = program(losses, weights, matrix(kernel, x, h), penalty=penalty)
    assert dual.value == pytest.approx(expected, abs=1e-6)
    assert dual.attained - penalty * dual.radius == pytest.approx(dual.value, abs=1e-9)


@given(SEEDS, KERNELS, st.floats(1e-3, 1))
def test_both_sides_are_what_they_say(seed, kernel, radius):
    _, x, weights, losses = instance(seed, 40)
    dual = MMD(kernel, 0.7, radius=radius).on(x, weights).dual(losses)
    gram = matrix(kernel, x, 0.7)
    p = weights * dual.ratio
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert math.sqrt((p - weights) @ gram @ (p - weights)) <= radius * (1 + 1e-9)
    assert p @ losses == pytest.approx(dual.attained, abs=1e-12)
    # The dual function lies above the losses and has the norm that enters the bound.
    assert (dual.shift + dual.witness >= losses - 1e-12).all()
    bound = dual.shift + weights @ dual.witness + radius * dual.norm
    assert dual.value == pytest.approx(min(bound, losses.max()), abs=1e-9)
    if kernel == "laplace":  # well-conditioned: the norm can be recomputed from the values
        square = dual.witness @ np.linalg.solve(gram, dual.witness)
        assert dual.norm == pytest.approx(math.sqrt(square), rel=1e-6, abs=1e-6)
    assert 0 <= dual.value - dual.attained <= 1e-9


@settings(max_examples=200)
@given(SEEDS, KERNELS, st.floats(0.01, 1))
def test_no_reweighting_inside_does_worse(seed, kernel, radius):
    rng, x, weights, losses = instance(seed, 10)
    gram = matrix(kernel, x, 1.0)
    other = rng.dirichlet(np.full(10, 0.3), size=200)
    other = np.concatenate([other, np.eye(10)])
    shift = other - weights
    length = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", shift, gram, shift), 0))
    inside = weights + np.minimum(1, radius / length)[:, None] * shift
    dual = MMD(kernel, 1.0, radius=radius).on(x, weights).dual(losses)
    assert (inside @ losses <= dual.value + 1e-12).all()
    price = MMD(kernel, 1.0, penalty=2.0).on(x, weights).dual(losses)
    assert (other @ losses - 2.0 * length**2 <= price.value + 1e-12).all()


def test_two_points_in_closed_form():
    # P moves a mass t: MMD = t sqrt(2 - 2 k), so that the mean grows by radius / sqrt(2 - 2 k).
    k = math.exp(-0.5)
    dual = MMD(bandwidth=1.0, radius=0.3).on([[0.0], [1.0]], [0.6, 0.4]).dual([0.0, 2.0])
    assert dual.value == pytest.approx(0.8 + 2 * 0.3 / math.sqrt(2 - 2 * k), abs=1e-10)
    price = MMD(bandwidth=1.0, penalty=4.0).on([[0.0], [1.0]], [0.6, 0.4]).dual([0.0, 2.0])
    assert price.value == pytest.approx(0.8 + 4 / (4 * 4.0 * (2 - 2 * k)), abs=1e-10)


def test_energy_kernel_measures_the_energy_distance():
    rng = np.random.default_rng(0)
    x, losses = rng.normal(size=(15, 1)), rng.normal(size=15)
    weights = rng.uniform(0.1, 1, size=15)
    dual = MMD("energy", 2.0, radius=0.2).on(x, weights).dual(losses)
    p = weights * dual.ratio
    expected = energy_distance(x[:, 0], x[:, 0], p, weights) ** 2 / 2.0
    assert dual.radius == pytest.approx(expected, rel=1e-9)
    assert dual.distance == pytest.approx(0.2, rel=1e-9)


# Limits and shape -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "energy"])
def test_limits(kernel):
    _, x, weights, losses = instance(3, 20)
    dual = MMD(kernel, radius=0).on(x, weights).dual(losses)
    assert (dual.value, dual.attained) == pytest.approx((weights @ losses,) * 2, abs=1e-12)
    np.testing.assert_allclose(dual.ratio, 1, atol=1e-12)
    for size in ({"radius": 1e-12}, {"penalty": 1e11}):
        near = MMD(kernel, **size).on(x, weights).dual(losses)
        # Smooth kernels: the value is steep at 0, like the condition number of their matrix.
        assert near.value == pytest.approx(weights @ losses, abs=1e-4)
        spent = near.penalty * near.radius if "penalty" in size else 0.0
        assert near.attained - spent <= near.value
    for size in ({"radius": 100.0}, {"penalty": 1e-9}):
        far = MMD(kernel, **size).on(x, weights).dual(losses)
        assert far.value == pytest.approx(losses.max(), abs=1e-7)


@given(SEEDS, KERNELS)
def test_increasing_and_concave_in_the_radius(seed, kernel):
    _, x, weights, losses = instance(seed, 15)
    radii = np.linspace(0.02, 1.2, 12)
    values = [MMD(kernel, 1.0, radius=r).on(x, weights).dual(losses).value for r in radii]
    slopes = np.diff(values)
    assert (slopes >= -1e-9).all()
    assert (np.diff(slopes) <= 1e-9).all()


@given(SEEDS, st.floats(0.02, 0.3))
def test_radius_and_penalty_are_linked(seed, radius):
    # V(r) = min over penalties of penalty r^2 + its value, at the penalty reported.
    _, x, weights, losses = instance(seed, 15)
    dual = MMD("laplace", 1.0, radius=radius).on(x, weights).dual(losses)
    if dual.penalty < 1e-6:
        return
    price = MMD("laplace", 1.0, penalty=dual.penalty).on(x, weights).dual(losses)
    assert dual.penalty * radius**2 + price.value == pytest.approx(dual.value, abs=1e-8)
    assert price.distance == pytest.approx(radius, abs=1e-5)


@given(SEEDS, st.floats(0.05, 0.5))
def test_invariances(seed, radius):
    rng, x, weights, losses = instance(seed, 12)
    ambiguity = MMD(radius=radius)  # the bandwidth from the points
    dual = ambiguity.on(x, weights).dual(losses)
    order = rng.permutation(12)
    permuted = ambiguity.on(x[order], weights[order]).dual(losses[order])
    assert permuted.value == pytest.approx(dual.value, abs=1e-9)
    np.testing.assert_allclose(permuted.ratio, dual.ratio[order], atol=1e-3)
    scaled = ambiguity.on(1e3 * x + 5, 7 * weights).dual(2e5 * losses - 3)
    assert scaled.value == pytest.approx(2e5 * dual.value - 3, rel=1e-7, abs=1e-3)
    # Weight 2 is two copies, weight 0 is absence.
    count = rng.integers(0, 3, size=12)
    if np.unique(losses[count > 0]).size < 2:
        return
    weighted = ambiguity.on(x, count).dual(losses)
    copies = ambiguity.on(np.repeat(x, count, 0)).dual(np.repeat(losses, count))
    assert weighted.value == pytest.approx(copies.value, abs=1e-9)
    np.testing.assert_allclose(np.repeat(weighted.ratio, count), copies.ratio, atol=1e-3)
    assert (weighted.ratio[count == 0] == 0).all()


def test_equal_points_are_one():
    # Mass moves freely between them: to the larger loss, shared where losses are equal.
    bound = MMD(bandwidth=1.0, radius=0).on([[0.0], [0.0], [0.0], [3.0]], [0.1, 0.2, 0.3, 0.4])
    dual = bound.dual([1.0, 5.0, 5.0, 0.0])
    assert dual.value == pytest.approx(3.0)
    np.testing.assert_allclose(dual.ratio, [0, 1.2, 1.2, 1])
    assert MMD(radius=0.1).on([[1.0], [1.0]]).dual([2.0, 2.0]).value == 2.0


def test_constant_losses():
    dual = MMD(radius=0.5).on([[0.0], [1.0], [5.0]]).dual([2.0, 2.0, 2.0])
    assert (dual.value, dual.attained, dual.radius) == (2.0, 2.0, 0.0)
    np.testing.assert_array_equal(dual.ratio, 1)


# Labels, bandwidths, callables ------------------------------------------------------------------


def test_labels_keep_points_apart():
    rng, x, weights, losses = instance(1, 14)
    y = rng.integers(0, 2, size=14)
    dual = MMD(bandwidth=1.0, radius=0.2).on(x, weights, labels=y).dual(losses)
    gram = matrix("gaussian", x, 1.0) * (y[:, None] == y)
    assert dual.value == pytest.approx(program(losses, weights, gram, radius=0.2), abs=1e-6)
    words = np.array(["no", "yes"])[y]
    same = MMD(bandwidth=1.0, radius=0.2).on(x, weights, labels=words).dual(losses)
    assert same.value == dual.value
    # Equal points of different labels are two, so that radius 0 is the mean.
    twice = MMD(radius=0).on([[0.0], [0.0]], labels=[0, 1]).dual([1.0, 3.0])
    assert twice.value == 2.0


def test_real_labels_have_a_kernel_of_their_own():
    rng, x, weights, losses = instance(2, 14)
    y = rng.normal(size=14)
    bound = MMD(bandwidth=1.0, radius=0.2).on(x, weights, labels=torch.from_numpy(y))
    assert bound.label_bandwidth == pytest.approx(np.median(pdist(y[:, None])))
    gram = matrix("gaussian", x, 1.0) * matrix("gaussian", y[:, None], bound.label_bandwidth)
    expected = program(losses, weights, gram, radius=0.2)
    assert bound.dual(losses).value == pytest.approx(expected, abs=1e-6)


def test_energy_kernel_tells_label_shares_apart_everywhere():
    # Both points at the centre of the kernel: without the constant their kernel would vanish.
    bound = MMD("energy", 1.0, radius=0.1).on([[0.0], [0.0]], labels=[0, 1])
    assert bound.dual([0.0, 1.0]).value == pytest.approx(0.5 + 0.1 / math.sqrt(2), abs=1e-9)


def test_median_bandwidth_is_recorded():
    x = np.array([[0.0], [1.0], [1.0], [5.0]])
    assert MMD(radius=0.1).on(x).bandwidth == 4.0  # of 1, 4, 5
    assert MMD(bandwidth=2, radius=0.1).on(x).bandwidth == 2.0
    assert MMD(radius=0.1).on(x, [1, 1, 1, 0]).bandwidth == 1.0


@pytest.mark.parametrize("radius", [0.0, 0.2])
def test_callables(radius):
    _, x, weights, losses = instance(5, 10)
    named = MMD(bandwidth=1.0, radius=radius).on(x, weights).dual(losses)

    def on_arrays(a, b):
        return np.exp(-0.5 * ((a[:, None] - b) ** 2).sum(-1))

    def on_tensors(a, b):
        return torch.exp(-0.5 * torch.cdist(a, b) ** 2)

    for kernel in (on_arrays, on_tensors):
        dual = MMD(kernel, radius=radius).on(x, weights).dual(losses)
        assert dual.value == pytest.approx(named.value, abs=1e-5 if radius == 0 else 1e-8)


def test_singular_kernel():
    # Means and nothing else are told apart: among equal means, mass moves to the ends for free.
    ambiguity = MMD(lambda a, b: a @ b.T, radius=0.0)
    dual = ambiguity.on([[-1.0], [0.0], [1.0]]).dual([1.0, 0.0, 1.0])
    assert dual.value == pytest.approx(1.0, abs=1e-6)
    assert dual.attained == pytest.approx(1.0, abs=1e-6)


def test_kernels_that_are_none():
    x = np.linspace(0, 1, 5)[:, None]

    def on(kernel):
        return MMD(kernel, radius=0.1).on(x)

    with pytest.raises(
        InvalidDataError, match=r"smallest eigenvalue of its matrix is -2\..*-5e-09 "
    ):
        on(lambda a, b: -cdist(a, b) + 0.0)
    with pytest.raises(InvalidDataError, match=r"conditionally positive definite.*'energy'"):
        on(lambda a, b: -cdist(a, b))
    with pytest.raises(InvalidDataError, match=r"positive semidefinite.*'gaussian'"):
        on(lambda a, b: np.cos(9 * cdist(a, b)) - 0.5 * np.eye(len(a), len(b)))
    with pytest.raises(InvalidDataError, match=r"not symmetric.*differ by up to 1"):
        on(lambda a, b: a + 0 * b.T)
    with pytest.raises(InvalidDataError, match=r"shape \(5,\); expected .*\(5, 5\)"):
        on(lambda a, b: a[:, 0])
    with pytest.raises(InvalidDataError, match="NaN"):
        on(lambda a, b: np.nan * a @ b.T)


# Off the support --------------------------------------------------------------------------------


@settings(max_examples=15)
@given(SEEDS, KERNELS, st.floats(0.01, 0.5))
def test_bound_over_a_neighbourhood(seed, kernel, margin):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, 1))
    slope = 1.5  # loss(z) = 1.5 z, exactly Lipschitz
    z = np.concatenate([x, x + margin, x - margin, x + rng.uniform(-margin, margin, (8, 1))])
    gram = matrix(kernel, z, 0.8)
    weights = np.concatenate([np.full(8, 1 / 8), np.zeros(24)])
    worst = program(slope * z[:, 0], weights, gram, radius=0.2)
    bound = MMD(kernel, 0.8, radius=0.2).on(x)
    assert bound.upper_bound(slope * x[:, 0], margin, slope) >= worst - 1e-7
    price = MMD(kernel, 0.8, penalty=3.0).on(x)
    worst = program(slope * z[:, 0], weights, gram, penalty=3.0)
    assert price.upper_bound(slope * x[:, 0], margin, slope) >= worst - 1e-7


@pytest.mark.parametrize("size", [{"radius": 0.2}, {"penalty": 3.0}])
def test_bound_without_a_margin_is_the_value(size):
    _, x, weights, losses = instance(4, 10)
    bound = MMD(**size).on(x, weights)
    assert bound.upper_bound(losses) == pytest.approx(bound.dual(losses).value, abs=1e-8)
    margins = [bound.upper_bound(losses, m, 2.0) for m in (0, 0.01, 0.1, 1.0)]
    assert (np.diff(margins) > 0).all()
    assert margins[-1] <= losses.max() + 2.0 + 1e-9
    with pytest.raises(InvalidDataError, match="margin=-1"):
        bound.upper_bound(losses, -1)
    with pytest.raises(InvalidDataError, match="margin=inf; it must be a finite"):
        bound.upper_bound(losses, math.inf)
    with pytest.raises(UnsupportedError, match="callable kernel changes"):
        MMD(lambda a, b: a @ b.T, radius=0.1).on(x).upper_bound(losses, 0.1)


@given(st.floats(0.01, 3), st.floats(0.2, 3))
def test_modulus_of_the_gaussian_kernel(distance, h):
    # |k(x, .) - k(z, .)|^2 = 2 - 2 k(x, z), and it is at most (|x - z| / h)^2.
    kernel = _kernels.PointKernel("gaussian", h, np.zeros(1))
    assert kernel.modulus(distance) <= distance / h
    pair = kernel(np.array([[0.0], [distance]]), np.array([[0.0], [distance]]))
    assert kernel.modulus(distance) ** 2 == pytest.approx(2 - 2 * pair[0, 1], abs=1e-12)


# Size and speed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["gaussian", "laplace"])
@pytest.mark.parametrize("size", [{"radius": 0.1}, {"penalty": 5.0}])
def test_many_points_are_bounded_from_both_sides(kernel, size, monkeypatch):
    _, x, weights, losses = instance(6, 300)
    losses = losses + np.sin(x[:, 0])
    y = (x[:, 1] > 0).astype(int)
    exact = MMD(kernel, 1.0, **size).on(x, weights, labels=y).dual(losses)
    monkeypatch.setattr(_kernels, "WHOLE", 100)
    monkeypatch.setattr(_kernels, "RANK", 120)
    rough = MMD(kernel, 1.0, **size).on(x, weights, labels=y).dual(losses)
    lower = rough.attained - size.get("penalty", 0) * rough.radius
    reached = exact.attained - size.get("penalty", 0) * exact.radius
    assert lower - 1e-9 <= reached
    assert exact.value - 1e-9 <= rough.value
    # The matrix of the Laplace kernel has no small rank: its bounds are valid and wider.
    share = 0.02 if kernel == "gaussian" else 0.5
    assert rough.value - lower < share * np.ptp(losses)


def test_too_many_points_are_refused(monkeypatch):
    monkeypatch.setattr(_kernels, "LARGEST", 20)
    with pytest.raises(UnsupportedError, match=r"MMD on 21 points.*subsample"):
        MMD(radius=0.1).on(np.arange(21.0)[:, None])


@pytest.mark.parametrize("size", [{"radius": 0.05}, {"penalty": 20.0}])
def test_a_warm_start_changes_nothing(size):
    rng, x, weights, _ = instance(7, 120)
    bound = MMD(**size).on(x, weights)
    theta = rng.normal(size=2)
    for _ in range(6):
        theta = theta + 0.02 * rng.normal(size=2)
        losses = np.log1p(np.exp(x @ theta))
        fresh = MMD(**size).on(x, weights).dual(losses)
        again = bound.dual(losses)
        assert again.value == pytest.approx(fresh.value, abs=1e-8)
        np.testing.assert_allclose(again.ratio, fresh.ratio, atol=1e-3)


@pytest.mark.parametrize("size", [{"radius": 0.1}, {"penalty": 5.0}])
def test_the_gradient_in_the_losses_is_the_ratio(size):
    rng, x, weights, _ = instance(8, 30)
    losses, direction = rng.normal(size=30), rng.normal(size=30)
    bound = MMD("laplace", 1.0, **size).on(x, weights)
    dual = bound.dual(losses)
    step = 1e-5
    ahead, behind = bound.dual(losses + step * direction), bound.dual(losses - step * direction)
    slope = (ahead.value - behind.value) / (2 * step)
    assert weights * dual.ratio @ direction == pytest.approx(slope, abs=1e-5)


# Mistakes ---------------------------------------------------------------------------------------


def test_bandwidths_and_points_of_any_size(rng):
    points, losses = rng.normal(size=(12, 2)), rng.normal(size=12)
    for kernel in ("gaussian", "laplace"):
        near = MMD(kernel=kernel, bandwidth=1.0, radius=0.1).on(points).dual(losses).value
        own = MMD(kernel=kernel, radius=0.1)
        median = own.on(points).dual(losses).value
        for unit in (1e-200, 1e180, 1e300):
            scaled = MMD(kernel=kernel, bandwidth=unit, radius=0.1).on(points * unit)
            assert scaled.dual(losses).value == pytest.approx(near, rel=1e-6)
            assert own.on(points * unit).dual(losses).value == pytest.approx(median, rel=1e-6)
        alone = MMD(kernel=kernel, bandwidth=1e-200, radius=0.1).on(points).dual(losses)
        distinct = MMD(kernel=kernel, bandwidth=1e-4, radius=0.1).on(points).dual(losses)
        assert alone.value == pytest.approx(distinct.value, rel=1e-6)
    with pytest.raises(InvalidDataError, match="overflows"):
        MMD(kernel="energy", bandwidth=1e-200, radius=0.1).on(points)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a radius or a penalty"),
        ({"radius": 0.1, "penalty": 1.0}, "exactly one"),
        ({"radius": -0.1}, "radius=-0.1"),
        (
            {"radius": 0.1, "kernel": "rbf"},
            "kernel='rbf'; expected one of gaussian",
        ),
        ({"radius": 0.1, "kernel": 3}, "kernel=3; expected a name or a callable"),
        ({"radius": 0.1, "bandwidth": 0}, "bandwidth=0; it must be a finite positive number"),
        ({"radius": 0.1, "bandwidth": float("inf")}, "bandwidth=inf"),
        ({"radius": 0.1, "bandwidth": 1.0, "kernel": np.dot}, "set bandwidth=None"),
    ],
)
def test_settings_without_meaning(settings, message):
    ambiguity = MMD(**settings)
    for call in (lambda: ambiguity.validate(1), lambda: ambiguity.on([[0.0], [1.0]])):
        with pytest.raises(InvalidDataError, match=message):
            call()


def test_data_without_meaning():
    ambiguity = MMD(radius=0.1)
    with pytest.raises(InvalidDataError, match="finite points"):
        ambiguity.on([[0.0], [np.nan]])
    with pytest.raises(InvalidDataError, match="weights must be finite"):
        ambiguity.on([[0.0], [1.0]], [0.0, 0.0])
    with pytest.raises(InvalidDataError, match="labels has shape"):
        ambiguity.on([[0.0], [1.0]], labels=[1])
    with pytest.raises(InvalidDataError, match="losses must be 2 finite"):
        ambiguity.on([[0.0], [1.0]]).dual([1.0, np.inf])


def test_budget_is_the_square():
    assert MMD(radius=0.3).budget == pytest.approx(0.09)
    assert MMD(penalty=0.3).budget is None
    assert MMD(radius=0.3).validate(2) is None
