"""Worst cases of linear multi-class models, among class probabilities, and a bound of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["best_class_move", "fixed_points", "radial_supremum"]

_ASCENTS, _NEWTONS = 6, 7
_ROUGH_NEWTONS = 1
_CELLS, _REFINED, _PARTS, _BLOCK = 128, 3, 16, 1024


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


def radial_supremum(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    r"""Upper bound of :math:`\sup_{t\ge 0}\, \log\sum_j e^{a_j + L_j t} - \lambda t^2`, shape (n,).

    If outputs move at most at the rates L_j >= 0 with the displacement t, this bounds the worst
    case of the cross-entropy with scores a_j = f_j - f_y (and L_y = 0).

    The log-sum-exp is convex in t, so on a cell it lies below its chord, and a chord minus
    lambda t^2 has its maximum in closed form: every cell gives a bound, the largest of them holds,
    and the cells that decide are divided once more. The error falls with the square of the width.

    Parameters
    ----------
    scores, rates : Tensor of shape (n, k)
    strength : float
        lambda > 0.

    Examples
    --------
    >>> zero = torch.zeros(1, 1, dtype=torch.float64)
    >>> round(float(radial_supremum(zero, zero + 2.0, 1.0)), 6)  # linear: L^2 / (4 lambda)
    1.0
    """
    blocks = zip(scores.split(_BLOCK), rates.split(_BLOCK), strict=True)
    return torch.cat([_block(a, rate, strength) for a, rate in blocks])


def _block(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    # Beyond t = max L / 2 lambda the derivative is negative.
    far = rates.amax(1) / (2.0 * strength)
    grid = torch.linspace(0.0, 1.0, _CELLS + 1, dtype=scores.dtype, device=scores.device)
    nodes = far[:, None] * grid
    bounds = _cells(nodes, _log_sum(scores, rates, nodes), strength)
    top, index = bounds.topk(_REFINED + 1, dim=1)
    rest = top[:, -1]
    parts = torch.linspace(0.0, 1.0, _PARTS + 1, dtype=scores.dtype, device=scores.device)
    for k in range(_REFINED):
        left = nodes.gather(1, index[:, k : k + 1])
        inner = left + (far[:, None] / _CELLS) * parts
        refined = _cells(inner, _log_sum(scores, rates, inner), strength).amax(1)
        rest = torch.maximum(rest, refined)
    # The sum of rounding errors is far below this relative slack.
    return rest + 1e-13 * (1.0 + rest.abs())


def _log_sum(scores: Tensor, rates: Tensor, nodes: Tensor) -> Tensor:
    return torch.logsumexp(scores[:, None, :] + rates[:, None, :] * nodes[:, :, None], dim=2)


def _cells(nodes: Tensor, values: Tensor, strength: float) -> Tensor:
    """Largest chord minus strength t^2 on each cell."""
    left, right = nodes[:, :-1], nodes[:, 1:]
    width = right - left
    slope = torch.where(
        width > 0, values.diff(dim=1) / width.clamp_min(1e-300), torch.zeros_like(width)
    )
    t = torch.minimum(torch.maximum(slope / (2.0 * strength), left), right)
    return values[:, :-1] + slope * (t - left) - strength * t.square()
