"""The constraint lambda >= dual norms, as an interior-point method sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Cones"]


@dataclass
class Cones:
    r"""Slacks and multipliers of :math:`\lambda \ge \|v_e\|_q` and of lambda >= floor.

    E vectors: v has shape (E, m). For q = 2, (lambda, v) lies in a second-order cone, with
    Nesterov and Todd's scaling. Otherwise linear inequalities g <= 0: q = inf:
    :math:`\pm v_j - \lambda`; q = 1: :math:`\pm v_j - u_j` and :math:`\sum_j u_j - \lambda`,
    whose variables u are eliminated here in closed form, so that a Newton system has an
    (m + 1)-square block per vector.

    A multiplier y and its slack s = -g obey y s = target (in the cone: y o s = target e, the
    Jordan product); `blocks` linearises that. ``fixed``: lambda is a constant (penalty form).
    Yu. Nesterov, M. Todd, 1997, Self-Scaled Barriers and Interior-Point Methods.
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
        if self.q == 2:
            s = self.slack()
            s[:, 1:] *= -1.0
            self.y = target * s / _det(s)  # the inverse of s in the Jordan algebra
        else:
            self.y = target / self.slack()
        self.y_floor = 0.0 if self.fixed else target / (self.lam - self.floor)

    # -- slacks ------------------------------------------------------------------------------

    def slack(self) -> np.ndarray:
        """All slacks s, shape (E, constraints of a vector); positive inside."""
        return self._slack(self.v, self.u, self.lam)

    def _slack(self, v: np.ndarray, u: np.ndarray, lam: float) -> np.ndarray:
        if self.q == 2:
            return np.concatenate([np.full((len(v), 1), lam), v], axis=1)
        if self.q == 1:
            return np.concatenate([u - v, u + v, lam - u.sum(axis=1, keepdims=True)], axis=1)
        return np.concatenate([lam - v, lam + v], axis=1)

    @property
    def count(self) -> int:
        """Number of constraints."""
        return (len(self.y) if self.q == 2 else self.y.size) + (0 if self.fixed else 1)

    def products(self) -> float:
        """Sum of y s: what the constraints add to the duality gap."""
        extra = 0.0 if self.fixed else self.y_floor * (self.lam - self.floor)
        return float((self.y * self.slack()).sum()) + extra

    def force(self) -> tuple[np.ndarray, float, float]:
        """Gradient of sum y g in v (E, m), in lambda, and the largest residual in u."""
        y, m = self.y, self.v.shape[1]
        if self.q == 2:
            return -y[:, 1:], -float(y[:, 0].sum()) - self.y_floor, 0.0
        low, high = y[:, :m], y[:, m : 2 * m]
        if self.q == 1:
            rest = float(np.abs(self.rest()).max(initial=0.0))
            return low - high, -float(y[:, -1].sum()) - self.y_floor, rest
        return low - high, -float(y.sum()) - self.y_floor, 0.0

    def rest(self) -> np.ndarray:
        """Gradient of sum y g in u, (E, m); empty without u."""
        return self._rest(self.y) if self.q == 1 else np.zeros((0, 0))

    # -- Newton ------------------------------------------------------------------------------

    def blocks(self) -> np.ndarray:
        """Curvature in (v_e, lambda), shape (E, m + 1, m + 1), the u eliminated."""
        E, m = self.v.shape
        s = self.slack()
        out = np.zeros((E, m + 1, m + 1))
        index = np.arange(m)
        if self.q == 2:
            scaling = _Scaling.of(s, self.y)
            self._memo = (s, scaling)
            order = np.append(np.arange(1, m + 1), 0)  # (v, lambda)
            return scaling.inverse_square()[:, order][:, :, order]
        D = self.y / s
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
        bottom = 0.0 if self.fixed else floor_target / (self.lam - self.floor)
        if self.q == 2:
            return -np.roll(self._memo[1].divide(target), -1, axis=1), -bottom
        h = target / self._memo[0]
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
        du = self.u
        if self.q == 2:
            ds = np.concatenate([np.full((len(dv), 1), dlam), dv], axis=1)
            dy = D.divide(target) - self.y - D.inverse(D.inverse(ds))
            return du, ds, dy, self._floor_step(dlam, floor_target)
        h = target / s
        if self.q == 1:
            _, _, total, beta, _ = self._memo
            du = -self._invert(self._rest(h) + beta * total * dv - D[:, -1:] * dlam)
            ds = np.concatenate([du - dv, du + dv, dlam - du.sum(axis=1, keepdims=True)], axis=1)
        else:
            ds = np.concatenate([dlam - dv, dlam + dv], axis=1)
        dy = h - self.y - D * ds
        return du, ds, dy, self._floor_step(dlam, floor_target)

    def _floor_step(self, dlam: float, target: float) -> float:
        if self.fixed:
            return 0.0
        room = self.lam - self.floor
        return (target - self.y_floor * (room + dlam)) / room

    def target(self, value: float, ds: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Products to aim at: ``value``, corrected by those of a predictor's steps."""
        if self.q != 2:
            return value - dy * ds
        scaling = self._memo[1]
        out = -_product(scaling.inverse(ds), scaling.apply(dy))
        out[:, 0] += value
        return out

    def room(self, ds: np.ndarray, dy: np.ndarray) -> float:
        """Largest step that keeps slacks and multipliers of the vectors inside."""
        if self.q == 2:
            return min(_cone_step(self.slack(), ds), _cone_step(self.y, dy))
        rates = [(-ds / self.slack()).max(initial=0.0), (-dy / self.y).max(initial=0.0)]
        return 1.0 / max(float(max(rates)), 1e-300)

    def moved(self, v, lam, step: float, du, dy, dy_floor: float) -> Cones:
        """The state after a step, v and lambda given."""
        u = self.u + step * du if self.q == 1 else self.u
        y_floor = self.y_floor + step * dy_floor
        return Cones(self.q, self.fixed, self.floor, v, lam, u, self.y + step * dy, y_floor)

    @property
    def inside(self) -> bool:
        """Whether all slacks and multipliers are positive."""
        bottom = self.fixed or (self.lam > self.floor and self.y_floor > 0)
        s, y = self.slack(), self.y
        if self.q == 2:
            deep = [(a[:, 0] > 0).all() and (_det(a) > 0).all() for a in (s, y)]
            return bool(bottom and all(deep))
        return bool(bottom and (s > 0).all() and (y > 0).all())


# -- the second-order cone: rows are (a_0, a_1..a_m) with a_0 >= |a_1..a_m| ---------------------


def _det(a: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(a[:, 1:], axis=1)
    return ((a[:, 0] - size) * (a[:, 0] + size))[:, None]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    head = (a * b).sum(axis=1, keepdims=True)
    return np.concatenate([head, a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:]], axis=1)


def _cone_step(a: np.ndarray, da: np.ndarray) -> float:
    """Largest t with a + t da in the cone, for a inside."""
    root = np.sqrt(_det(a))
    a, da = a / root, da / root
    # In the frame where a is the unit: the step leaves where its smallest eigenvalue is -1/t.
    along = a[:, :1] * da[:, :1] - (a[:, 1:] * da[:, 1:]).sum(axis=1, keepdims=True)
    side = da[:, 1:] - (along + da[:, :1]) / (a[:, :1] + 1.0) * a[:, 1:]
    rate = float((np.linalg.norm(side, axis=1) - along[:, 0]).max(initial=0.0))
    return 1.0 / max(rate, 1e-300)


@dataclass
class _Scaling:
    """Nesterov-Todd scaling W = beta (2 v v' - J), with W^-1 s = W y = ``point``."""

    beta: np.ndarray
    v: np.ndarray
    point: np.ndarray

    @staticmethod
    def of(s: np.ndarray, y: np.ndarray) -> _Scaling:
        det_s, det_y = _det(s), _det(y)
        unit_s, unit_y = s / np.sqrt(det_s), y / np.sqrt(det_y)
        gamma = np.sqrt(0.5 * (1.0 + (unit_s * unit_y).sum(axis=1, keepdims=True)))
        w = np.concatenate([unit_s[:, :1] + unit_y[:, :1], unit_s[:, 1:] - unit_y[:, 1:]], axis=1)
        w = w / (2.0 * gamma)
        v = w / np.sqrt(2.0 * (w[:, :1] + 1.0))
        v[:, 0] = np.sqrt(0.5 * (w[:, 0] + 1.0))
        scaling = _Scaling((det_s / det_y) ** 0.25, v, s)
        scaling.point = scaling.apply(y)
        return scaling

    def apply(self, a: np.ndarray) -> np.ndarray:
        """W a."""
        out = 2.0 * self.v * (self.v * a).sum(axis=1, keepdims=True)
        return self.beta * np.concatenate([out[:, :1] - a[:, :1], out[:, 1:] + a[:, 1:]], axis=1)

    def inverse(self, a: np.ndarray) -> np.ndarray:
        """W^-1 a."""
        v = np.concatenate([self.v[:, :1], -self.v[:, 1:]], axis=1)
        out = 2.0 * v * (v * a).sum(axis=1, keepdims=True)
        return np.concatenate([out[:, :1] - a[:, :1], out[:, 1:] + a[:, 1:]], axis=1) / self.beta

    def inverse_square(self) -> np.ndarray:
        """W^-2, shape (E, m + 1, m + 1)."""
        v = np.concatenate([self.v[:, :1], -self.v[:, 1:]], axis=1)
        one = 2.0 * v[:, :, None] * v[:, None, :]
        one[:, np.arange(v.shape[1]), np.arange(v.shape[1])] += 1.0
        one[:, 0, 0] -= 2.0
        one /= self.beta[:, :, None]
        return one @ one

    def divide(self, target: np.ndarray) -> np.ndarray:
        """W^-1 x with point o x = target."""
        p = self.point
        head = p[:, :1] * target[:, :1] - (p[:, 1:] * target[:, 1:]).sum(axis=1, keepdims=True)
        head = head / _det(p)
        rest = (target[:, 1:] - head * p[:, 1:]) / p[:, :1]
        return self.inverse(np.concatenate([head, rest], axis=1))
