"""How much memory a linear fit takes beside its data: one copy of them, none of a mapped file."""

import tracemalloc

import numpy as np
import pytest

from drojko import DROClassifier
from drojko.ambiguity import KL, CVaR, Wasserstein

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
def test_a_fit_takes_one_copy_of_arrays_and_none_of_files(data, tmp_path, ambiguity, where):
    X, y = data
    own = 1.0
    if where == "file":
        np.save(tmp_path / "X.npy", X)
        X, own = np.load(tmp_path / "X.npy", mmap_mode="r"), 0.0
    model = DROClassifier(ambiguity, reference="empirical", alpha=0.01, tol=0.1)
    # Beside: some dozens of numbers by row, a quarter of the rows as a sample, blocks, Hessians;
    # another copy would be 1 more in float32, 2 in float64.
    assert peak(model, X, y) <= own + 0.98


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
