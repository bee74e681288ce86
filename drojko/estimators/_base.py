"""What both estimators share: from arrays to a trained model, a certificate and a worst case."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from drojko._callbacks import CallbackSupportMixin, FitProgress
from drojko._driver import Status, all_finite, arithmetic
from drojko._sklearn import (
    DEPTH,
    ExplainedParameters,
    HasMethods,
    Interval,
    NestedDefaults,
    StrOptions,
    checked_weight,
    plain,
)
from drojko._threads import SMALL, one_thread, sharing
from drojko._validation import shown
from drojko.ambiguity import AmbiguitySet, GroundCost, Wasserstein
from drojko.approaches.base import (
    COLUMNS,
    EFFORTS,
    MORE,
    Approach,
    Assessment,
    LinearProblem,
    Plan,
    Points,
    warn_of_time,
)
from drojko.approaches.reference import (
    NAMES,
    atoms_of,
    build_reference,
    count_atoms,
    is_sampled,
)
from drojko.approaches.registry import approach_to
from drojko.estimators._batches import OnBatches
from drojko.estimators._fitted import CACHES, DTYPES, Fitted
from drojko.estimators._models import OnModule, check_device, warn_of_target
from drojko.estimators._networks import checkpoint_of, on_network, shared, warn_of_outputs
from drojko.exceptions import InvalidDataError, NonFiniteError
from drojko.inner.choice import choose_inner, distinct, get_inner
from drojko.inner.reweighting.importance import Importance
from drojko.inner.reweighting.semidual import SemiDual
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.solvers import ICNNJKO, Pointwise
from drojko.losses import Loss
from drojko.measures import LabelledMeasure, Measure
from drojko.measures._arrays import group_names
from drojko.minimax.newton import CONSTANT, ENDLESS
from drojko.minimax.problem import Callback, TrainResult
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import ACTIVATIONS, TabularModel
from drojko.rows import equal, fingerprint, is_large, normalised


def _seed(random_state: Any) -> int:
    """An integer seed; None takes it from the system, not from numpy's global generator."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31 - 1))
    return int(check_random_state(random_state).randint(2**31 - 1))


#: Inner solvers that an exact linear fit has no use for.
_SIMPLE = (None, "icnn", "pointwise")
#: Parameters that a plan has under the same names.
_LIMITS = ("fit_intercept", "max_iter", "tol", "max_time", "effort")
#: What training may take of max_time where the worst case has to be searched.
_TRAINING = {"fast": 0.6, "thorough": 0.3, "none": 1.0}


class OnArrays:
    """Training of a linear model from arrays to arrays."""

    def __init__(self, problem: LinearProblem, n_features: int) -> None:
        self.problem, self.most = problem, problem.plan.max_iter
        outputs = problem.plan.n_outputs
        self.shapes = {"weights.0": (outputs, n_features), "biases.0": (outputs,)}
        self.dtype = str(problem.plan.dtype).removeprefix("torch.")

    def seen(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
        """The parameters of an iterate, as a module would hold them."""
        pairs = zip(self.shapes.items(), (info["coef"], info["intercept"]), strict=True)
        return {name: np.array(value, self.dtype).reshape(shape) for (name, shape), value in pairs}

    def train(self, start: Any, report: Callback) -> tuple[dict[str, np.ndarray], TrainResult]:
        """Parameters and how training ended."""
        if start is not None:
            before = tuple(start[0][name].astype(np.float64) for name in self.shapes)
            start = (before, start[1])
        problem = replace(self.problem, plan=replace(self.problem.plan, callback=report))
        (coef, intercept), result = problem.fit(start)
        self.problem, self.parameters = problem, self.seen({"coef": coef, "intercept": intercept})
        return self.parameters, result

    def untrained(self) -> dict[str, np.ndarray]:
        """The parameters before the first step."""
        self.parameters = {name: np.zeros(s, self.dtype) for name, s in self.shapes.items()}
        return self.parameters

    def assess(self, result: TrainResult) -> Assessment:
        """Certificate and worst case of what was stored, in its precision."""
        stored: Any = tuple(value.astype(np.float64) for value in self.parameters.values())
        return self.problem.assess(stored, result)


@dataclass(eq=False, repr=False)
class BaseDRO(OnBatches, CallbackSupportMixin, ExplainedParameters, NestedDefaults, Fitted):
    """Shared machinery; see `DROClassifier` and `DRORegressor`."""

    ambiguity: Any = None
    _: KW_ONLY
    model: Any = "linear"
    hidden_layer_sizes: Any = (64,)
    activation: str = "softplus"
    reference: Any = "kde"
    inner: Any = "icnn"
    alpha: float = 0.0
    certified: Any = 0.0
    fit_intercept: bool = True
    max_iter: int = 200
    tol: float = 1e-3
    batch_size: int | None = None
    learning_rate: float = 5e-3
    max_time: float | None = None
    effort: str = "fast"
    n_draws: int | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10
    warm_start: bool = False
    random_state: Any = None
    n_jobs: int | None = None
    device: Any = "cpu"
    dtype: str = "float64"
    verbose: bool = False
    checkpoint: Any = None
    checkpoint_every: float = 60.0

    _nested_defaults = {
        "ambiguity": lambda: Wasserstein(radius=0.1),
        "inner": {
            None: ICNNJKO,
            "icnn": ICNNJKO,
            "importance": Importance,
            "pointwise": Pointwise,
            "semidual": SemiDual,
        },
    }
    _classification = False

    _parameter_constraints: ClassVar[dict] = {  # pyright: ignore
        "ambiguity": [AmbiguitySet, None],
        "loss": [str, Loss, callable],
        "model": [StrOptions({"linear", "mlp"}), callable, torch.nn.Module],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "reference": [StrOptions(set(NAMES)), Measure, LabelledMeasure],
        "inner": [
            StrOptions({"auto", "icnn", "importance", "pointwise", "semidual"}),
            InnerSolver,
            None,
        ],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "certified": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "fit_intercept": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "effort": [StrOptions({*EFFORTS, "none"})],
        "n_draws": [Interval(Integral, 1, None, closed="left"), None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "device": [str, HasMethods(["type"])],
        "dtype": [StrOptions(set(DTYPES))],
        "verbose": ["verbose"],
        "checkpoint": [str, os.PathLike, None],
        "checkpoint_every": [Interval(Real, 0, None, closed="left")],
    }

    def _hint(self, name: str) -> str:
        own = AmbiguitySet._instead if name == "ambiguity" else None
        return own(self.ambiguity) if own else super()._hint(name)

    # -- fitting -----------------------------------------------------------------------------

    def _fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        target: np.ndarray,
        sample_weight: Any,
        groups: Any = None,
    ):
        """Fit on validated X, encoded targets y (class indices or floats) and original labels."""
        ambiguity = self._nested("ambiguity")
        approach = approach_to(ambiguity)
        names = getattr(self, "feature_names_in_", None)
        settled = ambiguity.settled(X, names)
        self._found = None if settled is ambiguity else settled.get_params(deep=False)
        ambiguity = settled
        if names is not None:
            warn_of_target(self, X, y)
        cost = approach.resolve(ambiguity, X, names)
        self._categories = None if cost.categories is None else cost.categories.known
        self._groups = group_names(groups) if ambiguity.knows_groups else None
        if not isinstance(self.device, str) or self.device != "cpu":
            check_device(self.device)
        if self.inner not in _SIMPLE:
            self._plain_inner().check(ambiguity)
        on_rows = self._on_rows()
        weight = equal(len(X), len(X)) if sample_weight is None and on_rows else None
        weight = checked_weight(sample_weight, X) if weight is None else weight
        if self._classification:
            self._check_classes(y, weight)
        self._check_network_only(approach)
        seed = _seed(self.random_state)
        if self.model != "linear" and getattr(X, "shared", False):
            seed = int(X.ranks.largest(seed))  # type: ignore[attr-defined]
        keeper: Any = None
        if self.checkpoint is not None:
            keeper, seed = checkpoint_of(self, (X, y, weight), groups, seed)
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}

        last: dict[str, Any] = {}
        with self._threads(X.size), arithmetic("the fit"):
            plan = self._plan(ambiguity, cost, self._outputs())
            rows = (X, y, weight)
            plan, reference, chosen = self._placed(plan, approach, rows, groups, seed)
            linear = approach.linear(plan) if self.model == "linear" else None
            if linear is None:
                plan = replace(plan, training_share=_TRAINING[self.effort])
                work: Any = on_network(self, approach, plan, rows, groups, seed, keeper)
            else:
                work = OnArrays(linear, X.shape[1])
            self.certified_ = 0.0 if linear is not None else work.training.certified
            start = self._start(work.shapes) if self.warm_start else None
            with self._salvaging(last, plan, reference):
                with FitProgress(self, work.most, X=X, y=target, metadata=metadata) as progress:

                    def report(iteration: int, info: dict[str, Any]) -> bool:
                        parameters = work.seen(info)
                        if all_finite(parameters):
                            last.update(parameters=parameters, n_iter=iteration)
                        fitted = {"n_iter_": iteration, "_n_outputs": plan.n_outputs}
                        return progress.step(lambda: {**self._attributes(parameters), **fitted})

                    if self._bottomless(plan, y):
                        parameters = work.untrained()
                        result = TrainResult("unbounded", ENDLESS, 0, math.nan, math.nan)
                    else:
                        parameters, result = work.train(start, report)
                self._store(parameters, plan, result, reference)
                last["result"] = result
                if result.status == Status.INTERRUPTED:
                    raise KeyboardInterrupt(result.message)
                if chosen:
                    self.message_ = f"{result.message} {chosen}"
                advice = None
                if self.effort == "none":
                    # Later the other ranks are not there.
                    if getattr(X, "shared", False) and self.model == "linear":
                        self._worst = {"approach": approach.name, **work.assess(result).state}
                    elif reference is not None:
                        late = copy.deepcopy(ambiguity)
                        if plan.shards is not None and 0.0 < result.penalty < math.inf:
                            late.set_params(radius=None, penalty=result.penalty)
                        self._late = (late, result.penalty, seed, len(X))
                else:
                    found = work.assess(result)
                    advice = found.advice
                    if found.constant is not None:  # the model was changed after all
                        again = replace(result, gap=math.nan)
                        self._store(work.parameters, plan, again, reference)
                        said = (result.message, chosen, found.constant)
                        self.message_ = " ".join(filter(None, said))
                    if chosen:
                        kept = replace(found.certificate, inner=chosen)
                        found = replace(found, certificate=kept)
                    if found.missed is not None:
                        result = replace(result, status=str(Status.STALLED), message=found.missed)
                        self.status_, self.message_ = result.status, result.message
                    self._keep(found, approach.name)
            still = self.model == "linear" and not np.any(self.coef_)
            if still and (X.max(axis=0) > X.min(axis=0)).any() and np.ptp(y):
                result = replace(result, advice=CONSTANT)
            self._warn(result, advice)
            warn_of_time(plan, self.certificate_, DEPTH + 1)
            if self.model != "linear":
                warn_of_outputs(self, plan, work.model, X)
        return self

    def _check_network_only(self, approach: Approach) -> None:
        """Raise for what has a meaning for networks against transport sets only."""
        if self.model != "linear" and approach.name == "transport":
            return
        if isinstance(self.certified, str) or self.certified > 0:
            raise InvalidDataError(
                f"certified={self.certified!r} is for networks against Wasserstein sets of order "
                "2: leave it at 0.0; certificates of linear models and of sets that reweight need "
                "no help"
            )
        if self.early_stopping:
            raise InvalidDataError(
                "early_stopping=True is for networks against Wasserstein sets of order 2: leave it "
                "at False; linear models are trained to a proven gap, tol"
            )

    def _work(self, approach: Approach, plan: Plan, fitted: TabularModel) -> Any:
        """The present model, to assess it."""
        linear = approach.linear(plan) if self.model == "linear" else None
        if linear is None:
            return OnModule(approach, plan, fitted)
        work = OnArrays(linear, self.n_features_in_)
        work.parameters = self.parameters_
        return work

    def _bottomless(self, plan: Plan, y: np.ndarray) -> bool:
        """Whether constant predictions alone have no least risk, whatever the set."""
        constants = self.fit_intercept and self.model in ("linear", "mlp")
        moved = not self._classification and math.isfinite(plan.label_cost)
        labels = np.arange(len(self.classes_)) if self._classification else y
        return constants and not moved and plan.loss.bottomless(labels, plan.n_outputs)

    def _placed(
        self,
        plan: Plan,
        approach: Approach,
        rows: Points,
        groups: Any,
        seed: int,
        reference: LabelledMeasure | None = None,
    ) -> tuple[Plan, Any, str]:
        """The plan with its points, their reference, and why "auto" chose an inner solver.

        A linear model on the rows themselves needs neither a measure nor an inner solver: what
        makes the reference, when it is asked for, are the arguments of `empirical`.
        """
        x, y, weight = rows
        table = hasattr(x, "rows")  # no array: sparse, or in batches
        simple = self._on_rows() and (approach.takes_tables(plan.ambiguity) or not table)
        placed = replace(plan, atoms=rows)
        if simple and reference is None and approach.linear(placed) is not None:
            known = approach.groups(plan.ambiguity, groups, weight)
            points = x, y, normalised(weight)
            if not weight.all():
                kept = weight > 0
                points = (x[kept], y[kept], weight[kept] / weight.sum())
                known = known and (known[0][kept], known[1])
            elif not (table or is_large(x)):  # not the caller's arrays, where a copy is cheap
                points = x.copy(), y.copy(), points[2]
            if not points[1].flags.writeable:  # of a read-only memory map: torch would warn
                points = (points[0], points[1].copy(), points[2])
            atoms, index = approach.atoms(plan.ambiguity, points, known)
            kept_rows = points[0].kept(*points[1:], known) if table else (*points, known)
            return replace(plan, atoms=atoms, groups=index), kept_rows, ""
        if table:
            found = shared(self, plan, approach, rows, seed) if self.model != "linear" else None
            if found is None:
                raise x.refused(self._demanding(plan))
            return found
        if reference is None:
            smoothing = approach.smoothing(plan.ambiguity)
            reference = build_reference(
                self.reference, plan.cost, smoothing, self._classification, seed
            )
            reference = approach.measure(plan.ambiguity, reference, rows, groups)
        count = count_atoms(reference, len(x))
        sampled = is_sampled(reference)
        inner, chosen = self._inner(plan.ambiguity, x, y, sampled)
        plan = replace(
            plan,
            reference=reference,
            inner=inner,
            generator=torch.Generator().manual_seed(seed),
            n_draws=self.n_draws or self._default_draws(count, sampled),
        )
        if not sampled:
            atoms, index = atoms_of(reference, count)
            plan = replace(plan, atoms=atoms, groups=index)
        return plan, reference, chosen

    @contextmanager
    def _threads(self, size: int) -> Iterator[None]:
        """One thread for BLAS and small work, and those of ``n_jobs`` for large sums over rows."""
        if self.n_jobs is None:
            count = 1
        elif self.n_jobs == 0:
            raise InvalidDataError("n_jobs=0; expected a number of threads, or -1 for all cores")
        else:
            count = effective_n_jobs(self.n_jobs)
        with one_thread(size < SMALL or self.model == "linear"), sharing(count):
            yield

    def _on_rows(self) -> bool:
        """Whether the rows themselves are all that a linear model is fitted to."""
        return self.model == "linear" and self.inner in _SIMPLE and self.reference == "empirical"

    def _demanding(self, plan: Plan) -> str:
        """What it is that needs an array of the rows."""
        for name, known in (("model", ("linear",)), ("inner", _SIMPLE), ("reference", NAMES[:1])):
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in known:
                return f"{type(self).__name__} with {name}={shown(value)}"
        return f"{type(plan.ambiguity).__name__} with these settings and loss={shown(plan.loss)}"

    def _inner(
        self, ambiguity: AmbiguitySet, X: np.ndarray, y: np.ndarray, sampled: bool
    ) -> tuple[InnerSolver, str]:
        """The inner solver, and in words why "auto" chose it."""
        if self.inner != "auto":
            given = get_inner(self._nested("inner"))
            given.check(ambiguity)
            return given, ""
        exact = self.model == "linear" and self._get_loss(self._outputs()).scalar
        n_samples = len(X)
        if self._classification and not sampled and ambiguity.divergence is not None:
            n_samples = min(distinct(X[y == k]) for k in range(len(self.classes_)))
        choice = choose_inner(
            ambiguity,
            X.shape[1],
            sampled=sampled,
            n_samples=n_samples,
            exact_loss=exact,
            labelled=self._classification,
        )
        choice.inner.check(ambiguity)
        return choice.inner, str(choice)

    def _plain_inner(self) -> InnerSolver:
        return ICNNJKO() if self.inner == "auto" else get_inner(self._nested("inner"))

    def _outputs(self) -> int:
        n_classes = len(self.classes_) if self._classification else 0
        return n_classes if n_classes > 2 else 1

    def _plan(self, ambiguity: AmbiguitySet, cost: GroundCost, n_outputs: int) -> Plan:
        names = getattr(self, "feature_names_in_", None)
        return Plan(
            ambiguity=ambiguity.for_data(
                [str(k) for k in range(self.n_features_in_)] if names is None else list(names),
                self.classes_ if self._classification else None,
            ),
            cost=cost,
            loss=self._get_loss(n_outputs),
            n_outputs=n_outputs,
            radius=None if ambiguity.radius is None else float(ambiguity.radius),
            penalty=None if ambiguity.penalty is None else float(ambiguity.penalty),
            label_cost=float(ambiguity.label_cost),
            n_labels=len(self.classes_) if self._classification else 0,
            dtype=DTYPES[self.dtype],
            device=str(self.device),
            alpha=float(self.alpha),
            outer=Subgradient(
                learning_rate=self.learning_rate,
                batch_size=self.batch_size,
                patience=self.n_iter_no_change,
            ),
            **{name: getattr(self, name) for name in _LIMITS},
        )

    def _check_classes(self, y: np.ndarray, weight: np.ndarray) -> None:
        counted = None if weight.strides == (0,) else weight  # equal ones: their number is enough
        mass = np.bincount(y, weights=counted, minlength=len(self.classes_))
        if not mass.all():
            empty = plain(self.classes_[int(mass.argmin())])
            raise InvalidDataError(
                f"class {empty!r} has zero total sample_weight: drop its rows or give it weight"
            )

    def _default_draws(self, atoms: int, sampled: bool) -> int:
        if not sampled:
            return atoms
        if self.model == "linear" and len(getattr(self, "classes_", ())) <= 2:
            return max(atoms, min(4 * atoms, 20_000), 5_000)
        return max(atoms, 2_000)  # a dearer pass, or draws that are made anew every pass

    def _start(self, shapes: dict[str, tuple[int, ...]]) -> tuple[Any, float] | None:
        """Parameters and penalty of the last fit, where they are of the same shapes."""
        before = getattr(self, "parameters_", {})
        if {name: value.shape for name, value in before.items()} != shapes:
            return None
        return before, math.nan if self.certificate_ is None else self.certificate_.penalty

    def _attributes(self, parameters: dict[str, np.ndarray]) -> dict[str, Any]:
        """Attributes that suffice to predict with the current parameters."""
        attributes: dict[str, Any] = {"parameters_": parameters}
        if parameters.keys() == {"weights.0", "biases.0"}:
            coef, intercept = (parameters[k].astype(np.float64) for k in ("weights.0", "biases.0"))
            attributes.update(self._linear_attributes(coef, intercept))
        return attributes

    def _linear_attributes(self, coef: np.ndarray, intercept: np.ndarray) -> dict[str, Any]:
        return {"coef_": coef, "intercept_": intercept}

    @contextmanager
    def _salvaging(self, last: dict[str, Any], plan: Plan, reference: Any) -> Iterator[None]:
        """What ends a fit leaves the last finite model of an iteration, and why it ended.

        Ctrl-C aside, a whole model of an earlier fit stays instead.
        """
        before = self.__sklearn_is_fitted__()
        try:
            yield
        except BaseException as error:
            result, interrupted = last.get("result"), isinstance(error, KeyboardInterrupt)
            status = "non_finite" if isinstance(error, NonFiniteError) else "failed"
            status = "interrupted" if interrupted else status
            words = f"the last finite model is kept. {type(error).__name__}: {error}".rstrip(": ")
            words = f"Ended before its time ({status}): {words}"
            if result is not None and result.status != status:
                self.status_ = status
                self.message_ = f"{words}; the certificate is missing. {result.message}"
            elif result is None and last and (interrupted or not before):
                n_iter = last["n_iter"]
                history: Any = dict.fromkeys(COLUMNS, np.full(n_iter, math.nan))
                history["iteration"] = np.arange(1.0, n_iter + 1.0)
                ended = TrainResult(status, words, n_iter, math.nan, math.nan, history)
                self._store(last["parameters"], plan, ended, reference)
            raise

    def _store(
        self, parameters: dict[str, np.ndarray], plan: Plan, result: TrainResult, reference: Any
    ) -> None:
        if not all_finite(parameters):
            raise NonFiniteError("training left no finite model; lower learning_rate")
        for name, value in self._attributes(parameters).items():
            setattr(self, name, value)
        self._n_outputs, self._reference = plan.n_outputs, reference
        kept = isinstance(reference, tuple)
        self._seen = tuple(map(fingerprint, reference[:2])) if kept else None
        self.n_iter_ = max(1, result.n_iter)
        self.status_ = result.status
        self.message_ = result.message
        self.optimality_gap_ = float(result.gap)
        names = (*COLUMNS, *MORE)
        known = {name: result.history[name] for name in names if name in result.history}
        self._history = {name: np.asarray(v, dtype=np.float64) for name, v in known.items()}
        self.certificate_ = None
        self._worst = self._late = None
        for cached in CACHES:
            self.__dict__.pop(cached, None)

    def _keep(self, found: Assessment, approach: str) -> None:
        """Store a certificate and its worst case as arrays and plain values."""
        c = found.certificate
        if not np.isfinite([c.nominal_risk, c.lower, c.upper, c.transport_cost]).all():
            raise NonFiniteError(
                f"the certificate is not finite:\n{c}\nThe model itself is kept and predicts; look "
                "for extreme values in the data, or a loss or model that returns NaN",
                last_state=self.parameters_,
            )
        self.certificate_ = found.certificate
        self._worst = {"approach": approach, **found.state}

    def _warn(self, result: TrainResult, advice: str | None) -> None:
        name = type(self).__name__
        if result.status in ("max_iter", "stalled", "unbounded"):
            warning = f"{name}: {result.status}: {result.message}"
            warnings.warn(warning, ConvergenceWarning, stacklevel=DEPTH + 2)
        if advice is not None:
            warnings.warn(f"{name}: {advice}", ConvergenceWarning, stacklevel=DEPTH + 2)
        if result.advice is not None and result.status == "converged":
            warnings.warn(f"{name}: {result.advice}", UserWarning, stacklevel=DEPTH + 2)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self._on_rows()
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_iter_")
