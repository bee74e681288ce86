r"""Points of a stochastic solver of which each rank has some: batches, sums, a sample for all.

Batches are those of one process, drawn alike everywhere; a rank visits its own rows of them, and
the gradients are added up,

.. math:: g = \sum_k \sum_{i \in B \cap k} w_i \nabla \ell_i
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import RANKS
from drojko.distributed.table import ShardedTable

__all__ = ["SharedPoints"]


class SharedPoints:
    """The rows of positive mass of all ranks, class after class where there are classes.

    Parameters
    ----------
    table : ShardedTable
    y, w : array of shape (n,)
        Class indices or targets, and weights, of all ranks.
    classes : bool
    what : str
        Who asks, for the error where rows are no array.

    Attributes
    ----------
    y, w : arrays of shape (n,)
        Of all, in that order; masses sum to one.
    at : array of shape (k,)
        The places of this rank's own, which rise.
    points : tuple of Tensor
        Those themselves: x (k, d), y (k,) and w (k,).
    mass : float
        Of the latter.
    """

    def __init__(
        self, table: ShardedTable, y: np.ndarray, w: np.ndarray, classes: bool, what: str
    ) -> None:
        self.ranks = table.ranks
        if self.ranks.any(not isinstance(table.local, np.ndarray)):
            raise table.refused(what)
        order = np.flatnonzero(w > 0)
        if classes:
            order = order[np.argsort(y[order], kind="stable")]
        self.y, self.w = y[order], w[order] / w[order].sum()
        here = (order >= table.own.start) & (order < table.own.stop)
        self.at = np.flatnonzero(here)
        x = table.local[order[self.at] - table.own.start]
        parts = (x, self.y[self.at], self.w[self.at])
        self.points = tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
        self.mass = float(self.points[2].sum())

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, order: Tensor, size: int) -> Sequence[Tensor]:
        """The rank's own rows of each batch of so many, in an order of all."""
        place = np.empty(len(self), dtype=np.int64)
        place[order.cpu().numpy()] = np.arange(len(self))
        own = place[self.at]
        rows = np.argsort(own)
        cuts = np.searchsorted(own[rows], np.arange(size, len(self), size))
        return [torch.from_numpy(part).to(order.device) for part in np.split(rows, cuts)]

    def every(self, step: int) -> Tensor:
        """The rank's own among each so manieth of all."""
        return torch.from_numpy(np.flatnonzero(self.at % step == 0))

    def total(self, sums: Tensor) -> Tensor:
        """The sum of the ranks' sums, float64."""
        own = sums.detach().double().cpu().numpy()
        return torch.from_numpy(self.ranks.total(own)).to(sums.device)

    def average(self, values: Tensor | None, weights: Tensor) -> float:
        """The mean over all rows, of values whose masses sum to one here; None: infinite."""
        own = 0.0
        if values is None:
            own = np.inf
        elif self.mass:
            some = weights > 0
            own = self.mass * float(values[some].double() @ weights[some].double())
        return float(self.ranks.total(np.array(own)))

    def error(self, own: float) -> float:
        """The standard error of such a mean, from that on each rank."""
        return float(self.ranks.total(np.array((self.mass * own) ** 2)) ** 0.5)

    def weakest(self, names: Sequence[str], own: str) -> str:
        """The last of the names, in their order, that is one of the ranks'."""
        rank = names.index(own) if self.mass else 0
        return names[int(self.ranks.largest(rank))]

    def sample(self, points: Any, count: int, generator: torch.Generator) -> Any:
        """So many points of all ranks by mass, or all, on all of them; ``points``: its own."""
        x, y, w = points
        chosen = np.arange(len(self))
        if count < len(self):
            mass = torch.from_numpy(self.w)
            drawn = torch.multinomial(mass, count, replacement=False, generator=generator)
            chosen = np.sort(drawn.numpy())
        own = torch.from_numpy(np.flatnonzero(np.isin(self.at, chosen))).to(x.device)
        counts = self.ranks.gather(np.array([len(own)]), [1] * self.ranks.size).tolist()
        place = self.ranks.gather(self.at[own.cpu().numpy()], counts)
        back = np.argsort(place)
        found = [
            torch.from_numpy(self.ranks.gather(part[own].cpu().numpy(), counts)[back]).to(part)
            for part in (x, y, w)
        ]
        return found[0], found[1], found[2] / found[2].sum()

    def alike(self, model: torch.nn.Module) -> None:
        """Give the model the parameters and buffers that it has on the first rank."""
        for value in model.state_dict().values():
            own = value.detach().double().cpu().numpy()
            first = self.ranks.total(own if self.ranks.rank == 0 else np.zeros_like(own))
            value.copy_(torch.from_numpy(first))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it runs end by the rank's own clock: what is said to others is said here."""
        token = RANKS.set(None)
        try:
            yield
        finally:
            RANKS.reset(token)
