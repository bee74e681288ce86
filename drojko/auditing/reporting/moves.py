"""What happened to single rows: moves of a worst case, the most harmful first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.worst_case import MovedRows
from drojko.exceptions import InvalidDataError
from drojko.inner.reweighting.worst_case import MassesMove, Pool, ReweightedWorstCase
from drojko.inner.worst_case import WorstCase
from drojko.measures._arrays import membership

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Moves", "moves_of", "shares_of", "top_moves"]


class Side(NamedTuple):
    """Rows (m, d) before or after their move, with labels, losses and masses (m,)."""

    x: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    mass: np.ndarray


class Moves(NamedTuple):
    """Positions of rows in the audited table, how they are before and after, and their harm (m,).

    The harm is the rise of the risk that a row makes: mass * loss after minus mass * loss before.
    """

    rows: np.ndarray
    before: Side
    after: Side
    harm: np.ndarray


def sides(worst: WorstCase, problem: AuditProblem) -> Moves:
    """All rows of a worst case, before and after."""
    rows = getattr(worst, "rows", None)
    if isinstance(worst, MovedRows):
        source, labels = (worst._decode(torch.as_tensor(y)) for y in (worst.source, worst.labels))
        before = Side(worst.before, source, worst.loss_before, worst.mass)
        after = Side(worst.after, labels, worst.loss_after, worst.mass)
    elif isinstance(worst, MassesMove):
        pool = worst.pool
        if isinstance(worst, ReweightedWorstCase) and not problem.sampled:  # rows in their order
            ratio = torch.from_numpy(worst.ambiguity.dual(problem.nominal, problem.w).ratio)
            pool = Pool(problem.x, problem.y, problem.w, problem.nominal, ratio, 1.0)
        assert pool is not None  # audits know it
        before = Side(pool.x.numpy(), worst._decode(pool.y), pool.losses.numpy(), pool.w.numpy())
        after = before._replace(mass=pool.mass.numpy())
        rows = problem.rows if len(pool.x) == len(problem.rows) else None
    else:
        *points, labels, mass = worst.pairs()
        before, after = (
            Side(z, labels, problem.losses(x, worst._encode(labels, x)).numpy(), mass)
            for z, x in ((z, torch.as_tensor(np.array(z))) for z in points)
        )
    rows = _rows_of(problem, before.x) if rows is None else rows
    return Moves(rows, before, after, after.mass * after.losses - before.mass * before.losses)


def moves_of(worst: WorstCase, problem: AuditProblem, n: int) -> Moves:
    """The ``n`` most harmful moves; where masses move, the rows that make most of the risk."""
    rows, before, after, harm = sides(worst, problem)
    weight = after.mass * after.losses if isinstance(worst, MassesMove) else harm
    top = np.argsort(-weight, kind="stable")[:n]
    before, after = (Side(*(part[top] for part in side)) for side in (before, after))
    return Moves(rows[top], before, after, harm[top])


def _rows_of(problem: AuditProblem, x: np.ndarray) -> np.ndarray:
    """Positions in the audited table of rows that stand in it; -1 elsewhere."""
    known = {row.tobytes(): int(k) for row, k in zip(problem.x.numpy()[::-1], problem.rows[::-1])}
    return np.array([known.get(np.ascontiguousarray(row).tobytes(), -1) for row in x])


def shares_of(worst: WorstCase, problem: AuditProblem, by: str) -> pd.DataFrame:
    """See `AuditReport.shares`."""
    import pandas as pd

    rows, before, after, _ = sides(worst, problem)
    names, every, members = [], np.empty(0), (np.zeros((len(rows), 0)),) * 2
    if by == "class" and problem.classes is not None:
        names = problem.classes.tolist()
        members = [side.labels[:, None] == problem.classes for side in (before, after)]
    elif by == "group" and problem.groups is not None and not problem.sampled:
        every, names = membership(problem.groups)
        at = np.searchsorted(problem.rows, np.maximum(rows, 0))
        members = (every[np.minimum(at, len(every) - 1)] * (rows >= 0)[:, None],) * 2
    columns = []
    for side, inside in zip((before, after), members):
        mass = side.mass @ inside
        risk = (side.mass * side.losses) @ inside / np.where(mass > 0, mass, np.nan)
        columns += [mass, risk]
    known = getattr(worst, "group_weights", None)
    if by == "group" and known is not None:  # groups may overlap: their shares of the mixture
        names, weight = list(known), problem.w.numpy()
        mass = weight @ every
        risk = (weight * problem.nominal.numpy()) @ every / mass
        columns = [mass / mass.sum(), risk, np.array(list(known.values())), risk]
    heads = ("mass", "risk", "worst_case_mass", "worst_case_risk")
    return pd.DataFrame({by: names, **dict(zip(heads, columns))})


def top_moves(worst: WorstCase, problem: AuditProblem, n: int) -> pd.DataFrame:
    """See `AuditReport.moves`."""
    import pandas as pd

    if n < 1:
        raise InvalidDataError(f"n={n!r}; expected at least 1")
    found, parts = moves_of(worst, problem, n), []
    for state, side in (("before", found.before), ("after", found.after)):
        frame = problem.model.space.table(side.x)
        extra = {
            "target": side.labels,
            "prediction": problem.predictions(torch.as_tensor(np.array(side.x))),
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
