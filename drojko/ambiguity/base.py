"""What all ambiguity sets share, and what solvers ask of one: attributes, `resolve`, `on`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone

from drojko._validation import Checked, is_real, set_known, shown
from drojko.ambiguity.divergence import Divergence
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["AmbiguitySet", "Divergence", "Dual"]


#: Sets by what people call them.
_NAMES = {
    "wasserstein": "Wasserstein", "kl": "KL", "chisquare": "ChiSquare", "chi2": "ChiSquare",
    "mmd": "MMD", "tv": "TotalVariation", "totalvariation": "TotalVariation",
}  # fmt: skip


class AmbiguitySet(Checked, ABC, BaseEstimator):
    """Base class of ambiguity sets: { P : D(P, P0) <= radius }, or penalty * D(P, P0).

    A subclass stores its parameters in ``__init__`` and nothing else, `radius` and `penalty`
    among them, and offers one of two things, by which solvers are chosen:

    - ``on(x, weights, groups)``, where the points stay and their masses change: an object with
      ``dual(losses, smoothing=0.0) -> Dual``. `DensityRatioSet` needs formulas in its place.
    - `moves` and `resolve`, where points move: ``resolve`` returns a `GroundCost`.

    Attributes
    ----------
    size_name : str
        The parameter that makes the set larger or smaller.
    nothing : float
        Its value where the set is the reference alone.
    moves : bool
        Whether points move. ``order`` is then the power of the distance in the cost, ``epsilon``
        an entropic smoothing, ``norm`` that of order 1, ``label_cost`` the price of other labels.
    knows_groups : bool
        Whether ``on`` needs the groups that rows belong to.
    sees_points : bool
        Whether ``on`` looks at the points: with False it may get None for them.
    most_draws : int or None
        Draws of a continuous reference above which the set is too dear.
    divergence : Divergence or None
        A power divergence, which has formulas of its own.
    conic_form : str or None
        What `drojko.baselines` knows the worst case of reweightings as.
    curvature : float or None
        f''(1) of a smooth divergence E0 f(dP/dP0).
    """

    radius: float | None
    penalty: float | None
    size_name: str = "radius"
    nothing: float = 0.0
    moves: bool = False
    order: int | None = None
    epsilon: float | None = None
    norm: float = 2
    label_cost: float = math.inf
    knows_groups: bool = False
    sees_points: bool = True
    most_draws: int | None = None
    divergence: Divergence | None = None
    conic_form: str | None = None
    _called = "ambiguity set"
    #: What errors add about the value of a parameter.
    _hints: Mapping[str, str] = {}
    _shapes = {"X": "n d", "weight": "n", "weights": "n", "ratio": "n", "t": "*"}

    @staticmethod
    def _instead(value: Any) -> str:
        """What a message says to whoever gave something else than a set."""
        if isinstance(value, type) and issubclass(value, AmbiguitySet):
            return f": make one, {value.__name__}(...)"
        if isinstance(value, str) and (near := _NAMES.get(value.lower().replace("-", ""))):
            return f": give {near}(radius=0.1)"
        radius = f"{float(value):g}" if is_real(value) and value >= 0 else "0.1"
        return f", for instance Wasserstein(radius={radius})"

    def set_params(self, **params: Any) -> Self:
        """Set parameters; an unknown name is an error that says which one may be meant."""
        return set_known(self, super().set_params, params)

    def __eq__(self, other: object) -> bool:
        """Whether another set is of the same class, with equal parameters.

        >>> from drojko.ambiguity import KL, Wasserstein
        >>> KL(0.1) == KL(0.1), KL(0.1) == KL(0.2), Wasserstein(0.1, weights=[1, 2]) == KL(0.1)
        (True, False, False)
        """
        if type(self) is not type(other):
            return NotImplemented
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]  # parameters change

    @abstractmethod
    def __init__(self, radius: float | None = None, *, penalty: float | None = None):
        self.radius = radius
        self.penalty = penalty

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
        GroundCost or None
            None where no point moves.
        """
        if self.moves:
            raise self.lacks("resolve(n_features, feature_names) -> GroundCost", "transport")
        return None

    def for_data(self, names: Sequence[str] | None, classes: Any) -> Self:
        """Return the set as it is for columns of these names and labels of these classes.

        Sets that name columns or classes know them as indices from here on; ``classes`` is None in
        a regression.
        """
        return self

    def bind(self, x: Any, y: Any, weights: Any, groups: Any = None) -> Any:
        """Return the set on weighted points with labels: `on`, for sets that know more."""
        del y
        bound = self.on(x, weights, groups)  # type: ignore[attr-defined]
        if not callable(getattr(bound, "dual", None)):
            raise UnsupportedError(
                f"{type(self).__name__}.on(...) returned {type(bound).__name__}, which has no "
                "dual(losses, smoothing=0.0) -> Dual: training and certificates of sets that "
                "reweight need it"
            )
        if not hasattr(bound, "ambiguity"):
            bound.ambiguity = self  # whose penalty solvers ask for
        return bound

    def needs_largest(self, penalty: float) -> bool:
        """Whether draws of a continuous reference prove nothing about losses beyond theirs."""
        return True

    def lacks(self, method: str, solver: str) -> UnsupportedError:
        """Return the error that names a method and the solver that needs it."""
        return UnsupportedError(
            f"{type(self).__name__} has no {method}, which {solver} needs: write it, see "
            "drojko.ambiguity.AmbiguitySet"
        )

    @property
    def curvature(self) -> float | None:
        """Second derivative f''(1) of a smooth divergence; None for other sets."""
        return None if self.divergence is None else self.divergence.curvature

    def candidates(self, X: np.ndarray, names: Any, weight: np.ndarray) -> np.ndarray:
        """Return positive sizes to choose among for rows X (n, d) with weights that sum to 1."""
        raise InvalidDataError(
            f"{type(self).__name__} has no default candidates: give radii=, or the set a "
            "candidates(X, names, weight)"
        )

    def resized(self, size: float) -> Self:
        """Return a copy with another radius (another alpha for `CVaR`), in radius form."""
        known = self.get_params(deep=False)
        if self.size_name not in known:
            raise UnsupportedError(
                f"{type(self).__name__} has no radius to choose: use a set such as Wasserstein, "
                "KL, ChiSquare or CVaR"
            )
        form = {"penalty": None} if "penalty" in known else {}
        return clone(self).set_params(**form, **{self.size_name: float(size)})

    def priced(self, penalty: float) -> Self:
        """Return a copy in penalty form."""
        if "penalty" not in self.get_params(deep=False):
            raise UnsupportedError(f"{type(self).__name__} has no penalty form")
        return clone(self).set_params(radius=None, penalty=float(penalty))

    def room(self, size: float) -> float:
        """Return how far a size is from `nothing`: the larger, the larger the set."""
        return abs(float(size) - self.nothing)

    @property
    def budget(self) -> float | None:
        """The radius in the units of the discrepancy: D(P, P0) <= budget. None in penalty form."""
        return self.radius

    def settled(self, X: Any, names: Any = None, *, variance: Any = None) -> AmbiguitySet:
        """The set with what it leaves to the rows X (n, d), ``"auto"``, replaced by what they show.

        Asked before `resolve`; the set itself where it leaves nothing open.
        """
        return self

    def validate(self, n_features: int, feature_names: Sequence[str] | None = None) -> Any:
        """Check every parameter against the data's columns and return `resolve`'s value.

        Arguments as for `resolve`. Constructors only store: this raises, at fit time.

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
        number = float(value) if is_real(value, infinite=True) else math.nan
        enough = number > 0 or (number == 0 and zero == "allowed")  # False for NaN
        if not enough or (math.isinf(number) and not infinite):
            sign = "non-negative" if zero == "allowed" else "positive"
            kind = f"{sign} number" if infinite else f"finite {sign} number"
            raise InvalidDataError(
                f"{type(self).__name__} got {parameter}={shown(value)}; it must be a {kind}"
                f"{self._hints.get(parameter, '')}"
            )


def _same(one: Any, other: Any) -> bool:
    """Whether two parameters are equal: numbers, names, arrays, containers, objects with some."""
    if one is other:
        return True
    arrays = (np.ndarray, torch.Tensor)
    if any(isinstance(part, arrays) or hasattr(part, "iloc") for part in (one, other)):
        one, other = (np.asarray(part) for part in (one, other))
        if one.dtype.kind in "fc" and other.dtype.kind in "fc":
            return np.array_equal(one, other, equal_nan=True)
        return one.shape == other.shape and _same(one.tolist(), other.tolist())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if hasattr(one, "get_params") and type(one) is type(other):
        return _same(one.get_params(deep=False), other.get_params(deep=False))
    return bool(one == other) or bool(one != one and other != other)


@dataclass(frozen=True, eq=False)
class Dual:
    r"""The worst case of a mean over reweighted samples, and the dual point that proves it.

    Radius form: ``value`` is the least upper bound of E_P loss over the set; penalty form: of
    E_P loss - penalty * D(P, P0). All in the units of the losses.

    Attributes
    ----------
    value : float
        The dual value: no distribution of the set does worse.
    penalty : float
        lambda*, the derivative of the value in the radius (infinite at radius 0 where the
        discrepancy is quadratic, 0 once the worst case is the maximum); in penalty form, the
        penalty asked for.
    shift : float
        eta*, the multiplier of the total mass: the ratio is f*'((loss - shift) / penalty).
    ratio : ndarray of shape (n,)
        dP*/dP0 of each sample: nonnegative, mean one under the weights; 0 where the weight is 0.
    attained : float
        Mean loss under that ratio: in radius form equal to ``value`` up to rounding, in penalty
        form larger than it by penalty * radius.
    radius : float
        D(P*, P0): the radius asked for or, where the worst case does not need it all, less.
    proof : str
        Always "dual": an upper bound for every distribution of the set.

    Examples
    --------
    >>> from drojko.ambiguity import ChiSquare
    >>> dual = ChiSquare(radius=0.25).dual([0.0, 1.0, 2.0, 5.0])
    >>> dual
    Dual(value=2.93541, penalty=1.87083, shift=2, attained=2.93541, radius=0.25, n=4, proof='dual')
    >>> dual.ratio.round(3)
    array([0.465, 0.733, 1.   , 1.802])
    """

    value: float
    penalty: float
    shift: float
    ratio: np.ndarray
    attained: float
    radius: float
    proof: str = "dual"

    def __repr__(self) -> str:
        names = ("value", "penalty", "shift", "attained", "radius")
        numbers = ", ".join(f"{name}={getattr(self, name):.6g}" for name in names)
        return f"Dual({numbers}, n={self.ratio.shape[0]}, proof={self.proof!r})"

    def _repr_html_(self) -> str:
        from drojko._html import table_of

        names = ("value", "penalty", "shift", "attained", "radius")
        rows = [(name, f"{getattr(self, name):.6g}") for name in names]
        ratio = f"{self.ratio.min():.4g} to {self.ratio.max():.4g}, {self.ratio.shape[0]} samples"
        return table_of(type(self).__name__, [*rows, ("ratio", ratio), ("proof", self.proof)])
