"""Solves of many rows at one penalty: from given starts, in blocks, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import torch
from joblib import cpu_count
from torch import Tensor

from drojko.exceptions import UnboundedRiskError
from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.ascent import joined, proximal_ascent
from drojko.inner.transport.bounds import Structure
from drojko.inner.transport.candidates import knows_classes

__all__ = ["ascend", "climb", "plain", "solve", "upper"]

#: Rows of one block (its work arrays stay in cache), and cores that are used at most.
_BLOCK, _CORES = 2_048, 8


def _in_blocks(function: Callable[[Tensor], Any], n: int) -> list[Any]:
    """``function`` of the row indices of each block, on threads: rows do not interact."""
    blocks = torch.arange(n).split(_BLOCK)
    if len(blocks) == 1:
        return [function(blocks[0])]
    with ThreadPoolExecutor(min(cpu_count(), _CORES, len(blocks))) as pool:
        return list(pool.map(function, blocks))


def _rows(record: Any, rows: Tensor) -> Any:
    """Some rows of all tensors of a record; None stays None."""
    if record is None or isinstance(record, Tensor):
        return None if record is None else record[rows]
    return type(record)(*(_rows(getattr(record, f.name), rows) for f in fields(record)))


def _best_start(objective: Objective, batch: Batch, starts: Sequence[Tensor]) -> Tensor:
    """Row by row the start of largest value, shape (n, r); NaN never wins."""
    best_q = batch.q0
    best = objective.risk(batch, best_q)
    for start in starts:
        q = objective.coordinates.project(start)
        value = objective.value(batch, q)
        wins = value > best
        best = torch.where(wins, value, best)
        best_q = torch.where(wins.unsqueeze(1), q, best_q)
    return best_q


def plain(adversary: Adversary) -> bool:
    """Whether a plain ascent is what the adversary's solve would do."""
    special = adversary.exact or adversary.discrete
    return not special and not knows_classes(adversary.objective)


@torch.no_grad()
def ascend(
    adversary: Adversary,
    batch: Batch,
    starts: Sequence[Tensor],
    steps: int,
    screening: int = 0,
    tol: float = 1e-9,
) -> Moved:
    """Ascend from the best of the starts, or from each for a few steps before; all rows.

    By gradients alone, whatever formula the adversary knows.
    """
    objective = adversary.objective

    def block(rows: Tensor) -> Moved:
        part, own = batch.take(rows), [s[rows] for s in starts]
        if screening:
            found = proximal_ascent(objective, part, part.q0, screening)
            for start in own:
                found = found.better(proximal_ascent(objective, part, start, screening))
            q = found.q
        else:
            q = _best_start(objective, part, own)
        return Moved.of(objective, part, part, proximal_ascent(objective, part, q, steps, tol=tol))

    return joined(_in_blocks(block, len(batch)))


@torch.no_grad()
def solve(adversary: Adversary, batch: Batch, starts: Sequence[Tensor] = ()) -> Moved | None:
    """The adversary's own solve in blocks; None where the worst case is infinite."""

    def block(rows: Tensor) -> Moved:
        return adversary.solve(batch.take(rows), [s[rows] for s in starts])

    try:
        return joined(_in_blocks(block, len(batch)))
    except UnboundedRiskError:
        return None


def climb(
    adversary: Adversary, batch: Batch, starts: Sequence[Tensor], steps: int, **how: Any
) -> Moved | None:
    """`ascend` where that is all there is to do, and `solve` elsewhere, from the starts alone."""
    adversary = adversary.with_effort("warm")
    if plain(adversary) and adversary.search is None:
        return ascend(adversary, batch, starts, steps, **how)
    return solve(adversary, batch, starts)


@torch.no_grad()
def upper(adversary: Adversary, moved: Moved, known: Structure) -> tuple[Tensor, str]:
    """Upper bounds of sup J per row with their weakest proof."""
    order = ("ridge-1d", "strong-concavity", "lipschitz", "local-estimate")
    parts = _in_blocks(
        lambda rows: adversary.upper(_rows(moved, rows), known),
        len(moved.batch),
    )
    return torch.cat([p[0] for p in parts]), max((p[1] for p in parts), key=order.index)
