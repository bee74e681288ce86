r"""Branch and bound in few dimensions: linear bounds of the loss on boxes that all samples share.

On a box the margins lie below linear functions, the loss of linear functions is convex, and a
convex function minus a linear one is largest at a corner: that gives a linear bound of the loss.
Minus the price of moving from a sample it is maximised over the box in closed form. Boxes where
that exceeds what some sample is known to attain are halved.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko._driver import Status, nested
from drojko.inner.networks.linear import Box, blocks, linear_bound
from drojko.inner.networks.network import Network

__all__ = ["MOST_DIMENSIONS", "branch_and_bound"]

MOST_DIMENSIONS = 4
_PAIRS = 400_000  # samples times boxes at once
_MEMORY = 2**26


@dataclass(frozen=True)
class _Group:
    """Samples that one set of boxes serves: the same network of the place, the same loss."""

    rows: Tensor
    place: Tensor  # (n, r)
    network: Network  # of one sample at place 0


@dataclass(frozen=True)
class _State:
    """Boxes that are open in the current group, and bounds (n,) of the samples of all."""

    group: int
    middle: Tensor | None
    half: Tensor | None
    bound: Tensor
    attained: Tensor
    count: int = 0


@dataclass(frozen=True)
class _Branching:
    """The solver: one round halves all open boxes of a group."""

    network: Network
    groups: list[_Group]
    strength: float
    reach: float
    slack: Tensor  # what a sample's bound may exceed its attained value by
    most: int

    def init(self, problem: Tensor) -> _State:
        """From the attained values (n,)."""
        return _State(0, None, None, torch.full_like(problem, -torch.inf), problem)

    @staticmethod
    def finite(state: _State) -> bool:
        return not bool(torch.isnan(state.bound).any())

    def terminate(self, state: _State) -> Status | None:
        return Status.CONVERGED if state.group >= len(self.groups) else None

    def step(self, state: _State) -> _State:
        group = self.groups[state.group]
        middle, half = state.middle, state.half
        if middle is None or half is None:
            low = group.place.amin(0) - self.reach
            high = group.place.amax(0) + self.reach
            middle, half = (0.5 * (low + high))[None], (0.5 * (high - low) * (1 + 1e-12))[None]
        attained = state.attained[group.rows]
        bound = state.bound[group.rows]
        values: list[Tensor] = []
        pairs = _PAIRS // (8 if self.network.margins.kind == "both" else 1)
        size = blocks(group.network, _MEMORY)
        for part in torch.arange(len(middle)).split(min(size, max(1, pairs // len(bound)))):
            above, there = self._values(group, middle[part], half[part])
            values.append(above)
            attained = torch.maximum(attained, there)
        value = torch.cat(values, 1)
        count = state.count + len(middle)
        open_ = value > (attained + self.slack[group.rows])[:, None]
        wide = open_.any(0) & (half.amax(1) > 1e-9)
        if count + 2 * int(wide.sum()) > self.most * (state.group + 1) / len(self.groups):
            wide = torch.zeros_like(wide)
        bound = torch.maximum(bound, torch.where(open_ & wide, -torch.inf, value).amax(1))
        bounds = state.bound.index_copy(0, group.rows, bound)
        state = replace(
            state, bound=bounds, attained=state.attained.index_copy(0, group.rows, attained),
            count=count,
        )  # fmt: skip
        if not bool(wide.any()):
            return replace(state, group=state.group + 1, middle=None, half=None)
        middle, half = middle[wide], half[wide]
        size = group.network.weights[0].norm(dim=0)
        side = torch.nn.functional.one_hot((half * size).argmax(1), half.shape[1]).double()
        step = 0.5 * half * side
        middle, half = torch.cat([middle + step, middle - step]), torch.cat([half - step] * 2)
        return replace(state, middle=middle, half=half * (1 + 1e-15))

    def _values(self, group: _Group, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of samples on boxes (n, M), and the best values at their centres (n,)."""
        network = group.network.take(torch.zeros(len(middle), dtype=torch.long))
        found = linear_bound(network, Box(middle, half))
        corners = torch.tensor(
            list(itertools.product((-1.0, 1.0), repeat=half.shape[1])), dtype=torch.float64
        )
        moved = corners * half[:, None]  # (M, corners, r)
        at = found.level[:, None] + moved @ found.rows.transpose(1, 2)  # (M, corners, m)
        if network.margins.kind == "pairs":
            at = at.masked_fill(network.margins.own()[:, None], 0.0)
        at = at + 1e-13 * at.abs()
        margins, n = self.network.margins.take(group.rows), len(group.rows)
        each = margins.kind == "both"
        there = network.at(middle)
        if each:
            loss = margins(at.expand(n, -1, -1, -1))  # (n, M, corners)
            own = margins(there.expand(n, -1, -1))
        else:
            loss = network.margins(at)[None]
            own = network.margins(there)[None]
        slope = (loss.unsqueeze(-1) * corners).mean(-2) / half.clamp_min(1e-300)
        level = (loss - (slope.unsqueeze(-2) * moved).sum(-1)).amax(-1)
        level = level + 1e-12 * (level.abs() + (slope * half).abs().sum(-1))
        away = middle[None] - group.place[:, None]  # (n, M, r)
        best = torch.clamp(slope / (2.0 * self.strength) - away, -half, half)
        value = level + (slope * best).sum(-1)
        price = self.strength * (away + best).square().sum(-1)
        value = value - price * (1 - 1e-13)
        centre = own - self.strength * away.square().sum(-1)
        return value, centre.amax(1) - 1e-12 * centre.amax(1).abs()


def _grouped(network: Network) -> list[_Group]:
    """Samples by what their pre-activations hold beside their place, and by label."""
    first = network.weights[0]
    place = network.centre @ torch.linalg.pinv(first).T
    rest = network.centre - place @ first.T
    scale = float(network.size.max()) + 1e-300
    keys = (rest / scale * 1e7).round()
    if network.margins.kind != "both":
        keys = torch.cat([keys, network.margins.y.double()[:, None]], 1)
    _, index = torch.unique(keys, dim=0, return_inverse=True)
    groups = []
    for k in range(int(index.max()) + 1):
        rows = (index == k).nonzero().squeeze(1)
        one = network.take(rows[:1])
        spread = (rest[rows] - rest[rows[:1]]).abs().amax(0)
        size = network.size[rows].amax(0) + spread / network.slack
        groups.append(
            _Group(rows, place[rows], replace(one, centre=rest[rows[:1]], size=size[None]))
        )
    return groups


def branch_and_bound(
    network: Network,
    strength: float,
    attained: Tensor,
    reach: float,
    slack: Tensor,
    most: int,
    max_time: float | None = None,
) -> tuple[Tensor, int] | None:
    """Upper bounds (n,) of loss - strength t² for displacements up to ``reach``; boxes looked at.

    ``attained`` (n,) are values somewhere, ``slack`` (n,) is how much above them will do; None:
    there are as many kinds of samples as samples, so that nothing is shared.
    """
    groups = _grouped(network)
    if len(groups) > max(8, len(network) // 4) or not math.isfinite(reach):
        return None
    solver = _Branching(network, groups, strength, reach, slack, most)
    state = nested(solver, solver.init(attained), max_iter=10**6, max_time=max_time).state
    if state.group < len(groups):  # out of time within a group: its samples and later have none
        left = torch.cat([g.rows for g in groups[state.group :]])
        return state.bound.index_fill(0, left, torch.inf), state.count
    return torch.maximum(state.bound, state.attained), state.count
