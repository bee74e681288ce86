"""The largest loss that a model can cause at all: an upper bound without any search."""

from __future__ import annotations

import math

import numpy as np
import torch

from drojko.auditing.reading.models import CLIP
from drojko.auditing.reading.problem import AuditProblem
from drojko.losses import CallableLoss, Softmax

__all__ = ["largest_loss"]


def largest_loss(problem: AuditProblem) -> float:
    r"""Mean over the rows of the largest loss of any answer, infinity where there is no limit.

    Probabilities are read between 1e-6 and 1, so that logits stay within :math:`\pm\log 10^6` and
    a convex loss is largest at the ends. The bound is loose: the penalty of its dual is 0.
    """
    if problem.model.tabular is not None or isinstance(problem.loss, CallableLoss):
        return math.inf
    if not problem.model.probabilities or problem.classes is None:
        return math.inf
    limit = -math.log(CLIP)
    if problem.n_labels == 2:
        ends = torch.tensor([-limit, limit], dtype=torch.float64)
        values = torch.stack(
            [problem.loss.value(e.expand(len(problem.y)), problem.y) for e in ends]
        )
        return float(problem.w @ values.amax(0).double())
    if isinstance(problem.loss, Softmax):
        # -log p_y + log(sum of the clipped probabilities), which is at most 1 + K * 1e-6.
        return limit + math.log1p(problem.n_labels * CLIP)
    k = problem.n_labels
    corners = -limit * (1.0 - np.eye(k))  # one answer certain, the others impossible
    values = [
        problem.loss.value(torch.as_tensor(c).expand(len(problem.y), k), problem.y).double()
        for c in corners
    ]
    return float(problem.w @ torch.stack(values).amax(0))
