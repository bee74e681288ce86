r"""Sinkhorn risk of a fixed linear model, exactly: a one-dimensional root in the multiplier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drojko.exceptions import UnboundedRiskError
from drojko.losses.tilts import Tilted
from drojko.minimax.transport.data import RidgeData
from drojko.minimax.transport.risk import spend

__all__ = ["SinkhornRisk", "sinkhorn_risk"]


@dataclass(frozen=True)
class SinkhornRisk:
    """The exact worst case of one linear model.

    ``value`` is the robust risk, ``attained`` what the tilted laws attain inside the set (radius
    form) or net of the penalty, ``risk`` their mean loss, ``transport_cost`` epsilon E KL, which they
    spend, ``nominal`` the mean loss without noise, ``deviation`` the noise's deviation s in units
    of predictions, ``spread`` (n,) what the mean of is taken for the dual value.
    """

    value: float
    attained: float
    risk: float
    transport_cost: float
    nominal: float
    penalty: float
    deviation: float
    spread: np.ndarray


def sinkhorn_risk(
    data: RidgeData,
    coef: np.ndarray,
    intercept: float,
    *,
    epsilon: float,
    radius: float | None = None,
    penalty: float | None = None,
    guess: float | None = None,
) -> SinkhornRisk:
    r"""Worst-case risk of the linear model ``coef'x + intercept``, exact.

    Parameters
    ----------
    data : RidgeData, with fixed labels
    coef, intercept : array of shape (d,), float
    epsilon : float
    radius, penalty : exactly one of them.
    guess : float, a first guess of the multiplier of a radius.

    Raises
    ------
    UnboundedRiskError
        Squared loss at a penalty not above the squared dual norm of ``coef``.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> data = RidgeData(np.array([[1.0], [3.0]]), np.array([0.0, 0.0]), loss=get_loss("squared"))
    >>> found = sinkhorn_risk(data, np.array([1.0]), 0.0, epsilon=0.5, penalty=2.0)
    >>> round(found.value, 9), round(2 / (2 - 1) * 5 - 2 * 0.5 / 2 * math.log(1 - 1 / 2), 9)
    (10.34657359, 10.34657359)
    """
    f = data.predictions(coef, intercept)
    square = data.squared_norm(coef)
    s = math.sqrt(0.5 * epsilon * square)
    w = data.weight
    nominal = float(w @ data.loss.tilt(f, data.y, 0.0, 0.0).value)
    if (penalty is None and not radius) or s == 0.0:
        plain = data.loss.tilt(f, data.y, s, 0.0)
        value = float(w @ plain.value)
        lam = penalty if penalty is not None else (0.0 if radius else math.inf)
        return SinkhornRisk(value, value, value, 0.0, nominal, lam, s, plain.value)
    least = data.loss.growth * square
    if penalty is None:

        def at(lam: float) -> tuple[float, float, Tilted]:
            found = data.loss.tilt(f, data.y, s, 1.0 / (epsilon * lam))
            # d KL / d lambda = -epsilon Var l / (epsilon lambda)^3
            slope = -float(w @ found.cov[5]) / (epsilon * lam**3)
            return epsilon * float(w @ found.divergence), slope, found

        if guess is None or not least < guess < math.inf:
            steep = max(float(w @ data.loss.tilt(f, data.y, s, 0.0).mean[0] ** 2), 1e-300)
            guess = least + math.sqrt(square * steep / (4.0 * (radius or 0.0)))
        lam, found = spend(at, radius or 0.0, guess, least=least)
    elif least and penalty <= least:
        raise UnboundedRiskError(
            f"{data.loss.name} loss: the worst case is infinite for penalty={penalty:.6g}; it is "
            f"finite for penalty > {square:.6g}, the squared dual norm of the coefficients"
        )
    else:
        lam, found = penalty, data.loss.tilt(f, data.y, s, 1.0 / (epsilon * penalty))
    spent = epsilon * float(w @ found.divergence)
    risk = float(w @ found.mean[2])
    value = float(w @ found.value)
    if penalty is not None:
        return SinkhornRisk(value, value, risk, spent, nominal, lam, s, found.value)
    budget = float(radius or 0.0)
    value += lam * budget
    if spent > budget:
        # Rounding: a mixture with Q spends no more than its share, as KL is convex.
        plain = float(w @ data.loss.tilt(f, data.y, s, 0.0).value)
        share = budget / spent
        risk, spent = share * risk + (1.0 - share) * plain, budget
    return SinkhornRisk(
        max(value, risk), min(risk, value), risk, spent, nominal, lam, s, found.value
    )
