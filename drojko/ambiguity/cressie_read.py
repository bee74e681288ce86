"""The Cressie-Read family of divergences."""

from __future__ import annotations

import math

from drojko._validation import is_real, shown
from drojko.ambiguity.base import Divergence
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.exceptions import InvalidDataError

__all__ = ["CressieRead"]


class CressieRead(DensityRatioSet):
    r"""Distributions within a Cressie-Read divergence of order k, for k > 1 or 0 < k < 1.

    .. math:: D(P, P_0) = E_0\, \varphi_k\!\left(\frac{dP}{dP_0}\right) \le \mathrm{radius}, \qquad
        \varphi_k(s) = \frac{s^k - k s + k - 1}{k (k - 1)}

    With k* = k / (k - 1) and k > 1 the worst case is

    .. math:: \sup_P E_P \ell = \min_c\; c + (1 + k (k - 1)\, \mathrm{radius})^{1/k}
        \left(E_0 (\ell - c)_+^{k_*}\right)^{1/k_*},

    at dP*/dP0 proportional to (loss - c)_+^(1 / (k - 1)): the larger k, the more samples drop out.
    For 0 < k < 1 it is the maximum over c > max loss of
    c - (1 - k (1 - k) radius)^(1/k) (E0 (c - loss)^(k*))^(1/k*), at dP*/dP0 proportional to
    (c - loss)^(-1 / (1 - k)). Every distribution is within 1 / (k (1 - k)) then.

    Orders k < 1 let mass go to the largest loss at a bounded price: around a continuous reference
    a loss without a bound has an infinite supremum. Estimators take the largest loss among their
    draws for it and call the upper side of the certificate a "local-estimate"; k > 1 and
    ``reference="empirical"`` are exact.

    Parameters
    ----------
    k : float
        Order. k = 2 is half the chi-square divergence, k = 1/2 twice the squared Hellinger
        distance 2 E0 (sqrt(dP/dP0) - 1)^2; the limit k = 1 is `KL`.
    radius : float, default=None
        Divergence, no unit. Exactly one of radius and penalty must be given.
    penalty : float, default=None
        Price of one unit of the divergence, in the units of the loss.

    Notes
    -----
    c is found by a safeguarded secant method on the logarithm of the radius that it spends.

    References
    ----------
    J. Duchi, H. Namkoong, 2021, Learning Models with Uniform Performance via Distributionally
    Robust Optimization, arXiv 1810.08750.

    Examples
    --------
    >>> from drojko.ambiguity import ChiSquare, CressieRead
    >>> losses = [0.0, 1.0, 2.0, 5.0]
    >>> dual = CressieRead(3.0, radius=0.1).dual(losses)
    >>> dual
    Dual(value=2.80867, penalty=3.97668, shift=1.61566, attained=2.80867, radius=0.1, n=4,
    proof='dual')
    >>> dual.ratio.round(3)
    array([0.433, 0.831, 1.092, 1.644])
    >>> half, chi = CressieRead(2.0, radius=0.05).dual(losses), ChiSquare(radius=0.1).dual(losses)
    >>> abs(half.value - chi.value) < 1e-12
    True
    """

    def __init__(self, k: float, radius: float | None = None, *, penalty: float | None = None):
        self.k = k
        self.radius = radius
        self.penalty = penalty

    conic_form = "cressie-read"

    @property
    def divergence(self) -> Divergence:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of this order."""
        return Divergence("cressie-read", float(self.k), 1.0)

    def _check_family(self) -> None:
        k = float(self.k) if is_real(self.k) else math.nan
        if abs(k - 1.0) < 1e-9:
            raise InvalidDataError(
                f"CressieRead got k={self.k}, where its limit is KL: use KL(...)"
            )
        if 0 <= k < 1e-6:
            raise InvalidDataError(
                f"CressieRead got k={self.k}, the reverse Kullback-Leibler limit, which is not "
                "offered: use a small order such as k=0.1"
            )
        if not 0 < k < math.inf:
            raise InvalidDataError(
                f"CressieRead got k={shown(self.k)}; it must be a finite number, k > 1 or 0 < k < 1"
            )

    def needs_largest(self, penalty: float) -> bool:
        """For k < 1, and where the worst case is the largest loss."""
        return self.radius != 0 and (float(self.k) < 1 or penalty <= 0)
