"""Worst cases of some rows of a problem whose other rows lie on other processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from drojko.losses.class_moves import Curve, Moves

__all__ = ["Everywhere"]


class Everywhere(Moves):
    """Moves of the rows here, with sums over all: ``total`` makes them of those over the rows here.

    Numbers by row stay those of the rows here.
    """

    def __init__(self, here: Moves, total: Callable[[Any], Any]) -> None:
        self.here, self.total, self.y, self.half = here, total, here.y, here.half
        self.competing = bool(total(np.array(here.competing, dtype=float)))

    def looked_around(self) -> Everywhere:
        """See `Moves`."""
        return Everywhere(self.here.looked_around(), self.total)

    def _joined(self, value: float, second: np.ndarray) -> tuple[float, np.ndarray]:
        sums = self.total(np.append(second, value))
        return float(sums[-1]), sums[:-1].reshape(second.shape)

    def values(self, mu: float) -> np.ndarray:
        """See `Moves`."""
        return self.here.values(mu)

    def sums(self, w: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`."""
        risk, pull, second = self.here.sums(w, mu)
        risk, second = self._joined(risk, second)
        return risk, pull, second

    def _everywhere(self, act: Curve) -> Curve:
        def everywhere(df: np.ndarray, dE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pull, second = act(df, dE)
            return pull, self.total(second)

        return everywhere

    def curve(self, w: np.ndarray, mu: float) -> Curve:
        """See `Moves`."""
        return self._everywhere(self.here.curve(w, mu))

    def contest(self, w: np.ndarray, mu: float) -> Curve:
        """See `Moves`."""
        return self._everywhere(self.here.contest(w, mu))

    def rises(self, df: np.ndarray, dE: np.ndarray) -> np.ndarray:
        """See `Moves`."""
        return self.here.rises(df, dE)

    def raised(self, rises: np.ndarray) -> Everywhere:
        """See `Moves`."""
        new = copy.copy(self)
        new.here = self.here.raised(rises)
        return new

    def slope(self, w: np.ndarray, mu: float, rises: np.ndarray) -> float:
        """See `Moves`."""
        return float(self.total(np.array(self.here.slope(w, mu, rises))))

    def rivals(self, mu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Moves`."""
        return self.here.rivals(mu)

    def plan(
        self, w: np.ndarray, mu: float, kept: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`."""
        worth, pull, second = self.here.plan(w, mu, kept)
        worth, second = self._joined(worth, second)
        return worth, pull, second

    def bend(self, w: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Moves`."""
        whole, rows = self.here.bend(w, mu)
        return self.total(whole), rows

    def best(self) -> np.ndarray:
        """See `Moves`."""
        return self.here.best()
