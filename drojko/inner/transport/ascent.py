"""Proximal corrections: per-sample ascent on the inner objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from drojko._validation import checked
from drojko.inner.objective import Batch, Objective

__all__ = ["Ascent", "Evidence", "joined", "picked", "proximal_ascent"]


@dataclass(frozen=True)
class Evidence:
    """What independent restarts say of what they miss: an estimate, no bound.

    ``missing`` (n,) is what J is estimated to lack, row by row: (R - 1)/R times the best of R
    rounds over the second best, the jackknife of a maximum; ``rounds`` (n,) is R.
    """

    missing: Tensor
    rounds: Tensor


@dataclass(frozen=True)
class Ascent:
    """Points q reached (n, r), their values J (n,), and the gradients there (n, r).

    ``evidence`` of a thorough search; None elsewhere.
    """

    q: Tensor
    value: Tensor
    gradient: Tensor
    evidence: Evidence | None = None

    def better(self, other: Ascent) -> Ascent:
        """Sample by sample the one of larger value."""
        return picked(other.value > self.value, other, self)

    def take(self, rows: Tensor) -> Ascent:
        """Of some rows, without evidence."""
        return Ascent(self.q[rows], self.value[rows], self.gradient[rows])

    def replaced(self, rows: Tensor, other: Ascent) -> Ascent:
        """With those of some rows (k,) in the place of theirs, without evidence."""
        return Ascent(
            self.q.index_copy(0, rows, other.q),
            self.value.index_copy(0, rows, other.value),
            self.gradient.index_copy(0, rows, other.gradient),
        )


def picked(wins: Tensor, first: Any, second: Any) -> Any:
    """Tensors, or all of a record of tensors: the first where it wins, shape (n,).

    None where either lacks what the other has.
    """
    if first is None or second is None:
        return None
    if isinstance(first, Tensor):
        return torch.where(wins.unsqueeze(1) if first.ndim > 1 else wins, first, second)
    names = (f.name for f in fields(first))
    parts = (picked(wins, getattr(first, name), getattr(second, name)) for name in names)
    return type(first)(*parts)


def joined(parts: Sequence[Any]) -> Any:
    """Tensors, or records of tensors, one below the other; None where any is."""
    first = parts[0]
    if len(parts) == 1 or any(part is None for part in parts):
        return first if len(parts) == 1 else None
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    names = (f.name for f in fields(first))
    return type(first)(*(joined([getattr(part, name) for part in parts]) for name in names))


@checked(start="n r any")
def proximal_ascent(
    objective: Objective,
    batch: Batch,
    start: Tensor,
    steps: int,
    *,
    tol: float = 0.0,
) -> Ascent:
    r"""Proximal steps :math:`q \leftarrow \arg\max_p \langle\nabla\ell(q), p\rangle
    - \lambda\|p - q_0\|^2 - \|p - q\|^2 / 2\tau`.

    Each is the step ``q + a grad J(q)`` with ``a = tau / (1 + 2 lambda tau)``. The first takes
    tau = infinity (the exact maximiser for a loss that is linear between the points); later ones
    take the spectral step of Barzilai and Borwein (1988), sample by sample. A step that lowers J
    is undone and shortened, so every value is attained and none decreases.

    Parameters
    ----------
    objective, batch : Objective, Batch
    start : Tensor of shape (n, r)
        First points; projected into the bounds, and replaced by q_0 where J is not finite.
    steps : int
    tol : float
        Samples that would gain less than ``tol * (1 + |J|)`` if the loss were linear around
        them are left alone; 0: none are.

    Returns
    -------
    Ascent
        Points ``q`` of shape (n, r), their ``value`` and ``gradient``.

    Examples
    --------
    >>> import numpy as np
    >>> from drojko.ambiguity import GroundCost
    >>> from drojko.inner import Coordinates, Objective, proximal_ascent
    >>> from drojko.losses import get_loss
    >>> from drojko.models import MLP
    >>> x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    >>> model = MLP(1, 1, hidden=())
    >>> with torch.no_grad():
    ...     _ = [p.fill_(float(p.ndim == 2)) for p in model.parameters()]
    >>> coordinates = Coordinates.build(GroundCost(np.ones(1)), x)
    >>> J = Objective(model, get_loss("squared", "regression"), coordinates, penalty=2.0)
    >>> batch = J.batch(x, y)                         # max of z^2 - 2 (z - 1)^2, at z = 2
    >>> proximal_ascent(J, batch, batch.q0, 20).q.round(decimals=6).tolist()
    [[2.0]]
    """
    q = objective.coordinates.project(start)
    value, grad = objective.value_and_gradient(batch, q)
    # A start where the loss overflows is worth nothing: fall back to the sample itself.
    bad = ~(torch.isfinite(value) & torch.isfinite(grad).all(1))
    if bad.any():
        q = torch.where(bad.unsqueeze(1), batch.q0, q)
        value, grad = objective.value_and_gradient(batch, q)
    length = torch.full_like(value, 0.5 / objective.strength)
    return _climb(objective, batch, Ascent(q, value, grad), length, range(steps), tol)


def _climb(
    objective: Objective, batch: Batch, at: Ascent, length: Tensor, steps: range, tol: float
) -> Ascent:
    """The steps of an ascent; samples that are done stay behind once they are many."""
    strength = objective.strength
    longest = 0.5 / strength
    q, value, grad = at.q, at.value, at.gradient
    for step in steps:
        if tol > 0.0 and step % 5 == 4:
            # With bounds the part of the gradient that points out of the box does not count.
            best = objective.coordinates.project(torch.add(q, grad, alpha=longest)) - q
            residual = (best * grad).sum(1) - strength * best.square().sum(1)
            open_ = residual > tol * (1.0 + value.abs())
            count = int(open_.sum())
            if count == 0:
                break
            if count < 0.7 * len(q):
                keep = open_.nonzero().squeeze(1)
                rest = Ascent(q, value, grad).take(keep)
                left = range(step, steps.stop)
                rest = _climb(objective, batch.take(keep), rest, length[keep], left, tol)
                q[keep], value[keep], grad[keep] = rest.q, rest.value, rest.gradient
                break
        trial = objective.coordinates.project(torch.addcmul(q, grad, length.unsqueeze(1)))
        trial_value, trial_grad = objective.value_and_gradient(batch, trial)
        better = (trial_value >= value) & (trial_value < torch.inf)  # False for NaN as well
        if step + 1 < steps.stop:
            spectral = _spectral(trial - q, trial_grad - grad, longest)
            length = torch.where(better, spectral, 0.25 * length)
        pick = better.unsqueeze(1)
        q = torch.where(pick, trial, q)
        grad = torch.where(pick, trial_grad, grad)
        value = torch.where(better, trial_value, value)
    return Ascent(q, value, grad)


def _spectral(move: Tensor, change: Tensor, longest: float) -> Tensor:
    """Step of Barzilai and Borwein from a move and the change of the gradient along it."""
    square = move.square().sum(1)
    bend = move.mul_(change).sum(1).neg_()
    bent = bend * longest > 1e-12 * square  # of a penalty without end it is zero
    length = torch.where(bent, square / bend, 4 * longest)
    return length.clamp_(1e-6 * longest, 16 * longest)
