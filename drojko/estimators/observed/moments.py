"""What means and covariances show of the distance of two laws, without bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Moments", "alike", "compared_means", "compared_moments", "has_covariance"]

_FOLDS = 10  # of the jackknife
_RIDGE = 1e-8  # of the mean variance: directions without spread stay where they are
_PER_COLUMN, _LARGEST = 10, 100  # rows that a column of a whole covariance needs; columns
_ROWS = 1000  # that `_pairs` looks at where there are more products of columns


@dataclass(frozen=True, eq=False)
class Moments:
    """The squared Gelbrich distance of two samples and the law of its error.

    Near no shift the error of the root is as large as the root: `square` is the squared length of
    a vector of means plus a normal one, of covariance V.
    """

    square: float  # as computed: of the samples
    bias: float  # of `square`: tr V, and what is of higher order
    pairs: float  # tr V^2
    pulls: tuple[np.ndarray, np.ndarray]  # (n,), (m,): what each row adds to `square`
    beyond_means: tuple[float, float]  # the part of the covariances, without bias; its variance
    moved: np.ndarray  # (d,): share of each column in `square`
    halfway: tuple[np.ndarray, np.ndarray]  # (n, d), (m, d): moved towards each other by the map


def compared_moments(x: np.ndarray, z: np.ndarray, *, whole: bool = True) -> Moments:
    r"""Compare rows x (n, d) and z (m, d) of Euclidean units by means and covariances S, S'.

    .. math::

        G^2 = |\bar z - \bar x|^2 + \mathrm{tr}(S + S' - 2 (S^{1/2} S' S^{1/2})^{1/2})
            = |\bar z - \bar x|^2 + \mathrm{tr}((I - T) S) + \mathrm{tr}((I - T^{-1}) S')

    with the map T that takes S to S'. To second order the errors E, E' of the covariances add
    sum_ij N_ij^2 / (2 (r_i + r_j)), N = T^{-1/2} E' T^{-1/2} - T^{1/2} E T^{1/2}, in the axes of
    R = T^{1/2} S T^{1/2}, whose variances are r. So the means of x with its products in those
    axes, and of z with its own, are one vector that is compared; its covariance gives the bias.
    A jackknife of what is left takes off the order after that. With fewer than 10 rows a column,
    or not whole, T stretches columns.
    """
    n, m, given = len(x), len(z), (x, z)
    whole = whole and has_covariance(x, z)
    apart, x, z = z.mean(0) - x.mean(0), x - x.mean(0), z - z.mean(0)
    between = _Map.between(x, z, whole)
    old, new, scale = between.in_axes(x, z)
    square = between.square + float(apart @ apart)
    products = _products_error(old, scale) + _products_error(new, scale)
    bias = products + _mean_error(x) + _mean_error(z)
    bias += _jackknife(*given, whole, square - bias)
    vectors = []
    for rows, halfway in ((x, old), (z, new)):
        # rows that made the axes lie closer together in them than others
        left = 1.0 - (x.shape[1] if whole else 1) / len(rows)
        some = rows[:_ROWS] if scale.size > _ROWS else rows
        part = _products(halfway[: len(some)], scale) / np.sqrt(left)
        vectors.append((some, part))
    pulls = tuple(
        sign * 2.0 * rows @ apart + (rows * (rows - _times(rows, t))).sum(1)
        for sign, rows, t in ((-1.0, x, between.forth), (1.0, z, between.back))
    )
    joint = [np.hstack(pair) for pair in vectors]
    return Moments(
        square,
        bias,
        _pairs(joint[0], joint[1], n, m),
        ((pulls[0] - pulls[0].mean()) / n, (pulls[1] - pulls[1].mean()) / m),
        (between.square - products, 2.0 * _pairs(vectors[0][1], vectors[1][1], n, m)),
        np.maximum(apart**2 - x.var(0) / n - z.var(0) / m, 0.0)
        + ((x - _times(x, between.forth)) ** 2).mean(0),
        between.halfway(x, z),
    )


def compared_means(x: np.ndarray, z: np.ndarray) -> Moments:
    """The same of the means alone."""
    n, m = len(x), len(z)
    apart, x, z = z.mean(0) - x.mean(0), x - x.mean(0), z - z.mean(0)
    return Moments(
        float(apart @ apart),
        _mean_error(x) + _mean_error(z),
        _pairs(x, z, n, m),
        (-2.0 * x @ apart / n, 2.0 * z @ apart / m),
        (0.0, 0.0),
        apart**2,
        (x, z),
    )


def alike(x: np.ndarray, z: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both about their means and moved towards each other until covariances, or spreads, agree."""
    x, z = x - x.mean(0), z - z.mean(0)
    return _Map.between(x, z, whole).halfway(x, z)


@dataclass(frozen=True, eq=False)
class _Map:
    """T between centred rows: symmetric (d, d), or a stretch of columns (d,)."""

    forth: np.ndarray  # T
    back: np.ndarray  # its inverse
    roots: tuple[np.ndarray, np.ndarray]  # of both
    ridge: float
    square: float

    @staticmethod
    def between(x: np.ndarray, z: np.ndarray, whole: bool) -> _Map:
        before, after = (_covariance(rows, whole) for rows in (x, z))
        trace = float(np.trace(before + after)) if whole else float((before + after).sum())
        d = x.shape[1]
        ridge = _RIDGE * trace / (2 * d) + 1e-300
        if not whole:
            a, b = np.sqrt(before + ridge), np.sqrt(after + ridge)
            t = b / a
            roots = np.sqrt(t), 1.0 / np.sqrt(t)
            return _Map(t, 1.0 / t, roots, ridge, float(((a - b) ** 2).sum()))
        half, inverse = _powers(before, ridge, 0.5, -0.5)
        (other,) = _powers(after, ridge, 0.5)
        axes, polar, _ = np.linalg.svd(half @ other)  # (half S' half)^{1/2}, at full precision
        t = inverse @ ((axes * polar) @ axes.T) @ inverse
        forth, back, root, inverse_root = _powers(0.5 * (t + t.T), 0.0, 1.0, -1.0, 0.5, -0.5)
        square = max(trace + 2 * d * ridge - 2.0 * float(polar.sum()), 0.0) if trace else 0.0
        return _Map(forth, back, (root, inverse_root), ridge, square)

    def halfway(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """T^{1/2} x and T^{-1/2} z, which have one covariance."""
        return _times(x, self.roots[0]), _times(z, self.roots[1])

    def in_axes(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """Both halfway in the axes of their covariance R, and 1 / (2 (r_i + r_j)) of r there."""
        a, b = self.halfway(x, z)
        whole = self.forth.ndim == 2
        r = 0.5 * (_covariance(a, whole) + _covariance(b, whole))
        if whole:
            r, axes = np.linalg.eigh(r)
            a, b = a @ axes, b @ axes
        r = np.maximum(r, 0.0) + self.ridge
        return a, b, 0.5 / (r[:, None] + r if whole else 2.0 * r)


def has_covariance(x: np.ndarray, z: np.ndarray) -> bool:
    """Whether there are rows enough for covariances; variances otherwise."""
    d = x.shape[1]
    return 1 < d <= _LARGEST and _PER_COLUMN * d <= min(len(x), len(z))


def _covariance(rows: np.ndarray, whole: bool) -> np.ndarray:
    return (rows.T @ rows if whole else (rows * rows).sum(0)) / (len(rows) - 1)


def _times(rows: np.ndarray, t: np.ndarray) -> np.ndarray:
    return rows @ t if t.ndim == 2 else rows * t


def _powers(s: np.ndarray, ridge: float, *powers: float) -> list[np.ndarray]:
    """Of a symmetric matrix."""
    values, axes = np.linalg.eigh(s)
    values = np.maximum(values, 0.0) + max(ridge, 1e-12 * float(values[-1]))
    return [(axes * values**power) @ axes.T for power in powers]


def _mean_error(rows: np.ndarray) -> float:
    """Variance of the mean of centred rows, summed over columns."""
    return float((rows * rows).sum()) / (len(rows) * (len(rows) - 1))


def _products(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Centred products of the columns (n, k), scaled."""
    if scale.ndim == 1:
        part = rows * rows * np.sqrt(scale)
    else:
        i, j = np.triu_indices(len(scale))
        part = rows[:, i] * rows[:, j] * np.sqrt(np.where(i == j, 1.0, 2.0) * scale[i, j])
    return part - part.mean(0)


def _products_error(rows: np.ndarray, scale: np.ndarray) -> float:
    """Variance of the mean of `_products`, summed over them."""
    n, squares = len(rows), rows * rows
    if scale.ndim == 1:
        return float(scale @ squares.var(0)) / (n - 1)
    mean = rows.T @ rows / n
    return float((scale * (squares.T @ squares / n - mean * mean)).sum()) / (n - 1)


def _pairs(old: np.ndarray, new: np.ndarray, n: int, m: int) -> float:
    """Trace of V V, of the covariance V of means of n rows like old less means of m like new.

    By pairs of different rows: the others would count errors of V itself.
    """
    few = old.shape[1] < min(len(old), len(new))
    grams = [a.T @ a if few else a @ a.T for a in (old, new)]
    total = 0.0
    for a, gram, size in zip((old, new), grams, (n, m), strict=True):
        own = (a * a).sum(1)
        total += float((gram * gram).sum() - own @ own) / (len(a) * (len(a) - 1) * size**2)
    across = (grams[0] * grams[1]).sum() if few else ((old @ new.T) ** 2).sum()
    return max(total + 2.0 * float(across) / (len(old) * len(new) * n * m), 0.0)


def _jackknife(x: np.ndarray, z: np.ndarray, whole: bool, found: float) -> float:
    """Bias that G^2 less its first order has left.

    It is of second order in 1 / rows, where leaving out a share s adds 2 s of it: half of the
    jackknife's answer, which is meant for the first.
    """
    total = 0.0
    for side, rows in enumerate((x, z)):
        count = min(_FOLDS, len(rows) // 2)
        for fold in range(count):
            kept = rows[np.arange(len(rows)) % count != fold]
            again = _debiased(*((kept, z), (x, kept))[side], whole)
            total += (count - 1) / count * (again - found)
    return 0.5 * total


def _debiased(x: np.ndarray, z: np.ndarray, whole: bool) -> float:
    """G^2 less the first order of its bias."""
    apart, x, z = z.mean(0) - x.mean(0), x - x.mean(0), z - z.mean(0)
    between = _Map.between(x, z, whole)
    old, new, scale = between.in_axes(x, z)
    first = _products_error(old, scale) + _products_error(new, scale)
    return float(apart @ apart) + between.square - first - _mean_error(x) - _mean_error(z)
