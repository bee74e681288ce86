"""The nonlinear part of a map: an ICNN trained on mini-batches, judged on particles kept apart."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko._driver import Status, nested
from drojko._numerics import Adam, Batches, cosine
from drojko.flows.icnn.affine_fit import AffineFit
from drojko.flows.icnn.map_problem import Evaluated, MapProblem
from drojko.models import flatten_parameters, views_like
from drojko.transport.icnn import ICNN
from drojko.transport.jet import Probes, forward
from drojko.transport.maps import set_affine

__all__ = ["DENSE", "RefineState", "Refinement", "fresh", "polish", "warm"]

#: Columns up to which Hessians are formed and factorised at every step.
DENSE = 32
_NUMBERS = 4e7  # of the Hessians that are held at once
_ENOUGH = 2.0  # particles over d^2 that a refit of the quadratic needs
_PATIENCE = 3
_STAGES = 8  # looks at the particles kept apart
_START = 0.2  # sum of the output weights of a fresh network: Hessian about a tenth of the identity


def hidden_part(potential: ICNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (n, d) and Hessian (n, d, d) of the softplus layers alone."""
    with torch.no_grad():
        (image, hessian), quadratic = forward(potential, x), potential.quadratic()
        return image - x @ quadratic - potential.shift, hessian - quadratic


def thinned(problem: MapProblem) -> MapProblem:
    """The problem on as many particles as may have their Hessians in memory together."""
    n, d = problem.particles.x.shape
    return problem if n * d * d <= _NUMBERS else problem.few(max(int(_NUMBERS / d**2), 1))


def fresh(problem: MapProblem, hidden, matrix, shift, generator: torch.Generator) -> ICNN:
    """A network near the affine map (M, b)."""
    like = problem.particles.x
    potential = ICNN(like.shape[1], hidden=hidden, generator=generator)
    potential = potential.to(like)
    with torch.no_grad():
        potential.w.fill_(math.log(math.expm1(_START / hidden[-1])))
        problem = thinned(problem)
        gradient, hessian = hidden_part(potential, problem.inner)
        w = problem.particles.w
        mean = torch.einsum("n,nij->ij", w, hessian)
        set_affine(potential, matrix - mean, shift - w @ (gradient - problem.inner @ mean))
    flatten_parameters(potential)
    return potential


def polish(problem: MapProblem, potential: ICNN, max_iter: int = 30) -> Evaluated | None:
    """Refit the quadratic, the shift and the share of the layers; changes the potential.

    None, and nothing is changed, where the particles are too few for that many numbers.
    """
    problem = thinned(problem)
    n, d = problem.particles.x.shape
    if n < _ENOUGH * d * d:  # they would be learned by heart
        return None
    with torch.no_grad():
        residue = hidden_part(potential, problem.inner)
        fit = AffineFit.of(problem, residue)
        matrix = potential.quadratic().clone()
        start = fit.init((matrix, potential.shift.detach().clone(), 1.0))
        state = nested(fit, start, max_iter=max_iter).state
        matrix, shift, share = fit.parts(state.point)
        set_affine(potential, matrix, shift)
        share = max(share, 1e-12)
        weights = share * torch.nn.functional.softplus(potential.w, threshold=40.0)
        potential.w.copy_(weights + torch.log(-torch.expm1(-weights)))
        return state.at


def warm(problem: MapProblem, start: ICNN, matrix: Tensor, shift: Tensor) -> ICNN | None:
    """The last layers with the affine part refitted; None where they bend more than M allows."""
    potential = copy.deepcopy(start).requires_grad_(True)
    few = thinned(problem)
    w = few.particles.w
    gradient, hessian = hidden_part(potential, few.inner)
    mean = torch.einsum("n,nij->ij", w, hessian)
    rest = matrix - mean
    if float(torch.linalg.eigvalsh(rest)[0]) < 0.02:
        rest = rest + (0.02 - float(torch.linalg.eigvalsh(rest)[0])) * torch.eye(len(rest)).to(rest)
    set_affine(potential, rest, shift - w @ (gradient - few.inner @ mean))
    at = polish(problem, potential)
    return potential if at is None or at.finite else None


@dataclass(frozen=True, eq=False)
class RefineState:
    """The potential in training, and the best one so far on the particles kept apart."""

    potential: ICNN
    flat: Tensor
    adam: Adam
    best: Tensor
    best_value: float
    stage: int = 0
    stale: int = 0


@dataclass(frozen=True, eq=False)
class Refinement:
    """Adam on mini-batches in a few stages; the best stage on ``held`` counts.

    It ends early where a stage gains less than ``least`` there.
    """

    train: MapProblem
    held: MapProblem
    generator: torch.Generator
    iterations: int
    batch_size: int
    rate: float
    least: float
    probes: Probes | None = None

    @property
    def _wide(self) -> bool:
        return self.train.particles.x.shape[1] > DENSE

    def init(self, problem: ICNN) -> RefineState:
        """State at a potential whose parameters are one flat vector's views."""
        flat = flatten_parameters(problem)
        value = self.held.at_potential(problem, self.probes).value
        return RefineState(problem, flat, Adam.like(flat), flat.clone(), value)

    def finite(self, state: RefineState) -> bool:
        """Whether the parameters are finite."""
        return bool(torch.isfinite(state.flat).all())

    def step(self, state: RefineState) -> RefineState:
        """One stage of mini-batch steps; the potential is updated in place."""
        n = len(self.train.particles.x)
        size = min(self.batch_size, n)
        views = views_like(state.adam.gradient, list(state.potential.parameters()))
        # In many columns the noise of mini-batches costs more than the quadratic could gain: it is
        # refitted afterwards, where there are enough particles for that.
        wide = self._wide
        quadratic = (state.potential.factor, state.potential.shift)
        held = [
            view
            for view, p in zip(views, state.potential.parameters(), strict=True)
            if any(p is q for q in quadratic)
        ]
        per_stage = max(1, self.iterations // _STAGES)
        batches = Batches(n, size, self.generator)
        for k in range(per_stage):
            rows = batches.next().to(state.flat.device)
            _, gradient = self.train.with_gradient(
                state.potential, rows, self.generator, self.probes
            )
            for view, part in zip(views, gradient, strict=True):
                view.copy_(part)
            if wide:
                for view in held:
                    view.zero_()
            norm = float(state.adam.gradient.norm())
            if not math.isfinite(norm):
                continue  # a batch whose density left the floats: not worth a step
            phase = (state.stage * per_stage + k) / max(1, self.iterations)
            state.adam.step(state.flat, self.rate * cosine(min(phase, 1.0), 0.02))
        value = self.held.at_potential(state.potential, self.probes).value
        stage = state.stage + 1
        if math.isfinite(value) and value < state.best_value:
            enough = value < state.best_value - self.least
            stale = 0 if enough else state.stale + 1
            return replace(
                state, best=state.flat.clone(), best_value=value, stage=stage, stale=stale
            )
        return replace(state, stage=stage, stale=state.stale + 1)

    def terminate(self, state: RefineState) -> Status | None:
        """Stop after all stages, or three in a row that gained next to nothing.

        In many columns layers find their directions late: there all stages are made.
        """
        wide = self._wide
        if state.stage >= _STAGES or (state.stale >= _PATIENCE and not wide):
            return Status.CONVERGED
        return None

    def result(self, start: ICNN) -> ICNN:
        """The best potential of a run from ``start``; a copy."""
        state = nested(self, self.init(copy.deepcopy(start)), max_iter=_STAGES).state
        state.flat.copy_(state.best)
        return state.potential
