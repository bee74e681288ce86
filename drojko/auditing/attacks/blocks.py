"""Solves of many rows at one penalty: from given starts, in blocks, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drojko.exceptions import UnboundedRiskError
from drojko.inner.objective import Batch, Objective
from drojko.inner.transport import linear_classes
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.ascent import Ascent, proximal_ascent
from drojko.inner.transport.bounds import Structure

__all__ = ["best_start", "climb", "in_blocks", "join", "solve", "upper"]

#: Rows of one block: its work arrays stay in cache.
_BLOCK = 2_048


def cores() -> int:
    """Cores that this process may use, at most 8."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
    return max(1, min(8, count))


def in_blocks(function: Callable[[Tensor], Any], n: int) -> list[Any]:
    """``function`` of the row indices of each block, on threads: rows do not interact."""
    blocks = [torch.arange(a, min(a + _BLOCK, n)) for a in range(0, n, _BLOCK)]
    if len(blocks) == 1:
        return [function(blocks[0])]
    with ThreadPoolExecutor(min(cores(), len(blocks))) as pool:
        return list(pool.map(function, blocks))


def join(parts: list[Moved], batch: Batch) -> Moved:
    """One result for all rows."""
    if len(parts) == 1:
        return parts[0]
    at = Batch(*(torch.cat([getattr(p.at, k) for p in parts]) for k in ("x", "y", "q0")))
    found = Ascent(
        *(torch.cat([getattr(p.found, k) for p in parts]) for k in ("q", "value", "gradient"))
    )
    value, cost, risk = (
        torch.cat([getattr(p, k) for p in parts]) for k in ("value", "cost", "risk")
    )
    return Moved(batch, at, found, value, cost, risk)


def best_start(objective: Objective, batch: Batch, starts: Sequence[Tensor]) -> Tensor:
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
    return not special and not linear_classes.applies(adversary.objective)


@torch.no_grad()
def climb(
    adversary: Adversary,
    batch: Batch,
    starts: Sequence[Tensor],
    steps: int,
    screening: int = 0,
    tol: float = 1e-9,
    bare: bool = False,
) -> Moved:
    """Ascend from the best of the starts, or from each for a few steps before; all rows.

    ``bare``: by gradients alone, whatever formula the adversary knows.
    """
    objective = adversary.objective

    def block(rows: Tensor) -> Moved:
        part, own = batch.take(rows), [s[rows] for s in starts]
        if not (bare or plain(adversary)):
            return adversary.solve(part, own)
        if screening:
            found = proximal_ascent(objective, part, part.q0, screening)
            for start in own:
                found = found.better(proximal_ascent(objective, part, start, screening))
            q = found.q
        else:
            q = best_start(objective, part, own)
        return Moved.of(objective, part, part, proximal_ascent(objective, part, q, steps, tol=tol))

    return join(in_blocks(block, len(batch)), batch)


@torch.no_grad()
def solve(adversary: Adversary, batch: Batch, starts: Sequence[Tensor] = ()) -> Moved | None:
    """The adversary's own solve in blocks; None where the worst case is infinite."""

    def block(rows: Tensor) -> Moved:
        return adversary.solve(batch.take(rows), [s[rows] for s in starts])

    try:
        return join(in_blocks(block, len(batch)), batch)
    except UnboundedRiskError:
        return None


@torch.no_grad()
def upper(adversary: Adversary, moved: Moved, known: Structure) -> tuple[Tensor, str]:
    """Upper bounds of sup J per row with their weakest proof."""
    order = ("ridge-1d", "strong-concavity", "lipschitz", "local-estimate")

    def block(rows: Tensor) -> tuple[Tensor, str]:
        part = replace(
            moved,
            batch=moved.batch.take(rows),
            at=moved.at.take(rows),
            found=Ascent(moved.found.q[rows], moved.found.value[rows], moved.found.gradient[rows]),
            value=moved.value[rows],
            cost=moved.cost[rows],
            risk=moved.risk[rows],
        )
        return adversary.upper(part, known)

    parts = in_blocks(block, len(moved.batch))
    return torch.cat([p[0] for p in parts]), max((p[1] for p in parts), key=order.index)
