"""The largest loss that a model can cause at all: an upper bound without any search."""

from __future__ import annotations

import math

import numpy as np
import torch

from drojko.auditing.reading.models import CLIP
from drojko.auditing.reading.problem import Case
from drojko.losses import CallableLoss, Softmax

__all__ = ["largest_loss"]


def largest_loss(case: Case) -> float:
    r"""Mean over the rows of the largest loss of any answer, infinity where there is no limit.

    Probabilities are read between 1e-6 and 1, so that logits stay within :math:`\pm\log 10^6` and
    a convex loss is largest at the ends. The bound is loose: the penalty of its dual is 0.
    """
    if case.model.tabular is not None or isinstance(case.loss, CallableLoss):
        return math.inf
    if not case.model.probabilities or case.classes is None:
        return math.inf
    limit = -math.log(CLIP)
    if case.n_labels == 2:
        ends = torch.tensor([-limit, limit], dtype=torch.float64)
        values = torch.stack([case.loss.value(e.expand(len(case.y)), case.y) for e in ends])
        return float(case.w @ values.amax(0).double())
    if isinstance(case.loss, Softmax):
        # -log p_y + log(sum of the clipped probabilities), which is at most 1 + K * 1e-6.
        return limit + math.log1p(case.n_labels * CLIP)
    k = case.n_labels
    corners = -limit * (1.0 - np.eye(k))  # one answer certain, the others impossible
    values = [
        case.loss.value(torch.as_tensor(c).expand(len(case.y), k), case.y).double() for c in corners
    ]
    return float(case.w @ torch.stack(values).amax(0))
