"""The largest loss that a model can cause at all: an upper bound without any search."""

from __future__ import annotations

import math

from drojko.auditing.reading.models import CLIP
from drojko.auditing.reading.problem import AuditProblem

__all__ = ["largest_loss"]


def largest_loss(problem: AuditProblem) -> float:
    r"""Mean over the rows of the largest loss of any answer, infinity where there is no limit.

    Probabilities are read between 1e-6 and 1, so that logits stay within :math:`\pm\log 10^6` and
    a convex loss is largest at the ends. The bound is loose: the penalty of its dual is 0.
    """
    if (
        problem.model.tabular is not None
        or not problem.model.probabilities
        or problem.classes is None
    ):
        return math.inf
    largest = problem.loss.largest(problem.y, problem.n_labels, -math.log(CLIP), CLIP)
    return float(problem.w @ largest.double())
