"""The constraint lambda >= dual norms, as an interior-point method sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Cones"]


@dataclass
class Cones:
    r"""Slacks and multipliers of :math:`\lambda \ge \|v_e\|_q` and of lambda >= floor.

    E vectors: v has shape (E, m). The norms are written with smooth convex inequalities g <= 0:
    q = 2: :math:`\|v\|^2/\lambda - \lambda`; q = inf: :math:`\pm v_j - \lambda`; q = 1:
    :math:`\pm v_j - u_j` and :math:`\sum_j u_j - \lambda`, whose variables u are eliminated here
    in closed form, so that a Newton system has an (m + 1)-square block per vector.

    A multiplier y and its slack s = -g obey y s = target; `blocks` linearises that. ``fixed``:
    lambda is a constant (penalty form).
    """

    q: float
    fixed: bool
    floor: float
    v: np.ndarray
    lam: float
    u: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    y: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    y_floor: float = 0.0
    _memo: tuple = ()

    def start(self, target: float) -> None:
        """Multipliers on the central path of ``target``, for v well inside."""
        if self.q == 1:
            size = np.abs(self.v).sum(axis=1, keepdims=True)
            spare = np.maximum(self.lam - size, 0.0)
            self.u = np.abs(self.v) + spare / (self.v.shape[1] + 1.0)
        self.y = target / self.slack()
        self.y_floor = 0.0 if self.fixed else target / (self.lam - self.floor)

    # -- slacks ------------------------------------------------------------------------------

    def slack(self) -> np.ndarray:
        """All slacks s, shape (E, constraints of a vector); positive inside."""
        return self._slack(self.v, self.u, self.lam)

    def _slack(self, v: np.ndarray, u: np.ndarray, lam: float) -> np.ndarray:
        if self.q == 2:
            return (lam - (v * v).sum(axis=1) / lam)[:, None]
        if self.q == 1:
            return np.concatenate([u - v, u + v, lam - u.sum(axis=1, keepdims=True)], axis=1)
        return np.concatenate([lam - v, lam + v], axis=1)

    @property
    def count(self) -> int:
        """Number of constraints."""
        return self.y.size + (0 if self.fixed else 1)

    def products(self) -> float:
        """Sum of y s: what the constraints add to the duality gap."""
        extra = 0.0 if self.fixed else self.y_floor * (self.lam - self.floor)
        return float((self.y * self.slack()).sum()) + extra

    def lowest(self) -> float:
        """The smallest product y s."""
        return float((self.y * self.slack()).min(initial=np.inf))

    def bend(self, dv: np.ndarray, dlam: float) -> np.ndarray:
        """How much slack a step loses beyond first order (q = 2), shape (E, 1)."""
        curved = dv - self.v * (dlam / self.lam)
        return ((curved * curved).sum(axis=1) / max(self.lam + dlam, 0.1 * self.lam))[:, None]

    def force(self) -> tuple[np.ndarray, float, float]:
        """Gradient of sum y g in v (E, m), in lambda, and the largest residual in u."""
        v, y, m = self.v, self.y, self.v.shape[1]
        if self.q == 2:
            square = (v * v).sum(axis=1) / self.lam**2
            return 2.0 * v * y / self.lam, -float(y[:, 0] @ (1.0 + square)) - self.y_floor, 0.0
        low, high = y[:, :m], y[:, m : 2 * m]
        if self.q == 1:
            rest = np.abs(y[:, 2 * m :] - low - high).max(initial=0.0)
            return low - high, -float(y[:, -1].sum()) - self.y_floor, float(rest)
        return low - high, -float(y.sum()) - self.y_floor, 0.0

    # -- Newton ------------------------------------------------------------------------------

    def blocks(self) -> np.ndarray:
        """Curvature in (v_e, lambda), shape (E, m + 1, m + 1), the u eliminated."""
        v, y, lam = self.v, self.y, self.lam
        E, m = v.shape
        s = self.slack()
        D = y / s
        out = np.zeros((E, m + 1, m + 1))
        index = np.arange(m)
        if self.q == 2:
            square = (v * v).sum(axis=1)
            rate = np.concatenate([2.0 * v / lam, -(1.0 + square[:, None] / lam**2)], axis=1)
            out += D[:, :, None] * rate[:, :, None] * rate[:, None, :]
            out[:, index, index] += 2.0 * y / lam
            cross = -2.0 * v * y / lam**2
            out[:, :m, m] += cross
            out[:, m, :m] += cross
            out[:, m, m] += 2.0 * square * y[:, 0] / lam**3
            self._memo = (s, D, rate)
            return out
        low, high = D[:, :m], D[:, m : 2 * m]
        if self.q == 1:
            total = low + high
            beta = (high - low) / total
            top = D[:, -1]
            tau = top / (1.0 + top * (1.0 / total).sum(axis=1))
            out[:, index, index] = 4.0 * low * high / total
            ray = np.concatenate([beta, np.ones((E, 1))], axis=1)
            out += tau[:, None, None] * ray[:, :, None] * ray[:, None, :]
            self._memo = (s, D, total, beta, tau)
            return out
        out[:, index, index] = low + high
        out[:, :m, m] = out[:, m, :m] = high - low
        out[:, m, m] = D.sum(axis=1)
        self._memo = (s, D)
        return out

    @property
    def floor_curvature(self) -> float:
        """Curvature in lambda of its lower bound."""
        return 0.0 if self.fixed else self.y_floor / (self.lam - self.floor)

    def pull(self, target: np.ndarray, floor_target: float) -> tuple[np.ndarray, float]:
        """Gradient in (v_e, lambda) at multipliers target / s, the u eliminated; after `blocks`."""
        m = self.v.shape[1]
        h = target / self._memo[0]
        bottom = 0.0 if self.fixed else floor_target / (self.lam - self.floor)
        if self.q == 2:
            return h * self._memo[2], -bottom
        low, high = h[:, :m], h[:, m : 2 * m]
        if self.q == 1:
            rest = self._rest(h)
            inner = self._invert(rest)
            _, D, total, beta, _ = self._memo
            along = low - high - beta * total * inner
            price = -h[:, -1] + D[:, -1] * inner.sum(axis=1)
            return np.concatenate([along, price[:, None]], axis=1), -bottom
        return np.concatenate([low - high, -h.sum(axis=1, keepdims=True)], axis=1), -bottom

    def _rest(self, h: np.ndarray) -> np.ndarray:
        m = self.v.shape[1]
        return h[:, 2 * m :] - h[:, :m] - h[:, m : 2 * m]

    def _invert(self, r: np.ndarray) -> np.ndarray:
        """(diag(total) + top 11')^-1 r."""
        _, _, total, _, tau = self._memo
        scaled = r / total
        return scaled - (tau * scaled.sum(axis=1))[:, None] / total

    def direction(
        self, dv: np.ndarray, dlam: float, target: np.ndarray, floor_target: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Steps of (u, s, y, floor multiplier) that belong to a step of v and lambda."""
        s, D = self._memo[:2]
        h = target / s
        du = self.u
        if self.q == 2:
            rate = self._memo[2]
            ds = -(rate * np.concatenate([dv, np.full((len(dv), 1), dlam)], axis=1)).sum(
                axis=1, keepdims=True
            )
        elif self.q == 1:
            _, _, total, beta, _ = self._memo
            du = -self._invert(self._rest(h) + beta * total * dv - D[:, -1:] * dlam)
            ds = np.concatenate([du - dv, du + dv, dlam - du.sum(axis=1, keepdims=True)], axis=1)
        else:
            ds = np.concatenate([dlam - dv, dlam + dv], axis=1)
        dy = h - self.y - D * ds
        if self.fixed:
            return du, ds, dy, 0.0
        room = self.lam - self.floor
        return du, ds, dy, (floor_target - self.y_floor * (room + dlam)) / room

    def moved(self, v, lam, step: float, du, dy, dy_floor: float) -> Cones:
        """The state after a step, v and lambda given."""
        u = self.u + step * du if self.q == 1 else self.u
        y_floor = self.y_floor + step * dy_floor
        return Cones(self.q, self.fixed, self.floor, v, lam, u, self.y + step * dy, y_floor)

    @property
    def inside(self) -> bool:
        """Whether all slacks and multipliers are positive."""
        bottom = self.fixed or (self.lam > self.floor and self.y_floor > 0)
        return bool(bottom and (self.slack() > 0).all() and (self.y > 0).all())
