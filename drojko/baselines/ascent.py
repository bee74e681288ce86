"""Training against gradient ascent on each sample: the non-convex baselines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor

from drojko._numerics import Adam
from drojko._sklearn import (
    Interval,
    LogitClassifier,
    StrOptions,
    check_is_fitted,
    checked_data,
    checked_weight,
    fitting,
)
from drojko._threads import SMALL, one_thread
from drojko.exceptions import NonFiniteError
from drojko.losses import Loss, get_loss
from drojko.models import ACTIVATIONS, MLP, Linear, flatten_parameters, views_like

__all__ = ["AdversarialClassifier", "WRMClassifier"]


@dataclass(eq=False, repr=False, kw_only=True)
class _AscentClassifier(LogitClassifier, BaseEstimator):
    """Adam on mini-batches whose samples were moved by `_attack`."""

    model: str = "mlp"
    hidden_layer_sizes: Sequence[int] | int = (64,)
    activation: str = "softplus"
    alpha: float = 0.0
    steps: int = 15
    max_iter: int = 100
    batch_size: int = 128
    learning_rate: float = 5e-3
    random_state: Any = None

    _parameter_constraints: ClassVar[dict] = {
        "model": [StrOptions({"linear", "mlp"})],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "steps": [Interval(Integral, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    @abstractmethod
    def _attack(self, model: MLP, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        """Moved samples of a batch, shape (n, d)."""

    @fitting
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on X of shape (n, d), labels of shape (n,) and optional weights of shape (n,)."""
        X, y = checked_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        _, index = self._encode(y)
        weight = checked_weight(sample_weight, X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        with one_thread(X.size < SMALL), torch.no_grad():
            x, labels = torch.tensor(X), torch.tensor(index)
            mass = torch.tensor(weight / weight.mean())
            model = self._build(X.shape[1], generator)
            self._train(model, x, labels, mass, generator)
            self.weights_ = [w.numpy().copy() for w in model.weights]
            self.biases_ = [b.numpy().copy() for b in model.biases]
        if not all(np.isfinite(w).all() for w in [*self.weights_, *self.biases_]):
            raise NonFiniteError("training left no finite model; lower learning_rate")
        self.n_iter_ = self.max_iter
        return self

    def _build(self, d: int, generator: torch.Generator) -> MLP:
        outputs = len(self.classes_) if len(self.classes_) > 2 else 1
        if self.model == "linear":
            return Linear(d, outputs, generator=generator)
        sizes = np.atleast_1d(self.hidden_layer_sizes).tolist()
        return MLP(d, outputs, hidden=sizes, activation=self.activation, generator=generator)

    def _train(self, model: MLP, x: Tensor, y: Tensor, w: Tensor, gen: torch.Generator) -> None:
        loss = get_loss("logistic", "classification", max(2, model.n_outputs))
        flat = flatten_parameters(model)
        adam = Adam.like(flat)
        views = views_like(adam.gradient, list(model.parameters()))
        decay = [self.alpha if on else 0.0 for on in model.penalised()]
        batches = -(-len(x) // self.batch_size)
        total, count = self.max_iter * batches, 0
        for _ in range(self.max_iter):
            for rows in torch.randperm(len(x), generator=gen).chunk(batches):
                z = self._attack(model, loss, x[rows], y[rows])
                f, backward = model.linearise(z)
                slope = loss.gradient(f, y[rows])
                share = w[rows] / len(rows)
                slope = slope * (share if slope.ndim == 1 else share[:, None])
                gradients = backward(slope, parameters=True)
                for view, g, p, a in zip(views, gradients, model.parameters(), decay):
                    view.copy_(g + a * p)
                rate = self.learning_rate * (1.0 - 0.95 * count / total)
                adam.step(flat, rate)
                count += 1

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits: shape (n,) for two classes, else (n, n_classes)."""
        check_is_fitted(self)
        X = checked_data(self, X, dtype=np.float64, reset=False)
        model = self._build(X.shape[1], torch.Generator().manual_seed(0))
        with torch.no_grad(), one_thread(X.size < SMALL):
            for p, value in zip(model.parameters(), [*self.weights_, *self.biases_]):
                p.copy_(torch.tensor(value))
            return model(torch.tensor(X)).numpy()


@dataclass(eq=False, repr=False)
class WRMClassifier(_AscentClassifier):
    r"""Adversarial training with a price on distance, sample by sample.

    .. math:: \min_\theta\; E_{\hat P_n} \sup_z \{\ell(\theta; z, y) - \gamma \|z - x\|^2\}

    with the supremum replaced by ``steps`` steps of gradient ascent from x, of size
    1 / (2 gamma sqrt(t)). For penalties below half the curvature of the loss the ascent may end in
    a local maximum, and nothing certifies the result: a baseline, not a solver.

    Parameters
    ----------
    penalty : float, default=1.0
        gamma: loss per squared unit of X, as in ``Wasserstein(penalty=...)``.
    model : {"mlp", "linear"}, default="mlp"
    hidden_layer_sizes : sequence of int, default=(64,)
    activation : str, default="softplus"
    alpha : float, default=0.0
        L2 penalty on the weights.
    steps : int, default=15
        Ascent steps per sample and batch; 0 is plain training.
    max_iter : int, default=100
        Passes over the data.
    batch_size : int, default=128
    learning_rate : float, default=5e-3
    random_state : int, RandomState or None, default=None

    References
    ----------
    A. Sinha, H. Namkoong, R. Volpi, J. Duchi (2018), Certifying some distributional robustness
    with principled adversarial training, arXiv 1710.10571.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko.baselines import WRMClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(WRMClassifier(penalty=2.0, max_iter=50, random_state=0).fit(X, y).score(X, y) > 0.9)
    True
    """

    penalty: float = 1.0
    _parameter_constraints: ClassVar[dict] = {
        **_AscentClassifier._parameter_constraints,
        "penalty": [Interval(Real, 0, None, closed="neither")],
    }

    def _attack(self, model: MLP, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        z = x
        for t in range(1, self.steps + 1):
            gradient = _input_gradient(model, loss, z, y) - 2.0 * self.penalty * (z - x)
            z = z + gradient / (2.0 * self.penalty * t**0.5)
        return z


@dataclass(eq=False, repr=False)
class AdversarialClassifier(_AscentClassifier):
    r"""Plain adversarial training: every sample moves by at most the radius.

    .. math:: \min_\theta\; E_{\hat P_n} \max_{\|z - x\| \le \epsilon} \ell(\theta; z, y)

    by ``steps`` normalised gradient steps of length 2.5 radius / steps, projected on the ball. A
    ball of Wasserstein distance lets some samples move further at the cost of others; this is the
    order-infinity set.

    Parameters
    ----------
    radius : float, default=0.1
        In the units of X.
    model, hidden_layer_sizes, activation, alpha, steps, max_iter, batch_size, learning_rate
        As in `WRMClassifier`.
    random_state : int, RandomState instance or None
        As in `WRMClassifier`.

    References
    ----------
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu (2018), Towards deep learning models
    resistant to adversarial attacks, arXiv 1706.06083.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko.baselines import AdversarialClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = AdversarialClassifier(radius=0.1, max_iter=50, random_state=0)
    >>> bool(model.fit(X, y).score(X, y) > 0.9)
    True
    """

    radius: float = 0.1
    _parameter_constraints: ClassVar[dict] = {
        **_AscentClassifier._parameter_constraints,
        "radius": [Interval(Real, 0, None, closed="left")],
    }

    def _attack(self, model: MLP, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        z = x
        for _ in range(self.steps if self.radius > 0 else 0):
            gradient = _input_gradient(model, loss, z, y)
            length = gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)
            move = z + (2.5 * self.radius / self.steps) * gradient / length - x
            over = (move.norm(dim=1, keepdim=True) / self.radius).clamp_min(1.0)
            z = x + move / over
        return z


def _input_gradient(model: MLP, loss: Loss, z: Tensor, y: Tensor) -> Any:
    f, backward = model.linearise(z)
    return backward(loss.gradient(f, y))
