"""Gradient ascent of every row with random restarts: the attack that others would run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drojko._random import spawn
from drojko.auditing.attacks.blocks import ascend
from drojko.auditing.attacks.learned import Learned, placed, put
from drojko.auditing.reading.problem import AuditProblem
from drojko.inner.objective import Batch
from drojko.inner.transport.adversary import Adversary, Moved

__all__ = ["attack"]

#: Restarts and steps of each; steps of all rows where restarts are for some of them.
RESTARTS, STEPS, STEPS_ALL = 4, 30, 12
#: Share of the gain that counts as finding more.
MORE = 3e-3


@torch.no_grad()
def attack(learned: Learned, sizes: list[float]) -> dict[float, tuple[float, float, float]]:
    """Ascents from the rows and from random starts at every penalty of the path.

    Layers of the source "ascent" go to the pool. Where there are many rows, restarts are run on a
    sample of them, and on all rows only if they find more there than the inner solver has.

    By size: the gain of the inner solver and of the ascents on the sampled rows, and what as many
    corrections again add to the former, as a share of it.
    """
    problem, pool, rows, few, w = (
        getattr(learned, name) for name in ("problem", "pool", "sample", "few", "w")
    )
    found: dict[float, tuple[float, float, float]] = {}
    base = pool.nominal[rows]
    bare = problem.adversary(learned.adversary.objective)
    start_all: list[Tensor] = []
    start_few: list[Tensor] = []
    order = sorted(sizes, key=lambda size: learned.penalties[size])
    for size in problem.progress.over(order, "ascent with restarts", 0.2):
        penalty = learned.penalties[size]
        at = bare.with_penalty(penalty)
        x, _, cost, risk = pool.best(problem.w, penalty, ("learned",))
        value = (risk - penalty * cost)[rows]
        # Root mean square move of the rows that move, in the units of the cost.
        length = math.sqrt(float(cost[cost > 0].mean())) if bool((cost > 0).any()) else 0.0
        best = _best(problem, at, few, length, start_few)
        start_few = [best.q]
        _, spent, reached = placed(problem, at, best)
        gained = reached - penalty * spent
        own, theirs = (float(w @ (v.double() - base)) for v in (value, gained))
        if learned.all_rows:
            put(problem, pool, at, best, "ascent")
        else:
            moved = ascend(at, learned.batch, start_all, STEPS_ALL)
            start_all = [moved.q]
            put(problem, pool, at, moved, "ascent")
            if theirs > own + MORE * abs(own) + 1e-12:
                put(problem, pool, at, _best(problem, at, learned.batch, length, []), "ascent")
        steps = max(1, 2 * learned.adversary.corrections)
        again = ascend(at, few, [at.objective.coordinates.encode(x[rows])], steps)
        _, spent, reached = placed(problem, at, again)
        more = float(w @ ((reached - penalty * spent).double() - value).clamp_min(0.0))
        more = more / max(own, 1e-300) if more > 1e-12 else 0.0
        if more > MORE and learned.all_rows:
            put(problem, pool, at, again, "doubled")
        found[size] = (own, theirs, more)
    return found


def _best(
    problem: AuditProblem, at: Adversary, batch: Batch, length: float, more: list[Tensor]
) -> Moved:
    """From the rows, random directions at distances up to twice the typical move, and ``more``."""
    gen, n = spawn(problem.generator), len(batch)
    starts = [batch.q0]
    for _ in range(RESTARTS):
        far = 2.0 * length * torch.rand((n, 1), generator=gen, dtype=torch.float64)
        x = batch.x + far * problem.directions(n, gen)
        starts.append(at.objective.coordinates.encode(x))
    best = ascend(at, batch, starts[:1], STEPS)
    for start in (*starts[1:], *more):
        best = best.better(ascend(at, batch, [start], STEPS))
    return best
