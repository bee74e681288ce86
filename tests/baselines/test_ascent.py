"""Ascent baselines: their limits, and the attack itself against a closed form."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.utils.estimator_checks import parametrize_with_checks

from drojko.baselines import (
    AdversarialClassifier,
    ConvexDROClassifier,
    ConvexDRORegressor,
    WRMClassifier,
)
from drojko.losses import get_loss
from drojko.models import Linear

FAST = {"max_iter": 8, "batch_size": 32, "random_state": 0}


@parametrize_with_checks(
    [
        WRMClassifier(steps=2, model="linear", max_iter=60, learning_rate=0.05, random_state=0),
        ConvexDROClassifier(alpha=0.01),
        ConvexDRORegressor(alpha=0.01),
    ]
)
@pytest.mark.slow
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", [WRMClassifier, AdversarialClassifier])
def test_no_steps_is_plain_training_and_seeds_repeat(kind):
    X, y = make_moons(80, noise=0.1, random_state=0)
    plain = kind(steps=0, **FAST).fit(X, y).decision_function(X)
    other = (AdversarialClassifier if kind is WRMClassifier else WRMClassifier)(steps=0, **FAST)
    assert np.array_equal(plain, other.fit(X, y).decision_function(X))
    assert not np.array_equal(plain, kind(steps=3, **FAST).fit(X, y).decision_function(X))


def test_attacks_of_a_linear_model_are_closed_forms():
    model = Linear(2)
    model.weights[0].data[:] = torch.tensor([[3.0, 4.0]])
    x = torch.zeros(1, 2, dtype=torch.float64)
    y = torch.tensor([1])
    loss = get_loss("logistic")
    with torch.no_grad():
        hard = AdversarialClassifier(radius=0.5, steps=5)._attack(model, loss, x, y)
        soft = WRMClassifier(penalty=50.0, steps=200)._attack(model, loss, x, y)
    assert hard[0].tolist() == pytest.approx([-0.3, -0.4])
    # the maximiser z = -t (3, 4) / 5 solves 5 sigmoid(5 t) = 100 t
    t = -float(soft[0] @ torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert 5 / (1 + np.exp(-5 * t)) == pytest.approx(100 * t, rel=1e-6)


def test_robust_training_pays_under_attack():
    X, y = make_moons(300, noise=0.1, random_state=0)
    settings = {"max_iter": 40, "learning_rate": 0.02, "random_state": 0}
    plain = AdversarialClassifier(steps=0, **settings).fit(X, y)
    robust = AdversarialClassifier(radius=0.3, steps=5, **settings).fit(X, y)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, *X.shape))
    noise *= 0.3 / np.linalg.norm(noise, axis=2, keepdims=True)

    def worst(model):
        scores = np.array([model.decision_function(X + e) for e in noise])
        return np.logaddexp(0, -(2 * y - 1) * scores).max(0).mean()

    assert worst(robust) < worst(plain)
