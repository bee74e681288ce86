"""Sharp intervals of balls that have been looked at, for whoever looks at them again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from drojko.inner.networks.linear import Ball, Box

__all__ = ["Seen"]

#: Bytes that are kept; what comes later is found anew.
_KEPT = 2**26


@dataclass
class Seen:
    """By radius and node: intervals of all samples, and of which of them they are known."""

    samples: int
    kept: dict[tuple[float, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    size: int = 0

    def find(self, region: Ball | Box, k: int, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """Of a node at some samples; None: not of all of them."""
        found = self.kept.get((_radius(region), k))
        if found is None or not bool(found[2][rows].all()):
            return None
        return found[0][rows], found[1][rows]

    def missing(self, region: Ball | Box, k: int, rows: Tensor) -> Tensor:
        """Of which samples they are not known, (j,)."""
        found = self.kept.get((_radius(region), k))
        return torch.ones(len(rows), dtype=torch.bool) if found is None else ~found[2][rows]

    def keep(self, region: Ball | Box, k: int, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """For later."""
        radius = _radius(region)
        if radius < 0:
            return
        if (radius, k) not in self.kept:
            more = 16 * self.samples * low[0].numel()
            if self.size + more > _KEPT:
                return
            self.size += more
            empty = low.new_zeros(self.samples, *low.shape[1:])
            mask = torch.zeros(self.samples, dtype=torch.bool)
            self.kept[radius, k] = empty, empty.clone(), mask
        lows, highs, known = self.kept[radius, k]
        lows[rows], highs[rows], known[rows] = low, high, True


def _radius(region: Ball | Box) -> float:
    """That of all balls; -1 where they differ."""
    if not isinstance(region, Ball) or not len(region.radius):
        return -1.0
    least, most = region.radius.aminmax()
    return float(least) if bool(least == most) else -1.0
