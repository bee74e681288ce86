"""Upper bounds of the inner problem, sample by sample, and what proves them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.ascent import Ascent
from drojko.inner.objective import Batch, Objective
from drojko.losses import Softmax
from drojko.models import ACTIVATIONS, MLP

__all__ = ["Structure", "is_ridge", "structure", "upper_bound"]


def is_ridge(objective: Objective) -> bool:
    """Whether the loss is a known function of one linear combination of the features."""
    model = objective.model
    linear = isinstance(model, MLP) and len(model.weights) == 1 and model.n_outputs == 1
    return linear and objective.loss.scalar and type(objective.loss).__name__ != "CallableLoss"


@dataclass(frozen=True)
class Structure:
    """What is proven about the loss as a function of the coordinates q.

    ``norms`` bounds how fast outputs move: a number for one output, a (K, K) matrix of
    Lipschitz constants of f_j - f_k otherwise; ``curvature`` is an upper bound L of the Hessian
    of the loss. ``inf`` where nothing is known.
    """

    norms: Tensor | None
    curvature: float
    ridge: bool


def structure(objective: Objective) -> Structure:
    """Bounds for linear models and perceptrons, in units of the coordinates.

    Lipschitz: product of spectral norms, differences of output rows in the last layer.
    Curvature, linear softmax: max_jk ||w_j - w_k||^2 / 4 (Popoviciu's inequality for the
    covariance of the rows under any class probabilities); one hidden layer adds the second
    derivative of the activation, weighted by the largest output differences.
    """
    model, lift = objective.model, objective.coordinates.lift
    if not isinstance(model, MLP):
        return Structure(None, math.inf, False)
    weights = [w.detach() for w in model.weights]
    first = weights[0] * objective.coordinates.scale if lift is None else weights[0] @ lift
    slope = ACTIVATIONS[model.activation][1]
    inner = 1.0
    if len(weights) > 1:
        inner = float(torch.linalg.matrix_norm(first, 2)) * slope
        for w in weights[1:-1]:
            inner *= float(torch.linalg.matrix_norm(w, 2)) * slope
    rows = weights[-1] if len(weights) > 1 else first
    if model.n_outputs == 1:
        norms = rows.norm() * inner
        loss_curvature = objective.loss.curvature or math.inf
        top = loss_curvature * float(norms) ** 2
        slope_bound = objective.loss.lipschitz
        pull = rows.abs().squeeze(0) * (math.inf if slope_bound is None else slope_bound)
    else:
        norms = torch.cdist(rows, rows) * inner
        softmax = isinstance(objective.loss, Softmax)
        top = 0.25 * float(norms.max()) ** 2 if softmax else math.inf
        # sup over y and p of |sum_k A_kj (p_k - 1[k = y])|
        pull = rows.max(0).values - rows.min(0).values
    curvature = _composed_curvature(model, first, top, pull) if len(weights) > 1 else top
    return Structure(norms, curvature, is_ridge(objective))


def _composed_curvature(model: MLP, first: Tensor, top: float, pull: Tensor) -> float:
    # d2 of a composition: each layer's bend acts on the square of what comes before it, and is
    # weighed by a bound on the gradient of the loss in that layer's output.
    _, slope, (low, high) = ACTIVATIONS[model.activation]
    bend = max(high, -low)
    if not (math.isfinite(bend) and bool(torch.isfinite(pull).all())):
        return math.inf
    weights = [first, *[w.detach() for w in model.weights[1:-1]]]
    before = [1.0]
    for w in weights:
        before.append(before[-1] * float(torch.linalg.matrix_norm(w, 2)) * slope)
    total, upstream = top, pull
    for layer in range(len(weights) - 1, -1, -1):
        weighted = weights[layer] * (upstream * bend).sqrt().unsqueeze(1)
        total += float(torch.linalg.matrix_norm(weighted, 2)) ** 2 * before[layer] ** 2
        upstream = (upstream * slope) @ weights[layer].abs()
    return total


def lipschitz_bound(objective: Objective, batch: Batch, norms: Tensor) -> Tensor | None:
    """sup_q J(q) when outputs move by at most ``norms`` times the displacement.

    One output: the worst case of the loss in the output itself, a one-dimensional problem with
    an exact solution. Several: logsumexp_j(f_j - f_y + norms_jy^2 / 4 strength) for the
    cross-entropy, max_j likewise for the multi-class hinge.
    """
    loss, strength = objective.loss, objective.strength
    f = objective.model(batch.x).detach()
    if objective.model.n_outputs == 1:
        square = float(norms) ** 2
        kappa = strength / square if square > 0 else math.inf
        if type(loss).__name__ == "CallableLoss":
            return None
        if not kappa > loss.growth:
            return torch.full_like(f, torch.inf)
        return loss.robust_value(f, batch.y, kappa)
    if type(loss).__name__ == "CallableLoss":
        return None
    return loss.pairwise_upper_bound(f, batch.y, norms.square(), strength)


def upper_bound(
    objective: Objective, batch: Batch, found: Ascent, known: Structure | None = None
) -> tuple[Tensor, str]:
    """Per-sample upper bound of sup J and its proof: the tightest of those that apply."""
    known = structure(objective) if known is None else known
    if known.ridge and known.norms is not None:
        bound = lipschitz_bound(objective, batch, known.norms)
        if bound is not None:
            return torch.maximum(bound, found.value), "ridge-1d"
    modulus = 2.0 * objective.strength - known.curvature
    candidates: list[tuple[Tensor, str]] = []
    if modulus > 0:
        gap = _strong_gap(objective, found, modulus)
        candidates.append((found.value + gap, "strong-concavity"))
    if known.norms is not None:
        bound = lipschitz_bound(objective, batch, known.norms)
        if bound is not None and bool(torch.isfinite(bound).all()):
            candidates.append((torch.maximum(bound, found.value), "lipschitz"))
    if not candidates:
        residual = found.residual(objective.strength)
        return found.value + residual, "local-estimate"
    return min(candidates, key=lambda c: float(c[0].mean()))


def _strong_gap(objective: Objective, found: Ascent, modulus: float) -> Tensor:
    """sup over the box of <g, p - q> - modulus/2 |p - q|^2: the gap of a strongly concave J."""
    step = objective.coordinates.project(found.q + found.gradient / modulus) - found.q
    return (found.gradient * step).sum(1) - 0.5 * modulus * step.square().sum(1)
