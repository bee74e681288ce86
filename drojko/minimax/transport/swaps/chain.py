"""Smoothed maxima of several numbers, with the duals of their kinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko.losses.jets import bent

__all__ = ["Chain"]


@dataclass(frozen=True, eq=False)
class Chain:
    r"""Smoothed maxima of groups of numbers: of the largest so far and the next, one by one.

    Masses of the first of each group (``stay``) and of the others, the primal ones and those of
    the duals; ``step``, the share of each where it joins; ``bend``, the curvature of that.
    """

    value: np.ndarray
    stay: np.ndarray
    share: np.ndarray
    dual_stay: np.ndarray
    dual_share: np.ndarray
    step: np.ndarray
    bend: np.ndarray
    levels: list[np.ndarray]

    @classmethod
    def of(
        cls, first: np.ndarray, a: np.ndarray, index: np.ndarray, mu: float, duals: Any = None
    ) -> Chain:
        """Of groups whose first members are ``first``, the others ``a``, sorted by ``index``."""
        begin = np.searchsorted(index, np.arange(len(first)))
        rank = np.arange(len(a)) - begin[index]
        levels = [np.flatnonzero(rank == k) for k in range(int(rank.max(initial=-1)) + 1)]
        value, z = first.copy(), np.empty_like(a)
        for level in levels:
            to = index[level]
            z[level] = step = a[level] - value[to]
            value[to] += 0.5 * (step + np.sqrt(step * step + 4.0 * mu * mu))
        root = np.maximum(np.sqrt(z * z + 4.0 * mu * mu), 2.0 * mu + 1e-300)
        ratio = mu / root
        step = np.where(z > 0, 0.5 + 0.5 * z / root, 2.0 * ratio * mu / (root + np.abs(z)))
        duals = np.empty((4, 0)) if duals is None else duals
        bend, mix = bent(duals, z, root, 4.0 * ratio * ratio, step) if len(a) else (step, step)
        bend = 0.5 * bend / root
        stay, share, dual_stay = np.ones(len(first)), np.empty_like(a), np.ones(len(first))
        dual_share = np.empty_like(a)
        for level in reversed(levels):
            to = index[level]
            share[level], dual_share[level] = stay[to] * step[level], dual_stay[to] * mix[level]
            bend[level] *= dual_stay[to]
            stay[to] *= 1.0 - step[level]
            dual_stay[to] *= 1.0 - mix[level]
        return cls(value, stay, share, dual_stay, dual_share, step, bend, levels)
