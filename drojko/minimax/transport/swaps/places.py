"""Where rows may be swapped to, and duals that follow these places as they come and go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Duals", "Places"]


@dataclass(frozen=True, eq=False)
class Places:
    """Other places (m,), sorted by row: whether down (1) or up (0), the groups (m, G).

    ``inside`` are their rows, ``index`` that of each among these, ``key`` what it is known by.
    """

    rows: np.ndarray
    down: np.ndarray
    mask: np.ndarray
    key: np.ndarray
    inside: np.ndarray
    index: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, down: np.ndarray, mask: np.ndarray) -> Places:
        """In a fixed order."""
        words = np.random.default_rng(0).integers(2**62, size=mask.shape[1] + 2)
        key = rows * words[0] + down * words[1] + mask @ words[2:]  # modulo 2**64
        order = np.unique(key, return_index=True)[1]
        order = order[np.argsort(rows[order], kind="stable")]
        inside, index = np.unique(rows[order], return_inverse=True)
        return cls(rows[order], down[order], mask[order], key[order], inside, index)

    def duals(self, known: Duals | None) -> np.ndarray:
        """Duals (4, m) of these, those that are new NaN."""
        if known is None or known.duals is None:
            return np.full((4, len(self.key)), np.nan)
        if np.array_equal(known.key, self.key):
            return known.duals.copy()
        order = np.argsort(known.key)
        at = np.searchsorted(known.key[order], self.key).clip(max=max(len(order) - 1, 0))
        found = known.duals[:, order[at]] if len(order) else np.full((4, len(at)), np.nan)
        same = known.key[order[at]] == self.key if len(order) else np.zeros(len(at), dtype=bool)
        return np.where(same, found, np.nan)


@dataclass(frozen=True, eq=False)
class Duals:
    """Duals of kinks that come and go, by their keys."""

    key: np.ndarray
    duals: Any

    def moved(self, new: Any, t: float) -> Duals:
        """See `drojko.losses.jets`."""
        return Duals(self.key, self.duals * [[1.0], [1.0], [t], [1.0]])
