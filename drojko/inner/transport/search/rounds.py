"""The search itself: one round, or rounds of fresh starts until they find no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import Ascent, Evidence, joined, proximal_ascent
from drojko.inner.transport.search.polish import bundle, free
from drojko.inner.transport.search.screening import halve, shared, towards
from drojko.inner.transport.search.smoothing import bend, rounded
from drojko.inner.transport.search.starts import Anchors, draw, reach, spheres

__all__ = ["EFFORTS", "Restarts", "Search"]

#: What a caller may ask for; "warm" is for neighbours of what was found: no start is drawn. "rough"
#: is for a penalty that is a guess.
EFFORTS = ("fast", "thorough")
#: Anchors of a fast search: of few rows, and of many, which share more between them.
_STARTS, _STARTS_MANY, _MANY = 32, 12, 1000
#: Of a rough one, and its steps.
_STARTS_ROUGH, _ROUGH = 8, ((5, 2), (12, 1))
#: Anchors, cells and spheres where no label tells which anchors are far.
_BLIND, _BLIND_MANY = (8, 16, 24), (4, 6, 8)
#: Kinks abound where this share of the rows stalls at them.
_KINKED = 0.1
#: Rows that share what they find: more are searched in parts, and few in copies among kinks.
_ROWS, _FEW, _COPIES = 5000, 100, 8
#: Times that rows try what others have found, in a fast search; among kinks at most, until it
#: gains less than a share.
_SHARES, _AS_LONG = 3, {"fast": (16, 2e-4), "thorough": (5, 3e-4)}
#: Of rounds of a thorough one in turn, without labels, and there among kinks. One start in several
#: hundred finds some row's best basin where no label tells where to go, and five steps tell.
_ROUND, _MIXED, _ROUND_BLIND, _ROUND_KINKS = (24, 0, 0), (10, 7, 7), (18, 16, 32), (6, 8, 10)
#: Rounds at most, and at least with labels and without.
_ROUNDS, _LEAST, _LEAST_BLIND = 24, 5, 8
#: Steps, and starts that go on: from known ones alone, of fast searches, of rounds, of what rows
#: share.
_WARM = ((4, 1),)
_FAST = ((5, 6), (12, 2), (20, 1))
_THOROUGH = ((5, 6), (15, 2), (40, 1))
_SHARED_FAST, _SHARED = ((5, 1), (20, 1)), ((5, 2), (40, 1))
#: The same of bundles among kinks.
_KINKS, _SHARED_KINKS = ((12, 4), (20, 1)), ((12, 2), (20, 1))
#: Among kinks: shares of the penalty at which others are found to start from, and the steps there.
_CHEAPER, _ONWARD = (0.5, 0.25), ((20, 1),)
#: Rows of most of the gain start again around what they have: its share, starts by row of all and
#: at most of one, distances in those that it has moved, steps.
_MAINLY, _AROUND, _AROUND_MOST = 0.95, 8, 64
_AWAY, _STEPS_AROUND = (0.05, 1.5), ((6, 3), (15, 1))
#: Among kinks of ReLU: starts, widths that they are rounded off to in turn, by up to a factor more
#: or less, steps at the first and the others, from around what there is, and of ReLU themselves.
_ROUND_RELU, _WIDTHS, _VARIED = (12, 36, 36), (0.2, 0.07, 0.02), 5.0
_STEPS_RELU, _STEPS_WIDTH = ((6, 6), (15, 2), (30, 1)), ((20, 1),)
_STEPS_NEAR, _STEPS_SHARP = ((8, 2), (20, 1)), (3, 15)
#: Moves that rows try, starts that they keep, points between, and on the way to what others have;
#: where no label tells where to go, and there among kinks.
_OTHERS, _OTHERS_BLIND, _TRIED = (12, 2, 0, 0), (12, 2, 0, 8), (24, 3, 4, 0)
#: Estimated missing share of the gain that ends the rounds.
_ENOUGH = 1e-4
#: Rounds at most, at least, and that share where kinks abound: each is a search of its own.
_AMONG_KINKS = (16, 4, 1e-4)
#: Share of the mean gain below which rows are searched more, how many times the starts at most, and
#: as many times on the way to what others have.
_LITTLE, _MORE, _ONWARDS = 0.1, 8, 32
#: Above this restarts are not said to have found no more.
_FOUND = 1e-3
#: Spectral steps of the polish, and bundle steps where those have not ended.
_POLISH, _BUNDLE, _BUNDLE_ROUND, _OPEN = 60, 30, 15, 1e-9


@dataclass(frozen=True)
class Restarts:
    """What a thorough search says of itself: rounds, and the share of the gain they may miss.

    The share is an estimate from how far the bests of independent rounds lie apart, no bound.

    >>> str(Restarts(3, 2e-5))
    'restarts found no more: 3 rounds, estimated missing 2e-05 of the gain'
    """

    rounds: int
    missing: float

    @staticmethod
    def of(
        evidence: Evidence | None,
        gain: Tensor,
        weights: Tensor,
        mean: Callable[[Tensor, Tensor], float] | None = None,
    ) -> Restarts | None:
        """The rows together, from what they gained (n,) and their masses (n,)."""
        if evidence is None or not len(weights):
            return None
        mean = mean or (lambda values, weights: float(values.double() @ weights.double()))
        gained, missing = mean(gain, weights), mean(evidence.missing, weights)
        return Restarts(int(evidence.rounds.max()), missing / gained if gained > 0 else 0.0)

    @property
    def enough(self) -> bool:
        """Whether restarts can be said to have found no more."""
        return self.missing <= _FOUND

    def __str__(self) -> str:
        found = "restarts found no more" if self.enough else "restarts still found more"
        return f"{found}: {self.rounds} rounds, estimated missing {self.missing:.2g} of the gain"


@dataclass(frozen=True)
class Search:
    """A search from many starts, the same whenever the batch and ``seed`` are.

    Attributes
    ----------
    anchors : Anchors
        Rows that starts are drawn towards.
    seed : int
        Of all its random numbers.
    effort : {"warm", "rough", "fast", "thorough"}
        Given starts alone; a few more; one round; or rounds of fresh starts until they find no
        more, which gives an `Evidence`.
    """

    anchors: Anchors
    seed: int
    effort: str = "fast"

    def with_effort(self, effort: str) -> Search:
        """The same starts, with another effort."""
        return replace(self, effort=effort)

    @torch.no_grad()
    def run(self, objective: Objective, batch: Batch, given: Sequence[Tensor] = ()) -> Ascent:
        """The best of the row itself, ``given`` starts (n, r) and drawn ones; never below J(x)."""
        if len(batch) > _ROWS:
            parts = torch.arange(len(batch), device=batch.q0.device).split(_ROWS)
            found = (self.run(objective, batch.take(p), [q[p] for q in given]) for p in parts)
            return joined(list(found))
        generator = torch.Generator().manual_seed(self.seed)
        stay = objective.coordinates.project(batch.q0)
        value, gradient = objective.value_and_gradient(batch, stay)
        best = Ascent(stay, value, gradient)
        if not batch.q0.numel():
            return best
        rows = _Rows(objective, batch, best, self.anchors, generator)
        known = torch.stack([stay, *given])
        rounds = {"rough": self._rough, "fast": self._fast, "thorough": self._thorough}
        best, evidence = rounds.get(self.effort, self._warm)(rows, known)
        return replace(_polished(objective, batch, best), evidence=evidence)

    def _warm(self, rows: _Rows, known: Tensor) -> tuple[Ascent, Evidence | None]:
        """From the known starts alone."""
        return rows.climbed(known, _WARM), None

    def _rough(self, rows: _Rows, known: Tensor) -> tuple[Ascent, Evidence | None]:
        """A few starts, and what rows find for each other."""
        best = rows.climbed(torch.cat([known, rows.drawn((_STARTS_ROUGH, 0, 0))]), _ROUGH)
        return rows.shared(best, _SHARED_FAST), None

    def _fast(self, rows: _Rows, known: Tensor) -> tuple[Ascent, Evidence | None]:
        """One round."""
        families: tuple[int, int, int] = (self._most(rows, _STARTS, _STARTS_MANY), 0, 0)
        if not self.anchors.classes:
            families = self._most(rows, _BLIND, _BLIND_MANY)
        best = rows.climbed(torch.cat([known, rows.drawn(families)]), _FAST)
        if self._kinked(rows, best):
            return self._among_kinks(rows, best), None
        for _ in range(_SHARES):
            best = rows.shared(best, _SHARED_FAST)
        return best, None

    def _thorough(self, rows: _Rows, known: Tensor) -> tuple[Ascent, Evidence | None]:
        """Rounds of independent starts, whose own bests say how much they still miss."""
        best, bests, kinked = rows.stay, [], False
        missing = torch.zeros_like(best.value)
        classes = self.anchors.classes
        most, least, enough = _ROUNDS, _LEAST if classes else _LEAST_BLIND, _ENOUGH
        while len(bests) < most:
            turn = len(bests)
            families = _ROUND if turn % 2 == 0 else _MIXED
            if not classes:
                families = _ROUND_KINKS if kinked else _ROUND_BLIND
            starts = rows.drawn(families)
            starts = torch.cat([known, starts]) if turn == 0 else starts
            own = rows.climbed(starts, _THOROUGH)
            if turn == 0 and self._kinked(rows, own):
                kinked, (most, least, enough) = True, _AMONG_KINKS
            if kinked:
                own = self._among_kinks(rows, own)
            elif not classes:
                own = self._of_little_gain(rows, own)
            own = _ended(rows.objective, rows.batch, own, _BUNDLE_ROUND)
            bests.append(own.value)
            best = best.better(own)
            if kinked and turn:
                best = self._spread(rows, best)
            elif not kinked:
                best = rows.shared(best, _SHARED)
            count = len(bests)
            if count < least:
                continue
            top = torch.stack(bests).topk(2, dim=0).values
            missing = (count - 1) / count * (top[0] - top[1])
            if not float(missing.mean()) > enough * rows.gain(best):  # NaN as well
                break
        return best, Evidence(missing, torch.full_like(missing, len(bests)))

    def _of_little_gain(self, rows: _Rows, best: Ascent) -> Ascent:
        """More starts where little was gained: what rounds miss is nearly always there.

        Such a row has not left its own basin, and others do not show it the way to a better one.
        """
        gain = best.value - rows.stay.value
        low = (gain < _LITTLE * gain.mean()).nonzero().squeeze(1)
        if not len(low):
            return best
        part = rows.take(low)
        times = min(_MORE, len(gain) // len(low))
        starts = [part.drawn(_ROUND_BLIND) for _ in range(times)]
        starts.append(towards(part.batch.q0, best.q, times * _ONWARDS, rows.generator))
        found = part.climbed(torch.cat(starts), _THOROUGH)
        return best.better(rows.stay.replaced(low, found))

    def _most(self, rows: _Rows, few: Any, many: Any) -> Any:
        return many if len(rows.batch) >= _MANY else few

    def _kinked(self, rows: _Rows, best: Ascent) -> bool:
        """Whether kinks abound, and no label tells which anchors are far."""
        stalled = _stalled(rows.objective, best).double().mean()
        return not self.anchors.classes and float(stalled) >= _KINKED

    def _among_kinks(self, rows: _Rows, best: Ascent) -> Ascent:
        """From bundles, and from what rows share for as long as that gains.

        Every row has maxima of its own there, which fresh starts hardly find, but those with ReLU
        rounded off or of lower penalties, points around what is there and what other rows have
        found lead to them. Few rows are searched in copies.
        """
        n = len(rows.batch)
        copies = min(_COPIES, -(-_FEW // n))
        rows = rows.take(torch.arange(n).repeat(copies))
        best = joined([best] * copies)
        families = _ROUND_KINKS if rows.bend(best) is None else _ROUND_RELU
        starts = rows.drawn(self._most(rows, families, _BLIND_MANY))
        best = rows.over_kinks(best, starts)
        for share in _CHEAPER:
            best = best.better(rows.descended(starts, share))
        best = self._spread(rows, best)
        parts = torch.arange(len(rows.batch)).split(n)
        return reduce(Ascent.better, (best.take(p) for p in parts))

    def _spread(self, rows: _Rows, best: Ascent) -> Ascent:
        """From around what rows have, and what they share, for as long as that gains."""
        most, least = _AS_LONG[self.effort]
        for _ in range(most):
            before = rows.gain(best)
            best = rows.shared(rows.around(best), _SHARED_KINKS, _TRIED, True)
            if not rows.gain(best) > (1.0 + least) * before:  # NaN as well
                break
        return best


@dataclass(frozen=True)
class _Rows:
    """Rows to move, what staying gives them, and the random numbers of their search."""

    objective: Objective
    batch: Batch
    stay: Ascent
    anchors: Anchors
    generator: torch.Generator
    whole: _Rows | None = None  # whose reach is theirs, too

    def take(self, index: Tensor) -> _Rows:
        """Some of them, perhaps several times."""
        index = index.to(self.batch.q0.device)
        stay = self.stay.take(index)
        return replace(self, batch=self.batch.take(index), stay=stay, whole=self.whole or self)

    @cached_property
    def far(self) -> Tensor:
        """The unit of distances of starts."""
        if self.whole is not None:
            return self.whole.far
        return reach(self.objective, self.batch, not self.anchors.classes)

    def drawn(self, families: tuple[int, int, int]) -> Tensor:
        """Starts of three families."""
        far = self.far if families[1] or families[2] else 0.0
        return draw(self.objective, self.batch, self.anchors, families, far, self.generator)

    def climbed(
        self, starts: Tensor, schedule: Sequence[tuple[int, int]], kinks: bool = False
    ) -> Ascent:
        """The best of starts, and of staying."""
        return self.stay.better(halve(self.objective, self.batch, starts, schedule, kinks=kinks))

    def shared(
        self,
        best: Ascent,
        schedule: Sequence[tuple[int, int]],
        counts: tuple[int, int, int, int] | None = None,
        kinks: bool = False,
    ) -> Ascent:
        """Every row tries what others have found."""
        base = self.stay.value
        counts = counts or (_OTHERS if self.anchors.classes else _OTHERS_BLIND)
        starts = shared(self.objective, self.batch, best, base, self.generator, counts)
        return best.better(halve(self.objective, self.batch, starts, schedule, kinks=kinks))

    def descended(self, starts: Tensor, share: float) -> Ascent:
        """The best at a share of the penalty, climbed from at the penalty itself."""
        objective = self.objective.with_penalty(share * self.objective.penalty)
        stay = Ascent(self.stay.q, *objective.value_and_gradient(self.batch, self.stay.q))
        found = replace(self, objective=objective, stay=stay).over_kinks(stay, starts)
        return self.climbed(found.q.unsqueeze(0), _ONWARD, True)

    def over_kinks(self, best: Ascent, starts: Tensor) -> Ascent:
        """The best of what there is and of starts."""
        if self.bend(best) is None:
            return best.better(self.climbed(starts, _KINKS, True))
        return self.passed(best, starts, _STEPS_RELU)

    def bend(self, best: Ascent) -> float | None:
        """The unit of widths at which ReLU are rounded off; None where there are none."""
        return bend(self.objective, self.batch, best.q)

    def passed(self, best: Ascent, starts: Tensor, schedule: Sequence[tuple[int, int]]) -> Ascent:
        """Climbs with ReLU rounded off, less and less, and bundles from there on.

        A climb over many kinks stops at some, long before a maximum; rounded off it passes them.
        Widths differ from one call to the next, as do the maxima that they lead to.
        """
        unit = self.bend(best)
        assert unit is not None
        unit *= _VARIED ** float(2.0 * torch.rand((), generator=self.generator) - 1.0)
        starts = torch.cat([best.q.unsqueeze(0), starts])
        for width in _WIDTHS:
            q = halve(rounded(self.objective, unit * width), self.batch, starts, schedule).q
            first = proximal_ascent(self.objective, self.batch, q, _STEPS_SHARP[0])
            best = best.better(bundle(self.objective, self.batch, first, _STEPS_SHARP[1]))
            starts, schedule = q.unsqueeze(0), _STEPS_WIDTH
        return best

    def around(self, best: Ascent) -> Ascent:
        """Climbs from around what the rows of most of the gain have found."""
        gain = torch.nan_to_num(best.value - self.stay.value, nan=0.0, posinf=0.0).clamp_min(0.0)
        order = gain.argsort(descending=True, stable=True)
        count = 1 + int((gain[order].cumsum(0) < _MAINLY * gain.sum()).sum())
        index = order[:count]
        part, at = self.take(index), best.take(index)
        times = min(_AROUND * len(gain) // len(index), _AROUND_MOST)
        move = (at.q - part.batch.q0).norm(dim=1, keepdim=True)
        starts = at.q + move * spheres(part.batch, times, _AWAY, self.generator)
        if part.bend(at) is None:
            at = at.better(halve(self.objective, part.batch, starts, _STEPS_AROUND, kinks=True))
        else:
            at = part.passed(at, starts, _STEPS_NEAR)
        return best.replaced(index, at)

    def gain(self, best: Ascent) -> float:
        """Mean over the rows."""
        return float((best.value - self.stay.value).mean())


def _polished(objective: Objective, batch: Batch, best: Ascent) -> Ascent:
    """Climbed to the end: spectral steps, then those of a bundle where they have stalled."""
    found = best.better(proximal_ascent(objective, batch, best.q, _POLISH, tol=_OPEN))
    return _ended(objective, batch, found, _BUNDLE)


def _ended(objective: Objective, batch: Batch, best: Ascent, steps: int) -> Ascent:
    """Bundle steps of the rows whose gradient says that spectral ones have stalled."""
    rows = _stalled(objective, best).nonzero().squeeze(1)
    if not len(rows):
        return best
    return best.replaced(rows, bundle(objective, batch.take(rows), best.take(rows), steps))


def _stalled(objective: Objective, best: Ascent) -> Tensor:
    """Whether a linear loss would still gain something, row by row."""
    slope = free(objective, best.q, best.gradient).square().sum(1)
    return slope / (4.0 * objective.strength) > 1e-6 * (1.0 + best.value.abs())
