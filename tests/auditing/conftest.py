"""Small models and data that the audits of these tests share."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris, make_moons
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


@pytest.fixture(scope="session")
def iris():
    X, y = load_iris(return_X_y=True, as_frame=True)
    return X[:100], y[:100]


@pytest.fixture(scope="session")
def moons():
    return make_moons(120, noise=0.2, random_state=0)


@pytest.fixture(scope="session")
def linear(iris):
    return LogisticRegression(max_iter=1000).fit(*iris)


@pytest.fixture(scope="session")
def forest(moons):
    return RandomForestClassifier(10, max_depth=4, random_state=0).fit(*moons)


@pytest.fixture(scope="session")
def mixed():
    """A table with a category, its labels, and a pipeline with a one-hot encoder inside."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "colour": rng.choice(["red", "green", "blue"], 90),
            "age": rng.normal(40.0, 10.0, 90),
            "income": rng.normal(3.0, 1.0, 90),
        }
    )
    y = np.where((X["age"] > 40) ^ (X["colour"] == "red"), "yes", "no")
    encode = ColumnTransformer(
        [("c", OneHotEncoder(), ["colour"]), ("n", StandardScaler(), ["age", "income"])]
    )
    return make_pipeline(encode, LogisticRegression()).fit(X, y), X, y


@pytest.fixture
def network():
    """A smooth perceptron of two inputs with weights of order one."""
    gen = torch.Generator().manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.Softplus(threshold=40), torch.nn.Linear(8, 1)
    )
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=gen) * 0.7)
    return net
