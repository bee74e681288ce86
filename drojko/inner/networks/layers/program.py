"""A network as a list of operations, each on what earlier ones gave."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from drojko.inner.networks.layers.operations import Affine, Unit

__all__ = ["Node", "Program", "Whole"]


@dataclass(frozen=True)
class Whole:
    """What several nodes do together: a monotone function of earlier ones.

    It moves by no more than they do, in norm.
    """

    sources: tuple[int, ...]
    map: Callable[..., Tensor]


@dataclass(frozen=True)
class Node:
    """An operation (None: the input) on earlier nodes; ``shape`` of one sample."""

    operation: Affine | Unit | None
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    whole: Whole | None = None

    @property
    def count(self) -> int:
        """How many numbers it is."""
        return math.prod(self.shape)


@dataclass
class Program:
    """Nodes in the order of their computation; the first is the input, the last the output."""

    nodes: list[Node] = field(default_factory=list)

    def add(
        self,
        operation: Affine | Unit | None,
        sources: tuple[int, ...],
        shape: tuple[int, ...],
        whole: Whole | None = None,
    ) -> int:
        """Append a node; its number."""
        self.nodes.append(Node(operation, sources, tuple(shape), whole))
        return len(self.nodes) - 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Values of all nodes at rows of the input."""
        values = [x]
        for node in self.nodes[1:]:
            assert node.operation is not None
            values.append(node.operation.forward(*(values[k] for k in node.sources)))
        return values

    def back(self, k: int, rows: Tensor, values: list[Tensor] | None = None) -> Tensor:
        """Gradients (p, d) in the input of ``rows`` (p, count) on node k, at values of all nodes.

        ``values`` may be left out where the node is affine in the input.
        """
        pending = {k: rows.reshape(len(rows), *self.nodes[k].shape)}
        for j in range(k, 0, -1):
            at = pending.pop(j, None)
            if at is None:
                continue
            operation, sources = self.nodes[j].operation, self.nodes[j].sources
            if isinstance(operation, Unit):
                assert values is not None
                parts: tuple[Tensor, ...] = (at * operation.derivative(values[sources[0]]),)
            else:
                assert operation is not None
                parts = operation.back(at)
            for source, part in zip(sources, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return pending[0] if 0 in pending else rows.new_zeros(len(rows), *self.nodes[0].shape)

    @cached_property
    def units(self) -> list[int]:
        """The nodes that are not affine."""
        return [k for k, node in enumerate(self.nodes) if isinstance(node.operation, Unit)]

    @cached_property
    def straight(self) -> list[bool]:
        """Which nodes are affine in the input."""
        known = [True]
        for node in self.nodes[1:]:
            known.append(isinstance(node.operation, Affine) and all(known[k] for k in node.sources))
        return known

    @cached_property
    def depth(self) -> list[int]:
        """How many layers of units lie between the input and each node, itself included."""
        known: list[int] = []
        for node in self.nodes:
            own = isinstance(node.operation, Unit)
            known.append(own + max((known[k] for k in node.sources), default=0))
        return known

    @cached_property
    def offsets(self) -> list[Tensor | None]:
        """Constants of the affine nodes, (1, *shape); None where there is none."""
        found: list[Tensor | None] = []
        for node in self.nodes:
            offset = None
            if isinstance(node.operation, Affine):
                zeros = (
                    torch.zeros(1, *self.nodes[k].shape, dtype=torch.float64) for k in node.sources
                )
                offset = node.operation.forward(*zeros)
            found.append(offset if offset is not None and bool(offset.any()) else None)
        return found

    @cached_property
    def behind(self) -> list[int]:
        """Numbers that a row passes on its way from each node to the input."""
        above: list[set[int]] = []
        for node in self.nodes:
            above.append(set().union(*(above[k] | {k} for k in node.sources)))
        return [sum(self.nodes[k].count for k in found) for found in above]

    @cached_property
    def slack(self) -> float:
        """Relative rounding error of sums through the whole program, generously."""
        widest = max(node.count for node in self.nodes)
        return 4.0 * torch.finfo(torch.float64).eps * (widest + 16) * (len(self.nodes) + 1)
