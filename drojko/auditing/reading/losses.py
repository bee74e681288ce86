"""Losses of audits: those of estimators, of labels and probabilities, and any callable."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.auditing.reading.models import AuditedModel
from drojko.auditing.reading.own import Predicted
from drojko.exceptions import InvalidDataError
from drojko.losses import CallableLoss, Loss, get_loss

__all__ = ["ZeroOne", "with_loss"]

#: Rows on which a callable is tried for gradients.
_TRIED = 64


class ZeroOne(Loss):
    r"""The share of wrong labels, :math:`1[\arg\max f \ne y]` (two classes: the sign of f)."""

    name = "zero-one"
    most = 1.0

    def __init__(self, scalar: bool = True) -> None:
        self.scalar = scalar

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        labels = (f > 0).to(y.dtype) if f.ndim == 1 else f.argmax(1).to(y.dtype)
        return (labels != y).to(f.dtype)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)

    def multiclass(self) -> ZeroOne:
        return ZeroOne(scalar=False)


class _OfProbabilities(CallableLoss):
    r""":math:`\frac12\sum_k |p_k - 1[y = k]|^q`: q = 2 is the Brier score of two classes."""

    most = 1.0

    def __init__(self, name: str, q: int) -> None:
        super().__init__(partial(_from_labels, q=q), "classification")
        self.name, self.q = name, q

    def multiclass(self) -> _OfProbabilities:
        found = _OfProbabilities(self.name, self.q)
        found.scalar = False
        return found


def _from_labels(f: Tensor, y: Tensor, q: int) -> Tensor:
    if f.ndim == 1:
        return torch.sigmoid((1.0 - 2.0 * y) * f) ** q
    p = torch.softmax(f, 1)
    return 0.5 * ((p - torch.nn.functional.one_hot(y, f.shape[1])).abs() ** q).sum(1)


class _Answered(CallableLoss):
    """A callable without gradients: of tensors or of what NumPy makes of them."""

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            found = torch.as_tensor(np.asarray(self.fn(f.detach(), y)))
        if found.shape != (len(f),) or found.is_complex():
            raise InvalidDataError(
                f"the loss returned shape {tuple(found.shape)} of {found.dtype}; expected a number "
                f"for each of {len(f)} rows"
            )
        return found.double()

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)

    def multiclass(self) -> _Answered:
        return _Answered(self.fn, self.task, scalar=False)


def with_loss(model: AuditedModel, loss: Any, rows: Tensor, y: Tensor) -> tuple[AuditedModel, Loss]:
    """The loss of a name, a callable or None, and the model as that loss takes it.

    What has no gradients makes the model one without; a copy of it stays as a guide.
    """
    if model.classes is None:
        found = get_loss("squared" if loss is None else loss, "regression", None)
        return _or_answered(model, found, rows, y)
    n_classes, labelled = len(model.classes), model.own.method == "predict"
    named = loss if isinstance(loss, str) else ""  # tables compare cell by cell
    if named == "zero-one" or (loss is None and labelled):
        note = "no gradients: the zero-one loss has none"
        own = Predicted.of(model.own)
        return replace(_without(model, note), own=own), ZeroOne(n_classes == 2)
    if labelled:
        raise InvalidDataError(
            f"{type(model.own.model).__name__} gives labels alone, neither probabilities nor a "
            'decision function: audit it with loss="zero-one", or wrap it in a '
            "CalibratedClassifierCV"
        )
    if named in ("squared", "absolute"):
        if not model.probabilities:
            raise InvalidDataError(
                f"loss={loss!r} of a classifier is about probabilities, and "
                f"{type(model.own.model).__name__} gives none: use 'zero-one' or 'hinge'"
            )
        brier = _OfProbabilities(named, 1 + (named == "squared"))
        return model, brier.multiclass() if n_classes > 2 else brier
    usual = "logistic" if model.probabilities else "hinge"
    found = get_loss(usual if loss is None else loss, "classification", n_classes)
    return _or_answered(model, found, rows, y)


def _without(model: AuditedModel, note: str) -> AuditedModel:
    if model.tabular is None:
        return model
    return replace(model, tabular=None, exact=None, note=note, guide=model.tabular)


def _or_answered(
    model: AuditedModel, loss: Loss, rows: Tensor, y: Tensor
) -> tuple[AuditedModel, Loss]:
    """A callable through which no gradient comes is asked for values alone."""
    if not isinstance(loss, CallableLoss):
        return model, loss
    f = torch.as_tensor(model.own.scores(rows[:_TRIED].numpy()), dtype=torch.float64)
    y = y[:_TRIED] if model.classes is not None else y[:_TRIED].double()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that leave the graph
            leaf = f.clone().requires_grad_()
            tried = loss.fn(leaf, y)
            if isinstance(tried, Tensor) and tried.requires_grad and tried.is_floating_point():
                return model, loss
    except (TypeError, RuntimeError, AttributeError, ValueError):
        pass  # of a tensor that requires gradients NumPy makes nothing
    try:
        answered = _Answered(loss.fn, loss.task, loss.scalar)
        answered.value(f, y)
    except InvalidDataError:
        raise
    except Exception as error:
        raise InvalidDataError(
            f"the loss fails on predictions {tuple(f.shape)} and labels {tuple(y.shape)}: {error}"
        ) from error
    return _without(model, "no gradients: the loss has none"), answered
