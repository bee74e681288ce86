"""Candidate positions of every row, and the best mixture of them within any budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Layer", "Mixture", "Pool", "envelope"]

_MOST_STEPS = 200
#: A share that is rounding, and would double the rows of a plan.
_LEAST = 1e-12


@dataclass(frozen=True)
class Mixture:
    """Two selections of one candidate per row, taken with probability share and 1 - share."""

    penalty: float
    low: Tensor
    high: Tensor
    share: float
    risk: float
    cost: float


class Layer(NamedTuple):
    """A candidate of every row: positions (n, d), labels, costs and losses (n,), its source."""

    x: Tensor
    y: Tensor
    cost: Tensor
    risk: Tensor
    source: str


@dataclass(eq=False)
class Pool:
    """Layers of candidates, the first of them the rows themselves at no cost.

    Every plan made of candidates is feasible, so its risk is attained; a candidate serves every
    budget, so that plans are monotone in it.
    """

    layers: list[Layer] = field(default_factory=list)

    @staticmethod
    def of(x: Tensor, y: Tensor, risk: Tensor) -> Pool:
        """A pool that holds the rows themselves."""
        pool = Pool()
        pool.add(x, y, torch.zeros_like(risk), risk, "stay")
        return pool

    @property
    def nominal(self) -> Tensor:
        """Losses of the rows where they are, shape (n,)."""
        return self.layers[0].risk

    def add(self, x: Tensor, y: Tensor, cost: Tensor, risk: Tensor, source: str) -> None:
        """Add a layer; candidates without a finite cost and loss are never chosen."""
        bad = ~(torch.isfinite(cost) & torch.isfinite(risk))
        cost = torch.where(bad, 0.0, cost.double())
        self.layers.append(Layer(x, y, cost, torch.where(bad, -torch.inf, risk.double()), source))

    def _of(self, sources: tuple[str, ...] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Indices (k,) of the layers of some sources, their costs and losses (k, n).

        The rows themselves always belong to them.
        """
        known = (*sources, "stay") if sources is not None else None
        at = [k for k, layer in enumerate(self.layers) if known is None or layer.source in known]
        layers = [self.layers[k] for k in at]
        cost, risk = ([layer.cost for layer in layers], [layer.risk for layer in layers])
        return torch.tensor(at), torch.stack(cost), torch.stack(risk)

    def plan(
        self, weights: Tensor, budget: float, sources: tuple[str, ...] | None = None
    ) -> Mixture:
        """The best mixture of candidates of some sources whose mean cost is within the budget."""
        index, cost, risk = self._of(sources)
        found = envelope(cost, risk, weights, budget)
        return replace(found, low=index[found.low], high=index[found.high])

    def at_penalty(
        self, weights: Tensor, penalty: float, sources: tuple[str, ...] | None = None
    ) -> Mixture:
        """The best candidates at a price of the cost."""
        index, cost, risk = self._of(sources)
        choice, spent, attained = _select(cost, risk, weights, penalty)
        return Mixture(penalty, index[choice], index[choice], 0.0, attained, spent)

    def best(
        self, weights: Tensor, penalty: float, sources: tuple[str, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`take` of `at_penalty`."""
        return self.take(self.at_penalty(weights, penalty, sources).low)

    def take(self, choice: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions, labels, costs and losses of one candidate per row."""
        x, y, cost, risk = (part.clone() for part in self.layers[0][:4])
        order, counts = choice.argsort(), choice.bincount(minlength=len(self.layers))
        for layer, rows in zip(self.layers, order.split(counts.tolist()), strict=True):
            if len(rows):
                x[rows], y[rows] = layer.x[rows], layer.y[rows]
                cost[rows], risk[rows] = layer.cost[rows], layer.risk[rows]
        return x, y, cost, risk


def _select(
    cost: Tensor, risk: Tensor, weights: Tensor, penalty: float
) -> tuple[Tensor, float, float]:
    """The best layer of each row, the first (cheapest known) of equals; mean cost and risk."""
    value = torch.sub(risk, cost, alpha=penalty).numpy()
    choice = torch.from_numpy(value.argmax(0))  # several times as fast as that of torch
    pick = choice.unsqueeze(0)
    return (
        choice,
        float(weights @ cost.gather(0, pick)[0]),
        float(weights @ risk.gather(0, pick)[0]),
    )


def envelope(cost: Tensor, risk: Tensor, weights: Tensor, budget: float) -> Mixture:
    r"""Best mixture of candidates: the concave envelope of (cost, risk) over all rows.

    .. math:: \max \sum_i w_i \sum_k p_{ik}\,\mathrm{risk}_{ik} \quad\text{s.t.}\quad
              \sum_i w_i \sum_k p_{ik}\,\mathrm{cost}_{ik} \le \mathrm{budget}

    over probabilities p of each row. Its dual is piecewise linear in the price of the cost, so
    that two selections, one that spends more and one that spends less, and the price at which
    both are best solve it exactly; tangents of the dual find them in finitely many steps.

    Parameters
    ----------
    cost, risk : Tensor of shape (k, n)
        The first layer costs nothing.
    weights : Tensor of shape (n,)
    budget : float
        Of the mean cost.

    Examples
    --------
    >>> cost = torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    >>> found = envelope(cost, 3.0 * cost, torch.ones(1, dtype=torch.float64), 1.0)
    >>> found.share, found.risk, found.penalty
    (0.25, 3.0, 3.0)
    """
    still = torch.zeros(cost.shape[1], dtype=torch.long)
    cost_high, risk_high = float(weights @ cost[0]), float(weights @ risk[0])
    if budget <= 0.0:
        return Mixture(math.inf, still, still, 0.0, risk_high, cost_high)
    high = still
    low, cost_low, risk_low = _select(cost, risk, weights, 0.0)
    if cost_low <= budget:
        return Mixture(0.0, low, low, 0.0, risk_low, cost_low)
    penalty = 0.0
    for _ in range(_MOST_STEPS):
        penalty = (risk_low - risk_high) / (cost_low - cost_high)
        choice, spent, attained = _select(cost, risk, weights, penalty)
        gained = (attained - penalty * spent) - (risk_high - penalty * cost_high)
        if gained <= 1e-14 * (abs(risk_high) + abs(risk_low)):
            break
        if spent > budget:
            low, cost_low, risk_low = choice, spent, attained
        else:
            high, cost_high, risk_high = choice, spent, attained
    share = (budget - cost_high) / (cost_low - cost_high)
    share = min(share, 1.0) if share > _LEAST else 0.0
    return Mixture(
        penalty, low, high, share,
        share * risk_low + (1.0 - share) * risk_high,
        share * cost_low + (1.0 - share) * cost_high,
    )  # fmt: skip
