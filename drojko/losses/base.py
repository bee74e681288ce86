"""What every loss offers, and a loss from a callable."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.losses.smoothing import Smoothed, conjugate_bound

__all__ = ["CallableLoss", "Loss", "as_kappa", "either", "sign"]


class Loss:
    r"""A loss :math:`\ell(f, y)`; see the module's text for the meaning of the attributes.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> loss = get_loss("hinge")
    >>> loss.value(torch.tensor([2.0, 0.0]), torch.tensor([1, 1]))
    tensor([0., 1.])
    >>> loss.lipschitz, loss.curvature, loss.growth, loss.kinks
    (1.0, inf, 0.0, (1.0,))
    """

    name: str = ""
    task: str = "classification"
    scalar: bool = True
    lipschitz: float | None = None
    curvature: float | None = None
    growth: float = 0.0
    kinks: tuple[float, ...] = ()
    #: Whether the loss is convex in f: a proof for linear models rests on it.
    convex: bool = True
    #: Whether the loss reaches its infimum; the cross-entropies do not.
    attained: bool = True

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """Loss of each row, shape (n,)."""
        raise UnsupportedError(f"{self.name or type(self).__name__} has no value")

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Derivative in `f`, of the shape of `f` (an element of the subdifferential at kinks)."""
        raise UnsupportedError(f"{self.name} has no closed-form gradient")

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        """Second derivative in `f` of a scalar loss, shape (n,); zero at kinks."""
        raise UnsupportedError(f"{self.name} has no second derivative")

    def shift(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """A global maximiser t of ``loss(f + t, y) - kappa t^2``, shape (n,).

        `kappa` is a number or a tensor that broadcasts to (n,); ``inf`` gives zero. Raises
        `UnboundedRiskError` unless every `kappa` exceeds ``growth``.
        """
        k = as_kappa(kappa, f)
        if not bool((k > self.growth).all()):
            raise UnboundedRiskError(
                f"{self.name} loss: the worst case is infinite for kappa = {float(k.min()):.6g}; "
                f"it is finite for kappa > {self.growth:g} (penalty > {self.growth:g} * squared "
                "norm of the coefficients): raise the penalty"
            )
        infinite = torch.isinf(k)
        if not bool(infinite.any()):
            return self._shift(f, y, k)
        t = self._shift(f, y, torch.where(infinite, self.growth + 1.0, k))
        return torch.where(infinite, torch.zeros_like(t), t)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        raise UnsupportedError(f"{self.name} loss has no one-dimensional worst case")

    def envelope(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """A global maximiser f' of ``loss(f', y) - kappa (f' - f)^2``, shape (n,)."""
        return f + self.shift(f, y, kappa)

    def robust_value(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """The maximum itself, ``max_t loss(f + t, y) - kappa t^2``, shape (n,)."""
        t = self.shift(f, y, kappa)
        cost = torch.where(t == 0, torch.zeros_like(t), as_kappa(kappa, f) * t * t)
        return self.value(f + t, y) - cost

    def smoothed(
        self, f: np.ndarray, y: np.ndarray, mu: float, dual: np.ndarray | None = None
    ) -> Smoothed:
        """Value, slope and curvature with kinks smoothed by mu > 0; arrays of shape (n,).

        ``dual`` is what ``record.moved`` of an earlier one gave. A smooth loss is its own.
        """
        if self.kinks:
            raise UnsupportedError(
                f"{type(self).__name__} has kinks and no method smoothed, which linear training "
                "needs: write one, or give the loss as a callable"
            )
        line = self._line(f, y)
        return Smoothed(*line, line[1])

    def least(self, slope: np.ndarray, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        r"""Return :math:`\inf_f \ell(f, y) - s f` for slopes s in `domain`: minus the conjugate.

        Of a convex loss without a formula it is a lower bound, found numerically from ``near`` on;
        -inf where there is none.
        """
        if not self.convex:
            return np.full_like(slope, -np.inf)

        def line(f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            value, first, second = self._line(f, y)
            return value - slope * f, first - slope, second

        return conjugate_bound(line, np.zeros_like(slope) if near is None else near)

    def domain(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest slope of each row: the domain of the conjugate."""
        bound = math.inf if self.lipschitz is None else self.lipschitz
        return np.full(len(y), -bound), np.full(len(y), bound)

    def _line(self, f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at, target = torch.from_numpy(f), torch.from_numpy(y)
        parts = (self.value, self.gradient, self.second_derivative)
        value, slope, second = (part(at, target).detach().numpy() for part in parts)
        return value, slope, second

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        """Bound on the worst case of a linear multi-class model; see the subclasses."""
        raise UnsupportedError(f"{self.name} loss is not a multi-class loss")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def as_kappa(kappa: float | Tensor, f: Tensor) -> Tensor:
    return torch.as_tensor(kappa, dtype=f.dtype, device=f.device)


def either(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    # torch.where on two numbers gives the default dtype, that is float32.
    return torch.where(condition, like.new_tensor(yes), like.new_tensor(no))


def sign(f: Tensor, y: Tensor) -> Tensor:
    return y.to(f.dtype).mul(2.0).sub_(1.0)


class CallableLoss(Loss):
    """A user's ``loss(prediction, y) -> (n,)``; derivatives by autograd, no proven bounds.

    Examples
    --------
    >>> loss = CallableLoss(lambda f, y: (f - y) ** 4, task="regression")
    >>> loss.gradient(torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([4.])
    """

    name = "callable"
    lipschitz = None
    curvature = None
    growth = math.inf
    convex = False

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        task: str = "classification",
        scalar: bool = True,
    ) -> None:
        self.fn = fn
        self.task = task
        self.scalar = scalar

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        out = self.fn(f, y)
        if not isinstance(out, Tensor) or tuple(out.shape) != (f.shape[0],):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InvalidDataError(
                f"the loss returned {got}; expected one value per row, a tensor of shape "
                f"({f.shape[0]},)"
            )
        return out

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            return torch.autograd.grad(self.value(leaf, y).sum(), leaf)[0]

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        if f.ndim != 1:
            raise UnsupportedError("second_derivative is defined for outputs of shape (n,)")
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.value(leaf, y).sum(), leaf, create_graph=True)
            if not g.requires_grad:
                return torch.zeros_like(f)
            (h,) = torch.autograd.grad(g.sum(), leaf, allow_unused=True)
        return torch.zeros_like(f) if h is None else h.detach()

    def shift(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        raise UnsupportedError(
            "a callable loss has no exact one-dimensional worst case; use a named loss or an "
            "inner solver that works on samples"
        )

    def __repr__(self) -> str:
        return f"CallableLoss({self.fn!r}, task={self.task!r})"
