"""Bayesian logistic regression: the posterior as the end of a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko._validation import check_number, checked, floats, is_whole, plain_tensor, shown
from drojko.exceptions import InvalidDataError
from drojko.flows.flow_measures import FlowStep
from drojko.flows.functionals import Entropy, PotentialEnergy
from drojko.flows.icnn.scheme import ICNNScheme
from drojko.flows.jko import JKOFlow
from drojko.flows.result import FlowResult
from drojko.measures._arrays import matrix
from drojko.measures.gaussian import Gaussian

__all__ = ["LogisticPosterior", "LogisticTarget", "bayesian_logistic"]


class LogisticTarget:
    r"""Minus the log density of (theta, log alpha) given the data, up to a constant.

    y in {-1, 1}, P(y | x) = sigmoid(y theta'x); theta given alpha is N(0, I / alpha), alpha
    Gamma(shape, rate). Rows of z are (theta, log alpha), log alpha kept within [-8, 8].

    Examples
    --------
    >>> target = LogisticTarget(np.eye(2), np.array([1.0, -1.0]))
    >>> target.value(torch.zeros(1, 3, dtype=torch.float64)).shape
    torch.Size([1])
    """

    def __init__(
        self, X: np.ndarray, y: np.ndarray, *, shape: float = 1.0, rate: float = 100.0
    ) -> None:
        self.rows = torch.as_tensor(X * y[:, None], dtype=torch.float64)
        self.shape, self.rate = shape, rate

    def value(self, z: Tensor) -> Tensor:
        """V, shape (n,)."""
        theta, log_alpha = z[:, :-1], z[:, -1].clamp(-8.0, 8.0)
        alpha, d = log_alpha.exp(), theta.shape[1]
        loss = torch.nn.functional.softplus(-(theta @ self.rows.T)).sum(1)
        prior = 0.5 * alpha * theta.square().sum(1) + self.rate * alpha
        # Twice the bound's excess keeps V coercive where log alpha is cut off.
        over = (z[:, -1] - log_alpha).square()
        return loss + prior - (0.5 * d + self.shape) * log_alpha + over

    def gradient(self, z: Tensor) -> Tensor:
        """Its gradient, shape (n, d + 1)."""
        theta, log_alpha = z[:, :-1], z[:, -1].clamp(-8.0, 8.0)
        alpha, d = log_alpha.exp().unsqueeze(1), theta.shape[1]
        slope = -torch.sigmoid(-(theta @ self.rows.T)) @ self.rows + alpha * theta
        last = alpha[:, 0] * (0.5 * theta.square().sum(1) + self.rate) - (0.5 * d + self.shape)
        last = torch.where(z[:, -1] == log_alpha, last, 2.0 * (z[:, -1] - log_alpha))
        return torch.cat([slope, last.unsqueeze(1)], 1)


@dataclass(frozen=True, eq=False)
class LogisticPosterior:
    """Draws of the posterior; predictions average over them.

    Attributes
    ----------
    coefficients : ndarray of shape (m, d) or (m, d + 1)
        theta, the intercept last where there is one.
    log_precision : ndarray of shape (m,)
        log alpha.
    result : FlowResult
    """

    coefficients: np.ndarray
    log_precision: np.ndarray
    intercept: bool
    classes: np.ndarray
    result: FlowResult

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior mean of P(y = classes[k] | x), shape (n, 2)."""
        rows = _design(matrix(X), self.intercept)
        if rows.shape[1] != self.coefficients.shape[1]:
            given, own = rows.shape[1], self.coefficients.shape[1]
            raise InvalidDataError(f"X with the intercept has {given} columns; expected {own}")
        total = np.zeros(len(rows))
        for part in np.array_split(self.coefficients, max(1, len(self.coefficients) // 200)):
            total += (0.5 * (1.0 + np.tanh(0.5 * rows @ part.T))).sum(1)
        p = total / len(self.coefficients)
        return np.column_stack([1.0 - p, p])

    def log_likelihood(self, X: Any, y: Any) -> float:
        """Mean log predictive probability of labels."""
        p = self.predict_proba(X)
        chosen = np.where(self._labels(y, len(p)) == self.classes[1], p[:, 1], p[:, 0])
        return float(np.log(np.clip(chosen, 1e-300, None)).mean())

    def accuracy(self, X: Any, y: Any) -> float:
        """Share of labels that are the likelier ones."""
        found = self.classes[self.predict_proba(X).argmax(1)]
        return float((found == self._labels(y, len(found))).mean())

    def _labels(self, y: Any, n: int) -> np.ndarray:
        labels = np.asarray(plain_tensor(y, "y"))
        if labels.shape != (n,) or not np.isin(labels, self.classes).all():
            raise InvalidDataError(
                f"y is {shown(y)}; expected {n} labels out of {self.classes.tolist()}"
            )
        return labels


def _design(X: np.ndarray, intercept: bool) -> np.ndarray:
    return np.column_stack([X, np.ones(len(X))]) if intercept else X


@checked()
def bayesian_logistic(
    X: Any,
    y: Any,
    step_sizes: Sequence[float] = (1e-3, 1e-2, 0.1, 1.0, 100.0),
    *,
    intercept: bool = True,
    shape: float = 1.0,
    rate: float = 100.0,
    n_draws: int = 2000,
    scheme: Any = None,
    random_state: Any = None,
) -> LogisticPosterior:
    r"""Flow from N(0, I / 4) to the posterior of logistic regression.

    Parameters
    ----------
    X, y : array-like of shape (n, d) and (n,)
        Standardised columns and two classes.
    step_sizes : sequence of float
        Growing: V has curvature of order n along theta.
    intercept : bool, default=True
        Add a column of ones, with the same prior.
    shape, rate : float
        Of the Gamma prior of alpha.
    scheme : object, default=None
        ``ICNNScheme(n_particles=1000, iterations=0)`` by default: affine maps, with which a
        posterior of many rows is reached. Others bend it.

    Notes
    -----
    Setting after Mokrov et al. (2021, arXiv 2106.00736), section 4.3.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2))
    >>> y = (X[:, 0] + 0.5 * rng.normal(size=200) > 0).astype(int)
    >>> posterior = bayesian_logistic(X, y, random_state=0)
    >>> posterior.accuracy(X, y) > 0.8
    True
    """
    rows = matrix(X)
    try:
        classes, index = np.unique(np.asarray(plain_tensor(y, "y")), return_inverse=True)
    except TypeError as error:
        raise InvalidDataError(f"y holds labels without an order ({error})") from None
    check_number("bayesian_logistic: shape", shape, above=0)
    check_number("bayesian_logistic: rate", rate, above=0)
    if not is_whole(n_draws, 1):
        raise InvalidDataError(f"n_draws={shown(n_draws)}; expected 1 or more")
    if len(classes) != 2 or rows.ndim != 2 or len(rows) != len(index):
        raise InvalidDataError(
            f"bayesian_logistic got X of shape {rows.shape} and {len(classes)} classes; it needs "
            "rows of features and two classes"
        )
    target = LogisticTarget(_design(rows, intercept), 2.0 * index - 1.0, shape=shape, rate=rate)
    dim = target.rows.shape[1] + 1
    start = np.zeros(dim)
    start[-1] = math.log(shape / rate)
    functional = PotentialEnergy(target.value, target.gradient) + Entropy()
    gen = make_generator(random_state)
    scheme = ICNNScheme(n_particles=1000, iterations=0) if scheme is None else scheme
    flow = JKOFlow(functional, scheme, step_size=floats(step_sizes, "step_sizes").ravel())
    result = flow.run(Gaussian(start, 0.25 * np.eye(dim)), random_state=spawn(gen))
    last = result.measures[-1]
    z = last.particles if isinstance(last, FlowStep) else last.sample(n_draws, gen)
    if len(z) < n_draws:
        z = torch.cat([z, last.sample(n_draws - len(z), gen)])
    drawn = z.numpy()
    return LogisticPosterior(drawn[:, :-1], drawn[:, -1], intercept, classes, result)
