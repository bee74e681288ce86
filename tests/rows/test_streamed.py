"""Rows in batches against those of one array."""

import numpy as np
import pytest

from drojko.exceptions import InvalidDataError
from drojko.rows import Rows
from drojko.rows.streamed import StreamedRows, StreamedTable


def data(kind, n=900, d=6):
    random = np.random.default_rng(0)
    X = random.standard_normal((n, d)) + np.arange(d)
    if kind == "constant":
        X[:, 1], X[:, 3] = 0.1, 0.0
    if kind == "far":
        X[:, 2] += 1e6
    if kind == "drifting":  # batches far apart
        X[:, 4] += 1e5 * (np.arange(n) // 100)
    if kind == "scales":
        X = random.standard_normal((n, d)) * 10.0 ** np.linspace(-70, 70, d)
    return X.astype(np.float32) if kind == "float32" else X


def batches(X, y, w=None, size=130):
    parts = [slice(i, i + size) for i in range(0, len(X), size)]
    return [(X[p], y[p]) if w is None else (X[p], y[p], w[p]) for p in parts]


def table(found):
    return StreamedTable(
        found, lambda X, y, w, first: (np.asarray(X), np.asarray(y), None if w is None else w)
    )


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("kind", ["plain", "constant", "far", "drifting", "scales", "float32"])
def test_sums_are_those_of_the_array(kind, intercept):
    X = data(kind)
    random = np.random.default_rng(1)
    w = random.random(len(X)) * (random.random(len(X)) < 0.7)
    y = random.standard_normal(len(X))
    dense = Rows(X, y, w, intercept=intercept)
    rows = StreamedRows(table(batches(X, y, w)), y, w, intercept=intercept, limit=0)
    accuracy = {"far": 1e-9, "float32": 1e-6, "drifting": 1e-10}.get(kind, 1e-12)
    close = {"rtol": accuracy, "atol": accuracy * len(X)}
    np.testing.assert_array_equal(rows.dead, dense.dead)
    np.testing.assert_allclose(rows.mean, dense.mean, rtol=accuracy)
    np.testing.assert_allclose(rows.scale, dense.scale, rtol=accuracy)
    z, g = random.standard_normal(rows.size), random.standard_normal((len(X), 3))
    np.testing.assert_allclose(rows.predict(z), dense.predict(z), **close)
    np.testing.assert_allclose(rows.sum(g), dense.sum(g), **close)
    np.testing.assert_allclose(rows.gram(w), dense.gram(w), **close)
    some = np.flatnonzero(~rows.dead)[:3]
    np.testing.assert_allclose(rows.columns(some), dense.columns(some), **close)
    for part, block in rows.read():
        np.testing.assert_allclose(block, dense.block(part), **close)
    index = random.integers(0, len(X), 60)
    np.testing.assert_allclose(rows.take(index).predict(z), dense.take(index).predict(z), **close)
    for j in some:  # by size: there may be ties
        far = [np.abs(dense.columns([j]))[found.extremes([j], 7), 0] for found in (rows, dense)]
        np.testing.assert_allclose(*map(np.sort, far), rtol=1e-6)


def test_a_sum_is_a_pass_and_samples_are_kept():
    X = data("plain")
    y = X[:, 0]
    source = table(batches(X, y))
    rows = StreamedRows(source, y, limit=0)
    assert source.passes == 1
    rows.predict(np.ones(rows.size))
    rows.sum(y)
    assert source.passes == 3
    index = np.arange(0, 900, 7)
    rows.take(index)
    rows.take(index[::3])
    assert source.passes == 4
    source.products(np.ones(6))
    source.products(np.ones(6))
    assert source.passes == 5


def test_small_data_are_kept_after_one_more_pass():
    X = data("plain")
    source = table(batches(X, X[:, 0]))
    rows = StreamedRows(source, X[:, 0])
    rows.predict(np.ones(rows.size))
    rows.gram(np.ones(900))
    assert source.passes == 2


def test_rows_of_weight_zero_may_be_left_out():
    X = data("plain")
    y, w = X[:, 0], np.arange(900) % 3 > 0
    some = table(batches(X, y, w.astype(float)))[w]
    assert some.shape == (600, 6)
    np.testing.assert_allclose(some.products(np.ones(6)), X[w] @ np.ones(6), rtol=1e-12)


@pytest.mark.parametrize("change", ["fewer", "more", "other order", "other width", "NaN"])
def test_batches_that_change_are_noticed(change):
    X = data("plain")
    y = X[:, 0].copy()

    class Source:
        count = 0

        def __iter__(self):
            self.count += 1
            found = batches(X, y)
            if self.count > 1 and change == "fewer":
                found = found[:-1]
            elif self.count > 1 and change == "more":
                found = [*found, found[0]]
            elif self.count > 1 and change == "other order":
                found = found[1:] + found[:1]
            elif self.count > 1 and change == "other width":
                found[2] = (found[2][0][:, :3], found[2][1])
            elif self.count > 1 and change == "NaN":
                found[2] = (np.full_like(found[2][0], np.nan), found[2][1])
            return iter(found)

    source = table(Source())
    with pytest.raises(InvalidDataError, match=r"pass 2.*re-iterable"):
        source.products(np.ones(6))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((pair for pair in []), "only once.*re-iterable"),
        (7, "gives no batches"),
        ([], "no rows"),
        ([np.zeros((3, 2))], "expected .X, y."),
        (
            [(np.zeros((2, 1)), np.zeros(2)), (np.zeros((2, 1)), np.zeros(2), np.ones(2))],
            "all or none",
        ),
        ([(np.zeros((2, 1)), np.zeros(2), np.zeros(2))], "zero"),
        ([(np.zeros((2, 1)), np.zeros(2)), (np.zeros((2, 1)), np.array(["a", "b"]))], "text"),
        (lambda: 7, "gives no batches"),
    ],
)
def test_what_gives_no_batches_says_so(found, words):
    with pytest.raises(InvalidDataError, match=words):
        table(found)
