"""Sums over rows of a loss and its derivatives, and solutions with their second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drojko.minimax.newton import factorised
from drojko.minimax.wide import by_products
from drojko.rows import Rows

__all__ = ["Rest", "RowSums", "Scores", "hessian", "inverse_of", "over_all"]


@dataclass(frozen=True, eq=False)
class RowSums:
    r"""Sums over rows of phi and its derivatives in u and p, weights in.

    ``worth`` is the sum of :math:`\inf_f \ell(f) - s f` over the plan that attains phi, ``spent``
    what the plan costs and ``mass`` its mass, in whichever way the objective's bound counts;
    ``near`` makes the next evaluation nearby cheaper, if anything does. Second derivatives are
    there on request. ``slope`` is B' gu, ``steep`` and ``reach`` the sums of |gu| and of |gu u|;
    sums of all rows have these in the place of gu. ``turn`` is the second derivative in the only
    level, where a worst case wants to know.
    """

    value: float
    gu: np.ndarray
    gp: np.ndarray
    worth: float
    spent: float
    mass: float
    near: Any = None
    slope: np.ndarray = None  # type: ignore[assignment]
    steep: float = 0.0
    reach: float = 0.0
    huu: np.ndarray = None  # type: ignore[assignment]
    hup: np.ndarray = None  # type: ignore[assignment]
    hpp: np.ndarray = None  # type: ignore[assignment]
    turn: float = 0.0


@dataclass(frozen=True, eq=False)
class Scores:
    """Predictions of the rows by a model, and what evaluations there are cheaper with, or None.

    ``plan``: price, risk, cost and how the cost bends, of the worst cases that are known.
    """

    u: np.ndarray
    near: np.ndarray | None
    coef: np.ndarray
    intercept: float
    plan: tuple[float, float, float, float] | None = None

    def of(self, coef: np.ndarray, intercept: Any) -> bool:
        """Whether they are those of this model, to the last digit."""
        own, given = np.append(self.coef, self.intercept), np.append(coef, intercept)
        return np.array_equal(own, given)


@dataclass(frozen=True, eq=False)
class Rest:
    """What does not go through single rows: value, gradients, second derivatives.

    Those in z are a diagonal Hz (D,) and perhaps V M V', ``low`` = (V, M) of few columns.
    """

    value: float
    gz: np.ndarray
    gp: np.ndarray
    Hz: np.ndarray
    Hzp: Any = 0.0
    Hpp: Any = 0.0
    low: tuple[np.ndarray, np.ndarray] | None = None


def over_all(rows: Rows, sums: RowSums | None, k: int) -> RowSums | None:
    """Sums over all rows from those over own ones; None where some are not defined."""
    own = np.zeros(8 + k + k * k)
    if sums is None:
        own[0] = 1.0
    else:
        own[1:7] = sums.value, sums.worth, sums.spent, sums.mass, sums.steep, sums.reach
        own[7], own[8 : 8 + k] = sums.turn, sums.gp
        own[8 + k :] = 0.0 if sums.hpp is None else sums.hpp.ravel()
    undefined, value, worth, spent, mass, steep, reach, turn, *rest = rows.total(own).tolist()
    if sums is None or undefined:
        return None
    gp, hpp = np.array(rest[:k]), np.array(rest[k:]).reshape(k, k)
    hpp = hpp if sums.hpp is not None else sums.hpp
    known = {"value": value, "worth": worth, "spent": spent, "mass": mass, "turn": turn}
    return replace(sums, **known, gp=gp, hpp=hpp, steep=steep, reach=reach)


def inverse_of(
    rows: Rows, sums: RowSums, rest: Rest | None, k: int, close: float = 1e-3
) -> Callable[[np.ndarray], np.ndarray]:
    """Solutions with the second derivatives in (z, p): by Cholesky, of many columns by products.

    These to a relative residual ``close``.
    """
    if not rows.wide:
        return factorised(hessian(rows, sums, rest, k))
    known = sums.huu, sums.hup[:, :k]
    if rest is None:
        return by_products(rows, *known, sums.hpp[:k, :k], close=close)
    corner = np.zeros((k, k)) + sums.hpp[:k, :k] + rest.Hpp
    return by_products(rows, *known, corner, rest.Hz, rest.Hzp, rest.low, close)


def hessian(rows: Rows, sums: RowSums, rest: Rest | None, k: int) -> np.ndarray:
    """Second derivatives in (z, p); without ``rest`` those of the rows alone."""
    size = rows.size
    out = np.zeros((size + k, size + k))
    out[:size, :size] = rows.gram(np.maximum(sums.huu, 0.0))
    if k:
        out[:size, size:] = rows.sum(sums.hup[:, :k])
        out[size:, size:] = sums.hpp[:k, :k]
    if rest is not None:
        out.flat[: size * (size + k) : size + k + 1] += rest.Hz
        if rest.low is not None:
            V, inner = rest.low
            out[:size, :size] += V @ inner @ V.T
        out[:size, size:] += rest.Hzp
        out[size:, size:] += rest.Hpp
    out[size:, :size] = out[:size, size:].T
    return out
