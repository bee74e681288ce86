"""Worst cases of linear multi-class models, in the space of class probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["best_class_move", "fixed_points"]

_ASCENTS, _NEWTONS = 6, 7
_ROUGH_NEWTONS = 1


def fixed_points(
    loss: Any, f: Tensor, y: Tensor, gram: Tensor, half: float, rough: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """The two candidates for a worst case of the cross-entropy, as (p, J): from sample and vertex.

    p = softmax(f + W W' (p - e_y) / 2 lambda): the fixed-point iteration raises J at every step,
    because the loss is convex and the step maximises its linearisation minus the cost; Newton
    steps finish it. Where both starts lie in one basin, the second has J = -inf. ``rough``: fewer
    Newton steps.
    """
    newtons = _ROUGH_NEWTONS if rough else _NEWTONS
    own = torch.nn.functional.one_hot(y, f.shape[1]).to(f.dtype)
    stay, value = _fixed_point(torch.softmax(f, 1), f, own, gram, half, newtons)
    other, at_other = stay.clone(), torch.full_like(value, -torch.inf)
    diagonal = gram.diagonal()
    squares = diagonal + diagonal[:, None] - 2.0 * gram
    if half * float(squares.max()) < 4.0:  # 2 lambda > curvature: one basin
        return [(stay, value), (other, at_other)]
    # By Jensen no basin holds more than this bound: most samples have nowhere else to look.
    scores = f - f.gather(1, y[:, None]) + 0.5 * half * squares[y]
    rows = (torch.logsumexp(scores, 1) > value + 1e-12).nonzero()[:, 0]
    f_rows, own_rows = f[rows], own[rows]
    choice = best_class_move(loss, f_rows, y[rows], gram, half, away=True)
    vertex = torch.nn.functional.one_hot(choice, f.shape[1]).to(f.dtype)
    moved, at_moved = _fixed_point(vertex, f_rows, own_rows, gram, half, newtons)
    apart = (moved - stay[rows]).abs().amax(1) > 1e-6
    other[rows[apart]], at_other[rows[apart]] = moved[apart], at_moved[apart]
    return [(stay, value), (other, at_other)]


def best_class_move(
    loss: Any, f: Tensor, y: Tensor, gram: Tensor, half: float, away: bool = False
) -> Tensor:
    """The class j whose move (w_j - w_y) / 2 lambda attains most, y for none; ``away``: not y."""
    own = gram[y]
    diagonal = gram.diagonal()
    best, choice = loss.value(f, y), y
    if away:
        best = torch.full_like(best, -torch.inf)
    for j in range(f.shape[1]):
        square = diagonal[j] - 2.0 * own[:, j] + diagonal[y]
        value = loss.value(f + half * (gram[j] - own), y) - 0.5 * half * square
        better = (value > best) & ~(away & (y == j))
        best = torch.where(better, value, best)
        choice = torch.where(better, torch.full_like(choice, j), choice)
    return choice


def _value(p: Tensor, f: Tensor, own: Tensor, gram: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """J at the displacement of p, and the probabilities there."""
    c = p - own
    pulled = c @ gram
    moved = f + half * pulled
    value = torch.logsumexp(moved, 1) - (moved * own).sum(1) - 0.5 * half * (c * pulled).sum(1)
    return value, torch.softmax(moved, 1)


def _fixed_point(
    p: Tensor, f: Tensor, own: Tensor, gram: Tensor, half: float, newtons: int
) -> tuple[Tensor, Tensor]:
    """Solution of p = image(p) near a start, and J there; finished samples are left alone."""
    p = p.clone()
    value, image = _value(p, f, own, gram, half)
    active = torch.arange(len(p), device=p.device)
    for _ in range(_ASCENTS):
        active = active[(image - p)[active].abs().amax(1) > 1e-2]
        if len(active) == 0:
            break
        p[active] = image[active]
        value[active], image[active] = _value(p[active], f[active], own[active], gram, half)
    eye = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    active = torch.arange(len(p), device=p.device)
    for _ in range(newtons):
        active = active[(image - p)[active].abs().amax(1) > 1e-11]
        if len(active) == 0:
            break
        here, there = p[active], image[active]
        fixed = (f[active], own[active], gram, half)
        # d image / d p = half * (diag(image) - image image') gram
        row = (there @ gram).unsqueeze(1)
        slope = half * there.unsqueeze(2) * (gram - row)
        step, info = torch.linalg.solve_ex(eye - slope, there - here)
        trial = here + step
        trial_value, trial_image = _value(trial, *fixed)
        # Where Newton does not raise J, the fixed-point step does.
        enough = value[active] - 1e-13 * (1.0 + value[active].abs())  # rounding is no decrease
        good = (trial_value >= enough) & torch.isfinite(trial_value) & (info == 0)
        plain_value, plain_image = _value(there, *fixed)
        pick = good.unsqueeze(1)
        p[active] = torch.where(pick, trial, there)
        value[active] = torch.where(good, trial_value, plain_value)
        image[active] = torch.where(pick, trial_image, plain_image)
    return p, value
