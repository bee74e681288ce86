"""Kernels on points and on labels: Gram matrices, bandwidths, moduli of continuity, factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack
from scipy.spatial.distance import cdist, pdist

from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["Factor", "PointKernel", "factorise", "median_distance"]

KERNELS = ("gaussian", "laplace", "energy")

#: Points up to which the whole Gram matrix is kept; beyond, a factor of this rank stands for it.
WHOLE, RANK, LARGEST = 4000, 400, 50_000
_SUBSET = 2000  # points whose distances give the median
_RESIDUAL = 1e-14  # of the largest diagonal entry: where a factorisation ends
_NEGATIVE = 1e-9  # of the largest diagonal entry times n: eigenvalues down to minus this are zeros


def median_distance(x: np.ndarray) -> float:
    """Return the median distance of pairs of distinct rows of x (n, d); 1 for a single row.

    Beyond 2000 rows, of 2000 that are evenly spaced in the table.
    """
    if len(x) < 2:
        return 1.0
    if len(x) > _SUBSET:
        x = x[np.linspace(0, len(x) - 1, _SUBSET).astype(int)]
    unit = _unit(x)
    return unit * float(np.median(pdist(x / unit)))


def _unit(*points: np.ndarray) -> float:
    """A power of two near the largest entry where squares would leave the range, otherwise 1."""
    largest = max(float(np.abs(x).max(initial=0.0)) for x in points)
    if 1e-140 < largest < 1e140 or largest == 0.0:
        return 1.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1)


@dataclass(frozen=True, eq=False)
class PointKernel:
    """A kernel of (x, label): the one of the points times one of the labels.

    Labels are compared (categorical: 1 if equal, else 0), or by a Gaussian kernel of their own
    bandwidth. Without labels the second factor is 1. The energy kernel vanishes at its centre:
    with labels it is raised by 1, so that label shares are told apart there, too.
    """

    kernel: str | Callable[..., Any]
    bandwidth: float
    centre: np.ndarray
    label_bandwidth: float | None = None

    def __call__(self, z: np.ndarray, other: np.ndarray, y: Any = None, v: Any = None):
        """Return the matrix of kernel values, shape (len(z), len(other))."""
        values = self._points(z, other)
        if y is None:
            return values
        if self.kernel == "energy":
            values += 1.0
        if self.label_bandwidth is None:
            return values * (y[:, None] == v)
        return values * np.exp(-0.5 * ((y[:, None] - v) / self.label_bandwidth) ** 2)

    def diagonal(self, z: np.ndarray, y: Any = None) -> np.ndarray:
        """Return k(z_i, z_i), shape (len(z),)."""
        if self.kernel == "energy":
            raised, unit = 0.0 if y is None else 1.0, _unit(z)
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                far = np.linalg.norm(z / unit - self.centre / unit, axis=1)
                values = 2.0 * far / self.bandwidth * unit + raised
            if not values.max(initial=0.0) < 1e150:
                raise InvalidDataError(
                    f"MMD got bandwidth={self.bandwidth:g}, so small beside the points that the "
                    "energy kernel overflows: give one of the size of their distances, or None"
                )
            return values
        if isinstance(self.kernel, str):
            return np.ones(len(z))
        parts = (z[start : start + 500] for start in range(0, len(z), 500))
        return np.concatenate([self._points(part, part).diagonal() for part in parts])

    def modulus(self, distance: float) -> float:
        """Return the largest ``|k(x, .) - k(z, .)|`` for points of one label this far apart."""
        if self.kernel == "gaussian":
            scaled = min(distance / self.bandwidth, 1e150)
            return math.sqrt(-2.0 * math.expm1(-0.5 * scaled**2))
        if self.kernel == "laplace":
            return math.sqrt(-2.0 * math.expm1(-distance / self.bandwidth))
        if self.kernel == "energy":
            return math.sqrt(2.0 * distance / self.bandwidth)
        if distance == 0.0:
            return 0.0
        raise UnsupportedError(
            "how fast a callable kernel changes between points is unknown: use margin=0, or one of "
            f"the kernels {', '.join(KERNELS)}"
        )

    def _points(self, z: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not isinstance(self.kernel, str):
            return _called(self.kernel, z, other)
        unit = _unit(z, other)
        z, other, centre = z / unit, other / unit, self.centre / unit
        if self.kernel == "energy":
            with np.errstate(over="ignore", under="ignore"):
                values = np.linalg.norm(z - centre, axis=1)[:, None] - cdist(z, other)
                values += np.linalg.norm(other - centre, axis=1)
                return np.minimum(values / self.bandwidth * unit, 1e300)
        width = min(max(self.bandwidth / unit, 1e-140), 1e140)  # squares stay in the range
        squared = self.kernel == "gaussian"
        values = cdist(z, other, "sqeuclidean" if squared else "euclidean")
        with np.errstate(over="ignore", under="ignore"):
            values *= -0.5 / width**2 if squared else -1.0 / width
            return np.exp(values, out=values)


def _called(kernel: Any, z: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The matrix of a callable, on arrays or, where those will not do, on tensors."""
    try:
        values = kernel(z, other)
    except (TypeError, AttributeError):
        values = kernel(torch.from_numpy(z.copy()), torch.from_numpy(other.copy()))
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(z), len(other)):
        raise InvalidDataError(
            f"the kernel returned shape {values.shape}; expected the matrix of all pairs, "
            f"({len(z)}, {len(other)})"
        )
    if not np.isfinite(values).all():
        raise InvalidDataError("the kernel returned NaN or infinity; look at its scale")
    return values


@dataclass(frozen=True, eq=False)
class Factor:
    """K = L L' + R with R positive semidefinite; L of shape (n, m). ``w`` (n,) is the reference.

    ``gram`` is K, or None where there are too many points: then values of the kernel are computed
    as they are needed. ``residual`` is the diagonal of R, which bounds it: R_ij^2 <= R_ii R_jj.
    """

    low: np.ndarray
    gram: np.ndarray | None
    residual: np.ndarray
    kernel: PointKernel
    x: np.ndarray
    y: np.ndarray | None
    w: np.ndarray

    def apply(self, v: np.ndarray) -> np.ndarray:
        """Return K v, or L L' v where K is not at hand."""
        return self.low @ (self.low.T @ v) if self.gram is None else self.gram @ v

    def square(self, p: np.ndarray) -> float:
        """Return (p - w)'K (p - w), or an upper bound of it where that is too dear."""
        u = p - self.w
        if self.gram is not None:
            return max(float(u @ (self.gram @ u)), 0.0)
        rest = float(np.abs(u) @ np.sqrt(self.residual))
        bound = float(((self.low.T @ u) ** 2).sum()) + rest**2
        support = np.flatnonzero(p)
        if rest**2 <= 1e-3 * bound or support.size > WHOLE:
            return bound
        y = None if self.y is None else self.y[support]
        x, q = self.x[support], p[support]
        exact = float(q @ (self.kernel(x, x, y, y) @ q) - 2.0 * (q @ self._embedding[support]))
        return min(bound, max(exact + float(self.w @ self._embedding), 0.0))

    @cached_property
    def _embedding(self) -> np.ndarray:
        """K w: one pass over all pairs, by blocks."""
        out = np.empty(len(self.w))
        for start in range(0, len(out), 1000):
            part = slice(start, start + 1000)
            y = None if self.y is None else self.y[part]
            out[part] = self.kernel(self.x[part], self.x, y, self.y) @ self.w
        return out


def factorise(kernel: PointKernel, x: np.ndarray, y: np.ndarray | None, w: np.ndarray) -> Factor:
    """Factorise the Gram matrix of points x (n, d): exactly, or beyond 4000 points by Nystroem's.

    Raises
    ------
    InvalidDataError
        Where a callable kernel is not symmetric or not positive semidefinite on the points.
    UnsupportedError
        For more points than memory is planned for.
    """
    n = len(x)
    if n > LARGEST:
        raise UnsupportedError(
            f"MMD on {n} points: its matrices are kept for up to {LARGEST}. Merge points, take a "
            "subsample (with weights), or use a density-ratio set such as ChiSquare, whose dual is "
            "a sort"
        )
    if n > WHOLE:
        return Factor(*_nystroem(kernel, x, y), kernel, x, y, w)
    gram = kernel(x, x, y, y)
    if not isinstance(kernel.kernel, str):
        _check(gram)
    gram = 0.5 * (gram + gram.T)
    largest = max(float(gram.diagonal().max()), 1e-300)
    low = _pivoted(gram, _RESIDUAL * largest)
    residual = np.maximum(gram.diagonal() - (low**2).sum(1), 0.0)
    return Factor(low, gram, residual, kernel, x, y, w)


def _pivoted(gram: np.ndarray, tolerance: float) -> np.ndarray:
    """Pivoted Cholesky factor, of the numerical rank."""
    packed, pivots, rank, _ = lapack.dpstrf(gram, lower=1, tol=tolerance)
    low = np.empty((len(gram), int(rank)))
    low[pivots - 1] = np.tril(packed)[:, :rank]
    return low


def _check(gram: np.ndarray) -> None:
    """Raise unless a matrix is symmetric and positive semidefinite up to rounding."""
    largest = float(np.abs(gram).max())
    skew = float(np.abs(gram - gram.T).max())
    if skew > 1e-8 * largest:
        raise InvalidDataError(
            f"the kernel is not symmetric: k(x, z) and k(z, x) differ by up to {skew:.3g}; "
            "symmetrise it, for instance (k(x, z) + k(z, x)) / 2"
        )
    floor = _NEGATIVE * largest * len(gram)
    shifted = 0.5 * (gram + gram.T)
    shifted[np.diag_indices_from(shifted)] += floor
    _, info = lapack.dpotrf(shifted, lower=1, overwrite_a=1)
    if info == 0:
        return
    least = float(np.linalg.eigvalsh(0.5 * (gram + gram.T))[0])
    if least >= -floor:
        return
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    advice = "use a positive definite kernel such as 'gaussian' or 'laplace'"
    if float(np.linalg.eigvalsh(0.5 * (centred + centred.T))[0]) >= -floor:
        advice = (
            "it is only conditionally positive definite: give k(x, z) - k(x, c) - k(c, z) "
            "+ k(c, c) with any fixed point c, of the same MMD (for -|x - z|: kernel='energy')"
        )
    raise InvalidDataError(
        f"the kernel is not positive semidefinite on these points: the smallest eigenvalue of its "
        f"matrix is {least:.6g}, and at least {-floor:.3g} is needed; {advice}"
    )


def _nystroem(
    kernel: PointKernel, x: np.ndarray, y: np.ndarray | None
) -> tuple[np.ndarray, None, np.ndarray]:
    """Pivoted Cholesky by blocks of columns drawn in proportion to the residual diagonal.

    Y. Chen, E. Epperly, J. Tropp, R. Webber (2023), Randomly pivoted Cholesky, arXiv 2207.06503.
    The draws are the same at every call.
    """
    n, block = len(x), 50
    draw = np.random.default_rng(0)
    residual = kernel.diagonal(x, y)
    largest = max(float(residual.max()), 1e-300)
    low = np.empty((n, RANK))
    m = 0
    while m < RANK and residual.max() > _RESIDUAL * n * largest:
        share = residual / residual.sum()
        size = min(block, RANK - m, int((share > 0).sum()))
        chosen = draw.choice(n, size=size, replace=False, p=share)
        columns = kernel(x, x[chosen], y, None if y is None else y[chosen])
        columns -= low[:, :m] @ low[chosen, :m].T
        core = 0.5 * (columns[chosen] + columns[chosen].T)
        packed, pivots, rank, _ = lapack.dpstrf(core, lower=1, tol=_RESIDUAL * n * largest)
        if rank == 0:
            break
        kept = pivots[:rank] - 1
        triangle = np.tril(packed[:rank, :rank])
        solved, _ = lapack.dtrtrs(triangle, columns[:, kept].T, lower=1)
        low[:, m : m + rank] = solved.T
        residual -= (solved**2).sum(0)
        if residual.min() < -1e-6 * largest:
            raise InvalidDataError(
                "the kernel is not positive semidefinite on these points: a Schur complement of "
                f"its matrix has the diagonal entry {residual.min():.6g}, and none below 0 is "
                "possible; use a positive definite kernel such as 'gaussian' or 'laplace'"
            )
        np.maximum(residual, 0.0, out=residual)
        residual[chosen[kept]] = 0.0
        m += int(rank)
    return np.ascontiguousarray(low[:, :m]), None, residual
