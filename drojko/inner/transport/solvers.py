"""Inner solvers of transport sets: modified JKO with ICNN maps, and ascent sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko._driver import Status, nested
from drojko._numerics import cosine
from drojko._settings import check_settings
from drojko._validation import chosen
from drojko.exceptions import InvalidDataError
from drojko.flows.icnn.map_state import MapState
from drojko.inner.objective import Batch, Objective
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.ascent import proximal_ascent
from drojko.inner.transport.candidates import (
    Condition,
    LearnedMap,
    first_candidates,
)
from drojko.inner.transport.search.rounds import EFFORTS, Search
from drojko.inner.transport.search.starts import Anchors

__all__ = ["ICNNJKO", "JKOState", "ModifiedJKO", "Pointwise"]


@dataclass(kw_only=True, eq=False, repr=False)
class Pointwise(InnerSolver):
    r"""Per-sample proximal ascent, without a learned map; exact for ridge losses.

    .. math:: z \leftarrow \arg\max_z \langle \nabla\ell(z_k), z\rangle - \lambda c(z, x)
              - \|z - z_k\|^2 / 2\tau

    Training climbs from where each sample was last left; certificates search from many starts.

    Parameters
    ----------
    corrections : int
        Proximal steps per sample in a full solve (a certificate, a worst case).
    anchors : int
        Reference points that the starts of a full solve are drawn towards; 0: from the sample
        alone.
    training_corrections : int
        Proximal steps per outer step, warm-started where the sample was last left.
    tol : float
        Samples stop once their residual is below ``tol`` relative to their value.

    Examples
    --------
    >>> Pointwise(corrections=100)
    Pointwise(corrections=100)
    """

    corrections: int = 200
    training_corrections: int = 2
    anchors: int = 1000
    tol: float = 1e-12

    def validate(self) -> None:
        names = "corrections", "training_corrections", "anchors"
        counts: dict[str, int] = dict.fromkeys(names, 0)
        check_settings(self, whole=counts, least={"tol": 0.0})

    def fit(
        self, objective: Objective, batch: Batch, generator: torch.Generator, *, n_labels: int = 0,
        label_cost: float = math.inf, max_time: float | None = None, effort: str = "fast",
        atoms: bool = False,
    ) -> Adversary:  # fmt: skip
        chosen("effort", effort, EFFORTS)
        adversary = Adversary(
            objective,
            first_candidates(objective),
            screening=min(12, self.corrections),
            corrections=self.corrections,
            tol=self.tol,
            n_labels=n_labels,
            label_cost=label_cost,
        )
        if not (self.anchors and self.corrections) or adversary.local:
            return adversary
        search = _search(self.anchors, batch, generator, n_labels)
        return replace(adversary, search=search).with_effort(effort)


@dataclass(kw_only=True, eq=False, repr=False)
class ICNNJKO(InnerSolver):
    r"""Modified JKO steps with an ICNN map, then proximal corrections.

    .. math:: T_{k+1} = \arg\max_T\; E[\ell(T(x)) - \lambda c(T(x), x)]
              - \tfrac{1}{2\tau} E\|T - T_k\|^2, \qquad T = \nabla\psi

    Each step finds the proximal targets of T_k(x) sample by sample and projects them onto
    gradients of convex functions. The map finds basins that no ascent from a single sample
    finds, and serves draws that were not there. It is one start among many: from every sample
    ascents start towards random reference points of other labels, and in regression along
    gradients and in random directions too; most are dropped after a few steps, samples share what
    they find, and the best is climbed to its end. Each sample keeps its best, which is still a
    feasible transport. Where the draws are all that will be moved, no map is learned.

    Parameters
    ----------
    steps : int
        Most modified JKO steps; they stop early on the measured gap.
    maps : int
        Independent maps.
    hidden : tuple of int
        Widths of the potential.
    proximal_steps, fits : int
        Ascent steps towards each step's target; optimiser iterations of its projection.
    learning_rate : float
        Of those iterations.
    batch_size : int
        Reference draws per step.
    corrections, screening : int
        Proximal corrections of the best candidate, and of every candidate before comparing, where
        samples may swap among too many categories for a search at each.
    training_corrections : int
        Corrections per outer step, warm-started where the sample was last left.
    anchors : int
        Reference points that starts are drawn towards, at most; of every label one at least.
    support : int
        Most points of the max-affine potential; 0: none.
    rounds : int
        Rounds of sharing basins through it.
    initialisation : {"identity", "bures"}
        Where the map starts: at the identity, or at the optimal affine map between Gaussian fits
        of the reference and of its first proximal targets.
    tol : float
        Stop the map when its gain is within ``tol`` of the corrected gain.

    Notes
    -----
    After the modified JKO scheme of Zhu and Xie (2024, arXiv 2412.20556); potential after Amos,
    Xu and Kolter (2017, arXiv 1609.07152).

    Examples
    --------
    >>> ICNNJKO(steps=50, maps=2)
    ICNNJKO(maps=2, steps=50)
    """

    steps: int = 60
    maps: int = 1
    hidden: Sequence[int] = (64, 64)
    proximal_steps: int = 5
    fits: int = 4
    learning_rate: float = 1e-2
    batch_size: int = 128
    corrections: int = 50
    screening: int = 12
    training_corrections: int = 2
    anchors: int = 1000
    support: int = 1000
    rounds: int = 1
    initialisation: str = "identity"
    tol: float = 1e-3

    def validate(self) -> None:
        counts = (
            "steps", "maps", "proximal_steps", "corrections", "screening", "training_corrections",
            "anchors", "support", "rounds",
        )  # fmt: skip
        check_settings(
            self,
            whole={**dict.fromkeys(counts, 0), "fits": 1, "batch_size": 1},
            widths=("hidden",),
            least={"learning_rate": 0.0, "tol": 0.0},
        )
        if self.initialisation not in ("identity", "bures"):
            raise InvalidDataError(
                f"ICNNJKO: initialisation={self.initialisation!r}; expected 'identity' or 'bures'"
            )

    def fit(
        self, objective: Objective, batch: Batch, generator: torch.Generator, *, n_labels: int = 0,
        label_cost: float = math.inf, max_time: float | None = None, effort: str = "fast",
        atoms: bool = False,
    ) -> Adversary:  # fmt: skip
        chosen("effort", effort, EFFORTS)
        adversary = Adversary(
            objective,
            first_candidates(objective),
            screening=self.screening,
            corrections=self.corrections,
            n_labels=n_labels,
            label_cost=label_cost,
        )
        if adversary.exact:
            return adversary
        if adversary.local:
            return replace(adversary, corrections=max(200, self.corrections), tol=1e-12)
        search = _search(self.anchors, batch, generator, n_labels)
        maps = () if atoms else range(self.maps)
        learned = [self.learn_map(objective, batch, generator, n_labels, max_time) for _ in maps]
        adversary = replace(adversary, candidates=(*adversary.candidates, *learned), search=search)
        if self.support and not atoms:
            adversary = adversary.share_basins(batch, self.rounds, self.support)[0]
        return adversary.with_effort(effort)

    def learn_map(
        self,
        objective: Objective,
        batch: Batch,
        generator: torch.Generator,
        n_labels: int,
        max_time: float | None = None,
    ) -> LearnedMap:
        """The ICNN map alone, by modified JKO steps on mini-batches of ``batch``."""
        condition = Condition.of(batch, n_labels, objective.coordinates.immutable)
        solver = ModifiedJKO(self, objective, batch, generator, condition)
        outcome = nested(solver, solver.init(None), max_iter=self.steps, max_time=max_time)
        return LearnedMap(outcome.state.flow.brenier(), condition)


def _search(anchors: int, batch: Batch, generator: torch.Generator, n_labels: int) -> Search:
    """Starts drawn towards some of the rows, of every label at least one."""
    pick = torch.randperm(len(batch), generator=generator, device="cpu")[:anchors]
    pick = _cover_labels(batch.y, pick.to(batch.y.device), n_labels)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return Search(Anchors(batch.x[pick], batch.y[pick], n_labels > 0), seed)


def _cover_labels(y: Tensor, pick: Tensor, n_labels: int) -> Tensor:
    """Add a row of every label that the picked rows miss; one row at least where none count."""
    if not n_labels:
        return pick if len(pick) else torch.zeros(1, dtype=torch.long, device=y.device)
    missing = sorted(set(y.unique().tolist()) - set(y[pick].tolist()))
    extra = [int((y == label).nonzero()[0]) for label in missing]
    return torch.cat([pick, torch.tensor(extra, dtype=pick.dtype, device=pick.device)])


@dataclass(frozen=True)
class JKOState:
    """Map state with the measured value of the map and of its targets (exponential means)."""

    flow: MapState
    gain: float = 0.0
    corrected: float = 0.0
    step: int = 0

    @property
    def gap(self) -> float:
        """Share of the corrected gain that the map misses."""
        return (self.corrected - self.gain) / max(abs(self.corrected), 1e-300)


@dataclass(frozen=True)
class ModifiedJKO:
    """The modified JKO scheme as a solver: anchor T_k, base measure the reference throughout.

    Each step draws a mini-batch, finds the proximal targets of T_k sample by sample, and fits
    the map to them; it ends when the map's gain is within ``tol`` of the targets' gain.
    """

    settings: ICNNJKO
    objective: Objective
    batch: Batch
    generator: torch.Generator
    condition: Condition

    def init(self, problem: None) -> JKOState:
        """Near the identity map, or near the affine map that fits the first proximal targets."""
        s = self.settings
        flow = MapState.start(
            self.batch.q0, self.condition.dim, generator=self.generator, hidden=s.hidden
        )
        if s.initialisation == "bures":
            part = self._draw()
            found = proximal_ascent(self.objective, part, part.q0, s.proximal_steps)
            flow.make_affine(part.q0, found.q)
        return JKOState(flow)

    def _draw(self) -> Batch:
        size = (min(self.settings.batch_size, len(self.batch)),)
        rows = torch.randint(len(self.batch), size, generator=self.generator)
        return self.batch.take(rows.to(self.batch.x.device))

    def finite(self, state: JKOState) -> bool:
        return bool(torch.isfinite(state.flow.flat).all())

    def step(self, state: JKOState) -> JKOState:
        """One modified JKO step on a mini-batch; the potential is updated in place."""
        s = self.settings
        part = self._draw()
        measured: list[Tensor] = []

        def target(points: Tensor) -> Tensor:
            # The step size tau is chosen sample by sample by the ascent's spectral rule.
            found = proximal_ascent(self.objective, part, points, s.proximal_steps)
            measured.append(self.objective.value(part, points))
            measured.append(found.value)
            return found.q

        rate = s.learning_rate * cosine(state.step / max(1, s.steps), 0.05)
        context = self.condition.context(part)
        with torch.no_grad():
            state.flow.advance(part.q0, context, target, rate, s.fits)
            base = self.objective.value(part, part.q0)
            gain = float((torch.maximum(measured[0], base) - base).mean())
            corrected = float((torch.maximum(measured[1], base) - base).mean())
        keep = 0.8 if state.step else 0.0
        return JKOState(
            state.flow,
            keep * state.gain + (1 - keep) * gain,
            keep * state.corrected + (1 - keep) * corrected,
            state.step + 1,
        )

    def terminate(self, state: JKOState) -> Status | None:
        if state.step >= 10 and state.gap <= self.settings.tol:
            return Status.CONVERGED
        return None

    def record(self, state: JKOState) -> dict[str, float]:
        return {"gain": state.gain, "corrected": state.corrected, "gap": state.gap}
