"""The last steps of a search, where spectral ones stall: at kinks, and in narrow valleys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import Ascent, joined

__all__ = ["bundle", "free"]

#: Planes kept a row, pairwise steps of each model's dual, what a step shrinks and grows by.
_PLANES, _PAIRS, _SHRINK, _GROW = 8, 12, 0.8, 1.5
#: Numbers in the planes of one block of rows.
_BLOCK = 2**22


def free(objective: Objective, q: Tensor, gradient: Tensor) -> Tensor:
    """The gradient without what points out of the bounds at active ones, shape (n, r)."""
    lower, upper = objective.coordinates.lower, objective.coordinates.upper
    if lower is None or upper is None:
        return gradient
    out = ((q <= lower) & (gradient < 0)) | ((q >= upper) & (gradient > 0))
    return gradient.masked_fill(out, 0.0)


@dataclass(frozen=True)
class _Planes:
    """Tangent planes of the loss: slopes (n, k, r) at points (n, k, r), where it is (n, k)."""

    slope: Tensor
    point: Tensor
    loss: Tensor

    def added(self, slope: Tensor, point: Tensor, loss: Tensor, near: Tensor) -> _Planes:
        """One more; of too many the one touching farthest from ``near`` (n, r) goes."""
        parts = [
            torch.cat([old, new.unsqueeze(1)], 1)
            for old, new in ((self.slope, slope), (self.point, point), (self.loss, loss))
        ]
        n, count = parts[2].shape
        if count > _PLANES:
            far = (parts[1] - near.unsqueeze(1)).square().sum(2).argmax(1)
            keep = torch.ones_like(parts[2], dtype=torch.bool)
            keep[torch.arange(n, device=far.device), far] = False
            parts = [part[keep].reshape(n, count - 1, *part.shape[2:]) for part in parts]
        return _Planes(*parts)


@torch.no_grad()
def bundle(objective: Objective, batch: Batch, at: Ascent, steps: int) -> Ascent:
    r"""Proximal bundle steps of all rows at once, within the bounds; J never falls.

    .. math:: q \leftarrow \arg\max_p\; \min_k \{\ell(q) + e_k + g_k^\top(p - q)\}
              - \lambda\|p - q_0\|^2 - \tfrac{1}{2\tau}\|p - q\|^2

    over tangent planes of the loss at the last few trials, moved up by their errors
    :math:`e_k = |\ell(p_k) + g_k^\top(q - p_k) - \ell(q)|`, as the loss is not concave. A maximum
    on a kink lies between several slopes, and no step along one of them ends there. Lemarechal
    (1978), and Hare and Sagastizabal (2010) for functions that are not convex.
    """
    planes = _PLANES + 1
    parts = []
    size = max(16, _BLOCK // (planes * max(1, batch.q0.shape[1])))
    for rows in torch.arange(len(batch), device=batch.q0.device).split(size):
        parts.append(_bundle(objective, batch.take(rows), at.take(rows), steps))
    return joined(parts)


def _bundle(objective: Objective, batch: Batch, at: Ascent, steps: int) -> Ascent:
    strength, q0 = objective.strength, batch.q0
    q, value, gradient = at.q, at.value, at.gradient

    def losses(q: Tensor, value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        move = q - q0
        return gradient + 2.0 * strength * move, value + strength * move.square().sum(1)

    slope, loss = losses(q, value, gradient)
    planes = _Planes(slope.unsqueeze(1), q.unsqueeze(1), loss.unsqueeze(1))
    longest, bounded = 0.5 / strength, objective.coordinates.lower is not None
    length = torch.full_like(value, longest)
    for _ in range(steps):
        away = q.unsqueeze(1) - planes.point
        error = (planes.loss + (planes.slope * away).sum(2) - loss.unsqueeze(1)).abs()
        slopes = planes.slope - (2.0 * strength) * (q - q0).unsqueeze(1)
        mixed = _mixed(slopes, error, length)
        if bounded:  # again, without what would leave by an active bound
            inside = free(objective, q, mixed) == mixed
            mixed = _mixed(slopes * inside.unsqueeze(1), error, length)
        step = length.unsqueeze(1) * mixed
        trial = objective.coordinates.project(q + step)
        trial_value, trial_gradient = objective.value_and_gradient(batch, trial)
        usable = torch.isfinite(trial_value) & torch.isfinite(trial_gradient).all(1)
        better = (trial_value > value) & usable
        pick, known = better.unsqueeze(1), usable.unsqueeze(1)
        # What overflows tells nothing: the row's own plane is there twice instead.
        point = torch.where(known, trial, q)
        trial_gradient = torch.where(known, trial_gradient, gradient)
        trial_value = torch.where(usable, trial_value, value)
        new_slope, new_loss = losses(point, trial_value, trial_gradient)
        q, gradient = torch.where(pick, trial, q), torch.where(pick, trial_gradient, gradient)
        value, loss = torch.where(better, trial_value, value), torch.where(better, new_loss, loss)
        length = torch.where(better, (_GROW * length).clamp_max(longest), _SHRINK * length)
        planes = planes.added(new_slope, point, new_loss, q)
    return Ascent(q, value, gradient)


def _mixed(slopes: Tensor, error: Tensor, length: Tensor) -> Tensor:
    """The mixture (n, r) of slopes (n, k, r) that the model's maximum follows.

    Its weights minimise error + length/2 |mixture|^2 over the simplex, by steps between pairs.
    """
    n, count = error.shape
    rows = torch.arange(n, device=error.device)
    square = length[:, None, None] * (slopes @ slopes.transpose(1, 2))
    weights = torch.zeros_like(error)
    weights[rows, error.argmin(1)] = 1.0
    pulled = (square @ weights.unsqueeze(2)).squeeze(2)
    for _ in range(_PAIRS if count > 1 else 0):
        price = error + pulled
        to, off = price.argmin(1), price.masked_fill(weights <= 0, -torch.inf).argmax(1)
        gain = price[rows, off] - price[rows, to]
        bend = square[rows, to, to] + square[rows, off, off] - 2.0 * square[rows, to, off]
        amount = torch.where(bend > 0, gain / bend, torch.inf)
        amount = torch.minimum(amount, weights[rows, off])
        weights[rows, to] += amount
        weights[rows, off] -= amount
        pulled = pulled + amount.unsqueeze(1) * (square[rows, :, to] - square[rows, :, off])
    return (weights.unsqueeze(2) * slopes).sum(1)
