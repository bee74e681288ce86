import pickle

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from drojko.exceptions import InvalidDataError
from drojko.measures import (
    KDE,
    ClassConditional,
    Empirical,
    FlowMeasure,
    Gaussian,
    GaussianMixture,
)


@pytest.fixture
def data(rng):
    y = rng.integers(0, 3, 60)
    return rng.normal(size=(60, 2)) + y[:, None], y


def test_each_class_has_its_own_fit(data):
    x, y = data
    measure = ClassConditional(KDE()).fit(x, y)
    np.testing.assert_allclose(measure.weights_, np.bincount(y) / 60, rtol=1e-12)
    for k in range(3):
        expected = KDE().fit(x[y == k]).log_prob(x)
        assert torch.equal(measure.log_prob(x, np.full(60, k)), expected)
        assert torch.equal(measure.log_prob(x, k), expected)
    mixed = measure.log_prob(x, y)
    assert torch.equal(mixed[y == 1], measure.log_prob(x[y == 1], 1))


def test_default_is_a_kde(data):
    assert all(isinstance(m, KDE) for m in ClassConditional().fit(*data).measures_)


@pytest.mark.promise(4)
def test_weight_is_number_of_copies(data, rng):
    x, y = data
    k = rng.integers(0, 3, 60)
    weighted = ClassConditional(Gaussian()).fit(x, y, k)
    copies = ClassConditional(Gaussian()).fit(np.repeat(x, k, axis=0), np.repeat(y, k))
    np.testing.assert_allclose(weighted.weights_, copies.weights_, rtol=1e-14)
    torch.testing.assert_close(weighted.log_prob(x, y), copies.log_prob(x, y))


def test_from_measures_and_clone(generator):
    parts = [Gaussian([0.0], [[1.0]]), Gaussian([5.0], [[4.0]])]
    measure = ClassConditional.from_measures(parts, [1, 3])
    assert measure.weights_.tolist() == [0.25, 0.75]
    expected = norm([0, 5], [1, 2]).logpdf([0.3, 0.3])
    for m in (measure, clone(measure)):
        np.testing.assert_allclose(m.log_prob([[0.3], [0.3]], [0, 1]), expected, rtol=1e-12)
    x, y = measure.sample(8000, generator)
    # Six binomial standard errors.
    assert y.double().mean().item() == pytest.approx(0.75, abs=6 * (0.1875 / 8000) ** 0.5)
    assert x[y == 1].mean().item() == pytest.approx(5, abs=6 * 2 / 6000**0.5)
    with pytest.raises(InvalidDataError, match="same number"):
        ClassConditional.from_measures([*parts, Gaussian([0.0, 0.0], np.eye(2))])


def test_points_are_stratified_by_class(generator):
    parts = [Gaussian([0.0], [[1.0]]), Gaussian([5.0], [[4.0]])]
    _, y, w = ClassConditional.from_measures(parts, [1, 99]).points(10, generator)
    assert y.bincount().tolist() == [1, 10]
    assert w[0].item() == pytest.approx(0.01)


def test_empirical_points_are_the_rows(data):
    x, y = data
    points, label, w = ClassConditional(Empirical()).fit(x, y).points(5)
    order = np.argsort(y, kind="stable")
    np.testing.assert_array_equal(points, x[order])
    np.testing.assert_array_equal(label, y[order])
    np.testing.assert_allclose(w, np.full(60, 1 / 60), rtol=1e-12)


@pytest.mark.promise(8)
@pytest.mark.parametrize(
    "template",
    [
        Empirical(),
        Gaussian(),
        KDE(),
        KDE("likelihood"),
        GaussianMixture(2),
        GaussianMixture(),
        FlowMeasure(max_iter=5),
    ],
)
def test_a_class_of_one_row(template, generator):
    x, y = [[0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [9.0, 9.0]], [0, 0, 0, 1]
    measure = ClassConditional(template).fit(x, y)
    drawn, label, _ = measure.points(20, generator)
    assert (label == 1).any()
    if not isinstance(template, Empirical):
        assert torch.isfinite(measure.log_prob(drawn, label)).all()


def test_one_row_takes_the_pooled_scale():
    x, y = [[0.0], [2.0], [50.0]], [0, 0, 1]
    pooled = np.sqrt(2 / 3)  # weights 2/3 and 1/3, variances 1 and 0
    kde, gaussian = (ClassConditional(m).fit(x, y) for m in (KDE(0.5), Gaussian(ridge=0.01)))
    np.testing.assert_allclose(kde.measures_[1].bandwidth_, 0.5 * pooled, rtol=1e-12)
    np.testing.assert_allclose(gaussian.measures_[1].covariance_, 0.01 * pooled**2, rtol=1e-12)
    # All classes of one row: the scale of the table.
    alone = ClassConditional(KDE(1.0)).fit([[0.0], [2.0]], [0, 1])
    np.testing.assert_allclose(alone.measures_[0].bandwidth_, 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("y", "weight", "message"),
    [
        ([0, 0, 2, 2], None, "class 1 "),
        ([0, 0, 1, 1], [1, 1, 0, 0], "class 1 "),
        ([-1, -1, 1, 1], None, "return_inverse"),
        ([0.5, 0, 1, 1], None, "return_inverse"),
        ([0, 1, 1], None, "expected .4,"),
        ([0, 1, 1, np.nan], None, "NaN"),
        (["a", "a", "b", "b"], None, "expected numbers"),
    ],
)
def test_bad_labels_are_named(y, weight, message):
    with pytest.raises(InvalidDataError, match=message):
        ClassConditional(Gaussian()).fit([[0.0], [1.0], [2.0], [3.0]], y, weight)


def test_unknown_class_in_a_query(data):
    with pytest.raises(InvalidDataError, match="K = 3"):
        ClassConditional(Gaussian()).fit(*data).log_prob([[0.0, 0.0]], [3])


def test_unfitted_use_is_refused():
    for use in (lambda m: m.sample(1), lambda m: m.points(1), lambda m: m.log_prob([[0.0]], 0)):
        with pytest.raises(NotFittedError, match="from_measures"):
            use(ClassConditional())


def test_gradient_flows_through_the_classes(data):
    x, y = data
    measure = ClassConditional(Gaussian()).fit(x, y)
    at = torch.tensor(x[:5], requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: measure.log_prob(z, y[:5]), (at,))


@pytest.mark.parametrize("weighted", [False, True])
def test_points_of_empirical_classes_are_their_atoms_without_a_copy(weighted):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 3)), rng.integers(3, size=50)
    w = rng.integers(3, size=50) if weighted else None
    P = ClassConditional(Empirical()).fit(X, y, sample_weight=w)
    x, labels, mass = P.points(50)
    kept = np.ones(50, dtype=bool) if w is None else w > 0
    order = np.argsort(y[kept], kind="stable")
    np.testing.assert_array_equal(x, X[kept][order])
    np.testing.assert_array_equal(labels, y[kept][order])
    assert float(mass.sum()) == pytest.approx(1.0)
    assert x.data_ptr() == P.measures_[0].atoms_.ctypes.data
    assert not np.shares_memory(x.numpy(), X)
    again = pickle.loads(pickle.dumps(P)).points(50)[0]
    np.testing.assert_array_equal(again, x)


def test_float32_rows_stay_and_give_the_draws_of_float64():
    """Single precision holds them without loss; blocks of draws are those of one table."""
    rng = np.random.default_rng(3)
    X = rng.normal(3.0, size=(9000, 40)).astype(np.float32)
    y = (rng.random(9000) < 0.3).astype(int)
    single, double = (ClassConditional(KDE()).fit(A, y) for A in (X, X.astype(np.float64)))
    assert single.measures_[0].atoms_.dtype == np.float32
    for a, b in zip(single.measures_, double.measures_, strict=True):
        np.testing.assert_allclose(a.bandwidth_, b.bandwidth_, rtol=1e-12)
    x, labels, _ = single.points(9000, torch.Generator().manual_seed(0))
    other = double.points(9000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float64
    torch.testing.assert_close(x, other[0], rtol=0, atol=1e-12)
    assert torch.equal(labels, other[1])
    for k in (0, 1):
        some, b = x[labels == k] - torch.tensor(X[y == k]).double(), single.measures_[k].bandwidth_
        # 2.5e5 numbers at least: their mean, variance and fourth moment within five errors
        noise = (some / torch.tensor(b)).flatten()
        assert abs(noise.mean()) < 5 / len(noise) ** 0.5
        assert abs(noise.square().mean() - 1) < 5 * (2 / len(noise)) ** 0.5
        assert abs(noise.pow(4).mean() - 3) < 5 * (96 / len(noise)) ** 0.5
        assert noise.unique().numel() == noise.numel()
