"""The importance-corrected scheme: velocity fields for JKO steps, rejection steps after them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import spawn
from drojko._settings import check_settings
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows.functionals import Entropy, KLDivergence, PotentialEnergy
from drojko.flows.functionals.base import Functional
from drojko.flows.importance.measure import ImportanceMeasure, calibration_draws
from drojko.flows.importance.rejection import LEAST, RejectionBlock, effective_sample_size
from drojko.flows.importance.velocity import fit_velocity, log_target
from drojko.flows.result import FlowSolver, Steps
from drojko.measures.base import Measure

__all__ = ["ImportanceCorrectedScheme", "ImportanceState"]

_HELD = 10  # one particle in so many is kept apart
_RETRIES, _SLOWER = 2, 0.25  # of a step that raises the energy, and its rate each time


@dataclass(frozen=True, eq=False, kw_only=True)
class ImportanceState(Steps):
    """Particles of the last measure, with their log density."""

    x: Tensor
    log_density: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class ImportanceCorrectedScheme:
    r"""JKO steps over velocity fields, and rejection steps that no map has to make.

    .. math:: v_k = \arg\min_v E_{\rho_k}\Big[-\log g(z(1)) - \int_0^1 \operatorname{div} v\,dt
        + \frac{1}{2h} \int_0^1 |v|^2 dt\Big], \qquad z' = v(z, t),\; z(0) = x

    for the flow of F(rho) = KL(rho | g), g known up to its constant. A map cannot carry mass
    between separate modes; the rejection steps that follow do (`RejectionBlock`), and the density
    stays known through all of them.

    Parameters
    ----------
    width : int
        Of the two hidden layers of each field (`VelocityFlow`: exact divergence in any dimension).
    iterations, batch_size, rate : int, int, float
        Adam iterations per JKO step, particles in each, first learning rate.
    integration_steps : int
        Runge-Kutta steps while training; doubled afterwards until the integral of the divergence
        is the log determinant of the computed map up to ``tol``.
    n_particles : int
        Particles that fields are trained on; one in 10 is kept apart.
    rejections : None, int or sequence, default=None
        Rejection steps after the last JKO step, or a sequence with those after each one. None: as
        many as bring the effective sample size to 0.999.
    resampled : float
        Share r of the draws that a rejection step draws again.
    most_draws : float
        Cap of a block's draws per sample: rejection steps end before one could exceed it.
    n_calibration : int
        Draws that bounds and normalisers of a block are computed on; its error falls with them.
    least_ess : float
        Effective sample size at the end of the flow below which it warns, unless ``rejections``
        are 0: they aim at 0.999, and what stays far below misses some of the target.
    tol : float
        Error of log densities per field, root mean square.

    Notes
    -----
    Step sizes are those of the flow, h; the source writes tau = 2 h. It grows them by 4 per step.
    Source: Hertrich, Gruhlke (2025, arXiv 2407.20444). There a rejection step asks the model below
    it for each replacement, so that K steps cost (1 + r)^K draws per sample; here K steps in a
    row are one test, whose cost is capped, and the divergence of the field is exact.

    Examples
    --------
    Two modes, of which the left one gets too little from the flow:

    >>> from drojko.flows import JKOFlow
    >>> from drojko.flows.functionals import KLDivergence
    >>> from drojko.measures import Gaussian, GaussianMixture
    >>> two = GaussianMixture(means=[[-2.0], [1.0]], covariances=[[[0.04]], [[0.04]]])
    >>> scheme = ImportanceCorrectedScheme(width=16, iterations=60, n_particles=4000,
    ...                                    n_calibration=8000)
    >>> flow = JKOFlow(KLDivergence(two.log_prob), scheme, step_size=[0.1, 0.4])
    >>> last = flow.run(Gaussian([0.0], [[1.0]]), 2, random_state=0).measures[-1]
    >>> found = last.evidence(4000, random_state=1)
    >>> found.effective_sample_size > 0.98, abs(found.log_z) < 3 * found.log_z_error
    (True, True)
    """

    width: int = 64
    iterations: int = 300
    batch_size: int = 512
    rate: float = 7e-3
    integration_steps: int = 4
    n_particles: int = 50_000
    rejections: int | Sequence[int | None] | None = None
    resampled: float = 0.2
    most_draws: float = 30.0
    n_calibration: int = 100_000
    least_ess: float = LEAST
    tol: float = 1e-3

    def validate(self, n_steps: int) -> None:
        """Raise InvalidDataError for a setting out of range."""
        check_settings(
            self,
            whole={
                "width": 1, "iterations": 0, "batch_size": 1, "integration_steps": 1,
                "n_particles": 1, "n_calibration": 1,
            },
            least={"least_ess": 0.0},
            above={"rate": 0.0, "tol": 0.0, "most_draws": 1.0},
            shares=("resampled",),
        )  # fmt: skip
        counts: Any = self.rejections
        given = isinstance(counts, Sequence) and not isinstance(counts, str)
        each = [c for c in (counts if given else [counts]) if c is not None]
        if not all(
            isinstance(c, Integral) and not isinstance(c, bool) and int(c) >= 0 for c in each
        ):
            raise InvalidDataError(
                f"rejections={counts!r}; expected None, a number of steps, or one for each JKO step"
            )
        if given and len(counts) < n_steps:
            raise InvalidDataError(f"rejections has {len(counts)} entries for {n_steps} steps")

    def solver(self, functional: Functional, steps: Sequence[float]) -> FlowSolver:
        """What runs the flow of ``functional`` with step sizes ``steps``; for `JKOFlow.run`."""
        self.validate(len(steps))
        return _Solver(self, functional, steps)


def _descends(after: Tensor, before: Tensor) -> bool:
    """Whether E log(g / rho) has risen, up to two standard errors; where it is -inf, anything."""
    change = after - before
    if not bool(torch.isfinite(before).all()):
        return bool(torch.isfinite(after).float().mean() >= torch.isfinite(before).float().mean())
    return float(change.mean()) >= -2.0 * float(change.std()) / math.sqrt(len(change))


class _Solver(FlowSolver):
    """The driver's functions for this scheme."""

    def __init__(
        self, scheme: ImportanceCorrectedScheme, functional: Functional, steps: Sequence[float]
    ) -> None:
        self.scheme, self.steps, self.n_steps = scheme, steps, len(steps)
        self.log_prob, self.factor = target_of(functional)
        counts = scheme.rejections  # after the last step alone, where there is one number
        single = not isinstance(counts, Sequence)
        self.counts = [0] * (self.n_steps - 1) + [counts] if single else counts

    def init(self, problem: tuple[Measure, torch.Generator]) -> ImportanceState:
        initial, gen = problem
        x = initial.sample(max(self.scheme.n_particles, 2 * _HELD), gen)
        try:
            log_density = initial.log_prob(x)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"an importance-corrected flow needs a density to start from: {error}"
            ) from error
        log_target(self.log_prob, x)
        return ImportanceState(measures=(initial,), x=x, log_density=log_density, generator=gen)

    def step(self, state: ImportanceState) -> ImportanceState:
        began, scheme = time.perf_counter(), self.scheme
        h = self.steps[state.step] * self.factor
        held = len(state.x) // _HELD
        measure: Any = state.measures[-1]
        if not state.step:
            measure = ImportanceMeasure(measure, self.log_prob)
        before = log_target(self.log_prob, state.x) - state.log_density
        for attempt in range(1 + _RETRIES):
            rate = scheme.rate * _SLOWER**attempt
            flow, path_energy, integration_error = fit_velocity(
                self.log_prob, state.x[held:], h, state.generator, scheme, rate
            )
            x, grown = flow.to(torch.float32).push(state.x)
            log_density = state.log_density - grown
            u = log_target(self.log_prob, x) - log_density
            if _descends(u[:held], before[:held]):
                measure = replace(measure, stages=(*measure.stages, flow))
                break
        else:  # no field found: stay, and say so in the history
            x, log_density, u = state.x, state.log_density, before
        apart = u[:held]
        numbers = {
            "energy": -float(apart.mean()) * self.factor,
            "training_energy": -float(u[held:].mean()) * self.factor,
            "movement": float((x - state.x)[:held].square().sum(1).mean()) / (2.0 * h),
            "path_energy": path_energy / (2.0 * h),
            "integration_error": integration_error,
            "rejections": 0.0,
            "log_bound": math.nan,
            "effective_sample_size": effective_sample_size(apart),
            "draws_per_sample": measure.draws_per_sample,
        }
        number = self.counts[state.step]
        if number != 0:
            block, own = self._rejections(measure, number, spawn(state.generator))
            numbers |= own
            measure = replace(measure, stages=(*measure.stages, block))
            if state.step < self.n_steps - 1:
                x, log_density = measure.sample_with_log_prob(len(x), state.generator)
        h = self.steps[state.step]
        return state.after(measure, h, began, numbers, x=x, log_density=log_density)

    def _rejections(
        self, measure: ImportanceMeasure, number: int | None, generator: torch.Generator
    ) -> tuple[RejectionBlock, dict[str, float]]:
        scheme = self.scheme
        x, log_density, groups = calibration_draws(measure, scheme.n_calibration, generator)
        u = log_target(self.log_prob, x) - log_density
        block = RejectionBlock.design(
            u, number, scheme.resampled, most_draws=scheme.most_draws, n_groups=groups
        )
        # Fresh draws: those that the block was designed on flatter it.
        fresh = max(scheme.n_calibration // 8, 2000)
        x, log_density = measure.sample_with_log_prob(fresh, generator)
        u = log_target(self.log_prob, x) - log_density
        ratio = block.log_ratio(u)
        mass = ratio.exp() / ratio.exp().sum()
        rest = u - ratio
        energy = -float((mass * torch.where(mass > 0, rest, torch.zeros_like(rest))).sum())
        return block, {
            "energy": energy * self.factor,
            "rejections": float(len(block.steps)),
            "log_bound": block.steps[-1].log_bound if block.steps else math.nan,
            "effective_sample_size": effective_sample_size(rest, mass),
            "draws_per_sample": measure.draws_per_sample * math.exp(block.log_cost),
        }

    def advice(self, columns: dict[str, np.ndarray]) -> str:
        """Say so where the end of the flow is far from its target."""
        scheme, shares = self.scheme, columns["effective_sample_size"]
        complete = len(shares) == self.n_steps
        if not complete or shares[-1] >= scheme.least_ess or self.counts[-1] == 0:
            return ""
        return (
            f"The effective sample size at the end is {shares[-1]:.3g}, and 0.999 was aimed at: "
            f"raise most_draws (now {scheme.most_draws:g}), or take more JKO steps or iterations, "
            "or start from a measure that covers the target."
        )

    def finite(self, state: ImportanceState) -> bool:
        return bool(torch.isfinite(state.x).all())


def target_of(functional: Functional) -> tuple[Callable[[Tensor], Tensor], float]:
    """Log g and kappa with F(rho) = kappa KL(rho | g) up to a constant.

    Raises UnsupportedError for functionals of another form.
    """
    parts = functional.parts()
    factor, term = parts[0]
    if len(parts) == 1 and isinstance(term, KLDivergence) and factor > 0:
        return term.log_prob, factor
    entropy = sum(factor for factor, term in parts if isinstance(term, Entropy))
    rest: Any = [part for part in parts if not isinstance(part[1], Entropy)]
    if entropy > 0 and rest and all(isinstance(term, PotentialEnergy) for _, term in rest):

        def log_prob(z: Tensor) -> Tensor:
            energies = [factor * term.potential(z) for factor, term in rest]
            return torch.stack(energies).sum(0) / -entropy

        return log_prob, entropy
    raise UnsupportedError(
        f"the importance-corrected scheme follows KL(rho | g), as KLDivergence(log_prob) or "
        f"PotentialEnergy(V) + kappa * Entropy(); got {functional!r}. Use ICNNScheme for others"
    )
