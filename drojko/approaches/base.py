"""One interface to all kinds of ambiguity sets: how to train against them and certify."""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Keeper, Limits
from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko._validation import check_number, chosen, is_real, shown
from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.certificates import Certificate
from drojko.distributed.points import SharedPoints
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Objective
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.search.rounds import EFFORTS
from drojko.inner.worst_case import WorstCase
from drojko.losses import Loss
from drojko.measures import LabelledMeasure
from drojko.minimax.newton import LinearFit
from drojko.minimax.problem import Callback, RobustProblem, TrainResult
from drojko.minimax.transport.risk import RidgeData
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import TabularModel, is_linear

__all__ = [
    "APPROACHES", "COLUMNS", "EFFORTS", "MORE", "Approach", "Assessment", "FittedModel",
    "LinearProblem", "NoWorstCase", "Parameters", "Plan", "Points", "approach_to", "arrays",
    "check_effort", "parameters_of", "trained", "warn_of_time",
]  # fmt: skip

#: Rows x, their targets y and their masses w: tensors, or arrays where a model is linear.
Points = tuple[Any, Any, Any]
#: Coefficients (n_outputs, d) and intercepts (n_outputs,) of a linear model, float64.
Parameters = tuple[np.ndarray, np.ndarray]
#: Radii and penalties whose squares, and the squares of what is computed from them, are finite.
_SQUARED = {"radius": (1e-60, 1e60), "penalty": (1e-130, 1e130)}
#: What the exact linear solvers take by name.
_NUMBERS = ("radius", "penalty", "alpha", "fit_intercept", "limits")
#: Of a history.
COLUMNS = ("iteration", "robust_risk", "penalty", "transport_cost", "stationarity", "seconds")
#: Of some, beside those: where rows are held out, and where passes over the rows are counted.
MORE = ("held_out_risk", "passes")


class NoWorstCase(UnsupportedError, AttributeError):
    """An attribute that these settings do not have: ``hasattr`` and ``dir`` take it as absent."""


@dataclass(frozen=True)
class Plan:
    """Everything a fit or an evaluation needs, in the units of the data.

    A linear model on the rows themselves needs no reference, inner solver or generator: its rows
    are the ``atoms``, whose ``groups`` count from there.
    """

    ambiguity: AmbiguitySet
    cost: GroundCost
    loss: Loss
    radius: float | None
    penalty: float | None
    label_cost: float
    n_labels: int
    dtype: torch.dtype
    device: str
    n_outputs: int = 1
    reference: LabelledMeasure | Any = None
    inner: InnerSolver | Any = None
    generator: torch.Generator | Any = None
    alpha: float = 0.0
    certified: float = 0.0
    fit_intercept: bool = True
    max_iter: int = 200
    tol: float = 1e-3
    max_time: float | None = None
    effort: str = "fast"
    training_share: float = 1.0  # of max_time; the certificate takes the rest
    began: float = field(default_factory=time.perf_counter, compare=False)
    n_draws: int = 2000
    outer: Subgradient = field(default_factory=Subgradient)
    callback: Callback | None = None
    keeper: Keeper | None = None  # of the training of a network
    groups: Any = None
    atoms: Points | None = None  # all points of an empirical reference
    held_out: Points | None = None  # rows whose robust risk ends the training of a network
    shards: SharedPoints | None = None  # of which the atoms are those of this process

    @property
    def limits(self) -> Limits:
        """When training ends."""
        return replace(self.whole, max_time=self.max_time and self.training_share * self.max_time)

    @property
    def whole(self) -> Limits:
        """The same with all of the time, certificate included; the clock starts with the plan."""
        limits = self.max_iter, self.tol, self.max_time, self.callback, self.began
        return Limits(*limits, self.keeper)

    @property
    def searched(self) -> str:
        """How hard worst cases are searched, when they are asked for."""
        return "fast" if self.effort == "none" else self.effort

    @property
    def sampled(self) -> bool:
        """Whether points are draws of a continuous reference."""
        return self.atoms is None

    def count(self, draws: int) -> int:
        """How many points: all atoms, or so many draws."""
        return draws if self.atoms is None else len(self.atoms[0])

    @property
    def known(self) -> bool:
        """Whether the exact linear solver knows the worst cases of the loss, with derivatives."""
        return self.loss.scalar and self.loss.has_worst_case and self.loss.has_worst_jet

    @property
    def classes(self) -> bool:
        """Whether the exact multi-class solver applies (for a linear model)."""
        known = not self.loss.scalar and self.loss.has_worst_case
        free = not self.cost.bounded and not self.cost.swaps
        return known and free and math.isinf(self.label_cost)

    @property
    def child(self) -> torch.Generator:
        """A generator for the next stage."""
        return spawn(self.generator)

    def draw(self, count: int) -> Points:
        """The atoms, or draws of the reference, as arrays."""
        return arrays(self.atoms or self.problem(None).draw(count, self.child))

    def ridge(self, points: Points) -> RidgeData:
        """Points as the exact linear solvers of sets that move them take them."""
        x, y, w = arrays(points)
        return RidgeData(
            x,
            y,
            weight=w,
            inverse_cost=self.cost.inverse_weights,
            label_cost=self.label_cost,
            **self._jumps(x),
            loss=self.loss,
        )

    def _jumps(self, x: Any) -> dict[str, Any]:
        """The categories of rows where some may be swapped, and bounds."""
        if not (self.cost.swaps or self.cost.bounded):
            return {}
        from drojko.minimax.transport.jumps.groups import Box, Groups

        return {"swaps": Groups.of(self.cost, x), "box": Box.of(self.cost)}

    def problem(self, model: TabularModel | Any) -> RobustProblem:
        """What is fixed while a module is trained."""
        shared = {f.name for f in fields(RobustProblem)} & {f.name for f in fields(Plan)}
        return RobustProblem(model=model, **{name: getattr(self, name) for name in shared})


@dataclass(frozen=True)
class LinearProblem(ABC):
    """A linear model against a set, on arrays: no module, no search, no draws but the plan's."""

    plan: Plan

    @abstractmethod
    def fit(self, start: tuple[Parameters, float] | None) -> tuple[Parameters, TrainResult]:
        """Train, from parameters and a multiplier where they are given.

        The plan's callback finds ``coef`` and ``intercept`` of each iterate in its ``info``.
        """

    @abstractmethod
    def assess(self, parameters: Parameters, result: TrainResult) -> Assessment:
        """Certify on the atoms, or on draws that training has not seen."""

    def solved(self, solver: Any, *data: Any, **options: Any) -> tuple[Parameters, TrainResult]:
        """What a solver finds that takes the plan's numbers by name."""
        plan = self.plan
        numbers = {name: getattr(plan, name) for name in _NUMBERS}
        return trained(solver(*data, **numbers, **options))


@dataclass(frozen=True)
class Assessment:
    """The certificate of a trained model, and its worst case as arrays and plain values.

    ``constant`` is a word on a model that was replaced by a constant prediction, ``advice`` one
    for the user to be warned with, ``missed`` one on worst cases that training did not see.
    """

    certificate: Certificate
    state: dict[str, Any]
    constant: str | None = None
    advice: str | None = None
    missed: str | None = None


@dataclass(frozen=True)
class FittedModel:
    """What a worst case is rebuilt from, beside its own state."""

    model: TabularModel
    loss: Loss
    reference: LabelledMeasure
    classes: np.ndarray | None
    feature_names: tuple[str, ...] | None
    dtype: torch.dtype
    device: str

    def objective(self, cost_weights: Any, penalty: float, *bounds: Any) -> Objective:
        """What an adversary climbs, scaled by the reference; ``bounds``: lower and upper ones."""
        x, _, _ = self.reference.points(1000, make_generator(0))
        x = x.to(dtype=self.dtype, device=self.device)
        parts: Any = [np.array(part, float) for part in (cost_weights, *bounds)]  # perhaps mapped
        cost = GroundCost(*parts)
        coordinates = Coordinates.build(cost, x, self.model.first_layer())
        return Objective(self.model, self.loss, coordinates, penalty)


class Approach(ABC):
    """How one kind of ambiguity set is trained against, certified and sampled. Stateless."""

    #: Key in the stored state of a fitted estimator.
    name: str
    #: Whether certificates need gradients of the model in its inputs.
    gradients = True
    #: What `serves` asks of a set: whether it moves points (None: no matter), of which orders
    #: (None: the reference alone, radius 0; empty: no matter), with noise, and its methods.
    moves: bool | None = None
    orders: tuple[float | None, ...] = ()
    noisy = False
    methods: tuple[str, ...] = ()

    def serves(self, ambiguity: AmbiguitySet) -> bool:
        """Whether the set offers what this approach needs."""
        order = None if is_real(ambiguity.radius) and ambiguity.radius == 0 else ambiguity.order
        return (
            (order is None or is_real(order))  # else its settings are wrong, which is said later
            and self.moves in (None, ambiguity.moves)
            and (not self.orders or order in self.orders)
            and not (self.noisy and ambiguity.epsilon is None)
            and all(callable(getattr(ambiguity, name, None)) for name in self.methods)
        )

    def resolve(self, ambiguity: AmbiguitySet, X: np.ndarray, names: Any) -> GroundCost:
        """Check the set against the data; the geometry of X, trivial where nothing moves."""
        names = None if names is None else list(names)
        cost = ambiguity.settled(X, names).validate(X.shape[1], names)
        if ambiguity.moves and not isinstance(cost, GroundCost):
            raise UnsupportedError(
                f"{type(ambiguity).__name__}.resolve returned {type(cost).__name__}; transport "
                "needs a drojko.ambiguity.GroundCost"
            )
        for name, (low, high) in _SQUARED.items():
            value = getattr(ambiguity, name)
            if value and not low <= value <= high:
                raise InvalidDataError(
                    f"{name}={value!r} is beyond what floating-point numbers can square: expected "
                    f"{low:g} to {high:g}; use radius=0 for no ambiguity at all, or rescale X"
                )
        if ambiguity.epsilon is not None:
            free = cost.weights[cost.mutable]
            spread = (X.max(axis=0) - X.min(axis=0))[cost.mutable].astype(np.float64)
            scale = float((spread**2 * free).max(initial=0.0))
            if scale > 0 and not 1e-15 <= ambiguity.epsilon / scale <= 1e20:
                raise InvalidDataError(
                    f"epsilon={ambiguity.epsilon:g} is beyond what can be told apart from noise in "
                    f"columns that range over {scale**0.5:g}: expected 1e-15 to 1e+20 times the "
                    "square of that; for no smoothing use Wasserstein(radius)"
                )
        return cost if ambiguity.moves else GroundCost(np.ones(X.shape[1]))

    def shares(self, plan: Plan) -> bool:
        """Whether networks are trained on rows that lie on several processes, ``plan.shards``."""
        return False

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """How far (root mean square) a kernel density reference may move its samples."""
        return None

    def groups(
        self, ambiguity: AmbiguitySet, groups: Any, weight: np.ndarray
    ) -> tuple[np.ndarray, list[Any]] | None:
        """Groups of rows as an indicator matrix, and their names; None where nobody asks."""
        return None

    def atoms(
        self, ambiguity: AmbiguitySet, points: Points, groups: Any
    ) -> tuple[Points, np.ndarray | None]:
        """The atoms of an empirical reference, arrays, and the index of the group of each."""
        return points, None

    def measure(
        self, ambiguity: AmbiguitySet, reference: LabelledMeasure, points: Points, groups: Any
    ) -> LabelledMeasure:
        """Fit the reference, unless it is fitted; ``groups`` are for sets that know of them."""
        if reference.__sklearn_is_fitted__():
            return reference
        return reference.fit(*points)

    def takes_tables(self, ambiguity: AmbiguitySet) -> bool:
        """Whether `linear` needs no array of the rows: a `drojko.rows.table.Table` will do."""
        return True

    def linear(self, plan: Plan) -> LinearProblem | None:
        """How a linear model is trained and certified on arrays; None: as any module."""
        return None

    def reject(self, plan: Plan, model: TabularModel | Any) -> None:  # noqa: B027
        """Raise for combinations without a meaning or not supported."""

    def most_iterations(self, plan: Plan, model: TabularModel) -> int:
        """How many iterations a callback may see."""
        return plan.max_iter

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Train a module in place; ``start`` is the penalty of a previous fit."""
        raise self._only_linear(plan)

    def assess(self, plan: Plan, model: TabularModel, result: TrainResult) -> Assessment:
        """Certify a trained module on draws that training has not seen, or on the atoms."""
        raise self._only_linear(plan)

    def certify(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """Certificate of a fixed model on the empirical measure of points x, y, weights."""
        exact = self.assessed(plan, model, points)
        if exact is not None:
            return exact.certificate
        self.reject(plan, model)
        return self.search(plan, model, points, generator)

    def search(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """`certify` where nothing is known in closed form."""
        raise self._only_linear(plan)

    def _only_linear(self, plan: Plan) -> UnsupportedError:
        return UnsupportedError(
            f"{type(plan.ambiguity).__name__} is for linear models here: use model='linear'"
        )

    def assessed(self, plan: Plan, model: TabularModel, points: Points) -> Assessment | None:
        """What `linear` says of a linear model on the empirical measure of points."""
        if not is_linear(model):
            return None
        atoms, groups = self.atoms(plan.ambiguity, arrays(points), plan.groups)
        plan = replace(plan, atoms=atoms, groups=groups, n_outputs=model.n_outputs)
        problem = self.linear(plan)
        if problem is None:
            return None
        result = TrainResult("converged", "", 0, math.nan, math.nan)
        return problem.assess(parameters_of(model), result)

    def found(
        self, plan: Plan, model: TabularModel, certificate: Certificate, points: Points
    ) -> Any:
        """State of the worst case of a fixed model, for `worst_case`; None where there is none."""
        exact = self.assessed(plan, model, points)
        if exact is None:
            result = TrainResult("converged", "", 0, certificate.penalty, math.nan)
            exact = self.assess(replace(plan, atoms=arrays(points)), model, result)
        return exact.state

    @abstractmethod
    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> WorstCase:
        """Rebuild the worst case of `assess` from its state."""


#: By name, in the order in which they are asked: `drojko.approaches.registry` fills it.
APPROACHES: dict[str, Approach] = {}


def approach_to(ambiguity: Any) -> Approach:
    """The approach to an ambiguity set; a clear error for what is none."""
    if not isinstance(ambiguity, AmbiguitySet):
        raise InvalidDataError(
            f"ambiguity={shown(ambiguity)}; expected an ambiguity set such as those of "
            "drojko.ambiguity"
            f"{AmbiguitySet._instead(ambiguity)}"
        )
    for approach in APPROACHES.values():
        if approach.serves(ambiguity):
            return approach
    ambiguity._validate_params()  # settings out of range, perhaps
    raise UnsupportedError(
        f"{type(ambiguity).__name__} offers nothing to train against: neither on(x, weights, "
        "groups), which solvers for sets that reweight need, nor moves = True with order = 2 and "
        "resolve(n_features, feature_names) -> GroundCost, which transport needs"
    )


def trained(found: LinearFit) -> tuple[Parameters, TrainResult]:
    """Parameters and result from what a linear solver found."""
    result = TrainResult(
        found.status,
        found.message,
        found.n_iter,
        found.multiplier,
        found.stationarity,
        found.history,
        found.relative_gap,
        found.advice,
        found.risk,
        found.scores,
    )
    return (np.atleast_2d(found.coef), np.atleast_1d(found.intercept)), result


def check_effort(where: str, effort: Any, max_time: Any) -> None:
    """Raise `InvalidDataError` where one of them cannot be."""
    chosen(f"{where} got effort", effort, EFFORTS)
    if max_time is not None:
        check_number(f"{where} got max_time", max_time, above=0, infinite=True)


def warn_of_time(plan: Plan, found: Certificate | None, stacklevel: int) -> None:
    """Warn where ``max_time`` ended a thorough certificate before its sides met."""
    ended = plan.effort == "thorough" and plan.whole.time_left == 0.0
    if ended and found is not None and found.lower < found.upper:
        warnings.warn(
            f"effort='thorough' was cut off after max_time={plan.max_time:g} s: what it says is "
            "valid, and no tighter than the time allowed. Raise max_time or leave it out, or ask "
            "for effort='fast'",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def arrays(points: Points) -> Points:
    """Points as arrays, without a copy."""
    x, y, w = (p.cpu().numpy() if isinstance(p, Tensor) else p for p in points)
    return x, y, w


def parameters_of(model: Any) -> Parameters:
    """Coefficients and intercepts of a linear module."""
    first = (model.weights[0], model.biases[0])
    coef, intercept = (part.detach().double().cpu().numpy().copy() for part in first)
    return coef, intercept
