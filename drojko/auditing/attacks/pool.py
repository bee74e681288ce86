"""Candidate positions of every row, and the best mixture of them within any budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Mixture", "Pool", "envelope"]

_MOST_STEPS = 200


@dataclass(frozen=True)
class Mixture:
    """Two selections of one candidate per row, taken with probability share and 1 - share."""

    penalty: float
    low: Tensor
    high: Tensor
    share: float
    risk: float
    cost: float


@dataclass(eq=False)
class Pool:
    """Layers of candidates: positions (n, d), labels, costs and losses (n,), where they come from.

    The first layer is the rows themselves at no cost. Every plan made of candidates is feasible, so
    its risk is attained; a candidate serves every budget, so that plans are monotone in it.
    """

    x: list[Tensor] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    cost: list[Tensor] = field(default_factory=list)
    risk: list[Tensor] = field(default_factory=list)
    source: list[str] = field(default_factory=list)

    def add(self, x: Tensor, y: Tensor, cost: Tensor, risk: Tensor, source: str) -> None:
        """Add a layer; candidates without a finite cost and loss are never chosen."""
        bad = ~(torch.isfinite(cost) & torch.isfinite(risk))
        self.x.append(x)
        self.y.append(y)
        self.cost.append(torch.where(bad, 0.0, cost.double()))
        self.risk.append(torch.where(bad, -torch.inf, risk.double()))
        self.source.append(source)

    def layers(self, sources: tuple[str, ...] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Indices (k,) of the layers of some sources, their costs and losses (k, n).

        The rows themselves always belong to them.
        """
        at = [k for k, s in enumerate(self.source) if k == 0 or sources is None or s in sources]
        cost, risk = (torch.stack([part[k] for k in at]) for part in (self.cost, self.risk))
        return torch.tensor(at), cost, risk

    def since(self, first: int) -> Pool:
        """The rows themselves and the layers from ``first`` on."""
        parts = ([part[0], *part[first:]] for part in (self.x, self.y, self.cost, self.risk))
        x, y, cost, risk = parts
        return Pool(x, y, cost, risk, [self.source[0], *self.source[first:]])

    def drop(self, first: int) -> None:
        """Forget the layers from ``first`` on."""
        for part in (self.x, self.y, self.cost, self.risk, self.source):
            del part[first:]

    def plan(
        self, weights: Tensor, budget: float, sources: tuple[str, ...] | None = None
    ) -> Mixture:
        """The best mixture of candidates of some sources whose mean cost is within the budget."""
        index, cost, risk = self.layers(sources)
        found = envelope(cost, risk, weights, budget)
        return replace(found, low=index[found.low], high=index[found.high])

    def at_penalty(
        self, weights: Tensor, penalty: float, sources: tuple[str, ...] | None = None
    ) -> Mixture:
        """The best candidates at a price of the cost."""
        index, cost, risk = self.layers(sources)
        choice, spent, attained = _select(cost, risk, weights, penalty)
        return Mixture(penalty, index[choice], index[choice], 0.0, attained, spent)

    def take(self, choice: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions, labels, costs and losses of one candidate per row."""
        x, y = self.x[0].clone(), self.y[0].clone()
        cost, risk = self.cost[0].clone(), self.risk[0].clone()
        for k in choice.unique().tolist():
            if k:
                rows = choice == k
                x[rows], y[rows] = self.x[k][rows], self.y[k][rows]
                cost[rows], risk[rows] = self.cost[k][rows], self.risk[k][rows]
        return x, y, cost, risk


def _select(
    cost: Tensor, risk: Tensor, weights: Tensor, penalty: float
) -> tuple[Tensor, float, float]:
    """The best layer of each row, the first (cheapest known) of equals; mean cost and risk."""
    choice = torch.sub(risk, cost, alpha=penalty).argmax(0)
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
    share = min(max(share, 0.0), 1.0)
    return Mixture(
        penalty, low, high, share,
        share * risk_low + (1.0 - share) * risk_high,
        share * cost_low + (1.0 - share) * cost_high,
    )  # fmt: skip
