r"""The limit law of the robust Wasserstein profile: how far the data are from the truth.

The profile function of a parameter is the squared distance to the nearest distribution for which
it is optimal, h being the gradient of the loss in the parameters:

    R_n(theta) = min { W_2^2(P, P_n) : E_P h(x, y; theta) = 0 }
               = max_xi  -E_n max_u { xi'h(u, y; theta) - c(u, x) }

For a small xi the inner maximum is xi'h + |D_x h' xi|^2_{W^-1} / 4, W the weights of the cost, so
that at the true parameter (Blanchet, Kang, Murthy 2016; for this cost)

    n R_n(theta*)  ->  max_xi  -xi'H - xi'G xi / 4  =  H'G^-1 H,
    H ~ N(0, Cov h),   G = E D_x h W^-1 D_x h',

a sum of independent chi-square variables, weighted by the eigenvalues of G^-1 Cov h. A linear
model has h = l'(f, y) x and D_x h = l'' x beta' + l' I.

The intercept b is a nuisance: min over b of R_n(beta*, b), as the ball holds a distribution for
which beta* is optimal, whatever the intercept is. It shifts E h by b E l''(1, x), which lies in
the intercept's own coordinate once x is centred at E l'' x / E l''; the minimum then asks nothing
of that coordinate, and the formulas above hold for the centred x.

Order 1, logistic loss: xi'h grows like the dual norm of xi, so that only |xi|_* <= 1 is feasible,
and root n R_n is at most the norm of root n E_n h. As h = l' x with |l'| <= 1, that is
stochastically below the norm of a normal variable with the covariance of x, whatever beta* is
(their bound for logistic regression). At beta* = 0, where |xi|_* <= 2 and Cov h is a quarter of
the covariance of x, it is equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import LinAlgError, eigh

from drojko.ambiguity.ground.norms import primal_norm
from drojko.exceptions import InvalidDataError
from drojko.losses import Loss

__all__ = ["NormLaw", "ProfileLaw", "profile_law"]


@dataclass(frozen=True, eq=False)
class ProfileLaw:
    """Limit of n R_n(theta*): the law of sum_k eigenvalues_k Z_k^2, Z standard normal.

    ``eigenvalues`` (d,), in the units of the ground cost.
    """

    eigenvalues: np.ndarray
    order = 2

    def sample(self, n: int, generator: torch.Generator) -> np.ndarray:
        """Draws of the limit, shape (n,), sorted."""
        total = np.zeros(n)
        for eigenvalue in self.eigenvalues:
            total += (
                eigenvalue * torch.randn(n, generator=generator, dtype=torch.float64).numpy() ** 2
            )
        return np.sort(total)


@dataclass(frozen=True, eq=False)
class NormLaw:
    """Bound of the limit of root n R_n(theta*) at order 1: the cost of a normal displacement.

    ``covariance`` (d, d) of the columns; ``weights`` and ``norm`` of the ground cost.
    """

    covariance: np.ndarray
    weights: np.ndarray
    norm: float
    order = 1

    def sample(self, n: int, generator: torch.Generator) -> np.ndarray:
        """Draws of the bound, shape (n,), sorted."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = np.sqrt(np.maximum(values, 0.0)) * vectors
        parts = []
        for start in range(0, n, 10_000):
            shape = (min(10_000, n - start), len(values))
            z = torch.randn(shape, generator=generator, dtype=torch.float64).numpy()
            parts.append(primal_norm(z @ root.T, self.weights, self.norm))
        return np.sort(np.concatenate(parts))


def profile_law(
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    coef: np.ndarray,
    intercept: float | None,
    loss: Loss,
    inverse_cost: np.ndarray,
    label_cost: float = np.inf,
) -> ProfileLaw:
    """The limit law with the moments of given data, at the parameters of a linear model.

    Parameters
    ----------
    X, y, weight : ndarray of shapes (n, d), (n,), (n,)
        Weights sum to one; labels as the loss takes them.
    coef, intercept : ndarray of shape (d,), float
        None: a model without an intercept.
    loss : Loss
        Scalar, twice differentiable almost everywhere.
    inverse_cost : ndarray of shape (d,)
        1 / w_j of the ground cost; 0 for columns that do not move.
    label_cost : float
        Price of (y - y')^2 for losses of y - f; infinity: labels stay.

    Raises
    ------
    InvalidDataError
        Where G is singular: nothing that may move changes the optimality of the model.
    """
    f = torch.as_tensor(X @ coef + (intercept or 0.0))
    target = torch.as_tensor(y)
    slope = loss.gradient(f, target).numpy()
    bend = loss.second_derivative(f, target).numpy()

    # The law is invariant to x -> A x: scaled columns are for rounding.
    scale = np.sqrt(weight @ (X - weight @ X) ** 2)
    scale = np.where(scale > 0, scale, 1.0)
    features, move = X / scale, 1.0 / scale
    if intercept is not None:
        total = weight @ bend
        centre = weight * bend / total if total > 0 else weight
        features = features - centre @ features

    gradients = features * slope[:, None]
    gradients = gradients - weight @ gradients
    covariance = gradients.T @ (weight[:, None] * gradients)

    price = float(inverse_cost @ coef**2)
    if np.isfinite(label_cost):
        price += 1.0 / label_cost  # D_y h = -l'' x
    mixed = np.outer((weight * bend * slope) @ features, move * inverse_cost * coef)
    metric = (
        price * features.T @ ((weight * bend**2)[:, None] * features)
        + mixed
        + mixed.T
        + np.diag((weight @ slope**2) * move**2 * inverse_cost)
    )
    try:
        eigenvalues = eigh(covariance, metric, eigvals_only=True)
    except LinAlgError as error:
        raise InvalidDataError(
            "the profile of the risk is infinite: no movement of the columns that may move makes "
            "up for a change of the coefficients. Check for immutable columns, for a model that "
            "fits the data without error, and for fewer rows than columns"
        ) from error
    return ProfileLaw(np.maximum(eigenvalues, 0.0))
