"""The interface of one kind of ambiguity set: an oracle to optimise with, and a certificate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drojko.certificates import Certificate
from drojko.inner.solver import InnerSolver
from drojko.inner.worst_case import WorstCase
from drojko.measures import Measure
from drojko.models import ModuleModel
from drojko.problems.families.oracle import Draws, Oracle

__all__ = ["Decided", "Family"]


@dataclass(frozen=True)
class Decided:
    """A decision to certify: the model at it, and the draws of the reference it is judged on."""

    model: ModuleModel
    draws: Draws
    reference: Measure
    sampled: bool
    generator: torch.Generator
    stationarity: float


@dataclass(frozen=True)
class Family(ABC):
    """One kind of ambiguity set, ``resolved`` for the columns of z, and the loss it is met by."""

    ambiguity: Any
    resolved: Any
    loss: Any
    inner: InnerSolver
    names: tuple[str, ...] | None

    @property
    def exact(self) -> bool:
        """Whether worst cases are formulas, so that bounds are proven and many draws are cheap."""
        return True

    def inside(self, x: Tensor, w: Tensor, sampled: bool) -> Draws:
        """Reference points that the set can use."""
        return Draws(x.double(), w.double())

    @abstractmethod
    def oracle(self, model: ModuleModel, draws: Draws) -> Oracle:
        """Robust values and cuts on these draws."""

    @abstractmethod
    def certify(self, of: Decided) -> tuple[Certificate, WorstCase]:
        """Certificate and worst case of the model's decision."""
