r"""Certificates of networks whose rows lie on several ranks: each bounds its own, sums decide.

With masses :math:`m_k` of the ranks and :math:`\overline J_\lambda` a bound of the inner problem,

.. math:: V(r) \le \min_\lambda\; \lambda r^2
          + \sum_k m_k \sum_{i \in k} w_i \overline J_\lambda(x_i)
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drojko._numerics import standard_error
from drojko._random import spawn
from drojko.approaches.base import Assessment, Plan
from drojko.approaches.transport.evaluation import (
    LEARNED_DRAWS,
    affordable,
    compared,
    learn,
    stated,
)
from drojko.certificates import Certificate, Evaluation, closed, network_dual
from drojko.exceptions import UnsupportedError
from drojko.inner.networks.bound import NetworkBound
from drojko.inner.networks.problem import minimise
from drojko.inner.objective import Batch
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.bounds import structure
from drojko.inner.transport.radius import solve_ball
from drojko.inner.transport.search.rounds import Restarts
from drojko.minimax.problem import TrainResult
from drojko.models import TabularModel

__all__ = ["assess_shared"]

#: From the best that can be said of an upper side to the least.
_PROOFS = (
    "ridge-1d", "strong-concavity", "branch-and-bound", "linear-bounds", "lipschitz",
    "local-estimate",
)  # fmt: skip
#: Numbers in the rows that all ranks have of each other, to search from.
_NUMBERS = 2**24
#: The first step of the logarithm of the penalty, and a gap that needs none.
_STEP, _CLOSE = 0.08, 0.01


def assess_shared(plan: Plan, model: TabularModel, result: TrainResult) -> Assessment:
    """As `assess`, of the rows of all ranks: each searches and bounds its own.

    Starts are drawn towards a sample of all ranks' rows, which has the labels that a rank lacks.
    """
    shards: Any = plan.shards
    penalty = result.penalty if 0 < result.penalty < math.inf else 1.0
    points = plan.problem(model).draw(0, spawn(plan.generator))
    count = min(LEARNED_DRAWS, max(100, _NUMBERS // points[0].shape[1]))
    sample = shards.sample(points, count, spawn(plan.generator))
    with shards.apart():
        adversary = learn(plan, model, sample, penalty, atoms=True)
        x, y, w = points
        few = False
        if len(x):
            (x, y, w), few = affordable(plan, model, points, result.n_iter)
        else:  # no row of its own, but a batch of one that counts for nothing
            x, y, w = (part[:1] for part in sample)
        sampled, w = shards.ranks.any(few), w / w.sum()
        batch = adversary.objective.batch(x, y)
        evaluation = _certify(plan, adversary, batch, w, sampled, result.stationarity)
    own = None if sampled or adversary.exact or not len(points[0]) else w
    whole = (torch.empty(0), torch.from_numpy(shards.y), torch.from_numpy(shards.w))
    return compared(plan, model, result, stated(plan, evaluation, own), whole, sampled)


def _certify(
    plan: Plan, adversary: Adversary, batch: Batch, w: Tensor, sampled: bool, stationarity: float
) -> Evaluation:
    """`certify` with means over the rows of all ranks, of which these have masses w here."""
    shards: Any = plan.shards
    adversary = adversary.with_effort(plan.searched)
    if plan.radius != 0.0:
        adversary.check_finite(batch, plan.radius is not None)
    objective, mean = adversary.objective, shards.average
    base = objective.risk(batch, batch.q0)
    nominal, unproven = mean(base, w), ""
    if plan.radius is None:
        worst: Any = adversary.solve(batch)
        used, penalty, spread = adversary, objective.penalty, worst.value
        lower = max(mean(spread, w), nominal)
        restarts = Restarts.of(worst.found.evidence, worst.value - base, w, mean)
        priced = [(penalty, worst)]
    else:
        worst = solve_ball(
            adversary, batch, w, plan.radius, start=objective.penalty, atoms=not sampled,
            average=mean,
        )  # fmt: skip
        used, penalty, restarts = worst.adversary, worst.penalty, worst.restarts
        lower, spread = mean(worst.risk, w), worst.risk
        priced = [(worst.low_penalty, worst.low), (worst.high_penalty, worst.high)]
        if math.isfinite(penalty):
            spread = worst.risk - penalty * worst.cost
    upper, proof = nominal, "dual"
    if math.isfinite(penalty):
        quick = used.with_effort("warm")  # bounds start from what was found
        upper, proof, unproven = _upper(plan, quick, batch, w, priced, lower)
    if restarts is not None:
        restarts = replace(restarts, rounds=int(shards.ranks.largest(restarts.rounds)))
    error = largest = 0.0
    if sampled:
        error = shards.error(standard_error(worst.risk, w))
        largest = max(shards.error(standard_error(spread, w)), error)
    certificate = Certificate(
        nominal_risk=nominal,
        lower=lower,
        upper=max(upper, lower),
        worst_case_risk=mean(worst.risk, w),
        radius=plan.radius,
        penalty=penalty,
        transport_cost=mean(worst.cost, w),
        standard_error=largest,
        risk_error=error,
        stationarity=stationarity,
        proof=proof,
        search="" if restarts is None else str(restarts),
        unproven=unproven if proof == "local-estimate" else "",
    )
    return Evaluation(certificate, worst, used, restarts)


def _upper(
    plan: Plan,
    adversary: Adversary,
    batch: Batch,
    w: Tensor,
    priced: list[tuple[float, Moved]],
    lower: float,
) -> tuple[float, str, str]:
    """The smallest dual value that is proven, its proof, and why there is none."""
    shards: Any = plan.shards
    known, budget = structure(adversary.objective), 0.0 if plan.radius is None else plan.radius**2
    options = []
    for penalty, moved in dict(priced).items():
        bound, proof = adversary.with_penalty(penalty).upper(moved, known)
        value = penalty * budget + shards.average(bound, w)
        options.append((value, shards.weakest(_PROOFS, proof), penalty, bound))
    best = min(options, key=lambda one: (one[1] == "local-estimate", one[0]))[:2]
    if closed(best[0], lower, best[1]):
        return *best, ""
    price, found, step = options[-1][2], tuple(moved.q for _, moved in priced), _STEP
    while True:
        at, limits = adversary.with_penalty(price), (plan.searched, plan.whole.time_left)
        network, unproven = None, "what another rank has no bounds of"
        try:
            network = network_dual(at, batch, w, None, found, *limits)
        except UnsupportedError as error:
            unproven = str(error)
        if shards.ranks.any(network is None):
            return *_finite(*best), unproven
        bounds: NetworkBound = network  # type: ignore[assignment]

        def value(log: float, bounds: NetworkBound = bounds) -> float:
            strength = math.exp(log)
            rows = bounds.at(strength)
            for _, proof, least, bound in options:  # what is paid more for attains less
                if strength >= least and proof != "local-estimate":
                    rows = torch.minimum(rows, bound.double().cpu())
            return strength * budget + shards.average(rows, w.cpu())

        upper = value(math.log(price))
        if plan.radius is not None:
            upper = min(upper, minimise(value, math.log(price))[0])
        proof = shards.weakest(_PROOFS, bounds.proof)
        better = best[1] == "local-estimate" or upper < best[0]
        best = (upper, proof) if better else best
        # Boxes bound at one penalty, and a larger one may be the better.
        boxes = plan.radius is not None and shards.ranks.any(bounds.few is not None)
        if not (boxes and better and upper - lower > _CLOSE * abs(lower)):
            return *_finite(*best), ""
        price, step = price * math.exp(step), 1.6 * step


def _finite(value: float, proof: str) -> tuple[float, str]:
    return (value, proof) if math.isfinite(value) else (math.inf, "local-estimate")
