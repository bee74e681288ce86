"""Certificates: a lower bound that is attained, an upper bound from the dual, and its proof."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from drojko._numerics import standard_error
from drojko.ambiguity import Dual
from drojko.exceptions import UnsupportedError
from drojko.inner.networks.bound import Case, NetworkBound, network_bound
from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.bounds import Structure, lipschitz_bound, structure
from drojko.inner.transport.radius import BallSolution, mean, solve_ball
from drojko.inner.transport.search.rounds import Restarts

__all__ = [
    "Certificate", "Evaluation", "certify", "closed", "network_dual", "proof_of_tilt",
    "reweighted_certificate",
]  # fmt: skip

#: Draws that carry a tilt, and the share of the mass on the top thousandth: too few, too large.
_FEW, _DOMINATED = 10.0, 0.5
#: A relative gap that no further bound is worth its time for.
_NOTHING_LEFT = 1e-3
#: A bound by Lipschitz constants that leaves more than this share of itself open is said to.
_SLACK = 0.2
_TAIL = (
    "so far out only Lipschitz constants bound the model, which grow with the radius: take a "
    "smaller one, or train with certified='auto'"
)


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
        D(P, P0) of the attained measure: the mean ground cost it spends, at most ``radius**2``
        in radius form; of sets without transport their own discrepancy, in its units.
    radius, penalty : float or None
        Requested radius (None in penalty form) and the penalty (the dual multiplier).
    standard_error : float
        Monte-Carlo standard error of ``lower``, ``upper`` and ``worst_case_risk``: the largest of
        the three; 0 for the empirical reference, unless a network of many rows was searched on a
        sample of them.
    risk_error : float
        That of ``worst_case_risk`` alone, as the mean loss of what ``worst_case_`` samples.
    stationarity : float
        Norm of the gradient of the robust objective in the model's parameters, relative to
        1 + the objective; NaN for a model that was not trained here. Where the objective has
        kinks it is that of a smoothed one and need not be small at a minimum.
    proof : str
        What proves ``upper``: "ridge-1d", "strong-concavity", "lipschitz", "dual", for networks
        "linear-bounds" and "branch-and-bound"; "largest-loss" where it is no more than the largest
        loss of any answer, which says nothing of the radius;
        or "local-estimate", which is no proof (and all that an infinite ``upper`` has).
    discrepancy : str
        What ``transport_cost`` is called when the certificate is printed.
    inner : str
        What ``inner="auto"`` chose and why; empty where nothing was left to choose.
    search : str
        What a thorough search for the worst case says of itself: its rounds of restarts and the
        share of the gain that it is estimated to miss, which is no bound; empty elsewhere.
    unproven : str
        Of a network whose ``proof`` is "local-estimate": what no bounds are known of. ``upper`` is
        then an estimate, which the worst case may exceed.

    Examples
    --------
    >>> certificate = Certificate(0.5, 0.6, 0.75, 0.6, 0.1, 2.0, 0.01, proof="lipschitz")
    >>> round(certificate.gap, 12), round(certificate.relative_gap, 12)
    (0.15, 0.2)
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
    discrepancy: str = "transport cost"
    inner: str = ""
    risk_error: float = 0.0
    search: str = ""
    unproven: str = ""

    @property
    def gap(self) -> float:
        """Difference of ``upper`` and ``lower``."""
        return self.upper - self.lower if math.isfinite(self.upper) else self.upper

    @property
    def relative_gap(self) -> float:
        """The gap divided by ``|upper|``."""
        if not math.isfinite(self.upper):
            return math.inf
        return self.gap / max(abs(self.upper), 1e-300)

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as text, for tables."""
        moved = self.discrepancy == "transport cost"
        form = f"risk - penalty * {'cost' if moved else 'discrepancy'}"
        form = "risk" if self.radius is not None else form
        bound = "upper bound" if self.proof != "local-estimate" else "upper ESTIMATE"
        # Below this it is rounding.
        gap = 0.0 if self.gap <= 1e-12 * abs(self.upper) < math.inf else self.gap
        rows = [
            ("nominal risk", f"{self.nominal_risk:.6g}"),
            (f"attained {form} (lower bound)", f"{self.lower:.6g}"),
            (f"{bound} [{self.proof}]", f"{self.upper:.6g}"),
            ("gap (relative)", f"{gap:.3g} ({gap and self.relative_gap:.2%})"),
            ("worst-case risk", f"{self.worst_case_risk:.6g}"),
            ("radius", "-" if self.radius is None else f"{self.radius:g}"),
            ("penalty", f"{self.penalty:.6g}"),
            (self.discrepancy, f"{self.transport_cost:.6g}"),
            ("standard error", f"{self.standard_error:.2g}"),
            ("stationarity", f"{self.stationarity:.2g}"),
        ]
        if self.inner:
            rows.append(("chosen", self.inner))
        if self.search:
            rows.append(("search", self.search))
        if self.proof == "lipschitz" and self.relative_gap > _SLACK:
            rows.append(("loose", _TAIL))
        if self.unproven:
            rows.append(("nothing is proven", f"{self.unproven}: the worst case may exceed upper"))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        left = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{left}}  {value}" for name, value in rows]
        return "\n".join(["Certificate", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from drojko._html import table_of

        return table_of("Certificate", self.rows())


@dataclass(frozen=True)
class Evaluation:
    """A certificate with the worst case behind it.

    ``worst`` is the worst case at the requested penalty, or the mixture that fills the ball;
    ``adversary`` moves any other draws in the same way; ``restarts`` is what a thorough search
    says of itself.
    """

    certificate: Certificate
    worst: Moved | BallSolution
    adversary: Adversary
    restarts: Restarts | None = None

    @property
    def plan(self) -> tuple[float, float, float]:
        """Two penalties, and the share of the first: what a transported worst case is made of."""
        if isinstance(self.worst, BallSolution):
            return self.worst.low_penalty, self.worst.high_penalty, self.worst.share
        return self.certificate.penalty, self.certificate.penalty, 0.0


def certify(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    *,
    radius: float | None = None,
    start: float | None = None,
    sampled: bool = True,
    stationarity: float = math.nan,
    effort: str | None = None,
    max_time: float | None = None,
) -> Evaluation:
    r"""Certificate of an adversary on reference draws that were not used to build it.

    .. math:: \lambda r + \sum_i w_i \overline J_\lambda(x_i) \ge V(r)
              \ge \sum_i w_i \ell(T(x_i))

    with proven bounds J of the inner problem, at the penalties that bracket the multiplier.

    Parameters
    ----------
    adversary : Adversary
        Its objective holds the penalty (penalty form) or a first guess of it (radius form).
    batch, weights
        Draws and their masses, which sum to one.
    radius : float, optional
        Radius form; None: penalty form at the adversary's penalty.
    start : float, optional
        First guess of the penalty of the radius.
    sampled : bool
        Whether the draws stand for a continuous reference: gives the standard error.
    stationarity : float
        Passed on to the certificate.
    effort : {"fast", "thorough"}, optional
        How hard the worst case of a network is searched and its bounds are worked on; None: as
        the adversary does, and fast bounds.
    max_time : float, optional
        Seconds for the bounds: what is proven by then is valid, only looser.

    Raises
    ------
    UnboundedRiskError
        When the worst case is infinite.
    """
    adversary = adversary if effort is None else adversary.with_effort(effort)
    objective, restarts, unproven = adversary.objective, None, ""
    if radius != 0.0:
        adversary.check_finite(batch, radius is not None)
    known = structure(objective)
    base = objective.risk(batch, batch.q0)
    nominal = mean(base, weights)
    if radius is None:
        worst, used, penalty = adversary.solve(batch), adversary, objective.penalty
        bound, proof = adversary.upper(worst, known)
        upper, spread = mean(bound, weights), worst.value
        if not closed(upper, mean(spread, weights), proof):
            limits = effort or "fast", max_time
            try:
                network = network_dual(adversary, batch, weights, None, (worst.q,), *limits)
            except UnsupportedError as error:
                unproven = str(error)
            else:
                unproven = network.unproven
                # Both are bounds sample by sample, and so is their minimum.
                both = network.at(penalty)
                both = both if proof == "local-estimate" else torch.minimum(both, bound.double())
                upper, proof = _better((upper, proof), (mean(both, weights), network.proof))
        lower = max(mean(spread, weights), nominal)
        restarts = Restarts.of(worst.found.evidence, worst.value - base, weights)
    else:
        worst = solve_ball(adversary, batch, weights, radius, start=start, atoms=not sampled)
        restarts = worst.restarts
        used, penalty, lower = worst.adversary, worst.penalty, mean(worst.risk, weights)
        upper, proof, spread = nominal, "dual", base
        if math.isfinite(penalty):
            limits = effort or "fast", max_time
            quick = adversary.with_effort("warm")  # bounds start from what was found
            upper, proof, unproven = _ball_upper(
                quick, batch, weights, radius, worst, known, limits
            )
            spread = worst.risk - penalty * worst.cost
    own = standard_error(worst.risk, weights) if sampled else 0.0
    certificate = Certificate(
        nominal_risk=nominal,
        lower=lower,
        upper=max(upper, lower),
        worst_case_risk=mean(worst.risk, weights),
        radius=radius,
        penalty=penalty,
        transport_cost=mean(worst.cost, weights),
        standard_error=max(standard_error(spread, weights), own) if sampled else 0.0,
        risk_error=own,
        stationarity=stationarity,
        proof=proof,
        search="" if restarts is None else str(restarts),
        unproven=unproven if proof == "local-estimate" else "",
    )
    return Evaluation(certificate, worst, used, restarts)


def _ball_upper(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    radius: float,
    ball: BallSolution,
    known: Structure,
    limits: tuple[str, float | None],
) -> tuple[float, str, str]:
    """Smallest dual value that is proven (every penalty gives a valid one), its proof, why none."""

    def dual(at: Adversary, moved: Moved) -> tuple[float, str]:
        bound, proof = at.upper(moved, known)
        return at.objective.penalty * radius**2 + mean(bound, weights), proof

    pairs = {ball.low_penalty: ball.low, ball.high_penalty: ball.high}
    best, unproven = (math.inf, "local-estimate"), ""
    for penalty, moved in reversed(pairs.items()):
        best = _better(best, dual(adversary.with_penalty(penalty), moved))
        if best[1] == "lipschitz":  # what is not concave at the larger is not at the smaller
            break
    lower = mean(ball.risk, weights)
    if not closed(best[0], lower, best[1]):
        at = adversary.with_penalty(ball.penalty)
        found = (ball.low.q, ball.high.q)
        try:
            network = network_dual(at, batch, weights, radius, found, *limits)
        except UnsupportedError as error:
            unproven = str(error)
        else:
            best = _better(best, (network.value, network.proof))
    # What the linear bounds of a network prove is below what the constants alone do.
    loose = best[1] in ("lipschitz", "local-estimate") and not closed(best[0], lower, best[1])
    if loose and known.norms is not None and not adversary.discrete:
        option = _lipschitz_ball(adversary.objective, batch, weights, radius, known.norms)
        best = _better(best, option)
    best = best if math.isfinite(best[0]) else (math.inf, "local-estimate")
    return best[0], best[1], unproven


def _better(first: tuple[float, str], second: tuple[float, str]) -> tuple[float, str]:
    """The smaller of two upper sides; what is proven comes before an estimate."""

    def key(option: tuple[float, str]) -> tuple[bool, bool, float]:
        infinite = not math.isfinite(option[0])
        return infinite, option[1] == "local-estimate", option[0]

    return min(first, second, key=key)


def closed(upper: float, lower: float, proof: str) -> bool:
    """Whether there is nothing left to prove that is worth the work."""
    return proof != "local-estimate" and upper - lower <= _NOTHING_LEFT * abs(lower)


def network_dual(
    adversary: Adversary,
    batch: Batch,
    weights: Tensor,
    radius: float | None,
    found: tuple[Tensor, ...],
    effort: str,
    max_time: float | None,
) -> NetworkBound:
    """Bounds of a network by relaxation, over all labels and categories.

    Raises
    ------
    UnsupportedError
        Where no bounds are known of it; it names what.
    """
    every = adversary.becoming(batch)
    if every is None:
        raise UnsupportedError("rows may swap into too many combinations of categories")
    cases = [Case(at, fee if isinstance(fee, Tensor) else None, found) for at, fee in every]
    return network_bound(
        adversary.objective, cases, weights, radius=radius, effort=effort, max_time=max_time
    )


def _lipschitz_ball(
    objective: Objective, batch: Batch, weights: Tensor, radius: float, norms: Tensor
) -> tuple[float, str]:
    """The Lipschitz dual at its own best penalty; it is convex in the penalty."""
    norm = float(norms.max()) / objective.coordinates.scale
    least = objective.loss.growth * norm**2

    def value(shift: float) -> float:
        penalty = least + math.exp(shift)
        bound = lipschitz_bound(objective.with_penalty(penalty), batch, norms)
        if not bool(torch.isfinite(bound).all()):
            return math.inf
        return penalty * radius**2 + mean(bound, weights)

    # For a loss that is linear in the output the best penalty is norm * slope / (2 radius).
    f = objective.model.linearise(batch.x)[0]
    slopes = objective.loss.gradient(f, batch.y).reshape(len(f), -1).square().sum(1)
    slope = norm * math.sqrt(mean(slopes, weights))
    lipschitz = objective.loss.lipschitz
    if lipschitz is not None and math.isfinite(lipschitz):
        slope = norm * lipschitz
    if slope <= 0.0:
        return math.inf, "lipschitz"
    centre = math.log(slope) - math.log(2.0 * radius)
    start = min((value(centre + step), centre + step) for step in range(-8, 5))[1]
    found = minimize_scalar(value, bounds=(start - 1, start + 1), method="bounded")
    return float(found.fun), "lipschitz"


def reweighted_certificate(
    ambiguity: Any,
    bound: Any,
    losses: np.ndarray,
    weights: np.ndarray,
    *,
    fitted: tuple[np.ndarray, np.ndarray] | None = None,
    stationarity: float = math.nan,
    near: Any = None,
) -> tuple[Certificate, Dual, Any]:
    r"""Certificate of a set that reweights, from the losses of a model on reference draws.

    .. math:: E_w\left[\eta + \lambda r
              + \lambda f^*\left(\frac{\ell - \eta}{\lambda}\right)\right] \ge V \ge E_w\,q\,\ell

    On atoms both sides are the exact dual. Draws of a continuous reference give an upper bound
    whose mean is one for the reference itself, when the dual point comes from other, independent
    draws; the lower side is the mean loss under the density ratio of that point, which is what
    the worst case samples (`DensityRatioSet.bounded`); of sets without such a ratio it is the
    worst reweighting of the draws themselves.

    Parameters
    ----------
    ambiguity : AmbiguitySet
    bound : object
        ``ambiguity.on(x, weights)``.
    losses, weights : ndarray of shape (n,)
        The weights sum to one.
    fitted : (losses, weights), optional
        Independent draws that the dual point is solved for; None: the draws are the atoms.
    stationarity : float
        Passed on.
    near : array, optional
        Levels close to those of the atoms, from which they are found without sorting losses.

    Returns
    -------
    Certificate
        ``transport_cost`` is D(P*, P0) of the attained reweighting.
    Dual
        The dual point of the upper bound.
    BoundedRatio or None
        Of draws: the ratio behind the lower side.

    Notes
    -----
    Total variation, Cressie-Read with k < 1, and balls so large that the worst case is the largest
    loss ask for a bound of all losses (`AmbiguitySet.needs_largest`): on draws, the largest of
    both samples stands for it, and the upper side is a "local-estimate". So it is for MMD sets,
    which are about reweightings of given points, and where a few draws carry a tilt
    (`proof_of_tilt`).

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> ball, losses, weights = KL(0.1), np.array([0.0, 1.0, 2.0]), np.full(3, 1 / 3)
    >>> certificate, *_ = reweighted_certificate(ball, ball.on(None, weights), losses, weights)
    >>> certificate.proof, certificate.gap < 1e-12
    ('dual', True)
    """
    exact = None
    if near is not None and fitted is None and hasattr(ambiguity, "dual_near"):
        exact = ambiguity.dual_near(losses, bound.weights, near)
    exact = bound.dual(losses) if exact is None else exact
    point, contributions = exact, losses
    upper, error, proof = exact.value, 0.0, "dual"
    if fitted is not None:
        if ambiguity.budget == 0.0:
            upper = float(weights @ losses)
        elif hasattr(ambiguity, "bounds_at"):
            point = ambiguity.dual(*fitted)
            contributions = ambiguity.bounds_at(losses, point.penalty, point.shift)
            if not np.isfinite(contributions).all():
                together = np.concatenate([losses, fitted[0]])
                point = ambiguity.dual(together, np.concatenate([weights, fitted[1]]))
                contributions = ambiguity.bounds_at(losses, point.penalty, point.shift)
            upper = float(weights @ contributions)
            proof = proof_of_tilt(ambiguity, weights * exact.ratio, point.penalty)
        else:
            influence = getattr(bound, "influence", None)
            contributions = exact.ratio * losses if influence is None else influence(exact, losses)
            proof = "local-estimate" if ambiguity.needs_largest(exact.penalty) else "dual"
        error = standard_error(contributions, weights)
    price = ambiguity.penalty or 0.0
    nominal = float(weights @ losses)
    attained, spent, kept, own = exact.attained, exact.radius, None, 0.0
    if fitted is not None:
        own = standard_error(exact.ratio * (losses - attained), weights)
    if fitted is not None and hasattr(ambiguity, "bounded") and ambiguity.budget != 0.0:
        at = point.penalty, point.shift
        known = point.ratio if len(point.ratio) == len(fitted[0]) else None
        kept = ambiguity.bounded(*fitted, *at, known)
        kept, attained, spent, own = kept.attained(ambiguity, losses, weights, *at)
        if spent == 0.0:  # the reference itself
            point = replace(point, penalty=math.inf)
    lower = max(attained - price * spent, nominal)
    attained = max(attained, nominal)  # which is less by rounding alone
    certificate = Certificate(
        nominal_risk=nominal,
        lower=lower,
        upper=max(upper, lower),
        worst_case_risk=attained,
        radius=None if ambiguity.penalty is not None else float(ambiguity.budget),
        penalty=point.penalty,
        transport_cost=spent,
        standard_error=max(error, own),
        risk_error=own,
        stationarity=stationarity,
        proof=proof,
        discrepancy="discrepancy spent",
    )
    return certificate, point, kept


def proof_of_tilt(ambiguity: Any, mass: np.ndarray, penalty: float) -> str:
    """Return what a dual on draws of a continuous measure proves about that measure.

    "local-estimate" where the set asks for the largest loss (`needs_largest`), and where a few of
    the worst-case masses (n,) carry most: the tilt then looks for what lies beyond the draws, and
    its mean may be infinite.
    """
    if ambiguity.needs_largest(penalty):
        return "local-estimate"
    if np.isfinite(ambiguity.ratio_bound):
        return "dual"
    top = np.sort(mass)[-max(1, len(mass) // 1000) :]
    few = 1.0 / float(mass @ mass) < _FEW or float(top.sum()) > _DOMINATED
    return "local-estimate" if few else "dual"
