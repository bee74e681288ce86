r"""Losses on predictions, with the structure that exact worst-case risks need.

A loss is a function :math:`\ell(f, y)` of a model output `f` and a label `y`. Beside its value and
derivatives it states what a proof may use, as attributes (``lipschitz``, ``curvature``, ``growth``,
``kinks``, ``convex``, ...) and as methods: its worst case, tilt, pieces, conic form, units. Whoever
needs to know something asks the loss; `Loss` says what there is to ask, and what a loss of your own
needs.

Binary labels are class indices 0 and 1 with sign ``s = 2 y - 1``, and `f` has shape (n,). With
K > 2 classes `f` has shape (n, K) and `y` holds class indices.

Scalar ("ridge") losses also solve their worst case exactly: `shift` returns a global maximiser of

.. math:: \ell(f + t, y) - \kappa t^2  \quad\text{over}\quad t \in R,

which is all that an order-2 Wasserstein ball can do to a linear model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from drojko._validation import chosen, did_you_mean, is_whole, shown
from drojko.exceptions import InvalidDataError
from drojko.losses.base import Loss
from drojko.losses.binary import Hinge, Logistic
from drojko.losses.callables import CallableLoss
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

_NAMED: dict[str, type[Loss]] = {
    "logistic": Logistic,
    "hinge": Hinge,
    "squared": Squared,
    "absolute": Absolute,
    "huber": Huber,
    "quantile": Quantile,
}


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
    n_classes : with more than 2, losses of two classes become those of several: "logistic" and
        "hinge" are `Softmax` and `CrammerSinger`; and the other way round.
    **params : ``delta`` of "huber", ``q`` of "quantile".

    Returns
    -------
    Loss

    Raises
    ------
    InvalidDataError
        For an unknown name, a loss of another task, parameters that the loss does not have.
    UnsupportedError
        For a loss of two classes that knows none of several.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> get_loss("huber", task="regression", delta=2.0)
    Huber(delta=2.0)
    >>> get_loss("logistic", n_classes=3)
    Softmax()
    """
    if task is not None:
        chosen("task", task, ("classification", "regression"))
    if n_classes is not None and not is_whole(n_classes, 1):
        raise InvalidDataError(f"n_classes={shown(n_classes)}; expected an integer above 0")
    if params and not isinstance(loss, str):
        raise InvalidDataError(f"{', '.join(params)}: parameters of a name, but loss is {loss!r}")
    if isinstance(loss, Loss):
        found = loss
    elif isinstance(loss, str):
        found = _named(loss, task, params)
    elif isinstance(loss, type) and issubclass(loss, Loss):
        raise InvalidDataError(f"loss is the class {loss.__name__}; give an instance of it")
    elif callable(loss):
        found = CallableLoss(loss, task=task or "classification")
    else:
        raise InvalidDataError(f"loss is {shown(loss)}; expected a name, a callable or a Loss")
    if task is not None and found.task != task:
        raise InvalidDataError(
            f"loss {found.name or found!r} is for {found.task}, but the task is {task}"
        )
    if n_classes is None or found.task == "regression":
        return found
    return found.multiclass() if n_classes > 2 else found.binary()


def _named(name: str, task: str | None, params: dict[str, Any]) -> Loss:
    known = sorted(k for k, kind in _NAMED.items() if task in (None, kind.task))
    if name not in _NAMED:
        raise InvalidDataError(f"unknown loss {shown(name)}; {did_you_mean(name, known)}")
    try:
        return _NAMED[name](**params)
    except TypeError as error:
        raise InvalidDataError(f"loss {name!r}: {error}") from error


def loss_with(loss: Any, task: str, n_classes: int | None = None, **params: float) -> Loss:
    """As `get_loss`, with those of the parameters that a loss of that name takes.

    Examples
    --------
    >>> from drojko.losses import loss_with
    >>> loss_with("absolute", "regression", delta=2.0, q=0.5)
    Absolute()
    """
    named = _NAMED.get(loss) if isinstance(loss, str) else None
    takes = () if named is None else inspect.signature(named).parameters
    own = {k: v for k, v in params.items() if k in takes}
    return get_loss(loss, task, n_classes, **own)
