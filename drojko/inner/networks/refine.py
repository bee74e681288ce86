"""The solver that improves bounds of shells: stage by stage, from the inside out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from drojko._driver import Status
from drojko.inner.networks.constraints import Multipliers
from drojko.inner.networks.intervals import WIDEST, sharpened
from drojko.inner.networks.layers.seen import Seen
from drojko.inner.networks.layers.two import two_layers
from drojko.inner.networks.linear import Ball, Intervals, Sharper, blocks, headed, linear_bound
from drojko.inner.networks.network import Network
from drojko.inner.networks.pairs import Pairs, leading
from drojko.inner.networks.problem import Problem
from drojko.inner.networks.quadratic import quadratic_bound, region_bytes
from drojko.inner.networks.shells import Shells

__all__ = ["MEMORY", "SETTINGS", "Effort", "Refine", "Stage", "State"]

#: Bytes that bound work keeps within, roughly, whatever the size of the problem.
MEMORY = 256 * 2**20
#: Regions of a first block, how far apart they are, and of how many the multipliers are kept.
_FIRST, _SPREAD, _KNOWN = 16, 16, 1024
#: How much longer those of a shell's first block are improved, which others start from.
_LONGER = 3
#: Of two classes: share of open regions that are so when their turn comes.
_OPEN = 0.4
#: Of more margins than these a stage begins at twice its gap: each sample has as many regions.
_SEVERAL = 4
#: Halvings that find a goal, missed on the safe side by (50 + the margin's rise) / 2^22 at most.
_HALVINGS = 22
#: A stage whose work does not reach below this share of the best penalty so far is left out: the
#: second where the relative gap is above the third. One of pairs reaches no further than the last.
_NEAR, _NEARER, _SMALL, _PAIRED = 0.97, 0.995, 0.018, 0.94
#: A stage of more steps that closes less than this share of the gap leaves means of pairs to try.
_LONG, _STUCK = 10, 0.05
#: Steps along the sphere to an anchor: of what is dense, and of what is not.
_CLIMB, _CLIMB_BEHIND = 6, 2


@dataclass(frozen=True)
class Stage:
    """At which multiple of the best penalty regions are looked at, and how hard.

    ``steps`` 0: lines; else how often multipliers are improved at most. A stage begins where the
    relative gap is above ``gap``, and shares ``work`` with those before it. ``pairs``: it bounds
    means of two margins. ``layers``: what is not dense is cut behind so many layers of units.
    ``sharp``: intervals of the second layer are narrowed by quadratics. ``every``: so many shells
    share a ball.
    """

    factor: float
    steps: int
    least: float  # excess of a region that is looked at, relative to the mean
    gap: float
    work: float  # region steps in units of 32 x 32 networks
    pairs: bool = False
    layers: int = 0
    sharp: bool = False
    every: int = 1


@dataclass(frozen=True)
class Effort:
    """What is done of a network with one hidden layer and at most `_SEVERAL` margins, and where.

    ``deep``: stages of one with more layers, ``several``: with more margins; None: the same. Few
    regions far from the multiplier close most of such a gap, and many more are needed for the rest.
    ``behind``: of what is not dense, where intervals are most of the work of a region.
    """

    stages: tuple[Stage, ...]
    shells: int
    lipschitz: int
    boxes: int  # in few dimensions
    searches: int  # of the penalty there
    goal: float  # relative gap of the mean that ends those
    deep: tuple[Stage, ...] | None = None
    several: tuple[Stage, ...] | None = None
    behind: tuple[Stage, ...] = ()

    def suited(self, network: Network) -> Effort:
        """The same for a network: linear bounds alone where there are no others."""
        if not network.dense:
            deep = network.curved
            stages = [s for s in self.stages if not s.steps]
            if deep:
                stages = [s for s in self.behind if s.layers in (0, deep)]
            return replace(self, stages=tuple(stages))
        several = network.margins.levels.shape[1] > _SEVERAL
        other = self.several if several else self.deep if len(network.weights) > 1 else None
        return self if other is None else replace(self, stages=other)


_LINES = Stage(1.2, 0, 0.01, 0.0, math.inf)
_CLOSE = (Stage(1.06, 16, 0.01, 0.002, 5e4), Stage(1.03, 12, 0.01, 0.01, 8e4, True))
_LAST = (
    Stage(1.03, 40, 0.003, 0.002, 1e5), Stage(1.03, 24, 0.005, 0.01, 1.4e5, True),
    *[Stage(1.06, 100, 0.01, 0.15, 2e5)] * 2, Stage(1.02, 60, 0.003, 0.002, 1e5),
)  # fmt: skip
_SHARP = tuple(Stage(1.2, 30, 0.02, 0.1, work, sharp=True) for work in (2e5, 3e5, 4e5, 5e5))
_HARD = (*[Stage(1.15, 24, 0.03, 0.15, 4e4)] * 2, Stage(1.1, 8, 0.03, 0.15, 4e4, True))
#: What is done at an effort comes after all that is done at those before it.
SETTINGS = {
    "fast": Effort(
        (
            _LINES, Stage(1.08, 5, 0.03, 0.048, 8e3), Stage(1.06, 5, 0.03, 0.048, 1.2e4),
            Stage(1.15, 12, 0.04, 0.13, 1.5e4), *_HARD,
        ),
        16, 20, 16_000, 1, 0.01,
        deep=(
            _LINES, Stage(1.2, 5, 0.1, 0.1, 1.5e4), Stage(1.15, 12, 0.04, 0.14, 1.5e4), *_HARD,
        ),
        several=(
            _LINES, Stage(1.4, 1, 0.8, 0.15, 1.5e4), *(replace(one, gap=0.18) for one in _HARD)
        ),
        behind=(
            Stage(1.5, 0, 0.1, 0.0, math.inf), Stage(1.5, 1, 0.15, 0.02, 4e4, layers=1),
            Stage(1.2, 1, 0.01, 0.005, 6e4, layers=1), Stage(1.3, 3, 0.15, 0.01, 1.2e5, layers=2),
            Stage(1.2, 4, 0.01, 0.005, 1.3e5, layers=2),
        ),
    ),
    "thorough": Effort(
        (*_CLOSE, *_LAST), 24, 100, 160_000, 3, 0.002,
        # Of more layers or of many margins those close the last per cent at twice the price.
        deep=(*_SHARP, *_CLOSE, *(replace(one, gap=max(0.015, one.gap)) for one in _LAST)),
        several=(*_CLOSE, *(replace(one, gap=max(0.05, one.gap)) for one in _LAST)),
        behind=(
            Stage(1.3, 1, 0.04, 0.01, 8e4, layers=1), Stage(1.2, 8, 0.03, 0.01, 5e5, layers=1),
            Stage(1.2, 8, 0.03, 0.01, 6e5, True, 1), Stage(1.5, 0, 0.1, 0.005, math.inf, layers=2),
            Stage(1.3, 6, 0.04, 0.01, 4.5e5, layers=2, every=3),
            Stage(1.3, 5, 0.03, 0.01, 6e5, True, 2, every=3),
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """Bounds so far, and regions of the current shell that wait: samples, margins, goals.

    ``spots`` (n, K): losses that are attained in the middle of shells.
    """

    shells: Shells
    spots: Tensor
    value: float
    strength: float
    stage: int = 0
    shell: int = 0
    rows: Tensor | None = None
    which: Tensor | None = None
    goal: Tensor | None = None
    anchor: Tensor | None = None
    known: Multipliers | None = None
    fresh: bool = True  # whether none of the shell's regions has been worked on
    spent: float = 0.0
    before: float = 0.0  # what had been spent when this stage began
    reference: float = 0.0  # the penalty that this stage's regions are chosen at
    done: bool = False


@dataclass(frozen=True)
class Refine:
    """The solver: stage by stage and shell by shell, from the inside out."""

    problem: Problem
    effort: Effort
    shells: Shells
    strength: float  # near the multiplier of what was found
    known: Multipliers | None = None

    def init(self, problem: Problem) -> State:
        value, strength = problem.best(self.shells, self.strength)
        stage = self._next(0, value)
        done = stage == len(self.effort.stages)
        spots = torch.full_like(self.shells.level[..., 0], -torch.inf)
        return State(self.shells, spots, value, strength, stage, known=self.known, done=done)

    def _next(self, stage: int, value: float, stuck: bool = False) -> int:
        """The first stage from this one on that has something to do, and something new if stuck."""
        found = self._found
        margins = self.shells.nominal.shape[1]
        scale = abs(found) * (2.0 if margins > _SEVERAL else 1.0)
        for at, one in enumerate(self.effort.stages[stage:], stage):
            new = margins > 2 if one.pairs else not stuck
            if new and value - found > one.gap * scale:
                return at
        return len(self.effort.stages)

    @cached_property
    def _found(self) -> float:
        """The dual value of what was found, near its best penalty."""
        return self.problem.total(self.problem.attained(self.strength), self.strength)

    @staticmethod
    def finite(state: State) -> bool:
        return not math.isnan(state.value)

    def terminate(self, state: State) -> Status | None:
        return Status.CONVERGED if state.done else None

    def step(self, state: State) -> State:
        if state.done:  # from the start on: what was proven before will do
            return state
        if state.rows is not None and len(state.rows):
            return self._block(state)
        if state.shell < len(self.shells.edges) - 1:
            return self._opened(state)
        value, strength = self.problem.best(state.shells, state.strength)
        gap = state.value - self._found
        stuck = state.spent > state.before and state.value - value < _STUCK * gap
        last = self.effort.stages[state.stage]
        stuck &= last.steps > _LONG and not last.pairs
        stage = self._next(state.stage + 1, value, stuck)
        return replace(
            state, value=value, strength=strength, stage=stage, shell=0, rows=None,
            done=stage == len(self.effort.stages), before=state.spent,
        )  # fmt: skip

    def _opened(self, state: State) -> State:
        """The next shell's regions that may hold more than what was found."""
        first, shells = state.shell, state.shells
        stage = self.effort.stages[state.stage]
        if first == 0:
            state = replace(state, reference=self._reference(state, stage))
            small = state.value - self._found <= _SMALL * abs(self._found)
            share = _NEAR if small else _NEARER
            near = state.reference > share * state.strength and self.problem.budget
            if stage.steps and near and not stage.pairs:
                return replace(state, shell=len(shells.edges) - 1)
        strength = state.reference
        before, least = self._needed(state, strength, stage)
        k = first + (len(shells.edges) - 2 - first) % stage.every
        state = replace(state, shell=k + 1, rows=None, which=None)
        both = [shells.suprema(strength, j) for j in range(first, k + 1)]
        suprema = torch.stack(both).amax(0)
        excess = self._excess(suprema, before)
        rows = (excess > least).nonzero().squeeze(1)
        if len(rows) == 0 or stage.steps == 0:
            return replace(state, rows=rows)
        few = (0.2 * excess[rows]).clamp(0.3 * least, 1e-2)
        relevant = self._relevant(shells, rows, k, few, stage.pairs)
        at, which, other = relevant.nonzero(as_tuple=True)
        middle = _middle(k, stage)
        anchor, loss, value = self._anchored(rows[at], which, other, middle)
        spots = state.spots.clone()
        spots[:, middle] = spots[:, middle].scatter_reduce(0, rows[at], loss, "amax")
        state = replace(state, spots=spots)
        fee, _ = self._needed(state, strength, stage)
        # Of several margins none can be lower than what it attains, whatever the loss would need.
        goal = value + 0.3 * least
        if not stage.pairs and stage.steps > 1:  # who is not improved has none to reach
            need = fee[rows] + 0.7 * least
            goals = self._goals(shells, rows, (first, k), relevant.any(2), need, strength)
            goal = torch.maximum(goals[at, which], goal)
        # One after the other, those that others start from are of all kinds.
        order = (torch.arange(len(at)) % _SPREAD).argsort(stable=True)
        order = order[(suprema - fee > least)[rows][at[order]]]
        left = int((stage.work - state.spent) / sum(self._price(stage)))
        order = order[: max(0, left)]
        if stage.layers > 1:  # none starts from others: those of a sample share its ball's lines
            order = order.sort().values
        return replace(
            state, rows=rows[at][order], which=torch.stack([which, other], 1)[order],
            goal=goal[order], anchor=anchor[order], fresh=True,
        )  # fmt: skip

    def _anchored(
        self, rows: Tensor, which: Tensor, other: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Displacements to the middle of shell k where means of two margins are large; the loss
        there, and the mean.
        """
        network = self.problem.network.take(rows)
        v, c = _means(network, which, other)
        radius = torch.full((len(rows),), self.shells.middle(k), dtype=torch.float64)
        anchor = _anchor(network, v, c, radius, self.problem.displaced[rows])
        found, each = network.at(anchor), torch.arange(len(rows))
        return anchor, network.margins(found), 0.5 * (found[each, which] + found[each, other])

    def _excess(self, suprema: Tensor, fee: Tensor) -> Tensor:
        excess = suprema - (fee if suprema.ndim == 1 else fee[:, None])
        used = (self.problem.weights > 0)[self.problem.owner]
        return torch.where(used if excess.ndim == 1 else used[:, None], excess, -torch.inf)

    def _needed(self, state: State, strength: float, stage: Stage) -> tuple[Tensor, float]:
        """What a region must exceed to be looked at: a value per case, and a margin."""
        problem = self.problem
        middles = 0.5 * (self.shells.edges[1:] + self.shells.edges[:-1])
        spots = (state.spots - strength * middles.square()).amax(1) - strength * problem.fee
        found = torch.maximum(problem.attained(strength), problem.owned(spots))
        mean = abs(problem.total(found, strength))
        return strength * problem.fee + found[problem.owner], stage.least * mean

    def _reference(self, state: State, stage: Stage) -> float:
        """The penalty of a stage: raised where more regions are open than the work that is left.

        A sample is only as good as its worst region, so that some regions of all samples at a
        small penalty prove nothing, all of them at a larger one do.
        """
        if self.problem.budget is None:
            return self.strength
        high = state.strength
        low = self.strength * stage.factor
        if stage.pairs:  # of little use where single margins are loose
            low = max(low, _PAIRED * high)
        low = min(low, high)
        if stage.steps == 0:
            return low
        margins, tries = 2.0, 1.0 + min(6.0, stage.steps)
        if state.shells.nominal.shape[1] <= 2:  # many are closed by those inside before their turn
            margins, tries = 1.0, min(7.0, _OPEN * (1.0 + stage.steps))
        if not self.problem.network.dense:  # all of them to the end
            margins, tries = min(3.0, float(state.shells.nominal.shape[1])), float(stage.steps)
        if stage.pairs:  # which have no goal that they often reach
            margins, tries = 3.0, 1.0 + stage.steps
        setup, step = self._price(stage)
        affordable = (stage.work - state.spent) / ((setup + tries * step) * margins)

        def fits(strength: float) -> bool:
            fee, least = self._needed(state, strength, stage)
            excess = self._excess(state.shells.suprema(strength), fee)
            balls = (excess > least).flip(1).split(stage.every, 1)
            return sum(int(one.any(1).sum()) for one in balls) <= affordable

        if fits(low):
            return low
        for _ in range(6):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def _price(self, stage: Stage) -> tuple[float, float]:
        """Work of a region and of a try of its multipliers, in that of a try with 32 x 32."""
        net = self.problem.network
        if not net.dense:
            return net.price(stage.layers)
        sides = [net.dim, *(w.shape[0] for w in net.weights)]
        pairs = list(zip(sides[1:], sides[:-1], strict=True))
        deep = 1.0 if len(pairs) > 1 else 0.5
        step = deep * sum(a * b * (a + b) for a, b in pairs) / (4 * 32.0**3) + 0.1
        units = sum(
            width * (0.7 if act.convex else 1.5)
            for width, act in zip(sides[1:], net.acts, strict=True)
        )
        sharp = 2.0 * sides[2] * (net.dim / 32.0) ** 3 if self._sharp(stage) else 0.0
        return units / 64.0 + sharp, step

    def _sharp(self, stage: Stage) -> bool:
        """Whether a stage narrows the intervals of the second layer."""
        network = self.problem.network
        sides = [len(w) for w in network.weights] if network.dense else []
        return stage.sharp and len(sides) > 1 and max(*sides[:2], network.dim) <= WIDEST

    @cached_property
    def _seen(self) -> Seen:
        return Seen(len(self.problem.owner))

    def _sharper(self, rows: Tensor) -> Sharper:
        """Those of samples: by quadratics, once."""

        def narrowed(network: Network, ball: Ball, found: Intervals) -> Intervals:
            new = self._seen.missing(ball, 1, rows)
            if bool(new.any()):
                spans = [(low[new], high[new]) for low, high in found[:2]]
                spans = sharpened(network.take(new), ball.radius[new], *spans)
                self._seen.keep(ball, 1, rows[new], *spans)
                for end, span in zip(found[1], spans, strict=True):
                    end[new] = span
            if not bool(new.all()):
                spans = self._seen.find(ball, 1, rows[~new])
                assert spans is not None
                for end, span in zip(found[1], spans, strict=True):
                    end[~new] = span
            return found

        return narrowed

    def _relevant(self, shells: Shells, rows: Tensor, k: int, least: Tensor, pairs: bool) -> Tensor:
        """Of which margins, or means of two, a better bound can lower the loss, (j, m, m)."""
        margins = shells.margins.take(rows)
        outer = shells.outer(rows, k)
        loss = margins(outer)
        own = margins.own()
        drops = []
        for j in range(outer.shape[1]):
            lower = outer.clone()
            lower[:, j] = torch.minimum(outer[:, j], shells.nominal[rows, j] - 1.0)
            drops.append(torch.where(own[:, j], 0.0, loss - margins(lower)))
        relevant = torch.stack(drops, 1) > least[:, None]
        if not pairs:
            return torch.diag_embed(relevant)
        top = torch.zeros_like(relevant).scatter(1, leading(outer, own), True)
        relevant &= top
        return (relevant[:, :, None] & relevant[:, None, :]).triu(1)

    @staticmethod
    def _goals(
        shells: Shells, rows: Tensor, within: tuple[int, int], relevant: Tensor, need: Tensor,
        strength: float,
    ) -> Tensor:  # fmt: skip
        """Bounds in the middle (j, m) that close shells if all relevant margins reach theirs.

        The loss that is allowed at t is ``need`` + strength t².
        """
        margins = shells.margins.take(rows)
        ends = shells.edges[[within[0], within[1] + 1]]
        at = [shells.outer(rows, k, float(t)) for k, t in zip(within, ends, strict=True)]
        at = torch.stack(at, 1)  # (j, 2, m)
        allowed = need[:, None] + strength * ends.square()
        high = (at - shells.nominal[rows][:, None]).amax(2).clamp_min(0.0) + 50.0
        low = torch.zeros_like(high)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            above = margins(at - middle[..., None] * relevant[:, None]) > allowed
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (at - high[..., None]).mean(1)

    def _block(self, state: State) -> State:
        k, stage = state.shell - 1, self.effort.stages[state.stage]
        assert state.rows is not None
        size = self._block_size(stage)
        fresh = state.fresh and stage.steps > 1 and stage.layers == 1
        if fresh:  # the first of a shell are started from by the others
            size = min(size, _FIRST)
        rows, rest = state.rows[:size], state.rows[size:]
        network = self.problem.network.take(rows)
        radius = torch.full((len(rows),), float(self.shells.edges[k + 1]), dtype=torch.float64)
        if stage.steps == 0:
            anchors, _ = network.forward(_shortened(self.problem.displaced[rows], radius))
            bound = linear_bound(network, Ball(radius), anchors)
            shells = state.shells.with_lines(
                k, rows, bound.level, bound.rows.norm(dim=2) * (1 + 1e-12)
            )
            return replace(state, shells=shells, rows=rest)
        assert state.which is not None
        assert state.goal is not None
        assert state.anchor is not None
        which, goal, anchor = state.which[:size], state.goal[:size], state.anchor[:size]
        # Margins of a sample share their ball.
        each, place = rows.unique(return_inverse=True)
        ball = Ball(radius[: len(each)])
        radius = torch.full_like(radius, self.shells.middle(_middle(k, stage)))
        one, two = which.unbind(1)
        head = headed(
            self.problem.network.take(each), ball, place, *_means(network, one, two), anchor,
            stage.layers, self._sharper(each) if self._sharp(stage) else None,
        )  # fmt: skip
        steps = stage.steps - 1
        if fresh:
            steps *= _LONGER
        if stage.layers > 1:
            found = two_layers(head, anchor, radius, steps)
        else:
            found = quadratic_bound(
                head.network, head.rows, head.levels, anchor, head.intervals, radius, steps,
                state.known if steps else None, goal, head.along,
            )  # fmt: skip
        error = network.outputs_error().gather(1, which).amax(1)
        constant, curvature = found.constant + error, found.curvature
        if stage.pairs:
            shells = state.shells
            for j in range(max(0, k + 1 - stage.every), k + 1):
                shell = torch.full_like(rows, j)
                shells = shells.with_pairs(Pairs(rows, shell, one, two, constant, curvature))
        else:
            shells = state.shells.with_quadratics(k, rows, one, constant, curvature)
        known = state.known
        if steps and (new := found.multipliers) is not None:
            known = new if known is None else known.joined(new, _KNOWN)
        setup, step = self._price(stage)
        spent = state.spent + len(rows) * setup + found.work * step
        return replace(
            state, shells=shells, rows=rest, which=state.which[size:], goal=state.goal[size:],
            anchor=state.anchor[size:], known=known, spent=spent, fresh=False,
        )  # fmt: skip

    def _block_size(self, stage: Stage) -> int:
        network = self.problem.network
        extra = region_bytes(network) if stage.steps and network.dense else 0
        return blocks(network, MEMORY // 4, extra)


def _middle(k: int, stage: Stage) -> int:
    """The middle one of the shells up to k that share a ball."""
    return max(0, k - stage.every // 2)


def _means(network: Network, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and levels of means of two margins."""
    each, margins = torch.arange(len(one)), network.margins
    rows = 0.5 * (margins.rows[each, one] + margins.rows[each, two])
    return rows, 0.5 * (margins.levels[each, one] + margins.levels[each, two])


def _anchor(
    network: Network, rows: Tensor, levels: Tensor, radius: Tensor, found: Tensor
) -> Tensor:
    """A displacement of length radius where the margin is large: ascent along the sphere."""

    def climbed(g: Tensor) -> Tensor:
        d = _stretched(g, radius)
        for _ in range(_CLIMB if network.dense else _CLIMB_BEHIND):
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
