"""Whether the differentiable copy of a model is the model, wherever an audit may take a row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.auditing.reading.problem import AuditProblem

__all__ = ["faithful", "farthest", "moved_out"]

#: Rows that are moved in every way, points and numbers in all; random ways beside the columns' own.
_ROWS, _POINTS, _NUMBERS, _RANDOM = 2_000, 40_000, 4_000_000, 2


def faithful(problem: AuditProblem, radius: float) -> AuditProblem:
    """The problem, with its copy only if that answers as the model does on rows moved out, too."""
    points = moved_out(problem, radius).numpy()
    return replace(problem, model=problem.model.compare(points))


def farthest(problem: AuditProblem, sizes: list[tuple[float, Any]]) -> float:
    """The largest radius of the sets; of penalties, a few standard deviations of the rows."""
    radii = [own.radius for _, own in sizes if own.radius is not None]
    if radii or not problem.ambiguity.moves:
        return max(radii, default=0.0)
    return 3.0 * float((problem.w @ problem.cost.cost(problem.x, problem.w @ problem.x)).sqrt())


def moved_out(problem: AuditProblem, radius: float) -> Tensor:
    """Rows moved by the radius and as far as one row may go alone, shape (m, d).

    In both senses along the columns, the copy's gradient and random directions; and to the bounds,
    where there are any. Where nothing moves: the points of the audit themselves.
    """
    cost, x = problem.cost, problem.x
    if problem.model.tabular is problem.model.exact:
        return x[:0]
    if not problem.ambiguity.moves or not radius > 0 or not cost.mutable.any():
        return x if problem.sampled else x[:0]
    gen = torch.Generator().manual_seed(0)  # the audit's own draws do not depend on this
    columns = np.flatnonzero(cost.mutable)
    budget = min(_POINTS, _NUMBERS // x.shape[1]) // 4  # two distances in two senses
    each = len(columns) > budget // 8  # so many columns that each row takes one of them
    most = max(8, min(_ROWS, budget // (_RANDOM + 1 + (1 if each else len(columns)))))
    rows = torch.arange(len(x))
    if len(x) > most:
        rows = torch.randperm(len(x), generator=gen)[:most].sort().values
    x, y, root = x[rows], problem.y[rows], torch.as_tensor(cost.inverse_weights).sqrt()
    alone = radius / math.sqrt(float(problem.w[problem.w > 0].min()))
    f, backward = problem.tabular.linearise(x)
    gradient = backward(problem.loss.gradient(f, y)) * root.square()
    length = (gradient / root.where(root > 0, torch.ones_like(root))).norm(dim=1, keepdim=True)
    ways = [torch.nan_to_num(gradient / length.clamp_min(1e-300))]
    ways += [problem.directions(len(x), gen) for _ in range(_RANDOM)]
    if each:
        picked = torch.as_tensor(columns)[torch.randint(len(columns), (len(x),), generator=gen)]
        ways.append(torch.zeros_like(x).scatter_(1, picked[:, None], 1.0) * root)
    else:
        for j in columns:
            ways.append(torch.zeros_like(x))
            ways[-1][:, j] = root[j]
    far = [cost.project(x + s * r * way) for way in ways for r in (radius, alone) for s in (-1, 1)]
    for limit in (cost.lower, cost.upper):
        if limit is not None:
            ends = torch.as_tensor(np.where(cost.mutable & np.isfinite(limit), limit, np.nan))
            far.append(torch.where(torch.isnan(ends), x, ends))
    return torch.cat(far)
