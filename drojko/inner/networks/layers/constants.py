r"""Lipschitz constants of a network of any known layers, everywhere.

Rows v on the outputs pass backwards: what is affine multiplies them exactly, and a unit with slopes
in [a, b] splits them into :math:`v(a + b)/2`, which goes on, and an error of norm at most
:math:`\|v\|(b - a)/2`, which only norms of operations follow. The product of all norms is the same
with everything in the error; the smaller one counts, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from drojko.inner.networks.layers.operations import Affine, Unit
from drojko.inner.networks.layers.program import Program

__all__ = ["constants"]


def constants(
    program: Program,
    rows: Tensor,
    inside: dict[int, float],
    in_coordinates: Callable[[Tensor], Tensor],
) -> Tensor:
    """Constants (p,) of rows (p, K) @ outputs in the displacement.

    ``inside``: those of affine nodes of the input that others come from; ``in_coordinates`` takes
    rows on the input to rows on displacements.
    """
    split, product = (_passed(program, rows, inside, in_coordinates, s) for s in (True, False))
    return torch.minimum(split, product).nan_to_num(nan=math.inf) * (1.0 + 1e-9)


def _passed(
    program: Program,
    rows: Tensor,
    inside: dict[int, float],
    in_coordinates: Callable[[Tensor], Tensor],
    split: bool,
) -> Tensor:
    nodes, last = program.nodes, len(program.nodes) - 1
    exact = {last: rows.reshape(len(rows), *nodes[last].shape)}
    errors = {last: torch.zeros(len(rows), dtype=torch.float64)}
    total = torch.zeros(len(rows), dtype=torch.float64)
    norms: dict[tuple[int, int], Tensor] = {}
    for k in range(last, -1, -1):
        node, row, error = nodes[k], exact.pop(k, None), errors.pop(k, None)
        if row is None and error is None:
            continue
        error = torch.zeros_like(total) if error is None else error
        if program.straight[k] and (k in inside or k == 0) and bool((error > 0).any()):
            total = total + torch.where(error > 0, error * inside.get(k, math.inf), 0.0)
            error = torch.zeros_like(error)
        if k == 0:
            if row is not None:
                total = total + in_coordinates(row).norm(dim=1)
            continue
        if node.whole is not None:
            size = error if row is None else error + row.reshape(len(row), -1).norm(dim=1)
            for source in node.whole.sources:
                errors[source] = errors.get(source, 0.0) + size
            continue
        if isinstance(node.operation, Unit):
            low, high = node.operation.slopes
            source, steepest = node.sources[0], node.operation.steepest
            error = error * steepest
            if row is not None:
                size = row.reshape(len(row), -1).norm(dim=1)
                error = error + size * (0.5 * (high - low) if split else steepest)
                if split:
                    _add(exact, source, row * (0.5 * (low + high)))
            errors[source] = errors.get(source, 0.0) + error
            continue
        assert isinstance(node.operation, Affine)
        if row is not None:
            for source, part in zip(node.sources, node.operation.back(row), strict=True):
                _add(exact, source, part)
        if bool((error > 0).any()):
            for j, source in enumerate(node.sources):
                one = torch.eye(len(node.sources), dtype=torch.float64)[j]
                if (k, j) not in norms:
                    norms[k, j] = node.operation.deviation(*one)
                errors[source] = errors.get(source, 0.0) + error * norms[k, j]
    return total


def _add(store: dict[int, Tensor], key: int, part: Tensor) -> None:
    store[key] = store[key] + part if key in store else part
