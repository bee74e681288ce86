"""One interface to all kinds of ambiguity sets: how to train against them and certify."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.approaches.plan import Plan, Points
from drojko.certificates import Certificate
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.inner.worst_case import WorstCase
from drojko.losses import Loss
from drojko.measures import LabelledMeasure
from drojko.minimax.problem import TrainResult
from drojko.models import TabularModel

__all__ = ["Approach", "Assessment", "FittedModel", "NoWorstCase"]

#: Radii and penalties whose squares, and the squares of what is computed from them, are finite.
_RADII, _PENALTIES = (1e-60, 1e60), (1e-130, 1e130)


class NoWorstCase(UnsupportedError, AttributeError):
    """An attribute that these settings do not have: ``hasattr`` and ``dir`` take it as absent."""


@dataclass(frozen=True)
class Assessment:
    """The certificate of a trained model, and its worst case as arrays and plain values.

    ``constant`` is a word on a model that was replaced by a constant prediction, ``advice`` one
    for the user to be warned with.
    """

    certificate: Certificate
    state: dict[str, Any]
    constant: str | None = None
    advice: str | None = None


@dataclass(frozen=True)
class FittedModel:
    """What a worst case is rebuilt from, beside its own state."""

    model: TabularModel
    loss: Loss
    reference: LabelledMeasure
    classes: np.ndarray | None
    feature_names: tuple[str, ...] | None
    dtype: torch.dtype
    device: str


class Approach(ABC):
    """How one kind of ambiguity set is trained against, certified and sampled. Stateless."""

    #: Key in the stored state of a fitted estimator.
    name: str
    #: Whether certificates need gradients of the model in its inputs.
    gradients = True

    @abstractmethod
    def serves(self, ambiguity: AmbiguitySet) -> bool:
        """Whether the set offers what this approach needs."""

    def resolve(self, ambiguity: AmbiguitySet, X: np.ndarray, names: Any) -> GroundCost:
        """Check the set against the data; the geometry of X, trivial where nothing moves."""
        cost = ambiguity.validate(X.shape[1], None if names is None else list(names))
        if ambiguity.moves and not isinstance(cost, GroundCost):
            raise UnsupportedError(
                f"{type(ambiguity).__name__}.resolve returned {type(cost).__name__}; transport "
                "needs a drojko.ambiguity.GroundCost"
            )
        hint = "use radius=0 for no ambiguity at all"
        _check_range("radius", ambiguity.radius, _RADII, hint)
        _check_range("penalty", ambiguity.penalty, _PENALTIES, hint)
        return cost if ambiguity.moves else GroundCost(np.ones(X.shape[1]))

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """How far (root mean square) a kernel density reference may move its samples."""
        return None

    def measure(
        self,
        ambiguity: AmbiguitySet,
        reference: LabelledMeasure,
        X: Any,
        y: Any,
        weight: Any,
        groups: Any,
    ) -> LabelledMeasure:
        """Fit the reference, unless it is fitted; ``groups`` are for sets that know of them."""
        if reference.__sklearn_is_fitted__():
            return reference
        return reference.fit(X, y, sample_weight=weight)

    def reject(self, plan: Plan, model: TabularModel) -> None:  # noqa: B027
        """Raise for combinations without a meaning or not supported."""

    def most_iterations(self, plan: Plan, model: TabularModel) -> int:
        """How many iterations a callback may see."""
        return plan.max_iter

    @abstractmethod
    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Train ``model`` in place; ``start`` is the penalty of a previous fit."""

    @abstractmethod
    def assess(
        self, plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
    ) -> Assessment:
        """Certify a trained model on draws that training has not seen, or on the atoms."""

    @abstractmethod
    def certify(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """Certificate of a fixed model on the empirical measure of points x, y, weights."""

    def found(self, plan: Plan, model: TabularModel, certificate: Certificate, atoms: int) -> Any:
        """State of the worst case of a fixed model, for `worst_case`; None where there is none."""
        result = TrainResult("converged", "", 0, certificate.penalty, math.nan)
        return self.assess(plan, model, result, False, atoms).state

    @abstractmethod
    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> WorstCase:
        """Rebuild the worst case of `assess` from its state."""


def _check_range(name: str, value: float | None, limits: tuple[float, float], hint: str) -> None:
    if value and not limits[0] <= value <= limits[1]:
        raise InvalidDataError(
            f"{name}={value!r} is beyond what floating-point numbers can square: expected "
            f"{limits[0]:g} to {limits[1]:g}; {hint}, or rescale X"
        )
