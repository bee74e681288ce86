"""Shifts of columns of many values, held together by smoothness in these columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import coo_array, csc_array, diags_array, eye_array, hstack, vstack

from drojko.ambiguity.base import Dual
from drojko.ambiguity.duals.scaling import finite_losses, masses
from drojko.exceptions import InvalidDataError

__all__ = ["SmoothConditional", "SmoothMarginal"]

#: Cells up to which all pairs are held together, and neighbours that are beyond it.
_PAIRS, _NEAR = 60, 10
#: Widths that are tried: on a grid, and between the neighbours of its best; the least of them
#: relative to the largest that can be of use, and to that which holds neighbours together.
_GRID, _FINE, _LEAST, _LOOSE = 9, 6, 1e-6, 0.1


class _Smooth:
    """Rows in cells of equal columns, and edges between cells that are near.

    ``cell`` (n,) of each row, ``shares`` (K,), ``ends`` (E, 2) and ``length`` (E,) of the edges. Of
    one column the edges are those between neighbours, which say all; of several, beyond a few
    cells, each has edges to its nearest, so that the set is larger than with all pairs.
    """

    #: Rows are what is reweighted.
    cells = None

    def __init__(self, ambiguity: Any, weights: Any, columns: np.ndarray):
        self.ambiguity = ambiguity
        mass = masses(weights, len(columns))
        self.weights = mass / mass.sum()
        self._known = np.flatnonzero(self.weights > 0)
        if not np.isfinite(columns).all():
            raise InvalidDataError(
                f"{type(ambiguity).__name__}: its columns hold missing or infinite values, between "
                "which and others there is no distance: impute them, or bin the columns and leave "
                "out smoothness="
            )
        top = max(float(np.abs(columns).max()), np.finfo(float).tiny)
        places, self.cell = np.unique(columns[self._known] / top, axis=0, return_inverse=True)
        self.cell = self.cell.reshape(-1)
        self.mass = self.weights[self._known]
        self.shares = np.bincount(self.cell, self.mass, len(places))
        self.ends, self.length = _edges(places)
        self.length = self.length * top
        self.cap = 1.0 / float(ambiguity.alpha)

    def _spread(self, losses: Any) -> tuple[np.ndarray, np.ndarray, float, float]:
        """All losses, those of rows with weight in units of their spread, and these units."""
        values = finite_losses(losses, len(self.weights))
        kept = values[self._known]
        low = float(kept.min())
        return values, kept, low, float(kept.max()) - low

    def _differences(self) -> csc_array:
        """(E, K): value at one end of an edge minus that at the other."""
        count, each = len(self.ends), np.arange(len(self.ends))
        rows, columns = np.tile(each, 2), self.ends.T.reshape(-1)
        signs = np.repeat([1.0, -1.0], count)
        return csc_array(coo_array((signs, (rows, columns)), shape=(count, len(self.shares))))

    def _dual(self, value: float, q: np.ndarray, losses: np.ndarray, spent: float) -> Dual:
        ratio = np.zeros(len(self.weights))
        ratio[self._known] = q
        attained = min(float(self.weights @ (ratio * losses)) - spent, value)
        size = float(ratio.max()) - 1.0
        return Dual(value, 0.0, 0.0, ratio, attained, max(size, 0.0))


def _edges(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = len(places)
    if places.shape[1] == 1:
        ends = np.column_stack([np.arange(1, count), np.arange(count - 1)])
    elif count <= _PAIRS:
        ends = np.column_stack(np.triu_indices(count, 1))
    else:
        from scipy.spatial import cKDTree

        near = cKDTree(places).query(places, _NEAR + 1)[1]
        pairs = np.column_stack([np.repeat(np.arange(count), near.shape[1]), near.reshape(-1)])
        pairs = np.unique(np.sort(pairs, axis=1), axis=0)
        ends = pairs[pairs[:, 0] != pairs[:, 1]]
    return ends, np.linalg.norm(places[ends[:, 0]] - places[ends[:, 1]], axis=1)


def _program(
    quadratic: np.ndarray, linear: np.ndarray, equal: tuple[Any, np.ndarray] | None,
    below: list[tuple[Any, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Minimiser of x' diag(quadratic) x / 2 + linear'x and the multipliers, by Clarabel."""
    import clarabel as clarabel_module

    clarabel: Any = clarabel_module
    parts = ([] if equal is None else [equal]) + below
    size = sum(len(bound) for _, bound in below)
    cones = [] if equal is None else [clarabel.ZeroConeT(len(equal[1]))]
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    found = clarabel.DefaultSolver(
        csc_array(diags_array(quadratic)), linear,
        csc_array(vstack([matrix for matrix, _ in parts])),
        np.concatenate([bound for _, bound in parts]),
        [*cones, clarabel.NonnegativeConeT(size)], settings,
    ).solve()  # fmt: skip
    return np.nan_to_num(np.array(found.x)), np.nan_to_num(np.array(found.z))


class SmoothMarginal(_Smooth):
    r"""Mixtures of cells whose mean losses change by at most L a unit from cell to cell.

    .. math:: \mathrm{CVaR}_\alpha(\mu) \le \min_{\lambda > 0}\; \max_q\; E_0\Big[q\,\ell
        + \frac\lambda2\, q\,\Big(\frac1\alpha - q\Big)\Big],
        \quad 0 \le q \le \frac1\alpha,\; E_0 q = 1,\; q \text{ is } \frac L\lambda\text{-Lipschitz}

    Without the last rule the maximum is at q = clip((mu - eta) / lambda + 1 / (2 alpha)), which is
    as smooth as mu over lambda: the rule costs mu nothing, and keeps q from noise. The bound is
    computed from multipliers, at which it holds wherever the solver stopped.
    """

    def dual(self, losses: Any, smoothing: float = 0.0) -> Dual:
        """The bound at the best width that was found, and the density of its maximum.

        ``smoothing`` times E (q - 1)^2 / (2 (1 / alpha - 1)) is taken off.
        """
        values, kept, low, unit = self._spread(losses)
        mean = float(self.mass @ kept)
        if unit == 0.0 or self.cap == 1.0 or self.ambiguity.smoothness == 0:
            return self._dual(mean, np.ones(len(kept)), values, 0.0)
        means = np.bincount(self.cell, self.mass * (kept - low), len(self.shares)) / self.shares
        means, slope = means / unit, float(self.ambiguity.smoothness) / unit
        price = smoothing / unit / (self.cap - 1.0)
        tried = [self._tail(means)] if price == 0.0 else [self._at(means, 0.0, slope, price)]
        widest = 2.0 * (tried[0][0] - float(self.shares @ means)) / (self.cap - 1.0)
        least = max(_LOOSE * slope * float(np.median(self.length)) / self.cap, _LEAST * widest)
        if least < widest:
            self._search(tried, lambda width: self._at(means, width, slope, price), least, widest)
        value, q = min(tried, key=lambda one: one[0])
        return self._dual(low + unit * value, q[self.cell], values, 0.0)

    def _search(
        self, tried: list[tuple[float, np.ndarray]],
        at: Callable[[float], tuple[float, np.ndarray]], least: float, most: float,
    ) -> None:  # fmt: skip
        """Add what is found at some widths; each is a bound."""
        first = len(tried)
        widths = np.geomspace(least, most, _GRID)
        tried += [at(width) for width in widths]
        best = int(np.argmin([value for value, _ in tried[first:]]))

        def value(log_width: float) -> float:
            tried.append(at(math.exp(log_width)))
            return tried[-1][0]

        ends = np.log([widths[max(best - 1, 0)], widths[min(best + 1, _GRID - 1)]])
        minimize_scalar(value, bounds=tuple(ends), method="bounded", options={"maxiter": _FINE})

    def _tail(self, means: np.ndarray) -> tuple[float, np.ndarray]:
        """The worst cells, whatever they are."""
        order = np.argsort(-means, kind="stable")
        taken = np.diff(np.minimum(np.cumsum(self.cap * self.shares[order]), 1.0), prepend=0.0)
        q = np.empty_like(means)
        q[order] = taken / self.shares[order]
        return float(self.shares @ (q * means)), np.minimum(q, self.cap)  # tiny shares round

    def _at(
        self, means: np.ndarray, width: float, slope: float, price: float
    ) -> tuple[float, np.ndarray]:
        """The bound at a width, and a density in the set near its maximum."""
        p, cap, count = self.shares, self.cap, len(self.shares)
        far = slope * self.length / width if width > 0 else np.full(len(self.length), math.inf)
        held = np.flatnonzero(far < cap)
        apart, far = self._differences()[held], far[held]
        one, bound = csc_array(eye_array(count)), np.zeros(count)
        below = [(-one, bound), (one, bound + cap), (apart, far), (-apart, far)]
        rise = means + 0.5 * width * cap + price
        equal = csc_array(p[None, :] * count), np.array([float(count)])
        q, z = _program(count * (width + price) * p, -count * p * rise, equal, below)
        left = z[1 + 2 * count :]
        flow = (left[: len(held)] - left[len(held) :]) / count
        gain = rise - apart.T @ flow / p
        value = self._value(gain, width + price) - 0.5 * price
        return value + float(far @ np.abs(flow)), self._inside(q)

    def _value(self, gain: np.ndarray, width: float) -> float:
        """Least over eta of eta + E max over q in [0, cap] of q (gain - eta) - width/2 q^2.

        The level is where the maximisers have mean one; any level gives an upper bound.
        """
        cap = self.cap

        def chosen(level: float) -> np.ndarray:
            return np.clip((gain - level) / width, 0.0, cap)

        edges = np.unique(np.concatenate([gain - width * cap, gain]))
        low, high = 0, len(edges) - 1  # the mean falls with the level, linearly between edges
        while high - low > 1:
            middle = (low + high) // 2
            if self.shares @ chosen(edges[middle]) > 1.0:
                low = middle
            else:
                high = middle
        left, right = (float(self.shares @ chosen(edges[k])) for k in (low, high))
        share = (left - 1.0) / (left - right) if left > right else 0.0
        level = edges[low] + min(max(share, 0.0), 1.0) * (edges[high] - edges[low])
        q = chosen(level)
        return float(level + self.shares @ (q * (gain - level) - 0.5 * width * q**2))

    def _inside(self, q: np.ndarray) -> np.ndarray:
        """A density of the marginal set, on the way from 1 to q."""
        q = np.maximum(q, 0.0)
        mean = float(self.shares @ q)
        q = q / mean if mean > 0 else np.ones_like(q)
        top = float(q.max())
        room = 1.0 if top <= self.cap else (self.cap - 1.0) / (top - 1.0)
        return 1.0 + room * (q - 1.0)


class SmoothConditional(_Smooth):
    r"""Tails of cells whose levels change by at most L a unit from cell to cell.

    .. math:: E_0\,\mathrm{CVaR}_\alpha(\ell \mid Z) \le \min_{\eta \text{ is } L\text{-Lipschitz}}
        E_0\Big[\eta(Z) + \frac1\alpha (\ell - \eta(Z))_+\Big]
        = \max_{0 \le q \le 1/\alpha} E_0\, q\,\ell - L\, W_1(q P_0, P_0)_Z

    Any levels give an upper bound; the distance is that between the laws of Z.
    """

    def dual(self, losses: Any, smoothing: float = 0.0) -> Dual:
        """The bound at the best levels, and the density that they answer.

        ``smoothing`` times E (q - 1)^2 / (2 (1 / alpha - 1)) is taken off.
        """
        values, kept, low, unit = self._spread(losses)
        if unit == 0.0 or self.cap == 1.0:
            return self._dual(float(self.mass @ kept), np.ones(len(kept)), values, 0.0)
        gains, cap, mass = (kept - low) / unit, self.cap, self.mass
        price = smoothing / unit / (cap - 1.0)
        far = np.minimum(float(self.ambiguity.smoothness) / unit * self.length, 2.0)
        n, edges, count = len(kept), len(far), len(self.shares)
        inside = csc_array(coo_array((mass, (self.cell, np.arange(n))), shape=(count, n)))
        apart = self._differences()
        moved = csc_array(hstack([n * inside, -apart.T, apart.T]))  # masses, n of them in all
        bottom = np.zeros(n + 2 * edges)
        top = csc_array((np.ones(n), (np.arange(n), np.arange(n))), shape=(n, n + 2 * edges))
        x, z = _program(
            np.concatenate([n * price * mass, bottom[n:]]),
            np.concatenate([-n * mass * (gains + price), far, far]),
            (moved, n * self.shares),
            [(-eye_array(n + 2 * edges), bottom), (top, np.full(n, cap))],
        )
        level = np.clip(z[:count], 0.0, 1.0) if price == 0.0 else z[:count]
        rise = np.abs(apart @ level)
        over = float(np.max(rise / np.maximum(far, 1e-300), initial=0.0, where=rise > 0))
        if over > 1.0:  # by rounding: levels that are less apart
            level = level.mean() + (level - level.mean()) / over
        excess = gains - level[self.cell]
        q = np.where(excess > 0, cap, 0.0)
        if price > 0.0:
            q = np.clip(excess / price + 1.0, 0.0, cap)
        value = float(self.shares @ level + mass @ (q * excess - 0.5 * price * (q - 1.0) ** 2))
        q = np.clip(x[:n], 0.0, cap)
        q = q / max(float(mass @ q), 1e-300)
        spent = float(far @ (x[n : n + edges] + x[n + edges :])) / n
        return self._dual(low + unit * value, q, values, unit * spent)
