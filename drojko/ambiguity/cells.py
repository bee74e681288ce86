"""Cells of discrete columns, and shares of cells that stay within a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from drojko.ambiguity.base import Dual
from drojko.ambiguity.divergence import Levels, Part, Rise, Tail, Tails
from drojko.ambiguity.group import crossing
from drojko.exceptions import InvalidDataError

__all__ = ["ShareRange", "cells_of", "check_varies"]

#: Cells that are held as columns of a matrix at most.
_MOST = 2_000


def cells_of(values: np.ndarray, names: list[str], where: str) -> tuple[np.ndarray, list[Any]]:
    """Index of the cell of each row (n,), and the cells: distinct rows of ``values`` (n, k)."""
    check_varies(values, names, where)
    found, index = np.unique(values, axis=0, return_inverse=True)
    if len(found) > min(_MOST, max(len(values) / 2, 2)):
        raise InvalidDataError(
            f"{where}: {', '.join(names)} has {len(found)} distinct values in {len(values)} rows, "
            'and the set is for discrete columns. Use reference="empirical", as smoothed columns '
            "have no cells; bin what is continuous (sklearn's KBinsDiscretizer), name fewer "
            "columns, or give smoothness=, the largest slope of the mean loss in them"
        )
    return index.reshape(-1), [tuple(row) if len(row) > 1 else row[0] for row in found.tolist()]


def check_varies(values: np.ndarray, names: list[str], where: str) -> None:
    """Raise where columns (n, k) are constant."""
    if (values == values[:1]).all():
        raise InvalidDataError(
            f"{where}: {', '.join(names)} is constant: no other law of it is near; name columns "
            "that vary"
        )


class ShareRange:
    """Shares q of cells with low <= q <= high, around given ones inside: a box of mixtures."""

    penalty, budget = None, 1.0

    def __init__(self, low: np.ndarray, high: np.ndarray):
        self.low, self.high = low, high

    def on(self, x: Any, shares: np.ndarray) -> _BoundRange:
        """Around these shares."""
        return _BoundRange(self, shares)

    def levels(self, shares: np.ndarray, unit: float) -> Levels:
        """Return the set as a minimum over one level."""
        return _Range(self, shares)

    def discrepancy(self, ratio: np.ndarray, shares: np.ndarray) -> float:
        """Mass that moves."""
        return 0.5 * float(shares @ np.abs(ratio - 1.0))


class _BoundRange:
    """The box around given shares."""

    def __init__(self, box: ShareRange, shares: np.ndarray):
        self.box, self.shares = box, shares

    def dual(self, risks: np.ndarray, smoothing: float = 0.0) -> Dual:
        """Fill the cells of largest risk first; smoothed by ``smoothing / 2 * |q - q0|^2``."""
        low, high, shares = self.box.low, self.box.high, self.shares
        if smoothing > 0:

            def filled(top: Any) -> np.ndarray:
                return np.clip(shares + (risks - top) / smoothing, low, high)

            edges = np.concatenate([risks - smoothing * (side - shares) for side in (low, high)])
            shift = crossing(filled, 1.0, edges)
            q = filled(shift)
        else:
            order = np.argsort(-risks, kind="stable")
            room = np.cumsum((high - low)[order])
            left = 1.0 - float(low.sum())
            taken = np.diff(np.minimum(room, left), prepend=0.0)
            q = low.copy()
            q[order] += taken
            shift = float(risks[order[min(int(np.searchsorted(room, left)), len(order) - 1)]])
        q = q / q.sum()
        attained, spent = float(q @ risks), 0.5 * float(np.abs(q - shares).sum())
        taken_off = 0.5 * smoothing * float(((q - shares) ** 2).sum())
        return Dual(attained - taken_off, 0.0, shift, q / shares, attained, spent)


class _Range(Tails):
    r"""The box as levels.

    .. math:: \min_\eta\; (1 - \textstyle\sum_k l_k)\,\eta + \sum_k l_k L_k
        + \sum_k (h_k - l_k)(L_k - \eta)_+
    """

    def __init__(self, box: ShareRange, shares: np.ndarray):
        rest = 1.0 - float(box.low.sum())
        room = (box.high - box.low) / shares
        super().__init__(box, shares, [Tail("room", room, 0, 0.0, rest)], [rest])
        self._least = box.low / shares

    def rise(
        self,
        losses: np.ndarray,
        p: np.ndarray,
        mu: float,
        duals: Mapping[str, np.ndarray],
        second: bool = True,
    ) -> Rise:
        """Evaluate the kink and the shares that stay."""
        found, least = super().rise(losses, p, mu, duals, second), self._least
        none = np.zeros_like(losses)
        kept = Part(least, none, np.zeros((1, losses.size)), least, 0, None)
        return replace(
            found,
            value=found.value + float((self.weights * least) @ losses),
            density=found.density + least,
            parts=(*found.parts, kept),
        )

    def inside(self, q: np.ndarray) -> tuple[np.ndarray, float]:
        """A density in the box, on the way from 1 to q."""
        box: ShareRange = self.ambiguity
        q = np.maximum(q, 0.0)
        move = self.weights * (q / (self.weights @ q) - 1.0)
        room = np.where(move > 0, box.high - self.weights, self.weights - box.low)
        size = np.abs(move)
        share = float(np.min(np.where(size > 0, room / np.where(size > 0, size, 1.0), 1.0)))
        return 1.0 + min(max(share, 0.0), 1.0) * (1.0 - 1e-14) * move / self.weights, 0.0
