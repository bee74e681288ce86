r"""Certificates of Sinkhorn sets: exact for linear models, sampled with proven bounds otherwise.

For a model whose output moves at most K sqrt(c(x, z)), the output under Q_x is a Lipschitz function
of a standard normal vector with constant s = K sqrt(epsilon / 2), hence a 1-Lipschitz function of a
normal number s g (Gaussian isoperimetry), hence below its mean plus s g in the convex order. For a
loss that is convex in the output,

.. math:: \lambda\varepsilon \log E_{Q_x} e^{\ell / \lambda\varepsilon}
          \le \lambda\varepsilon \log E_g\, e^{\ell(E_{Q_x} f + s g, y) / \lambda\varepsilon},

the formula of a linear model. For several outputs and a loss with Lipschitz constant L in the root
of c the concentration inequality E e^{tF} <= e^{t EF + t^2 L^2 epsilon / 4} gives
E_{Q_x} l + L^2 / (4 lambda), in the ball E l + L sqrt(radius).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from drojko.certificates import Certificate
from drojko.exceptions import UnboundedRiskError
from drojko.inner.bounds import structure
from drojko.inner.objective import Batch, Objective
from drojko.inner.particles import Particles, draw_particles
from drojko.inner.tilted import is_tiltable
from drojko.losses import CrammerSinger, Softmax
from drojko.minimax.ridge_data import RidgeData
from drojko.minimax.sinkhorn_linear import sinkhorn_risk

__all__ = ["certify_linear", "certify_sampled"]

_BLOCK = 1 << 22  # numbers in the particles of one block of samples


def _standard_error(w: Tensor, spread: Tensor) -> float:
    centred = spread - (w * spread).sum()
    return math.sqrt(float((w.square() * centred.square()).sum()))


def certify_linear(
    data: RidgeData,
    coef: np.ndarray,
    intercept: float,
    *,
    epsilon: float,
    radius: float | None,
    penalty: float | None,
    guess: float | None = None,
    sampled: bool = False,
    stationarity: float = math.nan,
) -> tuple[Certificate, float]:
    """Certificate of a linear model, both sides from one root, and its multiplier."""
    found = sinkhorn_risk(
        data, coef, intercept, epsilon=epsilon, radius=radius, penalty=penalty, guess=guess
    )
    error = 0.0
    if sampled:
        error = _standard_error(torch.from_numpy(data.weight), torch.from_numpy(found.spread))
    certificate = Certificate(
        nominal_risk=found.nominal,
        lower=found.attained,
        upper=found.value,
        worst_case_risk=found.risk,
        radius=radius,
        penalty=found.penalty,
        transport_cost=found.divergence,
        standard_error=error,
        stationarity=stationarity,
        proof="ridge-1d",
    )
    return certificate, found.penalty


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
        pool = _draw(problem, objective.with_penalty(lam), batch, epsilon, m, corrections, generator)
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
        variance += _standard_error(w, values) ** 2
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
        outputs = 0.0
        half = found.q[: len(found.q) // 2]
        for q in half:
            outputs = outputs + objective.model.linearise(objective.decode(some, q))[0]
        means.append((outputs / len(half)).double().cpu())
        empty = found.q[:0]
        parts.append(Particles(empty, found.losses.cpu(), found.ratio.cpu(), epsilon))
    return _Pool(parts, torch.cat(means))


def _best_penalty(pool: _Pool, w: Tensor, radius: float, start: float) -> float:
    """Minimiser of the particles' dual value: convex in the penalty."""

    def dual(log_penalty: float) -> float:
        penalty = math.exp(log_penalty)
        return penalty * radius + float(pool.map("value", penalty) @ w)

    centre = math.log(start)
    found = minimize_scalar(
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
    scale = objective.coordinates.scale
    loss, norms = objective.loss, known.norms.double().cpu() / scale
    if objective.model.n_outputs == 1 and is_tiltable(loss):
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
    if isinstance(loss, Softmax | CrammerSinger):
        steep = norms[batch.y.cpu()].amax(1).square()
        mean = float(steep @ w)
        plain = float(pool.plain @ w)
        value = plain + (math.sqrt(radius * mean) if radius else 0.25 * mean / lam)
        return value, "lipschitz", pool.plain_variance
    return nothing
