"""The solver that improves bounds of shells: stage by stage, from the inside out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko._driver import Status
from drojko.inner.networks.linear import Ball, blocks, linear_bound
from drojko.inner.networks.network import Network
from drojko.inner.networks.problem import Problem
from drojko.inner.networks.quadratic import Multipliers, quadratic_bound, region_bytes
from drojko.inner.networks.shells import Shells

__all__ = ["MEMORY", "SETTINGS", "Effort", "Refine", "Stage", "State"]

#: Bytes that bound work keeps within, roughly, whatever the size of the problem.
MEMORY = 256 * 2**20


@dataclass(frozen=True)
class Stage:
    """At which multiple of the best penalty regions are looked at, and how hard.

    ``steps`` 0: lines; else tries of the multipliers, started from a few regions' ``pilot`` tries.
    """

    factor: float
    steps: int
    pilot: int = 0
    share: float = 1.0  # of the work that is left, at most
    least: float = 0.01  # excess of a region that is looked at, relative to the mean


@dataclass(frozen=True)
class Effort:
    stages: tuple[Stage, ...]
    lipschitz: int
    shells: int
    work: float  # region steps in units of 32 x 32 networks
    goal: float  # relative gap that ends it
    boxes: int  # in few dimensions
    searches: int  # of the penalty there

    def lines(self) -> Effort:
        """The same with linear bounds alone."""
        return replace(self, stages=tuple(stage for stage in self.stages if not stage.steps))


SETTINGS = {
    "fast": Effort(
        (Stage(1.2, 0), Stage(1.15, 1, 0, 1.0, 0.03), Stage(1.1, 6, 20, 1.0, 0.02)),
        20, 16, 9e3, 0.01, 16_000, 1,
    ),
    "thorough": Effort(
        (
            Stage(1.2, 0), Stage(1.1, 1, 0, 0.5, 0.02), Stage(1.06, 8, 20, 0.7, 0.01),
            Stage(1.03, 30, 0, 1.0, 0.003),
            Stage(1.02, 80, 0, 1.0, 0.003),
        ),
        100, 24, 9e4, 0.002, 160_000, 3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class State:
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
class Refine:
    """The solver: stage by stage and shell by shell, from the inside out."""

    problem: Problem
    effort: Effort
    shells: Shells
    strength: float  # near the multiplier of what was found

    def init(self, problem: Problem) -> State:
        value, strength = problem.best(self.shells, self.strength)
        return State(self.shells, value, strength)

    @staticmethod
    def finite(state: State) -> bool:
        return not math.isnan(state.value)

    def terminate(self, state: State) -> Status | None:
        return Status.CONVERGED if state.done else None

    def closed(self, value: float, strength: float) -> bool:
        """Whether a bound is as near to what is attained as is asked for."""
        found = self.problem.total(self.problem.attained(strength), strength)
        return value - found <= self.effort.goal * abs(found)

    def step(self, state: State) -> State:
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

    def _opened(self, state: State) -> State:
        """The next shell's regions that may hold more than what was found."""
        k, shells = state.shell, state.shells
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

    def _needed(self, strength: float, stage: Stage) -> tuple[Tensor, float]:
        """What a region must exceed to be looked at: a value per case, and a margin."""
        problem = self.problem
        found = problem.attained(strength)
        mean = abs(problem.total(found, strength))
        return strength * problem.fee + found[problem.owner], stage.least * mean

    def _reference(self, state: State, stage: Stage) -> float:
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

    def _pilot(self, state: State, k: int, rows: Tensor, which: Tensor) -> Multipliers | None:
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

    def _block(self, state: State) -> State:
        k, stage = state.shell - 1, self.effort.stages[state.stage]
        assert state.rows is not None
        size = self._block_size(stage)
        rows, rest = state.rows[:size], state.rows[size:]
        if stage.steps == 0:
            network = self.problem.network.take(rows)
            radius = torch.full((len(rows),), float(self.shells.edges[k + 1]), dtype=torch.float64)
            anchors, _ = network.forward(_shortened(self.problem.displaced[rows], radius))
            bound = linear_bound(network, Ball(radius), anchors)
            shells = state.shells.with_lines(
                k, rows, bound.level, bound.rows.norm(dim=2) * (1 + 1e-12)
            )
            return replace(state, shells=shells, rows=rest)
        assert state.which is not None
        which = state.which[:size]
        (constant, curvature), _ = self._quadratic(k, rows, which, stage.steps, state.start)
        shells = state.shells.with_quadratics(k, rows, which, constant, curvature)
        spent = state.spent + len(rows) * self._price(stage.steps)
        return replace(state, shells=shells, rows=rest, which=state.which[size:], spent=spent)

    def _block_size(self, stage: Stage) -> int:
        network = self.problem.network
        return blocks(network, MEMORY // 4, region_bytes(network) if stage.steps else 0)


def _anchor(
    network: Network, rows: Tensor, levels: Tensor, radius: Tensor, found: Tensor
) -> Tensor:
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
