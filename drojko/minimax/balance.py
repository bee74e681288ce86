r"""Lower bounds of problems of many rows: slopes of some rows that let the sums over all vanish.

.. math:: \sum_i w_i s_i B_i + \nabla c = 0, \qquad s_i = \varphi_i'(u_i + B_i h, p + k)

Slopes at an iterate nearly balance. Those of the carriers become what they are at a point nearby,
(h, k) away from the iterate, where everything balances: as slopes of worst cases at some point they
stay inside their domains, and that the point is not the iterate costs second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from drojko.minimax.newton import factorised
from drojko.minimax.row_sums import Rest, RowSums, inverse_of, over_all
from drojko.rows import Rows

__all__ = ["Balance", "balance_of"]

_BALANCE = 1e-12  # of slopes, over their sum: rounding
_HELD = 1e-7  # the same where a ball or a ridge holds them
_LIGHT = 0.1  # of what holds them, in steps
_CORNER = 8  # steps that ask for no product
_LINE = 1e-4  # of the accuracy of others, that along z


def balance_of(
    objective: Any,
    rows: Rows,
    state: Any,
    index: np.ndarray,
    scores: np.ndarray,
    near: np.ndarray | None,
) -> Balance:
    """The balance of a problem at one of its states.

    Parameters
    ----------
    objective, state : see `drojko.minimax.many_rows`
    rows : Rows
        All of them.
    index : array of int
        Their carriers.
    scores : array of shape (n,)
        B z.
    near : array of shape (n,) or None
        What makes evaluations near the state cheaper.
    """
    free = rows.free[: rows.d]
    kind = Balance
    if hasattr(objective, "carriers"):
        kind = InBends
    elif rows.wide:
        held = objective.rest(state.z, state.p, state.sums).Hz[: rows.d] > 0.0
        kind = Loose if held[free].all() else Balance
    return kind(objective, rows, state, index, scores, near)


class Balance:
    """Newton's method on the carriers, with their second derivatives at the iterate."""

    most = 12  # steps
    second = False  # whether second derivatives are asked for in every step

    def __init__(
        self,
        objective: Any,
        rows: Rows,
        state: Any,
        index: np.ndarray,
        scores: np.ndarray,
        near: np.ndarray | None,
    ) -> None:
        here = rows.here(index)
        self.objective, self.inner, self.rows, self.state = objective, objective, rows, state
        self.few = rows.take(index).doubled() if len(index) < rows.n else rows
        self.y, self.w, self.v = rows.y[here], rows.w[here], scores[here]
        self.near = near[here] if near is not None and len(near) == len(rows.y) else None
        self.levels = objective.levels(state.z, state.p)
        self.size, self.k, self.many = rows.size, state.p.size, self.levels.size
        if hasattr(objective, "frozen"):  # levels balance on their own
            self.inner, self.w = objective.frozen(self.y, self.w, self.v, self.levels)
            self.k = self.many = 0
        self.rest: Rest = objective.rest(state.z, state.p, state.sums)
        self.free = np.append(rows.free, np.ones(self.k, dtype=bool))
        self.must = np.ones(self.size + self.k, dtype=bool)  # which sums have to vanish
        self.light: Rest | None = None  # what joins the second derivatives of the rows
        self.shifted = self.levels
        self.gradient = self.left = state.gradient[: self.size + self.k]
        steep = np.full(self.size, state.sums.steep)
        self.scale = np.append(steep, np.abs(state.sums.gp[: self.k]))  # what counts as much

    def bound(self) -> float:
        """The lower bound, or -inf."""
        s, size, own = self.state, self.size, self._own()
        if own is None:
            return -math.inf
        self.own = self.new = own
        self.base = self._slopes(own)
        missed = not self._balanced(self._factor(own))
        if missed or (np.abs(self.left) > _BALANCE * self.scale)[self.must].any():
            return -math.inf
        sums = replace(
            s.sums,
            worth=s.sums.worth + self.new.worth - own.worth,
            spent=s.sums.spent + self.new.spent - own.spent,
            mass=s.sums.mass + self.new.mass - own.mass,
        )
        # Rounding, outwards: of the sums, and of a balance that is not exact.
        must, left = self.must[:size], self.left[:size]
        drift = 2.0 * float(np.abs(left)[must] @ np.abs(s.z)[must])
        rounding = 1e-15 * (abs(s.value) + s.sums.reach)
        return self.objective.dual(s.z, s.p, left - self.rest.gz, sums) - drift - rounding

    def _own(self) -> RowSums | None:
        """Sums over the carriers at the iterate, with second derivatives."""
        known = self.state.sums
        if self.few is self.rows and self.inner is self.objective and known.huu is not None:
            return known
        return self._at(self.v, self.levels)

    def _at(self, v: np.ndarray, levels: np.ndarray, second: bool = True) -> RowSums | None:
        sums = self.inner.at(self.y, self.w, v, levels, self.near, second)
        return over_all(self.few, sums, self.many)

    def _factor(self, sums: RowSums) -> Callable[[np.ndarray], np.ndarray]:
        return inverse_of(self.few, sums, self.light, self.k)

    def _slopes(self, sums: RowSums) -> np.ndarray:
        slope = self.few.sum(sums.gu) if sums.slope is None else sums.slope
        return np.append(slope, sums.gp[: self.k])

    def _near_enough(self) -> np.ndarray:
        return np.abs(self.left) <= 0.01 * np.where(self.must, _BALANCE, _HELD) * self.scale

    def _balanced(self, factor: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Whether there are slopes all the way to a point nearby: what is left is told apart."""
        move, u, k = np.zeros(self.size + self.k), self.v, self.k
        for _ in range(self.most):
            if self._near_enough().all():
                break
            move = move - factor(self.left)
            levels = np.append(self.levels[:k] + move[self.size :], self.levels[k:])
            if not self._look(u + self.few.predict(move[: self.size]), levels):
                return False
            factor = self._next(factor)
            self._remainder()
        return True

    def _look(self, v: np.ndarray, levels: np.ndarray) -> bool:
        """Whether there are sums at predictions and levels; they are kept."""
        found = self._at(v, levels, self.second)
        if found is not None:
            self.new, self.v, self.shifted = found, v, levels
        return found is not None

    def _remainder(self) -> None:
        self.left = np.where(self.free, self.gradient + self._slopes(self.new) - self.base, 0.0)

    def _next(self, factor: Callable[[np.ndarray], np.ndarray]) -> Callable:
        """The factor of the next step."""
        return factor

    def _hold(self, levels: bool) -> None:
        """Sums need not vanish where ball or ridge holds a part: it joins steps, lightly."""
        held = self.rows.free & (self.rest.Hz > 0.0)
        self.must[: self.size], self.must[self.size :] = ~held, levels
        low = self.rest.low and (self.rest.low[0], _LIGHT * self.rest.low[1])
        parts = {name: _LIGHT * getattr(self.rest, name) for name in ("Hz", "Hzp", "Hpp")}
        self.light = replace(self.rest, low=low, **parts)


class InBends(Balance):
    """Carriers in bends, which enter and leave them.

    They are equally far from their kinks: some sums they cannot move.
    """

    second = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._hold(False)

    def _next(self, factor: Callable[[np.ndarray], np.ndarray]) -> Callable:
        return self._factor(self.new)


class Loose(Balance):
    """Many columns, all of them held: a rough balance, exact in the intercept and the levels.

    And along z: what is left there makes c longer than the ball allows, or shorter, and bounds feel
    that in first order. Elsewhere they feel the square.
    """

    most, second = 1, True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._hold(self.objective.tight)

    def _factor(self, sums: RowSums) -> Callable[[np.ndarray], np.ndarray]:
        return lambda left: -self.state.move  # where the solver goes next

    def _balanced(self, factor: Callable[[np.ndarray], np.ndarray]) -> bool:
        scores = self.v
        return super()._balanced(factor) and self._cornered(scores)

    def _cornered(self, scores: np.ndarray) -> bool:
        """Steps along z, in the intercept and in the levels, which ask for no product."""
        z, k, own, ones = self.state.z, self.k, self.own, int(self.rows.intercept)
        along, lines = np.append(z, np.zeros(k)), scores[None]
        if ones:
            along[self.size - 1], lines = 0.0, np.stack([scores - z[-1], np.ones_like(scores)])
        tail, m = slice(self.size - ones, None), len(lines)
        start = np.append(self.gradient @ along, self.gradient[tail])
        scale = np.append(self.scale[0] * np.abs(along).max() / _LINE, self.scale[tail])
        for _ in range(_CORNER):
            change = np.append(lines @ (self.new.gu - own.gu), (self.new.gp - own.gp)[:k])
            left = start + change
            if (np.abs(left) <= 0.01 * _BALANCE * scale).all():
                break
            cross = lines @ self.new.hup[:, :k]
            second = [[(lines * self.new.huu) @ lines.T, cross], [cross.T, self.new.hpp[:k, :k]]]
            step = -factorised(np.block(second))(left)
            levels = np.append(self.shifted[:k] + step[m:], self.shifted[k:])
            if not self._look(self.v + step[:m] @ lines, levels):
                return False
        self._remainder()
        return True
