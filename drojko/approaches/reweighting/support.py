"""Sets that reweight given points: groups of rows, kernels between them, sets of a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

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
    trained,
)
from drojko.approaches.reference import by_class
from drojko.certificates import Certificate, reweighted_certificate
from drojko.exceptions import InvalidDataError
from drojko.inner.reweighting.worst_case import MeasuredWorstCase
from drojko.inner.worst_case import WorstCase
from drojko.measures import Empirical, Grouped, Joint, LabelledMeasure
from drojko.measures._arrays import members_of
from drojko.minimax.problem import TrainResult
from drojko.minimax.reweighting.passes import train_network
from drojko.minimax.reweighting.solve import solve_linear
from drojko.models import TabularModel
from drojko.rows import products

__all__ = ["OnSupport", "Reweighted", "losses_of"]

#: Draws of a continuous reference for a certificate, unless the set says less.
DRAWS = 10_000
#: Rows whose losses are not sorted where a dual point is known.
_MANY = 20_000
#: Rows that predictions are made of at a time.
BLOCK = 65_536
#: Share of the worst case, number of rows and share of all rows at which a group is a word worth.
_ALL, _FEW, _SMALL = 0.99, 10, 0.05


#: Points as arrays, the set on them, and the losses there, float64.
Draw = tuple[Points, Any, np.ndarray]


@dataclass(frozen=True)
class Reweighted(LinearProblem):
    """Losses of a linear model at weighted points, and a set that reweights them."""

    approach: OnSupport

    @cached_property
    def _bound(self) -> Any:
        """The set on the atoms: one for training and certificate."""
        x, y, w = self.plan.draw(0)
        plain = w.strides == (0,) and self.approach.name == "reweighting"
        y, w = y if plain else _tensor(y), w if plain else _tensor(w)
        seen = self.plan.ambiguity.sees_points
        x = _tensor(x) if seen else None
        return self.plan.ambiguity.bind(x, y, w, self.plan.groups)

    def support(self, count: int) -> tuple[Points, Any]:
        """Points as arrays, of positive weight, and the set on them."""
        plan = self.plan
        if plan.atoms is not None:
            return plan.draw(0), self._bound
        x, y, w, bound = _support(plan, None, count)
        return arrays((x, y, w)), bound

    def fit(self, start: tuple[Parameters, float] | None) -> tuple[Parameters, TrainResult]:
        """Newton's method with a proven gap, or L-BFGS where there is no proof."""
        plan = self.plan
        points, bound = self.support(plan.n_draws)
        found = solve_linear(
            *points,
            bound,
            plan.loss,
            n_outputs=plan.n_outputs,
            alpha=plan.alpha,
            fit_intercept=plan.fit_intercept,
            limits=plan.limits,
            start=None if start is None else start[0],
        )
        return trained(found)

    def assess(self, parameters: Parameters, result: TrainResult) -> Assessment:
        """The dual of the losses."""
        plan, (coef, intercept) = self.plan, parameters
        scores = None if plan.sampled else result.scores

        def draw() -> Draw:
            points, bound = self.support(DRAWS)
            x, losses, whole = points[0], np.empty(len(points[0])), None
            if scores is not None and scores.of(coef, intercept):
                whole = x.joined(scores.u) if getattr(x, "shared", False) else scores.u
            elif hasattr(x, "rows"):  # a table gives all products at once
                whole = products(x, coef.T) + intercept
            for start in range(0, len(x), BLOCK):
                some = slice(start, start + BLOCK)
                f = products(x[some], coef.T) + intercept if whole is None else whole[some]
                f = np.ascontiguousarray(f[:, 0] if f.ndim > plan.n_outputs else f)
                losses[some] = plan.loss.value(
                    torch.from_numpy(f), _tensor(points[1][some])
                ).numpy()
            return points, bound, losses

        near = result.risk if len(plan.atoms[0] if plan.atoms else ()) >= _MANY else None
        return self.approach.judge(plan, draw, result.stationarity, parameters, near)


class OnSupport(Approach):
    """Every set with ``on(x, weights, groups)``: its worst case are the points with other masses.

    A `Group` set has a measure for each group (`Grouped`), and its worst case is a mixture of
    them. An `MMD` set compares pairs (x, y): the kernel of the points times one of the labels.
    """

    name = "support"
    gradients = False
    methods = ("on",)

    def groups(
        self, ambiguity: AmbiguitySet, groups: Any, weight: np.ndarray
    ) -> tuple[np.ndarray, list[Any]] | None:
        """What `Group` sets ask for."""
        return _membership(groups, weight) if ambiguity.knows_groups else None

    def atoms(
        self, ambiguity: AmbiguitySet, points: Points, groups: Any
    ) -> tuple[Points, np.ndarray | None]:
        """The rows; a row in several groups stands once for each, as in the centre of the set."""
        if not ambiguity.knows_groups:
            return points, None
        x, y, w = points
        members, _ = _membership(groups, w)
        rows, index = np.nonzero(members)
        return (x[rows], y[rows], w[rows] / w[rows].sum()), index

    def measure(
        self, ambiguity: AmbiguitySet, reference: LabelledMeasure, points: Points, groups: Any
    ) -> LabelledMeasure:
        """Fit the reference: one for each group where the set has groups."""
        if not ambiguity.knows_groups:
            return super().measure(ambiguity, reference, points, groups)
        if isinstance(reference, Grouped) and reference.__sklearn_is_fitted__():
            return reference
        members, names = _membership(groups, points[2])
        if reference.__sklearn_is_fitted__():
            raise InvalidDataError(
                "reference is fitted and knows no groups: give an unfitted one, which is fitted to "
                "each group, or a fitted drojko.measures.Grouped"
            )
        template = reference.template if isinstance(reference, Grouped) else reference
        fitted = Grouped(template).fit(*points, groups=members)
        fitted.names_ = names
        return fitted

    def takes_tables(self, ambiguity: AmbiguitySet) -> bool:
        """Where the set sees losses only."""
        return not ambiguity.sees_points

    def linear(self, plan: Plan) -> Reweighted:
        """Always: the losses at the points are all that a set sees."""
        self.reject(plan, None)
        return Reweighted(plan, self)

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Stochastic steps."""
        return train_network(
            plan.problem(model),
            plan.ambiguity,
            spawn(plan.generator),
            n_draws=min(plan.n_draws, plan.ambiguity.most_draws or plan.n_draws),
            outer=plan.outer,
            limits=plan.limits,
        )

    def assess(self, plan: Plan, model: TabularModel, result: TrainResult) -> Assessment:
        def draw() -> Draw:
            x, y, w, bound = _support(plan, model, plan.count(DRAWS))
            return arrays((x, y, w)), bound, losses_of(plan, model, (x, y, w))

        return self.judge(plan, draw, result.stationarity)

    def certify(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """The exact dual of the points."""
        atoms, groups = self.atoms(plan.ambiguity, arrays(points), plan.groups)
        x, y, w = (torch.as_tensor(part, device=plan.device) for part in atoms)
        bound = plan.ambiguity.bind(x, y, w, groups)
        draw = (atoms, bound, losses_of(plan, model, (x, y, w)))
        return self.judge(replace(plan, atoms=atoms), lambda: draw, math.nan).certificate

    def judge(
        self,
        plan: Plan,
        draw: Callable[[], Draw],
        stationarity: float,
        parameters: Parameters | None = None,
        near: Any = None,
    ) -> Assessment:
        """Certificate and worst case from the losses of a model; its parameters if it is linear."""
        (x, y, w), bound, losses = draw()
        certificate, *_ = reweighted_certificate(
            plan.ambiguity,
            bound,
            losses,
            w,
            fitted=(losses, w) if plan.sampled else None,
            stationarity=stationarity,
        )
        if plan.radius is not None:  # in the units of the set's radius
            certificate = replace(certificate, radius=plan.radius)
        state: dict[str, Any] = {"attained_risk": certificate.worst_case_risk}
        dual = bound.dual(losses)
        shares, advice = getattr(dual, "group_weights", None), None
        if shares is not None:
            state["group_weights"] = shares
            advice = None if plan.sampled else _lonely(shares, bound.members)
        else:
            points: Any = x, y, w * dual.ratio
            if hasattr(x, "rows"):  # a table keeps some of its rows, or none
                points = x.kept(*points[1:], None)
            if points is not None:
                x, y, mass, *_ = points
                kept = mass > 0
                state |= {"x": x[kept].astype(np.float64), "y": y[kept], "mass": mass[kept]}
        return Assessment(certificate, state, advice=advice)

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> WorstCase:
        """The worst mixture of the groups, or the points with their worst masses."""
        shares = None
        if "group_weights" in state:
            reference: Any = fitted.reference
            measure = reference.mixture(state["group_weights"])
            shares = dict(zip(reference.names_, state["group_weights"].tolist(), strict=True))
        elif fitted.classes is None:
            rows = np.column_stack([state["x"], state["y"]])
            measure = Joint(Empirical(rows, state["mass"]))
        else:
            x, y, mass = (state[name] for name in ("x", "y", "mass"))
            measure = by_class(lambda rows: Empirical(), x, y, mass, len(fitted.classes))
        return MeasuredWorstCase(
            measure,
            state["attained_risk"],
            fitted.classes,
            fitted.feature_names,
            shares,
            reference=fitted.reference,
        )


def _tensor(values: np.ndarray) -> torch.Tensor:
    """An array as a tensor, which shares memory where it may be written to."""
    return torch.from_numpy(np.require(values, requirements="W"))


def losses_of(plan: Plan, model: TabularModel, points: Points) -> np.ndarray:
    """Losses of a model at weighted points, float64."""
    parts = [
        plan.loss.value(model.linearise(x)[0], y).detach().double().cpu()
        for x, y in zip(points[0].split(BLOCK), points[1].split(BLOCK), strict=True)
    ]
    return torch.cat(parts).numpy()


def _support(plan: Plan, model: Any, count: int) -> Any:
    """Points and the set on them; of an empirical reference the atoms, whatever the count."""
    most = plan.ambiguity.most_draws or count
    return plan.problem(model).support(plan.ambiguity, min(count, most), plan.child)


def _lonely(shares: np.ndarray, members: np.ndarray) -> str | None:
    """A word where one group of few among many rows is all of the worst case."""
    worst, rows = int(shares.argmax()), members.sum(axis=0)
    if shares[worst] < _ALL or rows[worst] >= _FEW or rows[worst] > _SMALL * len(members):
        return None
    return (
        f"a group of {int(rows[worst])} of {len(members)} rows takes all the weight in the worst "
        "case: what the model was trained for is mostly their noise. Join small groups with "
        "drojko.ambiguity.group_columns(labels, min_rows=...), or give Group a radius"
    )


def _membership(groups: Any, weight: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Indicator matrix and names of groups, one row per weight, none without weight."""
    if isinstance(groups, tuple) and len(groups) == 2 and np.ndim(groups[0]) == 2:
        return groups  # already
    return members_of(groups, weight)
