"""Swaps of categories: the part of a worst case that jumps instead of moving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drojko.ambiguity.ground.cost import GroundCost
from drojko.exceptions import InvalidDataError
from drojko.losses import Loss

__all__ = ["MOST_COMBINATIONS", "Swaps", "best_prefix"]

#: Combinations of categories that are tried one by one; beyond, swaps are searched greedily.
MOST_COMBINATIONS = 64


@dataclass(frozen=True)
class Swaps:
    """Groups of columns that may take another category, each at its cost.

    ``columns`` holds the columns of each group, ``values`` its categories as rows of shape
    (K_g, columns), ``costs`` of shape (G,) the ground cost of leaving the sample's own category.
    """

    columns: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    costs: Tensor

    @staticmethod
    def of(cost: GroundCost, like: dict[str, Any]) -> Swaps | None:
        """The swaps of a ground cost at finite cost; None where there are none."""
        categories = cost.categories
        if categories is None or not categories.swappable:
            return None
        if categories.values is None:
            raise InvalidDataError("the ground cost has not seen its categories: use cost.observed")
        rows = zip(categories.columns, categories.values, categories.costs, strict=True)
        chosen = [(c, v, p) for c, v, p in rows if math.isfinite(p) and len(v) > 1]
        if not chosen:
            return None
        return Swaps(
            tuple(torch.as_tensor(c, device=like["device"]) for c, _, _ in chosen),
            tuple(torch.as_tensor(v, **like) for _, v, _ in chosen),
            torch.as_tensor([p for _, _, p in chosen], **like),
        )

    @property
    def n_groups(self) -> int:
        """Number of groups G."""
        return len(self.columns)

    @property
    def n_combinations(self) -> int:
        """Number of combinations of categories of all groups."""
        return math.prod(len(v) for v in self.values)

    def combinations(self) -> Tensor:
        """All combinations of categories, shape (M, G)."""
        ranges = [torch.arange(len(v), device=v.device) for v in self.values]
        return torch.cartesian_prod(*ranges).reshape(-1, self.n_groups)

    def state(self, x: Tensor) -> Tensor:
        """Category of each group of rows x (n, d): the nearest one, shape (n, G)."""
        parts = zip(self.columns, self.values, strict=True)
        return torch.stack([torch.cdist(x[:, c], v).argmin(1) for c, v in parts], 1)

    def apply(self, x: Tensor, own: Tensor, choice: Tensor) -> Tensor:
        """Rows x (n, d) with the categories ``choice`` in place of ``own``, both (n, G)."""
        x = x.clone()
        for g, (columns, values) in enumerate(zip(self.columns, self.values, strict=True)):
            changed = (choice[:, g] != own[:, g]).unsqueeze(1)
            x[:, columns] = torch.where(changed, values[choice[:, g]], x[:, columns])
        return x

    def fee(self, own: Tensor, choice: Tensor) -> Tensor:
        """Ground cost of changing categories ``own`` to ``choice``, both (n, G); shape (n,)."""
        return (choice != own).to(self.costs.dtype) @ self.costs

    def steps(self, images: Tensor) -> list[Tensor]:
        """Per group the images of its categories under a matrix (r, d), shape (K_g, r)."""
        return [v @ images[:, c].T for c, v in zip(self.columns, self.values, strict=True)]


def best_prefix(
    swaps: Swaps,
    own: Tensor,
    theta: Tensor,
    loss: Loss,
    f: Tensor,
    y: Tensor,
    penalty: float,
    kappa: float,
) -> Tensor:
    r"""Best categories of each sample for a convex loss of :math:`f = \theta^\top x + b`.

    .. math:: \max_S\; V\Bigl(f + \sum_{g \in S} u_g\Bigr) - \lambda \sum_{g \in S} c_g, \qquad
              V(f) = \max_t \ell(f + t) - \kappa t^2

    V is convex, so for its slope p at the best point S maximises
    :math:`\sum_{g\in S} p u_g - \lambda c_g`: it holds the groups of u_g / c_g above a threshold
    where f rises, below one where it falls. Of the subsets of groups only 2 G + 1 are left, the
    prefixes in the order of those ratios, whatever the costs.

    Parameters
    ----------
    own : Tensor of shape (n, G)
        Categories of the samples.
    theta, f, y : Tensor of shape (d,), (n,) and (n,)
    penalty, kappa : float
        Price of the swaps, and of a squared change of f by continuous moves.

    Returns
    -------
    Tensor of shape (n, G)
        Categories.
    """
    scores = [step[:, 0] for step in swaps.steps(theta.unsqueeze(0))]
    best, choice = loss.robust_value(f, y, kappa), own
    for sign in (1.0, -1.0):
        targets, gains = [], []
        for g, score in enumerate(scores):
            top, at = (sign * score).max(0)
            gains.append(top - sign * score[own[:, g]])
            targets.append(at)
        gain = torch.stack(gains, 1)
        order = (gain / swaps.costs).argsort(dim=1, descending=True, stable=True)
        steps, prices = gain.gather(1, order), swaps.costs[order]
        useful = steps > 0
        if loss.lipschitz is not None:  # V is no steeper than the loss
            useful &= loss.lipschitz * steps > penalty * prices
        # A prefix that is longer than any useful one is never the best.
        depth = int(useful.sum(1).max()) if len(f) else 0
        target = torch.stack(targets)
        taken = torch.zeros_like(own, dtype=torch.bool)
        moved, paid = torch.zeros_like(f), torch.zeros_like(f)
        for k in range(depth):
            moved, paid = moved + steps[:, k], paid + prices[:, k]
            taken = taken.scatter(1, order[:, k : k + 1], True)
            value = loss.robust_value(f + sign * moved, y, kappa) - penalty * paid
            wins = (value > best) & useful[:, k]
            best = torch.where(wins, value, best)
            # Groups outside of the prefix that wins return to the sample's own category.
            choice = torch.where(wins.unsqueeze(1), torch.where(taken, target, own), choice)
    return choice
