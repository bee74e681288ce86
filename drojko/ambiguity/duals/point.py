"""The value of a dual of a set that reweights, at given losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Dual"]


@dataclass(frozen=True, eq=False)
class Dual:
    r"""The worst case of a mean over reweighted samples, and the dual point that proves it.

    Radius form: ``value`` is the least upper bound of E_P loss over the set; penalty form: of
    E_P loss - penalty * D(P, P0). All in the units of the losses.

    Attributes
    ----------
    value : float
        The dual value: no distribution of the set does worse.
    penalty : float
        lambda*, the derivative of the value in the radius (infinite at radius 0 where the
        discrepancy is quadratic, 0 once the worst case is the maximum); in penalty form, the
        penalty asked for.
    shift : float
        eta*, the multiplier of the total mass: the ratio is f*'((loss - shift) / penalty).
    ratio : ndarray of shape (n,)
        dP*/dP0 of each sample: nonnegative, mean one under the weights; 0 where the weight is 0.
    attained : float
        Mean loss under that ratio: in radius form equal to ``value`` up to rounding, in penalty
        form larger than it by penalty * radius.
    radius : float
        D(P*, P0): the radius asked for or, where the worst case does not need it all, less.
    proof : str
        Always "dual": an upper bound for every distribution of the set.

    Examples
    --------
    >>> from drojko.ambiguity import ChiSquare
    >>> dual = ChiSquare(radius=0.25).dual([0.0, 1.0, 2.0, 5.0])
    >>> dual
    Dual(value=2.93541, penalty=1.87083, shift=2, attained=2.93541, radius=0.25, n=4, proof='dual')
    >>> dual.ratio.round(3)
    array([0.465, 0.733, 1.   , 1.802])
    """

    value: float
    penalty: float
    shift: float
    ratio: np.ndarray
    attained: float
    radius: float
    proof: str = "dual"

    def __repr__(self) -> str:
        names = ("value", "penalty", "shift", "attained", "radius")
        numbers = ", ".join(f"{name}={getattr(self, name):.6g}" for name in names)
        return f"Dual({numbers}, n={self.ratio.shape[0]}, proof={self.proof!r})"
