"""The search itself: one round, or rounds of fresh starts until they find no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import Ascent, Evidence, joined, proximal_ascent
from drojko.inner.transport.search.polish import bundle, free
from drojko.inner.transport.search.screening import halve, shared
from drojko.inner.transport.search.starts import Anchors, draw, reach

__all__ = ["EFFORTS", "Restarts", "Search"]

#: What a caller may ask for; "warm" is for neighbours of what was found: no start is drawn.
EFFORTS = ("fast", "thorough")
#: Anchors of a fast search: of few rows, and of many, which share more between them.
_STARTS, _STARTS_MANY, _MANY = 32, 12, 1000
#: Anchors, cells and spheres where no label tells which anchors are far.
_BLIND, _BLIND_MANY = (8, 16, 24), (4, 6, 8)
#: Kinks abound where this share of the rows stalls at them.
_KINKED = 0.1
#: Rows that share what they find: more are searched in parts, and few in copies among kinks.
_ROWS, _FEW, _COPIES = 5000, 100, 8
#: Times that rows try what others have found, in a fast search; among kinks at most, until it
#: gains less than a share.
_SHARES, _AS_LONG = 3, {"fast": (8, 1e-3), "thorough": (14, 1e-4)}
#: Of rounds of a thorough one in turn, and without labels; rounds at most and at least.
_ROUND, _MIXED, _ROUND_BLIND = (24, 0, 0), (10, 7, 7), (6, 8, 10)
_ROUNDS, _LEAST = 24, 5
#: Steps, and starts that go on: from known ones alone, of fast searches, of rounds, of what rows
#: share.
_WARM = ((4, 1),)
_FAST = ((5, 6), (12, 2), (20, 1))
_THOROUGH = ((5, 6), (15, 2), (40, 1))
_SHARED_FAST, _SHARED = ((5, 1), (20, 1)), ((5, 2), (40, 1))
#: The same of bundles among kinks.
_KINKS, _SHARED_KINKS = ((12, 4), (20, 1)), ((12, 2), (20, 1))
#: Moves that rows try, starts that they keep, and points between; among kinks.
_OTHERS, _TRIED = (12, 2, 0), (24, 3, 4)
#: Estimated missing share of the gain that ends the rounds.
_ENOUGH = 1e-4
#: Rounds at most, at least, and that share where kinks abound: each is a search of its own.
_AMONG_KINKS = (8, 4, 1e-4)
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
    effort : {"warm", "fast", "thorough"}
        Given starts alone; one round; or rounds of fresh starts until they find no more, which
        gives an `Evidence`.
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
        rows = _Rows(objective, batch, best, generator)
        known = torch.stack([stay, *given])
        rounds = {"warm": self._warm, "fast": self._fast, "thorough": self._thorough}[self.effort]
        best, evidence = rounds(rows, known)
        return replace(_polished(objective, batch, best), evidence=evidence)

    def _warm(self, rows: _Rows, known: Tensor) -> tuple[Ascent, Evidence | None]:
        """From the known starts alone."""
        return rows.climbed(known, _WARM), None

    def _fast(self, rows: _Rows, known: Tensor) -> tuple[Ascent, Evidence | None]:
        """One round."""
        families: tuple[int, int, int] = (self._most(rows, _STARTS, _STARTS_MANY), 0, 0)
        if not self.anchors.classes:
            families = self._most(rows, _BLIND, _BLIND_MANY)
        best = rows.climbed(torch.cat([known, rows.drawn(self.anchors, families)]), _FAST)
        if self._kinked(rows, best):
            return self._among_kinks(rows, best), None
        for _ in range(_SHARES):
            best = rows.shared(best, _SHARED_FAST)
        return best, None

    def _thorough(self, rows: _Rows, known: Tensor) -> tuple[Ascent, Evidence | None]:
        """Rounds of independent starts, whose own bests say how much they still miss."""
        best, bests, kinked = rows.stay, [], False
        missing = torch.zeros_like(best.value)
        most, least, enough = _ROUNDS, _LEAST, _ENOUGH
        while len(bests) < most:
            turn = len(bests)
            families = _ROUND if turn % 2 == 0 else _MIXED
            starts = rows.drawn(self.anchors, families if self.anchors.classes else _ROUND_BLIND)
            starts = torch.cat([known, starts]) if turn == 0 else starts
            own = rows.climbed(starts, _THOROUGH)
            if turn == 0 and self._kinked(rows, own):
                kinked, (most, least, enough) = True, _AMONG_KINKS
            own = self._among_kinks(rows, own) if kinked else own
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

    def _most(self, rows: _Rows, few: Any, many: Any) -> Any:
        return many if len(rows.batch) >= _MANY else few

    def _kinked(self, rows: _Rows, best: Ascent) -> bool:
        """Whether kinks abound, and no label tells which anchors are far."""
        stalled = _stalled(rows.objective, best).double().mean()
        return not self.anchors.classes and float(stalled) >= _KINKED

    def _among_kinks(self, rows: _Rows, best: Ascent) -> Ascent:
        """From bundles, and from what rows share for as long as that gains.

        Every row has maxima of its own there, which fresh starts hardly find, but neighbours of
        what other rows have found do. Few rows are searched in copies.
        """
        n = len(rows.batch)
        copies = min(_COPIES, -(-_FEW // n))
        rows = replace(rows, batch=rows.batch.repeat(copies), stay=joined([rows.stay] * copies))
        starts = rows.drawn(self.anchors, self._most(rows, _ROUND_BLIND, _BLIND_MANY))
        best = joined([best] * copies).better(rows.climbed(starts, _KINKS, True))
        best = self._spread(rows, best)
        parts = torch.arange(len(rows.batch)).split(n)
        return reduce(
            Ascent.better, (Ascent(best.q[p], best.value[p], best.gradient[p]) for p in parts)
        )

    def _spread(self, rows: _Rows, best: Ascent) -> Ascent:
        """What rows share among kinks, for as long as that gains."""
        most, least = _AS_LONG[self.effort]
        for _ in range(most):
            before = rows.gain(best)
            best = rows.shared(best, _SHARED_KINKS, _TRIED, True)
            if not rows.gain(best) > (1.0 + least) * before:  # NaN as well
                break
        return best


@dataclass(frozen=True)
class _Rows:
    """Rows to move, what staying gives them, and the random numbers of their search."""

    objective: Objective
    batch: Batch
    stay: Ascent
    generator: torch.Generator

    def drawn(self, anchors: Anchors, families: tuple[int, int, int]) -> Tensor:
        """Starts of three families."""
        few = not anchors.classes and len(self.batch) < _FEW
        far = reach(self.objective, self.batch, few) if families[1] or families[2] else 0.0
        return draw(self.objective, self.batch, anchors, families, far, self.generator)

    def climbed(
        self, starts: Tensor, schedule: Sequence[tuple[int, int]], kinks: bool = False
    ) -> Ascent:
        """The best of starts, and of staying."""
        return self.stay.better(halve(self.objective, self.batch, starts, schedule, kinks=kinks))

    def shared(
        self,
        best: Ascent,
        schedule: Sequence[tuple[int, int]],
        counts: tuple[int, int, int] = _OTHERS,
        kinks: bool = False,
    ) -> Ascent:
        """Every row tries what others have found."""
        base = self.stay.value
        starts = shared(self.objective, self.batch, best, base, self.generator, counts)
        return best.better(halve(self.objective, self.batch, starts, schedule, kinks=kinks))

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
    part = Ascent(best.q[rows], best.value[rows], best.gradient[rows])
    end = bundle(objective, batch.take(rows), part, steps)
    q, value, gradient = best.q.clone(), best.value.clone(), best.gradient.clone()
    q[rows], value[rows], gradient[rows] = end.q, end.value, end.gradient
    return Ascent(q, value, gradient)


def _stalled(objective: Objective, best: Ascent) -> Tensor:
    """Whether a linear loss would still gain something, row by row."""
    slope = free(objective, best.q, best.gradient).square().sum(1)
    return slope / (4.0 * objective.strength) > 1e-6 * (1.0 + best.value.abs())
