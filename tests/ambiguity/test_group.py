from functools import lru_cache

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko.ambiguity import Group
from drojko.exceptions import InvalidDataError

SEEDS = st.integers(0, 2**31)
SIZES = st.one_of(
    st.just({}),
    st.floats(0, 1).map(lambda r: {"radius": r}),
    st.floats(0.01, 5).map(lambda p: {"penalty": p}),
)


def instance(seed, n=20, n_groups=5):
    """Losses with ties, weights, and groups that overlap."""
    rng = np.random.default_rng(seed)
    members = rng.random((n, n_groups)) < 0.4
    members[np.arange(n), rng.integers(0, n_groups, n)] = True  # each row in one at least
    members[np.arange(n_groups), np.arange(n_groups)] = True  # none is empty
    weights = rng.uniform(0.1, 1, size=n)
    return rng, rng.integers(-4, 5, size=n) / 2, weights / weights.sum(), members


def centre(weights, members):
    """Shares of the groups and the groups themselves as columns of masses, written once more."""
    mass = weights @ members
    return mass / mass.sum(), weights[:, None] * members / mass


@lru_cache
def compiled(n_groups=5):
    """The program with its data as parameters: cvxpy is slow to set up and quick to solve."""
    q = cp.Variable(n_groups, nonneg=True)
    data = {
        "risks": cp.Parameter(n_groups),
        "shares": cp.Parameter(n_groups),
        "radius": cp.Parameter(nonneg=True),
        "penalty": cp.Parameter(nonneg=True),
        "smoothing": cp.Parameter(nonneg=True),
    }
    moved = cp.Variable(n_groups)
    distance = cp.norm1(moved) / 2
    price = data["penalty"] * distance + data["smoothing"] * cp.sum_squares(moved)
    limits = [cp.sum(q) == 1, moved == q - data["shares"], distance <= data["radius"]]
    return cp.Problem(cp.Maximize(data["risks"] @ q - price), limits), data


def program(losses, weights, members, radius=1.0, penalty=0.0, smoothing=0.0):
    shares, columns = centre(weights, members)
    problem, data = compiled()
    data["risks"].value, data["shares"].value = losses @ columns, shares
    data["radius"].value, data["penalty"].value = radius, penalty
    data["smoothing"].value = smoothing / 2
    return problem.solve(solver=cp.CLARABEL)


# The exact value --------------------------------------------------------------------------------


@settings(max_examples=200)
@given(SEEDS, SIZES)
def test_equals_the_linear_program(seed, size):
    _, losses, weights, members = instance(seed)
    dual = Group(**size).on(None, weights, members).dual(losses)
    assert dual.value == pytest.approx(program(losses, weights, members, **size), abs=1e-6)
    price = size.get("penalty", 0.0)
    assert dual.attained - price * dual.radius == pytest.approx(dual.value, abs=1e-12)


@settings(max_examples=200)
@given(SEEDS, SIZES, st.floats(0.01, 3))
def test_smoothed_value_is_the_quadratic_program(seed, size, smoothing):
    _, losses, weights, members = instance(seed)
    bound = Group(**size).on(None, weights, members)
    smooth, exact = bound.dual(losses, smoothing), bound.dual(losses).value
    expected = program(losses, weights, members, smoothing=smoothing, **size)
    assert smooth.value == pytest.approx(expected, abs=1e-6)
    error = smoothing * size.get("radius", 1.0) ** 2
    assert smooth.value - 1e-12 <= exact <= smooth.value + error + 1e-12


@given(SEEDS, SIZES, st.sampled_from([0.0, 0.1]))
def test_the_worst_case_is_a_mixture_in_the_set(seed, size, smoothing):
    _, losses, weights, members = instance(seed)
    dual = Group(**size).on(None, weights, members).dual(losses, smoothing)
    shares, columns = centre(weights, members)
    q = dual.group_weights
    assert (q >= 0).all()
    assert q.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(q - shares).sum() / 2 <= size.get("radius", 1.0) + 1e-12
    np.testing.assert_allclose(weights * dual.ratio, columns @ q, atol=1e-12)
    np.testing.assert_allclose(dual.group_risks, losses @ columns, atol=1e-12)
    assert dual.attained == pytest.approx((weights * dual.ratio) @ losses, abs=1e-12)


@settings(max_examples=200)
@given(SEEDS, st.floats(0, 1))
def test_no_mixture_inside_does_worse(seed, radius):
    rng, losses, weights, members = instance(seed)
    shares, columns = centre(weights, members)
    other = np.concatenate([rng.dirichlet(np.full(5, 0.3), size=200), np.eye(5)])
    length = np.abs(other - shares).sum(1) / 2
    part = np.minimum(1, radius / np.maximum(length, 1e-12))[:, None]
    inside = shares + part * (other - shares)
    dual = Group(radius).on(None, weights, members).dual(losses)
    assert (inside @ (losses @ columns) <= dual.value + 1e-12).all()


@given(SEEDS, SIZES)
def test_the_ratio_is_the_derivative_of_the_smoothed_value(seed, size):
    rng, _, weights, members = instance(seed)
    losses, direction = rng.normal(size=20), rng.normal(size=20)
    bound = Group(**size).on(None, weights, members)
    here = bound.dual(losses, 0.5)
    step = 1e-6
    ahead, behind = (bound.dual(losses + s * direction, 0.5) for s in (step, -step))
    slope = (ahead.value - behind.value) / (2 * step)
    assert (weights * here.ratio) @ direction == pytest.approx(slope, abs=1e-6)


# Limits and invariances -------------------------------------------------------------------------


def test_limits_of_the_radius():
    _, losses, weights, members = instance(0)
    shares, columns = centre(weights, members)
    risks = losses @ columns
    nothing = Group(0.0).on(None, weights, members).dual(losses)
    assert nothing.value == pytest.approx(shares @ risks, abs=1e-12)
    np.testing.assert_allclose(nothing.group_weights, shares, atol=1e-12)
    for ambiguity in (Group(), Group(1.0), Group(penalty=1e-9)):
        dual = ambiguity.on(None, weights, members).dual(losses)
        assert dual.value == pytest.approx(risks.max(), abs=1e-8)
    dear = Group(penalty=1e9).on(None, weights, members).dual(losses)
    assert dear.value == pytest.approx(shares @ risks, abs=1e-12)


def test_the_centre_of_a_partition_is_the_data():
    losses, labels = np.array([1.0, 2.0, 3.0, 9.0]), ["b", "a", "b", "b"]
    bound = Group(0.0).on(None, [1, 2, 3, 4], labels)
    assert bound.names == ["a", "b"]
    np.testing.assert_allclose(bound.shares, [0.2, 0.8])
    dual = bound.dual(losses)
    np.testing.assert_allclose(dual.ratio, 1)
    assert dual.value == pytest.approx((1 + 4 + 9 + 36) / 10)


@pytest.mark.parametrize("size", [{}, {"radius": 0.3}, {"penalty": 0.2}])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_group_and_equal_groups_are_the_mean(size, smoothing):
    losses = np.array([1.0, 2.0, 6.0, 3.0])
    one = Group(**size).on(None, None, [0, 0, 0, 0]).dual(losses, smoothing)
    assert (one.value, one.attained, one.radius) == pytest.approx((3.0, 3.0, 0.0))
    np.testing.assert_allclose(one.ratio, 1)
    # Groups of equal risk share what comes to them: nothing moves.
    tie = Group(**size).on(None, None, [0, 0, 1, 1]).dual([1.0, 3.0, 2.0, 2.0], smoothing)
    assert tie.value == pytest.approx(2.0)
    np.testing.assert_allclose(tie.group_weights, 0.5)


def test_mass_of_equal_worst_groups_is_shared_in_proportion():
    dual = Group().on(None, [1, 2, 3, 4], [0, 1, 2, 3]).dual([5.0, 5.0, 0.0, 0.0])
    np.testing.assert_allclose(dual.group_weights, [1 / 3, 2 / 3, 0, 0])


@given(SEEDS, SIZES, st.sampled_from([0.0, 0.3]))
def test_invariances(seed, size, smoothing):
    rng, losses, weights, members = instance(seed)
    ambiguity = Group(**size)
    dual = ambiguity.on(None, weights, members).dual(losses, smoothing)
    rows, columns = rng.permutation(20), rng.permutation(5)
    moved = ambiguity.on(None, weights[rows], members[rows][:, columns])
    permuted = moved.dual(losses[rows], smoothing)
    assert permuted.value == pytest.approx(dual.value, abs=1e-12)
    np.testing.assert_allclose(permuted.ratio, dual.ratio[rows], atol=1e-9)
    np.testing.assert_allclose(permuted.group_weights, dual.group_weights[columns], atol=1e-9)
    # Weight 2 is two copies, weight 0 is absence.
    count = rng.integers(1, 3, size=20)
    weighted = ambiguity.on(None, count, members).dual(losses, smoothing)
    copies = ambiguity.on(None, None, np.repeat(members, count, 0))
    assert copies.dual(np.repeat(losses, count), smoothing).value == pytest.approx(
        weighted.value, abs=1e-12
    )
    extra = ambiguity.on(None, np.append(count, 0), np.vstack([members, members[:1]]))
    absent = extra.dual(np.append(losses, 1e6), smoothing)
    assert absent.value == pytest.approx(weighted.value, abs=1e-12)


@pytest.mark.parametrize(
    "groups",
    [
        ["no", "no", "yes"],
        np.array([0.0, 0.0, 1.0]),
        torch.tensor([3, 3, 5]),
        pd.Series(["a", "a", "b"], dtype="category"),
        pd.Series([1, 1, 2], dtype="Int64"),
        np.array([[1, 0], [1, 0], [0, 1]], dtype=bool),
        pd.DataFrame({"young": [1, 1, 0], "old": [0, 0, 1]}),
        torch.tensor([[1, 0], [1, 0], [0, 1]]),
    ],
)
def test_all_forms_of_groups(groups):
    bound = Group().on(None, None, groups)
    assert bound.dual([1.0, 2.0, 4.0]).group_risks.tolist() == [1.5, 4.0]
    if isinstance(groups, pd.DataFrame):
        assert bound.names == ["young", "old"]


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "needs the groups of the rows"),
        (["a", None, "b"], r"groups\[1\] is missing"),
        ([0.0, 1.0, np.nan], r"groups\[2\] is missing"),
        (np.array(["a", 1, "b"], dtype=object), "no order"),
        (pd.Series([1, None, 2], dtype="Int64"), r"groups\[1\] is missing"),
        ([[1, 0], [0, 0], [0, 0]], r"row 1 of groups is in no group \(2 such rows\)"),
        ([[1, 0], [2, 0], [0, 1]], "must hold 0 and 1"),
        ([["a"], ["b"], ["b"]], "must hold 0 and 1"),
        ([[1, 0], [1, 0], [1, 0]], "group 1 has no row of positive weight"),
        ([0, 1], "weights has shape .* one per row"),
        ([], "groups has shape"),
        (3, "groups has shape"),
    ],
)
def test_groups_without_meaning(groups, message):
    with pytest.raises(InvalidDataError, match=message):
        Group().on(None, [1, 1, 1], groups)


def test_other_mistakes():
    with pytest.raises(InvalidDataError, match="group 'b' has no row of positive weight"):
        Group().on(None, [1, 1, 0], ["a", "a", "b"])
    with pytest.raises(InvalidDataError, match="weights must be finite"):
        Group().on(None, [1, -1], ["a", "b"])
    with pytest.raises(InvalidDataError, match="losses must be 2 finite"):
        Group().on(None, None, ["a", "b"]).dual([1.0, np.nan])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"radius": 1.5}, r"radius=1\.5; it is a share of mass"),
        ({"radius": -0.1}, "radius=-0.1"),
        ({"penalty": 0}, "penalty=0"),
        ({"radius": 0.1, "penalty": 1.0}, "exactly one"),
    ],
)
def test_sizes_without_meaning(size, message):
    ambiguity = Group(**size)
    for call in (lambda: ambiguity.validate(1), lambda: ambiguity.on(None, None, [0, 1])):
        with pytest.raises(InvalidDataError, match=message):
            call()


def test_no_size_is_the_whole_simplex():
    assert Group().validate(3) is None
    assert Group().budget == 1.0
    assert Group(0.3).budget == 0.3
    assert Group(penalty=2.0).budget is None
