"""Sinkhorn sets: exact for linear models with scalar losses, particles otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status
from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.approaches.base import Approach, Assessment, FittedModel
from drojko.approaches.plan import Plan
from drojko.approaches.transport import training as _training
from drojko.approaches.transport.evaluation import EXACT_DRAWS, LEARNED_DRAWS, best_constant
from drojko.certificates import Certificate
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Objective
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
_COLUMNS = ("iteration", "robust_risk", "penalty", "transport_cost", "stationarity", "seconds")


@dataclass(frozen=True)
class _SampledPlan(Plan):
    """A plan whose problem moves samples to particles; nothing is exact about it."""

    @property
    def ridge(self) -> bool:
        """Never: the exact solvers are about transport."""
        return False

    @property
    def relaxes(self) -> bool:
        """As ``ridge``."""
        return False

    @property
    def classes(self) -> bool:
        """As ``ridge``."""
        return False

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


def _is_exact(plan: Plan, model: TabularModel) -> bool:
    return is_linear(model) and model.n_outputs == 1 and plan.loss.has_tilt


class SinkhornApproach(Approach):
    """Wasserstein sets with entropic smoothing."""

    name = "sinkhorn"

    def serves(self, ambiguity: AmbiguitySet) -> bool:
        """Points that move, with an entropic smoothing."""
        return ambiguity.moves and ambiguity.epsilon is not None

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """A tenth of the radius, or of the noise of the set itself in penalty form."""
        if ambiguity.radius is not None:
            return _INSIDE * math.sqrt(ambiguity.radius)
        return _INSIDE * math.sqrt(0.5 * float(ambiguity.epsilon or 0.0))

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Newton's method where the noise is one-dimensional, particles otherwise."""
        if _is_exact(plan, model):
            return _train_linear(plan, model, start)
        result = _training.train(_sampled(plan), model, start)
        # Noise overlaps all classes: a minimum exists where separable data have none.
        if result.status == "unbounded":
            status = Status.CONVERGED
            return replace(result, status=str(status), message=status.advice)
        return result

    def assess(
        self, plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
    ) -> Assessment:
        """Certify on fresh draws, or on the atoms."""
        exact = _is_exact(plan, model)
        count = (EXACT_DRAWS if exact else LEARNED_DRAWS) if sampled else atoms
        points = plan.problem(model).draw(count, spawn(plan.generator))
        guess = result.penalty if 0 < result.penalty < math.inf else None
        certificate = _certify(
            plan, model, points, spawn(plan.generator), sampled, guess, result.stationarity
        )
        constant = None
        if not exact and is_linear(model):
            output, risk = best_constant(plan, model, *(p.cpu().numpy() for p in points[1:]))
            if certificate.lower > risk:
                with torch.no_grad():
                    weight, bias = model.parameters()
                    weight.zero_()
                    bias.copy_(output)
                constant = (
                    "No smaller worst-case risk than that of the best constant prediction was "
                    "found, which is returned: the radius is large, or the penalty small, for "
                    "these data."
                )
                certificate = _certify(
                    plan, model, points, spawn(plan.generator), sampled, guess, 0.0
                )
        return Assessment(certificate, _state(plan, certificate), constant)

    def found(self, plan: Plan, model: TabularModel, certificate: Certificate, atoms: int) -> Any:
        """The tilted laws of this certificate; none at an infinite price."""
        return _state(plan, certificate) if math.isfinite(certificate.penalty) else None

    def certify(
        self,
        plan: Plan,
        model: TabularModel,
        points: tuple[Tensor, Tensor, Tensor],
        generator: torch.Generator,
    ) -> Certificate:
        """Certificate of a fixed model around the points."""
        return _certify(plan, model, points, generator, False, None, math.nan)

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> GibbsWorstCase:
        """The tilted laws around the reference."""
        x, _, _ = fitted.reference.points(1000, make_generator(0))
        x = x.to(dtype=fitted.dtype, device=fitted.device)
        cost = GroundCost(np.asarray(state["cost_weights"], dtype=np.float64))
        coordinates = Coordinates.build(cost, x, fitted.model.first_layer())
        return GibbsWorstCase(
            Objective(fitted.model, fitted.loss, coordinates, state["penalty"]),
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


def _train_linear(plan: Plan, model: Any, start: float | None) -> TrainResult:
    data = _training.ridge_data(
        plan, *plan.problem(model).draw(plan.n_draws, spawn(plan.generator))
    )
    weight, bias = model.weights[0], model.biases[0]

    def load(coef: np.ndarray, intercept: float) -> None:
        weight.data.copy_(torch.as_tensor(coef)[None])
        bias.data.fill_(float(intercept))

    def callback(iteration: int, info: dict[str, Any]) -> bool:
        if plan.callback is None:
            return False
        load(info["coef"], info["intercept"])
        return plan.callback(iteration, info)

    warm = None
    if start is not None:
        warm = (weight.data[0].double().cpu().numpy().copy(), bias.detach().item(), start)
    solution = solve_sinkhorn(
        data,
        epsilon=_epsilon(plan),
        radius=plan.radius,
        penalty=plan.penalty,
        alpha=plan.alpha,
        fit_intercept=plan.fit_intercept,
        tol=plan.tol,
        max_iter=plan.max_iter,
        max_time=plan.max_time,
        warm_start=warm,
        callback=callback,
    )
    load(solution.coef, solution.intercept)
    history = {
        name: np.array([row.get(name, math.nan) for row in solution.history]) for name in _COLUMNS
    }
    return TrainResult(
        solution.status,
        solution.message,
        solution.n_iter,
        solution.penalty,
        solution.stationarity,
        history,
        solution.relative_gap,
    )


def _certify(
    plan: Plan,
    model: Any,
    points: tuple[Tensor, Tensor, Tensor],
    generator: torch.Generator,
    sampled: bool,
    guess: float | None,
    stationarity: float,
) -> Certificate:
    with torch.no_grad():
        if _is_exact(plan, model):
            coef = model.weights[0].detach().double().cpu().numpy()[0]
            return certify_linear(
                _training.ridge_data(plan, *points),
                coef,
                float(model.biases[0].detach()),
                epsilon=_epsilon(plan),
                guess=guess,
                sampled=sampled,
                stationarity=stationarity,
                radius=plan.radius,
                penalty=plan.penalty,
            )[0]
        x, y, w = points
        if len(x) > _MOST_ATOMS:
            rows = torch.multinomial(w.cpu(), _MOST_ATOMS, generator=generator).to(x.device)
            x, y, w, sampled = x[rows], y[rows], w[rows] / w[rows].sum(), True
        problem = cast(SinkhornProblem, _sampled(plan).problem(model))
        objective = problem.objective(x, 1.0)
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
