"""Fitted models that the tests of the displays share."""

import matplotlib.pyplot as plt
import pytest
from sklearn.datasets import load_diabetes, load_iris, make_moons
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def iris():
    """Two overlapping classes, as a frame."""
    X, y = load_iris(return_X_y=True, as_frame=True)
    return X[50:], y[50:]


@pytest.fixture(scope="session")
def classifier(iris):
    ambiguity = Wasserstein(radius=0.3, immutable=["sepal width (cm)"])
    return DROClassifier(ambiguity, reference="empirical").fit(*iris)


@pytest.fixture(scope="session")
def regressor():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    X = StandardScaler().set_output(transform="pandas").fit_transform(X)
    ambiguity = Wasserstein(radius=0.2, immutable=["sex"])
    return DRORegressor(ambiguity, loss="huber", reference="empirical").fit(X, y)


@pytest.fixture(scope="session")
def moons():
    return make_moons(60, noise=0.15, random_state=0)


@pytest.fixture(scope="session")
def network(moons):
    """A small network of two features, trained briefly: its bound is not tight."""
    model = DROClassifier(
        Wasserstein(radius=0.2), model="mlp", hidden_layer_sizes=(8,), reference="empirical",
        inner="pointwise", max_iter=10, random_state=0,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="max_iter"):
        return model.fit(*moons)
