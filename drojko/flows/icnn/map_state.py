"""A map in training: gradients of an ICNN, drawn towards targets of a few points at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko._numerics import Adam
from drojko.models import flatten_parameters, views_like
from drojko.transport.icnn import ICNN
from drojko.transport.maps import BrenierMap, bures_map, set_affine

__all__ = ["MapState"]


@dataclass
class MapState:
    r"""One step :math:`T_{k+1} = \arg\min_T G(T) + \frac{1}{2\tau} E\|T - T_k\|^2` after another.

    For a functional that acts sample by sample the step has a closed structure: the proximal
    targets of T_k(x) are found point by point, and the map is their projection in L2(P0) onto
    gradients of convex functions, by a few Adam iterations on
    :math:`E\|\nabla\psi(x) - \mathrm{target}(x)\|^2`.

    Attributes
    ----------
    potential : ICNN
        Its parameters are views of ``flat``.
    flat, adam : Tensor, Adam
        All parameters as one vector, and the moments of their gradient.
    centre, scale : Tensor of shape (d,), float
        T(x) = centre + scale grad psi((x - centre) / scale).
    step : int
        Proximal steps so far.
    residual : float
        Mean squared distance from the last step's targets, before its last iteration; in the
        units of the points squared.

    Examples
    --------
    >>> gen = torch.Generator().manual_seed(0)
    >>> x = torch.randn(200, 2, generator=gen, dtype=torch.float64)
    >>> state = MapState.start(x, generator=gen, hidden=(8,))
    >>> for _ in range(50):
    ...     state.advance(x, None, lambda image: x + 1.0, rate=0.05)
    >>> bool((state.image(x, None) - x - 1.0).abs().mean() < 0.1)
    True
    """

    potential: ICNN
    flat: Tensor
    adam: Adam
    centre: Tensor
    scale: float
    step: int = 0
    residual: float = float("inf")

    @staticmethod
    def start(
        points: Tensor,
        context: int = 0,
        *,
        generator: torch.Generator,
        hidden: Sequence[int] = (64, 64),
    ) -> MapState:
        """Near the identity map, conditioned by ``points`` (n, d), with ``context`` columns."""
        centre = points.mean(0)
        scale = float((points - centre).square().mean().sqrt()) or 1.0
        like = {"dtype": points.dtype, "device": points.device}
        potential = ICNN(
            points.shape[1], hidden=hidden, context=context, generator=generator, **like
        )
        flat = flatten_parameters(potential)
        return MapState(potential, flat, Adam.like(flat), centre, scale)

    @torch.no_grad()
    def image(self, points: Tensor, context: Tensor | None) -> Tensor:
        """Image of points under the current map."""
        return BrenierMap(self.potential, self.centre, self.scale).map(points, context)

    def brenier(self) -> BrenierMap:
        """The current map, detached from the state (later steps do not change it)."""
        potential = copy.deepcopy(self.potential).requires_grad_(False)
        return BrenierMap(potential, self.centre.clone(), self.scale)

    @torch.no_grad()
    def make_affine(self, points: Tensor, images: Tensor) -> None:
        """Take the optimal affine map between the Gaussian fits of points and images."""
        x = ((points - self.centre) / self.scale).double()
        z = ((images - self.centre) / self.scale).double()
        ridge = 1e-6 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        covariances = [torch.cov(v.T, correction=0).reshape(ridge.shape) + ridge for v in (x, z)]
        matrix, shift = bures_map(x.mean(0), covariances[0], z.mean(0), covariances[1])
        set_affine(self.potential, matrix, shift)

    def advance(
        self,
        points: Tensor,
        context: Tensor | None,
        target: Callable[[Tensor], Tensor],
        rate: float,
        fits: int = 1,
    ) -> None:
        """One proximal step on the draws ``points``, in place: ``fits`` iterations of Adam.

        ``target`` maps T_k(x) to its proximal targets.
        """
        x = (points - self.centre) / self.scale
        views = views_like(self.adam.gradient, list(self.potential.parameters()))
        goal: Tensor | None = None
        for _ in range(fits):
            out, backward = self.potential.linearise(x, context)
            if goal is None:
                goal = (target(out * self.scale + self.centre) - self.centre) / self.scale
            miss = out - goal
            self.residual = float(miss.square().sum(1).mean()) * self.scale**2
            for view, gradient in zip(views, backward(miss / len(x)), strict=True):
                view.copy_(gradient)
            self.adam.step(self.flat, rate)
        self.step += 1
