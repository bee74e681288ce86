"""What happened to single rows: moves of a worst case, and sums over them by class or column."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from drojko._validation import is_whole, shown
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.worst_case import MovedRows
from drojko.exceptions import InvalidDataError
from drojko.inner.reweighting.worst_case import MassesMove, Pool, ReweightedWorstCase
from drojko.inner.worst_case import WorstCase
from drojko.measures._arrays import membership

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Moves",
    "Side",
    "carriers_of",
    "moves_of",
    "shares_of",
    "slices_of",
    "swaps_of",
    "top_moves",
]

#: Numbers with more values than this are cut at quantiles.
FEW = 10


class Side(NamedTuple):
    """Rows (m, d) before or after their move, with labels, losses, masses and predictions (m,)."""

    x: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    mass: np.ndarray
    answers: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether the model's ``predict`` is the label, as 0 and 1."""
        return np.asarray(self.answers == self.labels, dtype=float)


class Moves(NamedTuple):
    """Positions of rows in the audited table, how they are before and after, and their harm (m,).

    The harm is the rise of the risk that a row makes: mass * loss after minus mass * loss before.
    ``stay``: the points stay, and masses change.
    """

    rows: np.ndarray
    before: Side
    after: Side
    harm: np.ndarray
    stay: bool

    def top(self, n: int) -> Moves:
        """The ``n`` most harmful; where masses move, the rows that make most of the risk."""
        weight = self.after.mass * self.after.losses if self.stay else self.harm
        order = np.argsort(-weight, kind="stable")[:n]
        before, after = (
            Side(*(part[order] for part in side)) for side in (self.before, self.after)
        )
        return Moves(self.rows[order], before, after, self.harm[order], self.stay)


def moves_of(worst: WorstCase, problem: AuditProblem) -> Moves:
    """All rows of a worst case, before and after."""
    rows, stay = getattr(worst, "rows", None), isinstance(worst, MassesMove)

    def side(x: np.ndarray, labels: np.ndarray, losses: np.ndarray, mass: np.ndarray) -> Side:
        answers = problem.predictions(torch.as_tensor(np.array(x)))
        return Side(x, labels, losses, mass, answers)

    if isinstance(worst, MovedRows):
        source, labels = (worst._decode(torch.as_tensor(y)) for y in (worst.source, worst.labels))
        before = side(worst.before, source, worst.loss_before, worst.mass)
        after = side(worst.after, labels, worst.loss_after, worst.mass)
    elif isinstance(worst, MassesMove):
        pool = worst.pool
        if isinstance(worst, ReweightedWorstCase) and not problem.sampled:  # rows in their order
            ratio = torch.from_numpy(worst.ambiguity.dual(problem.nominal, problem.w).ratio)
            pool = Pool(problem.x, problem.y, problem.w, problem.nominal, ratio, 1.0)
        assert pool is not None  # audits know it
        before = side(pool.x.numpy(), worst._decode(pool.y), pool.losses.numpy(), pool.w.numpy())
        after = before._replace(mass=pool.mass.numpy())
        rows = problem.rows if len(pool.x) == len(problem.rows) else None
    else:
        *points, labels, mass = worst.pairs()
        before, after = (
            side(z, labels, problem.losses(x, worst._encode(labels, x)).numpy(), mass)
            for z, x in ((z, torch.as_tensor(np.array(z))) for z in points)
        )
    rows = _rows_of(problem, before.x) if rows is None else rows
    harm = after.mass * after.losses - before.mass * before.losses
    return Moves(rows, before, after, harm, stay)


def _rows_of(problem: AuditProblem, x: np.ndarray) -> np.ndarray:
    """Positions in the audited table of rows that stand in it; -1 elsewhere."""
    known = {row.tobytes(): int(k) for row, k in zip(problem.x.numpy()[::-1], problem.rows[::-1])}
    return np.array([known.get(np.ascontiguousarray(row).tobytes(), -1) for row in x])


# Sums over rows ----------------------------------------------------------------------------------

HEADS = ("mass", "risk", "accuracy")


def _means(side: Side, inside: np.ndarray, known: bool) -> list[np.ndarray]:
    """Mass, mean loss and accuracy (NaN where it is not ``known``) of members (m, G)."""
    mass = side.mass @ inside
    some = np.where(mass > 0, mass, np.nan)
    risk, accuracy = ((side.mass * part) @ inside / some for part in (side.losses, side.right))
    return [mass, risk, accuracy if known else np.full(len(mass), np.nan)]


def _table(by: str, names: Any, before: list[Any], after: list[Any]) -> pd.DataFrame:
    import pandas as pd

    heads = [*HEADS, *(f"worst_case_{name}" for name in HEADS)]
    by = f"{by}_" if by in heads else by
    return pd.DataFrame({by: names, **dict(zip(heads, [*before, *after]))})


def shares_of(moves: Moves, worst: WorstCase, problem: AuditProblem, by: str) -> pd.DataFrame:
    """See `AuditReport.shares`."""
    rows, before, after = moves.rows, moves.before, moves.after
    names, every, members = [], np.empty(0), (np.zeros((len(rows), 0)),) * 2
    if by == "class" and problem.classes is not None:
        names = problem.classes.tolist()
        members = [side.labels[:, None] == problem.classes for side in (before, after)]
    elif by == "group" and problem.groups is not None and not problem.sampled:
        every, names = membership(problem.groups)
        at = np.searchsorted(problem.rows, np.maximum(rows, 0))
        members = (every[np.minimum(at, len(every) - 1)] * (rows >= 0)[:, None],) * 2
    known = getattr(worst, "group_weights", None)
    if by == "group" and known is not None:  # groups may overlap: their shares of the mixture
        labels, x = problem.y.numpy(), problem.x.numpy()
        labels = labels if problem.classes is None else problem.classes[labels]
        answers = problem.predictions(problem.x)
        own = Side(x, labels, problem.nominal.numpy(), problem.w.numpy(), answers)
        mass, *means = _means(own, membership(problem.groups)[0], problem.n_labels > 0)
        return _table(
            by, list(known), [mass / mass.sum(), *means], [np.array(list(known.values())), *means]
        )
    parts = zip((before, after), members)
    return _table(by, names, *(_means(*part, problem.n_labels > 0) for part in parts))


def slices_of(moves: Moves, problem: AuditProblem, by: Any, bins: int) -> pd.DataFrame:
    """See `AuditReport.slices`."""
    if not is_whole(bins, 2):
        raise InvalidDataError(f"bins={shown(bins)}; expected a whole number of at least 2")
    name, values = _column(moves, problem, by)
    labels, index, edges = _cut(values, moves.before.mass, bins)
    inside = index[:, None] == np.arange(len(labels))
    known, sides = problem.n_labels > 0, (moves.before, moves.after)
    table = _table(name, labels, *(_means(side, inside, known) for side in sides))
    table.attrs["edges"] = edges
    return table


def _column(moves: Moves, problem: AuditProblem, by: Any) -> tuple[str, np.ndarray]:
    """The name and the values (m,) that rows are sliced by, as they were before the move."""
    space = problem.model.space
    if is_whole(by, 0) and by < len(space.raw_names):
        by = space.raw_names[int(by)]
    if isinstance(by, str):
        if by in space.raw_names:
            at = [i for i, k in enumerate(space.keys) if space.raw_names[k.column] == by]
            if len(at) == 1 and space.keys[at[0]].category is None:
                values = moves.before.x[:, at[0]]
                return by, values if space.missing is None else np.where(
                    values == space.missing, np.nan, values
                )
            return by, np.asarray(space.table(moves.before.x)[by])
        if by == "target":
            return by, moves.before.labels
        names = ", ".join(space.raw_names[:8])
        raise InvalidDataError(f"by={by!r} is no column of X; it has {names}, and 'target'")
    if isinstance(by, type) or np.ndim(by) != 1:
        raise InvalidDataError(
            f"by={shown(by)}; expected the name or index of a column, 'target', or a value a row"
        )
    given, last = np.asarray(by), int(problem.rows.max(initial=-1))
    whole = last + 1 == len(problem.rows)
    if problem.sampled or (moves.rows < 0).any():
        raise InvalidDataError("by: rows that were drawn have no values of your own: name a column")
    if len(given) <= last or (whole and len(given) != len(problem.rows)):
        raise InvalidDataError(f"by has {len(given)} values; expected one for each row of X")
    return str(getattr(by, "name", None) or "slice"), given[moves.rows]


def _cut(
    values: np.ndarray, mass: np.ndarray, bins: int
) -> tuple[list[Any], np.ndarray, list[float]]:
    """Names of the slices, which one each value (m,) is in, and the quantiles between them."""
    import pandas as pd

    missing = np.asarray(pd.isna(values))
    known = values[~missing]
    numeric, edges = known.dtype.kind in "iuf", []
    if known.dtype.kind == "O":
        try:
            numbers = np.asarray(known, dtype=np.float64)
            numeric, known = not any(isinstance(v, str | bool) for v in known), numbers
        except (TypeError, ValueError):
            numeric = False
        known = known if numeric else values[~missing]
    if numeric and len(np.unique(known)) > FEW:
        grid = np.arange(1, bins) / bins
        cuts = np.quantile(
            known.astype(float), grid, weights=mass[~missing] + 1e-300, method="inverted_cdf"
        )
        edges = [float(v) for v in np.unique(cuts) if v < known.max()]
        codes = np.searchsorted(edges, known.astype(float))
        digits = next(
            (k for k in range(4, 17) if len({f"{v:.{k}g}" for v in edges}) == len(edges)), 17
        )
        ends = [f"{v:.{digits}g}" for v in edges]
        names: list[Any] = [f"to {ends[0]}"] if ends else ["all"]
        names += [f"{a} to {b}" for a, b in pairwise(ends)] + [f"above {e}" for e in ends[-1:]]
    else:
        texts = [v.item() if isinstance(v, np.generic) else v for v in known.tolist()]
        names = sorted(set(texts), key=lambda v: (isinstance(v, str), v if numeric else str(v)))
        place = {value: k for k, value in enumerate(names)}
        codes = np.array([place[v] for v in texts], dtype=int)
    index = np.full(len(values), len(names))
    index[~missing] = codes
    return names + ["missing"] * bool(missing.any()), index, edges


def swaps_of(moves: Moves, problem: AuditProblem) -> pd.DataFrame:
    """See `AuditReport.swaps`."""
    import pandas as pd

    space, groups = problem.model.space, problem.cost.categories
    columns: list[tuple[str, Any, Any]] = []
    for at, name in zip(groups.columns, groups.names) if groups is not None else ():
        keys = [space.keys[j] for j in at]
        pair = [side.x[:, at] for side in (moves.before, moves.after)]
        if len(at) == 1:
            columns.append((name, pair[0][:, 0], pair[1][:, 0]))
            continue
        coded = all(key.category is not None for key in keys)
        coded = coded and len({key.column for key in keys}) == 1
        name = space.raw_names[keys[0].column] if coded else name
        names = [str(key.category) if coded else space.names[j] for j, key in zip(at, keys)]
        texts = np.array([*names, "none"], dtype=object)
        one, two = (texts[np.where(p.any(1), p.argmax(1), len(names))] for p in pair)
        columns.append((name, one, two))
    if problem.classes is not None:
        columns.append(("target", moves.before.labels, moves.after.labels))
    parts = [
        pd.DataFrame({"column": name, "before": one, "after": two, "mass": moves.after.mass})[
            np.asarray(one != two) & (moves.after.mass > 0)
        ].astype({"before": object, "after": object})
        for name, one, two in columns
    ]
    if not sum(map(len, parts)):
        return pd.DataFrame({"column": [], "before": [], "after": [], "mass": []})
    every = pd.concat([part for part in parts if len(part)])
    found: Any = every.groupby(["column", "before", "after"], sort=False, as_index=False).sum()
    return found.sort_values("mass", ascending=False, kind="stable", ignore_index=True)


def carriers_of(moves: Moves, worst: WorstCase, problem: AuditProblem) -> pd.DataFrame:
    """See `AuditReport.carriers`."""
    import pandas as pd

    space, cost = problem.model.space, problem.cost
    raw = [space.raw_names[key.column] for key in space.keys]
    before, after, mass = moves.before.x, moves.after.x, moves.after.mass
    if moves.stay:
        found = worst.displacement()
        spent = found.groupby("feature")["share"].sum().reindex(space.names).fillna(0.0).to_numpy()
        mean = mass @ after - moves.before.mass @ before
    else:
        shift, weights = after - before, np.where(cost.mutable, cost.weights, 0.0)
        size = shift**2 if problem.ambiguity.order != 1 else np.abs(shift)
        spent = mass @ size * (weights if problem.ambiguity.order != 1 else np.sqrt(weights))
        groups = cost.categories
        for at, price in zip(groups.columns, groups.costs) if groups is not None else ():
            swapped = float(mass @ (shift[:, at] != 0).any(1))
            spent[at[0]] += swapped * price if swapped else 0.0
        mean = mass @ shift
    with np.errstate(divide="ignore", invalid="ignore"):
        x, w = problem.x.numpy(), problem.w.numpy()
        relative = mean / np.sqrt(w @ (x - w @ x) ** 2)
    number = ~space.fixed & np.isfinite(relative)
    frame = pd.DataFrame({
        "column": raw,
        "share": spent / (spent.sum() or 1.0),
        "mean": np.where(number, mean, np.nan),
        "in_spreads": np.where(number, relative, np.nan),
    })  # fmt: skip
    total = {"share": "sum", "mean": "first", "in_spreads": "first"}
    frame = frame.groupby("column", sort=False, as_index=False).agg(total)
    if space.missing is not None:  # of columns with missing values nothing is known
        lost = {name for name, odd in zip(raw, (problem.x == space.missing).any(0)) if odd}
        frame.loc[frame["column"].isin(list(lost)), ["share", "mean", "in_spreads"]] = np.nan
        frame["share"] /= frame["share"].sum() or 1.0
    return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def top_moves(moves: Moves, problem: AuditProblem, n: int) -> pd.DataFrame:
    """See `AuditReport.moves`."""
    import pandas as pd

    if n < 1:
        raise InvalidDataError(f"n={n!r}; expected at least 1")
    found, parts = moves.top(n), []
    for state, side in (("before", found.before), ("after", found.after)):
        frame = problem.model.space.table(side.x)
        extra = {
            "target": side.labels,
            "prediction": side.answers,
            "loss": side.losses,
            "mass": side.mass,
            "harm": found.harm,
        }
        taken = set(frame.columns)
        for name, values in extra.items():
            frame[f"{name}_" if name in taken else name] = values
        frame.index = pd.MultiIndex.from_arrays(
            [found.rows, [state] * len(frame)], names=["row", "state"]
        )
        parts.append(frame)
    order = np.arange(2 * len(parts[0])).reshape(2, -1).T.ravel()
    return pd.concat(parts).iloc[order]
