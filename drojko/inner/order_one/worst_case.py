"""The worst case of order 1 as a measure: little mass, moved far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.ambiguity.ground.norms import primal_norm
from drojko.exceptions import UnsupportedError
from drojko.inner.order_one.plan import FarPlan, LinearAdversary
from drojko.inner.worst_case import WorstCase
from drojko.measures.base import LabelledMeasure

__all__ = ["FarWorstCase"]


@dataclass(frozen=True, repr=False)
class FarWorstCase(WorstCase):
    r"""A nearly worst distribution of an order-1 Wasserstein set: little mass, moved far.

    .. math:: P = P_0 - \delta P_A + \delta\,(x \mapsto x + \tfrac{\rho}{\delta} v_y)_\# P_A

    The supremum of order 1 is not attained: the loss gained approaches slope * radius as ever
    less mass delta moves ever further, by rho / delta along the steepest direction v. This
    measure moves as much mass as it can while it misses at most a thousandth of the gain: often
    very little, a long way from all data. It proves the bound, but it is no useful picture of a
    plausible shift: for one, use ``order=2``. With a finite label cost some labels change, too.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier
    >>> from drojko.ambiguity import Wasserstein
    >>> X, y = load_iris(return_X_y=True)
    >>> ball = Wasserstein(radius=0.1, order=1)
    >>> clf = DROClassifier(ball, reference="empirical").fit(X[:100], y[:100])
    >>> bool(clf.worst_case_.moved_mass < 0.5)
    True
    """

    adversary: LinearAdversary
    plan: FarPlan
    reference: LabelledMeasure
    attained_risk: float
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    cost_weights: np.ndarray | None = None

    @property
    def n_features(self) -> int:
        return self.adversary.coef.shape[1]

    @property
    def moved_mass(self) -> float:
        """Share of the mass that moves, on the draws of the certificate."""
        return self.plan.mass

    @property
    def distance(self) -> float:
        """How far it moves, in the ground cost."""
        return self.plan.distance

    # -- the plan ----------------------------------------------------------------------------

    def _labels(self, x: np.ndarray, y: np.ndarray, coin: Any) -> np.ndarray:
        adversary, plan = self.adversary, self.plan
        if not adversary.flips or math.isinf(plan.price):
            return y
        other, gain = adversary.other_label(adversary.outputs(x), y)
        tie = (np.abs(gain - plan.price) <= 1e-12 * plan.price) & (coin < plan.tie)
        return np.where((gain > plan.price * (1.0 + 1e-12)) | tie, other, y)

    def _steepest(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows belong to the part that moves, and their directions' indices."""
        if not self.plan.distance > 0:
            return np.zeros(len(x), bool), np.zeros(len(x), dtype=int)
        adversary = self.adversary
        deficit, index = adversary.deficits(adversary.outputs(x), y, adversary.slope())
        slack = 1e-9 * (1.0 + abs(self.plan.threshold))
        return deficit <= self.plan.threshold + slack, index

    def _moved(self, x: np.ndarray, y: np.ndarray, coins: Any = (1.0, 0.0)):
        """Images, targets there, labels taken, and rows that move, as coins of shape (2, n) fall.

        By default every share that moves does, and no tie changes its label.
        """
        adversary, plan = self.adversary, self.plan
        labels = self._labels(x, y, coins[0])
        rows, index = self._steepest(x, labels)
        rows = rows & (coins[1] < plan.share)
        if adversary.moves_target:
            step = np.where(index == 0, -1.0, 1.0) * plan.distance / adversary.label_cost
            return x, np.where(rows, labels + step, labels), labels, rows
        far = np.where(rows, plan.distance, 0.0)[:, None] * adversary.directions()[index]
        return x + far, labels, labels, rows

    # -- the measure -------------------------------------------------------------------------

    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        gen = make_generator(random_state)
        draws = self.reference.sample(n, gen)
        x, y = (part.cpu().numpy() for part in draws)
        coins = torch.rand(2, n, generator=gen, dtype=torch.float64).numpy()
        x, y, _, _ = self._moved(x.astype(np.float64), y, coins)
        return x, self._decode(torch.from_numpy(y))

    def transport(self, X: Any, y: Any) -> np.ndarray:
        """Where rows X with labels y are moved, shape (n, d); most stay.

        Where a part of a point's mass moves, this is where that part goes.
        """
        return self._moved(*self._arrays(X, y))[0]

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        r"""Log density of X given y, shape (n,).

        .. math:: p(z) = p_0(z) (1 - s [z \in A]) + s\, p_0(z - D v) [z - D v \in A]

        Raises
        ------
        UnsupportedError
            For a reference without density, and where labels or targets move.
        """
        if self.adversary.flips or self.adversary.moves_target:
            raise UnsupportedError("log_prob: labels move under this label_cost; use sample")
        x, labels = self._arrays(X, y)
        inside, _ = self._steepest(x, labels)
        share = self.plan.share
        total = self._density(x, labels) * np.where(inside, 1.0 - share, 1.0)
        if self.plan.distance > 0:
            directions = self.adversary.directions()
            either = [np.zeros(len(x), int), np.ones(len(x), int)]
            for index in either if self.classes is None else [labels]:
                source = x - self.plan.distance * directions[index]
                rows, own = self._steepest(source, labels)
                came = rows & (own == index)
                total = total + np.where(came, share * self._density(source, labels), 0.0)
        with np.errstate(divide="ignore"):
            return np.log(total)

    def _density(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        tensors: tuple[Tensor, Tensor] = (torch.from_numpy(x), torch.from_numpy(y))
        return self.reference.log_prob(*tensors).double().exp().cpu().numpy()

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        x, y, w = (t.cpu().numpy() for t in self.reference.points(2000, make_generator(0)))
        x = x.astype(np.float64)
        image, _, y, rows = self._moved(x, y)
        share = self.plan.share
        if share < 1.0:
            stay = x[rows]
            x, image = np.concatenate([x, stay]), np.concatenate([image, stay])
            y = np.concatenate([y, y[rows]])
            w = np.concatenate([np.where(rows, share * w, w), (1.0 - share) * w[rows]])
        return x, image, self._decode(torch.from_numpy(y)), w

    def _costs(self, x: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Each row's distance, split over columns in proportion to their weighted moves."""
        weights = 1.0 / np.maximum(self.adversary.inverse_weights, 1e-300)
        weights = np.where(self.adversary.inverse_weights > 0, weights, np.inf)
        move = np.abs(image - x) * np.sqrt(np.where(np.isfinite(weights), weights, 0.0))
        total = np.maximum(move.sum(axis=1, keepdims=True), 1e-300)
        return move / total * primal_norm(image - x, weights, self.adversary.norm)[:, None]

    def __repr__(self) -> str:
        plan = self.plan
        moves = (
            f"a share {plan.mass:.3g} of the mass moved by {plan.distance:.4g}; order=2 shows a "
            "more plausible shift"
            if plan.distance > 0
            else "nothing moves"
        )
        if self.adversary.flips and math.isfinite(plan.price):
            moves = f"labels change where that gains most, {moves}"
        return f"FarWorstCase(risk={self.attained_risk:.6g}, {moves})"
