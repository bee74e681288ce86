"""Samples with all that they may become, and the dual value that bounds of them give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.networks.layers.layered import Layered
from drojko.inner.networks.network import Network
from drojko.inner.networks.shells import Shells
from drojko.inner.objective import Batch, Objective

__all__ = ["Case", "Problem", "minimise"]


@dataclass(frozen=True)
class Case:
    """The samples at labels and categories that they may take, what taking them costs (n,), and
    displaced coordinates (n, r) that an ascent has found there.
    """

    batch: Batch
    fee: Tensor | None = None
    found: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Samples with all their cases, one after the other, in units of the coordinates."""

    network: Network
    owner: Tensor
    fee: Tensor
    risk: Tensor  # (cases, positions) attained at the found positions, at ``cost``
    cost: Tensor
    displaced: Tensor  # (cases, r): the position of largest risk
    weights: Tensor
    budget: float | None

    @staticmethod
    def of(
        objective: Objective, cases: Sequence[Case], weights: Tensor, radius: float | None
    ) -> Problem:
        """Of an objective, at the positions that were found.

        Raises
        ------
        UnsupportedError
            Where no bounds are known of its model or its loss.
        """
        scale2 = objective.coordinates.scale**2
        batches = [case.batch for case in cases]
        whole = Batch(
            torch.cat([b.x for b in batches]),
            torch.cat([b.y for b in batches]),
            torch.cat([b.q0 for b in batches]),
        )
        network = Network.of(objective, whole) or Layered.read(objective, whole)
        n = len(weights)
        owner = torch.arange(n).repeat(len(cases))
        fees = [torch.zeros(n) if c.fee is None else c.fee.cpu() for c in cases]
        risk, cost, moved = [], [], []
        for case in cases:
            spots = [case.batch.q0, *case.found]
            risks = [objective.risk(case.batch, q).double().cpu() for q in spots]
            shifts = [(q - case.batch.q0).double().cpu() for q in spots]
            spots_cost = [d.square().sum(1) for d in shifts]
            while len(risks) < 1 + max(len(c.found) for c in cases):
                risks, spots_cost = [*risks, risks[0]], [*spots_cost, spots_cost[0]]
            risk.append(torch.stack(risks, 1))
            cost.append(torch.stack(spots_cost, 1))
            moved.append(shifts[-1])
        displaced = network.turned(torch.cat(moved))
        budget = None if radius is None else radius**2 / scale2
        return Problem(
            network, owner, torch.cat(fees).double() / scale2, torch.cat(risk), torch.cat(cost),
            displaced, weights.double().cpu(), budget,
        )  # fmt: skip

    def owned(self, values: Tensor) -> Tensor:
        """Largest of the cases of each sample."""
        out = torch.full_like(self.weights, -torch.inf)
        return out.scatter_reduce(0, self.owner, values, "amax")

    def attained(self, strength: float) -> Tensor:
        """Values of the samples at the positions that were found."""
        values = (self.risk - strength * self.cost).amax(1) - strength * self.fee
        return self.owned(values)

    def bound(self, shells: Shells, strength: float) -> Tensor:
        """Bounds of the samples' suprema, at least what was found."""
        bound = self.owned(shells.supremum(strength) - strength * self.fee)
        return torch.maximum(bound, self.attained(strength))

    def total(self, values: Tensor, strength: float) -> float:
        """Of values of samples: the mean, in radius form the dual value."""
        used = torch.where(self.weights > 0, values, 0.0)
        return float(used @ self.weights) + (self.budget or 0.0) * strength

    def best(self, shells: Shells, strength: float) -> tuple[float, float]:
        """Smallest dual value that the shells prove, and where; it is convex in the penalty."""

        def value(log: float) -> float:
            at = math.exp(log)
            return self.total(self.bound(shells, at), at)

        if self.budget is None:
            return value(math.log(strength)), strength
        return minimise(value, math.log(strength))


def minimise(value: Callable[[float], float], start: float) -> tuple[float, float]:
    """Value and exp(argument) of a minimum near start: brackets of growing steps, then golden."""
    step, low, middle = 0.25, start, start
    at = value(start)
    best = at
    for direction in (1.0, -1.0):
        length = step
        while True:
            trial = middle + direction * length
            new = value(trial) if abs(trial - start) < 60 else math.inf
            if not new < best and math.isfinite(best):
                break
            if not math.isfinite(new) and abs(trial - start) >= 60:
                break
            middle, best, length = trial, min(new, best), 1.6 * length
        if middle != start:
            break
    low, high = middle - 1.6 * step if middle == start else middle - length, middle + length
    ratio = 0.5 * (math.sqrt(5.0) - 1.0)
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = value(a), value(b)
    for _ in range(12):
        if fa <= fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = value(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = value(b)
    return min((best, math.exp(middle)), (fa, math.exp(a)), (fb, math.exp(b)))
