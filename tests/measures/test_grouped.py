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
    Gaussian,
    Grouped,
    Joint,
    has_atoms,
)


@pytest.fixture
def data(rng):
    x = rng.normal(size=(80, 2))
    return x, rng.integers(0, 2, 80), rng.integers(0, 3, 80)


def test_empirical_mixture_is_the_data(data):
    x, y, groups = data
    P = Grouped(ClassConditional(Empirical())).fit(x, y, groups=groups)
    drawn, label, w, index = P.grouped_points(7)
    assert len(drawn) == 80
    rows = {tuple(row) for row in np.column_stack([x, y, groups])}
    assert {tuple(row) for row in np.column_stack([drawn, label, index])} == rows
    np.testing.assert_allclose(w, 1 / 80)
    assert has_atoms(P)


def test_overlapping_groups_count_a_row_once_for_each(data):
    x, y, _ = data
    members = np.column_stack([np.ones(80), x[:, 0] > 0])
    P = Grouped(ClassConditional(Empirical())).fit(x, y, groups=members)
    inside = members[:, 1].sum()
    np.testing.assert_allclose(P.shares_, np.array([80, inside]) / (80 + inside))
    drawn, _, w, index = P.grouped_points(1)
    assert len(drawn) == 80 + inside
    assert (drawn[index == 1][:, 0] > 0).all()
    assert float(w.sum()) == pytest.approx(1)


def test_shares_of_draws(data, generator):
    x, y, groups = data
    P = Grouped().fit(x, y, groups=groups).mixture([1, 0, 3])
    drawn, label, index = P.grouped_sample(4000, generator)
    assert drawn.shape == (4000, 2)
    assert set(label.tolist()) == {0, 1}
    share = (index == 2).double().mean()
    assert float(share) == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / 4000))
    assert not (index == 1).any()
    _, _, w, index = P.grouped_points(100, generator)
    assert float(w[index == 2].sum()) == pytest.approx(0.75)
    # Classes keep the shares that they have in their group.
    for g in (0, 2):
        inside = P.grouped_points(100)[3] == g
        _, label, w, _ = P.grouped_points(100)
        expected = y[groups == g].mean()
        got = float(w[inside][label[inside] == 1].sum() / w[inside].sum())
        assert got == pytest.approx(expected, abs=1e-12)


def test_density_of_a_mixture_in_closed_form():
    # Class 0 is in both groups, class 1 in the second alone.
    x = np.array([[0.0], [2.0], [10.0], [14.0], [30.0], [32.0]])
    y, groups = [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]
    P = Grouped(ClassConditional(Gaussian())).fit(x, y, groups=groups)
    np.testing.assert_allclose(P.shares_, [1 / 3, 2 / 3])
    first, second = P.parts_[0].measures_[0], P.parts_[1].measures_[0]
    p, q = (
        norm(float(m.mean[0]), float(m.covariance[0, 0]) ** 0.5).pdf(3.0) for m in (first, second)
    )
    expected = (p / 3 + q * 2 / 3 * 1 / 2) / (1 / 3 + 2 / 3 * 1 / 2)
    value = P.log_prob([[3.0], [3.0]], [0, 1]).exp().numpy()
    assert value[0] == pytest.approx(expected, rel=1e-9)
    third = P.parts_[1].measures_[1].log_prob([[3.0]]).exp()
    assert value[1] == pytest.approx(float(third), rel=1e-9)
    np.testing.assert_allclose(P.log_responsibilities([[31.0]], [1]).exp(), [[0, 1]])


@pytest.mark.parametrize("kind", [ClassConditional, Joint])
@pytest.mark.parametrize("template", [Gaussian(), KDE(0.5)])
def test_density_integrates_to_one(kind, template, data):
    x, y, groups = data
    P = Grouped(kind(template)).fit(x[:, :1], y, groups=groups).mixture([0.5, 0.2, 0.3])
    grid = np.linspace(-10, 10, 2001)
    density = P.log_prob(grid[:, None], np.ones(len(grid), dtype=int)).exp().numpy()
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)


def test_one_group_is_the_measure_itself(data):
    x, y, _ = data
    for template in (ClassConditional(KDE()), Joint(Gaussian())):
        alone = clone(template).fit(x, y)
        P = Grouped(template).fit(x, y, groups=np.zeros(80))
        torch.testing.assert_close(P.log_prob(x, y), alone.log_prob(x, y))


@pytest.mark.promise(4)
def test_weight_is_number_of_copies(data, rng):
    x, y, groups = data
    k = rng.integers(1, 3, 80)
    weighted = Grouped().fit(x, y, k, groups=groups)
    copies = Grouped().fit(np.repeat(x, k, 0), np.repeat(y, k), groups=np.repeat(groups, k))
    torch.testing.assert_close(weighted.log_prob(x, y), copies.log_prob(x, y))


def test_mistakes(data):
    x, y, groups = data
    with pytest.raises(NotFittedError, match="groups="):
        Grouped().dim
    with pytest.raises(InvalidDataError, match="needs groups="):
        Grouped().fit(x, y)
    with pytest.raises(InvalidDataError, match="groups has 3 rows and X has 80"):
        Grouped().fit(x, y, groups=[0, 1, 2])
    with pytest.raises(InvalidDataError, match="group 2 has no row of positive weight"):
        Grouped().fit(x, y, groups != 2, groups=groups)
    with pytest.raises(InvalidDataError, match="a 1 in every row"):
        Grouped().fit(x, y, groups=np.zeros((80, 2)))
