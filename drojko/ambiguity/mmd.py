"""The maximum mean discrepancy: distributions that smooth functions can hardly tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from drojko._validation import checked, plain_tensor
from drojko.ambiguity.base import AmbiguitySet, Dual
from drojko.ambiguity.duals.kernels import KERNELS, PointKernel, factorise, median_distance
from drojko.ambiguity.duals.scaling import finite_losses, floats, masses, smoothed
from drojko.ambiguity.duals.simplex_qp import Iterate, Trained, solve
from drojko.exceptions import InvalidDataError

__all__ = ["MMD", "BoundMMD", "MMDDual"]

_EPS = float(np.finfo(np.float64).eps)
#: Radii below this share of the kernel's scale cannot be told from 0 in its rounded matrix.
_LEAST = 1e-8
#: Masses below this share of the largest one are the interior method's zeros.
_GONE = 1e-12
#: Losses that moved by more than this share of their spread do not start from the last solution.
_MOVED = 0.2
#: Gap, in units of the spread of the losses, above which the interior method tries another way.
_SOLVED = 1e-8
#: The same of a path to a model's parameters, above which they are no use as a start.
_NEAR = 1e-3


class MMD(AmbiguitySet):
    r"""Distributions on the support whose mean functions are near, in the norm of a kernel.

    .. math:: D(P, P_0) = \mathrm{MMD}^2 = \sup_{\|f\|_H \le 1} (E_P f - E_0 f)^2
              = (p - w)^\top K (p - w), \qquad \mathrm{MMD} \le \mathrm{radius}

    .. math:: \sup_P E_P \ell = \min_{f \in H}\; \max_i (\ell_i - f(x_i)) + E_0 f
              + \mathrm{radius}\, \|f\|_H

    for P = sum_i p_i delta_{x_i} on the points of the reference; in the penalised form, penalty
    times D, with ``|f|^2 / (4 penalty)`` in the place of ``radius |f|``.

    Parameters
    ----------
    kernel : {"gaussian", "laplace", "energy"} or callable, default="gaussian"
        ``exp(-|x - z|^2 / (2 h^2))``, ``exp(-|x - z| / h)``, or ``-|x - z| / h`` (whose MMD^2 is
        the energy distance ``2 E|X - Z| - E|X - X'| - E|Z - Z'|``, over h), for the bandwidth h.
        A callable ``k(x, z)`` takes points (n, d) and (m, d) and returns the matrix (n, m), with
        arrays or tensors; it must be symmetric and positive semidefinite.
    bandwidth : float, default=None
        h, in the units of X. None: the median distance of pairs of distinct points, taken anew for
        each set of points (see `BoundMMD`): give a number to compare results between data sets.
    radius : float, default=None
        Bound of the MMD, not of its square. Kernels of diagonal 1 (gaussian, laplace) have
        MMD < sqrt(2), from where on the worst case is the largest loss. Exactly one of radius and
        penalty must be given.
    penalty : float, default=None
        Price of MMD^2, in the units of the loss.

    Raises
    ------
    InvalidDataError
        From `validate` and `on`, naming the parameter; for a callable that is not positive
        semidefinite on the points, with the smallest eigenvalue. The constructor only stores.
    UnsupportedError
        From `on`, beyond 50000 points.

    Notes
    -----
    The supremum is over reweighted points. Over all distributions on R^d it is useless for a loss
    without a bound: a bounded kernel lets a mass e go anywhere at an MMD of at most e sqrt(2), so
    that the worst case is infinite at any radius. Where points stay within a margin of the data,
    `BoundMMD.upper_bound` has the bound.

    References
    ----------
    J.-J. Zhu, W. Jitkrittum, M. Diehl, B. Schölkopf (2021), Kernel distributionally robust
    optimization, arXiv 2006.06981. M. Staib, S. Jegelka (2019), Distributionally robust
    optimization and generalization in kernel methods, arXiv 1905.10943.

    Examples
    --------
    >>> from drojko.ambiguity import MMD
    >>> bound = MMD(radius=0.2).on([[0.0], [1.0], [2.0], [4.0]], [0.25, 0.25, 0.25, 0.25])
    >>> bound.bandwidth
    2.0
    >>> dual = bound.dual([0.0, 1.0, 2.0, 5.0])
    >>> round(dual.value, 6), round(dual.attained, 6)
    (2.890056, 2.890056)
    >>> dual.ratio.round(3)
    array([0.  , 2.11, 0.  , 1.89])
    """

    conic_form = "mmd"
    most_draws = 500  # a quadratic program in their kernel

    def __init__(
        self,
        kernel: str | Callable[..., Any] = "gaussian",
        bandwidth: float | None = None,
        *,
        radius: float | None = None,
        penalty: float | None = None,
    ):
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.radius = radius
        self.penalty = penalty

    @property
    def budget(self) -> float | None:
        """Bound of MMD^2: radius^2. None in penalty form."""
        return None if self.radius is None else float(self.radius) ** 2

    def bind(self, x: Any, y: Any, weights: Any, groups: Any = None) -> BoundMMD:
        """Return the set on pairs of points and labels."""
        return self.on(x, weights, labels=y)

    def candidates(self, X: np.ndarray, names: Any, weight: np.ndarray) -> np.ndarray:
        """From n samples to their law it is about 1 / sqrt(n) for a kernel below 1."""
        return np.geomspace(0.1, 10.0, 8) * np.sqrt(weight @ weight)

    def needs_largest(self, penalty: float) -> bool:
        """Always, but without any room to move: elsewhere losses may be larger (see Notes)."""
        return self.radius != 0

    def on(
        self, x: Any, weights: Any = None, groups: Any = None, *, labels: Any = None
    ) -> BoundMMD:
        """Return the set on given points: kernel, bandwidth and factor, for many losses.

        Parameters
        ----------
        x : array or tensor of shape (n, d)
        weights : array or tensor of shape (n,), default=None
            The reference: nonnegative, normalised here; None: all equal.
        groups : None
            Not used.
        labels : array or tensor of shape (n,), default=None
            Points are pairs (x, label) then. Integers and strings are compared: the kernel is 0
            between different labels. Floats have a Gaussian kernel with their median distance as
            the bandwidth.

        Returns
        -------
        BoundMMD
        """
        self._validate_params()
        return BoundMMD(self, x, weights, labels)

    def _validate_params(self) -> None:
        super()._validate_params()
        if isinstance(self.kernel, str):
            if self.kernel not in KERNELS:
                raise InvalidDataError(
                    f"MMD got kernel={self.kernel!r}; expected one of {', '.join(KERNELS)}, or a "
                    "callable k(x, z) that returns a matrix"
                )
        elif not callable(self.kernel):
            raise InvalidDataError(
                f"MMD got kernel={self.kernel!r}; expected a name or a callable k(x, z)"
            )
        elif self.bandwidth is not None:
            raise InvalidDataError(
                f"MMD got bandwidth={self.bandwidth!r} with a callable kernel, which has its own "
                "scale: set bandwidth=None"
            )
        if self.bandwidth is not None:
            self._check_number("bandwidth", self.bandwidth, zero="refused")


@dataclass(frozen=True, eq=False, repr=False)
class MMDDual(Dual):
    """A `Dual` with the function that proves it.

    ``radius`` is D(P*, P0) = MMD^2 and ``penalty`` the derivative of the value in radius^2 (of the
    set, in penalty form); ``shift`` is f0.

    Attributes
    ----------
    witness : ndarray of shape (n,)
        f at the points: loss <= shift + witness.
    norm : float
        The norm of f in the kernel's space.
    distance : float
        MMD(P*, P0).
    """

    witness: np.ndarray = field(default_factory=lambda: np.empty(0))
    norm: float = 0.0

    @property
    def distance(self) -> float:
        """MMD(P*, P0)."""
        return math.sqrt(self.radius)


@dataclass(frozen=True, eq=False)
class _Solution:
    """Worst masses p of the distinct points, and the dual function: values f, norm, multiplier.

    ``value`` is what the function proves.
    """

    p: np.ndarray
    f: np.ndarray
    norm: float
    multiplier: float
    value: float = math.nan


@checked()
class BoundMMD:
    r"""An MMD set on n weighted points: what `MMD.on` returns.

    Equal points are one: mass moves freely between them, to the largest of their losses.

    Attributes
    ----------
    bandwidth : float or None
        The one used; None for a callable kernel.
    label_bandwidth : float or None
    weights : ndarray of shape (n,)
        Normalised.

    Notes
    -----
    A primal-dual interior-point method on a pivoted Cholesky factor of the kernel's matrix;
    ``value`` comes from a function f = sum_j a_j k(x_j, .) and ``attained`` from masses inside the
    set, so that rounding and early stops show as a gap and never as a wrong bound. Above 4000
    points a factor of rank 400 bounds the kernel from below, which keeps both sides valid: f has
    at most the norm it has there, and what the factor misses is added to the MMD of the masses.
    """

    #: Attributes that one dual leaves to the next, which a checkpoint has to keep.
    remembers = ("_start", "_last")

    def __init__(self, ambiguity: MMD, x: Any, weights: Any = None, labels: Any = None):
        rows = floats(x, "x")
        if rows.ndim == 1:
            rows = rows[:, None]
        if rows.ndim != 2 or 0 in rows.shape or not np.isfinite(rows).all():
            raise InvalidDataError(
                f"x has shape {rows.shape}; expected finite points of shape (n, d)"
            )
        n = len(rows)
        mass = masses(weights, n)
        self.ambiguity = ambiguity
        self.weights = mass / mass.sum()
        codes, continuous = _label_codes(labels, n)
        self._kept = np.flatnonzero(self.weights > 0)
        table = rows if codes is None else np.column_stack([rows, codes])
        points, inverse = np.unique(table[self._kept], axis=0, return_inverse=True)
        self._point = inverse.ravel()
        self._w = np.bincount(self._point, weights=self.weights[self._kept])
        y = None if codes is None else points[:, -1]
        points = points if codes is None else np.ascontiguousarray(points[:, :-1])
        bandwidth = ambiguity.bandwidth
        if isinstance(ambiguity.kernel, str) and bandwidth is None:
            bandwidth = median_distance(np.unique(points, axis=0)) or 1.0
        self.bandwidth = None if bandwidth is None else float(bandwidth)
        self.label_bandwidth = None
        if y is not None and continuous:
            self.label_bandwidth = median_distance(np.unique(y)[:, None])
        self._kernel = PointKernel(
            ambiguity.kernel, self.bandwidth or 1.0, self._w @ points, self.label_bandwidth
        )
        self._factor = factorise(self._kernel, points, y, self._w)
        self._scale = math.sqrt(max(float(self._kernel.diagonal(points, y).max()), 1e-300))
        self._start: tuple[Any, np.ndarray, Iterate] | None = None
        self._last: tuple[bytes, MMDDual] | None = None

    def factor(self) -> np.ndarray:
        """Return L of shape (n, m) with L L' = K on the rows, up to rounding and up to 4000 points.

        Rows of weight 0 are NaN: they are no points.
        """
        return self._at_rows(self._factor.low)

    def dual(self, losses: Any, smoothing: float = 0.0) -> MMDDual:
        """Return the worst case of the mean of ``losses``, with its proof.

        Parameters
        ----------
        losses : array or tensor of shape (n,)
            Finite; larger is worse.
        smoothing : float
            The worst case jumps where all losses are equal. In radius form delta > 0 keeps the
            multiplier above ``delta / radius^2``: ``value <= exact value <= value + delta``, and
            the ratio is continuous in the losses.

        Returns
        -------
        MMDDual
        """
        scaled = self._losses(losses)
        key = scaled[0].tobytes()
        if self._last is None or self._last[0] != key:  # solvers ask twice in a row
            self._last = (key, self._dual(*scaled))
        if smoothing <= 0.0 or not self.ambiguity.radius:
            return self._last[1]
        return smoothed(self._smoothed, self._last[1], scaled, float(smoothing))

    def _smoothed(self, exact: MMDDual, scaled: Any, smoothing: float) -> MMDDual:
        """The dual whose multiplier is at least the smoothing over the squared radius."""
        least = smoothing / float(self.ambiguity.radius or 0.0) ** 2
        if scaled[3] > 0.0 and exact.penalty < least:
            exact = self._dual(*scaled, price=least)
        return replace(exact, value=exact.attained - least * exact.radius)

    def _dual(
        self,
        values: np.ndarray,
        points: np.ndarray,
        centre: float,
        unit: float,
        price: float | None = None,
    ) -> MMDDual:
        """The worst case of the set, or at a price that stands in for its radius."""
        radius, penalty = self.ambiguity.radius, self.ambiguity.penalty
        if price is not None:
            radius, penalty = None, price
        if unit == 0.0:
            price = math.inf if radius == 0 else 0.0
            flat = np.zeros(len(values))
            ones = (self.weights > 0) * 1.0
            return MMDDual(
                centre, price if penalty is None else float(penalty), centre, ones, centre, 0.0,
                witness=flat,
            )  # fmt: skip
        if radius is not None:
            found = self._ball(points, float(radius))
            price = found.multiplier * unit
        else:
            price = float(penalty or 0.0)
            found = self._priced(points, price / unit)
        square = self._factor.square(found.p)
        if radius is not None:  # rounding: the masses were scaled to lie inside
            square = min(square, float(radius) ** 2)
        reached = float(found.p @ points)
        # By rounding alone can what is attained lie above its bound.
        value = max(found.value, reached if radius is not None else reached - price / unit * square)
        return MMDDual(
            value=centre + unit * value,
            penalty=price,
            shift=centre + unit * float((points - found.f).max()),
            ratio=self._spread(found.p, values),
            attained=centre + unit * reached,
            radius=square,
            witness=unit * self._at_rows(found.f),
            norm=unit * found.norm,
        )

    def influence(self, dual: MMDDual, losses: Any) -> np.ndarray:
        """What each point adds to the value: E0 of the witness is its part linear in P0."""
        return np.where(self.weights > 0, dual.witness, 0.0)

    def upper_bound(self, losses: Any, margin: float = 0.0, lipschitz: float = 0.0) -> float:
        r"""Bound the worst case over all distributions within a distance of the points.

        .. math:: \max_i (\ell_i - f_i) + L\, m + \omega(m) \|f\|_H + E_0 f + r \|f\|_H,
            \qquad \omega(m) = \sup_{|x - z| \le m} \|k(x, \cdot) - k(z, \cdot)\|_H

        over every P with MMD(P, P0) <= r (or at its price) whose support lies within m of the
        points, labels kept: f changes by at most ``omega(m) |f|`` and the loss by L m. For the
        Gaussian kernel omega(m) = sqrt(2 - 2 exp(-m^2 / (2 h^2))) <= m / h. The minimum over f is
        that of the points at the radius r + omega(m).

        Parameters
        ----------
        losses : array or tensor of shape (n,)
            At the points themselves.
        margin : float
            m, Euclidean, in the units of X. Infinite margins have no finite bound.
        lipschitz : float
            L, of the loss in x within the margin.

        Returns
        -------
        float

        Examples
        --------
        >>> from drojko.ambiguity import MMD
        >>> bound = MMD(bandwidth=1.0, radius=0.2).on([[0.0], [1.0], [2.0]])
        >>> near = bound.upper_bound([0.0, 1.0, 2.0], margin=0.1, lipschitz=1.0)
        >>> bound.dual([0.0, 1.0, 2.0]).value < near < 2.1
        True
        """
        for name, number in (("margin", margin), ("lipschitz", lipschitz)):
            self.ambiguity._check_number(name, number, zero="allowed")
        _, points, centre, unit = self._losses(losses)
        omega = self._kernel.modulus(float(margin))
        extra = float(lipschitz) * float(margin)
        if unit == 0.0:
            return centre + extra
        if self.ambiguity.radius is not None:
            found = self._ball(points, float(self.ambiguity.radius) + omega)
            return centre + unit * found.value + extra
        penalty = float(self.ambiguity.penalty or 0.0) / unit
        best, price = math.inf, penalty
        for _ in range(8):  # any price proves a bound; the best one satisfies price = p (1 - w/D)
            found = self._priced(points, price)
            value = _proof(points, self._w, found, omega)
            best = min(best, value + found.norm**2 / (4.0 * penalty))
            distance = math.sqrt(self._factor.square(found.p))
            after = penalty * (1.0 - omega / distance) if distance > omega else 0.5 * price
            if abs(after - price) <= 1e-6 * price:
                break
            price = after
        return centre + unit * min(best, float(points.max())) + extra

    def saddle(
        self, losses: Callable[[np.ndarray], Trained]
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Return the parameters of a model at the minimum of its penalised worst case, nearly.

        With them the worst masses of the rows, and their squared discrepancy. ``losses(index)`` are
        the model's losses on a row of each point. None where the path to the minimum broke off far
        from it; what is returned is a start, and proves nothing.
        """
        index = self._kept[np.unique(self._point, return_index=True)[1]]
        model = losses(index)
        radius, penalty = self.ambiguity.radius, self.ambiguity.penalty
        first = model.jet(np.zeros(model.size), self._w, 1.0).losses
        for careful in (False, True):  # losses bend: long steps may lose the path
            found, _ = solve(
                first,
                self._w,
                self._factor.low,
                self._factor.gram,
                radius=None if radius is None else max(float(radius), _LEAST * self._scale),
                penalty=None if penalty is None else float(penalty) / model.unit,
                careful=careful,
                model=model,
            )
            if found.gap <= _NEAR:
                mass = np.zeros(len(self.weights))
                mass[index] = found.p
                return found.theta, mass, self._factor.square(found.p)
        return None

    # -- in units of the spread of the losses ------------------------------------------------

    def _losses(self, losses: Any) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Return losses by row and by point, the latter as centre + unit * points."""
        values = finite_losses(losses, len(self.weights))
        points = self._largest(values)
        centre = float(self._w @ points)
        unit = float(np.abs(points - centre).max())
        if np.ptp(points) == 0.0:
            return values, points, float(points[0]), 0.0
        return values, (points - centre) / unit, centre, unit

    def _largest(self, values: np.ndarray) -> np.ndarray:
        """The largest loss of each point."""
        points = np.full(self._w.size, -np.inf)
        np.maximum.at(points, self._point, values[self._kept])
        return points

    def _ball(self, points: np.ndarray, radius: float) -> _Solution:
        """Worst case of a ball: the dual function, the value that it proves, masses inside."""
        w, least = self._w, _LEAST * self._scale
        top = points == points.max()
        crest = np.where(top, w, 0.0) / w[top].sum()
        if self._factor.square(crest) <= radius**2:
            return _Solution(crest, np.zeros_like(w), 0.0, 0.0, float(points.max()))
        distinct = isinstance(self.ambiguity.kernel, str)
        if radius == 0.0 and distinct:
            # Distinct points: f may take any values, whatever its norm, and p = w is forced.
            return _Solution(w, points - w @ points, math.inf, math.inf, float(w @ points))
        found = self._solve(points, radius=max(radius, least))
        value = _proof(points, w, found, radius)
        inside = radius if distinct else max(radius, least)
        length = math.sqrt(self._factor.square(found.p))
        p = found.p if length <= inside else w + (inside / length) * (found.p - w)
        return replace(found, value=min(value, float(points.max())), p=p)

    def _priced(self, points: np.ndarray, penalty: float) -> _Solution:
        """Worst case at a price: the dual function, the value that it proves, its masses."""
        found = self._solve(points, penalty=penalty)
        value = _proof(points, self._w, found, 0.0)
        value += found.norm**2 / (4.0 * penalty)
        p, square = found.p, self._factor.square(found.p)
        gain = float(points @ (p - self._w))
        if gain < 2.0 * penalty * square:  # where a factor stood for K: the best part of the way
            p = self._w + max(gain, 0.0) / (2.0 * penalty * square) * (p - self._w)
        return replace(found, value=min(value, float(points.max())), p=p)

    def _solve(
        self, points: np.ndarray, radius: float | None = None, penalty: float | None = None
    ) -> _Solution:
        size: dict[str, Any] = {"radius": radius, "penalty": penalty}
        ways: list[dict[str, Any]] = [{}, {"careful": True}]  # the next one where the last failed
        if self._start is not None:
            key, last, middle = self._start
            if key == size and float(np.abs(points - last).max()) <= _MOVED:
                ways.insert(0, {"start": middle})
        tried = []
        for how in ways:
            tried.append(solve(points, self._w, self._factor.low, self._factor.gram, **size, **how))
            if tried[-1][0].gap <= _SOLVED:
                break
        it, middle = min(tried, key=lambda pair: pair[0].gap)
        self._start = (size, points, middle)
        a = it.kappa * (it.p / it.p.sum() - self._w)
        p = np.where(it.p > _GONE * it.p.max(), it.p, 0.0)
        p /= p.sum()
        f = self._factor.apply(a)
        return _Solution(p, f, math.sqrt(max(float(a @ f), 0.0)), 0.5 * it.kappa)

    def _spread(self, p: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Ratios of the rows: a point's mass goes to its rows of the largest loss, by weight."""
        ratio = np.zeros(values.size)
        best = values[self._kept] == self._largest(values)[self._point]
        mass = np.bincount(self._point, weights=self.weights[self._kept] * best)
        ratio[self._kept] = best * (p / mass)[self._point]
        return ratio

    def _at_rows(self, values: np.ndarray) -> np.ndarray:
        out = np.full((self.weights.size, *values.shape[1:]), np.nan)  # weight 0: no points
        out[self._kept] = values[self._point]
        return out


def _proof(points: np.ndarray, w: np.ndarray, found: _Solution, radius: float) -> float:
    """Return max(loss - f) + E_0 f + radius |f|, rounded upwards."""
    gap = points - found.f
    rounding = 8.0 * _EPS * (float(np.abs(points).max()) + float(np.abs(found.f).max()))
    return float(gap.max()) + float(w @ found.f) + radius * found.norm + rounding


def _label_codes(labels: Any, n: int) -> tuple[np.ndarray | None, bool]:
    """Return labels as numbers, and whether distances between them mean anything."""
    if labels is None:
        return None, False
    labels = plain_tensor(labels, "labels")
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise InvalidDataError(f"labels has shape {labels.shape}; expected ({n},), one per point")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise InvalidDataError("labels holds NaN or infinity; impute or drop those rows")
        return labels.astype(np.float64), True
    try:
        return np.unique(labels, return_inverse=True)[1].astype(np.float64), False
    except TypeError as error:
        raise InvalidDataError(f"labels have no order ({error})") from None
