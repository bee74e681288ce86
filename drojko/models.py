"""Prediction models with hand-written derivatives.

A model maps rows to predictions: logits of shape (n, n_classes), or shape (n,) for binary
classification and regression. The derivatives in the input (inner problem) and in the
parameters (outer problem) are written out, because small networks spend most of their time in
the bookkeeping of automatic differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from drojko._numerics import Adam
from drojko._random import generator as make_generator
from drojko._validation import is_widths, shown
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = [
    "MLP",
    "NO_LOGITS",
    "Learner",
    "Linear",
    "ModuleModel",
    "TabularModel",
    "dense_layers",
    "flatten_parameters",
    "views_like",
    "is_linear",
    "looks_like_probabilities",
    "is_plain",
]


def flatten_parameters(module: nn.Module) -> Tensor:
    """Move all parameters of ``module`` into one flat tensor and return it.

    The parameters become views, so an optimiser step on the flat tensor is one vector
    operation however many layers there are.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> flatten_parameters(layer).zero_().shape, layer.bias.item()
    (torch.Size([3]), 0.0)
    """
    parts = [p.detach().flatten() for p in module.parameters()]
    if not parts:
        raise InvalidDataError(
            "the model has no parameters, so that there is nothing to fit; audit(model, X, y, ...) "
            "says how bad it can get"
        )
    flat = torch.cat(parts)
    nn.utils.vector_to_parameters(flat, module.parameters())
    return flat


def views_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` with the shapes of ``parameters``, in order.

    Examples
    --------
    >>> [v.tolist() for v in views_like(torch.arange(3), [torch.zeros(1, 2), torch.zeros(1)])]
    [[[0, 1]], [2]]
    """
    parts = flat.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]


class Learner:
    """A module's parameters as one flat vector, with Adam's moments and views of its gradient.

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> flat = Learner(layer).flat
    >>> flat.data_ptr() == layer.weight.data_ptr()
    True
    """

    def __init__(self, module: nn.Module, decay: tuple[float, float] = (0.9, 0.999)) -> None:
        self.flat = flatten_parameters(module)
        self.adam = Adam.like(self.flat)
        self.adam.decay = decay
        self.views = views_like(self.adam.gradient, list(module.parameters()))

    def step(self, gradients: Sequence[Tensor], rate: float, largest: float | None = None) -> None:
        """One step of Adam along minus the gradients, in the order of the parameters.

        With ``largest``, of a gradient shortened to that norm, and none where it is not finite.
        """
        for view, gradient in zip(self.views, gradients, strict=True):
            view.copy_(gradient.view_as(view))
        if largest is not None:
            norm = float(self.adam.gradient.norm())
            if not math.isfinite(norm):
                return
            self.adam.gradient.mul_(min(1.0, largest / max(norm, 1e-300)))
        self.adam.step(self.flat, rate)


def _softplus(a: Tensor) -> tuple[Tensor, Tensor]:
    # The default threshold of 20 would put a step of 2e-9 into the loss.
    return nn.functional.softplus(a, threshold=40.0), torch.sigmoid(a)


def _tanh(a: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(a)
    return t, 1.0 - t * t


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(a)
    h = a * s
    return h, s * (1.0 + a - h)


def _relu(a: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.relu(a)
    return h, (a > 0).to(a.dtype)


def _sigmoid(a: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.sigmoid(a)
    return h, h * (1.0 - h)


# value and derivative, sup |phi'|, (inf phi'', sup phi'')
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], float, tuple[float, float]]]
ACTIVATIONS = {
    "softplus": (_softplus, 1.0, (0.0, 0.25)),
    "tanh": (_tanh, 1.0, (-0.7698003589195011, 0.7698003589195011)),
    "silu": (_silu, 1.09983933, (-0.0963, 0.5)),  # outwards in the last digit
    "relu": (_relu, 1.0, (-math.inf, math.inf)),
    "sigmoid": (_sigmoid, 0.25, (-0.09622504486493764, 0.09622504486493764)),
}


class TabularModel(nn.Module):
    """A model with explicit derivatives.

    ``linearise(x)`` returns the prediction and a closure ``backward(g, parameters=False)`` that
    maps a cotangent ``g`` (shape of the prediction) to the gradient in ``x`` of
    ``sum(g * prediction)`` or, with ``parameters=True``, to a list of gradients in the order of
    ``self.parameters()``.
    """

    n_outputs: int

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        """Prediction at the rows of x and ``backward(g, parameters=False)``; see the class."""
        raise NotImplementedError

    def first_layer(self) -> Tensor | None:
        """Matrix W such that the prediction depends on x only through Wx, if there is one."""
        return None

    def penalised(self) -> list[bool]:
        """Which parameters the L2 penalty applies to: weights, never intercepts."""
        return [p.ndim > 1 for p in self.parameters()]


class MLP(TabularModel):
    r"""Multilayer perceptron :math:`f(x) = A\,\phi(W_L \cdots \phi(W_1 x + b_1) \cdots) + c`.

    Parameters
    ----------
    n_inputs, n_outputs : int
        ``n_outputs=1`` gives predictions of shape (n,), more gives (n, n_outputs).
    hidden : sequence of int
        Widths; an empty one gives a linear model.
    activation : {"softplus", "tanh", "silu", "relu", "sigmoid"}
        Smooth ones have a finite curvature, and with it a proven dual above a threshold.
    bias : bool
        Whether there are intercepts; without, they stay zero and take no gradient steps.
    generator : torch.Generator, optional
        Source of the initial weights; None: seeded from the operating system.
    dtype : torch.dtype
    device : torch.device or str

    Raises
    ------
    InvalidDataError
        For an unknown activation.

    Examples
    --------
    >>> import torch
    >>> net = MLP(3, 2, hidden=(4,), generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(5, 3, dtype=torch.float64)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int = 1,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "softplus",
        bias: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InvalidDataError(
                f"activation={shown(activation)} is unknown; choose one of {sorted(ACTIVATIONS)}"
            )
        if not is_widths(hidden):
            raise InvalidDataError(
                f"hidden_layer_sizes={shown(hidden)}; expected positive integers"
            )
        generator = make_generator(generator)
        self.n_outputs = n_outputs
        self.activation = activation
        self.bias = bias
        self.warm = False  # whether the parameters were loaded and training continues
        sizes = [n_inputs, *hidden, n_outputs]
        weights, biases = [], []
        for fan_in, fan_out in pairwise(sizes):
            draw = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
            weights.append(nn.Parameter((draw / math.sqrt(fan_in)).to(device, dtype)))
            zero = torch.zeros(fan_out, dtype=dtype, device=device)
            biases.append(nn.Parameter(zero, requires_grad=bias))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        """Prediction and ``backward``, by hand."""
        first = self.weights[0].detach()
        f, pull = self.tail(torch.addmm(self.biases[0].detach(), x, first.T))

        def backward(g: Tensor, parameters: bool = False) -> Any:
            if not parameters:
                return pull(g) @ first
            slope, weights, biases = pull(g, True)
            return [slope.T @ x, *weights, slope.sum(0), *biases]

        return f, backward

    def tail(self, a: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        """Prediction from what the first layer gives, W_1 x + b_1 of shape (n, width).

        The closure gives the gradient in ``a``; with ``parameters=True`` also those of the weights
        and of the biases of all layers but the first.
        """
        act = ACTIVATIONS[self.activation][0]
        weights = [w.detach() for w in self.weights][1:]
        biases = [b.detach() for b in self.biases][1:]
        inputs, slopes = [], []
        for w, b in zip(weights, biases, strict=True):
            h, slope = act(a)
            inputs.append(h)
            slopes.append(slope)
            a = torch.addmm(b, h, w.T)
        scalar = self.n_outputs == 1

        def backward(g: Tensor, parameters: bool = False) -> Any:
            g = g.unsqueeze(1) if scalar else g
            grads: list[tuple[Tensor, Tensor]] = []
            for layer in range(len(weights) - 1, -1, -1):
                if parameters:
                    grads.append((g.T @ inputs[layer], g.sum(0)))
                g = (g @ weights[layer]) * slopes[layer]
            if not parameters:
                return g
            grads.reverse()
            return g, [gw for gw, _ in grads], [gb for _, gb in grads]

        return (a.squeeze(1) if scalar else a), backward

    def forward(self, x: Tensor) -> Tensor:
        """Predictions that autograd can follow."""
        act = ACTIVATIONS[self.activation][0]
        for w, b in zip(list(self.weights)[:-1], list(self.biases)[:-1], strict=True):
            x, _ = act(torch.addmm(b, x, w.T))
        f = torch.addmm(self.biases[-1], x, self.weights[-1].T)
        return f.squeeze(1) if self.n_outputs == 1 else f

    def first_layer(self) -> Tensor:
        """W_1, of shape (width, n_inputs)."""
        return self.weights[0].detach()


def Linear(n_inputs: int, n_outputs: int = 1, **kwargs: Any) -> MLP:
    """Linear model ``Wx + b``: a perceptron without hidden layer, started at zero.

    Examples
    --------
    >>> Linear(3)(torch.ones(2, 3, dtype=torch.float64)).tolist()
    [0.0, 0.0]
    """
    model = MLP(n_inputs, n_outputs, hidden=(), **kwargs)
    model.weights[0].data.zero_()
    return model


class LogitDifference(nn.Module):
    """Two logits as one: what a binary loss takes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        f = self.module(x)
        return f[:, 1] - f[:, 0]


class ModuleModel(TabularModel):
    """Any ``torch.nn.Module`` whose rows do not interact, differentiated by autograd.

    Parameters
    ----------
    module : torch.nn.Module
        Maps (n, d) to (n, n_outputs), or to (n,) or (n, 1) for one output.
    n_outputs : int

    Raises
    ------
    UnsupportedError
        When a prediction has another shape.

    Examples
    --------
    >>> model = ModuleModel(nn.Linear(3, 1), 1)
    >>> f, backward = model.linearise(torch.zeros(5, 3))
    >>> f.shape, backward(torch.ones(5)).shape
    (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, module: nn.Module, n_outputs: int) -> None:
        super().__init__()
        self.module = module
        self.n_outputs = n_outputs

    @property
    def answers(self) -> nn.Module:
        """The user's module, with an output for each of two classes if it has these."""
        whole = self.module
        return whole.module if isinstance(whole, LogitDifference) else whole

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        """Prediction and ``backward``, by autograd."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            f = self.forward(leaf)
        trainable = list(self.module.parameters())

        def backward(g: Tensor, parameters: bool = False) -> Any:
            # One forward pass may serve both derivatives, so the graph is kept until f is freed.
            # A prediction that does not depend on an input has gradient zero there.
            inputs = trainable if parameters else [leaf]
            grads = [torch.zeros_like(p) for p in inputs]
            active = [k for k, p in enumerate(inputs) if p.requires_grad and f.requires_grad]
            if active:
                at = [inputs[k] for k in active]
                found = torch.autograd.grad(f, at, g, retain_graph=True, materialize_grads=True)
                for k, grad in zip(active, found, strict=True):
                    grads[k] = grad
            return grads if parameters else grads[0]

        return f.detach(), backward

    def forward(self, x: Tensor) -> Tensor:
        """Predictions that autograd can follow."""
        f = self.module(x)
        if self.n_outputs == 1 and f.ndim == 2 and f.shape[1] == 1:
            f = f.squeeze(1)
        expected = (len(x),) if self.n_outputs == 1 else (len(x), self.n_outputs)
        if tuple(f.shape) != expected:
            raise UnsupportedError(
                f"the model returned shape {tuple(f.shape)} for {len(x)} rows; expected {expected}"
            )
        return f


#: What to say of a classifier that `looks_like_probabilities`.
NO_LOGITS = (
    "as those of a sigmoid or softmax do, and they are read as logits: leave the last layer out, "
    "or give a loss of your own that takes probabilities"
)


def looks_like_probabilities(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether outputs at rows x (n, d), and far from them, all lie in [0, 1]: they are no logits.

    Of several outputs the rows sum to 1, too, where a softmax made them.

    Examples
    --------
    >>> x = torch.arange(4.0)[:, None]
    >>> looks_like_probabilities(torch.sigmoid, x), looks_like_probabilities(lambda z: z / 3, x)
    (True, False)
    """
    with torch.no_grad():
        middle = x.mean(0)
        f = torch.cat([model(middle + far * (x - middle)).flatten() for far in (1.0, 10.0, -10.0)])
    return bool(((f >= 0) & (f <= 1)).all() and f.amax() > f.amin())


#: Modules between the layers of a perceptron: functions of one number, of slope about 1 at most.
_BETWEEN = (
    nn.Dropout, nn.ELU, nn.Flatten, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.Sigmoid,
    nn.SiLU, nn.Softplus, nn.Tanh,
)  # fmt: skip


def dense_layers(model: TabularModel) -> list[nn.Parameter] | None:
    """The weight matrices of a perceptron from the first on; None where it is something else.

    Perceptrons are an `MLP`, and modules that are ``nn.Sequential``, perhaps nested, of
    ``nn.Linear`` layers and activations.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> [tuple(w.shape) for w in dense_layers(ModuleModel(net, 1))]
    [(4, 3), (1, 4)]
    >>> dense_layers(ModuleModel(nn.Sequential(nn.LayerNorm(3), net), 1)) is None
    True
    """
    if isinstance(model, MLP):
        return list(model.weights)
    whole = model.answers if isinstance(model, ModuleModel) else model
    parts = [m for m in whole.modules() if not isinstance(m, nn.Sequential)]
    layers: list[Any] = [m for m in parts if type(m) is nn.Linear]
    own = all(type(m) in (nn.Linear, *_BETWEEN) for m in parts) and len(set(layers)) == len(layers)
    return [layer.weight for layer in layers] if layers and own else None


def is_linear(model: TabularModel) -> bool:
    """Whether the outputs are affine in x, with the coefficients as parameters."""
    return isinstance(model, MLP) and len(model.weights) == 1


def is_plain(part: nn.Module) -> bool:
    """Whether a module computes what its class does: no hooks, no forward of its own."""
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
