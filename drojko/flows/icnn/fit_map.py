"""A whole proximal step: the affine part to convergence, then an ICNN where it pays."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from drojko.flows.icnn.map_problem import Evaluated, MapProblem
from drojko.flows.icnn.refinement import (
    Refinement,
    affine_part,
    fresh,
    hidden_part,
    polish,
    thinned,
)
from drojko.transport.icnn import ICNN
from drojko.transport.initialise import set_affine
from drojko.transport.maps import AffineMap, BrenierMap, TransportMap
from drojko.transport.stochastic_jet import Probes

__all__ = ["FittedMap", "fit_map"]

_EXACT = 1e-6  # share of the variance of dF/drho at which an affine map counts as the optimum


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A proximal step's map with what it does to the particles, trained on and kept apart."""

    map: TransportMap
    potential: ICNN | None
    train: Evaluated
    held: Evaluated
    refined: bool


def fit_map(
    train: MapProblem,
    held: MapProblem,
    generator: torch.Generator,
    *,
    hidden: Sequence[int],
    iterations: int,
    batch_size: int,
    rate: float,
    tol: float,
    start: ICNN | None = None,
    probes: Probes | None = None,
) -> FittedMap:
    """Minimise J over gradients of ICNNs; ``start`` is the potential of the step before.

    The affine map comes first (its own L-BFGS, exact). A network starts from it, or from the last
    step's layers with a new affine part, and is kept if it lowers J on the particles kept apart
    by more than ``tol`` times what the affine map does, and by a third of what it gains on its
    own particles: otherwise what it learned was those particles.
    """
    at, matrix, shift = affine_part(train)
    affine = _affine_map(train, matrix, shift)
    zeros = held.particles.log_density.new_zeros(())
    base_train = train.frozen(at.image) if train.functional.majorised else train
    x = held.particles.x
    held_image, held_log_det = affine.map(x), affine.log_abs_det_jacobian(x)
    held = held.frozen(held_image) if held.functional.majorised else held
    held_at = held.evaluate(held_image, held_log_det)
    still = held.evaluate(x, zeros.expand(len(x)))
    if iterations == 0 or not train.particles.x.shape[1]:
        return FittedMap(affine, start, at, held_at, False)
    if train.affine_gap(at, affine) <= _EXACT:
        return FittedMap(affine, start, at, held_at, False)
    least = tol * max(still.value - held_at.value, 0.0)
    potential = fresh(base_train, hidden, matrix, shift, generator)
    if start is not None:
        warm = _warm(base_train, start, matrix, shift)
        if warm is not None and (
            held.at_potential(warm, probes).value < held.at_potential(potential, probes).value
        ):
            potential = warm
    least_stage = 0.1 * least
    refinement = Refinement(
        base_train, held, generator, iterations, batch_size, rate, least_stage, probes
    )
    potential = refinement.result(potential)
    polish(base_train, potential)
    found, final = held.at_potential(potential), base_train.at_potential(potential)
    gain, own = held_at.value - found.value, at.value - final.value
    if found.finite and gain > least and gain > 0.1 * own:
        brenier = BrenierMap(_frozen(potential), train.centre.clone(), train.scale)
        return FittedMap(brenier, potential, final, found, True)
    return FittedMap(affine, start, at, held_at, False)


def _affine_map(problem: MapProblem, matrix, shift) -> AffineMap:
    centre = problem.centre
    return AffineMap(matrix.clone(), centre + problem.scale * shift - matrix @ centre)


def _warm(problem: MapProblem, start: ICNN, matrix, shift) -> ICNN | None:
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


def _frozen(potential: ICNN) -> ICNN:
    copied = copy.deepcopy(potential)
    for p in copied.parameters():
        p.data = p.data.clone()
        p.requires_grad_(False)
    return copied
