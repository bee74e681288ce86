"""The semi-dual scheme: flows towards a target that is known by samples only."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._numerics import standard_error
from drojko._random import spawn
from drojko._settings import check_settings
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows.functionals.base import Functional
from drojko.flows.functionals.divergence_to import Conjugate, conjugate_named, split
from drojko.flows.particles import ParticleMeasure, Particles, draw_particles
from drojko.flows.result import FlowSolver, Steps
from drojko.flows.semidual.nets import (
    Cloud,
    Critic,
    Phase,
    WholeMap,
    affine_step,
    gaussian_log_ratio,
)
from drojko.measures._arrays import queries
from drojko.measures.base import Measure
from drojko.models import Learner

__all__ = ["SemiDualScheme", "SemiDualState", "SemiDualStep"]


@dataclass(eq=False, repr=False)
class SemiDualStep(ParticleMeasure):
    r"""rho_k = T_k#rho_0 with one network T_k from the start, and d rho_k / d nu from the critic.

    ``sample`` pushes fresh draws of the initial measure through one network. There is no
    ``log_prob``: T_k has no inverse in closed form, and the target no density. `log_ratio` is
    what is known.

    Parameters
    ----------
    base : Measure
        rho_0.
    map : WholeMap
        T_k.
    critic : Critic
        w, of which log_ratio and potential are functions.
    conjugate : Conjugate
        Of the divergence.
    held : Particles, default=None
        ``particles`` (n, d) and ``weights`` (n,), the last ones of the step.

    Examples
    --------
    >>> import torch
    >>> from drojko.flows import JKOFlow, SemiDualScheme
    >>> from drojko.flows.functionals import DivergenceTo
    >>> from drojko.measures import Gaussian
    >>> flow = JKOFlow(DivergenceTo(Gaussian([1.0], [[1.0]])), SemiDualScheme(), step_size=1.0)
    >>> step = flow.run(Gaussian([0.0], [[1.0]]), 1, random_state=0).measures[-1]
    >>> step.sample(3, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1])
    >>> [round(v, 1) for v in step.log_ratio([[0.0], [2.0]]).tolist()]   # N(1/2, 1) to N(1, 1)
    [0.4, -0.6]
    """

    base: Measure
    map: WholeMap
    critic: Critic
    conjugate: Conjugate
    held: Particles | None = None

    def in_units(self, base: Measure, centre: Tensor, unit: Tensor) -> SemiDualStep:
        """The same step for x = centre + unit * z, of which ``base`` is the initial measure."""
        held = self.held and replace(self.held, x=centre + unit * self.held.x)
        nets = self.map.in_units(centre, unit), self.critic.in_units(centre, unit)
        return SemiDualStep(base, *nets, self.conjugate, held)

    def log_ratio(self, x: Any) -> Tensor:
        """Log d rho_k / d nu at the rows of x, shape (n,), as the critic learned it."""
        return self.conjugate.ratio(self.critic.value(queries(x, self.dim).double())).log()

    def potential(self, x: Any) -> Tensor:
        """The critic u at the rows of x, shape (n,): the derivative of D_f in rho."""
        return self.conjugate.potential(self.critic.value(queries(x, self.dim).double()))[0]

    def log_prob(self, x: Any) -> Tensor:
        """Raise `UnsupportedError`: samples are all that is known, of rho_k as of its target."""
        raise UnsupportedError(
            "a semi-dual flow has no density: its target is known by samples, and its map has "
            "neither an inverse nor a Jacobian determinant in closed form. Use log_ratio(x), the "
            "log density relative to the target (add the target's own log_prob where it has one), "
            "or ICNNScheme with KLDivergence for a flow with densities"
        )


#: Mean of the ratio over the target, which is 1 at the optimum: beyond these a flow warns.
_NORMALISER = (0.8, 1.25)
_LOGISTIC = conjugate_named("jensen-shannon")


@dataclass(frozen=True, eq=False, kw_only=True)
class SemiDualState(Steps):
    """Two networks, their optimisers, and the target: nothing else grows with the steps."""

    map: WholeMap
    critic: Critic
    learners: tuple[Learner, Learner]
    target: Particles
    held: Particles
    generator: torch.Generator
    refined: bool = False


@dataclass(frozen=True)
class SemiDualScheme:
    r"""JKO steps of an f-divergence to samples, as a game of a map and a potential.

    .. math:: T_k = \arg\min_T \sup_u\; E\left[\frac{|T(x) - T_{k-1}(x)|^2}{2h} + u(T(x))\right]
        - E_\nu f^*(u(y)), \qquad x \sim \rho_0

    T_k is the whole map from the start: beside it only T_{k-1} is kept, and every step costs the
    same. At the optimum T_k - T_{k-1} = -h grad u(T_k), and d rho_k / d nu = f*'(u), whose mean
    over nu is 1: the column ``normaliser`` of the history. For `DivergenceTo` functionals, scaled,
    with terms that act point by point (`PotentialEnergy`) added.

    Parameters
    ----------
    hidden, critic_hidden : sequence of int
        Widths of the map's network, and of the critic's; None: the same.
    iterations, first : int
        Of a step, and of the first step; None: twice as many. 0: Gaussian fits only.
    batch_size, target_batch : int
        Base points per map step, and target points per critic step (a large one lowers the
        variance of E_nu f*).
    map_steps : int
        Map steps per critic step.
    rate, critic_rate : float
        Learning rates, which fall to a twentieth within a step.
    gradient_penalty : float
        Weight of ``E_nu |grad w|^2 / 2`` in the critic's loss, gradients per standard deviation.
    noise : float
        Standard deviation of noise on the target in the critic's loss, in units of the target's
        spread; divided by the number of the step. For targets on lines or points, and of many small
        modes, which are then found from coarse to fine.
    n_particles : int
        Base points drawn for each step, as many of a target that can be drawn from; half as many
        are kept apart to judge by.
    gaussian : bool
        Start each step of a Kullback-Leibler flow from the exact step between Gaussian fits, and
        the critic of a divergence of log ratios from theirs.
    tol : float
        Networks are trained once the critic finds more than this (in the units of f) beyond the
        Gaussian fits on points kept apart; 0: always.
    decay : (float, float)
        Of Adam's moments.
    critic : {"semi-dual", "logistic"}
        What the critic minimises: the game's own value, or, for divergences whose critic is the
        log ratio, the logistic loss between both samples. Its optimum is the same and its
        gradients are bounded, which helps where the flow is still far from the target.
    frequency : float
        Scale of the first layers: about 3 for targets of many modes, small beside their distance.

    Notes
    -----
    ``step_size`` h is that of `ICNNScheme`: squared distances are summed over the d columns, not
    averaged. A step H of an averaged cost is h = H d (`step_of_averaged`; the history has both).
    The anchor T_{k-1}(x) is the same base point's: there is no second source of noise. Source:
    Choi, Choi, Kang (2024, arXiv 2402.05443).

    Examples
    --------
    From N(0, 1) towards samples of N(2, 4); the exact chain has mean 0.4198, variance 2.0170:

    >>> from drojko.flows import JKOFlow, SemiDualScheme
    >>> from drojko.flows.functionals import DivergenceTo
    >>> from drojko.measures import Gaussian
    >>> F = DivergenceTo(Gaussian([2.0], [[4.0]]))
    >>> flow = JKOFlow(F, SemiDualScheme(iterations=0), step_size=0.5)
    >>> result = flow.run(Gaussian([0.0], [[1.0]]), 2, random_state=0)
    >>> x = result.measures[-1].sample(100_000, torch.Generator().manual_seed(0))
    >>> round(float(x.mean()), 1), round(float(x.var()), 1)
    (0.4, 2.0)
    """

    hidden: Sequence[int] = (64, 64)
    critic_hidden: Sequence[int] | None = None
    iterations: int = 600
    first: int | None = None
    batch_size: int = 512
    target_batch: int = 1024
    map_steps: int = 2
    rate: float = 2e-3
    critic_rate: float = 4e-3
    gradient_penalty: float = 0.0
    noise: float = 0.0
    n_particles: int = 10_000
    gaussian: bool = True
    tol: float = 0.01
    decay: tuple[float, float] = (0.9, 0.999)
    critic: str = "semi-dual"
    frequency: float = 1.0

    def validate(self) -> None:
        """Raise `InvalidDataError` for a setting out of range."""
        if self.critic not in ("semi-dual", "logistic"):
            raise InvalidDataError(
                f"SemiDualScheme: critic={self.critic!r}; choose 'semi-dual' or 'logistic'"
            )
        check_settings(
            self,
            whole={
                "iterations": 0, "batch_size": 2, "target_batch": 2, "map_steps": 1,
                "n_particles": 10, "first": 0,
            },
            widths=("hidden", "critic_hidden"),
            least=dict.fromkeys(
                ("rate", "critic_rate", "gradient_penalty", "noise", "tol", "frequency"), 0.0
            ),
            optional=("first", "critic_hidden"),
        )  # fmt: skip

    @staticmethod
    def step_of_averaged(step: float, dim: int) -> float:
        """H = step * dim: a step whose cost averages over columns, in the units used here.

        >>> SemiDualScheme.step_of_averaged(0.1, 4)
        0.4
        """
        return step * dim

    # -- what JKOFlow calls ------------------------------------------------------------------

    def solver(self, functional: Functional, sizes: Sequence[float]) -> FlowSolver:
        """What runs the flow of ``functional`` with step sizes ``sizes``; for `JKOFlow.run`."""
        self.validate()
        return _Solver(self, functional, tuple(sizes))


@dataclass(frozen=True, eq=False)
class _Solver(FlowSolver):
    """`SemiDualScheme` on one flow: the functions that the driver calls."""

    scheme: SemiDualScheme
    functional: Functional
    sizes: tuple[float, ...]

    def init(self, problem: tuple[Measure, torch.Generator]) -> SemiDualState:
        """Identity map, zero critic, and the target's points."""
        s, (initial, gen) = self.scheme, problem
        _, divergence, _ = split(self.functional)
        target, held = _target_points(divergence.target, s.n_particles, gen)
        start = draw_particles(initial, s.n_particles, spawn(gen))
        _check(start, target)
        mean, covariance = target.mean_and_covariance()
        spread = covariance.diagonal().sqrt()
        own, own_covariance = start.mean_and_covariance()
        own_spread = own_covariance.diagonal().sqrt()
        own_spread = own_spread.clamp_min(1e-6 * float(spread.max()))
        scale = float(spread.square().mean().sqrt())
        whole = WholeMap(own, own_spread, mean, scale, tuple(s.hidden), s.frequency, spawn(gen))
        widths = s.hidden if s.critic_hidden is None else s.critic_hidden
        critic = Critic(mean, spread, tuple(widths), s.frequency, spawn(gen))
        learners = Learner(whole, s.decay), Learner(critic, s.decay)
        return SemiDualState(
            measures=(initial,),
            map=whole,
            critic=critic,
            learners=learners,
            target=target,
            held=held,
            generator=gen,
        )

    def step(self, state: SemiDualState) -> SemiDualState:
        """One phase; the state given stays as it is, but for its optimisers' moments."""
        began, s, h = time.perf_counter(), self.scheme, self.sizes[state.step]
        gen, initial = spawn(state.generator), state.measures[0]
        factor, divergence, rest = split(self.functional)
        conjugate = conjugate_named(divergence.kind)
        base = draw_particles(initial, s.n_particles, spawn(gen))
        apart = draw_particles(initial, max(2, s.n_particles // 2), spawn(gen))
        target, held = state.target, state.held
        if state.step and not hasattr(divergence.target, "atoms_"):
            target, held = _target_points(divergence.target, s.n_particles, spawn(gen))
        x, near = state.map.map(base.x), state.map.map(apart.x)

        phase = Phase(
            s, state.map, state.critic, state.learners, conjugate, factor, rest, h,
            Cloud(state.map.inner(base.x), base.w), x.float(),
            Cloud(target.x.float(), target.w), gen,
            s.noise / (state.step + 1) * float(state.critic.spread.mean()),
        )  # fmt: skip
        exact = s.gaussian and conjugate.name == "kl" and rest is None
        if exact:
            moved = Particles(x, base.w, base.w)
            affine = affine_step(
                *moved.mean_and_covariance(), *target.mean_and_covariance(), h * factor
            )
            state.map.compose(*affine)
        if s.gaussian and conjugate.logarithmic:
            moved = Particles(state.map.map(base.x), base.w, base.w)
            fits = *moved.mean_and_covariance(), *target.mean_and_covariance()
            state.critic.fix(*gaussian_log_ratio(*fits))
        refined = s.iterations > 0 and self._refine(state, phase, exact, apart, held)
        image, held_image = state.map.map(base.x), state.map.map(apart.x)
        numbers = {
            "step_size": h,
            "averaged_step": h / image.shape[1],
            **_measure(phase, apart, near, held_image, held, h),
            "refined": float(refined),
            "rows": float(phase.rows),
        }
        frozen = copy.deepcopy(state.map), copy.deepcopy(state.critic)
        measure = SemiDualStep(initial, *frozen, conjugate, Particles(image, base.w, base.w))
        own = {"target": target, "held": held, "refined": refined}
        return state.after(measure, h, began, numbers, **own)

    def _refine(
        self, state: SemiDualState, phase: Phase, exact: bool, apart: Particles, held: Particles
    ) -> bool:
        s = self.scheme
        iterations = s.iterations if state.step else s.first or 2 * s.iterations
        if exact and s.tol > 0.0 and not state.refined:
            before = [learner.flat.clone() for learner in state.learners]
            # Bounded: no ratio can mislead it.
            phase.train(max(100, s.iterations // 4), map_steps=0, loss=_LOGISTIC)
            gain, error = _gain(phase, state.map.map(apart.x), apart.w, held)
            if gain <= s.tol + 2.0 * error:
                for learner, flat in zip(state.learners, before, strict=True):
                    learner.flat.copy_(flat)
                return False
        bounded = s.critic == "logistic" and phase.conjugate.logarithmic
        phase.train(iterations, s.map_steps, _LOGISTIC if bounded else phase.conjugate)
        return True

    def advice(self, columns: dict[str, np.ndarray]) -> str:
        """Say so where the learned ratio has not the mean that it ought to have."""
        found = columns.get("normaliser", np.empty(0))
        if not len(found) or _NORMALISER[0] <= found[-1] <= _NORMALISER[1]:
            return ""
        return (
            f"SemiDualScheme: the learned ratio has mean {found[-1]:.3g} over the target in the "
            "last step, where 1 is exact: the critic has not converged, or the flow is still too "
            "far from the target for its samples. Take more iterations, a larger target_batch, a "
            "smaller step_size with more steps, or a wider initial measure"
        )

    def finite(self, state: SemiDualState) -> bool:
        return all(bool(torch.isfinite(learner.flat).all()) for learner in state.learners)


def _target_points(
    target: Measure, n: int, generator: torch.Generator
) -> tuple[Particles, Particles]:
    """Points to train on and points kept apart; a fifth of the atoms where there are enough."""
    if not hasattr(target, "atoms_"):
        first = draw_particles(target, n, spawn(generator))
        return first, draw_particles(target, max(2, n // 2), spawn(generator))
    x, w = target.points(n, generator)
    atoms = Particles(x, w, w)
    if len(x) < 100:
        return atoms, atoms
    order, cut = torch.randperm(len(x), generator=generator), len(x) // 5
    return atoms.take(order[cut:]), atoms.take(order[:cut])


def _check(start: Particles, target: Particles) -> None:
    if start.x.shape[1] != target.x.shape[1]:
        raise InvalidDataError(
            f"the initial measure has {start.x.shape[1]} columns and the target "
            f"{target.x.shape[1]}; both need the same"
        )
    covariance = target.mean_and_covariance()[1]
    flat = covariance.diagonal() <= 1e-12 * covariance.diagonal().max()
    if bool(flat.any()):
        raise InvalidDataError(
            f"column {int(flat.nonzero()[0])} of the target is constant on its samples: every "
            "measure of another kind is infinitely far from it; drop the column, or add noise"
        )
    scaled = covariance / (covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt()))
    if float(torch.linalg.eigvalsh(scaled).min()) <= 1e-9:
        raise InvalidDataError(
            f"the target's {len(target.x)} samples lie in a subspace of their "
            f"{target.x.shape[1]} columns (correlation matrix is singular): give more samples, "
            "drop columns that others determine, or add noise"
        )
    if not bool(torch.isfinite(start.x).all() & torch.isfinite(target.x).all()):
        raise InvalidDataError("the initial measure or the target draws NaN or infinity")


def _gain(phase: Phase, x: Tensor, w: Tensor, held: Particles) -> tuple[float, float]:
    """What the trained critic finds beyond its fixed part on points kept apart; its error."""
    gains, errors = [], []
    terms = (x, w, _LOGISTIC.potential), (held.x, held.w, _LOGISTIC.conjugate)
    for points, mass, term in terms:
        change = term(phase.critic.value(points))[0] - term(phase.critic.fixed_value(points))[0]
        gains.append(float(mass @ change))
        errors.append(standard_error(change, mass))
    return gains[0] - gains[1], math.hypot(*errors)


def _measure(
    phase: Phase, apart: Particles, near: Tensor, image: Tensor, held: Particles, h: float
) -> dict[str, float]:
    """Value, movement and residuals of a phase on points that it was not trained on."""
    c = phase.conjugate
    on_image, on_target = phase.critic.value(image), phase.critic.value(held.x)
    ratio = c.ratio(on_target)
    divergence = float(apart.w @ c.potential(on_image)[0] - held.w @ c.conjugate(on_target)[0])
    energy = phase.factor * divergence
    move = float(apart.w @ (image - near).square().sum(1))
    w, slope = phase.critic.linearise(image.float())
    force = slope(phase.factor * c.potential(w)[1]).double()
    if phase.rest is not None:
        rest = phase.rest.evaluate(image, torch.zeros_like(apart.w), apart.w)
        energy, force = energy + rest.value, force + rest.point / apart.w.unsqueeze(1)
    miss = (image - near) / h + force
    return {
        "energy": energy,
        "movement": move / (2.0 * h),
        "normaliser": float(held.w @ ratio),
        "effective_sample_size": float((held.w @ ratio) ** 2 / (held.w @ ratio.square())),
        "residual": math.sqrt(float(apart.w @ miss.square().sum(1)))
        / max(math.sqrt(move) / h if math.isfinite(h) else 1.0, 1e-300),
    }
