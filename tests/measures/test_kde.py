import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity

from drojko.exceptions import InvalidDataError
from drojko.measures import KDE, Empirical
from drojko.measures import kde as module


def test_log_prob_is_sklearns_in_units_of_the_deviation(rng):
    x, w = rng.normal(size=(40, 3)), rng.uniform(0.5, 2, 40)
    x = (x - np.average(x, axis=0, weights=w)) / np.sqrt(
        np.average((x - np.average(x, axis=0, weights=w)) ** 2, axis=0, weights=w)
    )
    units = np.array([1.0, 10.0, 0.1])
    oracle = KernelDensity(bandwidth=0.3, rtol=1e-14, atol=0).fit(x, sample_weight=w)
    query = rng.normal(size=(20, 3)) * 2
    expected = oracle.score_samples(query) - np.log(units).sum()
    measure = KDE(0.3).fit(x * units, w)
    np.testing.assert_allclose(measure.log_prob(query * units), expected, rtol=1e-10)


def test_scott_is_scipys_up_to_the_divisor(rng):
    x, w = rng.normal(size=(50, 1)), rng.uniform(0.5, 2, 50)
    oracle = gaussian_kde(x.T, weights=w)
    measure = KDE("scott").fit(x, w)
    assert measure.factor_ == pytest.approx(oracle.factor, rel=1e-12)
    # scipy divides the variance by 1 - sum w^2, we by 1.
    biased = 1 - np.sum((w / w.sum()) ** 2)
    assert measure.bandwidth_[0] ** 2 == pytest.approx(oracle.covariance[0, 0] * biased, rel=1e-10)
    assert KDE().fit(x, w).factor_ == measure.factor_


def test_likelihood_factor_maximises_the_leave_one_out_likelihood(rng):
    x, w = np.concatenate([rng.normal(size=25), rng.normal(6, 0.5, 15)]), rng.uniform(0.5, 2, 40)
    w = w / w.sum()
    measure = KDE("likelihood").fit(x[:, None], w)
    deviation = math.sqrt(w @ (x - w @ x) ** 2)

    def negative(log_h):
        b = math.exp(log_h) * deviation
        kernel = np.exp(-0.5 * ((x[:, None] - x) / b) ** 2) / (b * math.sqrt(2 * math.pi))
        np.fill_diagonal(kernel, 0.0)
        return -w @ np.log(kernel @ w / (1 - w))

    best = minimize_scalar(negative, bounds=(-3, 1), options={"xatol": 1e-8})
    assert math.log(measure.factor_) == pytest.approx(best.x, abs=1e-3)
    # Two far groups: Scott's rule smooths over the gap, the likelihood does not.
    assert measure.factor_ < 0.7 * KDE().fit(x[:, None], w).factor_


def test_likelihood_of_many_atoms_is_scored_on_some(rng, monkeypatch):
    x = rng.normal(size=(600, 2))
    everything = KDE("likelihood").fit(x).factor_
    monkeypatch.setattr(module, "_SCORED", 200)
    monkeypatch.setattr(module, "_PAIRS", 5000)
    # A third of the atoms: the factor moves by its sampling error of a few per cent.
    assert KDE("likelihood").fit(x).factor_ == pytest.approx(everything, rel=0.15)


def test_blocks_do_not_change_the_density(rng, monkeypatch):
    measure, query = KDE().fit(rng.normal(size=(30, 2))), rng.normal(size=(101, 2))
    whole = measure.log_prob(query)
    monkeypatch.setattr(module, "_PAIRS", 100)
    torch.testing.assert_close(measure.log_prob(query), whole, rtol=1e-12, atol=1e-12)
    assert measure.log_prob(torch.empty(0, 2)).shape == (0,)


@pytest.mark.parametrize("factor", [1e-12, 1e-5, 0.3])
def test_narrow_kernels_keep_their_digits(factor, rng):
    x = rng.normal(size=(20, 2)) + 100
    measure = KDE(factor).fit(x)
    b = measure.bandwidth_
    # Half a bandwidth from the first atom, up to the rounding of x itself.
    query = x[:1] + 0.5 * b
    shift = (query - x[:1]) / b
    alone = np.log(1 / 20) - 0.5 * (shift**2).sum() - np.log(b).sum() - np.log(2 * np.pi)
    value = measure.log_prob(query).item()
    if factor < 0.1:
        assert value == pytest.approx(alone, abs=1e-6 + 4e-15 * 100 / b.min())
    else:
        assert value > alone


@given(
    max_shift=st.floats(1e-6, 10),
    rule=st.sampled_from(["auto", "likelihood", 0.7]),
    cost=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
)
def test_max_shift_bounds_the_noise(max_shift, rule, cost):
    x = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 5.0, 0.2]
    measure = KDE(rule, max_shift=max_shift, shift_weights=cost).fit(x)
    free = KDE(rule).fit(x)
    noise = math.sqrt(np.sum(cost * measure.bandwidth_**2))
    uncapped = math.sqrt(np.sum(cost * free.bandwidth_**2))
    assert noise == pytest.approx(min(max_shift, uncapped), rel=1e-9)


def test_shift_bounds_the_exact_transport_cost(rng, generator):
    ot = pytest.importorskip("ot")
    x, cost = rng.normal(size=(40, 2)), np.array([1.0, 4.0])
    measure = KDE(max_shift=0.05, shift_weights=cost).fit(x)
    points, w = measure.points(2000, generator)
    a, b = points.numpy() * cost**0.5, x * cost**0.5
    squared = ot.emd2(w.numpy(), np.full(40, 1 / 40), ot.dist(a, b))
    # 2000 draws of a squared norm: standard error about 2 per cent.
    assert math.sqrt(squared) < 0.05 * 1.08


@pytest.mark.promise(2)
def test_no_shift_leaves_the_atoms(rng, generator):
    x = rng.normal(size=(6, 2))
    points, w = KDE(max_shift=0.0).fit(x).points(100, generator)
    expected, weights = Empirical(x).points()
    assert torch.equal(points, expected)
    torch.testing.assert_close(w, weights)


def test_fixed_columns_stay_and_select(rng, generator):
    x = np.column_stack([rng.normal(size=40), np.repeat([0.0, 1.0], 20), np.full(40, 3.0)])
    measure = KDE(0.4, fixed=[1]).fit(x)
    assert (measure.bandwidth_ > 0).tolist() == [True, False, False]
    assert set(measure.sample(50, generator)[:, 1].tolist()) == {0.0, 1.0}
    grid = np.linspace(-8, 8, 4001)
    for value, share in ((0.0, 0.5), (1.0, 0.5), (0.5, 0.0)):
        plane = np.column_stack([grid, np.full_like(grid, value), np.full_like(grid, 3.0)])
        total = np.trapezoid(measure.log_prob(plane).exp().numpy(), grid)
        assert total == pytest.approx(share, abs=1e-9)
    # The group's own estimate, with the common bandwidth.
    part = KDE(0.4).fit(x[:20, :1])
    part.bandwidth_ = measure.bandwidth_[:1]
    expected = part.log_prob(grid[::400, None]) + math.log(0.5)
    plane = np.column_stack([grid[::400], np.zeros(11), np.full(11, 3.0)])
    torch.testing.assert_close(measure.log_prob(plane), expected, rtol=1e-10, atol=1e-10)
    assert measure.log_prob(plane + np.array([0, 0, 1e-9])).max() == -math.inf


def test_fixed_values_are_compared_in_the_query_dtype(rng):
    x = np.column_stack([rng.normal(size=10), np.repeat([0.1, 0.7], 5)])
    measure = KDE(fixed=[1]).fit(x)
    single = torch.tensor(x, dtype=torch.float32)
    torch.testing.assert_close(measure.log_prob(single), measure.log_prob(x), rtol=1e-5, atol=1e-5)
    assert (measure.log_prob(single.double()) == -math.inf).all()


def test_infinite_cost_means_fixed(rng):
    x = rng.normal(size=(10, 2))
    measure = KDE(max_shift=0.1, shift_weights=[np.inf, 1.0]).fit(x)
    assert measure.bandwidth_[0] == 0
    assert measure.bandwidth_[1] == pytest.approx(0.1, rel=1e-12)


def test_likelihood_ignores_fixed_columns(rng):
    x = rng.normal(size=(30, 1))
    labelled = np.column_stack([x, np.arange(30.0)])
    expected = KDE("likelihood").fit(x).factor_
    assert KDE("likelihood", fixed=[-1]).fit(labelled).factor_ == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [1, 5, 6, 23])
def test_points_represent_each_atom_by_its_weight(n, rng, generator):
    x, w = rng.normal(size=(6, 2)), rng.uniform(1, 2, 6)
    measure = KDE().fit(x, w)
    each = math.ceil(n / 6)
    points, weights = measure.points(n, generator)
    assert len(points) == 6 * each
    np.testing.assert_allclose(weights.reshape(6, each).sum(1), w / w.sum(), rtol=1e-12)
    shift = (points.reshape(6, each, 2).numpy() - x[:, None]) / measure.bandwidth_
    assert np.abs(shift).max() < 7
    if each % 2 == 0:
        assert np.abs(shift.sum(1)).max() < 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        {"bandwidth": "silverman"},
        {"bandwidth": 0.0},
        {"bandwidth": -1},
        {"bandwidth": math.nan},
        {"max_shift": -0.1},
        {"max_shift": math.nan},
        {"shift_weights": [1.0]},
        {"shift_weights": [1.0, -1.0]},
        {"fixed": [2]},
        {"fixed": ["age"]},
    ],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(InvalidDataError, match=next(iter(settings))):
        KDE(**settings).fit([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.slow
def test_large_queries_and_fits(rng):
    measure = KDE().fit(rng.normal(size=(1000, 3)))
    assert torch.isfinite(measure.log_prob(rng.normal(size=(100_000, 3)))).all()
    assert 0.05 < KDE("likelihood").fit(rng.normal(size=(20_000, 3))).factor_ < 0.5
