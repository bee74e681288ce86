r"""Sinkhorn risk of a fixed linear model, exactly: a one-dimensional root in the multiplier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drojko.exceptions import UnboundedRiskError
from drojko.losses.tilts import Tilted
from drojko.minimax.transport.data import RidgeData

__all__ = ["SinkhornRisk", "check_growth", "multiplier", "sinkhorn_risk"]


@dataclass(frozen=True)
class SinkhornRisk:
    """The exact worst case of one linear model.

    ``value`` is the robust risk, ``attained`` what the tilted laws attain inside the set (radius
    form) or net of the penalty, ``risk`` their mean loss, ``divergence`` epsilon E KL, which they
    spend, ``nominal`` the mean loss without noise, ``deviation`` the noise's deviation s in units
    of predictions, ``spread`` (n,) what the mean of is taken for the dual value.
    """

    value: float
    attained: float
    risk: float
    divergence: float
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
    if penalty is None:
        lam, found = multiplier(data, f, s, square, epsilon, float(radius or 0.0), guess)
    else:
        check_growth(data, square, penalty)
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


def check_growth(data: RidgeData, square: float, penalty: float) -> None:
    if data.loss.growth and penalty <= data.loss.growth * square:
        raise UnboundedRiskError(
            f"{data.loss.name} loss: the worst case is infinite for penalty={penalty:.6g}; it is "
            f"finite for penalty > {square:.6g}, the squared dual norm of the coefficients"
        )


def multiplier(
    data, f, s, square, epsilon, radius, guess, close: float = 1e-14
) -> tuple[float, Tilted]:
    """Root of epsilon E KL = radius: nonincreasing in the multiplier; Newton on logarithms."""
    w = data.weight
    least = data.loss.growth * square

    def at(extra: float):
        lam = least + extra
        found = data.loss.tilt(f, data.y, s, 1.0 / (epsilon * lam))
        spent = epsilon * float(w @ found.divergence)
        # d KL / d lambda = -epsilon Var l / (epsilon lambda)^3
        slope = -float(w @ found.cov[5]) / (epsilon * lam**3)
        return lam, found, spent, slope

    if guess is None or not least < guess < math.inf:
        slopes = data.loss.tilt(f, data.y, s, 0.0).mean[0]
        steep = float(w @ slopes**2) + 1e-8 * float(w @ slopes**2 + 1e-300)
        guess = least + math.sqrt(square * max(steep, 1e-300) / (4.0 * radius))
    extra = max(guess - least, 1e-12 * guess)
    low, high = 0.0, math.inf
    for _ in range(200):
        lam, found, spent, slope = at(extra)
        if abs(spent - radius) <= close * radius:
            break
        if spent > radius:
            low = extra
        else:
            high = extra
        step = math.nan
        if spent > 0.0 and slope < 0.0:
            step = extra * math.exp(
                max(-3.0, min(3.0, -math.log(spent / radius) * spent / (slope * extra)))
            )
        if not low < step < high:
            step = 2.0 * extra if math.isinf(high) else (
                math.sqrt(low * high) if low > 0 else 0.25 * high
            )  # fmt: skip
        if abs(step - extra) <= 1e-15 * extra or high - low <= 1e-15 * extra:
            break
        extra = step
    return lam, found
