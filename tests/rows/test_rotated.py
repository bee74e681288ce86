"""Rows in the space that they span: the same predictions and norms."""

import numpy as np
import pytest
from scipy import sparse

from drojko.rows import is_wide
from drojko.rows.rotated import Rotation
from drojko.rows.sparse import SparseTable


@pytest.mark.parametrize("intercept", [True, False])
def test_predictions_and_norms_are_those_of_the_columns(intercept):
    random = np.random.default_rng(0)
    X = random.standard_normal((12, 40)) + 3.0
    X[:, 5] = 0.1  # constant
    X[4] = X[7]  # of lower rank
    cost, w = random.random(40) + 0.5, random.random(12)
    turned = Rotation.of(X, w, cost, intercept)
    assert turned.X.shape == (12, 10 if intercept else 11)
    psi = random.standard_normal(turned.X.shape[1])
    coef, b = turned.outward(psi, 0.7)
    np.testing.assert_allclose(X @ coef + b, turned.X @ psi + 0.7, rtol=1e-11)
    np.testing.assert_allclose(cost @ coef**2, psi @ psi, rtol=1e-12)
    back, c = turned.inward(coef, b)
    np.testing.assert_allclose(back, psi, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(c, 0.7, rtol=1e-10)


@pytest.mark.parametrize("intercept", [True, False])
def test_sparse_rows_span_the_same_space_without_an_array(intercept):
    random = np.random.default_rng(2)
    S = sparse.random_array((40, 90), density=0.1, rng=random, format="csr")
    S = sparse.csr_array(sparse.vstack([S, S[:20]]))  # of lower rank
    w, cost = random.random(60) + 0.1, random.random(90) + 0.5
    turned = Rotation.of(SparseTable(S), w, cost, intercept)
    assert turned.X.shape == (60, 39 if intercept else 40)
    psi = random.standard_normal(turned.X.shape[1])
    coef, b = turned.outward(psi, 0.7)
    np.testing.assert_allclose(S @ coef + b, turned.X @ psi + 0.7, rtol=1e-9)
    np.testing.assert_allclose(cost @ coef**2, psi @ psi, rtol=1e-9)
    back, c = turned.inward(coef, b)
    np.testing.assert_allclose(back, psi, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(c, 0.7, rtol=1e-9)


def test_sparse_rows_far_from_zero_are_left_as_they_are():
    S = sparse.random_array((10, 40), density=0.2, rng=np.random.default_rng(3), format="lil")
    S[:, 0] = 1e6
    assert Rotation.of(SparseTable(S), None, np.ones(40), True) is None


def test_the_part_outside_of_the_rows_is_dropped():
    random = np.random.default_rng(1)
    X = random.standard_normal((5, 30))
    turned = Rotation.of(X, None, np.ones(30), True)
    coef = random.standard_normal(30)
    psi, b = turned.inward(coef, 1.0)
    np.testing.assert_allclose(turned.X @ psi + b, X @ coef + 1.0, rtol=1e-11)
    assert psi @ psi < coef @ coef


def test_it_pays_for_arrays_with_many_more_columns():
    assert is_wide(np.zeros((10, 300)))
    assert not is_wide(np.zeros((10, 20)))
    assert not is_wide(np.zeros((300, 300)))
    assert Rotation.of(np.ones((3, 400)), None, np.ones(400), True) is None
