"""What all sets share that reweight the reference by a divergence: exact duals, ratios, draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drojko._validation import checked, shown
from drojko.ambiguity.base import AmbiguitySet, Dual
from drojko.ambiguity.divergence import Divergence, Levels, Plain, Priced, Tails
from drojko.ambiguity.duals.bounded import BoundedRatio
from drojko.ambiguity.duals.nearby import dual_near
from drojko.ambiguity.duals.scaling import (
    Sample,
    Worst,
    finite_losses,
    floats,
    masses,
    nonnegative,
    smoothed,
)
from drojko.ambiguity.duals.solvers import ByConjugate, Family
from drojko.exceptions import InvalidDataError

__all__ = ["DensityRatioSet", "Reweighting", "flat", "reweighted", "soft_maximum"]

#: Penalties, in spreads of the losses, beyond which the worst case is their mean or their maximum.
_LARGEST_PENALTY, _SMALLEST_PENALTY = 1e150, 1e-150
#: Mass of the largest losses that stands for the largest one, where a worst case puts mass there,
#: and the most that a single draw carries of a worst case.
_SLICE = 0.01


class DensityRatioSet(AmbiguitySet):
    r"""Base class of the sets that reweight samples: D(P, P0) = E0 f(dP/dP0) and its like.

    Points do not move, so that P is absolutely continuous: the worst it can be is the largest loss
    of positive weight.

    A subclass offers three formulas, on arrays, of a convex f with f(1) = f'(1) = 0 that grows
    faster than any line: `discrepancy`, `conjugate` and `log_ratio`. Everything else follows from
    them by scalar equations (`drojko.ambiguity.duals.solvers`); the sets of this package have
    faster ones of their own.

    Parameters
    ----------
    radius : float, default=None
        Bound of D(P, P0).
    penalty : float, default=None
        Price of one unit of D, in the units of the loss; exactly one of the two is given.

    Examples
    --------
    A set of one's own, here the Kullback-Leibler ball once more:

    >>> import numpy as np
    >>> class Entropy(DensityRatioSet):
    ...     def discrepancy(self, ratio, weights):  # E0 f(ratio), f(r) = r log r - r + 1
    ...         return float(weights @ (ratio * np.log(np.maximum(ratio, 1e-300)) - ratio + 1))
    ...     def conjugate(self, t):  # f*(t) = sup_r t r - f(r)
    ...         return np.expm1(t)
    ...     def log_ratio(self, t):  # log f*'(t)
    ...         return t
    >>> round(Entropy(radius=0.1).dual([0.0, 1.0, 2.0, 5.0]).value, 5)
    2.86822
    """

    sees_points = False
    #: The radius from which on D says nothing, where larger ones are a mistake.
    _largest_radius = np.inf

    def __init__(self, radius: float | None = None, *, penalty: float | None = None):
        super().__init__(radius, penalty=penalty)

    def dual(self, losses: Any, weights: Any = None) -> Dual:
        """Return the exact worst case of the mean of ``losses``.

        Parameters
        ----------
        losses : array or tensor of shape (n,)
            Finite; larger is worse.
        weights : array or tensor of shape (n,), default=None
            The reference P0: nonnegative, not all zero, normalised here; None: all equal. Weight
            k is the same as k copies, weight 0 the same as absence.

        Returns
        -------
        Dual
            Numbers and a numpy array, whatever came in.

        Raises
        ------
        InvalidDataError
            For settings without meaning, losses that are not finite, negative weights.
        """
        self._validate_params()
        return self._dual(Sample(losses, weights))

    def _dual(self, sample: Sample) -> Dual:
        if sample.constant:
            given = self.penalty
            worst = Worst(0.0, 0.0 if given is None else sample.reduce(given), 0.0, None, 0.0)
        else:
            worst = self._worst(sample)
        ratio = np.ones(sample.size) if worst.ratio is None else worst.ratio
        attained = float((sample.w * ratio * sample.y).sum())
        penalty = sample.enlarge(worst.penalty) if self.penalty is None else float(self.penalty)
        return Dual(
            value=sample.reach(worst.excess),
            penalty=penalty,
            shift=sample.restore(worst.shift),
            ratio=sample.scatter(ratio),
            attained=sample.reach(attained),
            radius=worst.radius,
        )

    def dual_near(self, losses: np.ndarray, weights: np.ndarray, levels: Any) -> Dual | None:
        """Return `dual` without its ratio and without sorting, from levels close to the best ones.

        None where they are not close, or where the set has no such way.
        """
        if len(levels) != 2:
            return None
        return dual_near(self, losses, weights, float(levels[0]), float(levels[1]))

    def dual_path(self, losses: Any, radii: Any, weights: Any = None) -> np.ndarray:
        """Return the values of `dual` for many radii, whatever the set's own size is.

        Parameters
        ----------
        losses, weights : array or tensor of shape (n,)
            As in `dual`. They are sorted and summed up once.
        radii : array of shape (m,)
            In any order.

        Returns
        -------
        ndarray of shape (m,)
            Upper bounds of the worst case, exact to rounding: nondecreasing, concave in the radius.
        """
        self._check_family()
        radii = floats(radii, "radii")
        self._check_radii(radii)
        sample = Sample(losses, weights)
        if sample.constant:
            return np.full(radii.shape, sample.restore(0.0))
        return sample.reach(np.maximum(self._path(sample, radii.ravel()), 0.0)).reshape(radii.shape)

    def log_ratio_at(self, losses: Any, penalty: float, shift: float) -> np.ndarray:
        r"""Return the logarithm of the ratio that a dual point gives to any losses.

        .. math:: \log \frac{dP_*}{dP_0} = \log (f^*)'\left(\frac{\ell - \mathrm{shift}}
            {\mathrm{penalty}}\right)

        which on the losses that `dual` was solved for is log(ratio), apart from what lies on a
        single loss (`jumps`). On others its mean is one only as well as those losses stand for
        the reference.

        Parameters
        ----------
        losses : array or tensor of shape (n,)
        penalty, shift : float
            As in a `Dual`. Penalty 0 means that all mass is on the largest loss, infinity that
            nothing changes: ratio 1.

        Returns
        -------
        ndarray of shape (n,)
            -inf where the ratio is 0; +inf beyond the losses that the dual point allows
            (Cressie-Read with k < 1).

        Examples
        --------
        >>> from drojko.ambiguity import ChiSquare
        >>> dual = ChiSquare(radius=0.25).dual([0.0, 1.0, 2.0, 5.0])
        >>> ratio = np.exp(ChiSquare(0.25).log_ratio_at([5.0, 6.0], dual.penalty, dual.shift))
        >>> ratio.round(3)
        array([1.802, 2.069])
        """
        values = floats(losses, "losses")
        if np.isinf(penalty):
            return np.zeros(values.shape)
        if penalty <= 0:  # all mass on the largest loss, of which it is the shift
            return np.full(values.shape, -np.inf)
        with np.errstate(divide="ignore", over="ignore"):
            return np.asarray(self.log_ratio((values - shift) / penalty))

    def bounded(
        self, losses: Any, weights: Any, penalty: float, shift: float, ratio: Any = None
    ) -> BoundedRatio:
        """Return the ratio of a dual point for references that have no largest loss.

        Mass on the largest loss alone (`needs_largest`), and that of a worst case which fewer than
        100 draws carry, goes to the 1 % of the reference with the largest losses, evenly: that
        stays in the set and falls short of the supremum by the spread of the losses within that
        slice. Other ratios end where a draw would carry a hundredth of the worst case.

        Parameters
        ----------
        losses, weights : array of shape (n,)
            Of the draws that the dual point belongs to; the weights sum to 1.
        penalty, shift : float
            The dual point.
        ratio : array of shape (n,), default=None
            What the dual gives to these draws; None: the formula.
        """
        values = floats(losses, "losses")
        values = finite_losses(values, values.size)
        w = masses(weights, values.size)
        w = w / w.sum()
        if np.isinf(penalty):
            return BoundedRatio()
        r = plain = BoundedRatio().at(self, values, penalty, shift)
        step, kept = -np.inf, 1.0
        if ratio is not None:  # of a step, losses that are equal share what is left of the mass
            r = floats(ratio, "ratio")
            if r.shape != values.shape:
                raise InvalidDataError(f"ratio is {shown(ratio)}; expected shape {values.shape}")
            apart = (np.abs(plain - r) > 1e-6 * (1.0 + r)) & (values < values.max())
            if apart.any():
                runs, count = np.unique(values[apart], return_counts=True)
                step = float(runs[count.argmax()])
                kept = float(r[values == step].mean())
        slice_only, top, level = penalty <= 0 or self.needs_largest(penalty), np.inf, np.inf
        if not slice_only:
            level = max(1.0 / _SLICE, _SLICE / float(w @ w)) * float(w @ r)
            mass = w * np.minimum(r, level)
            slice_only = not float(mass.sum()) ** 2 >= float(mass @ mass) / _SLICE
        if slice_only:
            order = np.argsort(-values)
            count = min(int((np.cumsum(w[order]) < _SLICE).sum()), values.size - 1)
            top = float(values[order[count]])
            above = values >= top
            missing = float(w @ r) if ratio is not None else 1.0
            missing -= float(w[~above] @ r[~above])
            if not np.isfinite(missing):  # a dual point of other losses
                return BoundedRatio()
            level = max(missing, 0.0) / float(w[above].sum())
        return BoundedRatio(top, level, step, kept)

    def discrepancy(self, ratio: np.ndarray, weights: np.ndarray) -> float:
        """Return D of a ratio (n,) of mean one under weights (n,) that sum to 1."""
        nonnegative(ratio)
        return self._formulas("discrepancy(ratio, weights)", "a dual in radius form").of(
            ratio, weights
        )

    #: Whether a part of the worst case's mass sits on the largest loss alone.
    jumps = False

    def needs_largest(self, penalty: float) -> bool:
        """Whether the dual bound at a multiplier asks for the largest loss that can occur.

        Then it proves nothing about a reference with draws beyond those that it was solved for.
        """
        return penalty <= 0

    @property
    def ratio_bound(self) -> float:
        """Largest value of dP/dP0 that the set allows; infinite where there is no limit."""
        return np.inf

    def log_ratio(self, t: np.ndarray) -> np.ndarray:
        """Return log f*'(t), t = (loss - shift) / penalty: the log of the ratio."""
        return self._formulas("log_ratio(t)", "the dual and every solver on it").log_ratio(t)

    def on(self, x: Any, weights: Any, groups: Any = None) -> Reweighting:
        """Return the set on given support points, ready for many `dual` calls in training.

        Parameters
        ----------
        x, groups : object
            Ignored: density ratios know neither where points are nor what they belong to.
        weights : array or tensor of shape (n,)
            The reference P0.
        """
        return Reweighting(self, weights)

    def bounds_at(self, losses: Any, penalty: float, shift: float) -> np.ndarray:
        r"""Return what each loss contributes to the dual bound of a dual point.

        .. math:: \eta + \lambda r + \lambda f^*\left(\frac{\ell - \eta}{\lambda}\right)

        (without lambda r in penalty form). Whatever the dual point, the mean of it under P0 is an
        upper bound of the worst case: so is, on average, its mean over independent draws.

        Parameters
        ----------
        losses : array or tensor of shape (n,)
        penalty, shift : float
            lambda and eta, as in a `Dual` of other losses. At penalty 0 the bound is the shift up
            to there, and infinite beyond; at an infinite penalty it is the loss itself.

        Examples
        --------
        >>> from drojko.ambiguity import ChiSquare
        >>> ball, losses = ChiSquare(radius=0.25), [0.0, 1.0, 2.0, 5.0]
        >>> dual = ball.dual(losses)
        >>> bool(abs(ball.bounds_at(losses, dual.penalty, dual.shift).mean() - dual.value) < 1e-12)
        True
        """
        values = floats(losses, "losses")
        if not np.isfinite(shift):
            raise InvalidDataError(f"shift={shift}; expected the finite shift of a dual")
        if np.isinf(penalty):
            return values.copy()
        if penalty <= 0:
            rounding = 1e-12 * max(1.0, abs(shift))
            return np.where(values <= shift + rounding, np.maximum(values, shift), np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            price = 0.0 if self.penalty is not None else penalty * self._size()
            return shift + price + penalty * self.conjugate((values - shift) / penalty)

    def conjugate(self, t: np.ndarray) -> np.ndarray:
        """Return f*(t); +inf where it has no value."""
        return self._formulas("conjugate(t)", "the dual and every certificate").conjugate(t)

    def _formulas(self, method: str, solver: str) -> Divergence:
        """The divergence of a known form; without it, the error that names what is missing."""
        if self.divergence is None:
            raise self.lacks(method, solver)
        return self.divergence

    @property
    def curvature(self) -> float | None:
        """Second derivative f''(1), by differences where it is not given; None at a kink."""
        if self.divergence is not None:
            return self.divergence.curvature
        low, high = self.log_ratio(np.array([-1e-4, 1e-4])).tolist()
        slope = (high - low) / 2e-4
        return 1.0 / slope if 1e-6 < slope < 1e6 else None

    def candidates(self, X: np.ndarray, names: Any, weight: np.ndarray) -> np.ndarray:
        """Worst cases from half a standard error to 17 above the mean."""
        curvature = self.curvature
        if curvature is None:
            return super().candidates(X, names, weight)
        return np.geomspace(0.3, 300.0, 8) * curvature * float(weight @ weight) / 2.0

    def conjugate_jet(
        self, t: np.ndarray, delta: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return f*, f*' and f*'' at t, kinks smoothed by delta; None outside the domain.

        Of a set of one's own f*'' is taken by differences.
        """
        if self.divergence is not None:
            found = self.divergence.jet(t, delta)
            nothing = found is not None and any(np.isnan(part).any() for part in found)
            return None if nothing else found
        with np.errstate(over="ignore", invalid="ignore"):
            value, ratio = self.conjugate(t), np.exp(self.log_ratio(t))
            step = 1e-5 * (1.0 + np.abs(t))
            slope = (self.log_ratio(t + step) - self.log_ratio(t - step)) / (2.0 * step)
        if not np.isfinite(value).all():
            return None
        return value, ratio, np.where((ratio > 1e-12) & np.isfinite(slope), ratio * slope, 0.0)

    def levels(self, weights: np.ndarray, unit: float) -> Levels:
        """Return the set as a minimum over levels, for cells of given weights."""
        if weights.size == 0 or not (weights >= 0.0).all():
            raise InvalidDataError(f"weights is {shown(weights)}; expected masses of cells")
        if self.penalty is None:
            least = float(weights.min())
            budget = float(self.budget or 0.0)
            if budget == 0.0 or weights.size == 1:
                return Plain(self, weights)
            if least > 0.0 and budget >= self.radius_of_maximum(least):
                return Tails.maximum(self, weights)
        return self._levels(weights, unit)

    def _levels(self, weights: np.ndarray, unit: float) -> Levels:
        return Priced(self, weights, unit)

    def _smoothed(self, bound: Reweighting, losses: np.ndarray, smoothing: float) -> Dual:
        r"""Smoothed dual of an f-divergence: its multiplier stays above a least one.

        .. math:: V_\delta = \max_{D(q) \le r} E_0 q \ell - \underline\lambda D(q)
                  = \min_{\lambda \ge \underline\lambda} \Phi(\lambda) - \underline\lambda r, \qquad
                  \underline\lambda = \delta / \min(r, D_{\max})

        so that the ratio stays continuous where the worst case would jump to the largest loss.
        """
        reach = self.radius_of_maximum(bound.least)
        given, radius = self.penalty, self.radius
        if radius == 0.0 or reach <= 0.0:
            return flat(bound, losses)
        sample = Sample(losses, bound.weights, plain=bound.positive)
        sample.hint = bound.start
        ball = None
        if given is None:
            least = smoothing / min(float(radius or 0.0), reach)
            ball = None if sample.constant else self._ball(sample, float(radius or 0.0))
            penalty = 0.0 if ball is None else sample.enlarge(ball.penalty)
        else:
            least = smoothing / reach
            penalty = float(given)
        if ball is not None and penalty >= least:
            worst, value = ball, sample.restore(ball.excess) - least * ball.radius
        else:
            penalty = max(penalty, least)
            worst = self._priced(sample, penalty)
            value = sample.restore(worst.excess)
        ratio = np.ones(losses.size)
        if worst.ratio is not None:
            ratio = sample.scatter(worst.ratio)
        bound.start = sample.hint
        attained = float((bound.weights * ratio) @ losses)
        shift = sample.restore(worst.shift)
        return Dual(value, penalty, shift, ratio, attained, worst.radius)

    def _worst(self, sample: Sample) -> Worst:
        if self.penalty is None:
            radius = self._size()
            return self._ball(sample, radius) if radius > 0 else self._nominal(sample)
        return self._priced(sample, self.penalty)

    def _priced(self, sample: Sample, price: float) -> Worst:
        """Return the solution of the penalised form at a price in the units of the losses."""
        penalty = sample.reduce(price)
        if sample.constant or penalty > _LARGEST_PENALTY:
            return Worst(0.0, penalty, 0.0, None, 0.0)
        if penalty < _SMALLEST_PENALTY:
            return sample.maximum(0.0, radius=self.radius_of_maximum(sample.top_mass))
        return self._penalised(sample, penalty)

    def _size(self) -> float:
        return float(self.radius) if self.radius is not None else np.nan

    def _nominal(self, sample: Sample) -> Worst:
        """Return the solution at radius 0: smooth discrepancies begin with an infinite slope."""
        return Worst(0.0, np.inf, 0.0, None, 0.0)

    def _ball(self, sample: Sample, radius: float) -> Worst:
        largest = self.radius_of_maximum(sample.top_mass)
        if radius >= largest:
            return sample.maximum(0.0, largest)
        return self._solver(sample).ball(radius)

    def _penalised(self, sample: Sample, penalty: float) -> Worst:
        return self._solver(sample).priced(penalty)

    def _path(self, sample: Sample, radii: np.ndarray) -> np.ndarray:
        return self._solver(sample).path(radii)

    def _solver(self, sample: Sample) -> Family | ByConjugate:
        known = self.divergence
        return ByConjugate(sample, self) if known is None else Family(sample, known)

    def radius_of_maximum(self, mass: float) -> float:
        """Return the discrepancy of P0 given an event of this mass: from there on, the maximum."""
        if self.divergence is not None:
            return self.divergence.of_event(mass)
        if mass >= 1.0:
            return 0.0
        return self.discrepancy(np.array([1.0 / mass, 0.0]), np.array([mass, 1.0 - mass]))

    def _check_family(self) -> None:
        """Check the parameters that are no size."""

    def _check_radii(self, radii: np.ndarray) -> None:
        wrong = ~(np.isfinite(radii) & (radii >= 0) & (radii <= self._largest_radius))
        if wrong.any():
            raise InvalidDataError(
                f"{type(self).__name__} got radius={float(radii[wrong][0])!r}; it must be a finite "
                f"non-negative number{self._hints.get('radius', '')}"
            )

    def _validate_params(self) -> None:
        super()._validate_params()
        self._check_family()
        if self.radius is not None:
            self._check_radii(np.asarray([self.radius], dtype=np.float64))


@checked()
class Reweighting:
    r"""A set of density ratios on n weighted points: what `DensityRatioSet.on` returns.

    Parameters
    ----------
    ambiguity : DensityRatioSet
    weights : array of shape (n,)
        The reference P0: nonnegative, normalised here.

    Examples
    --------
    >>> from drojko.ambiguity import CVaR
    >>> bound = CVaR(alpha=0.5).on(None, [0.25, 0.25, 0.25, 0.25])
    >>> bound.dual([0.0, 1.0, 2.0, 5.0]).value
    3.5
    >>> smooth = bound.dual([0.0, 1.0, 2.0, 5.0], smoothing=0.5)
    >>> smooth.value <= 3.5 <= smooth.value + 0.5
    True
    """

    def __init__(self, ambiguity: Any, weights: Any):
        ambiguity._validate_params()
        self.ambiguity = ambiguity
        n = None if weights is None else floats(weights, "weights").size
        if not n:
            raise InvalidDataError(f"weights={shown(weights)}; expected one weight for each point")
        equal = type(weights) is np.ndarray and weights.strides == (0,) and float(weights[0]) > 0.0
        mass: Any = weights if equal else masses(weights, n)
        self.weights = np.broadcast_to(np.float64(1.0 / n), n) if equal else mass / mass.sum()
        self.least = float(self.weights[self.weights > 0].min())
        self.positive = bool((self.weights > 1e-300).all())
        #: Where the last search of a threshold ended; the next one, on losses nearby, starts there.
        self.start: float | None = None

    def dual(self, losses: Any, smoothing: float = 0.0) -> Dual:
        """Return the exact `Dual`, or one whose ratio is continuous in the losses.

        Parameters
        ----------
        losses : array or tensor of shape (n,)
        smoothing : float
            In the units of the losses. The smoothed value is at most that much below the exact one
            and never above it. Divergences keep their multiplier above ``smoothing / radius``;
            total variation and CVaR get an entropy.
        """
        values = finite_losses(losses, len(self.weights))
        if smoothing > 0.0:
            return smoothed(self.ambiguity._smoothed, self, values, float(smoothing))
        return self.ambiguity.dual(values, self.weights)  # which a set of one's own may override

    #: How rows make up cells, (n, cells), None: every row is one; what a checkpoint has to keep.
    cells, remembers = None, ("start",)

    def levels(self, unit: float) -> Levels:
        """Return the set as a minimum over levels; ``unit`` is a typical loss."""
        return self.ambiguity.levels(self.weights, unit)


# Smoothed duals: ratios that are continuous in the losses --------------------------------------


def reweighted(
    bound: Any, losses: np.ndarray, value: float, penalty: float, shift: float, ratio: np.ndarray
) -> Dual:
    """A dual with what its ratio attains and spends."""
    weights = bound.weights
    spent = bound.ambiguity.discrepancy(ratio, weights)
    return Dual(value, penalty, shift, ratio, float((weights * ratio) @ losses), spent)


def flat(bound: Any, losses: np.ndarray) -> Dual:
    """The mean: nothing is reweighted."""
    mean = float(bound.weights @ losses)
    return Dual(mean, math.inf, mean, np.ones(losses.size), mean, 0.0)


def soft_maximum(bound: Any, losses: np.ndarray, smoothing: float) -> Dual:
    r"""Smoothed maximum :math:`\kappa \log E_0 e^{\ell/\kappa}`: kappa log(1/min w) = smoothing."""
    if bound.least >= 1.0:
        return flat(bound, losses)
    w = bound.weights
    kappa = smoothing / -math.log(bound.least)
    live = w > 0
    top = float(losses[live].max())
    ratio = np.where(live, np.exp(np.minimum((losses - top) / kappa, 0.0)), 0.0)
    total = float(w @ ratio)
    value = top + kappa * math.log(total)
    return reweighted(bound, losses, value, kappa, value, ratio / total)
