r"""Squared loss: the robust problem reduces to a triangular factor of the data.

Radius form, by minimising over λ = n² (1 + ρ):

.. math:: (\sqrt R + r n)^2 + \tfrac{\alpha}{2}\|\theta\|^2
          = \min_{\rho > 0} (1 + 1/\rho) R + (1 + \rho) r^2 n^2 + \tfrac{\alpha}{2}\|\theta\|^2,

R the mean squared error: a ridge regression for each ρ and a root in ρ. Penalty form:
λR/(λ - n²), by Newton's method inside n² < λ. All rows enter through one QR factorisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from scipy.optimize import brentq

from drojko.exceptions import UnboundedRiskError
from drojko.minimax.transport.bound import Ground
from drojko.rows import Rows

__all__ = ["Squares", "solve_squared"]


@dataclass
class Squares:
    """Triangular factor T of the weighted rows [x, y]: R(θ) = |T θ - t|² + rest²."""

    T: np.ndarray
    t: np.ndarray
    rest: float
    b: float  # the intercept that is optimal for centred x

    def risk(self, z: np.ndarray) -> float:
        r = self.T @ z - self.t
        return float(r @ r) + self.rest**2


def factorise(rows: Rows) -> Squares:
    """QR of [sqrt(w) x, sqrt(w) (y - mean)]."""
    d, y = rows.d, rows.y
    b = float(rows.w @ y) if rows.intercept else 0.0
    factor = rows.triangle(y - b)
    return Squares(factor[:d, :d], factor[:d, d], abs(float(factor[d, d])), b)


def _ridge(s: Squares, diagonal: np.ndarray) -> np.ndarray:
    """Minimiser of |T z - t|² + z' diag(diagonal) z, the shortest one if there are several."""
    A = np.concatenate([s.T, np.diag(np.sqrt(diagonal))])
    rhs = np.concatenate([s.t, np.zeros(diagonal.size)])
    return _lstsq(A, rhs, 1e-15)


def _lstsq(A: np.ndarray, rhs: np.ndarray, cond: float) -> np.ndarray:
    """Least-squares solution of smallest norm; singular values below `cond` count as zero."""
    solution, *_ = scipy.linalg.lstsq(A, rhs, cond=cond, check_finite=False)  # type: ignore[misc]
    return np.asarray(solution)


def solve_squared(rows: Rows, ground: Ground) -> np.ndarray:
    """The optimal parameters."""
    s = factorise(rows)
    cost, ridge = ground.cost[: rows.d], 0.5 * ground.ridge[: rows.d]
    if ground.penalty is not None:
        z = _penalised(s, cost, ground.offset, ground.penalty, ridge)
    elif ground.radius:
        z = _interpolation(s, cost, ground.offset, ground.radius, ridge)
        if z is None:
            z = _ball(s, cost, ground.offset, ground.radius, ridge)
    else:
        z = _ridge(s, ridge)
    z = np.where(rows.dead, 0.0, z)
    return np.append(z, s.b) if rows.intercept else z


def _interpolation(
    s: Squares, cost: np.ndarray, offset: float, radius: float, ridge: np.ndarray
) -> np.ndarray | None:
    """The limit ρ = 0: a perfect fit, which is optimal when the radius is small; else None.

    With W = r² cost + ridge the fits z_ρ = W⁻¹T'v have residual ρ v, and ρ = 0 is optimal if
    |v| <= r n.
    """
    weight = radius**2 * cost + ridge
    if not (weight > 0).all():
        return None
    inverse = np.sqrt(weight.min() / weight)
    scaled = s.T * inverse
    z = _lstsq(scaled, s.t, 1e-12) * inverse
    size = float(np.linalg.norm(s.t))
    if s.risk(z) > (1e-12 * size) ** 2:
        return None
    v = _lstsq(scaled.T, inverse * weight * z, 1e-12)
    norm = math.sqrt(float(cost @ (z * z)) + offset)
    return z if float(np.linalg.norm(v)) <= radius * norm else None


def _ball(
    s: Squares, cost: np.ndarray, offset: float, radius: float, ridge: np.ndarray
) -> np.ndarray:
    def at(log_rho: float) -> tuple[float, np.ndarray]:
        rho = math.exp(log_rho)
        z = _ridge(s, rho * radius**2 * cost + rho / (1.0 + rho) * ridge)
        norm = math.sqrt(float(cost @ (z * z)) + offset)
        root = math.sqrt(s.risk(z))
        # d/dρ has the sign of ρ r n - sqrt(R).
        return (log_rho + math.log(max(radius * norm, 1e-300)) - math.log(max(root, 1e-300))), z

    low, high = -34.0, 34.0
    flow, z_low = at(low)
    if flow >= 0:
        return z_low
    fhigh, _ = at(high)
    if fhigh <= 0:
        # ρ -> inf: every movable coefficient is zero.
        free, z = cost == 0, np.zeros(cost.size)
        z[free] = _ridge(Squares(s.T[:, free], s.t, s.rest, s.b), ridge[free])
        return z
    # This logarithm is close to linear in log ρ.
    root: Any = brentq(lambda t: at(t)[0], low, high, xtol=1e-13)
    return at(float(root))[1]


def _penalised(s: Squares, cost: np.ndarray, offset: float, penalty: float, ridge: np.ndarray):
    if penalty <= offset:
        raise UnboundedRiskError(
            f"penalty = {penalty:.6g}: with label_cost = {1.0 / offset:.6g} the worst case is "
            f"infinite for every model; it is finite for penalty > {offset:.6g}"
        )
    gram = s.T.T @ s.T
    z = np.zeros(cost.size)

    def value(v: np.ndarray) -> float:
        gap = penalty - offset - float(cost @ (v * v))
        return penalty * s.risk(v) / gap + float(ridge @ (v * v)) if gap > 0 else math.inf

    now = value(z)
    for _ in range(200):
        gap = penalty - offset - float(cost @ (z * z))
        R, dR, q = s.risk(z), 2.0 * (s.T.T @ (s.T @ z - s.t)), 2.0 * cost * z
        g = penalty * (dR / gap + R * q / gap**2) + 2.0 * ridge * z
        cross = np.outer(dR, q)
        H = 2.0 * gram / gap + (cross + cross.T + 2.0 * R * np.diag(cost)) / gap**2
        H = penalty * (H + 2.0 * R * np.outer(q, q) / gap**3) + 2.0 * np.diag(ridge)
        step = -_lstsq(H, g, 1e-15)
        slope, t = float(g @ step), 1.0
        if -slope <= 1e-15 * abs(now):
            return z
        while t > 1e-12:
            trial = value(z + t * step)
            if trial <= now + 1e-4 * t * slope:
                break
            t *= 0.5
        else:
            return z
        z, now = z + t * step, trial
    return z
