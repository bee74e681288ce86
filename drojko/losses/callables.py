"""A loss from a callable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drojko._validation import chosen, shown
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.losses.base import Loss

__all__ = ["CallableLoss", "in_torch"]


def in_torch(name: str, fn: Callable[..., Any], *args: Any) -> Any:
    """What a user's function returns; `InvalidDataError` where it leaves torch for NumPy."""
    try:
        return fn(*args)
    except RuntimeError as error:
        if "numpy() on Tensor that requires grad" not in str(error):
            raise
        raise InvalidDataError(
            f"{name} calls NumPy on tensors that need a gradient: write it by torch alone "
            "(torch.abs(f - y), not np.abs(f - y))"
        ) from error


class CallableLoss(Loss):
    """A user's ``loss(prediction, y) -> (n,)``; derivatives by autograd, no proven bounds.

    Parameters
    ----------
    fn : callable
        On tensors: predictions of shape (n,) or (n, K) and labels, to a loss per row.
    task : {"classification", "regression"}
    scalar : bool
        Whether predictions have shape (n,).

    Examples
    --------
    >>> loss = CallableLoss(lambda f, y: (f - y) ** 4, task="regression")
    >>> loss.gradient(torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([4.])
    """

    name = "callable"
    structured = False
    any_outputs = True  # shapes are the function's to judge

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        task: str = "classification",
        scalar: bool = True,
    ) -> None:
        chosen("CallableLoss: task", task, ("classification", "regression"))
        self.fn = fn
        self.task = task
        self.scalar = scalar

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        out = in_torch("the loss", self.fn, f, y)
        if not isinstance(out, Tensor) or tuple(out.shape) != (f.shape[0],):
            raise InvalidDataError(
                f"the loss returned {shown(out)}; expected one value per row, a tensor of shape "
                f"({f.shape[0]},)"
            )
        if not out.is_floating_point():
            raise InvalidDataError(
                f"the loss returned {shown(out)}; expected real numbers: compute it from the "
                "prediction without rounding, comparisons or complex numbers"
            )
        if f.requires_grad and not out.requires_grad and torch.is_grad_enabled():
            self._check_constant(out, f, y)
        return out

    def _check_constant(self, out: Tensor, f: Tensor, y: Tensor) -> None:
        """Raise where a loss has no history though it changes with the prediction."""
        with torch.no_grad():
            moved = self.fn(f.detach() + 1e-3 * (1.0 + f.detach().abs()), y)
        if not torch.equal(moved, out):
            raise InvalidDataError(
                "the loss returned a tensor that is detached from the prediction (by detach(), "
                "item() or numpy()), so that there is no gradient: compute it by torch alone"
            )

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            value = self.value(leaf, y)
            return torch.autograd.grad(value.sum(), leaf)[0] if value.requires_grad else 0.0 * f

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        if f.ndim != 1:
            raise UnsupportedError("second_derivative is defined for outputs of shape (n,)")
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            value = self.value(leaf, y)
            if not value.requires_grad:
                return torch.zeros_like(f)
            (g,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            if not g.requires_grad:
                return torch.zeros_like(f)
            (h,) = torch.autograd.grad(g.sum(), leaf, allow_unused=True)
        return torch.zeros_like(f) if h is None else h.detach()

    def multiclass(self) -> CallableLoss:
        return CallableLoss(self.fn, self.task, scalar=False)

    def binary(self) -> CallableLoss:
        return CallableLoss(self.fn, self.task, scalar=True)

    def __repr__(self) -> str:
        return f"CallableLoss({self.fn!r}, task={self.task!r})"
