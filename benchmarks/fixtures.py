"""Data sets, fixed models and objectives that several suites share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import datasets
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from drojko._numerics import Adam
from drojko.ambiguity.ground.cost import GroundCost
from drojko.inner import Batch, Coordinates, Objective
from drojko.losses import Loss, get_loss
from drojko.measures import KDE, ClassConditional
from drojko.models import MLP, TabularModel, flatten_parameters, views_like

#: Cap on the kernel noise of the reference, in root mean square standard deviations per column.
NOISE = 0.1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classification(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two classes on standardised features ("digits10": ten classes, pixels in [0, 1])."""
    if name == "moons":
        X, y = datasets.make_moons(400, noise=0.15, random_state=0)
        return X, y
    if name == "digits10":
        X, y = datasets.load_digits(return_X_y=True)
        return X / 16.0, y
    if name == "diabetes median":
        X, y = datasets.load_diabetes(return_X_y=True)
        y = (y > np.median(y)).astype(int)
    elif name == "breast cancer":
        X, y = datasets.load_breast_cancer(return_X_y=True)
    elif name == "wine":
        X, y = datasets.load_wine(return_X_y=True)
        y = (y == 1).astype(int)
    elif name == "iris":
        X, y = datasets.load_iris(return_X_y=True)
        X, y = X[y > 0], y[y > 0] - 1
    elif name == "digits 3-8":
        X, y = datasets.load_digits(return_X_y=True)
        keep = (y == 3) | (y == 8)
        X, y = X[keep], (y[keep] == 8).astype(int)
    elif name == "digits parity":
        X, y = datasets.load_digits(return_X_y=True)
        y = y % 2
    else:
        raise KeyError(name)
    return StandardScaler().fit_transform(X), y


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Standardised features, target in standard deviations."""
    X, y = datasets.load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(X), (y - y.mean()) / y.std()


def logistic_model(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal features, labels from a logistic model, 5 % of them flipped."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    theta = rng.standard_normal(d) / d**0.5
    y = (rng.random(n) < 1 / (1 + np.exp(-3 * (X @ theta)))).astype(int)
    flip = rng.random(n) < 0.05
    y[flip] = 1 - y[flip]
    return X, y


def kde(X: np.ndarray, y: np.ndarray) -> ClassConditional:
    """A kernel estimate per class, its noise capped so that it stays close to the data."""
    spread = math.sqrt(float(X.var(0).sum()))
    return ClassConditional(KDE(max_shift=NOISE * spread)).fit(X, y)


def draws(measure: ClassConditional, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fresh draws, all of the same weight."""
    return measure.sample(n, generator(seed))


def train_plain(
    model: TabularModel, loss: Loss, X: np.ndarray, y: np.ndarray, *, seed: int, passes: int = 150
) -> None:
    """Ordinary training: Adam on mini-batches, cosine schedule, a little weight decay."""
    x, target = torch.as_tensor(X), torch.as_tensor(y)
    gen = generator(seed)
    flat = flatten_parameters(model)
    adam = Adam.like(flat)
    views = views_like(adam.gradient, list(model.parameters()))
    for epoch in range(passes):
        rate = 5e-3 * (0.02 + 0.49 * (1.0 + math.cos(math.pi * epoch / passes)))
        for rows in torch.randperm(len(x), generator=gen).split(64):
            f, backward = model.linearise(x[rows])
            slope = loss.gradient(f, target[rows]) / len(rows)
            for view, g in zip(views, backward(slope, parameters=True), strict=True):
                view.copy_(g)
            adam.gradient.add_(flat, alpha=1e-4)
            adam.step(flat, rate)
    model.requires_grad_(False)


@dataclass
class Fixed:
    """A trained model with its reference: what an inner problem needs but the penalty."""

    model: TabularModel
    loss: Loss
    reference: ClassConditional
    n_labels: int

    def objective(self, points: Tensor, penalty: float) -> Objective:
        d = points.shape[1]
        cost = GroundCost(np.ones(d))
        coordinates = Coordinates.build(cost, points, self.model.first_layer())
        return Objective(self.model, self.loss, coordinates, penalty)

    def problem(self, n: int, penalty: float, seed: int) -> tuple[Objective, Batch]:
        """Objective at a penalty and n draws; the coordinates depend on the penalty in no way."""
        x, y = draws(self.reference, n, seed)
        objective = self.objective(x, penalty)
        return objective, objective.batch(x, y)


_CACHE: dict[tuple, Fixed] = {}


def fixed_mlp(
    name: str, seed: int, hidden: tuple[int, ...] = (64, 64), activation: str = "softplus"
) -> Fixed:
    """A plainly trained network on a data set; ``hidden=()`` for a linear model."""
    key = (name, seed, hidden, activation)
    if key not in _CACHE:
        X, y = classification(name)
        classes = int(y.max()) + 1
        outputs = classes if classes > 2 else 1
        loss = get_loss("logistic", n_classes=classes)
        model = MLP(
            X.shape[1], outputs, hidden=hidden, activation=activation, generator=generator(seed + 1)
        )
        train_plain(model, loss, X, y, seed=seed + 2)
        _CACHE[key] = Fixed(model, loss, kde(X, y), classes)
    return _CACHE[key]


def top_curvature(objective: Objective, batch: Batch, points: list[Tensor]) -> float:
    """Largest eigenvalue of the loss's Hessian at given coordinates, in units of the features."""
    top = 0.0
    for q in points:
        for a in range(0, len(q), 256):
            rows = torch.arange(a, min(a + 256, len(q)))
            hessian = objective.loss_hessian(batch.take(rows), q[rows])
            top = max(top, float(torch.linalg.eigvalsh(hessian).max()))
    return top / objective.coordinates.scale**2


def gain(objective: Objective, batch: Batch, q: Tensor) -> float:
    """The common evaluator of inner problems: mean J(q) - J(x) on the draws, in float64."""
    return float((objective.value(batch, q) - objective.value(batch, batch.q0)).mean())
