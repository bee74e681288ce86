"""The Sinkhorn ball: Wasserstein of order 2 with entropic smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from drojko.ambiguity.base import AmbiguitySet
from drojko.ambiguity.ground.columns import Columns, resolve_weights
from drojko.ambiguity.ground.cost import GroundCost

__all__ = ["Sinkhorn"]


class Sinkhorn(AmbiguitySet):
    r"""Distributions near the reference in the entropic transport cost: continuous worst cases.

    .. math:: \varepsilon\, E_{x \sim P_0} \mathrm{KL}(\gamma_x \| Q_x) \le \mathrm{radius}, \qquad
        Q_x = N\!\left(x, \tfrac{\varepsilon}{2} \mathrm{diag}(w)^{-1}\right)
        \propto e^{-c(x, \cdot)/\varepsilon}

    for the conditional laws gamma_x of where x is moved, with c(x, z) = sum_j w_j (x_j - z_j)^2.
    The worst case solves

    .. math:: \min_{\lambda \ge 0} \lambda\, \mathrm{radius}
        + \lambda\varepsilon\, E_x \log E_{z \sim Q_x} e^{\ell(z)/(\lambda\varepsilon)}, \qquad
        \gamma_x \propto e^{\ell/(\lambda\varepsilon)} Q_x

    or, in the penalised form, the second term at lambda = penalty. Every gamma_x has a density, so
    the worst case is continuous, around an empirical reference, too.

    Parameters
    ----------
    epsilon : float
        Strength of the entropic smoothing, in squared units of X: a column of weight 1 gets the
        noise variance epsilon / 2.
    radius : float, default=None
        Bound of the left-hand side above, in squared units of X, non-negative; 0 leaves the
        smoothed reference, E_x E_{Q_x} loss. It is the radius of the literature after the constant
        epsilon E log of the integral of exp(-c/epsilon) is added (there: rho-bar), and tends to a
        bound of W_2^2 as epsilon falls: compare with ``Wasserstein(sqrt(radius))``. Exactly one of
        radius and penalty must be given.
    penalty : float, default=None
        Price of one unit of it: loss per squared unit of X.
    weights : sequence of shape (d,), dict or float, default=None
        Weights w_j of the columns, positive; infinity makes a column immutable. A dict maps
        feature names or indices to weights, the others have weight 1.
    immutable : sequence of feature names or indices, or mask of shape (d,), default=None
        Columns that neither move nor get noise.

    References
    ----------
    J. Wang, R. Gao, Y. Xie, 2021, Sinkhorn Distributionally Robust Optimization,
    arXiv 2109.11926.

    Examples
    --------
    >>> from drojko.ambiguity import Sinkhorn
    >>> ball = Sinkhorn(0.1, radius=0.25, immutable=["sex"])
    >>> ball.validate(2, ["age", "sex"]), ball.budget
    (GroundCost(d=2, immutable: 'sex'), 0.25)
    """

    moves = True
    _hints = {
        "radius": (
            ": the radius bounds epsilon * E KL(gamma_x || Q_x), so it lies in [0, inf); "
            "a Sinkhorn distance itself may be negative, the constant epsilon * E log of "
            "the integral of exp(-c/epsilon) makes it this number"
        ),
        "epsilon": ": for no smoothing use Wasserstein(radius=...)",
    }

    def __init__(
        self,
        epsilon: float = 0.1,
        radius: float | None = None,
        *,
        penalty: float | None = None,
        weights: Any = None,
        immutable: Any = None,
    ):
        self.epsilon = epsilon
        self.radius = radius
        self.penalty = penalty
        self.weights = weights
        self.immutable = immutable

    def resolve(self, n_features: int, feature_names: Sequence[str] | None = None) -> GroundCost:
        """Return the ground cost for data with these columns; see `AmbiguitySet.resolve`."""
        columns = Columns(n_features, feature_names)
        weights, _ = resolve_weights(self.weights, self.immutable, columns)
        return GroundCost(weights, None, None, columns.names)

    def candidates(self, X: np.ndarray, names: Any, weight: np.ndarray) -> np.ndarray:
        """Squared shares of a standard deviation."""
        return (
            self.validate(X.shape[1], names).spread(X, weight) * np.geomspace(0.01, 1.0, 8)
        ) ** 2

    def _validate_params(self) -> None:
        self._check_number("epsilon", self.epsilon, zero="refused")
        super()._validate_params()
