"""Rows of sparse matrices against those of arrays."""

import numpy as np
import pytest
from scipy import sparse

from drojko.exceptions import UnsupportedError
from drojko.rows import Rows
from drojko.rows.sparse import SparseRows, SparseTable


def matrix(kind, n=800, d=12):
    random = np.random.default_rng(0)
    X = random.standard_normal((n, d)) * (random.random((n, d)) < 0.2)
    if kind == "full":
        X = random.standard_normal((n, d)) + 1.0
    if kind == "constant":
        X[:, 1], X[:, 3] = 0.0, 2.5
    if kind == "far":
        X[:, 2] = 1e6 + random.standard_normal(n)
    if kind == "scales":
        X *= 10.0 ** np.linspace(-70, 70, d)
    return X.astype(np.float32) if kind == "float32" else X


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("kind", ["plain", "full", "constant", "far", "scales", "float32"])
def test_sums_are_those_of_the_array(kind, intercept):
    X = matrix(kind)
    random = np.random.default_rng(1)
    w = random.random(len(X)) * (random.random(len(X)) < 0.7)
    y = random.standard_normal(len(X))
    dense = Rows(X, y, w, intercept=intercept)
    rows = SparseTable(sparse.csc_array(X)).rows(y, w, intercept=intercept)
    accuracy = {"far": 1e-9, "float32": 1e-6}.get(kind, 1e-12)
    close = {"rtol": accuracy, "atol": accuracy * len(X)}
    np.testing.assert_array_equal(rows.dead, dense.dead)
    np.testing.assert_array_equal(rows.free, dense.free)
    np.testing.assert_allclose(rows.mean, dense.mean, rtol=1e-6 if kind == "float32" else 1e-12)
    np.testing.assert_allclose(rows.scale, dense.scale, rtol=accuracy)
    z, g, h = random.standard_normal(rows.size), random.standard_normal((len(X), 3)), w
    np.testing.assert_allclose(rows.predict(z), dense.predict(z), **close)
    np.testing.assert_allclose(rows.sum(g), dense.sum(g), **close)
    np.testing.assert_allclose(rows.sum(g[:, 0]), dense.sum(g[:, 0]), **close)
    gram = dense.gram(h)
    np.testing.assert_allclose(rows.gram(h), gram, **close)
    np.testing.assert_allclose(rows.squares(h), gram.diagonal(), **close)
    some = np.flatnonzero(~rows.dead)[:3]
    np.testing.assert_allclose(rows.columns(some), dense.columns(some), **close)
    index = random.permutation(len(X))[:50]
    np.testing.assert_allclose(rows.take(index).predict(z), dense.take(index).predict(z), **close)
    for part, block in rows.read():
        np.testing.assert_allclose(block, dense.block(part), **close)


def test_the_entries_are_not_filled_in():
    X = sparse.random_array((2000, 500), density=0.002, rng=np.random.default_rng(0), format="csr")
    rows = SparseTable(X).rows(np.zeros(2000))
    assert isinstance(rows, SparseRows)
    assert rows.scaled.nnz == X.nnz
    assert np.shares_memory(rows.scaled.indices, rows.X.indices)


def test_duplicate_entries_are_summed_and_the_caller_s_matrix_stays():
    X = sparse.csr_array((np.ones(3), [0, 0, 1], [0, 2, 3]), shape=(2, 2))
    table = SparseTable(X)
    np.testing.assert_array_equal(table.products(np.array([1.0, 1.0])), [2.0, 1.0])
    assert X.nnz == 3


def test_a_table_is_no_array_and_says_what_to_do():
    with pytest.raises(UnsupportedError, match="toarray"):
        np.asarray(SparseTable(sparse.eye_array(3)))
