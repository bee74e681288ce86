"""The ICNN scheme: JKO steps over gradients of input-convex networks, and their training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drojko._numerics import batches, cosine
from drojko._settings import check_settings
from drojko._validation import chosen, shown
from drojko.exceptions import InvalidDataError
from drojko.flows.icnn.affine_fit import AffineFit, AffineStart
from drojko.flows.icnn.map_problem import Evaluated, FittedMap, MapProblem
from drojko.models import Learner
from drojko.transport.icnn import ICNN
from drojko.transport.jet import Probes, forward
from drojko.transport.maps import set_affine

__all__ = ["DENSE", "ICNNScheme", "polish", "refine"]

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
    most = max(int(_NUMBERS / d**2), 1) if d else n
    # Evenly spaced: they may come in strata.
    return problem if n <= most else problem.take(torch.linspace(0, n - 1, most).long())


@torch.no_grad()
def align(problem: MapProblem, potential: ICNN, matrix, shift, least: float = 0.0) -> None:
    """Set the affine part so that all of the gradient is (M, b) on average, if it can be."""
    problem = thinned(problem)
    x, w = problem.inner, problem.particles.w
    gradient, hessian = hidden_part(potential, x)
    mean = torch.einsum("n,nij->ij", w, hessian)
    values, vectors = torch.linalg.eigh(matrix - mean)
    rest = (vectors * values.clamp_min(least)) @ vectors.T
    set_affine(potential, rest, shift - w @ (gradient - x @ mean))


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
        fit = AffineFit(problem, residue)
        matrix = potential.quadratic().clone()
        shift = potential.shift.detach().clone()
        matrix, shift, share, at = fit.solve(matrix, shift, 1.0, max_iter)
        set_affine(potential, matrix, shift)
        share = max(share, 1e-12)
        weights = share * torch.nn.functional.softplus(potential.w, threshold=40.0)
        potential.w.copy_(weights + torch.log(-torch.expm1(-weights)))
        return at


def refine(
    train: MapProblem,
    held: MapProblem,
    potential: Any,
    generator: torch.Generator,
    scheme: Any,
    *,
    probes: Probes | None = None,
    kept: Sequence[Tensor] = (),
    largest: float = math.inf,
    least: float = 0.0,
    patience: int = _STAGES,
) -> None:
    """Adam on mini-batches in a few stages, in place; the best one on ``held`` counts.

    ``scheme`` has iterations, batch_size and rate; parameters that are ``kept`` stay as they are.
    Ends early after ``patience`` stages in a row that gained less than ``least``. All this is
    inside one step of a flow: what interrupts it ends that one.
    """
    n, iterations = len(train.particles.x), scheme.iterations
    fixed = [any(p is q for q in kept) for p in potential.parameters()]
    learner = Learner(potential)
    best, stale = learner.flat.clone(), 0
    best_value = held.at_potential(potential, probes).value
    rows_of, stage = batches(n, min(scheme.batch_size, n), generator), max(1, iterations // _STAGES)
    for k in range(iterations):
        rows = next(rows_of).to(best.device)
        _, found = train.take(rows).with_gradient(potential, generator, probes)
        found = [torch.zeros_like(g) if still else g for g, still in zip(found, fixed, strict=True)]
        # A batch whose density left the floats is not worth a step.
        learner.step(found, scheme.rate * cosine(k / iterations, 0.02), largest)
        if (k + 1) % stage:
            continue
        value = held.at_potential(potential, probes).value
        stale = 0 if value < best_value - least else stale + 1
        if math.isfinite(value) and value < best_value:
            best, best_value = learner.flat.clone(), value
        if stale >= patience:
            break
    learner.flat.copy_(best)


@dataclass(frozen=True)
class ICNNScheme:
    r"""JKO steps :math:`\min_T F(T_\#\rho) + E|T - x|^2 / 2h` over gradients of ICNNs.

    Densities are known through log det DT. The affine map comes first (its own L-BFGS, exact); a
    network starts from it, or from the last step's layers with a new affine part, and is kept
    where it gains. The quadratic part of its potential is solved for exactly before, and again
    after, the layers are trained.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the potential.
    n_particles : int
        Particles that maps are trained on; half as many are kept apart to judge them.
    iterations, batch_size, rate : int, int, float
        Most Adam iterations per step, particles in each, and their first learning rate.
        0 iterations: affine maps only.
    tol : float
        A network is kept where it gains more than this share of what the affine map gains.
    log_det : {"auto", "exact", "stochastic"}
        How the Hessians' log-determinants enter the training of a map. "stochastic": by products
        with random signs and Lanczos steps (`stochastic_jet`). "auto": that above 32 columns.
        What counts in the end, whether a network is kept, the energy and the densities of the
        particles, is exact.
    probes : Probes
        Of the stochastic form.

    Notes
    -----
    Source: Mokrov, Korotin, Li, Genevay, Solomon, Burnaev (2021, arXiv 2106.00736), without the
    affine part.

    Examples
    --------
    >>> from drojko.flows import JKOFlow
    >>> from drojko.flows.functionals import Entropy
    >>> from drojko.measures import Gaussian
    >>> flow = JKOFlow(Entropy(), ICNNScheme(n_particles=500), step_size=0.1)
    >>> step = flow.run(Gaussian([0.0], [[1.0]]), 1, random_state=0).measures[-1]
    >>> round(float(step.particles.var(correction=0)), 3)  # (1 + 2h + sqrt(1 + 4h)) / 2
    1.192
    """

    hidden: Sequence[int] = (64, 64)
    n_particles: int = 5000
    iterations: int = 150
    batch_size: int = 128
    rate: float = 0.1
    tol: float = 1e-3
    log_det: str = "auto"
    probes: Probes = field(default_factory=Probes)

    def __post_init__(self) -> None:
        check_settings(
            self, whole={"n_particles": 2, "iterations": 0, "batch_size": 1}, widths=("hidden",),
            least={"tol": 0.0}, above={"rate": 0.0},
        )  # fmt: skip
        chosen("ICNNScheme: log_det", self.log_det, ("auto", "exact", "stochastic"))
        if not isinstance(self.probes, Probes):
            raise InvalidDataError(f"ICNNScheme: probes={shown(self.probes)}; expected Probes(...)")

    def fit_map(
        self,
        train: MapProblem,
        held: MapProblem,
        generator: torch.Generator,
        start: ICNN | None = None,
    ) -> FittedMap:
        """The map that minimises J on ``train``; ``start`` is the potential of the step before."""
        first = AffineStart(train, held, start)
        d = train.particles.x.shape[1]
        if self.iterations == 0 or d == 0 or first.optimal:
            return first.fitted
        rough = self.log_det == "stochastic" or (self.log_det == "auto" and d > DENSE)
        probes = self.probes if rough and train.dense else None
        train, held = first.train, first.held
        potential = ICNN(d, hidden=tuple(self.hidden), generator=generator).to(train.particles.x)
        with torch.no_grad():
            potential.w.fill_(math.log(math.expm1(_START / self.hidden[-1])))
        align(train, potential, first.matrix, first.shift)
        if start is not None:  # its last layers, with the affine part refitted
            other = copy.deepcopy(start).requires_grad_(True)
            align(train, other, first.matrix, first.shift, 0.02)
            at = polish(train, other)
            if (at is None or math.isfinite(at.value)) and (
                held.at_potential(other, probes).value < held.at_potential(potential, probes).value
            ):
                potential = other
        # In many columns the noise of mini-batches costs more than the quadratic could gain: it is
        # refitted afterwards, where there are enough particles for that. Layers find their
        # directions late there: all stages are made.
        wide = d > DENSE
        kept, patience = ((potential.factor, potential.shift), _STAGES) if wide else ((), _PATIENCE)
        refine(
            train, held, potential, generator, self,
            probes=probes, kept=kept, least=0.1 * self.tol * first.gain, patience=patience,
        )  # fmt: skip
        polish(train, potential)
        return first.or_better(potential, self.tol)
