"""Linear bounds of margins on balls and boxes: backward substitution of lines, layer by layer.

After Zhang, Weng, Chen, Hsieh and Daniel (2018, arXiv 1811.00866), "CROWN".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.networks.network import Network

__all__ = ["Ball", "Box", "Head", "LinearBound", "blocks", "headed", "linear_bound"]


Intervals = list[tuple[Tensor, Tensor]]
#: Narrower intervals of all layers of a network on balls.
Sharper = Callable[[Network, "Ball", Intervals], Intervals]


@dataclass(frozen=True)
class Ball:
    """Balls around no displacement, radius (n,)."""

    radius: Tensor

    def widest(self, rows: Tensor) -> Tensor:
        """Largest rows @ d, of rows (n, m, r) or (m, r)."""
        return rows.norm(dim=-1) * self.radius.unsqueeze(1)

    @property
    def middle(self) -> Tensor | None:
        """The centre (n, r); None: 0."""
        return None


@dataclass(frozen=True)
class Box:
    """Boxes around displacements, centre and half sides (n, r)."""

    middle: Tensor
    half: Tensor

    def widest(self, rows: Tensor) -> Tensor:
        """Largest rows @ (d - middle)."""
        return (rows.abs() * self.half.unsqueeze(1)).sum(-1)


@dataclass(frozen=True)
class LinearBound:
    """margin <= level + rows @ (d - middle) on the region; intervals of all pre-activations."""

    level: Tensor
    rows: Tensor
    intervals: list[tuple[Tensor, Tensor]]


def blocks(network: Network, memory: int, extra: int = 0) -> int:
    """How many regions at once keep within a memory, with ``extra`` bytes for each."""
    if not network.dense:
        return network.blocks(memory)
    widths = [w.shape[0] for w in network.weights]
    widest = max(max(widths), network.dim)
    rows = max(network.margins.levels.shape[1], *widths[1:], 1)
    one = 8 * (8 * rows * widest + 14 * 27 * max(widths)) + extra
    return max(1, min(2000, memory // one))


def linear_bound(
    network: Network, region: Ball | Box, anchors: list[Tensor] | None = None
) -> LinearBound:
    """Linear upper bounds of all margins of each sample on its region.

    ``anchors``: pre-activations near which the lines of the last substitution are tight.
    """
    if not network.dense:
        return network.relaxed(region, anchors)
    found, lines, sizes, at = _relaxed(network, region)
    if anchors is None:
        lines.append(network.acts[-1].lines(*found[-1]))
    else:
        pairs = zip(network.acts, found, anchors, strict=True)
        lines = [act.lines(*interval, anchor) for act, interval, anchor in pairs]
    margins = network.margins
    level, out = _substituted(network, lines, sizes, margins.rows, margins.levels, at)
    return LinearBound(level + network.outputs_error(), out, found)


@dataclass(frozen=True)
class Head:
    """What quadratic bounds are made of, one row per region: margin <= rows @ last hidden layer
    + levels + along @ d, and intervals of all pre-activations.
    """

    network: Network
    rows: Tensor
    levels: Tensor
    intervals: list[tuple[Tensor, Tensor]]
    along: Tensor | None = None

    def take(self, index: Tensor) -> Head:
        """Some of the regions."""
        spans = [(low[index], high[index]) for low, high in self.intervals]
        along = None if self.along is None else self.along[index]
        return Head(self.network.take(index), self.rows[index], self.levels[index], spans, along)


def headed(
    network: Network, ball: Ball, place: Tensor, rows: Tensor, levels: Tensor, d: Tensor,
    layers: int, sharper: Sharper | None = None,
) -> Head:  # fmt: skip
    """Of ``rows @ last hidden layer + levels`` (j, width), (j,), for samples ``place`` (j,).

    Of a network that is not dense: of its first ``layers``, and lines that are tight near
    displacements d (j, r) inside the ball of those after them. ``sharper`` narrows the intervals
    of one that is.
    """
    if not network.dense:
        return network.headed(ball, place, rows, levels, d, layers)
    found = _relaxed(network, ball)[0]
    found = found if sharper is None else sharper(network, ball, found)
    between = [(low[place], high[place]) for low, high in found]
    return Head(network.take(place), rows, levels, between)


def _relaxed(
    network: Network, region: Ball | Box
) -> tuple[
    list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor, Tensor, Tensor]], list[Tensor], Tensor
]:
    """Intervals, lines of all layers but the last, sizes of what is summed, and the middle."""
    first = network.weights[0]
    middle = region.middle
    at = network.centre if middle is None else network.centre + middle @ first.T
    size = network.size if middle is None else network.size + middle.abs() @ first.abs().T
    rows = first.expand(len(at), -1, -1)
    width = region.widest(rows) * (1 + 1e-12) + network.slack * size
    found, lines = [(at - width, at + width)], []
    sizes = [size + width]
    for k in range(1, len(network.weights)):
        lines.append(network.acts[k - 1].lines(*found[-1]))
        low, high = found[-1]
        largest = torch.maximum(
            network.acts[k - 1](low)[0].abs(), network.acts[k - 1](high)[0].abs()
        )
        w, b = network.weights[k], network.biases[k]
        # |phi| is largest at an end but for silu's dip of .2785 below zero
        sizes.append((largest + 0.3) @ w.abs().T + b.abs())
        rows = w.expand(len(at), -1, -1)
        start = b.expand(len(at), -1)
        top, above = _substituted(network, lines, sizes, rows, start, at)
        least, below = _substituted(network, lines, sizes, -rows, -start, at)
        high = top + region.widest(above) * (1 + 1e-12)
        low = -least - region.widest(below) * (1 + 1e-12)
        found.append((low, high))
    return found, lines, sizes, at


def _substituted(
    network: Network,
    lines: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    sizes: list[Tensor],
    rows: Tensor,
    level: Tensor,
    at: Tensor,
) -> tuple[Tensor, Tensor]:
    """Upper bound of rows @ h + level as level + rows @ displacement; rows (n, m, width)."""
    error = level.abs()
    for k in range(len(lines) - 1, -1, -1):
        up, up_level, down, down_level = lines[k]
        positive, negative = rows.clamp_min(0.0), rows.clamp_max(0.0)
        level = (
            level + (positive @ up_level.unsqueeze(2) + negative @ down_level.unsqueeze(2))[..., 0]
        )
        levels = torch.maximum(up_level.abs(), down_level.abs())
        error = error + (rows.abs() @ levels.unsqueeze(2))[..., 0]
        rows = positive * up.unsqueeze(1) + negative * down.unsqueeze(1)
        # What is multiplied from here on, entry by entry: its sum is what rounding is relative to.
        error = error + (rows.abs() @ sizes[k].unsqueeze(2))[..., 0]
        offset = at if k == 0 else network.biases[k].expand(len(at), -1)
        level = level + (rows @ offset.unsqueeze(2))[..., 0]
        rows = rows @ network.weights[k]
    return level + network.slack * error, rows
