"""Many starts a row: halved while they climb, and shared between rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import Ascent, joined, proximal_ascent
from drojko.inner.transport.search.polish import bundle
from drojko.inner.transport.search.starts import SHARES

__all__ = ["halve", "shared", "towards"]

#: Rows of one evaluation, which its work arrays keep in cache; points shared at most.
_STACKED, _POINTS = 4096, 1000
_TOL = 1e-6


def _stack(
    objective: Objective, batch: Batch, starts: Tensor, steps: int, tol: float, kinks: bool
) -> Ascent:
    """Ascents from starts of shape (s, n, r); fields of shape (s, n, ...)."""
    count, n = starts.shape[:2]
    many = batch.repeat(count)
    first = 1 if kinks else steps
    found = proximal_ascent(objective, many, starts.reshape(count * n, -1), first, tol=tol)
    if kinks:
        found = bundle(objective, many, found, steps)
    return Ascent(
        found.q.reshape(starts.shape),
        found.value.reshape(count, n),
        found.gradient.reshape(starts.shape),
    )


def _best(found: Ascent, keep: int) -> Ascent:
    """The best starts of each row, in order, fields of shape (keep, n, ...)."""
    value = torch.nan_to_num(found.value, nan=-torch.inf)
    index = value.topk(min(keep, len(value)), dim=0).indices
    rows = torch.arange(value.shape[1], device=value.device).expand_as(index)
    return Ascent(found.q[index, rows], found.value[index, rows], found.gradient[index, rows])


def halve(
    objective: Objective,
    batch: Batch,
    starts: Tensor,
    schedule: Sequence[tuple[int, int]],
    tol: float = _TOL,
    kinks: bool = False,
) -> Ascent:
    """The best of starts (s, n, r) after ``schedule``: (steps, how many starts go on) in turn.

    The steps are spectral ones, in single precision where the schedule has several rounds and that
    keeps enough digits: which start is best shows in a few of them. Bundles step where ``kinks``
    abound, at which spectral ones stall so far below the maximum that they say little of it.
    """
    light = None if kinks or len(schedule) == 1 else objective.single(batch)
    if light is not None:
        found = _halved(*light, starts.float(), schedule, tol, False)
        q = objective.coordinates.project(found.q.double())
        return Ascent(q, *objective.value_and_gradient(batch, q))
    return _halved(objective, batch, starts, schedule, tol, kinks)


def _halved(
    objective: Objective,
    batch: Batch,
    starts: Tensor,
    schedule: Sequence[tuple[int, int]],
    tol: float,
    kinks: bool,
) -> Ascent:
    """`halve` in the precision of the batch."""
    parts = []
    for rows in torch.arange(len(batch), device=starts.device).split(
        max(8, _STACKED // len(starts))
    ):
        part, at = batch.take(rows), starts[:, rows]
        found: Ascent | None = None
        for steps, keep in schedule:
            found = _best(_stack(objective, part, at, steps, tol, kinks), keep)
            at = found.q
        assert found is not None
        parts.append(Ascent(found.q[0], found.value[0], found.gradient[0]))
    return joined(parts)


def shared(
    objective: Objective,
    batch: Batch,
    best: Ascent,
    base: Tensor,
    generator: torch.Generator,
    counts: tuple[int, int, int, int],
) -> Tensor:
    r"""Starts that other rows have found, shape (up to 2 kept + between + towards, n, r).

    Of ``counts`` = (moves, kept, between, towards): the best points
    :math:`\arg\max_j \ell(f(z_j), y_i) - \lambda c(x_i, z_j)` over all rows j, which needs
    only the predictions at z_j; the best :math:`x_i + (z_j - x_j)` over a few rows, drawn by their
    gain over ``base`` of shape (n,); points between what a row has and what others have; and those
    on the way from the row to what others have.
    """
    moves, kept, between, onwards = counts
    n = len(batch)
    gain = torch.nan_to_num(best.value - base, nan=0.0, posinf=0.0).clamp_min(0.0)
    weights = (gain / gain.max().clamp_min(1e-300)).clamp_min(1e-12).cpu()
    pick = torch.multinomial(weights, min(moves, n), generator=generator).to(best.q.device)
    points = torch.arange(n, device=best.q.device)
    if n > _POINTS:
        points = torch.multinomial(weights, _POINTS, generator=generator).to(best.q.device)
    starts = [best.q[points][_nearest(objective, batch, points, best.q, kept)]]
    if n > 1:
        moved = batch.q0 + (best.q - batch.q0)[pick].unsqueeze(1)
        many = batch.repeat(len(pick))
        inside = objective.coordinates.project(moved.reshape(len(many), -1))
        value = objective.value(many, inside)
        value = torch.nan_to_num(value.reshape(len(pick), n), nan=-torch.inf)
        index = value.topk(min(kept, len(pick)), dim=0).indices
        starts.append(moved[index, torch.arange(n, device=index.device)])
    if between and n > 1:
        uniform = torch.rand((2, between, n), generator=generator, dtype=torch.float64)
        other, share = uniform.to(best.q.device)
        share = share.unsqueeze(2).to(best.q)
        starts.append(
            torch.lerp(best.q.expand(between, *best.q.shape), best.q[(other * n).long()], share)
        )
    if onwards and n > 1:
        starts.append(towards(batch.q0, best.q, onwards, generator))
    return torch.cat(starts)


def towards(q0: Tensor, found: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """On the way from rows (n, r) to some of the points found (m, r), or beyond, (count, n, r)."""
    uniform = torch.rand((2, count, len(q0)), generator=generator, dtype=torch.float64)
    other, share = uniform.to(q0.device)
    low, high = SHARES
    share = (low + (high - low) * share).unsqueeze(2).to(q0)
    return torch.lerp(q0.expand(count, *q0.shape), found[(other * len(found)).long()], share)


def _nearest(objective: Objective, batch: Batch, points: Tensor, q: Tensor, kept: int) -> Tensor:
    """Indices (k, n) into the points that serve each row best."""
    m = len(points)
    f = objective.model.linearise(objective.decode(batch.take(points), q[points]))[0].detach()
    labels, place = batch.y.unique(return_inverse=True)
    by_label = len(labels) * m <= len(batch) * m // 4
    if by_label:  # the losses of a label are those of all its rows
        losses = torch.stack([objective.loss.value(f, label.expand(m)) for label in labels])
    found = []
    for rows in torch.arange(len(batch), device=q.device).split(max(1, 2**20 // max(m, 1))):
        if by_label:
            score = losses[place[rows]]
        else:
            y = batch.y[rows].repeat_interleave(m)
            score = objective.loss.value(f.repeat(len(rows), *[1] * (f.ndim - 1)), y)
            score = score.reshape(len(rows), m)
        distance = torch.cdist(batch.q0[rows], q[points]).square()
        score = torch.nan_to_num(score - objective.strength * distance, nan=-torch.inf)
        found.append(score.topk(min(kept, m), dim=1).indices)
    return torch.cat(found).T
