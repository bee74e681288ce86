"""Linear bounds of networks of any known layers, by backward substitution from node to node."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko.exceptions import UnsupportedError
from drojko.inner.networks.layers.chain import perceptron
from drojko.inner.networks.layers.constants import constants
from drojko.inner.networks.layers.entry import Entry
from drojko.inner.networks.layers.head import FirstUnits, TwoLayers
from drojko.inner.networks.layers.operations import Affine, Unit
from drojko.inner.networks.layers.program import Program
from drojko.inner.networks.layers.rates import common_rates
from drojko.inner.networks.layers.run import Run, box
from drojko.inner.networks.layers.seen import Seen
from drojko.inner.networks.layers.tracing import traced
from drojko.inner.networks.linear import Ball, Box, Head, LinearBound
from drojko.inner.networks.lipschitz import lipschitz, of_margins
from drojko.inner.networks.network import Margins, Network
from drojko.inner.objective import Batch, Objective
from drojko.models import ModuleModel

__all__ = ["Layered"]

#: Rows whose Lipschitz constants are improved where layers compose to matrices, and how often.
_LEAD, _STEPS, _TOGETHER = 2, 6, 25


@dataclass(frozen=True, kw_only=True)
class Layered(Network):
    """Margins of a program's outputs as functions of a displacement; its layers are no matrices.

    Attributes
    ----------
    entry : Entry
        The program, and how displacements enter it.
    x : Tensor of shape (n, d)
        The samples, in float64.
    sample : Tensor of shape (n,)
        Which of those they are that it was read with, and what is known of these.
    """

    entry: Entry
    x: Tensor
    sample: Tensor
    seen: Seen

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
            sample=torch.arange(len(x)), seen=Seen(len(x)),
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
        x, sample = self.x[index], self.sample[index]
        return replace(self, x=x, sample=sample, margins=self.margins.take(index))

    def forward(self, d: Tensor) -> tuple[list[Tensor], Tensor]:
        """What goes into the units at displacements (n, r), and the outputs."""
        values = self.program.forward(self.x + self.entry.moved(d))
        nodes = self.program.nodes
        return [values[nodes[k].sources[0]] for k in self.program.units], values[-1]

    def gradient(self, d: Tensor, rows: Tensor) -> Tensor:
        """Gradient of ``rows @ outputs``, rows of shape (n, K)."""
        values = self.program.forward(self.x + self.entry.moved(d))
        return self.entry.in_coordinates(self.program.back(len(values) - 1, rows, values))

    @property
    def curved(self) -> int:
        """Of how many layers of units, from the first on, there are quadratic bounds."""
        if FirstUnits.of(self.entry) is None:
            return 0
        return 1 if TwoLayers.of(self.entry) is None else 2

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

    def constants(self, steps: int) -> Tensor:
        """Lipschitz constants of all margins of all samples, (n, m)."""
        entry, margins = self.entry, self.margins
        inside = {k: entry.first_norm(k) for k in self._borders}
        found = of_margins(
            margins, lambda rows: constants(entry.program, rows, inside, entry.in_coordinates)
        )
        dense = perceptron(entry, margins) if steps else None
        if dense is None:
            return found
        of = replace(margins, weight=dense.margins.weight)

        def tight(rows: Tensor) -> Tensor:
            together = common_rates(dense, rows, min(steps, _TOGETHER))
            return (
                lipschitz(dense, rows, min(steps, _STEPS), _LEAD) if together is None else together
            )

        return torch.minimum(found, of_margins(of, tight))

    def price(self, layers: int) -> tuple[float, float]:
        """Work of a region and of a try of its multipliers, in that of a try with 32 x 32."""
        first = FirstUnits.of(self.entry)
        assert first is not None
        width, side = first.weight.shape
        one = 2.0 + side * side * (width + side) / 2.0**21
        return 10.0, one if layers == 1 else 2.6 * one

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
        run, intervals = self._run(region)
        if anchors is not None:
            self._anchor(run, anchors)
        margins = self.margins
        level, rows = run.substituted(len(run.values) - 1, margins.rows, margins.levels)
        known = torch.isfinite(level) & torch.isfinite(rows).all(2)
        level, rows = level.where(known, torch.inf), rows.where(known.unsqueeze(2), 0.0)
        return LinearBound(level, rows, intervals)

    def headed(
        self, ball: Ball, place: Tensor, rows: Tensor, levels: Tensor, d: Tensor, layers: int
    ) -> Head:
        """`linear.headed`: of the samples ``place``, by lines that are tight near d."""
        found = TwoLayers.of(self.entry) if layers > 1 else FirstUnits.of(self.entry)
        assert found is not None
        run = self._run(ball)[0].take(place)
        self._anchor(run, self.take(place).forward(d)[0])
        return found.head(run, rows, levels)

    def _run(self, region: Ball | Box) -> tuple[Run, list[tuple[Tensor, Tensor]]]:
        """Lines of all nodes on a region, and the intervals of what goes into units."""
        nodes, run = self.program.nodes, Run(self.entry, self.x, region)
        intervals: list[tuple[Tensor, Tensor]] = []
        for k, node in enumerate(nodes):
            run.quick(k)
            if isinstance(node.operation, Unit):
                source = node.sources[0]
                self._sharpen(run, source, node.operation)
                low, high = run.intervals[source]
                run.lines[k] = node.operation.lines(low, high, 0.5 * (low + high))
                intervals.append((low, high))
                run.after(k)
        run.forms.clear()
        return run, intervals

    def _sharpen(self, run: Run, k: int, unit: Unit) -> None:
        """What goes into a unit, which other bounds on the same balls may have needed before."""
        if self.program.straight[k]:
            return run.sharpen(k, unit)
        known = self.seen.find(run.region, k, self.sample)
        if known is not None:
            run.intervals[k] = known
            return None
        run.sharpen(k, unit)
        return self.seen.keep(run.region, k, self.sample, *run.intervals[k])

    def _anchor(self, run: Run, anchors: list[Tensor]) -> None:
        """Lines that are tight near what goes into units."""
        for k, at in zip(self.program.units, anchors, strict=True):
            node = self.program.nodes[k]
            low, high = run.intervals[node.sources[0]]
            assert isinstance(node.operation, Unit)
            run.lines[k] = node.operation.lines(low, high, torch.clamp(at, low, high))

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
