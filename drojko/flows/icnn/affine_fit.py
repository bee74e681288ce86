"""The affine part of a map, fitted to convergence: L-BFGS with the movement's own metric."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drojko._driver import Status, nested
from drojko.flows.icnn.map_problem import Evaluated, FittedMap, MapProblem
from drojko.transport.icnn import ICNN
from drojko.transport.jet import log_det
from drojko.transport.maps import AffineMap, BrenierMap

__all__ = ["AffineFit", "AffineStart", "AffineState"]

_MEMORY = 12
_STEPS = 100
_EXACT = 1e-6  # share of the variance of dF/drho at which an affine map counts as the optimum
_SMALLEST = 2e-4  # eigenvalue of M: the potential's own strong convexity is 1e-4


@dataclass(frozen=True, eq=False)
class AffineState:
    """T(x) = M x + b + a r(x) in the potential's coordinates, with its value and gradient."""

    point: Tensor
    at: Evaluated
    gradient: Tensor
    pairs: tuple[tuple[Tensor, Tensor, float], ...] = ()
    slope: float = math.inf  # what the last step promised to gain
    gained: float = math.inf
    done: bool = False


@dataclass(frozen=True, eq=False)
class AffineFit:
    r"""Minimise J over x -> Mx + b + a r(x): M symmetric, b, and the share a >= 0 of a residue.

    The residue (hidden layers' gradient r (n, d) and Jacobian R (n, d, d)) is held fixed: an
    evaluation needs no pass through the network. The first metric of L-BFGS is that of the
    movement, M -> (MS + SM)/2 with S the particles' covariance, which is exact for potentials
    of constant curvature.
    """

    problem: MapProblem
    basis: Tensor
    spread: Tensor
    residue: tuple[Tensor, Tensor] | None = None
    tol: float = 1e-10

    @staticmethod
    def of(problem: MapProblem, residue: tuple[Tensor, Tensor] | None = None) -> AffineFit:
        """A fit on the problem's particles."""
        x = problem.inner
        second = (problem.particles.w.unsqueeze(1) * x).T @ x
        values, vectors = torch.linalg.eigh(second)
        floor = 1e-12 * float(values.max()) or 1.0
        return AffineFit(problem, vectors, values.clamp_min(floor), residue)

    @property
    def dim(self) -> int:
        """Number of columns d."""
        return self.problem.particles.x.shape[1]

    def init(self, problem: tuple[Tensor, Tensor, float]) -> AffineState:
        """State at (M, b, a)."""
        matrix, shift, share = problem
        point = torch.cat([matrix.reshape(-1), shift, shift.new_tensor([share])])
        at, gradient = self._evaluate(point)
        return AffineState(point, at, gradient)

    def finite(self, state: AffineState) -> bool:
        """Whether the value is a number."""
        return state.at.finite

    def parts(self, point: Tensor) -> tuple[Tensor, Tensor, float]:
        """M, b and a of a flat point."""
        d = self.dim
        return point[: d * d].view(d, d), point[d * d : d * d + d], float(point[-1])

    def _evaluate(self, point: Tensor) -> tuple[Evaluated, Tensor]:
        matrix, shift, share = self.parts(point)
        problem, x = self.problem, self.problem.inner
        out = torch.addmm(shift, x, matrix)
        hessian = matrix.unsqueeze(0)
        if self.residue is not None:
            out = out + share * self.residue[0]
            hessian = hessian + share * self.residue[1]
        if problem.dense:
            value, inverse = log_det(hessian)
        else:
            value, inverse = x.new_zeros(1), None
        at = problem.evaluate(out * problem.scale + problem.centre, value.expand(len(x)))
        force = at.d_image * problem.scale
        d_matrix = x.T @ force
        d_share = x.new_zeros(1)
        if inverse is not None:
            c = at.d_log_det
            if self.residue is None:
                d_matrix = d_matrix + float(c.sum()) * (inverse[0].T @ inverse[0])
            else:
                precision = inverse.transpose(1, 2) @ inverse
                d_matrix = d_matrix + torch.einsum("n,nij->ij", c, precision)
                d_share = torch.einsum("n,nij,nij->", c, precision, self.residue[1]).view(1)
        if self.residue is not None:
            d_share = d_share + (force * self.residue[0]).sum()
        d_matrix = 0.5 * (d_matrix + d_matrix.T)
        return at, torch.cat([d_matrix.reshape(-1), force.sum(0), d_share])

    def _metric(self, vector: Tensor) -> Tensor:
        """The inverse metric: Lyapunov's equation in the eigenbasis of S."""
        d = self.dim
        basis, spread = self.basis, self.spread
        matrix = basis.T @ vector[: d * d].view(d, d) @ basis
        matrix = matrix / (0.5 * (spread.unsqueeze(0) + spread.unsqueeze(1)))
        matrix = basis @ matrix @ basis.T
        return torch.cat([matrix.reshape(-1), vector[d * d :]])

    def _direction(self, state: AffineState) -> Tensor:
        q = state.gradient.clone()
        alphas = []
        for s, y, rho in reversed(state.pairs):
            alpha = rho * float(s @ q)
            alphas.append(alpha)
            q = q - alpha * y
        if state.pairs:
            s, y, _ = state.pairs[-1]
            q = self._metric(q) * (float(s @ y) / float(y @ self._metric(y)))
        else:
            curvature = 0.0 if math.isinf(self.problem.tau) else 1.0 / self.problem.tau
            q = self._metric(q) / (curvature * self.problem.scale**2 or 1.0)
        for (s, y, rho), alpha in zip(state.pairs, reversed(alphas), strict=True):
            q = q + (alpha - rho * float(y @ q)) * s
        return -q

    def _allowed(self, point: Tensor) -> bool:
        matrix, _, share = self.parts(point)
        if share < 0.0 or not bool(torch.isfinite(point).all()):
            return False
        eye = torch.eye(self.dim, dtype=matrix.dtype, device=matrix.device)
        return int(torch.linalg.cholesky_ex(matrix - _SMALLEST * eye).info) == 0

    def step(self, state: AffineState) -> AffineState:
        """One L-BFGS step with backtracking; ``done`` where no step gains."""
        direction = self._direction(state)
        slope = float(direction @ state.gradient)
        if not slope < 0.0:
            direction = -self._metric(state.gradient)
            slope = float(direction @ state.gradient)
            state = replace(state, pairs=())
        if slope == 0.0:
            return replace(state, done=True, slope=0.0, gained=0.0)
        length = 1.0
        for _ in range(40):
            point = state.point + length * direction
            if self._allowed(point):
                at, gradient = self._evaluate(point)
                if at.finite and at.value <= state.at.value + 1e-4 * length * slope:
                    break
            length *= 0.5
        else:
            if state.pairs:  # forget the curvature and try the gradient once
                return replace(state, pairs=(), slope=slope, gained=math.inf)
            return replace(state, done=True, slope=slope, gained=0.0)
        s, y = point - state.point, gradient - state.gradient
        product = float(s @ y)
        pairs = state.pairs
        if product > 1e-12 * float(s.norm() * y.norm()):
            pairs = (*pairs, (s, y, 1.0 / product))[-_MEMORY:]
        return AffineState(point, at, gradient, pairs, slope, state.at.value - at.value)

    def terminate(self, state: AffineState) -> Status | None:
        """Stop where the next step promises less than ``tol`` of the value's own scale."""
        scale = abs(state.at.value) + abs(state.at.energy) + 1e-300
        if state.done or max(state.gained, 0.5 * abs(state.slope)) <= self.tol * scale:
            return Status.CONVERGED
        return None


@dataclass(frozen=True, eq=False)
class AffineStart:
    """The best affine map of a step, which networks have to beat.

    ``train`` and ``held`` are the problems with their functionals held there, ``gain`` is what
    the map gains over staying, on ``held``; ``matrix`` and ``shift`` are M and b in the
    potential's coordinates.
    """

    train: MapProblem
    held: MapProblem
    matrix: Tensor
    shift: Tensor
    fitted: FittedMap
    gain: float

    @staticmethod
    def of(train: MapProblem, held: MapProblem, potential: ICNN | None = None) -> AffineStart:
        """Fit it on ``train``; ``potential`` is kept for the step after."""
        like = train.particles.x
        d = like.shape[1]
        matrix, shift = torch.eye(d).to(like), torch.zeros(d).to(like)
        image, problem = like, train
        for _ in range(5 if train.functional.majorised else 1):
            problem = train.frozen(image)
            fit = AffineFit.of(problem)
            state = nested(fit, fit.init((matrix, shift, 0.0)), max_iter=_STEPS).state
            matrix, shift, _ = fit.parts(state.point)
            image = state.at.image
        offset = train.centre + train.scale * shift - matrix @ train.centre
        affine = AffineMap(matrix.clone(), offset)
        x = held.particles.x
        images, log_det = affine.map(x), affine.log_abs_det_jacobian(x)
        train, held = train.frozen(image), held.frozen(images)
        at = held.evaluate(images, log_det)
        still = held.evaluate(x, held.particles.log_density.new_zeros(()).expand(len(x)))
        fitted = FittedMap(affine, potential, state.at, at, False)
        return AffineStart(train, held, matrix, shift, fitted, max(still.value - at.value, 0.0))

    @property
    def optimal(self) -> bool:
        """Whether no other map can gain."""
        affine: Any = self.fitted.map
        return self.train.affine_gap(self.fitted.train, affine) <= _EXACT

    def refined(self, potential: Any, train: Evaluated, held: Evaluated) -> FittedMap:
        """The gradient of a trained potential in the place of the affine map."""
        centre, scale = self.train.centre.clone(), self.train.scale
        own = copy.deepcopy(potential).requires_grad_(False)
        return FittedMap(BrenierMap(own, centre, scale), potential, train, held, True)
