"""Certificates: a lower bound that is attained, an upper bound from the dual, and its proof."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from drojko.inner.adversary import Adversary, Moved
from drojko.inner.bounds import Structure, lipschitz_bound, structure
from drojko.inner.objective import Batch
from drojko.inner.radius import BallSolution, solve_ball

__all__ = ["Certificate", "Evaluation", "certify"]


@dataclass(frozen=True)
class Certificate:
    r"""How bad the worst case is, from both sides.

    Radius form: ``lower`` is the risk of a measure inside the ambiguity set, ``upper`` a dual
    bound of the supremum. Penalty form: both are about :math:`\sup_P E_P \ell - \lambda D(P, P_0)`.

    Attributes
    ----------
    nominal_risk : float
        Mean loss under the reference.
    lower, upper : float
        Attained value and dual bound; equal up to ``gap`` and Monte-Carlo error.
    worst_case_risk : float
        Mean loss under the attained measure, in either form.
    transport_cost : float
        Mean ground cost it spends; at most ``radius**2`` in radius form.
    radius, penalty : float or None
        Requested radius (None in penalty form) and the penalty (the dual multiplier).
    standard_error : float
        Monte-Carlo standard error of the bounds; 0 for the empirical reference.
    stationarity : float
        Norm of the gradient of the robust objective in the model's parameters, relative to
        1 + the objective; NaN for a model that was not trained here.
    proof : str
        What proves ``upper``: "ridge-1d", "strong-concavity", "lipschitz", "dual", or
        "local-estimate", which is no proof.

    Examples
    --------
    >>> Certificate(0.5, 0.7, 0.7, 0.7, 0.1, 2.0, 0.01).relative_gap
    0.0
    """

    nominal_risk: float
    lower: float
    upper: float
    worst_case_risk: float
    radius: float | None
    penalty: float
    transport_cost: float
    standard_error: float = 0.0
    stationarity: float = math.nan
    proof: str = "dual"

    @property
    def gap(self) -> float:
        """upper - lower."""
        return self.upper - self.lower

    @property
    def relative_gap(self) -> float:
        """gap / |upper|."""
        return self.gap / max(abs(self.upper), 1e-300)

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as text, for tables."""
        form = "risk" if self.radius is not None else "risk - penalty * cost"
        bound = "upper bound" if self.proof != "local-estimate" else "upper ESTIMATE"
        rows = [
            ("nominal risk", f"{self.nominal_risk:.6g}"),
            (f"attained {form} (lower bound)", f"{self.lower:.6g}"),
            (f"{bound} [{self.proof}]", f"{self.upper:.6g}"),
            ("gap (relative)", f"{self.gap:.3g} ({self.relative_gap:.2%})"),
            ("worst-case risk", f"{self.worst_case_risk:.6g}"),
            ("radius", "-" if self.radius is None else f"{self.radius:g}"),
            ("penalty", f"{self.penalty:.6g}"),
            ("transport cost", f"{self.transport_cost:.6g}"),
            ("standard error", f"{self.standard_error:.2g}"),
            ("stationarity", f"{self.stationarity:.2g}"),
        ]
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        left = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{left}}  {value}" for name, value in rows]
        return "\n".join(["Certificate", *lines])

    __repr__ = __str__


@dataclass(frozen=True)
class Evaluation:
    """A certificate with the worst case behind it.

    ``worst`` is the worst case at the requested penalty, or the mixture that fills the ball.
    """

    certificate: Certificate
    worst: Moved | BallSolution


def certify(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    *,
    radius: float | None = None,
    start: float | None = None,
    sampled: bool = True,
    stationarity: float = math.nan,
) -> Evaluation:
    """Certificate of an adversary on reference draws that were not used to build it.

    Parameters
    ----------
    adversary : Adversary
        Its objective holds the penalty (penalty form) or a first guess of it (radius form).
    batch, weights
        Draws and their masses, which sum to one.
    radius : float, optional
        Radius form; None: penalty form at the adversary's penalty.
    sampled : bool
        Whether the draws stand for a continuous reference: gives the standard error.
    """
    objective = adversary.objective
    known = structure(objective)
    base = objective.risk(batch, batch.q0)
    nominal = _mean(base, weights)
    if radius is None:
        moved = adversary.solve(batch)
        bound, proof = adversary.upper(moved, known)
        lower, upper = _mean(moved.value, weights), _mean(bound, weights)
        risk, cost, penalty = moved.risk, moved.cost, objective.penalty
        spread, worst = moved.value, moved
    else:
        ball = solve_ball(adversary, batch, weights, radius, start=start)
        risk, cost, penalty = ball.risk, ball.cost, ball.penalty
        lower = _mean(risk, weights)
        if math.isinf(penalty):
            upper, proof, spread = nominal, "dual", base
        else:
            upper, proof = _ball_upper(adversary, batch, weights, radius, ball, known)
            spread = risk - penalty * cost
        worst = ball
    error = 0.0
    if sampled:
        centred = spread - _mean(spread, weights)
        error = math.sqrt(float((weights.square() * centred.square()).sum()))
    certificate = Certificate(
        nominal_risk=nominal,
        lower=max(lower, nominal) if radius is None else lower,
        upper=max(upper, lower),
        worst_case_risk=_mean(risk, weights),
        radius=radius,
        penalty=penalty,
        transport_cost=_mean(cost, weights),
        standard_error=error,
        stationarity=stationarity,
        proof=proof,
    )
    return Evaluation(certificate, worst)


def _mean(values: Tensor, weights: Tensor) -> float:
    return float(values.double() @ weights.double())


def _ball_upper(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    radius: float,
    ball: BallSolution,
    known: Structure,
) -> tuple[float, str]:
    """Smallest of the dual values at hand: every penalty gives a valid one."""
    budget = radius * radius
    options: list[tuple[float, str]] = []
    pairs = {ball.low_penalty: ball.low, ball.high_penalty: ball.high}
    for penalty, moved in pairs.items():
        bound, proof = adversary.with_penalty(penalty).upper(moved, known)
        options.append((penalty * budget + _mean(bound, weights), proof))
    best = min(options)
    if best[1] != "lipschitz" or adversary.flips or known.norms is None:
        return best
    norms = known.norms

    def value(log_penalty: float) -> float:
        objective = adversary.objective.with_penalty(math.exp(log_penalty))
        bound = lipschitz_bound(objective, batch, norms)
        if bound is None or not bool(torch.isfinite(bound).all()):
            return math.inf
        return math.exp(log_penalty) * budget + _mean(bound, weights)

    # The Lipschitz dual has its own best penalty, near Lipschitz constant / (2 radius).
    steep = float(norms.max()) / adversary.objective.coordinates.scale
    centre = math.log(max(steep, 1e-300) * (adversary.objective.loss.lipschitz or 1.0) + 1e-300)
    centre -= math.log(2.0 * radius)
    if not math.isfinite(centre):
        return best
    grid = [(value(centre + shift), centre + shift) for shift in range(-8, 5)]
    start = min(grid)[1]
    found = minimize_scalar(value, bounds=(start - 1, start + 1), method="bounded")
    return min(best, (float(found.fun), "lipschitz"))
