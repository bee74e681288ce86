"""Upper bounds of the inner problem, sample by sample, and what proves them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.reach import reachable
from drojko.inner.transport.ascent import Ascent
from drojko.inner.transport.local_bounds import local_upper_bound, strong_gap
from drojko.models import ACTIVATIONS, MLP, is_linear

__all__ = [
    "Structure",
    "is_exact",
    "is_ridge",
    "is_single",
    "lipschitz_bound",
    "structure",
    "upper_bound",
]


def is_single(objective: Objective) -> bool:
    """Whether the loss is a function of one linear combination of the features."""
    linear = is_linear(objective.model) and objective.model.n_outputs == 1
    return linear and objective.loss.scalar


def is_ridge(objective: Objective) -> bool:
    """Whether it is, and the worst case of that function is known."""
    return is_single(objective) and objective.loss.has_worst_case


def is_exact(objective: Objective) -> bool:
    """Whether the worst case is a formula, or a search on a line within bounds."""
    if not is_ridge(objective):
        return False
    lower, upper, loss = objective.coordinates.lower, objective.coordinates.upper, objective.loss
    if lower is None or upper is None:
        return True
    held = loss.growth == 0.0 or bool(torch.isfinite(upper - lower).all())
    return held and reachable(loss)


@dataclass(frozen=True)
class Structure:
    """What is proven about the loss as a function of the coordinates q.

    ``norms`` bounds how fast outputs move: a number for one output, a (K, K) matrix of
    Lipschitz constants of f_j - f_k otherwise; ``curvature`` is an upper bound L of the Hessian
    of the loss. ``inf`` where nothing is known.
    """

    norms: Tensor | None
    curvature: float


def structure(objective: Objective) -> Structure:
    """Bounds for linear models and perceptrons, in units of the coordinates.

    Lipschitz: product of spectral norms, differences of output rows in the last layer.
    Curvature, linear softmax: max_jk ||w_j - w_k||^2 / 4 (Popoviciu's inequality for the
    covariance of the rows under any class probabilities); one hidden layer adds the second
    derivative of the activation, weighted by the largest output differences.
    """
    model, loss = objective.model, objective.loss
    if not isinstance(model, MLP) or not loss.has_bounds:
        return Structure(None, math.inf)
    weights = [w.detach() for w in model.weights]
    first = objective.coordinates.pull(weights[0])
    slope = ACTIVATIONS[model.activation][1]
    inner = 1.0
    if len(weights) > 1:
        for w in [first, *weights[1:-1]]:
            inner *= _spectral(w) * slope
    rows = weights[-1] if len(weights) > 1 else first
    if model.n_outputs == 1:
        norms = rows.norm() * inner
        known_curvature, known_slope = loss.curvature, loss.lipschitz
        top = math.inf if known_curvature is None else known_curvature
        top = top * float(norms) ** 2 if float(norms) > 0 else 0.0
        pull = rows.abs().squeeze(0) * (math.inf if known_slope is None else known_slope)
    else:
        norms = torch.cdist(rows, rows) * inner
        still = float(norms.max()) == 0.0
        top = 0.0 if still else float(loss.input_curvature(norms.double().square()))
        # sup over y and p of |sum_k A_kj (p_k - 1[k = y])|
        pull = rows.max(0).values - rows.min(0).values
    curvature = _composed_curvature(model, first, top, pull) if len(weights) > 1 else top
    return Structure(norms, curvature)


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
        before.append(before[-1] * _spectral(w) * slope)
    total, upstream = top, pull
    for layer in range(len(weights) - 1, -1, -1):
        weighted = weights[layer] * (upstream * bend).sqrt().unsqueeze(1)
        total += _spectral(weighted) ** 2 * before[layer] ** 2
        upstream = (upstream * slope) @ weights[layer].abs()
    return total


def _spectral(matrix: Tensor) -> float:
    # Rounded outwards: a norm that is a little too small proves nothing.
    if matrix.numel() == 0:
        return 0.0
    slack = 1.0 + 8.0 * torch.finfo(matrix.dtype).eps * max(matrix.shape)
    return float(torch.linalg.matrix_norm(matrix, 2)) * slack


def lipschitz_bound(objective: Objective, batch: Batch, norms: Tensor) -> Tensor:
    """sup_q J(q) when outputs move by at most ``norms`` times the displacement.

    One output: the worst case of the loss in the output itself, a one-dimensional problem with
    an exact solution for most. Several: the loss's bound by the rates of all output differences.
    """
    loss, strength = objective.loss, objective.strength
    f = objective.model.linearise(batch.x)[0]
    if loss.scalar:
        return loss.rate_bound(f, batch.y, norms, strength)
    return loss.pairwise_upper_bound(f, batch.y, norms.square(), strength)


def upper_bound(
    objective: Objective, batch: Batch, found: Ascent, known: Structure | None = None
) -> tuple[Tensor, str]:
    r"""Per-sample upper bound of sup J and its proof: the tightest of those that apply.

    .. math:: J(q) + \sup_p \langle g, p - q\rangle - \tfrac m2 \|p - q\|^2,
              \qquad g = \nabla J(q), \quad m = 2\lambda - L > 0

    is the bound by strong concavity, with p in the box. The same with m = 2 lambda, as if the
    loss were linear, is the "local-estimate" where nothing is proven.

    Returns
    -------
    (bound, proof) : Tensor of shape (n,), str
        ``proof`` is "ridge-1d", "strong-concavity", "lipschitz" or "local-estimate".
    """
    if is_exact(objective) and objective.coordinates.lower is not None:
        return found.value, "ridge-1d"
    known = structure(objective) if known is None else known
    options: list[tuple[Tensor, str]] = []
    if known.norms is not None:
        bound = torch.maximum(lipschitz_bound(objective, batch, known.norms), found.value)
        ridge = is_ridge(objective)
        options.append((bound, "ridge-1d" if ridge else "lipschitz"))
        if ridge and objective.coordinates.lower is None:
            return options[0]
    modulus = 2.0 * objective.strength - known.curvature
    if modulus > 0:
        gap = strong_gap(objective, found, torch.full_like(found.value, modulus))
        options.append((found.value + gap, "strong-concavity"))
    elif (local := local_upper_bound(objective, batch, found)) is not None:
        proof = "strong-concavity" if bool(local.concave.all()) else "lipschitz"
        options.append((local.value, proof))
    options = [option for option in options if bool(torch.isfinite(option[0]).all())]
    if not options:
        gap = strong_gap(objective, found, torch.full_like(found.value, 2.0 * objective.strength))
        return found.value + gap, "local-estimate"
    # Each option is a bound sample by sample, so their minimum is one; it is named after the best.
    bound = torch.stack([option[0] for option in options]).amin(0)
    return bound, min(options, key=lambda option: float(option[0].mean()))[1]
