"""How displacements in coordinates enter a program, and what is affine in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drojko.inner.networks.layers.operations import Affine, spectral_norm
from drojko.inner.networks.layers.program import Program

__all__ = ["Entry"]

_MEMORY = 2**25
#: Entries of the rows of an affine node that are kept.
_KEPT = 4_000_000
#: Entries of them that are used instead of the layers before.
_USED = 200_000
#: Entries that unit rows of an affine node pass, to know their norms.
_PASSED = 400_000_000


@dataclass(frozen=True)
class Entry:
    """A program on x + ``lift`` d, d a displacement in coordinates (n, r).

    Attributes
    ----------
    program : Program
    lift : Tensor of shape (d, r), or None
        None: ``unit`` times the displacement.
    unit : float
    """

    program: Program
    lift: Tensor | None
    unit: float
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def dim(self) -> int:
        """Coordinates that a displacement has."""
        return self.program.nodes[0].count if self.lift is None else self.lift.shape[1]

    @property
    def norm(self) -> float:
        """How far x moves at most for a unit of displacement."""
        return abs(self.unit) if self.lift is None else spectral_norm(self.lift)

    def moved(self, d: Tensor) -> Tensor:
        """Displacements of x, (n, d), of those in coordinates."""
        return self.unit * d if self.lift is None else d @ self.lift.T

    def in_coordinates(self, rows: Tensor) -> Tensor:
        """Rows (..., d) on x as rows (..., r) on displacements."""
        return rows * self.unit if self.lift is None else rows @ self.lift

    def first_rows(self, k: int) -> Tensor | None:
        """An affine node as rows (count, r) on the displacement; None: too many numbers."""
        if self.program.nodes[k].count * self.dim > _KEPT:
            return None
        if k not in self.kept:
            self.kept[k] = torch.cat(list(self._first(k)))
        return self.kept[k]

    def first_norms(self, k: int) -> Tensor | None:
        """The norms of these rows, (count,); None: too many even for that."""
        most = max(node.count for node in self.program.nodes[: k + 1])
        if self.program.nodes[k].count * most > _PASSED:
            return None
        if ("norms", k) not in self.kept:
            self.kept["norms", k] = torch.cat([rows.norm(dim=1) for rows in self._first(k)])
        return self.kept["norms", k]

    def _first(self, k: int) -> Iterator[Tensor]:
        count = self.program.nodes[k].count
        most = max(node.count for node in self.program.nodes[: k + 1])
        for part in torch.arange(count).split(max(1, _MEMORY // (64 * most))):
            unit = torch.nn.functional.one_hot(part, count).double()
            yield self.in_coordinates(self.program.back(k, unit))

    def dense_rows(self, k: int) -> Tensor | None:
        """The same where a product with them is quicker than the layers before."""
        small = self.program.nodes[k].count * self.dim <= _USED
        return self.first_rows(k) if small else None

    def first_norm(self, k: int) -> float:
        """Lipschitz constant of an affine node in the displacement."""
        rows = self.first_rows(k)
        if rows is not None and min(rows.shape) <= 768:
            return spectral_norm(rows)
        moved = [torch.tensor(self.norm, dtype=torch.float64)]
        for node in self.program.nodes[1 : k + 1]:
            if isinstance(node.operation, Affine) and all(j < len(moved) for j in node.sources):
                moved.append(node.operation.deviation(*(moved[j] for j in node.sources)))
            else:
                moved.append(torch.tensor(math.inf, dtype=torch.float64))
        return float(moved[k])
