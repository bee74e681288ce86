"""The ICNN scheme: one proximal step over maps, solved in the class of gradients of ICNNs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drojko._adam import Adam
from drojko.exceptions import InvalidDataError
from drojko.flows.icnn.fit_map import FittedMap, fit_map
from drojko.flows.icnn.map_problem import MapProblem
from drojko.flows.icnn.refinement import DENSE
from drojko.models import flatten_parameters, views_like
from drojko.transport.icnn import ICNN
from drojko.transport.initialise import bures_map, set_affine
from drojko.transport.maps import BrenierMap
from drojko.transport.stochastic_jet import Probes

__all__ = ["ICNNScheme", "MapState"]


@dataclass
class MapState:
    """State of the flow: the potential, its flat parameters and the optimiser's moments."""

    potential: ICNN
    flat: Tensor
    adam: Adam
    centre: Tensor
    scale: float
    step: int = 0
    residual: float = float("inf")

    @torch.no_grad()
    def image(self, points: Tensor, context: Tensor | None) -> Tensor:
        """Image of points under the current map."""
        return BrenierMap(self.potential, self.centre, self.scale).map(points, context)

    def brenier(self) -> BrenierMap:
        """The current map, detached from the state (later steps do not change it)."""
        potential = copy.deepcopy(self.potential)
        for p in potential.parameters():
            p.data = p.data.clone()
            p.requires_grad_(False)
        return BrenierMap(potential, self.centre.clone(), self.scale)


@dataclass(frozen=True)
class ICNNScheme:
    r"""One step :math:`T_{k+1} = \arg\min_T G(T) + \frac{1}{2\tau} E\|T - T_k\|^2` over ICNN maps.

    For a functional that acts sample by sample the step has a closed structure: the proximal
    targets of T_k(x) are found point by point, and the map is their projection in L2(P0) onto
    gradients of convex functions, by a few Adam iterations on
    :math:`E\|\nabla\psi(x) - \mathrm{target}(x)\|^2`.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the potential.
    fits : int
        Adam iterations per proximal step, each on the step's own draws.
    learning_rate : float
        Start of Adam's rate; it falls to a twentieth over the flow (cosine).
    n_particles : int
        Of a gradient flow (`JKOFlow`): particles that its maps are trained on; half as many are
        kept apart to judge them.
    iterations, batch_size, rate : int, int, float
        Of a gradient flow: most Adam iterations per step, particles in each, and their first
        learning rate. 0 iterations: affine maps only.
    tol : float
        A network is kept where it gains more than this share of what the affine map gains.
    log_det : {"auto", "exact", "stochastic"}
        Of a gradient flow: how the Hessians' log-determinants enter the training of a map.
        "stochastic": by products with random signs and Lanczos steps (`stochastic_jet`). "auto":
        that above 32 columns. What counts in the end, whether a network is kept, the energy and
        the densities of the particles, is exact.
    probes : Probes
        Of the stochastic form.

    Notes
    -----
    `step` is for functionals that act sample by sample (the worst case of a transport set);
    `fit_map` for those that know the density, through log det DT. There the quadratic part of
    the potential is solved for exactly before, and again after, the layers are trained.
    """

    hidden: Sequence[int] = (64, 64)
    fits: int = 4
    learning_rate: float = 1e-2
    n_particles: int = 5000
    iterations: int = 150
    batch_size: int = 128
    rate: float = 0.1
    tol: float = 1e-3
    log_det: str = "auto"
    probes: Probes = field(default_factory=Probes)

    def fit_map(
        self,
        train: MapProblem,
        held: MapProblem,
        generator: torch.Generator,
        start: ICNN | None = None,
    ) -> FittedMap:
        """The map that minimises J on ``train``, judged on ``held``; see `fit_map`."""
        if self.log_det not in ("auto", "exact", "stochastic"):
            raise InvalidDataError(
                f"ICNNScheme got log_det={self.log_det!r}; expected auto, exact or stochastic"
            )
        wide = train.particles.x.shape[1] > DENSE
        rough = self.log_det == "stochastic" or (self.log_det == "auto" and wide)
        return fit_map(
            train,
            held,
            generator,
            hidden=tuple(self.hidden),
            iterations=self.iterations,
            batch_size=self.batch_size,
            rate=self.rate,
            tol=self.tol,
            start=start,
            probes=self.probes if rough and train.dense else None,
        )

    def init(
        self,
        points: Tensor,
        context: int,
        generator: torch.Generator,
        potential: ICNN | None = None,
    ) -> MapState:
        """State at the identity map (or at a given potential), conditioned by ``points``."""
        centre = points.mean(0)
        scale = float((points - centre).square().mean().sqrt()) or 1.0
        if potential is None:
            potential = ICNN(
                points.shape[1],
                hidden=self.hidden,
                context=context,
                generator=generator,
                dtype=points.dtype,
                device=points.device,
            )
        flat = flatten_parameters(potential)
        return MapState(potential, flat, Adam.like(flat), centre, scale)

    @torch.no_grad()
    def start_affine(self, state: MapState, points: Tensor, images: Tensor) -> None:
        """Start at the optimal affine map between the Gaussian fits of points and images."""
        x = ((points - state.centre) / state.scale).double()
        z = ((images - state.centre) / state.scale).double()
        ridge = 1e-6 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        covariances = [torch.cov(v.T, correction=0).reshape(ridge.shape) + ridge for v in (x, z)]
        matrix, shift = bures_map(x.mean(0), covariances[0], z.mean(0), covariances[1])
        set_affine(state.potential, matrix, shift)

    def step(
        self,
        state: MapState,
        points: Tensor,
        context: Tensor | None,
        target: Callable[[Tensor], Tensor],
        rate: float,
    ) -> MapState:
        """One proximal step on the draws ``points``; ``target`` maps T_k(x) to its targets."""
        x = (points - state.centre) / state.scale
        views = views_like(state.adam.gradient, list(state.potential.parameters()))
        goal: Tensor | None = None
        residual = 0.0
        for _ in range(self.fits):
            out, backward = state.potential.linearise(x, context)
            if goal is None:
                goal = (target(out * state.scale + state.centre) - state.centre) / state.scale
            miss = out - goal
            residual = float(miss.square().sum(1).mean()) * state.scale**2
            for view, gradient in zip(views, backward(miss / len(x)), strict=True):
                view.copy_(gradient)
            state.adam.step(state.flat, rate)
        state.step += 1
        state.residual = residual
        return state
