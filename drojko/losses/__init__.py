r"""Losses on predictions, with the structure that exact worst-case risks need.

A loss is a function :math:`\ell(f, y)` of a model output `f` and a label `y`. Beside its value and
derivatives it states, as data, what a proof may use:

- ``lipschitz``: :math:`\sup \|\partial\ell/\partial f\|`;
- ``curvature``: the largest second derivative (``inf`` where there are kinks);
- ``growth``: :math:`\sup_{f'} \ell(f', y) - \kappa (f'-f)^2` is finite for ``kappa > growth``;
- ``kinks``: where it is not differentiable, as margins ``s f`` (classification) or residuals
  ``f - y`` (regression).

Binary labels are class indices 0 and 1 with sign ``s = 2 y - 1``, and `f` has shape (n,). With
K > 2 classes `f` has shape (n, K) and `y` holds class indices.

Scalar ("ridge") losses also solve their worst case exactly: `shift` returns a global maximiser of

.. math:: \ell(f + t, y) - \kappa t^2  \quad\text{over}\quad t \in R,

which is all that an order-2 Wasserstein ball can do to a linear model.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from drojko.exceptions import InvalidDataError
from drojko.losses.base import CallableLoss, Loss
from drojko.losses.binary import Hinge, Logistic
from drojko.losses.multiclass import CrammerSinger, Softmax
from drojko.losses.regression import Absolute, Huber, Quantile, Squared

__all__ = [
    "Absolute",
    "CallableLoss",
    "CrammerSinger",
    "Hinge",
    "Huber",
    "Logistic",
    "Loss",
    "Quantile",
    "Softmax",
    "Squared",
    "get_loss",
]

_CLASSIFICATION = {"logistic": (Logistic, Softmax), "hinge": (Hinge, CrammerSinger)}
_REGRESSION = {"squared": Squared, "absolute": Absolute, "huber": Huber, "quantile": Quantile}


def get_loss(
    loss: str | Callable[[Tensor, Tensor], Tensor] | Loss,
    task: str | None = None,
    n_classes: int | None = None,
    **params: float,
) -> Loss:
    """The `Loss` of a name, of a callable, or a `Loss` itself.

    Parameters
    ----------
    loss : "logistic", "hinge", "squared", "absolute", "huber", "quantile", callable or Loss
    task : "classification" or "regression"; checked against the loss where given.
    n_classes : with more than 2, "logistic" and "hinge" are `Softmax` and `CrammerSinger`.
    **params : ``delta`` of "huber", ``q`` of "quantile".

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> get_loss("huber", task="regression", delta=2.0)
    Huber(delta=2.0)
    >>> get_loss("logistic", n_classes=3)
    Softmax()
    """
    if isinstance(loss, Loss):
        found = loss
    elif isinstance(loss, str):
        known = {**_CLASSIFICATION, **_REGRESSION}
        if loss not in known:
            raise InvalidDataError(f"unknown loss {loss!r}; known: {', '.join(sorted(known))}")
        if loss in _CLASSIFICATION:
            factory = _CLASSIFICATION[loss][int((n_classes or 2) > 2)]
        else:
            factory = _REGRESSION[loss]
        try:
            found = factory(**params)
        except TypeError as error:
            raise InvalidDataError(f"loss {loss!r}: {error}") from error
    elif callable(loss):
        return CallableLoss(
            loss, task=task or "classification", scalar=(n_classes or 2) <= 2, **params
        )
    else:
        raise InvalidDataError(f"loss is {loss!r}; expected a name, a callable or a Loss")
    if task is not None and found.task != task:
        raise InvalidDataError(f"loss {found.name!r} is for {found.task}, but the task is {task}")
    return found
