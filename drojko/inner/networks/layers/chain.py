"""Programs that are perceptrons: convolutions and pooling between units, composed to matrices."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from drojko.inner.networks.activations import Activation
from drojko.inner.networks.layers.entry import Entry
from drojko.inner.networks.layers.operations import Affine, Piece, Unit, flat
from drojko.inner.networks.layers.program import Program
from drojko.inner.networks.network import Margins, Network

__all__ = ["between", "composed", "perceptron"]

#: Units of a layer, and entries of a matrix, at most: a constant takes the cube of the former.
_WIDTH, _ENTRIES = 1024, 1_000_000


def perceptron(entry: Entry, margins: Margins) -> Network | None:
    """The program as hidden layers one after the other, at no sample; None: it is none, or large.

    The rows of ``margins`` are then those of its last hidden layer.
    """
    program = entry.program
    units = program.units
    ends = [0, *units, len(program.nodes) - 1]
    if not units or not all(between(program, a, b) for a, b in pairwise(ends)):
        return None
    pieces = [_single(program.nodes[k].operation) for k in units]
    counts = [entry.dim, *(program.nodes[k].count for k in units)]
    if max(counts[1:]) > _WIDTH or any(a * b > _ENTRIES for a, b in pairwise(counts)):
        return None
    first = entry.first_rows(program.nodes[units[0]].sources[0])
    if first is None:
        return None
    weights, acts = [first], list[Activation]()
    for k, piece in enumerate(pieces):
        if piece is None:
            return None
        acts.append(piece.act)
        weights[k] = piece.rate * weights[k]
        end = ends[k + 2]
        last = end == len(program.nodes) - 1
        step = composed(program, ends[k + 1], end if last else end - 1)[0]
        weights.append(piece.height * step)
    rows = weights.pop()
    nothing = torch.zeros(0, len(first), dtype=torch.float64)
    of = Margins(margins.loss, margins.kind, margins.weight @ rows, nothing, nothing, margins.y[:0])
    return Network(tuple(weights), (), tuple(acts), nothing, nothing, of)


def between(program: Program, start: int, end: int) -> bool:
    """Whether the nodes between two are a chain of affine ones."""
    for k in range(start + 1, end + 1):
        node = program.nodes[k]
        if node.sources != (k - 1,) or (k < end and not isinstance(node.operation, Affine)):
            return False
    return True


def _single(operation: object) -> Piece | None:
    """The only piece of a unit that is nothing else."""
    assert isinstance(operation, Unit)
    plain = len(operation.pieces) == 1 and operation.slope == 0.0
    return operation.pieces[0] if plain else None


def composed(program: Program, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Matrix (count of end, count of start) and offset of what leads from a node to a later one."""
    node = program.nodes[start]
    out = torch.eye(node.count, dtype=torch.float64).view(-1, *node.shape)
    origin = out.new_zeros(1, *node.shape)
    for k in range(start + 1, end + 1):
        operation = program.nodes[k].operation
        assert isinstance(operation, Affine)
        out, origin = operation.forward(out), operation.forward(origin)
    return flat(out - origin).T.contiguous(), origin.flatten()
