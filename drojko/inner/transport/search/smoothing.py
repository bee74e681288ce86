"""ReLU rounded off: what a climb passes on the way, and bundles stop at."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.models import MLP

__all__ = ["bend", "rounded"]


def bend(objective: Objective, batch: Batch, q: Tensor) -> float | None:
    """The unit of widths: half of the first layer's inputs at q (n, r) are smaller.

    None where the model is no ReLU perceptron, or a linear one.
    """
    model = objective.model
    if not (isinstance(model, MLP) and model.activation == "relu" and len(model.weights) > 1):
        return None
    inputs = objective.decode(batch, q) @ model.weights[0].detach().T + model.biases[0].detach()
    size = float(inputs[torch.isfinite(inputs)].abs().median())
    return size if 0.0 < size < torch.inf else None


def rounded(objective: Objective, width: float) -> Objective:
    r"""The same with :math:`w \log(1 + e^{a / w})` in the place of max(a, 0), w the width.

    By the weights alone: ReLU commute with factors, so inputs over w and outputs times w do it.
    """
    model = copy.deepcopy(objective.model)
    assert isinstance(model, MLP)
    model.activation = "softplus"
    with torch.no_grad():
        model.weights[0].div_(width)
        for bias in list(model.biases)[:-1]:
            bias.div_(width)
        model.weights[-1].mul_(width)
    return replace(objective, model=model)
