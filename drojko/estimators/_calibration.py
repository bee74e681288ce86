r"""Radii of divergence balls that make the robust risk an upper confidence bound.

With phi''(1) = kappa the divergence of P_n dP = 1 + s is kappa / 2 E_n s^2 to second order, hence

    sup { E_P loss : D(P, P_n) <= radius }  =  E_n loss + sqrt(2 radius / kappa  Var_n loss) + ...

which is the one-sided upper confidence bound of level 1 - level at
radius = kappa z^2 / (2 n), z the (1 - level) quantile of the standard normal law: kappa / (2 n)
times the (1 - 2 level) quantile of the chi-square law of one degree of freedom.
"""

from __future__ import annotations

from typing import Any

from scipy.special import ndtri

from drojko.exceptions import UnsupportedError

__all__ = ["LEVELS", "by_calibration", "calibrated_radius"]

#: Probabilities of error that tables show beside the one asked for.
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.01)


def by_calibration(ambiguity: Any, count: float, level: float, two_sided: bool) -> dict[str, Any]:
    """Fields of a `RadiusSelection`; the arguments are those of `select_radius`, checked."""
    import pandas as pd

    levels = sorted({*LEVELS, float(level)}, reverse=True)
    radii = [calibrated_radius(ambiguity, count, value, two_sided) for value in levels]
    table = pd.DataFrame({"level": levels, "radius": radii})
    kind = "the upper end of a two-sided" if two_sided else "an upper"
    message = (
        f"The worst-case risk over {count:.6g} samples is {kind} confidence bound of level "
        f"{1 - level:g} (asymptotically)."
    )
    return {"radius": radii[levels.index(float(level))], "table": table, "message": message}


def calibrated_radius(ambiguity: Any, n: float, level: float, two_sided: bool = False) -> float:
    """Radius at which the worst-case mean of n samples covers the mean, see the module's text.

    Raises
    ------
    UnsupportedError
        For sets that are no smooth divergence.
    """
    kappa = ambiguity.curvature
    if kappa is None:
        raise UnsupportedError(
            'method="calibration" is for KL, ChiSquare and CressieRead, and for other smooth '
            "divergences, whose worst case is the "
            f"mean plus a multiple of the standard deviation; got {type(ambiguity).__name__}. "
            'Use method="cv"'
        )
    z = -float(ndtri(level / 2.0 if two_sided else level))
    return kappa * max(z, 0.0) ** 2 / (2.0 * n)
