"""Promise 9: whatever holds the numbers, the model is that of plain float64; X stays as it is."""

import numpy as np
import pandas as pd
import pytest
import torch

from drojko import DRORegressor
from tests.estimators._cases import binary, frame, linear, mlp, regression

pytestmark = [
    pytest.mark.promise(9),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

ESTIMATORS = {
    "linear": (linear(), *binary()),
    "mlp": (mlp(max_iter=2, inner="pointwise"), *binary()),
    "squared": (linear(DRORegressor, 0.02), *regression()),
}


def rounded(X):
    """To eighths of the largest power of two: exact in every float of the zoo."""
    unit = 2.0 ** np.floor(np.log2(np.abs(X).max()))
    return np.round(8 * X / unit) / 8 * unit


def memory_mapped(X, path):
    np.save(path / "x.npy", X)
    return np.load(path / "x.npy", mmap_mode="r")


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


X_ZOO = {
    "list": lambda X, path: X.tolist(),
    "tuple": lambda X, path: tuple(map(tuple, X.tolist())),
    "fortran": lambda X, path: np.asfortranarray(X),
    "reversed rows": lambda X, path: X[::-1].copy()[::-1],
    "reversed columns": lambda X, path: X[:, ::-1].copy()[:, ::-1],
    "strided": lambda X, path: np.repeat(X, 3, axis=0)[::3],
    "memory map": memory_mapped,
    "read-only": lambda X, path: read_only(X),
    "big-endian": lambda X, path: X.astype(">f8"),
    "float16": lambda X, path: X.astype(np.float16),
    "float32": lambda X, path: X.astype(np.float32),
    "long double": lambda X, path: X.astype(np.longdouble),
    "object": lambda X, path: X.astype(object),
    "frame": lambda X, path: frame(X),
    "frame with another index": lambda X, path: frame(X).set_index(np.arange(len(X))[::-1]),
    "integer column names": lambda X, path: pd.DataFrame(X),
    "nullable": lambda X, path: frame(X).astype("Float64"),
    "arrow": lambda X, path: frame(X).astype("double[pyarrow]"),
    "mixed dtypes": lambda X, path: frame(X).astype({"a": "Float64", "b": "float32"}),
    "tensor": lambda X, path: torch.tensor(X),
}

Y_ZOO = {
    "list": lambda y: y.tolist(),
    "big-endian": lambda y: y.astype(">i8"),
    "int16": lambda y: y.astype(np.int16),
    "float": lambda y: y.astype(float),
    "float32": lambda y: y.astype(np.float32),
    "object": lambda y: y.astype(object),
    "read-only": lambda y: read_only(y),
    "series": lambda y: pd.Series(y, index=np.arange(len(y)) + 5),
    "nullable": lambda y: pd.Series(y).astype("Int64"),
    "arrow": lambda y: pd.Series(y).astype("int64[pyarrow]"),
    "category": lambda y: pd.Series(y).astype("category"),
    "tensor": lambda y: torch.tensor(y),
}


def content(X):
    return X.to_numpy(dtype=float) if hasattr(X, "to_numpy") else np.asarray(X, dtype=float)


def prepared(name):
    estimator, X, y = ESTIMATORS[name]
    y = y if name in ("linear", "mlp") else np.round(y).astype(int)
    return estimator, rounded(X), y


_plain: dict = {}


def plain_fit(name):
    if name not in _plain:
        estimator, X, y = prepared(name)
        _plain[name] = type(estimator)(**estimator.get_params(deep=False)).fit(X, y)
    return _plain[name]


def assert_same(model, reference):
    for key, value in reference.parameters_.items():
        np.testing.assert_array_equal(model.parameters_[key], value)
    assert model.certificate_.upper == reference.certificate_.upper


@pytest.mark.parametrize("kind", X_ZOO)
@pytest.mark.parametrize("name", ["linear", "squared", "mlp"])
def test_every_container_of_x(name, kind, tmp_path):
    estimator, X, y = prepared(name)
    reference = plain_fit(name)
    animal = X_ZOO[kind](X, tmp_path)
    before = content(animal).tobytes()
    raw = animal.tobytes() if isinstance(animal, np.ndarray) and kind != "object" else None
    model = type(estimator)(**estimator.get_params(deep=False)).fit(animal, y)
    assert_same(model, reference)
    predictions = np.asarray(model.predict(animal), dtype=float)
    np.testing.assert_array_equal(predictions, np.asarray(reference.predict(X), dtype=float))
    model.robust_score(animal, y)
    assert content(animal).tobytes() == before
    assert raw is None or animal.tobytes() == raw


@pytest.mark.parametrize("kind", Y_ZOO)
@pytest.mark.parametrize("name", ["linear", "squared"])
def test_every_container_of_y(name, kind):
    estimator, X, y = prepared(name)
    model = type(estimator)(**estimator.get_params(deep=False)).fit(X, Y_ZOO[kind](y))
    assert_same(model, plain_fit(name))
    assert model.score(X, y) == plain_fit(name).score(X, y)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["no", "yes"]),
        np.array(["no", "yes"], dtype=object),
        np.array([False, True]),
        np.array([-1, 1]),
        np.array([2.0, 7.0]),
    ],
    ids=lambda labels: f"{labels.dtype}",
)
def test_labels_come_back_as_they_went_in(labels):
    estimator, X, y = prepared("linear")
    model = type(estimator)(**estimator.get_params(deep=False)).fit(X, labels[y])
    assert_same(model, plain_fit("linear"))
    assert model.predict(X).dtype == labels.dtype
    assert set(model.predict(X)) <= set(labels)
    assert model.worst_case_.sample(4, random_state=0)[1].dtype == labels.dtype


def test_strings_of_pandas(tmp_path):
    estimator, X, y = prepared("linear")
    target = pd.Series(np.where(y == 1, "b", "a"))
    model = type(estimator)(**estimator.get_params(deep=False)).fit(frame(X), target)
    assert_same(model, plain_fit("linear"))
    assert model.classes_.tolist() == ["a", "b"]


@pytest.mark.filterwarnings("ignore:.*optimum is a constant model")  # of the halved columns
@pytest.mark.parametrize("name", ["linear", "squared"])
def test_integers_and_booleans_are_numbers(name):
    estimator, X, y = prepared(name)
    for X_int in ((8 * X).astype(np.int32), np.median(X) < X):
        a = type(estimator)(**estimator.get_params(deep=False)).fit(X_int, y)
        b = type(estimator)(**estimator.get_params(deep=False)).fit(X_int.astype(float), y)
        assert_same(a, b)


def test_polars_if_installed():
    polars = pytest.importorskip("polars")
    estimator, X, y = prepared("linear")
    data = polars.DataFrame({name: X[:, j] for j, name in enumerate("abcd")})
    model = type(estimator)(**estimator.get_params(deep=False)).fit(data, y)
    assert_same(model, plain_fit("linear"))


def test_sparse_and_complex_are_refused():
    from scipy import sparse

    estimator, X, y = prepared("linear")
    with pytest.raises(TypeError, match=r"dense data is required.*toarray"):
        estimator.fit(sparse.csr_matrix(X), y)
    with pytest.raises(ValueError, match="Complex data not supported"):
        estimator.fit(X.astype(complex), y)
