"""The worst case of an audit: the audited rows, moved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from drojko._random import generator as make_generator
from drojko.ambiguity import GroundCost
from drojko.approaches.reference import by_class
from drojko.exceptions import UnsupportedError
from drojko.inner.transport.adversary import Adversary
from drojko.inner.worst_case import WorstCase, which
from drojko.measures import KDE, Empirical, Joint, LabelledMeasure, Measure

__all__ = ["MovedRows"]


@dataclass(frozen=True, repr=False, eq=False)
class MovedRows(WorstCase):
    r"""Rows before and after the move, with masses: a plan that keeps within the budget.

    .. math:: P_* = \sum_k m_k\, \delta_{z_k} * N(0, \mathrm{diag}(b^2))

    with a bandwidth b that moves samples by at most ``smoothing`` (root mean square); 0: atoms.

    Parameters
    ----------
    before, after : ndarray of shape (m, d)
        In the columns of the audit's matrix; a row whose move is a mixture appears twice.
    source, labels : ndarray of shape (m,)
        Class indices or targets before and after (labels move at a label cost only).
    mass : ndarray of shape (m,)
        Sums to one.
    rows : ndarray of shape (m,)
        Positions in the audited table, -1 for draws of a continuous reference.
    loss_before, loss_after, costs : ndarray of shape (m,)
    ground : GroundCost
    smoothing : float
    classes, feature_names, cost_weights
        As in `WorstCase`.
    adversary, penalty
        What moves rows that were not audited; None: the move of the closest audited row.
    """

    before: np.ndarray
    after: np.ndarray
    source: np.ndarray
    labels: np.ndarray
    mass: np.ndarray
    rows: np.ndarray
    loss_before: np.ndarray
    loss_after: np.ndarray
    costs: np.ndarray
    ground: GroundCost
    smoothing: float = 0.0
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    cost_weights: np.ndarray | None = None
    adversary: Adversary | None = None
    penalty: float = np.inf

    def __repr__(self) -> str:
        moved = float(self.mass[self.costs > 0].sum())
        return f"WorstCase(risk={self.risk():.6g}, moved={moved:.1%} of the mass)"

    @property
    def n_features(self) -> int:
        return self.before.shape[1]

    @cached_property
    def measure(self) -> LabelledMeasure:
        if self.classes is None:
            return Joint(self._template(len(self.after))).fit(self.after, self.labels, self.mass)
        return by_class(self._template, self.after, self.labels, self.mass, len(self.classes))

    def _template(self, n: int) -> Measure:
        if not self.smoothing > 0 or (n < 2 and self.classes is not None):
            return Empirical()
        mutable = self.ground.mutable
        return KDE(
            max_shift=self.smoothing,
            shift_weights=np.where(mutable, self.ground.weights, 0.0).tolist(),
            fixed=np.flatnonzero(~mutable).tolist(),
        )

    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.measure.sample(n, make_generator(random_state))
        return self.ground.project(x).numpy(), self._decode(y)

    def transport(self, X: Any, y: Any, random_state: Any = None) -> np.ndarray:
        """Where rows X with labels y are moved, shape (n, d).

        Audited rows go where the audit moved them; of those with two moves so many take each that
        means over all rows are the reported ones up to one row (``random_state`` draws which).
        Other rows go by the solver's map where the model has gradients, and by the move of the
        closest audited row of the same label otherwise.
        """
        x, labels = self._queries(X, y)
        image = np.empty(x.shape)
        at, other = self._known(x.numpy(), labels.numpy())
        unknown = at < 0
        if unknown.any():
            odd = torch.as_tensor(unknown)
            image[unknown] = self._elsewhere(x[odd], labels[odd])
        two = ~unknown & (other >= 0)
        low = two.copy()
        share = self.mass[other[two]] / (self.mass[at[two]] + self.mass[other[two]])
        gain = self.costs[other[two]] - self.costs[at[two]]
        low[two] = which(share, gain, random_state)
        image[~unknown] = self.after[np.where(low, other, at)[~unknown]]
        return image

    def _known(self, x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of each row's move and of its second one, -1 where there is none, (n,) each.

        Rows that stand in the table several times take their moves in turn.
        """
        moves: dict[Any, dict[int, list[int]]] = {}
        for k, (row, label, number) in enumerate(zip(self.before, self.source, self.rows.tolist())):
            moves.setdefault((row.tobytes(), float(label)), {}).setdefault(number, []).append(k)
        found = np.full((len(x), 2), -1)
        seen: Counter[Any] = Counter()
        for i, (row, label) in enumerate(zip(np.ascontiguousarray(x), labels.tolist())):
            key = (row.tobytes(), float(label))
            if key in moves:
                own = list(moves[key].values())
                pair = own[seen[key] % len(own)]
                found[i, : len(pair)] = pair[:2]
                seen[key] += 1
        return found[:, 0], found[:, 1]

    def _elsewhere(self, x: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        if self.adversary is not None and np.isfinite(self.penalty) and self.penalty > 0:
            adversary = self.adversary.with_penalty(self.penalty)
            with torch.no_grad():
                batch = adversary.objective.batch(x, labels)
                moved = adversary.solve(batch)
                return adversary.objective.decode(moved.at, moved.q).numpy()
        return self._nearest(x.numpy(), labels.numpy())

    def _nearest(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        from scipy.spatial import cKDTree

        mutable = self.ground.mutable
        root = np.sqrt(np.where(mutable, self.ground.weights, 1.0))
        image = x.copy()
        known = self.source if self.classes is not None else np.zeros(len(self.mass))
        asked = labels if self.classes is not None else np.zeros(len(x))
        heavy = self.mass > 0
        for k in np.unique(asked):
            at, among = asked == k, np.flatnonzero((known == k) & heavy)
            if len(among):
                near = cKDTree(self.before[among] * root).query(x[at] * root)[1]
                image[at] += (self.after - self.before)[among[near]]
        return self.ground.project(image)

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log density of X given y, shape (n,).

        Raises `UnsupportedError` for atoms: radius 0 or an empirical reference.
        """
        if not self.smoothing > 0:
            raise UnsupportedError(
                "log_prob: this worst case is made of atoms; audit with reference='kde' and a "
                "radius > 0 for one with a density"
            )
        return self.measure.log_prob(*self._queries(X, y)).numpy()

    def risk(self) -> float:
        return float(self.mass @ self.loss_after)

    @property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        labels = self.source if self.classes is None else self.classes[self.source]
        return self.before, self.after, labels, self.mass
