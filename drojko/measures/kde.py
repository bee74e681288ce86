"""Kernel density estimates."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from drojko._validation import check_number, floats, is_real, shown
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import (
    count,
    distinct,
    double,
    indices,
    moments,
    queries,
    scott,
    spread,
)
from drojko.measures.base import Measure, antithetic, choose, draws, normal, room

__all__ = ["KDE"]

# Pairs (query, atom) held at once: 4 MiB a buffer. Larger ones ran ten times slower, as each
# allocation then faults its pages in anew.
_PAIRS = 2**19
_SCORED = 2048  # atoms that the leave-one-out likelihood averages over, at most


@dataclass(eq=False, repr=False)
class KDE(Measure):
    """Gaussian kernels around weighted atoms, P = sum_i w_i N(x_i, diag(b^2)), b_j = h s_j.

    s_j is the weighted population standard deviation of column j, h one factor for all.

    Parameters
    ----------
    bandwidth : {"auto", "scott", "likelihood"} or float > 0, default="auto"
        The factor h. "auto" is "scott": n^(-1/(d+4)), d being the number of columns with noise and
        n the effective number of distinct rows, 1 / sum_i w_i^2. "likelihood" maximises the
        leave-one-out likelihood in the columns with noise (beyond 2048 atoms, its mean over
        2048 evenly spaced ones).
    max_shift : float >= 0, default=None
        Cap on the root mean cost of the noise: h is reduced until
        sqrt(sum_j c_j (h s_j)^2) <= max_shift, whichever bandwidth was asked for. Then
        W2(KDE, empirical measure) <= max_shift in the ground cost c, as moving each atom by its
        own noise is one transport plan; 0 gives the atoms themselves.
    shift_weights : array-like of shape (d,), default=None
        The cost weights c_j in `max_shift`; None: ones. A column of infinite cost gets no noise.
    fixed : column indices, default=None
        Columns without noise (immutable or label columns), as are constant ones. The density is
        then relative to the counting measure on these columns' values times Lebesgue measure on
        the others: only atoms with the query's values there count, compared in the query's dtype.

    Attributes
    ----------
    atoms_, weights_ : ndarray of shape (m, d) and (m,)
        The distinct rows, in order of first appearance.
    factor_ : float
        h.
    bandwidth_ : ndarray of shape (d,)
        b; 0 marks a column without noise.

    References
    ----------
    D. W. Scott, Multivariate Density Estimation, 1992 (the factor). J. D. F. Habbema, J. Hermans,
    K. van den Broek, A stepwise discriminant analysis program using density estimation, 1974 (the
    leave-one-out likelihood).

    Examples
    --------
    >>> from drojko.measures import KDE
    >>> kde = KDE(bandwidth=0.5).fit([[-1.0], [1.0]])
    >>> kde.covariance                                  # variance 1 of the atoms, plus 0.5^2
    tensor([[1.2500]], dtype=torch.float64)
    >>> x, w = kde.points(4)                            # a pair x_i - u, x_i + u for each atom
    >>> len(x), abs(float(w @ x[:, 0])) < 1e-12
    (4, True)
    """

    _state = "bandwidth_"
    _single = True

    bandwidth: str | float = "auto"
    _: KW_ONLY
    max_shift: float | None = None
    shift_weights: Any = None
    fixed: Any = None

    def _fit(self, rows: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> Self:
        dim = rows.shape[1]
        # A single row has no scale of its own and takes the one of its surroundings.
        scale = spread(rows, weights) if len(rows) > 1 else scale.copy()
        cost = np.ones(dim)
        if self.shift_weights is not None:
            cost = floats(self.shift_weights, "shift_weights")
            if cost.shape != (dim,) or not (cost >= 0).all():
                raise InvalidDataError(
                    f"shift_weights is {self.shift_weights!r}; expected {dim} values >= 0"
                )
        scale[indices(self.fixed, dim, "fixed")] = 0.0
        scale[np.isinf(cost)] = 0.0
        factor = self._factor(rows, weights, scale)
        if self.max_shift is not None:
            check_number("KDE: max_shift", self.max_shift, least=0, infinite=True)
            free = scale > 0
            shift = math.sqrt(np.sum(cost[free] * (factor * scale[free]) ** 2))
            factor *= min(1.0, self.max_shift / shift) if shift > 0 else 1.0
        return self._set(rows, weights, factor, factor * scale)

    def _factor(self, rows: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> float:
        free = scale > 0
        rule = self.bandwidth
        if is_real(rule) and rule > 0:
            return float(rule)
        if not isinstance(rule, str) or rule not in ("auto", "scott", "likelihood"):
            raise InvalidDataError(
                f'bandwidth is {shown(rule)}; give "auto", "scott", "likelihood" or a number > 0'
            )
        factor = scott(weights, int(free.sum()))
        if rule == "likelihood" and free.any() and len(rows) > 1:
            return likelihood_factor(rows[:, free] / scale[free], weights, factor)
        return factor

    def _set(self, atoms, weights, factor: float, bandwidth: np.ndarray) -> Self:
        self.atoms_, self.weights_ = atoms, weights
        self.factor_, self.bandwidth_ = factor, bandwidth
        return self

    def _with_label(self, dim: int) -> Measure:
        # A label stays attached to its atom.
        copy: Any = super()._with_label(dim)
        copy.fixed = [*indices(self.fixed, dim, "fixed").tolist(), dim]
        if self.shift_weights is not None:
            copy.shift_weights = [*self.shift_weights, 0.0]
        return copy

    @property
    def dim(self) -> int:
        return len(self._ready().bandwidth_)

    @property
    def mean(self) -> Tensor:
        """Mean of the atoms, shape (d,)."""
        self._ready()
        return double(moments(self.atoms_, self.weights_)[0])

    @property
    def covariance(self) -> Tensor:
        """Covariance of the atoms plus diag(b^2), shape (d, d)."""
        self._ready()
        return double(moments(self.atoms_, self.weights_)[1] + np.diag(self.bandwidth_**2))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points: an atom by its weight, plus noise."""
        self._ready()
        n, generator = draws(n, generator)
        atoms = double(self.atoms_)[choose(self.weights_, n, generator)]
        return atoms + normal((n, self.dim), generator) * double(self.bandwidth_)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.atoms_.dtype == np.float32 else torch.float64

    def _count(self, n: int) -> int:
        m = len(self._ready().atoms_)
        return m * (-(-n // m) if self.bandwidth_.any() else 1)

    def points(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return ceil(n / m) draws around each of the m atoms, atom after atom, in pairs x +- u."""
        self._ready()
        n, generator = draws(n, generator)
        x = room([self], self._count(n), self.dim)
        return x, self._points_into(x, n, generator)

    def _points_into(self, out: Tensor, n: int, generator: torch.Generator) -> Tensor:
        each, width = self._count(n) // len(self.atoms_), double(self.bandwidth_)
        size = max(1, _PAIRS // max(each * self.dim, 1))
        for start in range(0, len(self.atoms_), size):  # no second table, however large
            atoms = double(self.atoms_[start : start + size])
            noise = antithetic(each, tuple(atoms.shape), generator)
            noise *= width
            noise += atoms
            out[start * each : (start + len(atoms)) * each] = noise.transpose(0, 1).flatten(0, 1)
        return (double(self.weights_) / each).repeat_interleave(each)

    def log_prob(self, x: Any) -> Tensor:
        x = queries(x, self.dim)
        free = self.bandwidth_ > 0
        width = double(self.bandwidth_[free], x)
        centre = double(self.weights_ @ self.atoms_[:, free], x)
        atoms = (double(self.atoms_[:, free], x) - centre) / width
        points = (x[:, torch.as_tensor(free)].double() - centre) / width
        fixed = double(self.atoms_[:, ~free], x).to(x.dtype)
        values = x[:, torch.as_tensor(~free)]
        log_weights = double(np.log(self.weights_), x)

        def block(rows: slice) -> Tensor:
            logits = log_weights - 0.5 * squared_distances(points[rows], atoms)
            for j in range(fixed.shape[1]):
                other = values[rows, j, None] != fixed[None, :, j]
                logits = logits.masked_fill(other, -math.inf)
            return torch.logsumexp(logits, dim=1)

        blocks = [block(rows) for rows in slices(len(x), len(atoms))]
        constant = width.log().sum() + 0.5 * len(width) * math.log(2 * math.pi)
        return torch.cat(blocks) - constant

    def marginal(self, columns: Any) -> KDE:
        """Return the estimate of some columns, with the same bandwidths."""
        columns = indices(columns, self.dim)
        bandwidth = self.bandwidth_[columns]
        part = KDE(self.factor_ or self.bandwidth, fixed=np.flatnonzero(bandwidth == 0).tolist())
        return part._set(self.atoms_[:, columns], self.weights_, self.factor_, bandwidth)


def likelihood_factor(rows: np.ndarray, weights: np.ndarray, start: float) -> float:
    """Maximise sum_i w_i log sum_{j != i} w_j N(x_i; x_j, h^2 I) / (1 - w_i) over h.

    The search runs over log h within a factor 1000 below and 10 above `start`.
    """
    from scipy.optimize import minimize_scalar

    # Rows that differ in fixed columns only would be neighbours at distance 0.
    rows, weights = distinct(rows, weights)
    scored = torch.arange(0, len(rows), -(-len(rows) // _SCORED))
    points, log_weights = double(rows - weights @ rows), double(np.log(weights))

    def negative(log_factor: float) -> float:
        scale, total = math.exp(-log_factor), 0.0
        for part in slices(len(scored), len(points)):
            left_out = scored[part]
            logits = log_weights - 0.5 * squared_distances(points[left_out] * scale, points * scale)
            logits[torch.arange(len(left_out)), left_out] = -math.inf
            total -= float(log_weights[left_out].exp() @ torch.logsumexp(logits, dim=1))
        mass = float(log_weights[scored].exp().sum())
        return total / mass + rows.shape[1] * log_factor

    bounds = (math.log(start) - math.log(1000), math.log(start) + math.log(10))
    return math.exp(minimize_scalar(negative, bounds=bounds, options={"xatol": 1e-4}).x)


def squared_distances(x: Tensor, a: Tensor) -> Tensor:
    """Return |x_i - a_k|^2, shape (n, m), for points in units of the bandwidth, roughly centred."""
    x2, a2 = (x**2).sum(1, keepdim=True), (a**2).sum(1)
    if bool((torch.cat([x2[:, 0], a2]) < 1e6).all()):
        return torch.addmm(a2, x, a.T, alpha=-2).add_(x2).relu_()
    # Far out the expanded square cancels: at 1e6, rounding is already 1e-9.
    return torch.stack([((row - a) ** 2).sum(1) for row in x])


def slices(n: int, m: int) -> list[slice]:
    """Cut range(n) so that each part times m stays bounded."""
    size = count(max(1, _PAIRS // m))
    return [slice(start, start + size) for start in range(0, max(n, 1), size)]
