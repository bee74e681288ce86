r"""Proven upper bounds of a perceptron's worst case: the dual value and its penalty.

.. math:: V(r) \le \min_\lambda\; \lambda r^2
          + \sum_i w_i \sup_z \{\ell(f(z), y_i) - \lambda c(z, x_i)\}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from drojko._driver import Limits, nested
from drojko.inner.networks.boxes import MOST_DIMENSIONS, branch_and_bound
from drojko.inner.networks.lipschitz import margin_constants
from drojko.inner.networks.problem import Case, Problem
from drojko.inner.networks.refine import MEMORY, SETTINGS, Effort, Refine
from drojko.inner.networks.shells import Shells, edges
from drojko.inner.objective import Objective

__all__ = ["Case", "NetworkBound", "network_bound"]

#: What lines must take off the Lipschitz constants' bound, relative, to be named as its proof.
_HELPED = 1e-3
#: Steps towards tighter constants where a bound at a penalty would have no end.
_TIGHT = 200
#: Shells of networks that are no matrices: of fast bounds by how many layers of units have
#: quadratic ones, of thorough bounds. Those of two layers are dear, so that fewer balls with more
#: work each come out ahead; a thorough bound has lines on all shells, and balls that three share:
#: those of the fast one.
_SHELLS, _FINE = (25, 25, 9), 25


@dataclass(frozen=True)
class NetworkBound:
    """What was proven.

    Attributes
    ----------
    value : float
        Radius form: the dual value. Penalty form: the mean bound.
    penalty : float
        Where.
    proof : str
    """

    value: float
    penalty: float
    proof: str
    shells: Shells
    problem: Problem
    scale: float
    few: tuple[float, Tensor] | None = None  # bounds in few dimensions, and at which strength
    unproven: str = ""  # why the value is infinite

    def at(self, penalty: float) -> Tensor:
        """Bounds of the samples at any penalty, (n,)."""
        strength = penalty * self.scale**2
        bound = self.problem.bound(self.shells, strength)
        if self.few is not None and strength >= self.few[0]:  # what is paid more for attains less
            bound = torch.minimum(bound, self.few[1])
        return bound


@torch.no_grad()
def network_bound(
    objective: Objective,
    cases: Sequence[Case],
    weights: Tensor,
    *,
    radius: float | None = None,
    effort: str = "fast",
    max_time: float | None = None,
) -> NetworkBound:
    """Bound of the worst case in a ball, or at the objective's penalty.

    Parameters
    ----------
    objective : Objective
        Its penalty is the one (penalty form) or a guess (radius form).
    cases : sequence of Case
        All that samples may become; the first as they are.
    weights : Tensor of shape (n,)
    effort : {"fast", "thorough"}
    max_time : float, optional
        Seconds after which no further region is looked at: what there is by then is proven.

    Raises
    ------
    UnsupportedError
        Where nothing is known of the model or its loss; it names what.
    """
    limits = Limits(max_time=max_time)
    problem = Problem.of(objective, cases, weights, radius)
    scale = objective.coordinates.scale
    far = float(problem.cost.max().sqrt())
    n, m = problem.network.margins.levels.shape
    most = max(4, int(MEMORY / (8 * 8 * max(1, n * m))))
    inner = 0.3 * math.sqrt(float(problem.cost[:, -1].mean()))
    ends = min(max(inner, 0.02), 0.2), max(6.0, 3.0 * far)
    efforts = list(SETTINGS.values())[: list(SETTINGS).index(effort) + 1]
    efforts = [settings.suited(problem.network) for settings in efforts]
    network = problem.network
    own = [settings.shells for settings in efforts]
    if not network.dense:
        own = [_SHELLS[network.curved], _FINE][: len(efforts)]
    counts = [min(most, count) for count in own]
    radii = edges(counts[0], *ends)
    shells = Shells.empty(problem.network, radii, margin_constants(problem.network, 0))
    first = value, strength = problem.best(shells, objective.strength)
    hurry = max_time is not None and max_time < 1.0
    few, known = None, None
    for settings, count in zip(efforts, counts, strict=True):
        shells = shells.onto(edges(count, *ends))
        if not hurry:
            rates = margin_constants(problem.network, settings.lipschitz)
            shells = replace(shells, rates=torch.minimum(shells.rates, rates))
        if radius is None:
            shells = _ending(problem, shells, strength, 0 if hurry else _TIGHT)
            if not problem.best(shells, strength)[0] < math.inf:
                why = _endless(shells, scale**2)
                return NetworkBound(
                    math.inf, strength / scale**2, "lipschitz", shells, problem, scale, unproven=why
                )
        boxes = _Boxes(problem, shells, settings, limits).best(objective.strength)
        if boxes is not None:
            few = boxes if few is None or boxes[0] < few[0] else few
            continue
        solver = Refine(problem, settings, shells, objective.strength, known)
        start = solver.init(problem)
        state = nested(solver, start, max_iter=10**6, max_time=limits.time_left).state
        shells, known = state.shells, state.known
        value, strength = min((value, strength), problem.best(shells, state.strength))
    proof = "linear-bounds" if value < first[0] * (1 - _HELPED) else "lipschitz"
    found = NetworkBound(value, strength / scale**2, proof, shells, problem, scale)
    if few is not None and few[0] < value:
        at = few[1] / scale**2
        return replace(found, value=few[0], penalty=at, proof="branch-and-bound", few=few[1:])
    return found


def _ending(problem: Problem, shells: Shells, strength: float, steps: int) -> Shells:
    """The shells, with tighter constants where the bound at a penalty has no end far away.

    No work on shells gives it one.
    """
    if problem.best(shells, strength)[0] < math.inf:
        return shells
    rates = torch.minimum(shells.rates, margin_constants(problem.network, steps))
    return replace(shells, rates=rates)


def _endless(shells: Shells, scale2: float) -> str:
    """Why there is no finite bound at a penalty."""
    least = shells.margins.loss.growth * float(shells.rates.max()) ** 2 / scale2
    if not math.isfinite(least):
        return "nothing is known of how fast this loss grows"
    return (
        f"no bound of this loss is finite up to a penalty of {least:.6g}, as far as constants of "
        "the network are known; the worst case itself may be infinite there"
    )


@dataclass
class _Boxes:
    """Branch and bound at any penalty: totals, and bounds of the samples, by penalty."""

    problem: Problem
    shells: Shells
    settings: Effort
    limits: Limits
    known: dict[float, tuple[float, Tensor]] = field(default_factory=dict)
    count: int = 0

    def best(self, strength: float) -> tuple[float, float, Tensor] | None:
        """Smallest total, where, and the bounds there; None: too many dimensions, or no time."""
        few = self.problem.network.dense and self.problem.network.dim <= MOST_DIMENSIONS
        if not few or not self.total(strength) < math.inf:
            return None
        if self.problem.budget is not None and not self.closed(strength):
            step = 0.08
            for direction in (step, -step):
                at, length = strength, direction
                while self.total(at * math.exp(length)) < self.total(at):
                    at, length = at * math.exp(length), 1.6 * length
                if at != strength:
                    break
            strength, length = at, abs(length) / 1.6
            for _ in range(self.settings.searches):
                length *= 0.5
                nearby = (strength * math.exp(-length), strength, strength * math.exp(length))
                strength = min(nearby, key=self.total)
        return self.known[strength][0], strength, self.known[strength][1]

    def closed(self, strength: float) -> bool:
        """Whether no other penalty can matter: the total is near to what is attained."""
        total, found = self.known[strength][0], self.problem.attained(strength)
        attained = self.problem.total(found, strength)
        return total - attained <= self.settings.goal * abs(attained)

    def total(self, strength: float) -> float:
        """Of the bounds at a penalty."""
        if strength not in self.known:
            over = self.count > self.settings.boxes or self.limits.time_left == 0.0
            bound = None if over else self._bound(strength)
            total = math.inf if bound is None else self.problem.total(bound, strength)
            self.known[strength] = total, torch.empty(0) if bound is None else bound
        return self.known[strength][0]

    def _bound(self, strength: float) -> Tensor | None:
        problem, shells, settings = self.problem, self.shells, self.settings
        # From here on the chain proves less than the samples themselves attain.
        steep = shells.margins.slope * float(shells.rates.max())
        free = math.isfinite(steep)
        reach = steep / strength if free else float(shells.edges[-1])
        found = problem.attained(strength)
        mean = abs(problem.total(found, strength))
        fee = strength * problem.fee
        result = branch_and_bound(
            problem.network, strength, found[problem.owner] + fee, reach,
            torch.full_like(fee, 0.5 * settings.goal * mean), settings.boxes // 2,
            self.limits.time_left,
        )  # fmt: skip
        if result is None:
            return None
        values, count = result
        self.count += count
        values = values if free else torch.maximum(values, shells.tail(strength))
        return torch.maximum(problem.owned(values - fee), found)
