"""Swaps of categories: the part of a worst case that jumps instead of moving."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drojko.ambiguity.ground.cost import GroundCost
from drojko.exceptions import InvalidDataError
from drojko.losses import Loss

__all__ = ["MOST_COMBINATIONS", "Prefixes", "Swaps", "best_prefix", "prefixes", "tops_of"]

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


class Prefixes(NamedTuple):
    """Sets of groups that may pay to swap, of some rows, in one direction of the output.

    Attributes
    ----------
    sign : float
        Whether the output rises or falls.
    rows : Tensor of shape (m,)
        The rows that have such groups.
    order : Tensor of shape (m, depth)
        Groups in the order in which they are taken.
    moved, paid : Tensor of shape (m, depth)
        How the first k + 1 of them move the output, and what that costs.
    useful : Tensor of shape (m, depth)
        Which of these sets hold nothing that cannot pay.
    """

    sign: float
    rows: Tensor
    order: Tensor
    moved: Tensor
    paid: Tensor
    useful: Tensor


def tops_of(scores: list[Tensor]) -> Tensor:
    """The largest score of each group, and of minus the scores, shape (2, G)."""
    return torch.stack([torch.stack([s.max(), (-s).max()]) for s in scores], 1)


def prefixes(
    swaps: Swaps,
    own: Tensor,
    scores: list[Tensor],
    tops: Tensor,
    loss: Loss,
    f: Tensor,
    y: Tensor,
    penalty: float,
    kappa: float,
    slack: float = 0.0,
) -> Iterator[Prefixes]:
    """The candidates of `best_prefix`, upwards and downwards; ``tops`` are those of `tops_of`.

    Left out is what cannot pay to within ``slack``: a worst case is no steeper than the loss, and
    no more than its slope squared over 4 kappa above it.
    """
    steep = loss.lipschitz
    steep = None if steep is None or math.isinf(steep) else steep
    for sign, top in zip((1.0, -1.0), tops, strict=True):
        gain = torch.stack(
            [(t - sign * s)[own[:, g]] for g, (t, s) in enumerate(zip(top, scores, strict=True))], 1
        )
        worth = gain > 0
        if steep is not None:
            worth &= steep * gain + slack > penalty * swaps.costs
        some = worth.any(1)
        near = steep is not None and kappa > 0
        if near:  # a convex loss is largest at an end: where all that may pay is swapped, or none
            level = loss.value(f, y)
            room = (steep or 0.0) ** 2 / (4.0 * kappa) + slack
            whole = loss.value(f + sign * torch.where(worth, gain, 0.0).sum(1), y)
            some &= (whole - level).clamp_min(0.0) + room > penalty * swaps.costs.min()
        rows = some.nonzero()[:, 0]
        gain, worth = gain[rows], worth[rows]
        depth = int(worth.sum(1).max()) if len(rows) else 0
        rate = torch.where(worth, gain / swaps.costs, -torch.inf)
        order = rate.argsort(dim=1, descending=True, stable=True)[:, :depth]
        moved, paid = gain.gather(1, order).cumsum(1), swaps.costs[order].cumsum(1)
        moved, useful = sign * moved, worth.gather(1, order)
        if near and depth:
            at, answer = f[rows, None], y[rows, None]
            most = loss.value((at + moved).ravel(), answer.expand_as(moved).reshape(-1))
            useful &= most.reshape(moved.shape) + room > level[rows, None] + penalty * paid
            kept = useful.any(1).nonzero()[:, 0]
            rows, order, moved, paid, useful = (
                part[kept] for part in (rows, order, moved, paid, useful)
            )
        yield Prefixes(sign, rows, order, moved, paid, useful)


def best_prefix(
    swaps: Swaps,
    own: Tensor,
    theta: Tensor,
    loss: Loss,
    f: Tensor,
    y: Tensor,
    penalty: float,
    kappa: float,
    worth: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
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
        Price of the swaps, and at least of a squared change of f by continuous moves.
    worth : callable, default=None
        ``worth(index, f)``: V of these samples at outputs f, where it is another one than above:
        any convex one that is nowhere larger.

    Returns
    -------
    tuple of Tensor
        Categories, shape (n, G), how they change f, and their ground cost, both (n,).
    """
    scores = [step[:, 0] for step in swaps.steps(theta.unsqueeze(0))]
    choice, moved, paid = own, torch.zeros_like(f), torch.zeros_like(f)
    tops = tops_of(scores)
    both = list(prefixes(swaps, own, scores, tops, loss, f, y, penalty, kappa))
    some = torch.cat([part.rows for part in both]).unique()
    if not len(some):
        return choice, moved, paid
    choice, best = own.clone(), torch.full_like(f, torch.inf)
    worth = worth or (lambda index, f: loss.robust_value(f, y[index], kappa))
    best[some] = worth(some, f[some])
    for part in both:
        target = torch.stack([(part.sign * score).argmax() for score in scores])
        taken = torch.zeros_like(own[part.rows], dtype=torch.bool)
        for k in range(part.order.shape[1]):
            taken.scatter_(1, part.order[:, k : k + 1], True)
            use = part.useful[:, k]
            rows, step, fee, chosen = (
                part.rows[use],
                part.moved[use, k],
                part.paid[use, k],
                taken[use],
            )
            value = worth(rows, f[rows] + step) - penalty * fee
            wins = value > best[rows]
            better = rows[wins]
            best[better], moved[better], paid[better] = value[wins], step[wins], fee[wins]
            # Groups outside of the prefix that wins return to the sample's own category.
            choice[better] = torch.where(chosen[wins], target, own[better])
    return choice, moved, paid
