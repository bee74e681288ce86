"""What happened to single rows: moves of a worst case, the most harmful first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.worst_case import MovedRows
from drojko.exceptions import InvalidDataError
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.inner.worst_case import WorstCase

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Moves", "moves_of", "top_moves"]


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


def moves_of(worst: WorstCase, problem: AuditProblem, n: int) -> Moves:
    """The ``n`` most harmful moves of a worst case."""
    if isinstance(worst, MovedRows):
        source, labels = (worst._decode(torch.as_tensor(y)) for y in (worst.source, worst.labels))
        before = Side(worst.before, source, worst.loss_before, worst.mass)
        after = Side(worst.after, labels, worst.loss_after, worst.mass)
    elif isinstance(worst, ReweightedWorstCase):
        pool = worst.pool
        before = Side(pool.x.numpy(), worst._decode(pool.y), pool.losses.numpy(), pool.w.numpy())
        after = before._replace(mass=pool.mass.numpy())
    else:
        *points, labels, mass = worst.pairs()
        before, after = (
            Side(z, labels, problem.losses(x, worst._encode(labels, x)).numpy(), mass)
            for z, x in ((z, torch.as_tensor(np.array(z))) for z in points)
        )
    known = getattr(worst, "rows", None)
    rows = _rows_of(problem, before.x) if known is None else known
    harm = after.mass * after.losses - before.mass * before.losses
    top = np.argsort(-harm, kind="stable")[:n]
    before, after = (Side(*(part[top] for part in side)) for side in (before, after))
    return Moves(rows[top], before, after, harm[top])


def _rows_of(problem: AuditProblem, x: np.ndarray) -> np.ndarray:
    """Positions in the audited table of rows that stand in it; -1 elsewhere."""
    known = {row.tobytes(): int(k) for row, k in zip(problem.x.numpy()[::-1], problem.rows[::-1])}
    return np.array([known.get(np.ascontiguousarray(row).tobytes(), -1) for row in x])


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
