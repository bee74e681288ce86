r"""Worst cases of order 1 for linear models: labels that change, and little mass that moves far.

.. math:: V(r) = \inf_{\lambda \ge L\|\theta\|_*} \lambda r
          + E \max_{y'}\{\ell(x, y') - \lambda\kappa[y' \ne y]\}

S. Shafieezadeh-Abadeh, D. Kuhn, P. Mohajerin Esfahani, 2019, arXiv 1710.10016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from drojko.ambiguity.ground.norms import dual_norm, steepest_direction
from drojko.exceptions import UnboundedRiskError
from drojko.losses import Loss
from drojko.rows import products

__all__ = ["FarPlan", "FarRisk", "LinearAdversary"]

#: Share of the gain from moving that a plan may miss, so as to move more mass less far.
MISSED = 1e-3


@dataclass(frozen=True)
class FarPlan:
    """A worst-case plan as plain numbers.

    Labels change where (loss gained) / label_cost exceeds ``price``, and with probability ``tie``
    where it equals it. Then points whose ``deficit`` is at most ``threshold`` move ``distance``
    along the steepest direction, each with probability ``share``.
    """

    price: float = math.inf
    tie: float = 0.0
    threshold: float = -math.inf
    share: float = 1.0
    distance: float = 0.0
    mass: float = 0.0


@dataclass(frozen=True)
class FarRisk:
    """Worst-case risk of a fixed linear model: value, and what the plan attains of it."""

    nominal: float
    value: float
    attained: float
    worst_risk: float
    penalty: float
    transport_cost: float
    spread: np.ndarray
    losses: np.ndarray
    plan: FarPlan


@dataclass(frozen=True)
class LinearAdversary:
    """What order 1 can do to the linear model coef (K, d), intercept (K,).

    ``inverse_weights`` (d,) and ``norm`` give the ground cost, ``label_cost`` is a distance.
    """

    coef: np.ndarray
    intercept: np.ndarray
    loss: Loss
    inverse_weights: np.ndarray
    norm: float
    label_cost: float = math.inf

    @property
    def flips(self) -> bool:
        """Whether class labels may change."""
        return self.loss.task == "classification" and math.isfinite(self.label_cost)

    @property
    def moves_target(self) -> bool:
        """Whether the targets of a regression are the cheapest thing to move."""
        if self.loss.task != "regression" or math.isinf(self.label_cost):
            return False
        return 1.0 / self.label_cost >= float(self._norm(self.coef[0]))

    def _norm(self, theta: np.ndarray) -> np.ndarray:
        return dual_norm(theta, self.inverse_weights, self.norm)

    def _slopes(self) -> tuple[np.ndarray, np.ndarray]:
        """Per label y: the class k towards which the loss is steepest, and that slope."""
        if len(self.coef) == 1:
            slope = float(self._norm(self.coef[0]))
            if self.loss.task == "regression":
                slope = max(slope, 1.0 / self.label_cost)
            slope *= float(self.loss.lipschitz or 0.0)
            return np.zeros(2, dtype=int), np.full(2, slope)
        gaps = self._norm(self.coef[None] - self.coef[:, None])
        return gaps.argmax(axis=1), gaps.max(axis=1)

    def slope(self, y: np.ndarray | None = None) -> float:
        """Largest slope of the loss per unit of distance, over labels that occur in y (n,)."""
        slopes = self._slopes()[1]
        if len(self.coef) > 1 and y is not None and not self.flips:
            slopes = slopes[np.unique(y)]
        return float(slopes.max())

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Predictions, (n,) for one output and (n, K) otherwise."""
        f = products(x, self.coef.T)
        f += self.intercept
        return f[:, 0] if len(self.coef) == 1 else f

    def losses(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Losses of predictions, (n,)."""
        return self.loss.value(torch.from_numpy(f), torch.from_numpy(y)).numpy()

    # -- labels ------------------------------------------------------------------------------

    def other_label(self, f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The worst other label of each row, and the loss gained by it per unit of distance."""
        labels = range(max(2, len(self.coef)))
        table = np.stack([self.losses(f, np.full(len(y), j)) for j in labels], axis=1)
        table[np.arange(len(y)), y] = -np.inf
        gain = table.max(axis=1) - self.losses(f, y)
        return table.argmax(axis=1), gain / self.label_cost

    # -- moves -------------------------------------------------------------------------------

    def directions(self) -> np.ndarray:
        """Unit displacement per label, (labels, d): towards the steepest class, or of +theta."""
        if len(self.coef) == 1:
            v = steepest_direction(self.coef[0], self.inverse_weights, self.norm)
            return np.stack([v, -v])  # label 0 suffers from larger outputs, label 1 from smaller
        target, _ = self._slopes()
        rows = [self.coef[k] - self.coef[j] for j, k in enumerate(target)]
        return np.array([steepest_direction(r, self.inverse_weights, self.norm) for r in rows])

    def deficits(self, f: np.ndarray, y: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray]:
        """How much of slope * distance a far move loses, (n,), and its index in `directions`.

        Infinite where a point's loss is not of the largest slope.
        """
        if len(self.coef) == 1:
            fall, rise = self.loss.far_deficits(f, y)  # of the margin or the residual
            up = rise <= fall
            if self.loss.task == "classification":  # outputs rise as the margins of label 0 fall
                up = np.where(y == 1, up, ~up)
            return np.minimum(rise, fall), np.where(up, 0, 1)
        target, slopes = self._slopes()
        rows = np.arange(len(y))
        reached = f[rows, target[y]] - f[rows, y] + self.loss.margin
        steep = slopes[y] >= slope * (1.0 - 1e-12)
        return np.where(steep, np.maximum(self.losses(f, y) - reached, 0.0), np.inf), y

    def shifted(
        self, f: np.ndarray, y: np.ndarray, index: np.ndarray, distance: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and targets after a move of ``distance``."""
        if self.moves_target:
            sign = np.where(index == 0, 1.0, -1.0)
            return f, y - sign * distance / self.label_cost
        rates = self.directions() @ self.coef.T
        step = distance * rates[index]
        return (f + step[:, 0], y) if len(self.coef) == 1 else (f + step, y)

    # -- the worst case ----------------------------------------------------------------------

    def risk(
        self,
        x: np.ndarray,
        y: np.ndarray,
        w: np.ndarray,
        *,
        radius: float | None = None,
        penalty: float | None = None,
    ) -> FarRisk:
        """Worst-case risk around weighted points, exact, with a plan that attains nearly all of it.

        Raises
        ------
        UnboundedRiskError
            Penalty form, when the loss is steeper than the penalty.
        """
        f = self.outputs(x)
        base = self.losses(f, y)
        nominal = float(w @ base)
        if radius == 0.0 or (penalty is not None and math.isinf(penalty)):
            return FarRisk(nominal, nominal, nominal, nominal, math.inf, 0.0, base, base, FarPlan())
        slope = self.slope(y)
        if penalty is not None and slope > penalty * (1.0 + 1e-9):
            raise UnboundedRiskError(
                f"penalty={penalty:g}: the loss of this model rises by {slope:.6g} per unit of "
                f"distance, so its worst case is infinite; it is finite from "
                f"penalty={slope:.6g} on"
            )
        price, budget = (slope, radius or 0.0) if penalty is None else (penalty, 0.0)
        plan, labels, spent, worst, rows = FarPlan(), y, 0.0, base, base
        if self.flips:
            other, gain = self.other_label(f, y)
            if penalty is None:
                price = max(slope, self._price(gain, w, budget))
            step = self.label_cost * gain
            rows = np.maximum(base, base + step - self.label_cost * price)
            over = gain > price * (1.0 + 1e-12)
            spent = float(w[over].sum()) * self.label_cost
            labels, worst, tie = np.where(over, other, y), np.where(over, base + step, base), 0.0
            if penalty is None and price > slope:
                ties = np.abs(gain - price) <= 1e-12 * price
                cost = float(w[ties].sum()) * self.label_cost
                tie = min(max((budget - spent) / cost, 0.0), 1.0) if cost > 0 else 0.0
                worst = np.where(ties, base + tie * step, worst)
                spent += tie * cost
            plan = FarPlan(price=price, tie=tie)
        risk, upper = float(w @ worst), float(w @ rows) + price * budget
        if penalty is not None:
            attained = risk - penalty * spent
            return FarRisk(nominal, upper, attained, risk, penalty, spent, rows, worst, plan)
        rest = max(budget - spent, 0.0) if price == slope else 0.0
        if rest > 0.0 and slope > 0.0:
            plan, gained = self._far(f, labels, w, rest, slope, plan)
            extra, worst = float(w @ gained), worst + gained
            risk += extra
            spent += rest if extra != 0.0 else 0.0
        return FarRisk(nominal, max(upper, risk), risk, risk, price, spent, rows, worst, plan)

    def _price(self, gain: np.ndarray, w: np.ndarray, radius: float) -> float:
        """Smallest lambda >= 0 at which label changes cost no more than the radius."""
        order = np.argsort(-gain, kind="stable")
        cost = np.cumsum(w[order]) * self.label_cost
        first = int(np.searchsorted(cost, radius, side="right"))
        return max(float(gain[order[first]]), 0.0) if first < len(order) else 0.0

    def _far(self, f, y, w, budget, slope, plan: FarPlan) -> tuple[FarPlan, np.ndarray]:
        """Move as much mass as possible while nearly all of slope * budget is gained.

        Returns the plan, and what it gains in each row.
        """
        deficit, index = self.deficits(f, y, slope)
        order = np.argsort(deficit, kind="stable")
        order = order[np.isfinite(deficit[order]) & (w[order] > 0)]
        best = 0.0, plan, np.zeros(len(f))
        if not len(order):
            return best[1:]
        cumulated = np.cumsum(w[order])
        goal = (1.0 - MISSED) * slope * budget
        for mass in np.concatenate([[1.0], 0.5 ** np.arange(1, 12), 10.0 ** -np.arange(4, 12.0)]):
            last = min(int(np.searchsorted(cumulated, mass * (1.0 - 1e-12))), len(order) - 1)
            edge = deficit[order[last]]
            rows = order[deficit[order] <= edge]
            covered = float(w[rows].sum())
            share = min(1.0, mass / covered) if mass < covered and last == 0 else 1.0
            moved = covered * share
            distance = budget / moved
            g, t = self.shifted(f[rows], y[rows], index[rows], distance)
            gained = self.losses(g, t) - self.losses(f[rows], y[rows])
            extra = share * float(w[rows] @ gained)
            found = FarPlan(plan.price, plan.tie, float(edge), share, distance, moved)
            if extra > best[0]:
                best = extra, found, np.zeros(len(f))
                best[2][rows] = share * gained
            if extra >= goal:
                break
        return best[1:]
