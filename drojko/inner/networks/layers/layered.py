"""Linear bounds of networks of any known layers, by backward substitution from node to node."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko.exceptions import UnsupportedError
from drojko.inner.networks.layers.constants import constants
from drojko.inner.networks.layers.entry import Entry
from drojko.inner.networks.layers.operations import Affine, Unit
from drojko.inner.networks.layers.program import Program
from drojko.inner.networks.layers.run import Run, box
from drojko.inner.networks.layers.tracing import traced
from drojko.inner.networks.linear import Ball, Box, LinearBound
from drojko.inner.networks.network import Margins, Network
from drojko.inner.objective import Batch, Objective
from drojko.models import ModuleModel

__all__ = ["Layered"]


@dataclass(frozen=True, kw_only=True)
class Layered(Network):
    """Margins of a program's outputs as functions of a displacement; its layers are no matrices.

    Attributes
    ----------
    entry : Entry
        The program, and how displacements enter it.
    x : Tensor of shape (n, d)
        The samples, in float64.
    """

    entry: Entry
    x: Tensor

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
            entry=Entry(program, lift, objective.coordinates.scale), x=x,
        )  # fmt: skip

    @property
    def program(self) -> Program:
        """Its layers."""
        return self.entry.program

    # -- what a network is asked for --------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        return self.entry.dim

    def take(self, index: Tensor) -> Layered:
        return replace(self, x=self.x[index], margins=self.margins.take(index))

    def forward(self, d: Tensor) -> tuple[list[Tensor], Tensor]:
        """What goes into the units at displacements (n, r), and the outputs."""
        values = self.program.forward(self.x + self.entry.moved(d))
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
        inside = {k: self.entry.first_norm(k) for k in self._borders}

        def of(rows: Tensor) -> Tensor:
            return constants(self.program, rows, inside, self.entry.in_coordinates)

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
        nodes, run = self.program.nodes, Run(self.entry, self.x, region)
        intervals: list[tuple[Tensor, Tensor]] = []
        for k, node in enumerate(nodes):
            run.quick(k)
            if isinstance(node.operation, Unit):
                source = node.sources[0]
                run.sharpen(source, node.operation)
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
        known = torch.isfinite(level) & torch.isfinite(rows).all(2)
        level, rows = level.where(known, torch.inf), rows.where(known.unsqueeze(2), 0.0)
        return LinearBound(level, rows, intervals)

    @property
    def _borders(self) -> list[int]:
        """Affine nodes of the input that others come from which are not affine; the last one."""
        straight, nodes = self.program.straight, self.program.nodes
        found = {
            k for j, n in enumerate(nodes) if not straight[j] for k in n.sources if straight[k]
        }
        found |= {k for n in nodes if n.whole is not None for k in n.whole.sources if straight[k]}
        return sorted(found | ({len(nodes) - 1} if straight[-1] else set()))

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
                    known.append(
                        (ends[0], ends[1]) if math.isfinite(sum(operation.values)) else None
                    )
                else:
                    known.append(operation.range(*part))
            elif any(part is None for part in parts):
                known.append(None)
            else:
                assert isinstance(operation, Affine)
                known.append(box(operation, [p for p in parts if p is not None], self.slack))
        last = known[-1]
        infinite = torch.full((self.margins.weight.shape[1],), torch.inf, dtype=torch.float64)
        return (-infinite, infinite) if last is None else (last[0][0], last[1][0])
