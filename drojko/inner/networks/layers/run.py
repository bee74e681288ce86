"""One evaluation of linear bounds: intervals of all nodes, and backward substitution of lines.

Intervals come from boxes, from how far nodes move, and from forms: slopes in the displacement and
a box of what is left, which go forwards through a program at little more than the cost of as many
rows as there are coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.networks.layers.entry import Entry
from drojko.inner.networks.layers.operations import Affine, Unit, flat
from drojko.inner.networks.linear import Ball, Box

__all__ = ["Run", "box"]

_MEMORY = 2**25
#: Numbers that the rows of a node may pass in a region; beyond, its interval is the quick one.
_WORK = 2_000_000
#: Gaps between lines that are not worth a sharper interval, relative to the largest.
_CLOSED = 1e-3
_ROUNDED = 1.0 + 1e-12
#: Slopes of a form in one region, at most.
_FORM = 300_000
Lines = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Form:
    """A node is slopes @ (displacement - middle) and something in [low, high].

    ``slopes`` (n or 1, r, *shape); rounding is in the box.
    """

    slopes: Tensor
    low: Tensor
    high: Tensor


def box(
    operation: Affine, parts: list[tuple[Tensor, Tensor]], slack: float
) -> tuple[Tensor, Tensor]:
    """Bounds of an affine map on boxes."""
    middle = operation.forward(*(0.5 * (low + high) for low, high in parts))
    half = operation.spread(*(0.5 * (high - low) for low, high in parts))
    size = operation.size(*(torch.maximum(low.abs(), high.abs()) for low, high in parts))
    half = half * _ROUNDED + slack * size
    return middle - half, middle + half


class Run:
    """One evaluation of linear bounds: intervals, how far nodes move, and lines so far."""

    def __init__(self, entry: Entry, x: Tensor, region: Ball | Box) -> None:
        self.entry, self.region, self.program = entry, region, entry.program
        middle = region.middle
        self.x = x if middle is None else x + entry.moved(middle)
        self.size = x.abs() if middle is None else x.abs() + entry.moved(middle).abs()
        self.values: list[Tensor] = []
        self.intervals: list[tuple[Tensor, Tensor]] = []
        self.sizes: list[Tensor] = []  # what the terms of each node add up to, at most
        self.moved: list[Tensor] = []  # how far each node moves, in norm, (n,)
        self.lines: dict[int, Lines] = {}
        self.forms: dict[int, _Form | None] = {}

    def quick(self, k: int) -> None:
        """Interval of a node from those of its sources and from how far they move."""
        node, slack = self.program.nodes[k], self.program.slack
        if k == 0:
            self._input()
            return
        parts = [self.intervals[j] for j in node.sources]
        values = [self.values[j] for j in node.sources]
        moved = [self.moved[j] for j in node.sources]
        operation = node.operation
        if isinstance(operation, Unit):  # completed by `after`, when its lines are known
            value = operation.forward(values[0])
            low, high = operation.range(*parts[0])
            far = moved[0] * operation.steepest
            size = self.sizes[node.sources[0]] * (1.0 + 2.0 * operation.steepest) + value.abs()
        else:
            assert isinstance(operation, Affine)
            value = operation.forward(*values)
            low, high = box(operation, parts, slack)
            far = self._deviation(k, operation, moved)
            size = operation.size(*(torch.maximum(a.abs(), b.abs()) for a, b in parts))
            size = size + value.abs()
        if node.whole is not None:
            ends = [self.intervals[j] for j in node.whole.sources]
            room = slack * torch.maximum(low.abs(), high.abs())
            low = torch.maximum(low, node.whole.map(*(a for a, _ in ends)) - room)
            high = torch.minimum(high, node.whole.map(*(b for _, b in ends)) + room)
            own = torch.stack([self.moved[j] for j in node.whole.sources]).norm(dim=0)
            far = torch.minimum(far, own)
        far = far * _ROUNDED
        spread = far.view(-1, *[1] * len(node.shape)) + slack * size
        self.values.append(value)
        self.intervals.append(
            (torch.maximum(low, value - spread), torch.minimum(high, value + spread))
        )
        self.sizes.append(size)
        self.moved.append(far)

    def _form(self, k: int) -> _Form | None:
        """That of a node whose sources have their intervals; None: it has too many slopes."""
        if k not in self.forms:
            node = self.program.nodes[k]
            if self.entry.dim * node.count > _FORM:
                self.forms[k] = None
            elif self.program.straight[k]:
                self.forms[k] = self._straight(k)
            else:
                parts = [form for j in node.sources if (form := self._form(j)) is not None]
                if len(parts) < len(node.sources):
                    self.forms[k] = None
                elif isinstance(node.operation, Unit):
                    self.forms[k] = self._bent(k, node.operation, parts[0])
                else:
                    assert isinstance(node.operation, Affine)
                    self.forms[k] = self._joined(k, node.operation, parts)
        return self.forms[k]

    def _straight(self, k: int) -> _Form | None:
        """Of what is affine in the displacement its rows."""
        rows = self.entry.first_rows(k)
        if rows is None:
            return None
        room = self.program.slack * self.sizes[k]
        slopes = rows.T.reshape(1, -1, *self.program.nodes[k].shape)
        return _Form(slopes, self.values[k] - room, self.values[k] + room)

    def _bent(self, k: int, unit: Unit, form: _Form) -> _Form:
        """Of a unit, between two lines of one slope."""
        slope, above, below = unit.parallel(*self.intervals[self.program.nodes[k].sources[0]])
        sides = slope * form.low, slope * form.high
        room = self.program.slack * (sides[0].abs() + sides[1].abs() + above.abs() + below.abs())
        return _Form(
            form.slopes * slope.unsqueeze(1), torch.minimum(*sides) + below - room,
            torch.maximum(*sides) + above + room,
        )  # fmt: skip

    def _joined(self, k: int, operation: Affine, parts: list[_Form]) -> _Form:
        """Of an affine map, exactly but for the box."""
        lead = max(len(form.slopes) for form in parts)
        slopes = [form.slopes.expand(lead, *form.slopes.shape[1:]).flatten(0, 1) for form in parts]
        out = operation.forward(*slopes)
        offset = self.program.offsets[k]
        if offset is not None:
            out = out - offset
        low, high = box(operation, [(form.low, form.high) for form in parts], self.program.slack)
        # What the slopes are sums of, times how far displacements go.
        wide = [
            self._spread(form.slopes).expand(len(self.x), *form.low.shape[1:]) for form in parts
        ]
        room = self.program.slack * operation.size(*wide)
        return _Form(out.view(lead, -1, *self.program.nodes[k].shape), low - room, high + room)

    def _spread(self, slopes: Tensor) -> Tensor:
        """How far slopes (n or 1, r, *shape) lead, (n, *shape)."""
        rows = flat(slopes, 2).transpose(1, 2)
        return self.region.widest(rows).view(-1, *slopes.shape[2:]) * _ROUNDED

    def _deviation(self, k: int, operation: Affine, moved: list[Tensor]) -> Tensor:
        """How far an affine node moves; norms of operations are computed once."""
        kept = self.entry.kept
        if ("norm", k) not in kept:
            ones = [torch.eye(len(moved))[j].double() for j in range(len(moved))]
            kept["norm", k] = [float(operation.deviation(*one)) for one in ones]
        norms = kept["norm", k]
        return sum((c * m for c, m in zip(norms, moved, strict=True)), torch.zeros_like(moved[0]))

    def _input(self) -> None:
        x, size = self.x, self.size
        rows = self.entry.in_coordinates(torch.eye(x.shape[1], dtype=torch.float64))
        width = self.region.widest(rows[None]) * _ROUNDED + self.program.slack * size
        if isinstance(self.region, Ball):
            far = self.region.radius * self.entry.norm
        else:
            far = width.norm(dim=1)
        self.values.append(x)
        self.intervals.append((x - width, x + width))
        self.sizes.append(size + width)
        self.moved.append(far * _ROUNDED)

    def sharpen(self, k: int, unit: Unit) -> None:
        """Interval of a node by substitution down to the input, where that is affordable."""
        node, program = self.program.nodes[k], self.program
        low, high = self.intervals[k]
        if program.straight[k]:
            width = self._width(k)
            if width is None:
                return
            value = self.values[k]
            width = width.reshape(-1, *node.shape) * _ROUNDED + program.slack * self.sizes[k]
            self._within(k, value - width, value + width)
            return
        # Behind more layers the boxes of what is left add up to more than lines lose.
        form = self._form(k) if program.depth[k] == 1 else None
        if form is not None:
            width = self._spread(form.slopes)
            self._within(k, form.low - width, form.high + width)
            return
        if 2 * node.count * program.behind[k] > _WORK:
            return
        # Only where a sharper interval matters: elsewhere the lines above and below nearly meet.
        up, above, down, below = unit.lines(low, high, 0.5 * (low + high))
        open_ = above - below + torch.maximum((up - down) * low, (up - down) * high)
        open_ = _flat(open_, 1).amax(0)
        least = _CLOSED * float(open_.amax()) + 1e-9 * (1.0 + float(self.values[k].abs().amax()))
        chosen = (open_ > least).nonzero().squeeze(1)
        low, high = _flat(low, 1).clone(), _flat(high, 1).clone()
        largest = max(n.count for n in program.nodes[: k + 1])
        size = max(1, _MEMORY // (8 * 12 * len(self.x) * largest))
        for part in chosen.split(size) if len(chosen) else ():
            eye = torch.nn.functional.one_hot(part, node.count).double()
            both = torch.cat([eye, -eye])[None]
            level, out = self.substituted(k, both, torch.zeros(1, 2 * len(part)).double())
            top = level + self.region.widest(out) * _ROUNDED
            high[:, part] = torch.minimum(high[:, part], top[:, : len(part)])
            low[:, part] = torch.maximum(low[:, part], -top[:, len(part) :])
        self.intervals[k] = low.view(-1, *node.shape), high.view(-1, *node.shape)

    def _within(self, k: int, least: Tensor, most: Tensor) -> None:
        """Another interval of a node, where it is one."""
        known = torch.isfinite(least) & torch.isfinite(most)
        low, high = self.intervals[k]
        self.intervals[k] = (
            torch.where(known, torch.maximum(low, least), low),
            torch.where(known, torch.minimum(high, most), high),
        )

    def _width(self, k: int) -> Tensor | None:
        """How far the entries of an affine node move, (n, count); None: too large for it."""
        rows = self.entry.first_rows(k)
        if rows is not None:
            return self.region.widest(rows[None].expand(len(self.x), -1, -1))
        norms = self.entry.first_norms(k) if isinstance(self.region, Ball) else None
        return None if norms is None else self.region.widest(norms[None, :, None])

    def take(self, index: Tensor) -> Run:
        """The same of some of the samples, perhaps several times; what they share is copied."""
        ball = self.region
        assert isinstance(ball, Ball)
        part = Run(self.entry, self.x[index], Ball(ball.radius[index]))
        part.values = [value[index] for value in self.values]
        part.intervals = [(low[index], high[index]) for low, high in self.intervals]
        part.sizes = [size[index] for size in self.sizes]
        part.moved = [far[index] for far in self.moved]
        part.lines = {k: _picked(lines, index) for k, lines in self.lines.items()}
        return part

    def after(self, k: int) -> None:
        """The interval of a unit, from the sharper one of what goes into it."""
        node = self.program.nodes[k]
        assert isinstance(node.operation, Unit)
        source, (low, high) = node.sources[0], self.intervals[k]
        least, most = node.operation.range(*self.intervals[source])
        self.intervals[k] = torch.maximum(low, least), torch.minimum(high, most)

    def substituted(self, k: int, rows: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bound of rows @ node k + level as level + rows @ (displacement - middle).

        ``rows`` (n or 1, m, count); those that do not depend on the sample stay one for all.
        """
        return self.cut(k, rows, level, set())[:2]

    def cut(
        self, k: int, rows: Tensor, level: Tensor, stops: set[int]
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """The same as a bound in the displacement and in the nodes of ``stops``: rows on them."""
        program, nodes = self.program, self.program.nodes
        pending = {k: rows.reshape(*rows.shape[:2], *nodes[k].shape)}
        error, out = level.abs(), None
        stopped: dict[int, Tensor] = {}
        for j in range(k, 0, -1):
            at = pending.pop(j, None)
            if at is None:
                continue
            if j in stops:
                stopped[j] = at
                continue
            node = nodes[j]
            # What rounding is relative to: |at| times the sizes, by Cauchy and Schwarz.
            norm = torch.linalg.vector_norm(_flat(at, 2), dim=2)
            error = error + norm * _flat(self.sizes[j], 1).norm(dim=1, keepdim=True)
            dense = self.entry.dense_rows(j) if program.straight[j] else None
            if dense is not None:
                level, found = level + _dot(at, self.values[j]), _flat(at, 2) @ dense
                out = found if out is None else out + found
                continue
            if isinstance(node.operation, Unit):
                up, above, down, below = self.lines[j]
                positive, wide = at.clamp_min(0.0), above - below
                level = level + _dot(at, below) + _dot(positive, wide)
                levels = _flat(torch.maximum(above.abs(), below.abs()), 1)
                error = error + norm * levels.norm(dim=1, keepdim=True)
                parts = ((at * down.unsqueeze(1)).addcmul_(positive, (up - down).unsqueeze(1)),)
            else:
                assert isinstance(node.operation, Affine)
                offset = program.offsets[j]
                if offset is not None:
                    level = level + _dot(at, offset.expand(1, *node.shape))
                lead = at.shape[:2]
                backs = node.operation.back(at.flatten(0, 1))
                parts = tuple(b.reshape(*lead, *b.shape[1:]) for b in backs)
            for source, part in zip(node.sources, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        last = pending.get(0)
        if last is not None:
            level = level + _dot(last, self.x)
            error = error + _dot(last.abs(), self.sizes[0])
            found = self.entry.in_coordinates(last)
            out = found if out is None else out + found
        if out is None:
            out = torch.zeros(1, rows.shape[1], self.entry.dim, dtype=torch.float64)
        return level + program.slack * error, out.expand(len(self.x), -1, -1), stopped


def _picked(lines: Lines, index: Tensor) -> Lines:
    up, above, down, below = (part[index] for part in lines)
    return up, above, down, below


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    """Rows (n or 1, m, ...) times values (n or 1, ...), (n, m)."""
    if len(rows) == 1:
        return (_flat(rows[0], 1) @ _flat(values, 1).T).T
    return (_flat(rows, 2) @ _flat(values, 1).unsqueeze(2))[..., 0]


def _flat(x: Tensor, lead: int) -> Tensor:
    """All axes but the first ones as one, of numbers as well."""
    return x.reshape(*x.shape[:lead], math.prod(x.shape[lead:]))
