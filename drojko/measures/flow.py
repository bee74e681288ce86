"""Normalising flows as measures (needs the extra `flows`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from drojko import _random
from drojko._numerics import Adam, cosine
from drojko._settings import check_settings
from drojko._validation import is_real, is_widths, shown
from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError
from drojko.measures._arrays import count, double, positive, queries, scott
from drojko.measures.base import Measure, choose, draws, normal

__all__ = ["FlowMeasure"]


@dataclass(kw_only=True, eq=False, repr=False)
class FlowMeasure(Measure):
    """Neural spline flow, ``p(x) = N(f(x); 0, I) |det Df(x)|``, with f learned by likelihood.

    Parameters
    ----------
    transforms : int, default=2
        Number of autoregressive spline transforms in f.
    hidden_layer_sizes : sequence of int, default=(32, 32)
        Hidden layers of each transform's network.
    noise : "auto" or float >= 0, default="auto"
        Standard deviation of the Gaussian noise added to each training draw, in units of the
        columns' standard deviations; "auto": Scott's factor. It is what regularises: the flow
        learns a kernel estimate, so atoms, duplicates and constant columns have a density.
    max_iter : int, default=500
        Adam steps, the rate decaying to 0 along a cosine.
    batch_size : int, default=256
        Rows drawn, by weight, for each step.
    learning_rate : float, default=5e-3
    random_state : None, int, numpy RandomState or torch.Generator, default=0
        Initial parameters and training draws.

    Attributes
    ----------
    parameters_ : dict of ndarray
        Parameters of the flow; the module is rebuilt from them when needed.
    centre_, scale_ : ndarray of shape (d,)
        The flow works on (x - centre) / scale.
    loss_ : float
        Mean negative log density of the last tenth of the training batches (in x's units).

    Notes
    -----
    Raises UnsupportedError if zuko is not installed (pip install "drojko[flows]"). Moments and
    marginals have no closed form.

    References
    ----------
    C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, Neural spline flows, 2019, arXiv
    1906.04032. J. Rothfuss et al., Noise regularization for conditional density estimation, 2019,
    arXiv 1907.08982. D. P. Kingma, J. Ba, Adam, 2014, arXiv 1412.6980.

    Examples
    --------
    >>> import torch
    >>> from drojko.measures import FlowMeasure
    >>> X = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    >>> flow = FlowMeasure(max_iter=3).fit(X)
    >>> flow.sample(4).shape, flow.log_prob(X).shape
    (torch.Size([4, 2]), torch.Size([50]))
    """

    _state = "parameters_"

    transforms: int = 2
    hidden_layer_sizes: Any = (32, 32)
    noise: str | float = "auto"
    max_iter: int = 500
    batch_size: int = 256
    learning_rate: float = 5e-3
    random_state: Any = 0

    def _fit(self, rows: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> Self:
        check_settings(
            self,
            whole={"transforms": 1, "max_iter": 1, "batch_size": 1},
            above={"learning_rate": 0.0},
        )
        noise = (
            scott(weights, rows.shape[1])
            if isinstance(self.noise, str) and self.noise == "auto"
            else self.noise
        )
        if not (is_real(noise) and noise >= 0):
            raise InvalidDataError(f'noise is {shown(self.noise)}; give "auto" or a number >= 0')
        generator = _random.generator(self.random_state)
        module = self._build(rows.shape[1], generator)
        self.centre_, self.scale_ = weights @ rows, positive(scale)
        z = double((rows - self.centre_) / self.scale_)

        def loss() -> Tensor:
            batch = z[choose(weights, count(self.batch_size), generator)]
            batch = batch + noise * normal(tuple(batch.shape), generator)
            return -module().log_prob(batch).mean()

        losses = adam(loss, list(module.parameters()), self.max_iter, self.learning_rate)
        self.loss_ = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        self.loss_ += float(np.log(self.scale_).sum())
        self.parameters_ = {
            name: value.detach().numpy().copy() for name, value in module.named_parameters()
        }
        self.__dict__.pop("_cache", None)
        return self

    def _build(self, dim: int, generator: torch.Generator) -> torch.nn.Module:
        with _Seeded(generator):
            flow = _zuko().flows.NSF(
                dim,
                transforms=count(self.transforms),
                hidden_features=_widths(self.hidden_layer_sizes),
            )
        return flow.double()

    def _flow(self, device: torch.device | None = None) -> Any:
        """Return the flow as a distribution of the standardised points."""
        module = self.__dict__.get("_cache")
        if module is None:
            module = self._build(self.dim, _random.generator(0))
            values = {name: double(value) for name, value in self.parameters_.items()}
            module.load_state_dict(values, strict=False)
            self._cache = module.requires_grad_(False)
        return module.to(device)()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_cache"}

    @property
    def dim(self) -> int:
        return len(self._ready().centre_)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, shape (n, d): normal draws through the inverse of f."""
        n, generator = draws(n, generator)
        base = normal((n, self.dim), generator)
        with torch.no_grad():
            z = self._flow(base.device).transform.inv(base)
        return double(self.centre_) + double(self.scale_) * z

    def log_prob(self, x: Any) -> Tensor:
        x = queries(x, self.dim).double()
        if not len(x):
            return x.new_zeros(0)
        z = (x - double(self.centre_, x)) / double(self.scale_, x)
        return self._flow(x.device).log_prob(z) - float(np.log(self.scale_).sum())


def adam(loss: Any, parameters: list[Tensor], max_iter: int, learning_rate: float) -> list[float]:
    """Minimise a stochastic loss in place by Adam with a cosine rate; returns the losses.

    A fixed number of steps, as its rate is made for: nothing but a bad loss ends them early.
    """
    states = [Adam.like(p.detach()) for p in parameters]
    losses = []
    for step in range(1, count(max_iter) + 1):
        value = loss()
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            raise NonFiniteError(
                f"the flow's likelihood is {-losses[-1]} at step {step}; lower learning_rate",
                last_state=losses[:-1],
            )
        rate = learning_rate * cosine((step - 1) / max_iter)
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            for p, state, gradient in zip(parameters, states, gradients, strict=True):
                state.gradient = gradient
                state.step(p, rate)
    return losses


class _Seeded(TorchFunctionMode):
    """Within this block (and thread), initialisers draw from one private generator."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func.__name__ in ("kaiming_uniform_", "uniform_", "normal_", "randn", "rand"):
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


def _zuko() -> Any:
    from torch.distributions import Distribution

    # Importing zuko switches off argument checks for all of torch.distributions.
    checks = Distribution._validate_args  # type: ignore[attr-defined]
    try:
        import zuko
    except ImportError as error:
        raise UnsupportedError(
            'FlowMeasure needs zuko, which is not installed: pip install "drojko[flows]"'
        ) from error
    finally:
        Distribution._validate_args = checks  # type: ignore[attr-defined]
    return zuko


def _widths(sizes: Any) -> list[int]:
    listed = isinstance(sizes, list | tuple | range | np.ndarray) and np.ndim(sizes) == 1
    if not is_widths(found := list(sizes) if listed else [sizes]):
        raise InvalidDataError(f"hidden_layer_sizes is {shown(sizes)}; expected widths of layers")
    return [int(width) for width in found]
