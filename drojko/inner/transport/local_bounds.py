r"""Upper bounds that look only where a maximiser can be.

A maximiser q* of J attains at least what was found, and the loss grows at most at a Lipschitz
rate, so q* lies in a ball around the sample. Inside a ball the slopes of a perceptron's units
vary little: interval arithmetic gives Lipschitz constants and curvatures far below the global
ones. Those shrink the ball, and so on: every round is a proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import Ascent
from drojko.models import ACTIVATIONS, MLP

__all__ = ["LocalBound", "local_upper_bound", "slope_range", "strong_gap"]

_ROUNDS = 6
_BLOCK = 2048  # rows at once, at most
_NUMBERS = 4_000_000  # in the matrices of a block of rows: one of the widths' sizes for each row


@dataclass(frozen=True)
class LocalBound:
    """Upper bounds of sup J per sample; ``concave`` marks those proven by strong concavity."""

    value: Tensor
    concave: Tensor


def local_upper_bound(objective: Objective, batch: Batch, found: Ascent) -> LocalBound | None:
    r"""Bounds of :math:`\sup_q J(q)` for a perceptron with at least one hidden layer.

    With Lipschitz constants :math:`L_{jy}` of f_j - f_y and an upper curvature C on the ball,

    .. math:: \sup J \le \sup_t\; \mathrm{logsumexp}_j(f_j - f_y + L_{jy} t) - \lambda t^2,
              \qquad \sup J \le J(q) + \|\nabla J(q)\|^2 / 2(2\lambda - C),

    the second where C < 2 lambda.

    Parameters
    ----------
    found : Ascent
        Values attained and gradients there.

    Returns
    -------
    LocalBound or None
        None where the model or the loss is not known well enough.

    Notes
    -----
    Interval bounds after Gowal et al. (2018, arXiv 1810.12715); the class scores are
    propagated as a centre and an error norm, so that differences of outputs stay sharp.
    """
    model, loss = objective.model, objective.loss
    if not isinstance(model, MLP) or len(model.weights) < 2 or not loss.smooth_within:
        return None
    network = _Network.of(objective)
    parts = []
    for rows in torch.arange(len(batch), device=batch.x.device).split(network.block):
        parts.append(_bound(objective, network, batch.take(rows), found.take(rows)))
    return LocalBound(torch.cat([p.value for p in parts]), torch.cat([p.concave for p in parts]))


def strong_gap(objective: Objective, found: Ascent, modulus: Tensor) -> Tensor:
    """Largest <g, p - q> - modulus/2 |p - q|^2 over the box: the gap of a strongly concave J."""
    m = modulus.unsqueeze(1)
    step = objective.coordinates.project(found.q + found.gradient / m) - found.q
    return (found.gradient * step).sum(1) - 0.5 * modulus * step.square().sum(1)


def _bound(objective: Objective, network: _Network, batch: Batch, found: Ascent) -> LocalBound:
    strength = objective.strength
    scores = _Scores.of(objective, batch)
    centre = network.forward(batch.x)
    radius = torch.full_like(found.value, torch.inf)
    for _ in range(_ROUNDS):
        ball = network.ball(centre, radius)
        norms = network.lipschitz(ball, scores.rows)
        # The maximiser attains found.value, so strength t^2 <= loss bound at t - found.value.
        reach = scores.reach(norms, radius, found.value, strength)
        before, radius = radius, torch.minimum(radius, reach)
        if bool((radius > 0.98 * before).all()):
            break
    ball = network.ball(centre, radius)
    norms = network.lipschitz(ball, scores.rows)
    lipschitz = objective.loss.rate_bound(scores.outputs, batch.y, norms, strength)
    curvature = network.curvature(ball, *scores.slopes(norms, radius))
    modulus = 2.0 * strength - curvature
    # Concavity is known on the ball only: the segment from q to a maximiser must lie in it.
    near = (found.q - batch.q0).square().sum(1) <= (radius * (1 + 1e-9)).square()
    usable = (modulus > 0) & torch.isfinite(radius) & near
    gap = strong_gap(objective, found, torch.where(usable, modulus, 1.0))
    concave = torch.where(usable, found.value + gap, torch.inf)
    value = torch.maximum(torch.minimum(lipschitz, concave), found.value)
    return LocalBound(value, concave <= lipschitz)


class _Layer(NamedTuple):
    """Per sample: intervals of the units' slopes, their largest size, and bounds of their bends."""

    middle: Tensor
    half: Tensor
    top: Tensor
    bend: Tensor


@dataclass(frozen=True)
class _Network:
    """Hidden layers of a perceptron, the first one in the coordinates of the cost."""

    weights: list[Tensor]
    raw: list[Tensor]
    biases: list[Tensor]
    norms: list[float]
    activation: str

    @staticmethod
    def of(objective: Objective) -> _Network:
        model: Any = objective.model
        raw = [w.detach() for w in list(model.weights)[:-1]]
        weights = [objective.coordinates.pull(raw[0]), *raw[1:]]
        # Rounded outwards: a norm that is a little too small proves nothing.
        norms = [float(torch.linalg.matrix_norm(w, 2)) * (1 + 1e-9) for w in weights]
        biases = [b.detach() for b in list(model.biases)[:-1]]
        return _Network(weights, raw, biases, norms, model.activation)

    @property
    def block(self) -> int:
        """Rows at once, as each takes a Jacobian of the widest layer."""
        jacobian = max(len(w) for w in self.weights) * self.weights[0].shape[1]
        return max(1, min(_BLOCK, _NUMBERS // jacobian))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pre-activations at the samples."""
        act, out, h = ACTIVATIONS[self.activation][0], [], x
        for w, b in zip(self.raw, self.biases, strict=True):
            out.append(torch.addmm(b, h, w.T))
            h = act(out[-1])[0]
        return out

    def ball(self, centre: list[Tensor], radius: Tensor) -> list[_Layer]:
        """Intervals over the ball of a radius per sample around it."""
        layers = []
        spread = radius.unsqueeze(1)  # l2 bound on the layer's input
        box: Tensor | None = None  # elementwise bound on it
        for a, w, norm in zip(centre, self.weights, self.norms, strict=True):
            width = w.norm(dim=1) * spread
            if box is not None:
                width = torch.minimum(width, box @ w.abs().T)
            low, high, bend = slope_range(self.activation, a - width, a + width)
            largest = torch.maximum(high.abs(), low.abs())
            layers.append(_Layer(0.5 * (low + high), 0.5 * (high - low), largest, bend))
            box = largest * width
            spread = largest.amax(1, keepdim=True) * norm * spread
        return layers

    def lipschitz(self, ball: list[_Layer], rows: Tensor) -> Tensor:
        """Lipschitz constants on the ball of ``rows @ last hidden layer``, (n, k) or (n, 1)."""
        c = rows
        e = torch.zeros_like(c[..., 0])
        for at, w, norm in zip(ball[::-1], self.weights[::-1], self.norms[::-1], strict=True):
            e = (c * at.half.unsqueeze(1)).norm(dim=2) + e * at.top.amax(1, keepdim=True)
            c = (c * at.middle.unsqueeze(1)) @ w
            e = e * norm
        return c.norm(dim=2) + e

    def curvature(self, ball: list[_Layer], top: Tensor, pull: Tensor) -> Tensor:
        """Upper curvature of the loss on the ball, shape (n,).

        ``top`` bounds the part from the loss's own curvature, ``pull`` of shape (n, width) the
        gradient of the loss in the last hidden layer, entry by entry.
        """
        total = top
        upstream = [pull]
        for layer in range(len(self.weights) - 1, 0, -1):
            below = (upstream[0] * ball[layer].top) @ self.weights[layer].abs()
            upstream.insert(0, below)
        product = self.weights[0].expand(len(top), -1, -1)
        error = torch.zeros_like(top)
        norm = torch.full_like(top, self.norms[0])
        for layer, w in enumerate(self.weights):
            if layer:
                below = ball[layer - 1]
                largest = below.top.amax(1)
                error = self.norms[layer] * (below.half.amax(1) * norm + largest * error)
                product = w @ (below.middle.unsqueeze(2) * product)
                norm = largest * self.norms[layer] * norm
            weight = (upstream[layer] * ball[layer].bend).clamp_min(0.0)
            weighted = weight.sqrt().unsqueeze(2) * product
            main = _largest_eigenvalue(weighted).sqrt()
            total = total + (main + weight.amax(1).sqrt() * error).square()
        return total


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Largest eigenvalue of A'A per sample, rounded outwards; inf where A is not finite."""
    tall = matrix.shape[1] >= matrix.shape[2]
    gram = matrix.transpose(1, 2) @ matrix if tall else matrix @ matrix.transpose(1, 2)
    finite = torch.isfinite(gram).flatten(1).all(1)
    safe = torch.where(finite[:, None, None], gram, torch.zeros_like(gram))
    value = torch.linalg.eigvalsh(safe)[:, -1].clamp_min(0.0) * (1 + 1e-9)
    return torch.where(finite, value, torch.inf)


@dataclass(frozen=True)
class _Scores:
    """The loss as a function of the outputs: values, output rows, and what moves them."""

    objective: Objective
    outputs: Tensor
    labels: Tensor
    rows: Tensor  # (n, k, width): f_j - f_y, or (1, 1, width)

    @staticmethod
    def of(objective: Objective, batch: Batch) -> _Scores:
        model: Any = objective.model
        last = model.weights[-1].detach()
        outputs = model.linearise(batch.x)[0]
        rows = last.unsqueeze(0) if model.n_outputs == 1 else last - last[batch.y].unsqueeze(1)
        return _Scores(objective, outputs, batch.y, rows)

    @property
    def several(self) -> bool:
        return self.outputs.ndim == 2

    def reach(self, norms: Tensor, radius: Tensor, value: Tensor, strength: float) -> Tensor:
        """How far from its sample a maximiser can be, shape (n,)."""
        if bool(torch.isinf(radius).any()):
            return self._first_reach(norms, value, strength)
        shift = norms * radius.unsqueeze(1)
        worst = self.objective.loss.value_within(self.outputs, self.labels, shift)
        return ((worst - value).clamp_min(0.0) / strength).sqrt() * (1 + 1e-12)

    def _first_reach(self, norms: Tensor, value: Tensor, strength: float) -> Tensor:
        """Root of strength t^2 = loss(x) + slope t - value; inf for a loss without slope bound."""
        loss = self.objective.loss
        base = loss.value(self.outputs, self.labels)
        excess = (base - value).clamp_max(0.0)
        steep = 1.0 if self.several else loss.lipschitz
        if steep is None or math.isinf(steep):
            # loss + |slope| N t + c N^2 t^2 / 2 - strength t^2 >= value, c the curvature: bounded
            # for strength > c N^2 / 2.
            n = norms[:, 0]
            half = 0.5 * loss.gradient(self.outputs, self.labels).abs() * n
            spare = strength - 0.5 * float(loss.curvature or math.inf) * n.square()
            root = (half.square() + spare * (base - value)).clamp_min(0.0).sqrt()
            return torch.where(spare > 0, (half + root) / spare, torch.inf)
        slope = norms.amax(1) * steep
        return (slope + (slope.square() + 4.0 * strength * excess).clamp_min(0.0).sqrt()) / (
            2.0 * strength
        )

    def slopes(self, norms: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the ball: curvature through the outputs, and |gradient| in the last layer."""
        shift, loss = norms * radius.unsqueeze(1), self.objective.loss
        if self.several:
            odds = loss.odds_within(self.outputs, self.labels, shift)
            # Variance of the scores under the softmax: at most the mean square from class y, and
            # at most a quarter of the squared range (Popoviciu).
            top = torch.minimum((odds * norms.square()).sum(1), norms.amax(1).square())
            rows = self.rows.abs()
            pull = torch.minimum((odds.unsqueeze(2) * rows).sum(1), rows.amax(1))
            return top, pull
        at = (self.outputs, self.labels, shift[:, 0])
        top = loss.curvature_within(*at) * norms[:, 0].square()
        steep = loss.slope_within(*at)
        return top, steep.unsqueeze(1) * self.rows[0].abs()


# -- ranges of activation slopes and bends over intervals ------------------------------------


def _sigmoid_bend(a: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1.0 - s) * (1.0 - 2.0 * s)


def _silu_bend(a: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1.0 - s) * (2.0 + a * (1.0 - 2.0 * s))


def _tanh_bend(a: Tensor) -> Tensor:
    t = torch.tanh(a)
    return 2.0 * t * (1.0 - t.square())


#: The second derivative phi'' up to its sign, and where phi' and phi'' turn around.
_BENDS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, ...], tuple[float, ...]]] = {
    "sigmoid": (_sigmoid_bend, (0.0,), (-1.3169578969248167, 1.3169578969248167)),
    "silu": (
        _silu_bend,
        (-2.3993572805154675, 2.3993572805154675),
        (-3.4358409935351107, 0.0, 3.4358409935351107),
    ),
    "softplus": (lambda a: torch.sigmoid(a) * torch.sigmoid(-a), (), (0.0,)),
    "tanh": (_tanh_bend, (0.0,), (-0.6584789484624084, 0.6584789484624084)),
}


def slope_range(activation: str, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least and largest slope of an activation between low and high, and its largest |phi''|."""
    slope = ACTIVATIONS[activation][0]
    if activation == "relu":
        kink = torch.where((low <= 0) & (high >= 0), torch.inf, 0.0).to(low.dtype)
        return (low > 0).to(low.dtype), (high > 0).to(low.dtype), kink
    low, high = low.clamp(-800.0, 800.0), high.clamp(-800.0, 800.0)  # all is flat beyond

    def corners(turns: tuple[float, ...]) -> Tensor:
        """The ends, and the turning points as far as they lie between them."""
        inner = [torch.maximum(low, high.clamp_max(turn)) for turn in turns]
        return torch.stack([low, high, *inner])

    bend, turns, bend_turns = _BENDS[activation]
    slopes = slope(corners(turns))[1]
    return slopes.amin(0), slopes.amax(0), bend(corners(bend_turns)).abs().amax(0)
