"""Mixtures of normal distributions."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from drojko import _random
from drojko._validation import check_number, floats
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import (
    count,
    double,
    indices,
    masses,
    matrix,
    moments,
    positive,
    queries,
)
from drojko.measures.base import Measure, antithetic, centred, choose, draws, inverted, normal
from drojko.measures.gaussian import Gaussian, cholesky, normal_log_prob

__all__ = ["GaussianMixture"]

_ENTRIES = 2**19  # numbers held at once by log_prob


@dataclass(eq=False, repr=False)
class GaussianMixture(Measure):
    """Mixture of normal distributions, p(x) = sum_k pi_k N(x; m_k, S_k), full covariances.

    Parameters
    ----------
    n_components : int, default=None
        Number of components, at most one per distinct row. None: the number from 1 to
        `max_components` of the smallest BIC, among those that leave 2 (d + 1) rows a component.
    means, covariances, weights : array-like of shape (K, d), (K, d, d), (K,), default=None
        The parameters, for use without `fit`; without weights, equal ones.
    max_components : int, default=5
        Largest number that is tried when `n_components` is None.
    ridge : float, default=1e-4
        Added to the variances, relative to the columns' squared scale as in `Gaussian`. It keeps
        components from collapsing onto rows and constant columns.
    random_state : None, int, numpy RandomState or torch.Generator, default=0
        Seeds scikit-learn's start.

    Attributes
    ----------
    means_, covariances_, weights_ : ndarray of shape (K, d), (K, d, d), (K,)

    Notes
    -----
    scikit-learn fits the distinct rows in standardised columns. Its mixture takes no weights, so
    where the rows' weights differ, weighted expectation-maximisation goes on from its solution:
    with responsibilities q_ik, the step is pi_k = sum_i w_i q_ik and weighted moments. BIC counts
    1 / sum_i w_i^2 rows.

    References
    ----------
    A. P. Dempster, N. M. Laird, D. B. Rubin, Maximum likelihood from incomplete data via the EM
    algorithm, 1977. G. Schwarz, Estimating the dimension of a model, 1978 (BIC).

    Examples
    --------
    >>> from drojko.measures import GaussianMixture
    >>> two = GaussianMixture(means=[[-3.0], [3.0]], covariances=[[[1.0]], [[1.0]]])
    >>> two.mean, two.covariance
    (tensor([0.], dtype=torch.float64), tensor([[10.]], dtype=torch.float64))
    >>> GaussianMixture().fit(two.sample(400, torch.Generator().manual_seed(0))).weights_.shape
    (2,)
    """

    _state = "factors_"
    _remedy = "call fit(X) first, or give means= and covariances="

    n_components: int | None = None
    _: KW_ONLY
    means: Any = None
    covariances: Any = None
    weights: Any = None
    max_components: int = 5
    ridge: float = 1e-4
    random_state: Any = 0

    def _fit(self, rows: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> Self:
        check_number("GaussianMixture: ridge", self.ridge, least=0)
        n, dim = rows.shape
        centre, scale = weights @ rows, positive(scale)
        rows = (rows - centre) / scale
        size = 1 / np.sum(weights**2)
        if self.n_components is None:
            most = min(count(self.max_components), int(size) // (2 * (dim + 1)))
            candidates = range(1, max(most, 1) + 1)
        else:
            candidates = [min(count(self.n_components), n)]
        seed = _random.generator(self.random_state).initial_seed() % 2**32
        best = np.inf
        for k in candidates:
            parts = self._components(k, rows, weights, seed)
            numbers = k * (1 + dim + dim * (dim + 1) // 2) - 1
            bic = numbers * np.log(size) - 2 * size * (weights @ log_terms(rows, *parts)[1])
            if bic < best or k == candidates[0]:
                best, (share, means, covariances) = bic, parts
        return self._set(means * scale + centre, covariances * np.outer(scale, scale), share)

    def _components(self, k: int, rows: np.ndarray, weights: np.ndarray, seed: int) -> tuple:
        """Fit k components, in standardised columns: (weights, means, covariances)."""
        if k == 1:
            mean, covariance = moments(rows, weights)
            return np.ones(1), mean[None], (covariance + self.ridge * np.eye(len(mean)))[None]
        from sklearn.mixture import GaussianMixture as Unweighted

        start: Any = Unweighted(k, reg_covar=self.ridge, max_iter=200, random_state=seed).fit(rows)
        parts = start.weights_, start.means_, start.covariances_
        if np.ptp(weights) <= 1e-12 * weights.max():
            return parts
        return weighted_em(rows, weights, *parts, self.ridge)

    def _construct(self) -> None:
        if self.means is None or self.covariances is None:
            return
        means = matrix(self.means, name="means")
        covariances = floats(self.covariances, "covariances")
        expected = (*means.shape, means.shape[1])
        if covariances.shape != expected:
            raise InvalidDataError(
                f"covariances has shape {covariances.shape}; expected {expected}"
            )
        share = masses(self.weights, len(means), "weights")
        self._set(means, covariances, share / share.sum())

    def _set(self, means: np.ndarray, covariances: np.ndarray, weights: np.ndarray) -> Self:
        self.factors_ = cholesky(covariances)
        self.means_, self.covariances_, self.weights_ = means, covariances, weights
        return self

    @property
    def dim(self) -> int:
        return self._ready().means_.shape[1]

    @property
    def mean(self) -> Tensor:
        """sum_k pi_k m_k, shape (d,)."""
        self._ready()
        return double(self.weights_ @ self.means_)

    @property
    def covariance(self) -> Tensor:
        """sum_k pi_k (S_k + m_k m_k') - m m', shape (d, d)."""
        between = moments(self._ready().means_, self.weights_)[1]
        return double(np.tensordot(self.weights_, self.covariances_, axes=1) + between)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points: a component by its weight, then a normal draw."""
        self._ready()
        n, generator = draws(n, generator)
        component = choose(self.weights_, n, generator)
        return self._placed(component, normal((n, self.dim), generator))

    def points(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return ceil(pi_k n) draws of each component, with its mean, component after component."""
        return self._points(n, generator, centred)

    def mirrored_points(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the same in pairs m_k +- u: symmetric components, as particles of flows."""
        return self._points(n, generator, antithetic)

    def _points(self, n: int, generator: Any, noise: Any) -> tuple[Tensor, Tensor]:
        self._ready()
        n, generator = draws(n, generator)
        x, w = [], []
        for k, share in enumerate(self.weights_):
            m = max(1, int(np.ceil(share * n)))
            x.append(self._place(k, noise(m, (self.dim,), generator)))
            w.append(torch.full((m,), float(share) / m, dtype=torch.float64))
        return torch.cat(x), torch.cat(w)

    def _placed(self, component: Tensor, x: Tensor) -> Tensor:
        for k in component.unique().tolist():
            x[component == k] = self._place(k, x[component == k])
        return x

    def _place(self, k: int, noise: Tensor) -> Tensor:
        return double(self.means_[k]) + noise @ double(self.factors_[k]).T

    def log_prob(self, x: Any) -> Tensor:
        x = queries(x, self.dim).double()
        means, factors = double(self.means_, x), double(self.factors_, x)
        log_weights = double(self.weights_, x).log()[:, None]
        parts = [
            torch.logsumexp(log_weights + normal_log_prob(part, means, factors), dim=0)
            for part in x.split(max(1, _ENTRIES // self.means_.size))
        ]
        return torch.cat(parts)

    def marginal(self, columns: Any) -> GaussianMixture:
        columns = indices(columns, self.dim)
        return GaussianMixture(
            len(self.weights_),
            means=self.means_[:, columns],
            covariances=self.covariances_[:, columns[:, None], columns],
            weights=self.weights_,
            ridge=self.ridge,
        )


def log_terms(
    rows: np.ndarray, share: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return log pi_k N(x_i; m_k, S_k), shape (n, K), and its logsumexp over k."""
    density = normal_log_prob(double(rows), double(means), double(cholesky(covariances)))
    terms = (double(share).log()[:, None] + density).T
    return terms.numpy(), torch.logsumexp(terms, dim=1).numpy()


def weighted_em(
    rows: np.ndarray,
    weights: np.ndarray,
    share: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
    ridge: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Climb sum_i w_i log p(x_i) from a start until a step gains less than 1e-6.

    The loop continues that of scikit-learn, which takes no weights, with its own limits.
    """
    before = -np.inf
    for _ in range(200):
        terms, log_density = log_terms(rows, share, means, covariances)
        if (value := weights @ log_density) - before < 1e-6:
            break
        before = value
        mass = weights[:, None] * np.exp(terms - log_density[:, None])
        # The floor is scikit-learn's: a component that lost all rows must not divide by 0.
        total = mass.sum(axis=0) + 10 * np.finfo(float).eps
        share, means = total / total.sum(), mass.T @ rows / total[:, None]
        for k, centre in enumerate(means):
            apart = (rows - centre) * np.sqrt(mass[:, k, None] / total[k])
            covariances[k] = apart.T @ apart + ridge * np.eye(len(centre))
    return share, means, covariances


def net(base: Gaussian | GaussianMixture, n: int, generator: torch.Generator) -> Tensor:
    """Return n points of a scrambled Sobol net of a Gaussian or a mixture, shape (n, d).

    Each is distributed as the measure, and together they cover it more evenly than independent
    draws: averages of smooth functions are unbiased with a much smaller error. The net's first
    coordinate picks the component.
    """
    seed = generator.initial_seed() % 2**31
    net = torch.quasirandom.SobolEngine(base.dim + 1, scramble=True, seed=seed)
    uniform = net.draw(n, dtype=torch.float64).clamp(1e-12, 1.0 - 1e-12)
    x = torch.special.ndtri(uniform[:, 1:])
    if isinstance(base, Gaussian):
        return base._place(x)
    return base._placed(inverted(base.weights_, uniform[:, 0].contiguous()), x)
