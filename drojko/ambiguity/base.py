"""What all ambiguity sets share: exactly one of radius and penalty, checked at fit time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

from sklearn.base import BaseEstimator

from drojko.exceptions import InvalidDataError

__all__ = ["AmbiguitySet"]


class AmbiguitySet(ABC, BaseEstimator):
    """Base class of ambiguity sets: { P : D(P, P0) <= radius }, or penalty * D(P, P0).

    A subclass stores its parameters in ``__init__`` and nothing else, `radius` and `penalty`
    among them, and implements `resolve`. `validate` is called by whoever fits.
    """

    radius: float | None
    penalty: float | None

    @abstractmethod
    def resolve(self, n_features: int, feature_names: Sequence[str] | None = None) -> Any:
        """Turn names, masks and bounds into arrays for data with ``n_features`` columns.

        Parameters
        ----------
        n_features : int
            Number of columns of the data.
        feature_names : sequence of str, default=None
            Column names, in order; None when the data had none.

        Returns
        -------
        object
            A frozen value that solvers use; for transport costs a `GroundCost`.
        """

    @property
    def budget(self) -> float | None:
        """The radius in the units of the discrepancy: D(P, P0) <= budget. None in penalty form."""
        return self.radius

    def validate(self, n_features: int, feature_names: Sequence[str] | None = None) -> Any:
        """Check every parameter against the data's columns and return `resolve`'s value.

        Parameters
        ----------
        n_features : int
            Number of columns of the data.
        feature_names : sequence of str, default=None
            Column names, in order; None when the data had none.

        Raises
        ------
        InvalidDataError
            Naming the parameter and what to do about it.
        UnsupportedError
            For settings that are meaningful but not offered.
        """
        self._validate_params()
        return self.resolve(n_features, feature_names)

    def _validate_params(self) -> None:
        """Check all that needs no data. scikit-learn's name for it: estimators call it too."""
        name = type(self).__name__
        if self.radius is None and self.penalty is None:
            raise InvalidDataError(
                f"{name} needs a radius or a penalty: give {name}(radius=...) for a ball, or "
                f"{name}(penalty=...) for its penalised form"
            )
        if self.radius is not None and self.penalty is not None:
            raise InvalidDataError(
                f"{name} got radius={self.radius} and penalty={self.penalty}: give exactly one and "
                "set the other one to None"
            )
        if self.radius is not None:
            self._check_number("radius", self.radius, zero="allowed")
        if self.penalty is not None:
            self._check_number("penalty", self.penalty, zero="refused")

    def _check_number(
        self, parameter: str, value: Any, *, zero: str, infinite: bool = False
    ) -> None:
        """Raise unless ``value`` is a real number that is not negative."""
        real = isinstance(value, Real) and not isinstance(value, bool)
        number = float(value) if real else math.nan
        enough = number > 0 or (number == 0 and zero == "allowed")  # False for NaN
        if not enough or (math.isinf(number) and not infinite):
            sign = "non-negative" if zero == "allowed" else "positive"
            kind = f"{sign} number" if infinite else f"finite {sign} number"
            raise InvalidDataError(
                f"{type(self).__name__} got {parameter}={value!r}; it must be a {kind}"
            )
