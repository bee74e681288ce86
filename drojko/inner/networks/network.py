"""A perceptron and its loss as plain values, in the coordinates of the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from drojko.inner.networks.activations import Activation, activation
from drojko.inner.objective import Batch, Objective
from drojko.losses import Loss
from drojko.models import MLP, LogitDifference, ModuleModel, is_plain

__all__ = ["Margins", "Network", "layers_of"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Margins:
    r"""What the loss of n samples grows with: margins :math:`m_k = v_k^\top h + c_k`, convexly.

    Two classes: the negative margin. Several: f_j - f_y. Regression, or a loss of which no more is
    known than that it is convex: f and -f. The loss at upper bounds of all of them is one.

    Attributes
    ----------
    weight : Tensor of shape (K, width)
        Rows of the outputs.
    rows : Tensor of shape (n, m, width)
    levels : Tensor of shape (n, m)
    y : Tensor of shape (n,)
    """

    loss: Loss
    kind: str
    weight: Tensor
    rows: Tensor
    levels: Tensor
    y: Tensor

    @staticmethod
    def of(loss: Loss, weight: Tensor, bias: Tensor, y: Tensor) -> Margins | None:
        """Of outputs ``weight @ h + bias`` (K, width) and (K,); None: nothing is known."""
        if not (loss.structured and loss.convex):
            return None
        n = len(y)
        if not loss.scalar:
            if not loss.has_pairs or len(weight) < 2:
                return None
            rows, levels = weight - weight[y][:, None], bias - bias[y][:, None]
            return Margins(loss, "pairs", weight, rows, levels, y)
        asymptotes = loss.asymptotes if loss.task == "classification" else None
        if asymptotes is not None and asymptotes[1][0] <= 0.0:  # falls in the margin
            sign = 1.0 - 2.0 * y.to(weight.dtype)
            rows, levels = sign[:, None, None] * weight, sign[:, None] * bias
            return Margins(loss, "falls", weight, rows, levels, y)
        both = torch.cat([weight, -weight]).expand(n, -1, -1)
        return Margins(loss, "both", weight, both, torch.cat([bias, -bias]).expand(n, -1), y)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Margins:
        """Some of the samples."""
        return replace(self, rows=self.rows[index], levels=self.levels[index], y=self.y[index])

    def own(self) -> Tensor:
        """Which margins are zero by definition, shape (n, m)."""
        if self.kind != "pairs":
            return torch.zeros(self.levels.shape, dtype=torch.bool)
        return nn.functional.one_hot(self.y, self.levels.shape[1]).bool()

    def __call__(self, m: Tensor, y: Tensor | None = None) -> Tensor:
        """The loss at margins (n, ..., m): convex, and nondecreasing in each."""
        y = self.y if y is None else y
        shape = m.shape[:-1]
        y = y.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).reshape(-1)
        flat = m.reshape(-1, m.shape[-1])
        if self.kind == "pairs":
            return self.loss.value(flat, y).view(shape)
        if self.kind == "falls":
            return self.loss.value(flat[:, 0] * (1.0 - 2.0 * y.to(m.dtype)), y).view(shape)
        ends = self.loss.value(flat[:, 0], y), self.loss.value(-flat[:, 1], y)
        return torch.maximum(*ends).view(shape)

    @property
    def slope(self) -> float:
        """Lipschitz constant in the largest change of a margin; inf where there is none."""
        known = self.loss.lipschitz
        return 1.0 if self.kind == "pairs" else math.inf if known is None else known


@dataclass(frozen=True)
class Network:
    r"""Margins as functions of a displacement d: :math:`a_1 = c + W_1 d`, :math:`\|d\|^2` its cost.

    Attributes
    ----------
    weights, biases : tuples of Tensor
        Hidden layers; the first weight (width, r) in rotated coordinates, r <= width; the first
        bias is in ``centre``.
    acts : tuple of Activation
    centre, size : Tensor of shape (n, width)
        Pre-activations of the first layer at the samples, and what they are the sum of in size.
    margins : Margins
    frame : Tensor of shape (r0, r), or None
        Rotation of displacements in coordinates.
    error : float
        By how much the user's activations may differ from these.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    acts: tuple[Activation, ...]
    centre: Tensor
    size: Tensor
    margins: Margins
    frame: Tensor | None = None
    error: float = 0.0

    #: Whether layers are matrices.
    dense = True

    @staticmethod
    def of(objective: Objective, batch: Batch) -> Network | None:
        """Of an objective on samples; None: no perceptron, or a loss of which nothing is proven."""
        found = layers_of(objective.model)
        if found is None:
            return None
        linear, acts, error = found
        weights = [w.detach().double().cpu() for w, _ in linear]
        biases = [b.detach().double().cpu() for _, b in linear]
        y = batch.y.cpu() if not batch.y.is_floating_point() else batch.y.double().cpu()
        margins = Margins.of(objective.loss, weights[-1], biases[-1], y)
        if margins is None or not all(bool(torch.isfinite(w).all()) for w in weights + biases):
            return None
        x = batch.x.double().cpu()
        lift = objective.coordinates.lift
        centre = x @ weights[0].T + biases[0]
        size = x.abs() @ weights[0].abs().T + biases[0].abs()
        first = (
            weights[0] * objective.coordinates.scale
            if lift is None
            else (weights[0] @ lift.double().cpu())
        )
        frame = None
        if first.shape[1] > first.shape[0]:
            # Orthonormal up to rounding, which the slack of all bounds covers many times over.
            frame = torch.linalg.qr(first.T)[0]
            first = first @ frame
        return Network(
            (first, *weights[1:-1]), tuple(biases[:-1]), acts, centre, size, margins, frame, error
        )

    def __len__(self) -> int:
        return len(self.centre)

    @property
    def dim(self) -> int:
        """Coordinates that a displacement has."""
        return self.weights[0].shape[1]

    def take(self, index: Tensor) -> Network:
        """On some of the samples."""
        margins = self.margins.take(index)
        return replace(self, centre=self.centre[index], size=self.size[index], margins=margins)

    def turned(self, d: Tensor) -> Tensor:
        """Displacements in coordinates, seen by the first layer."""
        d = d.double().cpu()
        return d if self.frame is None else d @ self.frame

    def forward(self, d: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pre-activations at displacements (n, r), and the last hidden layer."""
        a = [self.centre + d @ self.weights[0].T]
        for w, b, act in zip(self.weights[1:], self.biases[1:], self.acts, strict=False):
            a.append(act(a[-1])[0] @ w.T + b)
        return a, self.acts[-1](a[-1])[0]

    def at(self, d: Tensor) -> Tensor:
        """Margins at displacements (n, r), shape (n, m)."""
        _, h = self.forward(d)
        return (self.margins.rows * h[:, None]).sum(-1) + self.margins.levels

    def gradient(self, d: Tensor, rows: Tensor) -> Tensor:
        """Gradient of ``rows @ last hidden layer``, rows of shape (n, width)."""
        a, _ = self.forward(d)
        g = rows
        for w, act, at in zip(self.weights[::-1], self.acts[::-1], a[::-1], strict=True):
            g = (g * act(at)[1]) @ w
        return g

    @property
    def slack(self) -> float:
        """Relative rounding error of a sum over units, generously."""
        wide = max(w.shape[0] for w in self.weights) + self.weights[0].shape[1]
        return 4.0 * _EPS * (wide + 16) * (len(self.weights) + 1)

    def largest(self) -> Tensor:
        """What no margin exceeds anywhere, as the last units have bounded values; (n, m)."""
        low, high = self.acts[-1].values
        rows, levels = self.margins.rows, self.margins.levels
        ends = torch.where(rows > 0, high, low) * torch.where(rows == 0, 1.0, rows)
        ends = torch.where(rows == 0, 0.0, ends)
        size = ends.abs().sum(-1) + levels.abs()
        return ends.sum(-1) + levels + self.slack * size + self.outputs_error()

    def relaxed(self, region: Any, anchors: Any) -> Any:
        """`linear_bound` of what is not dense."""
        raise NotImplementedError

    @property
    def curved(self) -> int:
        """Of how many layers of units of what is not dense there are quadratic bounds."""
        raise NotImplementedError

    def headed(
        self, ball: Any, place: Tensor, rows: Tensor, levels: Tensor, d: Tensor, layers: int
    ) -> Any:
        """`headed` of what is not dense."""
        raise NotImplementedError

    def constants(self, steps: int) -> Tensor:
        """`margin_constants` of what is not dense."""
        raise NotImplementedError

    def price(self, layers: int) -> tuple[float, float]:
        """Work of a region and of a try of its multipliers, of what is not dense."""
        raise NotImplementedError

    def blocks(self, memory: int) -> int:
        """How many regions of what is not dense keep within a memory."""
        raise NotImplementedError

    def outputs_error(self) -> Tensor:
        """How much the margins may differ because activations do, shape (n, m)."""
        width = self.margins.rows.shape[-1]
        if self.error == 0.0:
            return torch.zeros_like(self.margins.levels)
        off = torch.full((self.weights[0].shape[0],), self.error, dtype=torch.float64)
        for w, act in zip(self.weights[1:], self.acts[1:], strict=True):
            off = (w.abs() @ off) * max(map(abs, act.slopes)) + self.error
        assert off.shape == (width,)
        return self.margins.rows.abs() @ off * (1 + 1e-9)


Layers = tuple[list[tuple[Tensor, Tensor]], tuple[Activation, ...], float]

_MODULES: dict[type[nn.Module], str] = {
    nn.Softplus: "softplus", nn.Tanh: "tanh", nn.SiLU: "silu", nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
}  # fmt: skip


def layers_of(model: Any) -> Layers | None:
    """Affine maps and activations of a perceptron with a hidden layer; None: it is none.

    Besides `MLP`, user modules made of ``nn.Sequential``, ``nn.Linear``, known activations,
    ``nn.Identity``, ``nn.Flatten``, and ``nn.Dropout`` and ``nn.BatchNorm1d`` in evaluation mode.
    """
    if isinstance(model, MLP):
        act = activation(model.activation)
        if act is None or len(model.weights) < 2:
            return None
        linear = list(zip(model.weights, model.biases, strict=True))
        return linear, (act,) * (len(linear) - 1), 0.0
    if not isinstance(model, ModuleModel):
        return None
    module, difference = model.module, False
    if isinstance(module, LogitDifference):
        module, difference = module.module, True
    found = _collected(module)
    if found is None:
        return None
    linear, acts, error = found
    if difference:
        w, b = linear[-1]
        if len(w) != 2:
            return None
        linear = [*linear[:-1], (w[1:] - w[:1], b[1:] - b[:1])]
    return linear, acts, error


def _collected(module: nn.Module) -> Layers | None:
    affine: list[tuple[Tensor, Tensor]] = []
    acts: list[Activation] = []
    error = 0.0
    if not all(is_plain(part) for part in module.modules()):
        return None
    for part in _flat(module):
        if type(part) is nn.Linear:
            w = part.weight.detach().double()
            b = torch.zeros(len(w), dtype=w.dtype) if part.bias is None else part.bias.detach()
            step = (w, b.double().to(w.device))
        elif type(part) is nn.BatchNorm1d:
            scaled = _normalised(part)
            if scaled is None:
                return None
            step = scaled
        else:
            name = _MODULES.get(type(part))
            act = None if name is None else activation(name)
            if act is None or len(affine) != len(acts) + 1:
                return None
            if isinstance(part, nn.Softplus):
                if part.beta != 1 or part.threshold < 15:
                    return None
                error = max(error, 1.01 * math.exp(-part.threshold))
            acts.append(act)
            continue
        if len(affine) == len(acts):
            affine.append(step)
        else:
            w0, b0 = affine[-1]
            affine[-1] = (step[0] @ w0, step[0] @ b0 + step[1])
    return (affine, tuple(acts), error) if acts and len(affine) == len(acts) + 1 else None


def _flat(module: nn.Module) -> list[nn.Module]:
    """Parts in their order, without those that do nothing at rows of numbers."""
    if type(module) is nn.Sequential:
        return [part for child in module for part in _flat(child)]
    nothing = type(module) is nn.Identity
    nothing |= type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1
    nothing |= type(module) is nn.Dropout and not module.training
    return [] if nothing else [module]


def _normalised(part: nn.BatchNorm1d) -> tuple[Tensor, Tensor] | None:
    """Batch normalisation by stored moments, as an affine map."""
    if part.training or part.running_mean is None or part.running_var is None:
        return None
    mean, variance = part.running_mean.detach().double(), part.running_var.detach().double()
    scale = (variance + part.eps).rsqrt()
    shift = -mean * scale
    if part.weight is not None and part.bias is not None:
        weight, bias = part.weight.detach().double(), part.bias.detach().double()
        scale, shift = scale * weight, shift * weight + bias
    return torch.diag(scale), shift
