"""How much memory a linear fit takes beside its data: no copy of them, in memory or in a file."""

import tracemalloc

import numpy as np
import pytest

from drojko import DROClassifier
from drojko.ambiguity import KL, CVaR, Wasserstein
from drojko.exceptions import InvalidDataError

SETS = [Wasserstein(0.1), Wasserstein(0.1, order=1), KL(0.1), CVaR(0.7)]


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    X = random.standard_normal((24_000, 200), dtype=np.float32)
    y = X[:, :4].sum(axis=1) + random.logistic(size=len(X)) > 0
    return X, y


def peak(model, X, y):
    """The most that is allocated during a fit, over the size of X."""
    model.fit(X[:1000, :3], y[:1000])  # what is loaded on first use is loaded
    tracemalloc.start()
    try:
        model.fit(X, y)
        return tracemalloc.get_traced_memory()[1] / X.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_fit_copies_neither_arrays_nor_files(data, tmp_path, ambiguity, where):
    X, y = data
    if where == "file":
        np.save(tmp_path / "X.npy", X)
        X = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = DROClassifier(ambiguity, reference="empirical", alpha=0.01, tol=0.1)
    # Beside: some dozens of numbers by row, a quarter of the rows as a sample, blocks, Hessians;
    # another copy would be 1 more in float32, 2 in float64.
    assert peak(model, X, y) <= 0.98


def test_a_mapped_file_gives_the_same_model_and_stays_mapped(data, tmp_path):
    X, y = data[0][:600, :5], data[1][:600]
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = DROClassifier(Wasserstein(0.1), reference="empirical")
    coef = model.fit(X, y).coef_
    np.testing.assert_array_equal(model.fit(mapped, y).coef_, coef)
    assert np.shares_memory(model._reference[0], mapped)
    assert model.worst_case_.sample(10, random_state=0)[0].shape == (10, 5)


def test_the_reference_of_a_fit_is_not_the_array_of_the_caller(data):
    X, y = data[0][:300, :3].astype(np.float64), data[1][:300]
    model = DROClassifier(Wasserstein(0.1), reference="empirical").fit(X, y)
    before = X.copy()
    X[:] = 0.0
    atoms = np.concatenate([part.atoms_ for part in model.reference_.measures_])
    assert sorted(atoms[:, 0]) == sorted(before[:, 0])


@pytest.mark.parametrize("ambiguity", [Wasserstein(0.1), KL(0.1), CVaR(0.7)], ids=repr)
def test_the_rows_of_a_large_fit_are_those_of_the_caller(data, ambiguity):
    X, y = data[0][:, :100].copy(), data[1].astype(np.int64)
    model = DROClassifier(ambiguity, reference="empirical", alpha=0.1).fit(X, y)
    assert np.shares_memory(model._reference[0], X)
    X[:, 7] *= 2.0
    with pytest.raises(InvalidDataError, match="was changed after fit"):
        model.worst_case_.sample(3, random_state=0)
    X[:, 7] /= 2.0
    assert model.worst_case_.sample(3, random_state=0)[0].shape == (3, 100)


@pytest.mark.parametrize("ambiguity", [Wasserstein(0.1), KL(0.1), CVaR(0.7)], ids=repr)
def test_any_number_of_threads_gives_the_same_model(data, ambiguity):
    X, y = data[0][:, :100], data[1]
    models = [
        DROClassifier(ambiguity, reference="empirical", alpha=0.1, n_jobs=n).fit(X, y)
        for n in (None, 1, 3)
    ]
    for model in models[1:]:
        np.testing.assert_array_equal(model.coef_, models[0].coef_)
        assert model.certificate_.upper == models[0].certificate_.upper
        assert model.optimality_gap_ == models[0].optimality_gap_
    with pytest.raises(InvalidDataError, match="n_jobs=0"):
        DROClassifier(ambiguity, reference="empirical", n_jobs=0).fit(X[:100], y[:100])


def test_many_rows_keep_few_numbers_each():
    random = np.random.default_rng(0)
    X = random.standard_normal((300_000, 20), dtype=np.float32)
    y = (3.0 * X[:, 0] + random.logistic(size=len(X)) > 0).astype(np.int64)
    for ambiguity in (Wasserstein(0.1), KL(0.1), CVaR(0.7)):
        model = DROClassifier(ambiguity, reference="empirical")
        # Targets, predictions, losses, a mask: half a dozen numbers of 8 bytes by row.
        assert peak(model, X, y) * X.nbytes <= len(X) * 8 * 6.5
