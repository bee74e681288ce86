"""Sinkhorn sets: exact for linear models with scalar losses, particles otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch

from drojko._driver import Status
from drojko._random import spawn
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.base import (
    Approach,
    Assessment,
    FittedModel,
    LinearProblem,
    Parameters,
    Plan,
    Points,
    arrays,
)
from drojko.approaches.transport import training as _training
from drojko.approaches.transport.evaluation import LEARNED_DRAWS, best_constant, make_constant
from drojko.approaches.transport.linear import DRAWS
from drojko.certificates import Certificate
from drojko.inner.sinkhorn.worst_case import GibbsWorstCase
from drojko.minimax.problem import RobustProblem, TrainResult
from drojko.minimax.sinkhorn.certificate import certify_linear, certify_sampled
from drojko.minimax.sinkhorn.linear import solve_sinkhorn
from drojko.minimax.sinkhorn.sampled import SinkhornProblem
from drojko.models import TabularModel, is_linear

__all__ = ["SinkhornApproach"]

#: Share of the set's own smoothing and radius that a kernel density reference may spend.
_INSIDE = 0.1
_TRAINING, _MOST_ATOMS, _PARTICLES, _EVALUATIONS = 256, 5_000, (64, 512), 400_000


@dataclass(frozen=True)
class _SampledPlan(Plan):
    """A plan whose problem moves samples to particles; nothing is exact about it."""

    # The exact solvers are about transport.
    known = classes = property(lambda self: False)  # pyright: ignore

    def problem(self, model: TabularModel) -> RobustProblem:
        """The sampled problem; quasi-Newton needs the same draws at each evaluation."""
        plain = super().problem(model)
        values = {f.name: getattr(plain, f.name) for f in fields(RobustProblem)}
        values["radius"] = None if self.radius is None else math.sqrt(self.radius)
        seed = int(torch.randint(2**31 - 1, (1,), generator=spawn(self.generator)))
        return SinkhornProblem(
            **values,
            epsilon=_epsilon(self),
            seed=seed if is_linear(model) else None,
            stream=torch.Generator().manual_seed(seed),
            m=_TRAINING if is_linear(model) else 32,
        )


def _epsilon(plan: Plan) -> float:
    return float(plan.ambiguity.epsilon or 0.0)


def _sampled(plan: Plan) -> _SampledPlan:
    return _SampledPlan(**{f.name: getattr(plan, f.name) for f in fields(Plan)})


@dataclass(frozen=True)
class Tilted(LinearProblem):
    """A loss of one output whose log-mean under Gaussian noise is known."""

    def fit(self, start: tuple[Parameters, float] | None) -> tuple[Parameters, TrainResult]:
        """Newton's method with a proven gap."""
        plan, warm = self.plan, None
        if start is not None:
            (coef, intercept), penalty = start
            warm = (coef[0], float(intercept[0]), penalty)
        data = plan.ridge(plan.draw(plan.n_draws))
        return self.solved(solve_sinkhorn, data, epsilon=_epsilon(plan), warm_start=warm)

    def assess(self, parameters: Parameters, result: TrainResult) -> Assessment:
        """Both sides from one root."""
        plan, (coef, intercept) = self.plan, parameters
        certificate, _ = certify_linear(
            plan.ridge(plan.draw(DRAWS)),
            coef[0],
            float(intercept[0]),
            epsilon=_epsilon(plan),
            guess=result.penalty if 0 < result.penalty < math.inf else None,
            sampled=plan.sampled,
            stationarity=result.stationarity,
            radius=plan.radius,
            penalty=plan.penalty,
        )
        return Assessment(certificate, _state(plan, certificate))


class SinkhornApproach(Approach):
    """Wasserstein sets with entropic smoothing."""

    name = "sinkhorn"
    moves = True
    noisy = True

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """A tenth of the radius, or of the noise of the set itself in penalty form."""
        if ambiguity.radius is not None:
            return _INSIDE * math.sqrt(ambiguity.radius)
        return _INSIDE * math.sqrt(0.5 * float(ambiguity.epsilon or 0.0))

    def linear(self, plan: Plan) -> Tilted | None:
        """Where the noise is one-dimensional."""
        return Tilted(plan) if plan.loss.scalar and plan.loss.has_tilt else None

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Steps at particles around each sample."""
        result = _training.train(_sampled(plan), model, start)
        # Noise overlaps all classes: a minimum exists where separable data have none.
        if result.status == "unbounded" and not plan.loss.attained:
            status = Status.CONVERGED
            return replace(result, status=str(status), message=status.advice)
        return result

    def assess(self, plan: Plan, model: TabularModel, result: TrainResult) -> Assessment:
        points = plan.problem(model).draw(plan.count(LEARNED_DRAWS), spawn(plan.generator))
        guess = result.penalty if 0 < result.penalty < math.inf else None
        certificate = _certify(plan, model, points, guess, result.stationarity)
        constant = None
        if is_linear(model) and plan.effort != "none":
            output, risk = best_constant(plan, model, points)
            if certificate.lower > risk:
                constant = make_constant(model, output)
                certificate = _certify(plan, model, points, guess, 0.0)
        return Assessment(certificate, _state(plan, certificate), constant)

    def found(
        self, plan: Plan, model: TabularModel, certificate: Certificate, points: Points
    ) -> Any:
        """The tilted laws of this certificate; none at an infinite price."""
        return _state(plan, certificate) if math.isfinite(certificate.penalty) else None

    def search(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """Particles around the points."""
        plan = replace(plan, atoms=arrays(points), generator=generator)
        return _certify(plan, model, points, None, math.nan)

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> GibbsWorstCase:
        """The tilted laws around the reference."""
        return GibbsWorstCase(
            fitted.objective(state["cost_weights"], state["penalty"]),
            fitted.reference,
            state["epsilon"],
            state["attained_risk"],
            fitted.classes,
            fitted.feature_names,
            state["cost_weights"],
        )


def _state(plan: Plan, certificate: Certificate) -> dict[str, Any]:
    return {
        "penalty": certificate.penalty,
        "epsilon": _epsilon(plan),
        "attained_risk": certificate.worst_case_risk,
        "cost_weights": plan.cost.weights,
    }


def _certify(
    plan: Plan, model: Any, points: Points, guess: float | None, stationarity: float
) -> Certificate:
    generator = spawn(plan.generator)
    with torch.no_grad():
        (x, y, w), sampled = points, plan.sampled
        if len(x) > _MOST_ATOMS:
            rows = torch.multinomial(w.cpu(), _MOST_ATOMS, generator=generator).to(x.device)
            x, y, w, sampled = x[rows], y[rows], w[rows] / w[rows].sum(), True
        problem = cast(SinkhornProblem, _sampled(plan).problem(model))
        objective = problem.objective(x, plan.penalty or 1.0)
        if plan.radius != 0.0:  # the noise is Gaussian: its tilt exists where transport is bounded
            check = problem.adversary(objective, 0).check_finite
            check(objective.batch(x, y), plan.radius is not None)
        if guess is None:
            guess = problem.first_penalty(objective, objective.batch(x, y), w)
        low, high = _PARTICLES
        return certify_sampled(
            problem,
            objective,
            (x, y, w),
            generator,
            guess=guess if 0 < guess < math.inf else 1.0,
            m=4 * (max(low, min(high, _EVALUATIONS // len(x))) // 4),
            sampled=sampled,
            stationarity=stationarity,
            radius=plan.radius,
            penalty=plan.penalty,
        )[0]
