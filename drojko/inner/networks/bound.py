r"""Proven upper bounds of a perceptron's worst case: the dual value and its penalty.

.. math:: V(r) \le \min_\lambda\; \lambda r^2
          + \sum_i w_i \sup_z \{\ell(f(z), y_i) - \lambda c(z, x_i)\}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from drojko._driver import Limits, Status, nested
from drojko.inner.networks.boxes import MOST_DIMENSIONS, branch_and_bound
from drojko.inner.networks.linear import Ball, linear_bound
from drojko.inner.networks.lipschitz import margin_constants
from drojko.inner.networks.network import Network
from drojko.inner.networks.quadratic import Multipliers, quadratic_bound, region_bytes
from drojko.inner.networks.shells import Shells, edges
from drojko.inner.objective import Batch, Objective

__all__ = ["MEMORY", "Case", "NetworkBound", "network_bound"]

#: Bytes that bound work keeps within, roughly, whatever the size of the problem.
MEMORY = 256 * 2**20


@dataclass(frozen=True)
class Case:
    """The samples at labels and categories that they may take, what taking them costs (n,), and
    displaced coordinates (n, r) that an ascent has found there."""

    batch: Batch
    fee: Tensor | None = None
    found: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class _Stage:
    """At which multiple of the best penalty regions are looked at, and how hard.

    ``steps`` 0: lines; else tries of the multipliers, started from a few regions' ``pilot`` tries.
    """

    factor: float
    steps: int
    pilot: int = 0
    share: float = 1.0  # of the work that is left, at most
    least: float = 0.01  # excess of a region that is looked at, relative to the mean


@dataclass(frozen=True)
class _Effort:
    stages: tuple[_Stage, ...]
    lipschitz: int
    shells: int
    work: float  # region steps in units of 32 x 32 networks
    goal: float  # relative gap that ends it
    boxes: int  # in few dimensions
    searches: int  # of the penalty there


_EFFORTS = {
    "fast": _Effort(
        (_Stage(1.2, 0), _Stage(1.15, 1, 0, 1.0, 0.03), _Stage(1.1, 6, 20, 1.0, 0.02)),
        20, 16, 9e3, 0.01, 16_000, 1,
    ),
    "thorough": _Effort(
        (
            _Stage(1.2, 0), _Stage(1.1, 1, 0, 0.5, 0.02), _Stage(1.06, 8, 20, 0.7, 0.01),
            _Stage(1.03, 30, 0, 1.0, 0.003),
        ),
        100, 24, 9e4, 0.002, 160_000, 3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Problem:
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
    ) -> _Problem | None:
        scale2 = objective.coordinates.scale**2
        batches = [case.batch for case in cases]
        whole = Batch(
            torch.cat([b.x for b in batches]),
            torch.cat([b.y for b in batches]),
            torch.cat([b.q0 for b in batches]),
        )
        network = Network.of(objective, whole)
        if network is None:
            return None
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
        return _Problem(
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
        return _minimise(value, math.log(strength))


def _minimise(value: Callable[[float], float], start: float) -> tuple[float, float]:
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


@dataclass(frozen=True)
class _State:
    """Bounds so far; regions of the current shell that wait (sample, margin), and their start."""

    shells: Shells
    value: float
    strength: float
    stage: int = 0
    shell: int = 0
    rows: Tensor | None = None
    which: Tensor | None = None
    start: Multipliers | None = None
    spent: float = 0.0
    reference: float = 0.0  # the penalty that this stage's regions are chosen at
    done: bool = False


@dataclass(frozen=True)
class _Refine:
    """The solver: stage by stage and shell by shell, from the inside out."""

    problem: _Problem
    effort: _Effort
    shells: Shells
    strength: float  # near the multiplier of what was found

    def init(self, problem: _Problem) -> _State:
        value, strength = problem.best(self.shells, self.strength)
        return _State(self.shells, value, strength)

    @staticmethod
    def finite(state: _State) -> bool:
        return not math.isnan(state.value)

    def terminate(self, state: _State) -> Status | None:
        return Status.CONVERGED if state.done else None

    def closed(self, value: float, strength: float) -> bool:
        """Whether a bound is as near to what is attained as is asked for."""
        found = self.problem.total(self.problem.attained(strength), strength)
        return value - found <= self.effort.goal * abs(found)

    def step(self, state: _State) -> _State:
        if state.rows is not None and len(state.rows):
            return self._block(state)
        if state.shell < len(self.shells.edges) - 1:
            return self._opened(state)
        value, strength = self.problem.best(state.shells, state.strength)
        closed = self.closed(value, strength)
        last = state.stage + 1 >= len(self.effort.stages)
        return replace(
            state, value=value, strength=strength, stage=state.stage + 1, shell=0, rows=None,
            done=closed or last,
        )  # fmt: skip

    def _opened(self, state: _State) -> _State:
        """The next shell's regions that may hold more than what was found."""
        problem, k, shells = self.problem, state.shell, state.shells
        stage = self.effort.stages[state.stage]
        if k == 0:
            state = replace(state, reference=self._reference(state, stage))
        strength = state.reference
        fee, least = self._needed(strength, stage)
        state = replace(state, shell=k + 1, rows=None, which=None)
        excess = self._excess(shells.suprema(strength, k), fee)
        rows = (excess > least).nonzero().squeeze(1)
        if len(rows) == 0 or stage.steps == 0:
            return replace(state, rows=rows)
        least = (0.2 * excess[rows]).clamp(0.3 * least, 1e-2)
        rows, which = self._relevant(shells, rows, k, least)
        left = (self.effort.work - state.spent) / self._price(stage.steps)
        rows, which = rows[: max(0, int(left))], which[: max(0, int(left))]
        return replace(state, rows=rows, which=which, start=self._pilot(state, k, rows, which))

    def _excess(self, suprema: Tensor, fee: Tensor) -> Tensor:
        excess = suprema - (fee if suprema.ndim == 1 else fee[:, None])
        used = (self.problem.weights > 0)[self.problem.owner]
        return torch.where(used if excess.ndim == 1 else used[:, None], excess, -torch.inf)

    def _needed(self, strength: float, stage: _Stage) -> tuple[Tensor, float]:
        """What a region must exceed to be looked at: a value per case, and a margin."""
        problem = self.problem
        found = problem.attained(strength)
        mean = abs(problem.total(found, strength))
        return strength * problem.fee + found[problem.owner], stage.least * mean

    def _reference(self, state: _State, stage: _Stage) -> float:
        """The penalty of a stage: raised where more regions are open than the work that is left.

        A sample is only as good as its worst region, so that some regions of all samples at a
        small penalty prove nothing, all of them at a larger one do.
        """
        if self.problem.budget is None:
            return self.strength
        low, high = min(self.strength * stage.factor, state.strength), state.strength
        if stage.steps == 0:
            return low
        margins = 1.0 if state.shells.nominal.shape[1] <= 2 else 2.0
        left = stage.share * (self.effort.work - state.spent)
        affordable = left / (self._price(stage.steps) * margins)

        def fits(strength: float) -> bool:
            fee, least = self._needed(strength, stage)
            excess = self._excess(state.shells.suprema(strength), fee)
            return int((excess > least).sum()) <= affordable

        if fits(low):
            return low
        for _ in range(6):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def _price(self, steps: int) -> float:
        """Work of a region, in that of a step with a network of 32 x 32."""
        net = self.problem.network
        sides = [net.dim, *(w.shape[0] for w in net.weights)]
        pairs = list(zip(sides[1:], sides[:-1], strict=True))
        deep = 1.0 if len(pairs) > 1 else 0.5
        step = deep * sum(a * b * (a + b) for a, b in pairs) / (4 * 32.0**3) + 0.1
        units = sum(
            width * (0.7 if act.convex else 1.5)
            for width, act in zip(sides[1:], net.acts, strict=True)
        )
        return steps * step + units / 64.0

    def _relevant(
        self, shells: Shells, rows: Tensor, k: int, least: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Margins of which a better bound can lower the loss, (sample, margin)."""
        margins = shells.margins.take(rows)
        outer = shells.outer(rows, k)
        loss = margins(outer)
        own = margins.own()
        drops = []
        for j in range(outer.shape[1]):
            lower = outer.clone()
            lower[:, j] = torch.minimum(outer[:, j], shells.nominal[rows, j] - 1.0)
            drops.append(torch.where(own[:, j], 0.0, loss - margins(lower)))
        at, which = (torch.stack(drops, 1) > least[:, None]).nonzero(as_tuple=True)
        return rows[at], which

    def _pilot(self, state: _State, k: int, rows: Tensor, which: Tensor) -> Multipliers | None:
        """Multipliers that suit a few regions of the shell."""
        stage = self.effort.stages[state.stage]
        if not stage.pilot or len(rows) <= 24:
            return state.start if stage.pilot else None
        few = torch.linspace(0, len(rows) - 1, 12).long()
        start = state.start
        return self._quadratic(k, rows[few], which[few], stage.pilot, start)[1].median()

    def _quadratic(
        self, k: int, rows: Tensor, which: Tensor, steps: int, start: Multipliers | None
    ) -> tuple[tuple[Tensor, Tensor], Multipliers]:
        network = self.problem.network.take(rows)
        ball = Ball(torch.full((len(rows),), float(self.shells.edges[k + 1]), dtype=torch.float64))
        radius = torch.full_like(ball.radius, self.shells.middle(k))
        each = torch.arange(len(rows))
        v, c = network.margins.rows[each, which], network.margins.levels[each, which]
        anchor = _anchor(network, v, c, radius, self.problem.displaced[rows])
        intervals = linear_bound(network, ball).intervals
        found = quadratic_bound(network, v, c, anchor, intervals, radius, steps, start)
        error = network.outputs_error()[each, which]
        return (found.constant + error, found.curvature), found.multipliers

    def _block(self, state: _State) -> _State:
        k, stage = state.shell - 1, self.effort.stages[state.stage]
        assert state.rows is not None
        size = self._block_size(stage)
        rows, rest = state.rows[:size], state.rows[size:]
        if stage.steps == 0:
            network = self.problem.network.take(rows)
            radius = torch.full((len(rows),), float(self.shells.edges[k + 1]), dtype=torch.float64)
            anchors, _ = network.forward(_shortened(self.problem.displaced[rows], radius))
            bound = linear_bound(network, Ball(radius), anchors)
            shells = state.shells.with_lines(k, rows, bound.level, bound.rows.norm(dim=2) * (1 + 1e-12))
            return replace(state, shells=shells, rows=rest)
        assert state.which is not None
        which = state.which[:size]
        (constant, curvature), _ = self._quadratic(k, rows, which, stage.steps, state.start)
        shells = state.shells.with_quadratics(k, rows, which, constant, curvature)
        spent = state.spent + len(rows) * self._price(stage.steps)
        return replace(state, shells=shells, rows=rest, which=state.which[size:], spent=spent)

    def _block_size(self, stage: _Stage) -> int:
        net = self.problem.network
        widths = sum(w.shape[0] for w in net.weights)
        lines = 8 * (net.margins.levels.shape[1] + max(w.shape[0] for w in net.weights)) * (
            6 * max(widths, net.dim)
        ) + 8 * 27 * 12 * widths
        one = lines + (region_bytes(net) if stage.steps else 0)
        return max(1, min(2000, MEMORY // 3 // one))


def _anchor(network: Network, rows: Tensor, levels: Tensor, radius: Tensor, found: Tensor) -> Tensor:
    """A displacement of length radius where the margin is large: ascent along the sphere."""

    def climbed(g: Tensor) -> Tensor:
        d = _stretched(g, radius)
        for _ in range(6):
            d = _stretched(network.gradient(d, rows), radius, d)
        return d

    def value(d: Tensor) -> Tensor:
        return (network.forward(d)[1] * rows).sum(1) + levels

    first = climbed(network.gradient(torch.zeros_like(found), rows))
    other = climbed(found)
    return torch.where((value(other) > value(first)).unsqueeze(1), other, first)


def _stretched(d: Tensor, radius: Tensor, instead: Tensor | None = None) -> Tensor:
    length = d.norm(dim=1, keepdim=True)
    out = d * (radius.unsqueeze(1) / length.clamp_min(1e-300))
    return out if instead is None else torch.where(length > 1e-300, out, instead)


def _shortened(d: Tensor, radius: Tensor) -> Tensor:
    length = d.norm(dim=1).clamp_min(1e-300)
    return d * (radius / length).clamp_max(1.0).unsqueeze(1)


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
    problem: _Problem
    scale: float
    few: tuple[float, Tensor] | None = None  # bounds in few dimensions, and at which strength

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
) -> NetworkBound | None:
    """Bound of the worst case in a ball, or at the objective's penalty; None: nothing is known.

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
    """
    limits = Limits(max_time=max_time)
    problem = _Problem.of(objective, cases, weights, radius)
    if problem is None:
        return None
    settings = _EFFORTS[effort]
    scale = objective.coordinates.scale
    far = float(problem.cost.max().sqrt())
    count = settings.shells
    n, m = problem.network.margins.levels.shape
    count = max(4, min(count, int(MEMORY / (8 * 8 * max(1, n * m)))))
    inner = 0.3 * math.sqrt(float(problem.cost[:, -1].mean()))
    radii = edges(count, min(max(inner, 0.02), 0.2), max(6.0, 3.0 * far))
    hurry = max_time is not None and max_time < 1.0
    rates = margin_constants(problem.network, 0 if hurry else settings.lipschitz)
    shells = Shells.empty(problem.network, radii, rates)
    few = _Boxes(problem, shells, settings, limits).best(objective.strength)
    solver = _Refine(problem, settings, shells, objective.strength)
    state = start = solver.init(problem)
    if few is None:
        state = nested(solver, start, max_iter=10**6, max_time=limits.time_left).state
    value, strength = problem.best(state.shells, state.strength)
    proof = "linear-bounds" if value < start.value * (1 - 1e-9) else "lipschitz"
    found = NetworkBound(value, strength / scale**2, proof, state.shells, problem, scale)
    if few is not None and few[0] < value:
        at = few[1] / scale**2
        return replace(found, value=few[0], penalty=at, proof="branch-and-bound", few=few[1:])
    return found


@dataclass
class _Boxes:
    """Branch and bound at any penalty: totals, and bounds of the samples, by penalty."""

    problem: _Problem
    shells: Shells
    settings: _Effort
    limits: Limits
    known: dict[float, tuple[float, Tensor]] = field(default_factory=dict)
    count: int = 0

    def best(self, strength: float) -> tuple[float, float, Tensor] | None:
        """Smallest total, where, and the bounds there; None: too many dimensions, or no time."""
        if self.problem.network.dim > MOST_DIMENSIONS or not self.total(strength) < math.inf:
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
