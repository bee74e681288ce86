"""Portfolios whose tail loss is small under every distribution of the returns that is near."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._validation import check_flag, check_number, checked, is_real, shown
from drojko.ambiguity import AmbiguitySet
from drojko.exceptions import InvalidDataError
from drojko.problems.constraints import Simplex
from drojko.problems.families.structured import MaxAffine
from drojko.problems.problem import MinimaxProblem, reference_of

__all__ = ["portfolio"]


@checked()
def portfolio(
    returns: Any,
    ambiguity: AmbiguitySet,
    *,
    tail: float = 0.05,
    long_only: bool = True,
    mean_weight: float = 0.0,
    max_weight: float | None = None,
) -> MinimaxProblem:
    r"""Mean-CVaR portfolio against the worst distribution of the returns z.

    .. math:: \min_{\theta \in \Delta} \sup_P\; \mathrm{CVaR}_\beta^P(-\theta^\top z)
        - \mu\, E_P \theta^\top z, \qquad
        \mathrm{CVaR}_\beta(\ell) = \min_t\; t + E(\ell - t)_+ / \beta

    The threshold t is decided along with the weights: supremum and minimum over t commute. Under a
    Wasserstein ball of order p and mu = 0 the worst case is
    :math:`\mathrm{CVaR}_\beta(-\theta^\top z) + \mathrm{radius}\,\beta^{-1/p}\|\theta\|_*`.

    Parameters
    ----------
    returns : array of shape (n, d), frame, or fitted Measure
        Returns per period, a column per asset.
    ambiguity : AmbiguitySet
    tail : float, default=0.05
        beta, the share of the worst periods, in (0, 1].
    long_only : bool, default=True
        Weights at least 0; False allows short positions. They sum to 1 in either case.
    mean_weight : float, default=0.0
        mu, how much a unit of mean return counts against a unit of CVaR.
    max_weight : float, default=None
        Largest weight of one asset (and, with short positions, minus the smallest).

    Returns
    -------
    MinimaxProblem
        Its decision is a dict: "weights" of shape (d,) and "threshold", a number.

    Raises
    ------
    InvalidDataError
        For settings out of range.

    Notes
    -----
    R. T. Rockafellar, S. Uryasev, 2000, Optimization of conditional value-at-risk; P. Mohajerin
    Esfahani, D. Kuhn, 2018, arXiv 1505.05116.

    Examples
    --------
    >>> import numpy as np
    >>> from drojko.ambiguity import Wasserstein
    >>> z = 0.01 * np.random.default_rng(0).normal([0.1, 0.1, 0.0], [1.0, 1.0, 3.0], (200, 3))
    >>> problem = portfolio(z, Wasserstein(radius=0.05), tail=0.1)
    >>> problem.solve().params["weights"].round(1)  # the third is much riskier
    array([0.4, 0.4, 0.2])
    """
    check_number("portfolio: tail", tail, above=0, most=1, add=", a share in (0, 1]")
    if not math.isfinite(1.0 / float(tail)):
        raise InvalidDataError(f"portfolio: tail={tail:g} is too small: 1 / tail overflows")
    check_number("portfolio: mean_weight", mean_weight, least=0)
    check_flag("portfolio: long_only", long_only)
    if len(shape := getattr(returns, "shape", (0, 0))) != 2:
        raise InvalidDataError(f"portfolio: returns have shape {shape}; expected (periods, assets)")
    d = reference_of(returns)[0].dim
    if max_weight is not None and not (is_real(max_weight) and max_weight * d >= 1.0):
        raise InvalidDataError(
            f"portfolio: max_weight={shown(max_weight)} for {d} assets; their weights cannot sum "
            "to 1"
        )
    most = math.inf if max_weight is None else max_weight
    weights = Simplex(1.0, 0.0 if long_only else -most, most)
    return MinimaxProblem(
        MaxAffine(partial(_pieces, float(tail), float(mean_weight))),
        {"weights": np.full(d, 1.0 / d), "threshold": 0.0},
        returns,
        ambiguity,
        constraint={"weights": weights},
        convex=True,
    )


def _pieces(tail: float, mean_weight: float, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """T + max(0, -theta'z - t) / beta - mu theta'z as two pieces."""
    theta, t = params["weights"], params["threshold"]
    slopes = torch.stack([-mean_weight * theta, -(mean_weight + 1.0 / tail) * theta])
    return slopes, torch.stack([t, t - t / tail])
