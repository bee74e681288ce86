"""The reference's own rows with where their worst case moves them: answers without a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from drojko.inner.objective import Batch
from drojko.inner.transport.adversary import Moved
from drojko.inner.transport.radius import BallSolution

__all__ = ["KnownRows"]


@dataclass(frozen=True)
class KnownRows:
    """Rows x (n, d), y (n,) of masses w, and their moves under the two maps of a plan.

    ``high`` and ``low`` are positions (n, d) at the larger and the smaller penalty, with
    ``high_labels`` and ``low_labels``, the latter None where one map is the plan; labels are class
    indices or targets. Plain arrays, as model files store them.
    """

    x: np.ndarray
    y: np.ndarray
    w: np.ndarray
    high: np.ndarray
    high_labels: np.ndarray
    low: np.ndarray | None = None
    low_labels: np.ndarray | None = None

    @staticmethod
    def of(
        worst: Moved | BallSolution, decode: Callable[[Batch, Tensor], Tensor], w: Tensor
    ) -> KnownRows:
        """Of a worst case on the atoms themselves; ``decode(batch, q)`` gives features."""
        sides = [worst] if isinstance(worst, Moved) else [worst.high, worst.low]
        if isinstance(worst, BallSolution) and worst.share == 0.0:
            sides = sides[:1]
        tensors = [sides[0].batch.x, sides[0].batch.y, w]
        for moved in sides:
            tensors += [decode(moved.at, moved.q), moved.labels]
        return KnownRows(*(t.detach().cpu().numpy().copy() for t in tensors))

    def state(self) -> dict[str, np.ndarray | None]:
        """Arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def find(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Index of each row among the known ones, -1 where there is none, shape (n,).

        Where a row is known several times, its occurrences are taken in turn.
        """
        places: dict[bytes, list[int]] = {}
        for i, key in enumerate(_keys(self.x, self.y)):
            places.setdefault(key, []).append(i)
        met: dict[bytes, int] = {}
        found = np.full(len(x), -1)
        for i, key in enumerate(_keys(x, y)):
            if key in places:
                turn = met[key] = met.get(key, -1) + 1
                found[i] = places[key][turn % len(places[key])]
        return found

    def images(self, rows: np.ndarray, low: bool) -> tuple[Tensor, Tensor]:
        """Positions and labels of known rows under one of the two maps."""
        x, y = self.high, self.high_labels
        if low and self.low is not None and self.low_labels is not None:
            x, y = self.low, self.low_labels
        return torch.as_tensor(x[rows]), torch.as_tensor(y[rows])


def _keys(x: np.ndarray, y: np.ndarray) -> list[bytes]:
    """Rows with their labels as bytes; zeros have one sign."""
    whole = np.column_stack([x, y]).astype(np.float64) + 0.0
    return [row.tobytes() for row in whole]
