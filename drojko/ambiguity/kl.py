"""The Kullback-Leibler ball."""

from __future__ import annotations

from drojko.ambiguity.base import Divergence
from drojko.ambiguity.duals.density_ratio import DensityRatioSet

__all__ = ["KL"]


class KL(DensityRatioSet):
    r"""Distributions whose Kullback-Leibler divergence from the reference is limited.

    .. math:: D(P, P_0) = E_P \log \frac{dP}{dP_0} \le \mathrm{radius}, \qquad
        \sup_P E_P \ell = \min_{\lambda \ge 0}
        \lambda\, \mathrm{radius} + \lambda \log E_0 e^{\ell / \lambda}

    with dP*/dP0 = exp(loss / lambda) / E0 exp(loss / lambda). In the penalised form the value is
    penalty * log E0 exp(loss / penalty), the entropic risk.

    Parameters
    ----------
    radius : float, default=None
        Divergence in nats. 0 is the reference alone; from -log(P0(largest loss)) on, the worst
        case is the largest loss. Exactly one of radius and penalty must be given.
    penalty : float, default=None
        Price of one nat, in the units of the loss.

    Notes
    -----
    `dual` finds the tilt 1/lambda by a safeguarded secant method on the logarithm of the radius
    that it spends, which costs O(n log n) for sorting and a few passes over the losses; `dual_path`
    sorts once.

    References
    ----------
    Z. Hu, L. J. Hong, 2013, Kullback-Leibler Divergence Constrained Distributionally Robust
    Optimization.

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> dual = KL(radius=0.1).dual([0.0, 1.0, 2.0, 5.0])
    >>> dual
    Dual(value=2.86822, penalty=4.4422, shift=2.424, attained=2.86822, radius=0.1, n=4,
    proof='dual')
    >>> dual.ratio.round(3)
    array([0.579, 0.726, 0.909, 1.786])
    >>> round(KL(penalty=2.0).dual([0.0, 1.0, 2.0, 5.0]).value, 5)
    2.95746
    >>> KL(radius=2.0).dual([0.0, 1.0, 2.0, 5.0]).value  # more than log 4
    5.0
    """

    conic_form = "kl"
    divergence = Divergence("kl", 1.0, 1.0)
