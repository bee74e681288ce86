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
from drojko.minimax.transport.data import RidgeData

__all__ = ["certify_linear", "certify_sampled"]

_BLOCK = 1 << 22  # numbers in the particles of one block of samples


@dataclass(frozen=True)
class _Pool:
    """Losses and log ratios of the particles of all samples, without their positions."""

    parts: list[Particles]
    means: Tensor  # E_Q f, shape (n,) or (n, K)

    def map(self, name: str, penalty: float) -> Tensor:
        return torch.cat([getattr(part, name)(penalty) for part in self.parts]).double()

    @property
    def plain(self) -> Tensor:
        return torch.cat([part.plain.mean(0) for part in self.parts]).double()

    @property
    def plain_variance(self) -> Tensor:
        found = []
        for part in self.parts:
            pairs = 0.5 * (part.plain[0::2] + part.plain[1::2])
            found.append(pairs.var(0, unbiased=len(pairs) > 1) / len(pairs))
        return torch.cat(found).double()


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
    epsilon = problem.epsilon
    nominal = float(objective.risk(batch, batch.q0).double().cpu() @ w)
    lam = math.inf if penalty is None and not radius else (penalty or guess)
    rounds = 3 if radius else 1
    pool = None
    for _ in range(rounds):
        pool = _draw(
            problem, objective.with_penalty(lam), batch, epsilon, m, corrections, generator
        )
        if radius:
            lam = _best_penalty(pool, w, radius, lam)
    if pool is None:
        raise RuntimeError("there is at least one round")
    values = pool.map("value", lam)
    dual = float(values @ w) + (lam * radius if radius else 0.0)
    corrected = dual + float((pool.map("debiased", lam) - values) @ w)
    spent = float(pool.map("divergence", lam) @ w)
    risk = float(pool.map("risk", lam) @ w)
    within = pool.map("variance", lam)
    upper, proof, within_upper = _upper(problem, objective, pool, batch, w, radius, penalty, lam)
    if proof == "local-estimate":
        upper = max(corrected, dual)
    else:
        within = torch.maximum(within, within_upper)
    variance = float((w.square() * within).sum())
    if sampled:
        variance += standard_error(values, w) ** 2
    certificate = Certificate(
        nominal_risk=nominal,
        lower=min(dual, upper),
        upper=upper,
        worst_case_risk=risk,
        radius=radius,
        penalty=lam,
        transport_cost=spent,
        standard_error=math.sqrt(variance),
        stationarity=stationarity,
        proof=proof,
    )
    return certificate, lam


@torch.no_grad()
def _draw(problem, objective, batch: Batch, epsilon, m, corrections, generator) -> _Pool:
    n, r = batch.q0.shape
    size = max(1, _BLOCK // (m * max(1, r)))
    parts, means = [], []
    for rows in torch.arange(n, device=batch.x.device).split(size):
        some = batch.take(rows)
        modes = some.q0
        if not math.isinf(objective.penalty):
            adversary = problem.adversary(objective, corrections)
            modes = adversary.solve(some).q
        found = draw_particles(objective, some, modes, epsilon, m, generator)
        outputs = [
            objective.model.linearise(objective.decode(of, q))[0].unflatten(0, (-1, len(some)))
            for of, q in blocks(some, found.q[: len(found.q) // 2])
        ]
        means.append(torch.cat(outputs).double().mean(0).cpu())
        empty = found.q[:0]
        parts.append(Particles(empty, found.losses.cpu(), found.ratio.cpu(), epsilon))
    return _Pool(parts, torch.cat(means))


def _best_penalty(pool: _Pool, w: Tensor, radius: float, start: float) -> float:
    """Minimiser of the particles' dual value: convex in the penalty."""

    def dual(log_penalty: float) -> float:
        penalty = math.exp(log_penalty)
        return penalty * radius + float(pool.map("value", penalty) @ w)

    centre = math.log(start)
    found: Any = minimize_scalar(
        dual, bounds=(centre - 12.0, centre + 12.0), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(float(found.x))


def _upper(problem, objective, pool: _Pool, batch: Batch, w, radius, penalty, lam):
    """Proven upper bound, "lipschitz", and the sampling variance of each sample's part in it."""
    nothing = (math.inf, "local-estimate", torch.zeros(len(w), dtype=torch.float64))
    if penalty is None and not radius:
        return float(pool.plain @ w), "dual", pool.plain_variance
    known = structure(objective)
    if known.norms is None:
        return nothing
    options: list[tuple[float, str, Tensor] | None] = [
        _by_norms(problem, objective, pool, batch, w, radius, penalty, lam, known),
        _by_curvature(problem, objective, batch, w, radius, lam, known.curvature),
    ]
    return min((o for o in options if o is not None), key=lambda o: o[0], default=nothing)


def _by_curvature(problem, objective, batch: Batch, w, radius, lam, curvature):
    """Below a quadratic of curvature L: its tilt is Gaussian, finite for lambda > L / 2."""
    scale = objective.coordinates.scale
    bend = curvature / scale**2
    if not math.isfinite(bend):
        return None
    value, gradient = objective.with_penalty(0.0).value_and_gradient(batch, batch.q0)
    mean = float(value.double().cpu() @ w)
    steep = float(gradient.double().square().sum(1).cpu() @ w) / scale**2
    dim = batch.q0.shape[1]

    def bound(penalty: float) -> float:
        k = 1.0 - bend / (2.0 * penalty)
        if not k > 0.0:
            return math.inf
        tilt = mean + steep / (4.0 * penalty * k)
        tilt -= 0.5 * penalty * problem.epsilon * dim * math.log(k)
        return tilt + (penalty * radius if radius else 0.0)

    best = bound(lam)
    if radius:
        # On log(lambda - L / 2): the bound is convex in lambda.
        centre = math.log(lam)
        found: Any = minimize_scalar(
            lambda t: bound(0.5 * bend + math.exp(t)),
            bounds=(centre - 12.0, centre + 12.0),
            method="bounded",
        )
        best = min(best, float(found.fun))
    if not math.isfinite(best):
        return None
    return best, "strong-concavity", torch.zeros(len(w), dtype=torch.float64)


def _by_norms(problem, objective, pool: _Pool, batch: Batch, w, radius, penalty, lam, known):
    nothing = None
    scale = objective.coordinates.scale
    loss, norms = objective.loss, known.norms.double().cpu() / scale
    if objective.model.n_outputs == 1 and loss.has_tilt:
        rate = float(norms)
        data = RidgeData(
            np.ascontiguousarray(pool.means.numpy()[:, None]),
            batch.y.cpu().numpy(),
            weight=w.numpy(),
            inverse_cost=np.array([rate**2]),
            loss=loss,
        )
        try:
            found = sinkhorn_risk(
                data, np.ones(1), 0.0, epsilon=problem.epsilon, radius=radius, penalty=penalty
            )
        except UnboundedRiskError:
            return nothing
        return found.value, "lipschitz", pool.plain_variance
    if loss.scalar and (loss.lipschitz is None or math.isinf(loss.lipschitz)):
        return nothing
    if not (loss.scalar or loss.has_pairs):
        return nothing
    return _by_concentration(loss, norms, pool, batch, w, problem.epsilon, radius, lam)


def _by_concentration(loss, norms: Tensor, pool: _Pool, batch: Batch, w, epsilon, radius, lam):
    """The concentration bound; with several classes the better of it and a sum over pairs."""
    y = batch.y.cpu()
    if loss.scalar:
        square = (loss.lipschitz * norms).square().expand(len(w), 1)
    else:
        square = norms[y].square()
    steep = float(square.amax(1) @ w)
    best = float(pool.plain @ w) + (
        math.sqrt(radius * steep) if radius else 0.25 * steep / lam
    )  # fmt: skip
    if loss.scalar or not loss.offers("noise_bound"):
        return best, "lipschitz", pool.plain_variance
    away = pool.means - pool.means.gather(1, y[:, None])

    def bound(penalty: float) -> float:
        value = loss.noise_bound(away, y, square, 1.0 / (penalty * epsilon), epsilon)
        return float(value @ w) + (penalty * radius if radius else 0.0)

    if radius:
        centre = math.log(lam)
        found: Any = minimize_scalar(
            lambda t: bound(math.exp(t)), bounds=(centre - 12.0, centre + 12.0), method="bounded"
        )
        best = min(best, float(found.fun))
    else:
        best = min(best, bound(lam))
    return best, "lipschitz", pool.plain_variance
