"""Moves that know nothing of the model: isotropic noise of a given transport cost."""

from __future__ import annotations

import torch
from torch import Tensor

from drojko.auditing.reading.problem import AuditProblem

__all__ = ["directions", "noise_risk"]


def directions(problem: AuditProblem, n: int, generator: torch.Generator) -> Tensor:
    """Uniform directions of unit cost in the columns that move, shape (n, d)."""
    mutable = torch.as_tensor(problem.cost.mutable)
    root = torch.as_tensor(problem.cost.inverse_weights).sqrt()
    draw = torch.randn((n, int(mutable.sum())), generator=generator, dtype=torch.float64)
    draw = draw / draw.norm(dim=1, keepdim=True).clamp_min(1e-300)
    out = torch.zeros((n, len(mutable)), dtype=torch.float64)
    out[:, mutable] = draw * root[mutable]
    return out


def noise_risk(
    problem: AuditProblem, radius: float, repeats: int, generator: torch.Generator
) -> float:
    """Mean loss when every row moves by ``radius`` in a random direction, within the bounds."""
    if radius == 0.0:
        return float(problem.w @ problem.losses(problem.x, problem.y))
    total = 0.0
    for _ in range(repeats):
        moved = problem.cost.project(
            problem.x + radius * directions(problem, len(problem.x), generator)
        )
        total += float(problem.w @ problem.losses(moved, problem.y))
    return total / repeats
