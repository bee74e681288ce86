r"""Where rows may be: labels, categories, and the slopes that move them from there.

A *place* is a row with a label and a set of groups that are swapped; an *option* a place with a
slope p of the loss there, worth :math:`V = p f + K(p) - \ell^*(p)` less what label and swaps cost
(`drojko.inner.reach`). Sets of groups are prefixes in the order of what a swap gains for its price,
and those that become prefixes where two neighbours in this order change places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from drojko.inner.reach import Reach, piece_slopes, slope_ends, stationary
from drojko.inner.swaps import prefixes
from drojko.losses import Loss
from drojko.minimax.transport.jumps.groups import Groups
from drojko.minimax.transport.jumps.tops import SIGNS, Tops

__all__ = ["Options", "Places"]

_ROOM = 0.02  # of a maximum that is nearly none


@dataclass(frozen=True, eq=False)
class Places:
    """Rows (m,), labels there, groups swapped (m, G), upwards (0) or downwards (1), output, fee."""

    row: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    down: np.ndarray
    f: np.ndarray
    paid: np.ndarray

    def take(self, index: Any) -> Any:
        """Some of them."""
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    def joined(self, other: Places) -> Any:
        """These and others."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return type(self)(*(np.concatenate(pair) for pair in pairs))

    @classmethod
    def of(
        cls, loss: Loss, u: np.ndarray, y: np.ndarray, fee: float, lam: float,
        groups: Groups | None, tops: Tops, kappa: float, slack: float,
    ) -> Places:  # fmt: skip
        """Those of all rows at one labelling, whose fee is ``fee`` of shape (n,) or a number."""
        n, count = len(u), 0 if groups is None else groups.swaps.n_groups
        rows = [np.arange(n)]
        masks, downs = [np.zeros((n, count), dtype=bool)], [np.zeros(n, dtype=int)]
        for k, row, mask in _sets(loss, u, y, lam, groups, tops, kappa, slack):
            rows.append(row)
            masks.append(mask)
            downs.append(np.full(len(row), k))
        row, mask, down = (np.concatenate(part) for part in (rows, masks, downs))
        f, paid = u[row], np.full(len(row), fee)
        if groups is not None and len(row) > n:
            more = slice(n, None)
            sign, gain = np.array(SIGNS)[down[more]], np.zeros(len(row) - n)
            own = groups.own.numpy()[row[more]]
            for g, score in enumerate(tops.scores):
                gain += mask[more, g] * (tops.value[down[more], g] - sign * score[own[:, g]])
            f[more] += sign * gain
            paid[more] += mask[more] @ groups.swaps.costs.numpy()
        return cls(row, y[row], mask, down, f, paid)


def _sets(
    loss: Loss, u: np.ndarray, y: np.ndarray, lam: float,
    groups: Groups | None, tops: Tops, kappa: float, slack: float,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:  # fmt: skip
    """Direction, rows and sets of groups that may pay to within ``slack``."""
    if groups is None:
        return
    args = groups.swaps, groups.own, [torch.from_numpy(s) for s in tops.scores]
    line = torch.from_numpy(tops.value), loss, torch.from_numpy(u), torch.from_numpy(y)
    for k, part in enumerate(prefixes(*args, *line, lam, kappa, slack)):
        order, rows, useful = part.order.numpy(), part.rows.numpy(), part.useful.numpy()
        depth = order.shape[1]
        position = np.full((len(rows), groups.swaps.n_groups), depth)
        np.put_along_axis(position, order, np.arange(depth)[None], 1)
        row, last = np.nonzero(useful)
        mask = position[row] <= last[:, None]
        yield k, rows[row], mask
        pair = last + 1 < depth
        row, last, mask = row[pair], last[pair], mask[pair]
        moved = part.moved.numpy()
        rises = SIGNS[k] * (moved[row, last + 1] - moved[row, last]) > 0.0
        row, last, mask = row[rises], last[rises], mask[rises].copy()
        at = np.arange(len(row))
        mask[at, order[row, last]], mask[at, order[row, last + 1]] = False, True
        yield k, rows[row], mask


@dataclass(frozen=True, eq=False)
class Options(Places):
    """Places with slopes p: their value, what is paid in all, s'(p), how V and the loss bend."""

    p: np.ndarray
    value: np.ndarray
    cost: np.ndarray
    rate: np.ndarray
    bend: np.ndarray
    second: np.ndarray

    @classmethod
    def at(cls, loss: Loss, places: Places, reach: Reach, single: bool) -> Options:
        """All slopes at these places; ``single``: where V has one maximiser."""
        own = reach.take(places.row)
        parts = []
        for p, level, second in _slopes(loss, places.f, places.y, own, single):
            s, rate, cost = own.at(p)
            cost = cost + places.paid
            bend = second / np.maximum(1.0 - rate * second, _ROOM)
            value = p * (places.f + s) + level - own.price * cost
            parts.append((p, value, cost, rate, bend, second))
        whole = [np.concatenate(part) for part in zip(*parts, strict=True)]
        index = np.tile(np.arange(len(places.row)), len(parts))
        some = places.take(index)
        return cls(some.row, some.y, some.mask, some.down, some.f, some.paid, *whole)


def _slopes(
    loss: Loss, f: np.ndarray, y: np.ndarray, reach: Reach, single: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Slopes p, minus their conjugates, and curvatures of the loss where p follows f."""
    if loss.lines:
        for p, level in piece_slopes(loss, y):
            yield p, level, np.zeros_like(f)
        return

    def free(start: np.ndarray, far: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p = stationary(loss, f, y, reach, start, far)
        at = f + reach.at(p)[0]
        value, _, second = loss.line(at, y)
        return p, value - p * at, second

    if single:
        yield free(loss.line(f, y)[1], True)
        return
    low, high = loss.domain(y)
    both = np.isfinite(low) & np.isfinite(high)
    middle = 0.5 * (np.where(both, low, 0.0) + np.where(both, high, 0.0))
    level = loss.least(middle, y)
    for end, side in zip(slope_ends(loss, f, y, reach), (-1.0, 1.0), strict=True):
        p, own, second = free(end)
        held = side * (p - middle) <= 0.0
        p, own = np.where(held, middle, p), np.where(held, level, own)
        yield p, own, np.where(held, 0.0, second)
