"""How far apart two samples are, in the units of an ambiguity set: what a radius means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length

from drojko._random import generator
from drojko._sklearn import checked_data, pandas_table
from drojko._validation import is_whole, shown
from drojko.ambiguity import Wasserstein
from drojko.ambiguity.ground.norms import primal_norm
from drojko.approaches.registry import approach_to
from drojko.exceptions import InvalidDataError, UnsupportedError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ObservedShift", "observed_shift"]

_REPEATS = 10  # random halves, of `distance_of_halves`
_SPLITS = 4  # of both samples, into random halves
_SWEEPS = 50  # of potentials, from those of a change of scale
_SURE = 1.96


@dataclass(frozen=True, eq=False)
class ObservedShift:
    """How far a new sample is from an old one, beyond what chance shows between such samples.

    Attributes
    ----------
    distance : float
        In the units of the set's ``radius``; 0 where chance alone shows as much.
    interval : tuple of float
        About 95 %; from 0 where no shift is seen.
    noise : float
        Distance between samples of the same law and of the size that was compared, by chance.
    table : DataFrame
        A row per column, the largest ``share`` first: ``share`` of the cost of the move,
        ``distance`` of the column alone, and ``mean`` and ``spread`` of the old and of the new
        sample. With y also a row per class, "y = ...": its mass before and after.
    rows : int
        Rows compared with each other at a time.
    message : str
        One sentence on what it means.
    """

    distance: float
    interval: tuple[float, float]
    noise: float
    table: pd.DataFrame
    rows: int
    message: str

    def __repr__(self) -> str:
        text = self.table.head(10).to_string(index=False, float_format=lambda v: f"{v:.3g}")
        low, high = self.interval
        head = f"ObservedShift(distance={self.distance:.4g}, interval=({low:.4g}, {high:.4g}))"
        return f"{head}\n  {self.message}\n" + "\n".join(f"  {line}" for line in text.split("\n"))

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self.message)}</p>{self.table.to_html(index=False)}"


def observed_shift(
    X_old: Any,
    X_new: Any,
    *,
    ambiguity: Any = None,
    y_old: Any = None,
    y_new: Any = None,
    max_rows: int = 1000,
    random_state: Any = None,
) -> ObservedShift:
    r"""How far apart two samples are in the units of a set, so that a radius means something.

    .. math::

        D^2 &= |\bar y - \bar x|^2 - \tfrac1n \mathrm{tr}\, S_P - \tfrac1m \mathrm{tr}\, S_Q
        + \tfrac14 \sum_{s,t} W^2(P_s, Q_t)
        - \tfrac12\left(W_r^2(P_1, P_2) + W_{1/r}^2(Q_1, Q_2)\right)

    The distance between samples exceeds that between their laws: rows of the same law are some way
    apart, too. In order 2 the means are compared without bias, and W compares halves P1, P2 and
    Q1, Q2 of either sample about their means. What chance adds there is what halves of one sample
    show in units stretched by the ratio r of the spreads, column by column: where the columns of
    one law are those of the other moved and stretched, it is exactly that. In order 1 distances of
    halves as they are take the place of W. Four random halvings are averaged.

    The interval is that of a normal law of D squared, whose variance comes from the Kantorovich
    potentials at each row (the jackknife), less what halvings differ by, which it counts twice.
    ``distance`` counts what is not in the means where it is more than chance shows.

    Parameters
    ----------
    X_old, X_new : array-like of shapes (n, d) and (m, d)
        Numbers; at least 8 rows each.
    ambiguity : Wasserstein, default=None
        Whose ``weights``, ``immutable``, ``order``, ``norm`` and ``label_cost`` are the units;
        its size does not matter. None: ``Wasserstein()``, the columns as they are.
    y_old, y_new : array-like of shape (n,) and (m,), default=None
        Classes. With a finite ``label_cost`` rows may change class at that cost; otherwise X is
        compared within classes, each by its mass in the new sample, and the table says how far
        the masses moved, which no radius allows for.
    max_rows : int, default=1000
        Rows compared at a time: an assignment costs their number cubed.
    random_state : None, int or generator, default=None
        Of the halves.

    Returns
    -------
    ObservedShift

    Raises
    ------
    InvalidDataError
        For samples that do not fit each other, too few rows, or classes of which one sample has
        fewer than 8.
    UnsupportedError
        For sets that do not move points.

    Notes
    -----
    Columns that are ``immutable`` are left out of the distance: where they shifted, no radius
    holds the new sample, and the message says so. In many columns chance is large, and shifts far
    below it are not seen: compare ``interval`` with ``noise``.

    Of 100 pairs of Gaussian samples each, with 200 rows a sample, the mean of ``distance`` and how
    often the interval held what was planted:

    =================== ============= ============= =============
    shift               2 columns     10 columns    30 columns
    =================== ============= ============= =============
    none                0.05, 98      0.09, 100     0.10, 99
    means 0.3 apart     0.28, 95      0.29, 96      0.24, 100
    means 1 apart       0.99, 96      1.01, 93      0.98, 99
    spread times 1.1    44 %, 97      41 %, 100     29 %, 100
    spread times 1.3    90 %, 96      99 %, 94      100 %, 99
    =================== ============= ============= =============

    Shares are of the distance, sqrt(d) times the change. Spreads twice as wide gave 95 and 92 in 2
    and 10 columns, one column alone 95 and 91. Far below what chance shows between two
    samples (``noise``: 0.4, 2.6 and 5.9 here) changes of the spread are not seen, and those of the
    means in part. With many columns and few rows intervals are wide. Other shifts than moves and
    stretches of columns are measured with what chance adds taken off about, not exactly; and
    samples that share rows are closer than chance has them, and nearer than their laws.

    References
    ----------
    E. del Barrio, J.-M. Loubes (2019), Central limit theorems for empirical transportation cost
    in general dimension, arXiv 1705.01299.

    Examples
    --------
    A move of (0.3, 0.4), whose length is 0.5:

    >>> import numpy as np
    >>> from drojko import observed_shift
    >>> X = np.random.default_rng(0).normal(size=(800, 2))
    >>> shift = observed_shift(X[:400], X[400:] + [0.3, 0.4], random_state=0)
    >>> low, high = shift.interval
    >>> low < 0.5 < high, shift.noise < 0.5
    (True, True)
    """
    old, new, names = _frames(pandas_table(X_old), pandas_table(X_new))
    if not is_whole(max_rows, 8):
        raise InvalidDataError(f"max_rows={shown(max_rows)}; expected 8 or more")
    units = _Units.of(Wasserstein(radius=1.0) if ambiguity is None else ambiguity, names, old)
    seed = torch.randint(2**31 - 1, (1,), generator=generator(random_state))
    rng = np.random.default_rng(int(seed))
    parts = _classes(y_old, y_new, old, new, units.label_cost)
    mass = np.array([len(part[1]) for part in parts], dtype=float) / len(new)
    found = [_compare(units, *part, max_rows, rng) for part in parts]
    distance, (low, high), chance = _estimate(units.order, found, mass, len(new))
    moved = np.tensordot(mass, np.stack([one.moved for one in found]), 1)
    table = _table(units, names, old, new, moved, y_old, y_new)
    noise = math.sqrt(chance)
    message = (
        f"The new law lies {distance:.3g} from the old one (95 %: {low:.3g} to {high:.3g}): a ball "
        f"of that radius holds it. Two samples of one law differ by {noise:.3g} at this size."
    )
    if low == 0.0:
        message = (
            f"No shift beyond chance is seen: it is at most {high:.3g} (95 %). Two samples of one "
            f"law differ by {noise:.3g} at this size."
        )
    message += units.note(old, new)
    return ObservedShift(distance, (low, high), noise, table, found[0].rows, message)


def distance_of_halves(
    ambiguity: Any, X: np.ndarray, y: np.ndarray | None = None, *, max_rows: int, seed: int = 0
) -> tuple[float, int]:
    """Mean distance of random halves of rows X (n, d), and how many rows a half has.

    In the units of `observed_shift`: within the classes y (n,), of at least 16 rows each.
    """
    names = [f"x{k}" for k in range(X.shape[1])]
    units, rng = _Units.of(ambiguity, names, X), np.random.default_rng(seed)
    if y is not None:
        kinds, index, count = np.unique(y, return_inverse=True, return_counts=True)
        kept = (count >= 16)[index]
        X, y = X[kept], (index[kept].astype(float) if len(kinds) <= 100 else None)
    if len(X) < 16:
        return math.nan, 0
    found, rows, mass = 0.0, 0, []
    for part, _ in _classes(y, y, X, X, units.label_cost):
        mass.append(len(part) / len(X))
        m = min(len(part) // 2, max_rows)
        costs = []
        for _ in range(_REPEATS):
            order = rng.permutation(len(part))
            cost = units.costs(part[order[:m]], part[order[m : 2 * m]])
            costs.append(float(cost[linear_sum_assignment(cost)].mean()))
        found, rows = found + mass[-1] * float(np.mean(costs)), rows + m
    return found ** (1.0 / units.order), rows


@dataclass(frozen=True, eq=False)
class _Units:
    """The ground cost between rows."""

    weights: np.ndarray
    mutable: np.ndarray
    order: int
    norm: float
    label_cost: float
    names: list[str]

    @staticmethod
    def of(ambiguity: Any, names: list[str], X: np.ndarray) -> _Units:
        cost = approach_to(ambiguity).resolve(ambiguity, X, names)
        if not ambiguity.moves or ambiguity.order not in (1, 2):
            raise UnsupportedError(
                f"observed_shift measures in the units of Wasserstein sets; "
                f"{type(ambiguity).__name__} does not move points: give ambiguity=Wasserstein()"
            )
        mutable = np.asarray(cost.mutable, dtype=bool)
        if not mutable.any():
            raise InvalidDataError("all columns are immutable: nothing can be compared")
        weights = np.where(mutable, cost.weights, 0.0)
        return _Units(
            weights, mutable, ambiguity.order, ambiguity.norm, float(ambiguity.label_cost), names
        )

    def costs(
        self, a: np.ndarray, b: np.ndarray, stretch: Any = 1.0, centred: bool = False
    ) -> np.ndarray:
        """Of moving each row of a (n, d + 1) to each of b (m, d + 1), labels last.

        With weights times ``stretch`` (d,); centred: about the mean of either.
        """
        x, z, weights = a[:, :-1], b[:, :-1], self.weights * stretch
        if self.order == 1 and self.norm != 2:
            parts = [primal_norm(row - z, weights, self.norm) for row in x]
            total = np.stack(parts)
        else:
            scale = np.sqrt(weights)
            x, z = x * scale, z * scale
            centre = z.mean(0)
            x, z = x - (x.mean(0) if centred else centre), z - centre
            square = (x * x).sum(1)[:, None] + (z * z).sum(1) - 2.0 * x @ z.T
            total = np.maximum(square, 0.0)
            total = np.sqrt(total) if self.order == 1 else total
        if math.isfinite(self.label_cost):
            total = total + self.label_cost * (a[:, -1:] != b[:, -1])
        return total

    def columns(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Mean cost of the move from a to b (n, d + 1), column by column."""
        move = np.abs(a[:, :-1] - b[:, :-1]) * np.sqrt(self.weights)
        return (move**self.order).mean(0)

    def note(self, old: np.ndarray, new: np.ndarray) -> str:
        """On columns that cannot move and did."""
        error = np.sqrt(old.var(0) / len(old) + new.var(0) / len(new))
        apart = np.abs(old.mean(0) - new.mean(0)) > 4.0 * error
        moved = [self.names[k] for k in np.flatnonzero(apart & ~self.mutable)]
        if not moved:
            return ""
        return f" Immutable columns differ, which no radius allows for: {', '.join(moved[:5])}."


def _frames(old: Any, new: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    frame = BaseEstimator()
    first = checked_data(frame, old, ensure_min_samples=8, dtype=np.float64)
    second = checked_data(frame, new, ensure_min_samples=8, dtype=np.float64, reset=False)
    names = getattr(frame, "feature_names_in_", [f"x{k}" for k in range(first.shape[1])])
    return first, second, [str(name) for name in names]


def _classes(
    y_old: Any, y_new: Any, old: np.ndarray, new: np.ndarray, label_cost: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to compare with each other, labels last; class by class where labels cannot move."""
    if (y_old is None) != (y_new is None):
        raise InvalidDataError("give both y_old and y_new, or neither")
    if y_old is None:
        codes = [np.zeros(len(old)), np.zeros(len(new))]
    else:
        check_consistent_length(old, y_old)
        check_consistent_length(new, y_new)
        both = np.concatenate([np.asarray(y_old), np.asarray(y_new)])
        known, index = np.unique(both, return_inverse=True)
        if len(known) > 100:
            raise InvalidDataError(f"y has {len(known)} values: observed_shift takes classes")
        codes = [index[: len(old)].astype(float), index[len(old) :].astype(float)]
    pair = [np.column_stack([x, code]) for x, code in zip((old, new), codes, strict=True)]
    parts = [(pair[0], pair[1])]
    if y_old is not None and math.isinf(label_cost):
        parts = [(pair[0][codes[0] == k], pair[1][codes[1] == k]) for k in np.unique(codes[1])]
    for part in parts:
        if min(map(len, part)) < 8:
            raise InvalidDataError(
                f"{min(map(len, part))} rows are too few to compare: 8 are needed in each sample"
                + (", and of each class of the new one" if len(parts) > 1 else "")
            )
    return parts


@dataclass(frozen=True, eq=False)
class _Compared:
    """Rows of one class of both samples: costs of halves, and what each row adds to them."""

    plain: float  # squared distance of the means (order 2)
    means: float  # the same without bias
    noise: float  # variance of that where the means are equal
    across: np.ndarray  # (splits,): cost between halves of different samples
    within: np.ndarray  # (splits, 2): between the halves of one
    by_means: tuple[np.ndarray, ...]  # (n,), (m,): what each row adds to plain
    pulls: tuple[np.ndarray, ...]  # (splits, some, 2): to across and within, NaN: not drawn
    moved: np.ndarray  # (d,): cost of the move, column by column
    rows: int


def _compare(
    units: _Units, old: np.ndarray, new: np.ndarray, most: int, rng: np.random.Generator
) -> _Compared:
    """Halves of both samples (n, d + 1) and (m, d + 1), each with each."""
    m = min(len(old) // 2, len(new) // 2, most)
    # in any order, and each row in two of the halvings at least
    samples = tuple(rows[rng.permutation(len(rows))] for rows in (old, new))
    pools = [min(len(rows), _SPLITS * m) for rows in samples]
    ratio = _ratio(units, old[:, :-1], new[:, :-1])
    plain = means = noise = 0.0
    by_means = tuple(np.zeros(len(rows)) for rows in samples)
    if units.order == 2:
        scale = np.sqrt(units.weights)
        centres = [rows[:, :-1].mean(0) for rows in samples]
        about = [(x[:, :-1] - c) * scale for x, c in zip(samples, centres, strict=True)]
        apart = (centres[1] - centres[0]) * scale
        spread: Any = sum(x.T @ x / (len(x) * (len(x) - 1)) for x in about)
        plain = float(apart @ apart)
        means, noise = plain - float(np.trace(spread)), 2.0 * float((spread * spread).sum())
        by_means = tuple(
            sign * (x @ apart) / len(x) for sign, x in zip((-2.0, 2.0), about, strict=True)
        )

    across, within, moved = np.zeros(_SPLITS), np.zeros((_SPLITS, 2)), []
    pulls = tuple(np.full((_SPLITS, size, 2), np.nan) for size in pools)
    for k in range(_SPLITS):
        halves = [rng.permutation(size)[: 2 * m].reshape(2, m) for size in pools]
        for pull, pair in zip(pulls, halves, strict=True):
            pull[k, pair.ravel()] = 0.0
        for a in halves[0]:
            for b in halves[1]:
                x, z = samples[0][a], samples[1][b]
                cost, partner, u, v = _assigned(units, x, z, ratio=ratio)
                across[k] += cost / 4
                pulls[0][k, a, 0] += u / (4 * m)
                pulls[1][k, b, 0] += v / (4 * m)
                moved.append(units.columns(x, z[partner]))
        for side, (a, b) in enumerate(halves):
            rows, stretch = samples[side], (ratio, 1.0 / ratio)[side]
            within[k, side], _, u, v = _assigned(units, rows[a], rows[b], stretch)
            pulls[side][k, a, 1] = u / (2 * m)
            pulls[side][k, b, 1] = v / (2 * m)
    return _Compared(
        plain, means, noise, across, within, by_means, pulls, np.mean(moved, 0), m
    )  # fmt: skip


def _estimate(
    order: int, found: list[_Compared], mass: np.ndarray, rows: int
) -> tuple[float, tuple[float, float], float]:
    """Distance, interval and chance (squared)."""
    across = np.tensordot(mass, np.stack([one.across for one in found]), 1)
    within = np.tensordot(mass, np.stack([one.within for one in found]), 1)
    slopes = np.ones(3)  # of the squares in the costs
    if order == 1:
        slopes = 2.0 * np.array([across.mean(), *within.mean(0)])
        across, within = across**2, within**2
    rest = float((across - within.mean(1)).mean())
    means, plain = (float(mass @ [getattr(one, k) for one in found]) for k in ("means", "plain"))

    # the variance of the square is at_zero + growth * D^2
    first = second = noise = 0.0
    for share, one in zip(mass, found, strict=True):
        noise += share**2 * one.noise
        for side, pull in enumerate(one.pulls):
            drawn = ~np.isnan(pull[:, :, 0])
            each = slopes[0] * pull[:, :, 0] - slopes[1 + side] * pull[:, :, 1]
            row = np.nansum(each, 0) / _SPLITS
            times = drawn.sum(0)
            about = np.where(drawn, each - _SPLITS * row / np.maximum(times, 1), 0.0)
            again = times > 1
            own = (about[:, again] ** 2).sum(0) / (times[again] - 1)
            second += share**2 * 2 * one.rows * float(own.mean())
            total = one.by_means[side].copy()
            total[: len(row)] += row
            first += share**2 * float(total @ total)
    # shares of classes are a sample as well
    each = np.array([
        one.means + slopes[0] * one.across.mean() - slopes[1:] @ one.within.mean(0) / 2.0
        for one in found
    ])  # fmt: skip
    first = max(first - 1.5 * second, 0.0) + float(mass @ (each - mass @ each) ** 2) / rows
    chance = _SURE * math.sqrt(second)
    seen = rest > chance
    rest = max(rest, -chance)  # samples that share rows are closer than chance has them
    square = means + rest
    growth = first / (plain + max(rest, 0.0 if order == 2 else math.sqrt(second), 1e-300))
    low, high = (
        max(at + 0.5 * _SURE**2 * growth, 0.0) + sign * _SURE * math.sqrt(
            max(growth * at, 0.0) + 0.25 * _SURE**2 * growth**2 + noise + second
        )
        for at, sign in ((square, -1.0), (max(square, 0.0), 1.0))
    )  # fmt: skip
    low, high = math.sqrt(max(low, 0.0)), math.sqrt(high)
    counted = square if seen or order == 1 else means
    distance = math.sqrt(counted + 0.25 * growth) if counted > 0.0 else 0.0  # a root is too short
    interval = (min(low, distance), max(high, distance))
    return distance, interval, max(float(within.mean()), 0.0)


def _ratio(units: _Units, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Spreads of the columns of new over those of old (d,), drawn together as far as chance goes.

    Towards their mean by the excess of their variance (James and Stein 1961, on logarithms).
    """
    before, after = ((rows - rows.mean(0)) for rows in (old, new))
    squares = [np.maximum((x * x).mean(0), 1e-300) for x in (before, after)]
    ratio = np.clip(np.sqrt(squares[1] / squares[0]), 1e-3, 1e3)
    error: Any = sum(
        ((x * x / square).var(0) / (4.0 * len(x)))
        for x, square in zip((before, after), squares, strict=True)
    )
    own = units.mutable & (ratio > 1e-3) & (ratio < 1e3) & (error > 0.0)
    if own.sum() > 1:
        log, error = np.log(ratio[own]), error[own]
        centre = np.average(log, weights=1.0 / error)
        true = max(float(log.var(ddof=1) - error.mean()), 0.0)
        ratio[own] = np.exp(centre + (log - centre) * true / (true + error))
    return ratio


def _assigned(
    units: _Units, a: np.ndarray, b: np.ndarray, stretch: Any = 1.0, ratio: Any = None
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Mean cost of the best pairs of rows, the partners of a, and potentials of both (m,).

    u_i + v_j <= c_ij, with equality for pairs: u_i <= u_j + c_ij - c_jj (Bellman and Ford), from
    the potentials of a change of scale by ``ratio``.
    """
    centred = units.order == 2
    costs = units.costs(a, b, stretch, centred)
    partner = linear_sum_assignment(costs)[1]
    costs = costs[:, partner]
    own = costs.diagonal().copy()
    u, steps = np.zeros(len(a)), costs - own
    if centred and ratio is not None:
        x = a[:, :-1] - a[:, :-1].mean(0)
        u = (x * x) @ (units.weights * (1.0 - ratio))
    for _ in range(_SWEEPS):
        before, u = u, (u + steps).min(1)
        if np.allclose(u, before, rtol=1e-6, atol=0.0):
            break
    v = np.empty_like(u)
    v[partner] = own - u
    return float(own.mean()), partner, u - u.mean(), v - v.mean()


def _table(
    units: _Units,
    names: list[str],
    old: np.ndarray,
    new: np.ndarray,
    moved: np.ndarray,
    y_old: Any,
    y_new: Any,
) -> pd.DataFrame:
    import pandas as pd

    grid = (np.arange(200) + 0.5) / 200
    apart = np.abs(np.quantile(old, grid, axis=0) - np.quantile(new, grid, axis=0))
    alone = (apart**units.order).mean(0) ** (1.0 / units.order) * np.sqrt(units.weights)
    total = moved.sum()
    frame = pd.DataFrame({
        "column": names,
        "share": moved / total if total > 0 else moved,
        "distance": alone,
        "mean_old": old.mean(0), "mean_new": new.mean(0),
        "spread_old": old.std(0), "spread_new": new.std(0),
    })  # fmt: skip
    frame = frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)
    if y_old is None:
        return frame
    before, after = (pd.Series(np.asarray(y)).value_counts(normalize=True) for y in (y_old, y_new))
    rows = [
        {"column": f"y = {k}", "mean_old": before.get(k, 0.0), "mean_new": after.get(k, 0.0)}
        for k in sorted({*before.index, *after.index})
    ]
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)
