"""Linear bounds of networks of any known layers, by backward substitution from node to node."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drojko.exceptions import UnsupportedError
from drojko.inner.networks.layers.constants import constants
from drojko.inner.networks.layers.operations import Affine, Unit, spectral_norm
from drojko.inner.networks.layers.program import Program
from drojko.inner.networks.layers.tracing import traced
from drojko.inner.networks.linear import Ball, Box, LinearBound
from drojko.inner.networks.network import Margins, Network
from drojko.inner.objective import Batch, Objective
from drojko.models import ModuleModel

__all__ = ["Layered"]

_MEMORY = 2**25
#: Numbers that the rows of a node may pass in a region; beyond, its interval is the quick one.
_WORK = 2_000_000
#: Entries of the rows of an affine node that are kept.
_KEPT = 4_000_000
_ROUNDED = 1.0 + 1e-12
Lines = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Layered(Network):
    """Margins of a program's outputs as functions of a displacement; its layers are no matrices.

    Attributes
    ----------
    program : Program
    x : Tensor of shape (n, d)
        The samples, in float64.
    lift : Tensor of shape (d, r), or None
        Displacement in x of one in coordinates; None: ``unit`` times it.
    unit : float
    """

    program: Program
    x: Tensor
    lift: Tensor | None
    unit: float
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    dense = False

    @staticmethod
    def read(objective: Objective, batch: Batch) -> Layered:
        """Of an objective on samples.

        Raises
        ------
        UnsupportedError
            Where no bounds are known of the model or of its loss.
        """
        model = objective.model
        y = batch.y.cpu() if not batch.y.is_floating_point() else batch.y.double().cpu()
        eye = torch.eye(model.n_outputs, dtype=torch.float64)
        margins = Margins.of(objective.loss, eye, torch.zeros(len(eye)).double(), y)
        if margins is None:
            raise UnsupportedError("the loss is not known to be convex in the outputs")
        if not isinstance(model, ModuleModel):
            raise UnsupportedError(f"no bounds are known of a {type(model).__name__}")
        x = batch.x.double().cpu()
        lift = objective.coordinates.lift
        lift = None if lift is None else lift.double().cpu()
        program = traced(model, x[:64])
        nothing = torch.zeros(len(x), 0, dtype=torch.float64)
        return Layered(
            weights=(), biases=(), acts=(), centre=nothing, size=nothing, margins=margins,
            program=program, x=x, lift=lift, unit=objective.coordinates.scale,
        )  # fmt: skip

    # -- what a network is asked for --------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        return self.x.shape[1] if self.lift is None else self.lift.shape[1]

    def take(self, index: Tensor) -> Layered:
        return replace(self, x=self.x[index], margins=self.margins.take(index))

    def forward(self, d: Tensor) -> tuple[list[Tensor], Tensor]:
        """What goes into the units at displacements (n, r), and the outputs."""
        values = self.program.forward(self._moved(d))
        nodes = self.program.nodes
        return [values[nodes[k].sources[0]] for k in self.program.units], values[-1]

    @property
    def slack(self) -> float:
        return self.program.slack

    def outputs_error(self) -> Tensor:
        return torch.zeros_like(self.margins.levels)

    def largest(self) -> Tensor:
        """What no margin exceeds anywhere, where layers with bounded values allow it; (n, m)."""
        low, high = self._everywhere()
        rows, levels = self.margins.rows, self.margins.levels
        ends = torch.where(rows > 0, high, low) * torch.where(rows == 0, 1.0, rows)
        ends = torch.where(rows == 0, 0.0, ends)
        size = ends.abs().sum(-1)
        return torch.where(torch.isinf(size), torch.inf, ends.sum(-1) + levels + self.slack * size)

    def constants(self) -> Tensor:
        """Lipschitz constants of all margins of all samples, (n, m)."""
        margins, weight = self.margins, self.margins.weight
        inside = {k: self._first_norm(k) for k in self._borders}

        def of(rows: Tensor) -> Tensor:
            return constants(self.program, rows, inside, self._in_coordinates)

        if margins.kind != "pairs":
            return of(weight).expand(len(margins), margins.levels.shape[1])
        i, j = torch.triu_indices(len(weight), len(weight), 1)
        table = torch.zeros(len(weight), len(weight), dtype=torch.float64)
        table[i, j] = of(weight[i] - weight[j])
        return (table + table.T)[margins.y]

    def blocks(self, memory: int) -> int:
        """How many regions at once keep within a memory."""
        largest = max(node.count for node in self.program.nodes)
        total = sum(node.count for node in self.program.nodes)
        units = max((self.program.nodes[k].count for k in self.program.units), default=1)
        rows = max(2, self.margins.levels.shape[1])
        one = 8 * (6 * rows * largest + 8 * total + 14 * 27 * units)
        return max(1, min(500, memory // one))

    # -- linear bounds ------------------------------------------------------------------------

    def relaxed(self, region: Ball | Box, anchors: list[Tensor] | None) -> LinearBound:
        """Linear upper bounds of all margins of each sample on its region."""
        nodes, run = self.program.nodes, _Run(self, region)
        intervals: list[tuple[Tensor, Tensor]] = []
        for k, node in enumerate(nodes):
            run.quick(k)
            if isinstance(node.operation, Unit):
                source = node.sources[0]
                run.sharpen(source)
                low, high = run.intervals[source]
                run.lines[k] = node.operation.lines(low, high, 0.5 * (low + high))
                intervals.append((low, high))
                run.after(k)
        if anchors is not None:
            for k, (low, high), at in zip(self.program.units, intervals, anchors, strict=True):
                operation = nodes[k].operation
                assert isinstance(operation, Unit)
                run.lines[k] = operation.lines(low, high, torch.clamp(at, low, high))
        margins = self.margins
        level, rows = run.substituted(len(nodes) - 1, margins.rows, margins.levels)
        return LinearBound(level, rows, intervals)

    # -- how displacements enter ------------------------------------------------------------------

    def _moved(self, d: Tensor) -> Tensor:
        return self.x + (self.unit * d if self.lift is None else d @ self.lift.T)

    def _in_coordinates(self, rows: Tensor) -> Tensor:
        """Rows (..., d) on x as rows (..., r) on displacements."""
        return rows * self.unit if self.lift is None else rows @ self.lift

    @property
    def _borders(self) -> list[int]:
        """Affine nodes of the input that others come from which are not affine; the last one."""
        straight, nodes = self.program.straight, self.program.nodes
        found = {k for j, n in enumerate(nodes) if not straight[j] for k in n.sources if straight[k]}
        found |= {
            k for n in nodes if n.whole is not None for k in n.whole.sources if straight[k]
        }
        return sorted(found | ({len(nodes) - 1} if straight[-1] else set()))

    def first_rows(self, k: int) -> Tensor | None:
        """An affine node as rows (count, r) on the displacement; None: too many numbers."""
        count = self.program.nodes[k].count
        if count * self.dim > _KEPT:
            return None
        if k not in self.kept:
            parts = []
            most = max(node.count for node in self.program.nodes[: k + 1])
            for part in torch.arange(count).split(max(1, _MEMORY // (64 * most))):
                unit = torch.nn.functional.one_hot(part, count).double()
                parts.append(self._in_coordinates(straight_back(self.program, k, unit)))
            self.kept[k] = torch.cat(parts)
        return self.kept[k]

    def _first_norm(self, k: int) -> float:
        """Lipschitz constant of an affine node in the displacement."""
        rows = self.first_rows(k)
        if rows is not None and min(rows.shape) <= 768:
            return spectral_norm(rows)
        entry = abs(self.unit) if self.lift is None else spectral_norm(self.lift)
        moved = [torch.tensor(entry, dtype=torch.float64)]
        for node in self.program.nodes[1 : k + 1]:
            if isinstance(node.operation, Affine) and all(j < len(moved) for j in node.sources):
                moved.append(node.operation.deviation(*(moved[j] for j in node.sources)))
            else:
                moved.append(torch.tensor(math.inf, dtype=torch.float64))
        return float(moved[k])

    def _everywhere(self) -> tuple[Tensor, Tensor]:
        """Bounds of the outputs at any input, (K,)."""
        known: list[tuple[Tensor, Tensor] | None] = [None]
        for node in self.program.nodes[1:]:
            parts = [known[k] for k in node.sources]
            operation = node.operation
            if isinstance(operation, Unit):
                part = parts[0]
                if part is None:
                    ends = [torch.full((1, *node.shape), v).double() for v in operation.values]
                    known.append((ends[0], ends[1]) if math.isfinite(sum(operation.values)) else None)
                else:
                    known.append(operation.range(*part))
            elif any(part is None for part in parts):
                known.append(None)
            else:
                assert isinstance(operation, Affine)
                known.append(_box(operation, [p for p in parts if p is not None], self.slack))
        last = known[-1]
        infinite = torch.full((self.margins.weight.shape[1],), torch.inf, dtype=torch.float64)
        return (-infinite, infinite) if last is None else (last[0][0], last[1][0])


def straight_back(program: Program, k: int, rows: Tensor) -> Tensor:
    """Rows (p, count) on an affine node as rows (p, d) on the input."""
    pending = {k: rows.reshape(len(rows), *program.nodes[k].shape)}
    for j in range(k, 0, -1):
        at = pending.pop(j, None)
        if at is None:
            continue
        operation = program.nodes[j].operation
        assert isinstance(operation, Affine)
        for source, part in zip(program.nodes[j].sources, operation.back(at), strict=True):
            pending[source] = pending[source] + part if source in pending else part
    return pending[0] if 0 in pending else rows.new_zeros(len(rows), *program.nodes[0].shape)


def _box(
    operation: Affine, parts: list[tuple[Tensor, Tensor]], slack: float
) -> tuple[Tensor, Tensor]:
    """Bounds of an affine map on boxes."""
    middle = operation.forward(*(0.5 * (low + high) for low, high in parts))
    half = operation.spread(*(0.5 * (high - low) for low, high in parts))
    size = operation.size(*(torch.maximum(low.abs(), high.abs()) for low, high in parts))
    half = half * _ROUNDED + slack * size
    return middle - half, middle + half


class _Run:
    """One evaluation of linear bounds: intervals, how far nodes move, and lines so far."""

    def __init__(self, network: Layered, region: Ball | Box) -> None:
        self.network, self.region, self.program = network, region, network.program
        middle = region.middle
        self.x = network.x if middle is None else network._moved(middle)
        self.values: list[Tensor] = []
        self.intervals: list[tuple[Tensor, Tensor]] = []
        self.sizes: list[Tensor] = []  # what the terms of each node add up to, at most
        self.moved: list[Tensor] = []  # how far each node moves, in norm, (n,)
        self.lines: dict[int, Lines] = {}

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
            low, high = _box(operation, parts, slack)
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
        self.intervals.append((torch.maximum(low, value - spread), torch.minimum(high, value + spread)))
        self.sizes.append(size)
        self.moved.append(far)

    def _deviation(self, k: int, operation: Affine, moved: list[Tensor]) -> Tensor:
        """How far an affine node moves; norms of operations are computed once."""
        kept = self.network.kept
        if ("norm", k) not in kept:
            ones = [torch.eye(len(moved))[j].double() for j in range(len(moved))]
            kept["norm", k] = [float(operation.deviation(*one)) for one in ones]
        norms = kept["norm", k]
        return sum((c * m for c, m in zip(norms, moved, strict=True)), torch.zeros_like(moved[0]))

    def _input(self) -> None:
        network, x = self.network, self.x
        unit = torch.eye(x.shape[1], dtype=torch.float64)
        rows = network._in_coordinates(unit)
        size = network.x.abs() + (x - network.x).abs()
        width = self.region.widest(rows[None]) * _ROUNDED + self.program.slack * size
        if isinstance(self.region, Ball):
            norm = spectral_norm(network.lift) if network.lift is not None else abs(network.unit)
            far = self.region.radius * norm
        else:
            far = width.norm(dim=1)
        self.values.append(x)
        self.intervals.append((x - width, x + width))
        self.sizes.append(size + width)
        self.moved.append(far * _ROUNDED)

    def sharpen(self, k: int) -> None:
        """Interval of a node by substitution down to the input, where that is affordable."""
        node, program = self.program.nodes[k], self.program
        low, high = self.intervals[k]
        if program.straight[k]:
            rows = self.network.first_rows(k)
            if rows is None:
                return
            shape = (len(self.x), *node.shape)
            width = self.region.widest(rows[None].expand(len(self.x), -1, -1)).reshape(shape)
            value = self.values[k]
            width = width * _ROUNDED + program.slack * self.sizes[k]
            self.intervals[k] = torch.maximum(low, value - width), torch.minimum(high, value + width)
            return
        if 2 * node.count * program.behind[k] > _WORK:
            return
        tops, leasts = [], []
        largest = max(n.count for n in program.nodes[: k + 1])
        size = max(1, _MEMORY // (8 * 12 * len(self.x) * largest))
        for part in torch.arange(node.count).split(size):
            unit = torch.nn.functional.one_hot(part, node.count).double()
            both = torch.cat([unit, -unit])[None]
            level, out = self.substituted(k, both, torch.zeros(1, 2 * len(part)).double())
            top = level + self.region.widest(out) * _ROUNDED
            tops.append(top[:, : len(part)])
            leasts.append(-top[:, len(part) :])
        top, least = (torch.cat(p, 1).view(-1, *node.shape) for p in (tops, leasts))
        self.intervals[k] = torch.maximum(low, least), torch.minimum(high, top)

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
        program, nodes = self.program, self.program.nodes
        pending = {k: rows.reshape(*rows.shape[:2], *nodes[k].shape)}
        error = level.abs()
        for j in range(k, 0, -1):
            at = pending.pop(j, None)
            if at is None:
                continue
            node = nodes[j]
            error = error + _dot(at.abs(), self.sizes[j])
            if isinstance(node.operation, Unit):
                up, above, down, below = self.lines[j]
                positive, negative = at.clamp_min(0.0), at.clamp_max(0.0)
                level = level + _dot(positive, above) + _dot(negative, below)
                error = error + _dot(at.abs(), torch.maximum(above.abs(), below.abs()))
                parts = (positive * up.unsqueeze(1) + negative * down.unsqueeze(1),)
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
        if last is None:
            shape = (len(self.x), rows.shape[1], self.network.dim)
            return level + program.slack * error, torch.zeros(shape, dtype=torch.float64)
        level = level + _dot(last, self.x)
        error = error + _dot(last.abs(), self.sizes[0])
        return level + program.slack * error, self.network._in_coordinates(last)


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    """Rows (n or 1, m, ...) times values (n or 1, ...), (n, m)."""
    return (rows.flatten(2) @ values.flatten(1).unsqueeze(2))[..., 0]
