"""Gradient ascent of every row with random restarts: the attack that others would run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from drojko._random import spawn
from drojko.auditing.attacks.blocks import climb
from drojko.auditing.attacks.learned import Learned, put
from drojko.auditing.attacks.noise import directions
from drojko.auditing.attacks.pool import Pool
from drojko.auditing.reading.problem import AuditProblem
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.candidates import Stay

__all__ = ["Attack", "attack"]

#: Restarts and steps of each; steps of all rows where restarts are for some of them.
RESTARTS, STEPS, STEPS_ALL = 4, 30, 12
#: Share of the gain that counts as finding more.
MORE = 3e-3


@dataclass(eq=False)
class Attack:
    """What ascents found beside the inner solver; shares of the gain on the sampled rows."""

    values: dict[float, tuple[float, float, float]] = field(default_factory=dict)
    doubled: dict[float, float] = field(default_factory=dict)


@torch.no_grad()
def attack(problem: AuditProblem, pool: Pool, learned: Learned, sizes: list[float]) -> Attack:
    """Ascents from the rows and from random starts at every penalty of the path.

    Layers of the source "ascent" go to the pool. Where there are many rows, restarts are run on a
    sample of them, and on all rows only if they find more there than the inner solver has.
    """
    found = Attack()
    order = sorted(sizes, key=lambda size: learned.penalties[size])
    rows, batch = learned.sample, learned.batch
    few = batch.take(rows)
    w = problem.w[rows] / problem.w[rows].sum()
    base = pool.risk[0][rows]
    bare = Adversary(
        learned.adversary.objective,
        (Stay(),),
        n_labels=problem.n_labels,
        label_cost=problem.label_cost,
    )
    start_all: list[Tensor] = []
    start_few: list[Tensor] = []
    for size in problem.progress.over(order, "ascent with restarts", 0.2):
        penalty = learned.penalties[size]
        at = bare.with_penalty(penalty)
        length = _length(pool, problem, penalty)
        starts = _restarts(problem, at, few, length)
        best = _best(at, few, [few.q0, *starts, *start_few])
        start_few = [best.q]
        known = _known(pool, problem, penalty)
        own = float(w @ (_value(pool, known, penalty)[rows] - base))
        theirs = float(w @ (best.value.double() - base))
        found.values[size] = (own, theirs, length)
        if learned.all_rows:
            put(pool, at, best, "ascent")
        else:
            moved = climb(at, batch, start_all, STEPS_ALL, bare=True)
            start_all = [moved.q]
            put(pool, at, moved, "ascent")
            if theirs > own + MORE * abs(own) + 1e-12:
                again = _restarts(problem, at, batch, length)
                put(pool, at, _best(at, batch, [batch.q0, *again]), "ascent")
        _double(problem, pool, learned, at, size, known, found)
    return found


def _double(
    problem: AuditProblem,
    pool: Pool,
    learned: Learned,
    at: Adversary,
    size: float,
    known: Tensor,
    found: Attack,
) -> None:
    """As many corrections again, from where the inner solver left the sampled rows."""
    rows = learned.sample
    w = problem.w[rows] / problem.w[rows].sum()
    few = learned.batch.take(rows)
    q = at.objective.coordinates.encode(pool.take(known)[0][rows])
    steps = max(1, 2 * learned.adversary.corrections)
    moved = climb(at, few, [q], steps, bare=True)
    own = _value(pool, known, at.objective.penalty)[rows]
    gain = float(w @ (own - pool.risk[0][rows]))
    more = float(w @ (moved.value.double() - own).clamp_min(0.0))
    found.doubled[size] = more / max(gain, 1e-300) if more > 1e-12 else 0.0
    if found.doubled[size] > MORE and learned.all_rows:
        put(pool, at, moved, "doubled")


def _known(pool: Pool, problem: AuditProblem, penalty: float) -> Tensor:
    return pool.at_penalty(problem.w, penalty, ("learned",)).low


def _value(pool: Pool, choice: Tensor, penalty: float) -> Tensor:
    _, _, cost, risk = pool.take(choice)
    return risk - penalty * cost


def _length(pool: Pool, problem: AuditProblem, penalty: float) -> float:
    """Root mean square move of the rows that move at a penalty, in the units of the cost."""
    cost = pool.take(_known(pool, problem, penalty))[2]
    moved = cost > 0
    return math.sqrt(float(cost[moved].mean())) if bool(moved.any()) else 0.0


def _restarts(problem: AuditProblem, at: Adversary, batch: object, length: float) -> list[Tensor]:
    """Random directions, distances uniform up to twice the typical move."""
    few = batch
    gen = spawn(problem.generator)
    coordinates = at.objective.coordinates
    starts = []
    x = few.x  # type: ignore[attr-defined]
    for _ in range(RESTARTS):
        far = 2.0 * length * torch.rand((len(x), 1), generator=gen, dtype=torch.float64)
        starts.append(coordinates.encode(x + far * directions(problem, len(x), gen)))
    return starts


def _best(at: Adversary, batch: object, starts: list[Tensor]) -> Moved:
    best: Moved | None = None
    for start in starts:
        moved = climb(replace(at, candidates=(Stay(),)), batch, [start], STEPS, bare=True)  # type: ignore
        best = moved if best is None else best.better(moved)
    if best is None:
        raise RuntimeError("an ascent has at least one start")
    return best
