"""The search itself: one round, or rounds of fresh starts until they find no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
#: Their rounds at most, which end where fewer rows than this share stall at kinks.
_BLIND_ROUNDS, _KINKED = 3, 0.1
#: Rows that share what they find; more are searched in parts.
_ROWS = 5000
#: Times that rows try what others have found, in a fast search.
_SHARES = 3
#: Of rounds of a thorough one in turn, and without labels; rounds at most and at least.
_ROUND, _MIXED, _ROUND_BLIND = (24, 0, 0), (10, 7, 7), (6, 8, 10)
_ROUNDS, _LEAST = 24, 5
#: Steps, and starts that go on: from known ones alone, of fast searches, of rounds, of what rows
#: share.
_WARM = ((4, 1),)
_FAST = ((5, 6), (12, 2), (20, 1))
_THOROUGH = ((5, 6), (15, 2), (40, 1))
_SHARED_FAST, _SHARED = ((5, 1), (20, 1)), ((5, 2), (40, 1))
#: Estimated missing share of the gain that ends the rounds.
_ENOUGH = 1e-4
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
    def of(evidence: Evidence | None, gain: Tensor, weights: Tensor) -> Restarts | None:
        """The rows together, from what they gained (n,) and their masses (n,)."""
        if evidence is None or not len(weights):
            return None
        mass = weights.double()
        gained, missing = float(mass @ gain.double()), float(mass @ evidence.missing.double())
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
        known = torch.stack([stay, *given])
        rounds = {"warm": self._warm, "fast": self._fast, "thorough": self._thorough}[self.effort]
        best, evidence = rounds(objective, batch, best, known, generator)
        return replace(_polished(objective, batch, best), evidence=evidence)

    def _warm(
        self,
        objective: Objective,
        batch: Batch,
        stay: Ascent,
        known: Tensor,
        generator: torch.Generator,
    ) -> tuple[Ascent, Evidence | None]:
        """From the known starts alone."""
        return stay.better(halve(objective, batch, known, _WARM)), None

    def _fast(
        self,
        objective: Objective,
        batch: Batch,
        stay: Ascent,
        known: Tensor,
        generator: torch.Generator,
    ) -> tuple[Ascent, Evidence | None]:
        """One round; up to three where no label tells which anchors are far and kinks abound."""
        families, best = self._fast_families(len(batch)), stay
        far = reach(objective, batch) if families[1] or families[2] else 0.0
        for turn in range(1 if self.anchors.classes else _BLIND_ROUNDS):
            starts = draw(objective, batch, self.anchors, families, far, generator)
            starts = starts if turn else torch.cat([known, starts])
            best = best.better(halve(objective, batch, starts, _FAST))
            for _ in range(_SHARES):
                best = _shared(objective, batch, stay, best, _SHARED_FAST, generator)
            if float(_stalled(objective, best).double().mean()) < _KINKED:
                break
            if not self.anchors.classes:
                best = _ended(objective, batch, best, _BUNDLE_ROUND)
        return best, None

    def _fast_families(self, n: int) -> tuple[int, int, int]:
        many = n >= _MANY
        if self.anchors.classes:
            return (_STARTS_MANY if many else _STARTS), 0, 0
        return _BLIND_MANY if many else _BLIND

    def _thorough(
        self,
        objective: Objective,
        batch: Batch,
        stay: Ascent,
        known: Tensor,
        generator: torch.Generator,
    ) -> tuple[Ascent, Evidence | None]:
        """Rounds of independent starts, whose own bests say how much they still miss."""
        far, best, bests = reach(objective, batch), stay, []
        missing = torch.zeros_like(stay.value)
        for turn in range(_ROUNDS):
            families = _ROUND if turn % 2 == 0 else _MIXED
            families = families if self.anchors.classes else _ROUND_BLIND
            starts = draw(objective, batch, self.anchors, families, far, generator)
            starts = torch.cat([known, starts]) if turn == 0 else starts
            own = stay.better(halve(objective, batch, starts, _THOROUGH))
            own = _ended(objective, batch, own, _BUNDLE_ROUND)
            bests.append(own.value)
            best = _shared(objective, batch, stay, best.better(own), _SHARED, generator)
            count = len(bests)
            if count < _LEAST:
                continue
            top = torch.stack(bests).topk(2, dim=0).values
            missing = (count - 1) / count * (top[0] - top[1])
            gain = float((best.value - stay.value).mean())
            if not float(missing.mean()) > _ENOUGH * gain:  # NaN as well
                break
        return best, Evidence(missing, torch.full_like(missing, len(bests)))


def _shared(
    objective: Objective,
    batch: Batch,
    stay: Ascent,
    best: Ascent,
    schedule: Sequence[tuple[int, int]],
    generator: torch.Generator,
) -> Ascent:
    """Every row tries what others have found."""
    starts = shared(objective, batch, best, stay.value, generator)
    return best.better(halve(objective, batch, starts, schedule))


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
