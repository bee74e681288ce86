"""Exact worst cases of linear multi-class models, in the space of class probabilities."""

from __future__ import annotations

from typing import Any

import torch

from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import Ascent
from drojko.models import is_linear

__all__ = ["applies", "solve_linear_classes"]


def applies(objective: Objective) -> bool:
    """Linear model, multi-class loss whose worst case is known, no bounds."""
    linear = is_linear(objective.model) and objective.model.n_outputs > 1
    return linear and objective.loss.has_worst_case and objective.coordinates.lower is None


def solve_linear_classes(objective: Objective, batch: Batch) -> Ascent:
    r"""Maximise :math:`\ell(f + R\delta, y) - \lambda\|\delta\|^2` over displacements delta.

    At a maximiser :math:`\delta = R^\top c / 2\lambda` with c = p - e_y, p the class
    probabilities there (for the hinge: a vertex), so only p is unknown, and the loss knows it.

    Returns
    -------
    Ascent
        Coordinates, values and gradients of shape (n, r), (n,) and (n, r).
    """
    f = objective.model.linearise(batch.x)[0]
    weights: Any = objective.model.first_layer()
    rows = objective.coordinates.pull(weights)
    gram = rows @ rows.T
    half = 0.5 / objective.strength
    p = objective.loss.worst_probabilities(f, batch.y, gram, half)
    own = torch.nn.functional.one_hot(batch.y, f.shape[1]).to(f.dtype)
    q = batch.q0 + half * (p - own) @ rows
    value, gradient = objective.value_and_gradient(batch, q)
    return Ascent(q, value, gradient)
