"""What happened to single rows: moves of a worst case, the most harmful first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, eq=False)
class Moves:
    """Rows before and after, shape (m, d), with labels, losses, masses and harm of shape (m,).

    ``harm`` is the rise of the risk that a row makes: mass * loss after minus mass * loss before.
    """

    rows: np.ndarray
    before: np.ndarray
    after: np.ndarray
    label_before: np.ndarray
    label_after: np.ndarray
    loss_before: np.ndarray
    loss_after: np.ndarray
    mass_before: np.ndarray
    mass_after: np.ndarray

    @property
    def harm(self) -> np.ndarray:
        """Rise of the risk by each row, shape (m,)."""
        return self.mass_after * self.loss_after - self.mass_before * self.loss_before

    def top(self, n: int) -> Moves:
        """The ``n`` most harmful ones."""
        order = np.argsort(-self.harm, kind="stable")[:n]
        return Moves(*(getattr(self, name)[order] for name in self.__dataclass_fields__))


def moves_of(worst: WorstCase, problem: AuditProblem) -> Moves:
    """All moves of a worst case."""
    if isinstance(worst, MovedRows):
        return Moves(
            worst.rows,
            worst.before,
            worst.after,
            worst._decode(torch.as_tensor(worst.source)),
            worst._decode(torch.as_tensor(worst.labels)),
            worst.loss_before,
            worst.loss_after,
            worst.mass,
            worst.mass,
        )
    if isinstance(worst, ReweightedWorstCase):
        pool = worst.pool
        x, y, losses = pool.x.numpy(), worst._decode(pool.y), pool.losses.numpy()
        rows = _rows_of(problem, pool.x.numpy())
        return Moves(rows, x, x, y, y, losses, losses, pool.w.numpy(), pool.mass.numpy())
    before, after, labels, mass = worst.pairs()
    x, z = torch.as_tensor(np.array(before)), torch.as_tensor(np.array(after))
    y = worst._encode(labels, x)
    return Moves(
        _rows_of(problem, np.asarray(before)),
        np.asarray(before),
        np.asarray(after),
        np.asarray(labels),
        np.asarray(labels),
        problem.losses(x, y).numpy(),
        problem.losses(z, y).numpy(),
        np.asarray(mass),
        np.asarray(mass),
    )


def _rows_of(problem: AuditProblem, x: np.ndarray) -> np.ndarray:
    """Positions in the audited table of rows that stand in it; -1 elsewhere."""
    known = {row.tobytes(): int(k) for row, k in zip(problem.x.numpy()[::-1], problem.rows[::-1])}
    return np.array([known.get(np.ascontiguousarray(row).tobytes(), -1) for row in x])


def top_moves(worst: WorstCase, problem: AuditProblem, n: int) -> pd.DataFrame:
    """See `AuditReport.moves`."""
    import pandas as pd

    if n < 1:
        raise InvalidDataError(f"n={n!r}; expected at least 1")
    found, space = moves_of(worst, problem).top(n), problem.model.space
    parts = []
    for state in ("before", "after"):
        u = getattr(found, state)
        raw = space.decode(u)
        frame = raw if hasattr(raw, "columns") else pd.DataFrame(raw, columns=space.raw_names)
        frame = frame.reset_index(drop=True)
        extra = pd.DataFrame(
            {
                "target": getattr(found, f"label_{state}"),
                "prediction": problem.predictions(problem.outputs(torch.as_tensor(np.array(u)))),
                "loss": getattr(found, f"loss_{state}"),
                "mass": getattr(found, f"mass_{state}"),
                "harm": found.harm,
            }
        )
        taken = set(frame.columns)
        extra = extra.rename(columns={c: f"{c}_" for c in extra.columns if c in taken})
        frame = pd.concat([frame, extra], axis=1)
        frame.index = pd.MultiIndex.from_arrays(
            [found.rows, [state] * len(frame)], names=["row", "state"]
        )
        parts.append(frame)
    order = np.arange(2 * len(parts[0])).reshape(2, -1).T.ravel()
    return pd.concat(parts).iloc[order]
