r"""Certificates of Sinkhorn sets: exact for linear models, sampled with proven bounds otherwise.

For a model whose output moves at most K sqrt(c(x, z)), the output under Q_x is a Lipschitz function
of a standard normal vector with constant s = K sqrt(epsilon / 2), hence a 1-Lipschitz function of a
normal number s g (Gaussian isoperimetry), hence below its mean plus s g in the convex order. For a
loss that is convex in the output,

.. math:: \lambda\varepsilon \log E_{Q_x} e^{\ell / \lambda\varepsilon}
          \le \lambda\varepsilon \log E_g\, e^{\ell(E_{Q_x} f + s g, y) / \lambda\varepsilon},

the formula of a linear model. For several outputs and a loss with Lipschitz constant L in the root
of c the concentration inequality E e^{tF} <= e^{t EF + t^2 L^2 epsilon / 4} gives
E_{Q_x} l + L^2 / (4 lambda), in the ball E l + L sqrt(radius). Of the cross-entropy, the sum of
e^{f_j - f_y}, its norm of order beta = 1 / (lambda epsilon) >= 1 is at most the sum of theirs
(Minkowski), and each is sub-Gaussian: log sum_j e^{E f_j - E f_y + beta s_jy^2 / 2}; for beta < 1
Jensen's inequality gives the same with 1 for beta. Of the multi-class hinge, e^{beta max} is at
most the sum of its parts. A loss whose Hessian is at most L in
the metric of c lies below a quadratic, whose tilt is Gaussian: with k = 1 - L / (2 lambda) > 0,
l(x) + |grad l(x)|^2 / (4 lambda k) - (r / 2) lambda epsilon log k on r coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from drojko._numerics import standard_error
from drojko.certificates import Certificate
from drojko.exceptions import UnboundedRiskError
from drojko.inner.objective import Batch, Objective
from drojko.inner.sinkhorn.particles import Particles, blocks, draw_particles
from drojko.inner.transport.bounds import structure
from drojko.minimax.sinkhorn.linear import certify_linear, sinkhorn_risk
from drojko.minimax.transport.risk import RidgeData

__all__ = ["certify_linear", "certify_sampled"]

_BLOCK = 1 << 22  # numbers in the particles of one block of samples

Bound = tuple[float, str, Tensor]  # upper bound, its proof, each sample's sampling variance


def certify_sampled(
    problem,
    objective: Objective,
    points: tuple[Tensor, Tensor, Tensor],
    generator: torch.Generator,
    *,
    radius: float | None,
    penalty: float | None,
    guess: float,
    m: int = 512,
    corrections: int = 30,
    sampled: bool = False,
    stationarity: float = math.nan,
) -> tuple[Certificate, float]:
    """Certificate of any model by ``m`` particles per sample, and its multiplier.

    ``lower`` is the dual value of the particles, which lies below the true one in the mean, as a
    log-mean-exp of draws does; in the ball the particles' tilted laws attain it. ``upper`` is
    proven ("lipschitz") for perceptrons with known losses up to the sampling error of E_Q f or
    E_Q l, which ``standard_error`` holds, and the debiased dual value ("local-estimate") otherwise.
    """
    x, y, w = points
    w = w.double().cpu()
    batch = objective.batch(x, y)
    nominal = float(objective.risk(batch, batch.q0).double().cpu() @ w)
    lam = math.inf if penalty is None and not radius else (penalty or guess)
    for _ in range(3 if radius else 1):
        tilted = objective.with_penalty(lam)
        pool = _Pool.draw(problem, tilted, batch, w, radius or 0.0, m, corrections, generator)
        lam, dual = pool.least(pool.dual, lam)
    values = pool.map("value", lam)
    within = pool.map("variance", lam)
    upper, proof, within_upper = pool.upper(penalty, lam)
    if proof == "local-estimate":
        upper = max(dual + float((pool.map("debiased", lam) - values) @ w), dual)
    else:
        within = torch.maximum(within, within_upper)
    variance = own = float((w.square() * within).sum())
    risk = pool.map("risk", lam)
    if sampled:
        variance += standard_error(values, w) ** 2
        own += standard_error(risk, w) ** 2
    certificate = Certificate(
        nominal_risk=nominal,
        lower=min(dual, upper),
        upper=upper,
        worst_case_risk=float(risk @ w),
        radius=radius,
        penalty=lam,
        transport_cost=float(pool.map("divergence", lam) @ w),
        standard_error=math.sqrt(max(variance, own)),
        risk_error=math.sqrt(own),
        stationarity=stationarity,
        proof=proof,
    )
    return certificate, lam


@dataclass(frozen=True, eq=False)
class _Pool:
    """Losses and log ratios of the particles of all samples, without their positions."""

    objective: Objective
    batch: Batch
    w: Tensor
    epsilon: float
    radius: float
    parts: list[Particles]
    means: Tensor  # E_Q f, shape (n,) or (n, K)

    @classmethod
    @torch.no_grad()
    def draw(
        cls, problem, objective: Objective, batch: Batch, w, radius, m, corrections, generator
    ) -> _Pool:
        """Particles around the modes that the adversary finds."""
        n, r = batch.q0.shape
        size, epsilon = max(1, _BLOCK // (m * max(1, r))), problem.epsilon
        parts, means = [], []
        for rows in torch.arange(n, device=batch.x.device).split(size):
            some = batch.take(rows)
            modes = some.q0
            if not math.isinf(objective.penalty):
                modes = problem.adversary(objective, corrections).solve(some).q
            found = draw_particles(objective, some, modes, epsilon, m, generator)
            outputs = [
                objective.model.linearise(objective.decode(of, q))[0].unflatten(0, (-1, len(some)))
                for of, q in blocks(some, found.q[: len(found.q) // 2])
            ]
            means.append(torch.cat(outputs).double().mean(0).cpu())
            parts.append(Particles(found.q[:0], found.losses.cpu(), found.ratio.cpu(), epsilon))
        return cls(objective, batch, w, epsilon, radius, parts, torch.cat(means))

    def map(self, name: str, penalty: float) -> Tensor:
        """A quantity of the particles at a penalty, by sample."""
        return torch.cat([getattr(part, name)(penalty) for part in self.parts]).double()

    def dual(self, penalty: float) -> float:
        """The dual value without the radius."""
        return float(self.map("value", penalty) @ self.w)

    def plain(self) -> tuple[float, Tensor]:
        """The mean loss under Q_x, and its sampling variance by sample."""
        mean = torch.cat([part.plain.mean(0) for part in self.parts]).double()
        found = []
        for part in self.parts:
            pairs = 0.5 * (part.plain[0::2] + part.plain[1::2])
            found.append(pairs.var(0, unbiased=len(pairs) > 1) / len(pairs))
        return float(mean @ self.w), torch.cat(found).double()

    def least(
        self, bound: Callable[[float], float], lam: float, shift: float = 0.0
    ) -> tuple[float, float]:
        """The best penalty near ``lam``, above ``shift``, and its bound, the radius included.

        The bound is convex in the penalty, and minimised on a logarithm; at a given penalty it is
        what it is.
        """
        if not self.radius:
            return lam, bound(lam)
        centre = math.log(lam)
        found: Any = minimize_scalar(
            lambda t: bound(shift + math.exp(t)) + (shift + math.exp(t)) * self.radius,
            bounds=(centre - 12.0, centre + 12.0), method="bounded", options={"xatol": 1e-6},
        )  # fmt: skip
        return shift + math.exp(float(found.x)), float(found.fun)

    def upper(self, penalty: float | None, lam: float) -> Bound:
        """The least proven upper bound; infinite where none is known."""
        if penalty is None and not self.radius:
            plain, variance = self.plain()
            return plain, "dual", variance
        known = structure(self.objective)
        if known.norms is None:
            return math.inf, "local-estimate", torch.zeros_like(self.w)
        scale = self.objective.coordinates.scale
        options = [
            self._by_norms(known.norms.double().cpu() / scale, penalty, lam),
            self._by_curvature(known.curvature / scale**2, lam),
        ]
        return min(options, key=lambda option: option[0])

    def _by_curvature(self, bend: float, lam: float) -> Bound:
        """Below a quadratic of curvature L: its tilt is Gaussian, finite for lambda > L / 2."""
        nothing = (math.inf, "local-estimate", torch.zeros_like(self.w))
        if not math.isfinite(bend):
            return nothing
        still, batch = self.objective.with_penalty(0.0), self.batch
        value, gradient = still.value_and_gradient(batch, batch.q0)
        mean = float(value.double().cpu() @ self.w)
        steep = float(gradient.double().square().sum(1).cpu() @ self.w)
        steep /= self.objective.coordinates.scale**2

        def bound(penalty: float) -> float:
            k = 1.0 - bend / (2.0 * penalty)
            if not k > 0.0:
                return math.inf
            noise = 0.5 * penalty * self.epsilon * batch.q0.shape[1] * math.log(k)
            return mean + steep / (4.0 * penalty * k) - noise

        best = self.least(bound, lam, 0.5 * bend)[1]
        return (best, "strong-concavity", nothing[2]) if math.isfinite(best) else nothing

    def _by_norms(self, norms: Tensor, penalty: float | None, lam: float) -> Bound:
        """By a linear model as steep, or by concentration."""
        loss, w = self.objective.loss, self.w
        nothing = (math.inf, "local-estimate", torch.zeros_like(w))
        if self.objective.model.n_outputs == 1 and loss.has_tilt:
            data = RidgeData(
                np.ascontiguousarray(self.means.numpy()[:, None]),
                self.batch.y.cpu().numpy(),
                weight=w.numpy(),
                inverse_cost=np.array([float(norms) ** 2]),
                loss=loss,
            )
            size = {"radius": None if penalty is not None else self.radius, "penalty": penalty}
            try:
                found = sinkhorn_risk(data, np.ones(1), 0.0, epsilon=self.epsilon, **size)
            except UnboundedRiskError:
                return nothing
            return found.value, "lipschitz", self.plain()[1]
        known = math.isfinite(loss.lipschitz or math.inf) if loss.scalar else loss.has_pairs
        return self._by_concentration(norms, lam) if known else nothing

    def _by_concentration(self, norms: Tensor, lam: float) -> Bound:
        """The concentration bound; with several classes the better of it and a sum over pairs."""
        loss, w, y, radius = self.objective.loss, self.w, self.batch.y.cpu(), self.radius
        if loss.scalar:
            square = (float(loss.lipschitz or 0.0) * norms).square().expand(len(w), 1)
        else:
            square = norms[y].square()
        steep, (best, variance) = float(square.amax(1) @ w), self.plain()
        best += math.sqrt(radius * steep) if radius else 0.25 * steep / lam
        if loss.scalar or not loss.offers("noise_bound"):
            return best, "lipschitz", variance
        away = self.means - self.means.gather(1, y[:, None])

        def bound(penalty: float) -> float:
            eta = 1.0 / (penalty * self.epsilon)
            return float(loss.noise_bound(away, y, square, eta, self.epsilon) @ w)

        return min(best, self.least(bound, lam)[1]), "lipschitz", variance
