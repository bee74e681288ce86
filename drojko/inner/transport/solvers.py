"""Inner solvers of transport sets: modified JKO with ICNN maps, and ascent sample by sample."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from drojko._driver import Status, run
from drojko.inner.objective import Batch, Objective
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.bounds import structure
from drojko.inner.transport.candidates import (
    Candidate,
    Condition,
    LearnedMap,
    OtherLabel,
    first_candidates,
)
from drojko.inner.transport.modified_jko import ModifiedJKO

__all__ = ["ICNNJKO", "Pointwise"]


class Pointwise(InnerSolver):
    r"""Per-sample proximal ascent from the sample itself; exact for ridge losses.

    .. math:: z \leftarrow \arg\max_z \langle \nabla\ell(z_k), z\rangle - \lambda c(z, x)
              - \|z - z_k\|^2 / 2\tau

    Parameters
    ----------
    corrections : int
        Proximal steps per sample in a full solve (a certificate, a worst case).
    training_corrections : int
        Proximal steps per outer step, warm-started where the sample was last left.
    tol : float
        Samples stop once their residual is below ``tol`` relative to their value.

    Examples
    --------
    >>> Pointwise(corrections=100)
    Pointwise(corrections=100)
    """

    def __init__(self, *, corrections=200, training_corrections=2, tol=1e-12):
        self.corrections = corrections
        self.training_corrections = training_corrections
        self.tol = tol

    def fit(self, objective, batch, generator, *, n_labels=0, label_cost=math.inf, max_time=None):
        return Adversary(
            objective,
            first_candidates(objective),
            screening=min(12, self.corrections),
            corrections=self.corrections,
            tol=self.tol,
            n_labels=n_labels,
            label_cost=label_cost,
        )


class ICNNJKO(InnerSolver):
    r"""Modified JKO steps with an ICNN map, then proximal corrections.

    .. math:: T_{k+1} = \arg\max_T\; E[\ell(T(x)) - \lambda c(T(x), x)]
              - \tfrac{1}{2\tau} E\|T - T_k\|^2, \qquad T = \nabla\psi

    Each step finds the proximal targets of T_k(x) sample by sample and projects them onto
    gradients of convex functions. The map finds basins that no ascent from a single sample
    finds; the corrections make it exact; a max-affine potential on the corrected points shares
    every basin with all samples; starts towards close points of another label are tried as well.
    Each sample keeps its best, which is still a feasible transport.

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
        Proximal corrections of the best candidate, and of every candidate before comparing.
    training_corrections : int
        Corrections per outer step, warm-started where the sample was last left.
    anchors : int
        Reference points of other labels that starts are taken from; 0: none.
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

    def __init__(
        self,
        *,
        steps=120,
        maps=1,
        hidden=(64, 64),
        proximal_steps=5,
        fits=4,
        learning_rate=1e-2,
        batch_size=128,
        corrections=50,
        screening=12,
        training_corrections=2,
        anchors=64,
        support=1000,
        rounds=3,
        initialisation="identity",
        tol=1e-3,
    ):
        self.steps = steps
        self.maps = maps
        self.hidden = hidden
        self.proximal_steps = proximal_steps
        self.fits = fits
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.corrections = corrections
        self.screening = screening
        self.training_corrections = training_corrections
        self.anchors = anchors
        self.support = support
        self.rounds = rounds
        self.initialisation = initialisation
        self.tol = tol

    def fit(self, objective, batch, generator, *, n_labels=0, label_cost=math.inf, max_time=None):
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
        if 2.0 * objective.strength > structure(objective).curvature:
            # Proven strongly concave: the ascent from each sample is the global maximiser.
            return replace(adversary, corrections=max(200, self.corrections), tol=1e-12)
        candidates: list[Candidate] = list(adversary.candidates)
        if self.anchors and n_labels:
            pick = torch.randperm(len(batch), generator=generator, device="cpu")[: self.anchors]
            pick = _cover_labels(batch.y, pick.to(batch.y.device), n_labels)
            candidates.append(OtherLabel(batch.q0[pick], batch.y[pick]))
        for _ in range(self.maps):
            candidates.append(self.learn_map(objective, batch, generator, n_labels, max_time))
        adversary = replace(adversary, candidates=tuple(candidates))
        if self.support == 0:
            return adversary
        return adversary.share_basins(batch, self.rounds, self.support)[0]

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
        outcome = run(solver, solver.init(None), max_iter=self.steps, max_time=max_time)
        if outcome.status is Status.INTERRUPTED:
            raise KeyboardInterrupt(outcome.message)
        return LearnedMap(outcome.state.flow.brenier(), condition)


def _cover_labels(y: Tensor, pick: Tensor, n_labels: int) -> Tensor:
    """Add a row of every label that the picked rows miss."""
    missing = sorted(set(y.unique().tolist()) - set(y[pick].tolist()))
    extra = [int((y == label).nonzero()[0]) for label in missing]
    return torch.cat([pick, torch.tensor(extra, dtype=pick.dtype, device=pick.device)])
