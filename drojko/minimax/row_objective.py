r"""What a linear problem has to say for itself so that one solver fits and proves it.

.. math:: \min_{z, p}\; \sum_i w_i\,\varphi_i(u_i, p) + c(z, p) + \tfrac12 z^\top R z,
          \qquad u = B z

z are the coefficients on standardised columns and the intercept, B the rows (`drojko.rows.Rows`),
p a few extra variables (multipliers, levels). An objective evaluates the smoothed problem at
(z, p), and from the duals of its kinks a point of the dual problem, which proves a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from drojko.rows import Rows

__all__ = ["Iterate", "LinearFit", "Record", "RowObjective", "Terms"]


class Record(Protocol):
    """Kinks at an iterate, which know how their duals move along with a step."""

    def moved(self, new: Any, t: float) -> Any:
        """Duals after a step of length t, to the kinks of ``new``."""
        ...


@dataclass(frozen=True, eq=False)
class Terms:
    """The smoothed objective at (z, p); infinite outside its domain, where all else is empty.

    Attributes
    ----------
    value : float
    gu, huu : arrays of shape (n,)
        Derivatives in u with the weights in; huu >= 0.
    gz, Hz : arrays of shape (D,) and (D, D)
        Of what does not go through u.
    gp, Hpp, hup, Hzp : arrays of shape (k,), (k, k), (n, k), (D, k)
    records : mapping of name to Record
        Kinks; their duals come back in the next evaluation under the same name.
    detail : object
        What the objective needs of this evaluation for `RowObjective.bias` and ``bounds``.
    """

    value: float
    gu: np.ndarray = field(default_factory=lambda: np.zeros(0))
    huu: np.ndarray = field(default_factory=lambda: np.zeros(0))
    gz: Any = 0.0
    Hz: Any = 0.0
    gp: np.ndarray = field(default_factory=lambda: np.zeros(0))
    Hpp: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    hup: Any = 0.0
    Hzp: Any = 0.0
    records: Mapping[str, Record] = field(default_factory=dict)
    detail: Any = None

    @property
    def finite(self) -> bool:
        """Whether the point is inside the domain."""
        return math.isfinite(self.value)


@dataclass(frozen=True, eq=False)
class Iterate:
    """A point, its predictions u = B z, the smoothing mu, and the terms and duals there."""

    z: np.ndarray
    p: np.ndarray
    u: np.ndarray
    mu: float
    terms: Terms
    duals: Mapping[str, Any] = field(default_factory=dict)


class RowObjective(Protocol):
    """A linear problem; see the module's text. Rows are those of its standardised columns.

    Attributes
    ----------
    rows : Rows
    unit : float
        A typical loss at the start: smoothing and rounding are relative to it. At most 1e-280
        where the start fits exactly.
    positive : tuple of int
        Entries of p that must stay positive.
    first_smoothing : float
        mu at the start over ``unit``; a smooth objective may start at its last one.
    cooling : float
        By which mu falls after a stage of ordinary length.
    """

    rows: Rows
    unit: float
    positive: tuple[int, ...]
    first_smoothing: float
    cooling: float

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """The first point, for instance the best constant model; sets ``unit``."""
        ...

    def terms(
        self,
        z: np.ndarray,
        p: np.ndarray,
        u: np.ndarray,
        mu: float,
        duals: Mapping[str, Any],
        second: bool = True,
    ) -> Terms:
        """Evaluate the smoothed problem; without ``second``, second derivatives may be absent."""
        ...

    def tidy(
        self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float, refused: bool = False
    ) -> np.ndarray:
        """Better p for this u, the best where that is cheap; p itself otherwise.

        ``refused``: the line search did not take p as it was.
        """
        ...

    def restart(self, u: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """Return p inside the domain at any u."""
        ...

    def accepted(self, state: Iterate) -> bool:
        """Called with each new iterate; True where the objective changed and is to be evaluated."""
        ...

    def bias(self, state: Iterate) -> float:
        """What smoothing costs: the duality gap that were left if the duals were balanced."""
        ...

    def bounds(self, state: Iterate, need: float) -> tuple[float, float]:
        """Exact objective and a proven lower bound; no work beyond a bound of ``need``."""
        ...

    def unbounded(self, state: Iterate) -> str | None:
        """Why no minimum exists and what to do, where this iterate shows that."""
        ...

    def record(self, state: Iterate) -> dict[str, float]:
        """A row of the history: the exact objective "robust_risk", "penalty", "transport_cost"."""
        ...


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A linear model with what is proven about it; all in the units of the data.

    Attributes
    ----------
    coef, intercept : the model
    multiplier : float
        Of the radius, or the penalty.
    objective, lower : float
        Exact value of the model, and a proven lower bound of the minimum (-inf without one).
    status, message : str
    n_iter : int
    stationarity : float
        Norm of the gradient of the last smoothed objective, relative to 1 + its value.
    history : dict of arrays
    levels : array
        The extra variables p.
    unit : float
        What counts as a loss of ordinary size.
    advice : str or None
        A word on the optimum for the user: a constant model, for instance.
    """

    coef: np.ndarray
    intercept: float
    multiplier: float
    objective: float
    lower: float
    status: str
    message: str
    n_iter: int
    stationarity: float
    history: dict[str, np.ndarray]
    levels: np.ndarray
    unit: float
    advice: str | None = None

    @property
    def gap(self) -> float:
        """Objective minus lower bound."""
        return self.objective - self.lower

    @property
    def relative_gap(self) -> float:
        """The gap relative to the objective; NaN where nothing is proven."""
        return relative_gap(self.objective, self.lower, self.unit)


def relative_gap(objective: float, lower: float, unit: float) -> float:
    """Gap over the objective or, where that is 0 to rounding, over a loss of ordinary size.

    >>> relative_gap(2.0, 1.5, 1.0), relative_gap(1e-12, 0.0, 1.0)
    (0.25, 1e-12)
    """
    if not math.isfinite(lower):
        return math.nan
    size = abs(objective)
    if size <= ROUNDING * unit:
        size = unit
    return max(objective - lower, 0.0) / size if size > 0 else 0.0


#: A risk below this share of ``unit`` is zero to rounding.
ROUNDING = 1e-10
