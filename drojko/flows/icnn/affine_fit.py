"""The affine part of a map, fitted to convergence: L-BFGS with the movement's own metric."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from drojko._driver import Status
from drojko.exceptions import NonFiniteError
from drojko.flows.icnn.map_problem import Evaluated, FittedMap, MapProblem
from drojko.transport.icnn import ICNN
from drojko.transport.jet import log_det
from drojko.transport.maps import AffineMap, BrenierMap

__all__ = ["AffineFit", "AffineStart"]

_MEMORY = 12
_STEPS = 100
_EXACT = 1e-6  # share of the variance of dF/drho at which an affine map counts as the optimum
_SMALLEST = 2e-4  # eigenvalue of M: the potential's own strong convexity is 1e-4


class AffineFit:
    r"""Minimise J over x -> Mx + b + a r(x): M symmetric, b, and the share a >= 0 of a residue.

    The residue (hidden layers' gradient r (n, d) and Jacobian R (n, d, d)) is held fixed: an
    evaluation needs no pass through the network. The first metric of L-BFGS is that of the
    movement, M -> (MS + SM)/2 with S the particles' covariance, which is exact for potentials
    of constant curvature.
    """

    def __init__(self, problem: MapProblem, residue: tuple[Tensor, Tensor] | None = None) -> None:
        self.problem, self.residue = problem, residue
        x = problem.inner
        values, self.basis = torch.linalg.eigh((problem.particles.w.unsqueeze(1) * x).T @ x)
        self.spread = values.clamp_min(1e-12 * float(values.max()) or 1.0)

    def parts(self, point: Tensor) -> tuple[Tensor, Tensor, float]:
        """M, b and a of a flat point."""
        d = len(self.spread)
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
        basis, spread, d = self.basis, self.spread, len(self.spread)
        matrix = basis.T @ vector[: d * d].view(d, d) @ basis
        matrix = matrix / (0.5 * (spread.unsqueeze(0) + spread.unsqueeze(1)))
        matrix = basis @ matrix @ basis.T
        return torch.cat([matrix.reshape(-1), vector[d * d :]])

    def _direction(self, gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
        q = gradient.clone()
        alphas = []
        for s, y, rho in reversed(pairs):
            alpha = rho * float(s @ q)
            alphas.append(alpha)
            q = q - alpha * y
        if pairs:
            s, y, _ = pairs[-1]
            q = self._metric(q) * (float(s @ y) / float(y @ self._metric(y)))
        else:
            curvature = 0.0 if math.isinf(self.problem.tau) else 1.0 / self.problem.tau
            q = self._metric(q) / (curvature * self.problem.scale**2 or 1.0)
        for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            q = q + (alpha - rho * float(y @ q)) * s
        return -q

    def _allowed(self, point: Tensor) -> bool:
        matrix, _, share = self.parts(point)
        if share < 0.0 or not bool(torch.isfinite(point).all()):
            return False
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return int(torch.linalg.cholesky_ex(matrix - _SMALLEST * eye).info) == 0

    def solve(
        self, matrix: Tensor, shift: Tensor, share: float, max_iter: int = _STEPS
    ) -> tuple[Tensor, Tensor, float, Evaluated]:
        """M, b and a from a first guess on, and J there.

        Ends where the next step promises less than 1e-10 of the value's own scale, or none gains.
        All inside one step of the flow: what interrupts it ends that one.
        """
        point = torch.cat([matrix.reshape(-1), shift, shift.new_tensor([share])])
        at, gradient = self._evaluate(point)
        if not math.isfinite(at.value):
            raise NonFiniteError(f"The energy is {at.value}. {Status.NON_FINITE.advice}")
        pairs: list[tuple[Tensor, Tensor, float]] = []
        for _ in range(max_iter):
            direction = self._direction(gradient, pairs)
            slope = float(direction @ gradient)
            if not slope < 0.0:
                pairs, direction = [], -self._metric(gradient)
                slope = float(direction @ gradient)
            found = self._search(point, at.value, direction, slope)
            if found is None:
                if not pairs:
                    break
                pairs = []  # forget the curvature and try the gradient once
                continue
            s, y, gained = found[0] - point, found[2] - gradient, at.value - found[1].value
            point, at, gradient = found
            product = float(s @ y)
            if product > 1e-12 * float(s.norm() * y.norm()):
                pairs = [*pairs, (s, y, 1.0 / product)][-_MEMORY:]
            scale = abs(at.value) + abs(at.energy) + 1e-300
            if max(gained, 0.5 * abs(slope)) <= 1e-10 * scale:
                break
        return *self.parts(point), at

    def _search(
        self, start: Tensor, value: float, direction: Tensor, slope: float
    ) -> tuple[Tensor, Evaluated, Tensor] | None:
        """A point along the direction that gains, J and its gradient there; None: there is none."""
        length = 1.0
        while slope < 0.0 and length > 1e-12:
            point = start + length * direction
            if self._allowed(point):
                at, gradient = self._evaluate(point)
                if math.isfinite(at.value) and at.value <= value + 1e-4 * length * slope:
                    return point, at, gradient
            length *= 0.5
        return None


class AffineStart:
    """The best affine map of a step, which networks have to beat.

    ``train`` and ``held`` are the problems with their functionals held there, ``gain`` is what
    the map gains over staying, on ``held``; ``matrix`` and ``shift`` are M and b in the
    potential's coordinates. Fitted on ``train``; ``potential`` is kept for the step after.
    """

    def __init__(self, train: MapProblem, held: MapProblem, potential: ICNN | None = None) -> None:
        like = train.particles.x
        d = like.shape[1]
        matrix, shift = torch.eye(d).to(like), torch.zeros(d).to(like)
        image: Any = like
        for _ in range(5 if train.functional.majorised else 1):
            problem = train.frozen(image)
            matrix, shift, _, own = AffineFit(problem).solve(matrix, shift, 0.0)
            image = own.image
        offset = train.centre + train.scale * shift - matrix @ train.centre
        affine = AffineMap(matrix.clone(), offset)
        x = held.particles.x
        images, log_det = affine.map(x), affine.log_abs_det_jacobian(x)
        self.train, self.held = train.frozen(image), held.frozen(images)
        self.matrix, self.shift = matrix, shift
        at = self.held.evaluate(images, log_det)
        still = self.held.evaluate(x, held.particles.log_density.new_zeros(()).expand(len(x)))
        self.fitted = FittedMap(affine, potential, own, at, False)
        self.gain = max(still.value - at.value, 0.0)

    @property
    def optimal(self) -> bool:
        """Whether no other map can gain."""
        affine: Any = self.fitted.map
        return self.train.affine_gap(self.fitted.train, affine) <= _EXACT

    def or_better(self, potential: Any, tol: float) -> FittedMap:
        """The gradient of a trained potential, where that is better than the affine map.

        It is kept if it lowers J on the particles kept apart by more than ``tol`` times what the
        affine map does, and by a tenth of what it gains on its own particles: otherwise what it
        learned was those particles.
        """
        affine = self.fitted
        found, final = self.held.at_potential(potential), self.train.at_potential(potential)
        gain, own = affine.held.value - found.value, affine.train.value - final.value
        if not (math.isfinite(found.value) and gain > tol * self.gain and gain > 0.1 * own):
            return affine
        learned = copy.deepcopy(potential).requires_grad_(False)
        brenier = BrenierMap(learned, self.train.centre.clone(), self.train.scale)
        return FittedMap(brenier, potential, final, found, True)
