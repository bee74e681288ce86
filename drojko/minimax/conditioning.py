"""Units in which a model is trained: one scalar for x, one for y, undone exactly afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drojko._random import spawn
from drojko.minimax.problem import Callback, RobustProblem
from drojko.models import MLP

__all__ = ["Conditioned"]

_BLOCK = 2048  # rows at once


@dataclass(frozen=True)
class Conditioned:
    r"""The problem in :math:`x' = (x - m)/s` and, in regression, :math:`y' = (y - m_y)/s_y`.

    Distances change by one scalar only, so the ambiguity set is the same set. With
    :math:`\ell(s_y f, s_y y) = c\,\ell'(f, y)` the whole objective is divided by c; the
    model in the units of the data is :math:`s_y f'((x - m)/s) + m_y`, folded into its first and
    last layers. Only models whose layers are known are conditioned.
    """

    problem: RobustProblem
    loss_unit: float = 1.0

    @property
    def penalty_unit(self) -> float:
        """Penalty of the conditioned problem over the penalty in the units of the data."""
        return self.problem.scale**2 / self.loss_unit

    @staticmethod
    def of(
        problem: RobustProblem, shift: bool, n_draws: int, generator: torch.Generator
    ) -> Conditioned:
        """Condition by the moments of some draws; ``shift``: the model has intercepts."""
        model = problem.model
        if not isinstance(model, MLP):
            return Conditioned(problem)
        x, y, w = problem.draw(min(n_draws, 2000), spawn(generator))
        centre, scale = _moments(problem, x, w, shift)
        target_centre, target_scale, unit = 0.0, 1.0, 1.0
        loss = problem.loss
        if loss.rescaled(1.0) is not None:
            middle, target_scale = _moments(problem, y[:, None], w, shift)
            target_centre = float(middle)
            loss, unit = loss.rescaled(target_scale) or (loss, 1.0)
        alphas = [a / unit for a in problem.decay()]
        last = len(model.weights) - 1
        alphas[last] *= target_scale**2
        alphas[0] /= scale**2
        if model.warm:
            _enter(model, centre, scale, target_centre, target_scale)
        lower, upper = problem.cost.lower, problem.cost.upper
        moved, categories = centre.double().cpu().numpy(), problem.cost.categories
        conditioned = replace(
            problem,
            loss=loss,
            cost=replace(
                problem.cost,
                lower=None if lower is None else (lower - moved) / scale,
                upper=None if upper is None else (upper - moved) / scale,
                categories=categories and categories.rescaled(moved, scale),
            ),
            radius=None if problem.radius is None else problem.radius / scale,
            penalty=None if problem.penalty is None else problem.penalty * scale**2 / unit,
            label_cost=problem.label_cost / scale**2,
            alphas=tuple(alphas),
            certified=problem.certified * target_scale / (scale * unit),
            centre=centre,
            scale=scale,
            target_centre=target_centre,
            target_scale=target_scale,
        )
        return Conditioned(conditioned, unit)

    def wrap(self, callback: Callback | None) -> Callback | None:
        """A callback that sees the model in the units of the data."""
        model = self.problem.model
        if callback is None or not isinstance(model, MLP):
            return callback

        def wrapped(iteration: int, info: dict[str, Any]) -> bool:
            before = [p.detach().clone() for p in model.parameters()]
            self.undo()
            try:
                return callback(iteration, info)
            finally:  # Ctrl-C may strike in there
                for parameter, value in zip(model.parameters(), before, strict=True):
                    parameter.data.copy_(value)

        return wrapped

    def undo(self) -> None:
        """Fold the units into the first and the last layer."""
        model, p = self.problem.model, self.problem
        if not isinstance(model, MLP) or p.centre is None:
            return
        weight, bias = model.weights[0].data, model.biases[0].data
        weight.div_(p.scale)
        bias.sub_(weight @ p.centre.to(weight))
        model.weights[-1].data.mul_(p.target_scale)
        model.biases[-1].data.mul_(p.target_scale).add_(p.target_centre)


def _moments(problem: RobustProblem, x: Tensor, w: Tensor, shift: bool) -> tuple[Tensor, float]:
    """Weighted mean (zero without ``shift``) and one root-mean-square spread."""
    blocks = list(zip(x.split(_BLOCK), w.double().split(_BLOCK), strict=True))
    zero = x.new_zeros(x.shape[1], dtype=torch.float64)
    mean = problem.total(sum((part @ rows.double() for rows, part in blocks), zero))
    squares = (part @ (rows.double() - mean).square().mean(1) for rows, part in blocks)
    square = float(problem.total(sum(squares, zero.new_zeros(()))))
    # Constant data spread by the rounding of their mean.
    spread = math.sqrt(square) if square > 1e-26 * float(mean.square().mean()) else 0.0
    scale = spread if math.isfinite(spread) and spread > 0 else 1.0
    return (mean if shift else torch.zeros_like(mean)).to(x.dtype), scale


def _enter(model: MLP, centre: Tensor, scale: float, middle: float, unit: float) -> None:
    """The inverse of `Conditioned.undo`, for parameters in the units of the data."""
    model.weights[-1].data.div_(unit)
    model.biases[-1].data.sub_(middle).div_(unit)
    weight, bias = model.weights[0].data, model.biases[0].data
    bias.add_(weight @ centre.to(weight))
    weight.mul_(scale)
