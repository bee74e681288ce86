"""Rows against dense NumPy, in memory and on the fly."""

import tracemalloc

import numpy as np
import pytest

from drojko._threads import sharing
from drojko.rows import Rows, equal, normalised

KINDS = ["plain", "float32", "far", "scales", "constant", "fortran", "strided"]
LIMITS = [2**22, 0]  # a standardised matrix, or blocks of the data as they are


def data(kind, n=5000, d=4):
    random = np.random.default_rng(0)
    X = random.standard_normal((n, d)) * [1.0, 2.0, 0.5, 3.0] + [0.0, 1.0, -2.0, 30.0]
    if kind == "float32":
        return X.astype(np.float32)
    if kind == "far":
        X[:, 0] += 1e6
    if kind == "scales":
        X *= [1e-150, 1e150, 1e-20, 1e40]
    if kind == "constant":
        X[:, 1], X[:, 3] = 0.1, 0.0
    if kind == "fortran":
        return np.asfortranarray(X)
    return np.repeat(X, 2, axis=0)[::2] if kind == "strided" else X


def weights(n):
    w = np.random.default_rng(1).random(n)
    w[::3] = 0.0
    return w


def dense(X, w, intercept=True):
    """The matrix B, from definitions."""
    x, w = X.astype(np.longdouble), w.astype(np.longdouble) / w.sum()
    seen = x[w > 0]
    mean = w @ x if intercept else np.zeros(x.shape[1], dtype=np.longdouble)
    spread = seen.max(0) - seen.min(0) if intercept else np.abs(seen).max(0)
    alive = spread > 1e-14 * np.abs(seen).max(0)
    scale = np.sqrt(w @ (x - mean) ** 2)
    matrix = np.where(alive, (x - mean) / np.where(alive, scale, 1.0), 0.0)
    return np.column_stack([matrix, np.ones(len(x))] if intercept else [matrix]).astype(float)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_the_dense_matrix(kind, limit, intercept):
    X = data(kind)
    w = weights(len(X))
    rows = Rows(X, np.zeros(len(X)), w, intercept=intercept, limit=limit)
    assert rows.X is X
    B = dense(X, w, intercept)
    random = np.random.default_rng(2)
    z, g = random.standard_normal(rows.size), random.standard_normal((len(X), 3))
    h = random.random(len(X)) * (random.random(len(X)) < 0.3)
    accuracy = 1e-9 if kind in {"far", "float32"} else 1e-11
    tolerance = {"rtol": accuracy, "atol": accuracy * len(X)}
    np.testing.assert_allclose(rows.predict(z), B @ z, rtol=accuracy, atol=accuracy)
    np.testing.assert_allclose(rows.sum(g), B.T @ g, **tolerance)
    np.testing.assert_allclose(rows.sum(g[:, 0]), B.T @ g[:, 0], **tolerance)
    np.testing.assert_allclose(rows.gram(h), B.T @ (h[:, None] * B), **tolerance)
    np.testing.assert_allclose(rows.gram(h > 2), np.zeros((rows.size, rows.size)))
    parts = np.concatenate([rows.block(part) for part in rows.blocks()])
    np.testing.assert_allclose(parts, B, rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("limit", LIMITS)
def test_standardised_columns_have_weighted_mean_zero_and_variance_one(limit):
    X = data("scales")
    rows = Rows(X, np.zeros(len(X)), weights(len(X)), limit=limit)
    np.testing.assert_allclose(rows.sum(rows.w), [0, 0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(np.diag(rows.gram(rows.w)), np.ones(5), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("limit", LIMITS)
def test_columns_constant_to_rounding_are_dead(dtype, limit):
    X = data("plain").astype(dtype)
    X[:, 2] = dtype(1e6) * (1 + np.finfo(dtype).eps * (np.arange(len(X)) % 3))
    X[0, 0] = 1e9  # where nothing stands
    w = np.ones(len(X))
    w[0] = 0.0
    rows = Rows(X, np.zeros(len(X)), w, limit=limit)
    np.testing.assert_array_equal(rows.dead, [False, False, True, False])
    np.testing.assert_array_equal(rows.free, [True, True, False, True, True])
    assert (rows.block(slice(1, 10))[:, 2] == 0).all()
    assert (rows.gram(w)[2] == 0).all()
    assert rows.scale[0] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", LIMITS)
def test_models_go_in_and_out(kind, limit):
    X = data(kind)
    rows = Rows(X, np.zeros(len(X)), limit=limit)
    z = np.where(rows.free, np.arange(1.0, 6.0), 0.0)
    coef, intercept = rows.outward(z)
    np.testing.assert_allclose(rows.inward(coef, intercept), z, rtol=1e-7, atol=1e-7)
    accuracy = 1e-5 if kind in {"float32", "far"} else 1e-10
    np.testing.assert_allclose(X @ coef + intercept, rows.predict(z), atol=accuracy)
    if kind == "constant":  # what a constant column adds is the intercept's
        z = rows.inward(np.array([0.0, 2.0, 0.0, 5.0]), 1.0)
        assert rows.outward(z)[1] == pytest.approx(1.2)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_sample_keeps_the_coordinates(limit):
    X, y = data("float32"), np.arange(5000)
    rows = Rows(X, y, weights(len(X)), limit=limit)
    index = np.array([1, 5, 5, 4000])
    some = rows.take(index)
    assert some.X.dtype == np.float32
    np.testing.assert_array_equal(some.y, y[index])
    np.testing.assert_allclose(some.w, rows.w[index] / rows.w[index].sum())
    z = np.arange(5.0)
    np.testing.assert_allclose(some.predict(z), rows.predict(z)[index])
    np.testing.assert_allclose(some.gram(np.ones(4)), dense_gram(rows, index))
    assert rows.take(index, np.array([1.0, 1, 1, 5])).w[-1] == 5 / 8


def dense_gram(rows, index):
    B = np.concatenate([rows.block(slice(i, i + 1)) for i in index])
    return B.T @ B


def test_large_float32_data_is_never_copied():
    X = np.zeros((200_000, 40), dtype=np.float32)
    X += np.random.default_rng(0).standard_normal(40)
    X[::2] += 1
    y = np.zeros(len(X))
    tracemalloc.start()
    rows = Rows(X, y)
    u = rows.predict(np.ones(41))
    rows.sum(u)
    rows.gram(u * u)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * X.nbytes  # numbers a row, and buffers


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_read_gives_predictions_and_sums(kind, limit, intercept):
    X = data(kind)
    rows = Rows(X, np.zeros(len(X)), weights(len(X)), intercept=intercept, limit=limit)
    z, seen = np.random.default_rng(2).standard_normal(rows.size), np.empty(len(X))

    def visit(part, u):
        seen[part] = u
        return [1.0, np.square(u).sum()], np.sin(u)

    before = rows.reads
    swept = rows.swept(z, visit)
    assert rows.reads == before + 1
    u = rows.predict(z)
    np.testing.assert_array_equal(seen, u)
    assert swept.totals[0] == len(list(rows.blocks()))
    assert swept.totals[1] == pytest.approx(u @ u, rel=1e-12)
    # The same sums in another order.
    np.testing.assert_allclose(swept.slope, rows.sum(np.sin(u)), atol=1e-9 * len(X))
    assert rows.swept(z, lambda part, u: None) is None


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sums_are_bitwise_the_same_on_any_number_of_threads(dtype):
    random = np.random.default_rng(0)
    X = random.standard_normal((70_000, 31)).astype(dtype)

    def sums():
        rows = Rows(X, np.zeros(len(X)), limit=0)
        z, g = np.linspace(-1, 1, rows.size), np.linspace(0, 1, len(X))
        swept = rows.swept(z, lambda part, u: ([u.sum()], np.cos(u)))
        return rows.scale, rows.predict(z), rows.sum(g), rows.gram(g), *swept

    alone = sums()
    for count in (2, 3):
        with sharing(count):
            for one, other in zip(alone, sums(), strict=True):
                np.testing.assert_array_equal(one, other)


def test_equal_weights_are_one_number():
    w = normalised(equal(5, 5.0))
    assert w.strides == (0,)
    np.testing.assert_array_equal(w, 0.2)
    np.testing.assert_array_equal(normalised(np.array([1.0, 3.0])), [0.25, 0.75])


def test_factors_means_and_outputs_are_those_of_the_matrix(rng):
    X, y, w = rng.normal(size=(50, 3)), rng.normal(size=50), rng.uniform(size=50)
    rows = Rows(X, y, w, limit=0)
    B = rows.block(slice(None))
    A = np.column_stack([B[:, :3], y])
    factor = rows.triangle(y)
    np.testing.assert_allclose(factor.T @ factor, A.T @ (rows.w[:, None] * A), atol=1e-12)
    np.testing.assert_allclose(rows.mean_of(np.square, 4), rows.w @ B**2, atol=1e-12)
    Z = rng.normal(size=(2, 4))
    np.testing.assert_allclose(rows.outputs(Z), B @ Z.T, atol=1e-12)


def test_of_equal_extremes_the_first_rows_are_taken():
    X = np.zeros((40, 1))
    X[[5, 7, 20, 30], 0] = [1.0, 3.0, 1.0, 1.0]
    rows = Rows(X, np.zeros(40))
    assert sorted(rows.extremes(np.array([0]), 3).tolist()) == [5, 7, 20]
    assert len(rows.extremes(np.array([0]), 60)) == 40
