"""What both estimators share: from arrays to a trained model, a certificate and a worst case."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from drojko._callbacks import CallbackSupportMixin, FitProgress
from drojko._random import spawn
from drojko._sklearn import (
    HasMethods,
    Interval,
    NestedDefaults,
    StrOptions,
    _check_sample_weight,
    check_is_fitted,
)
from drojko._threads import SMALL, one_thread
from drojko.ambiguity import AmbiguitySet, Wasserstein
from drojko.approaches.base import Assessment, FittedModel
from drojko.approaches.base import Plan
from drojko.approaches.reference import NAMES, build_reference, count_atoms, is_sampled
from drojko.approaches.registry import approach_named, approach_to
from drojko.certificates import Certificate
from drojko.estimators._input import check_device, plain
from drojko.estimators._models import build_model
from drojko.exceptions import InvalidDataError, NonFiniteError
from drojko.inner.choice import choose_inner, distinct, get_inner
from drojko.inner.reweighting.importance import Importance
from drojko.inner.reweighting.semidual import SemiDual
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.solvers import ICNNJKO, Pointwise
from drojko.inner.transport.storage import pack_module, unpack_module
from drojko.inner.worst_case import WorstCase
from drojko.losses import Loss
from drojko.measures import LabelledMeasure, Measure
from drojko.minimax.problem import TrainResult
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import ACTIVATIONS, MLP, TabularModel

if TYPE_CHECKING:
    import pandas as pd


def _seed(random_state: Any) -> int:
    """An integer seed; None takes it from the system, not from numpy's global generator."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31 - 1))
    return int(check_random_state(random_state).randint(2**31 - 1))


_DTYPES = {"float64": torch.float64, "float32": torch.float32}


class BaseDRO(CallbackSupportMixin, NestedDefaults, BaseEstimator):
    """Shared machinery; see `DROClassifier` and `DRORegressor`."""

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

    _parameter_constraints: dict = {
        "ambiguity": [AmbiguitySet, None],
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
        "fit_intercept": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "n_draws": [Interval(Integral, 1, None, closed="left"), None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "device": [str, HasMethods(["type"])],
        "dtype": [StrOptions(set(_DTYPES))],
        "verbose": ["verbose"],
    }

    # -- fitting -----------------------------------------------------------------------------

    def _get_loss(self, n_outputs: int) -> Loss:
        raise NotImplementedError

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
        cost = approach.resolve(ambiguity, X, getattr(self, "feature_names_in_", None))
        self._categories = None if cost.categories is None else cost.categories.known
        check_device(self.device)
        self._plain_inner().check(ambiguity)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weight.sum() > 0:
            raise InvalidDataError("sample_weight sums to zero: no sample is left")
        if self._classification:
            self._check_classes(y, weight)
        n_outputs = self._outputs()
        seed = _seed(self.random_state)
        generator = torch.Generator().manual_seed(seed)

        with one_thread(X.size < SMALL):
            smoothing = approach.smoothing(ambiguity)
            reference = build_reference(self.reference, cost, smoothing, self._classification, seed)
            reference = approach.measure(ambiguity, reference, X, y, weight, groups)
            atoms = count_atoms(reference, len(X))
            sampled = is_sampled(reference)
            inner, chosen = self._inner(ambiguity, X, y, sampled)
            plan = replace(
                self._plan(reference, cost, ambiguity, n_outputs, generator),
                n_draws=self.n_draws or self._default_draws(atoms, sampled),
                inner=inner,
                atoms=None if sampled else reference.points(atoms, torch.Generator()),
            )
            model = self._build_model(n_outputs, spawn(generator))
            approach.reject(plan, model)
            start = self._warm(model) if self.warm_start else None
            metadata = None if sample_weight is None else {"sample_weight": sample_weight}
            most = approach.most_iterations(plan, model)
            with FitProgress(self, most, X=X, y=target, metadata=metadata) as progress:

                def report(iteration: int, info: dict[str, Any]) -> bool:
                    fitted = {"n_iter_": iteration, "_n_outputs": model.n_outputs}
                    return progress.step(lambda: {**self._attributes(model), **fitted})

                result = approach.train(replace(plan, callback=report), model, start)
            self._store(model, plan, result)
            if result.status == "interrupted":
                raise KeyboardInterrupt(result.message)
            if chosen:
                self.message_ = f"{result.message} {chosen}"
            try:
                found = approach.assess(plan, model, result, sampled, atoms)
            except KeyboardInterrupt:
                # The model is trained; what is missing is its certificate.
                self.status_ = "interrupted"
                self.message_ = f"Interrupted while the certificate was computed. {result.message}"
                raise
            if found.constant is not None:  # the model was changed after all
                self._store(model, plan, replace(result, gap=math.nan))
                self.message_ = " ".join(filter(None, (result.message, chosen, found.constant)))
            if chosen:
                kept = replace(found.certificate, inner=chosen)
                found = replace(found, certificate=kept)
            self._keep(found, approach.name)
        self._warn(result, found.advice)
        return self

    def _inner(
        self, ambiguity: AmbiguitySet, X: np.ndarray, y: np.ndarray, sampled: bool
    ) -> tuple[InnerSolver, str]:
        """The inner solver, and in words why "auto" chose it."""
        if not (isinstance(self.inner, str) and self.inner == "auto"):
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
        auto = isinstance(self.inner, str) and self.inner == "auto"
        return ICNNJKO() if auto else get_inner(self._nested("inner"))

    def _outputs(self) -> int:
        n_classes = len(self.classes_) if self._classification else 0
        return n_classes if n_classes > 2 else 1

    def _plan(self, reference, cost, ambiguity, n_outputs, generator) -> Plan:
        return Plan(
            reference=reference,
            ambiguity=ambiguity,
            cost=cost,
            loss=self._get_loss(n_outputs),
            inner=self._plain_inner(),
            radius=None if ambiguity.radius is None else float(ambiguity.radius),
            penalty=None if ambiguity.penalty is None else float(ambiguity.penalty),
            label_cost=float(ambiguity.label_cost),
            n_labels=len(self.classes_) if self._classification else 0,
            dtype=_DTYPES[self.dtype],
            device=str(self.device),
            generator=generator,
            alpha=float(self.alpha),
            fit_intercept=self.fit_intercept,
            max_iter=self.max_iter,
            tol=self.tol,
            max_time=self.max_time,
            outer=Subgradient(learning_rate=self.learning_rate, batch_size=self.batch_size),
        )

    def _build_model(self, n_outputs: int, generator: torch.Generator) -> TabularModel:
        return build_model(
            self.model,
            self.n_features_in_,
            n_outputs,
            hidden=self.hidden_layer_sizes,
            activation=self.activation,
            bias=self.fit_intercept,
            generator=generator,
            binary=self._classification and n_outputs == 1,
            dtype=_DTYPES[self.dtype],
            device=str(self.device),
        )

    def _check_classes(self, y: np.ndarray, weight: np.ndarray) -> None:
        if len(self.classes_) < 2:
            raise InvalidDataError(
                f"{type(self).__name__} got 1 class, {plain(self.classes_[0])!r}, in y; it needs 2 "
                "or more"
            )
        mass = np.bincount(y, weights=weight, minlength=len(self.classes_))
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

    def _warm(self, model: TabularModel) -> float | None:
        if not hasattr(self, "parameters_"):
            return None
        shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
        if shapes != {k: tuple(v.shape) for k, v in self.parameters_.items()}:
            return None
        model.load_state_dict({k: torch.tensor(v) for k, v in self.parameters_.items()})
        if isinstance(model, MLP):
            model.warm = True
        return self.certificate_.penalty if self.certificate_ is not None else None

    def _attributes(self, model: TabularModel) -> dict[str, Any]:
        """Attributes that suffice to predict with the current parameters."""
        attributes: dict[str, Any] = {"parameters_": pack_module(model)}
        if isinstance(model, MLP) and len(model.weights) == 1:
            coef = model.weights[0].detach().double().cpu().numpy().copy()
            intercept = model.biases[0].detach().double().cpu().numpy().copy()
            attributes.update(self._linear_attributes(coef, intercept))
        return attributes

    def _linear_attributes(self, coef: np.ndarray, intercept: np.ndarray) -> dict[str, Any]:
        return {"coef_": coef, "intercept_": intercept}

    def _store(self, model: TabularModel, plan: Plan, result: TrainResult) -> None:
        attributes = self._attributes(model)
        if not all(np.isfinite(v).all() for v in attributes["parameters_"].values()):
            raise NonFiniteError("training left no finite model; lower learning_rate")
        for name, value in attributes.items():
            setattr(self, name, value)
        self._n_outputs = model.n_outputs
        self.n_iter_ = max(1, result.n_iter)
        self.status_ = result.status
        self.message_ = result.message
        self.optimality_gap_ = float(result.gap)
        self._history = {k: np.asarray(v, dtype=np.float64) for k, v in result.history.items()}
        self.reference_ = plan.reference
        self.certificate_ = None
        self._worst = None
        for cached in ("_model_cache", "_worst_cache"):
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
            warnings.warn(warning, ConvergenceWarning, stacklevel=4)
        if advice is not None:
            warnings.warn(f"{name}: {advice}", ConvergenceWarning, stacklevel=4)
        if result.advice is not None and result.status == "converged":
            warnings.warn(f"{name}: {result.advice}", UserWarning, stacklevel=4)

    # -- the fitted model --------------------------------------------------------------------

    def _fitted_model(self) -> TabularModel:
        """The model as a module, rebuilt from its arrays on demand."""
        if "_model_cache" not in self.__dict__:
            model = self._build_model(self._n_outputs, torch.Generator().manual_seed(0))
            unpack_module(model, self.parameters_)
            self.__dict__["_model_cache"] = model
        return self.__dict__["_model_cache"]

    def _predictions(self, X: np.ndarray) -> np.ndarray:
        """Outputs of the model: numpy where the model is a formula."""
        if self.model == "linear":
            out = X @ self.parameters_["weights.0"].T + self.parameters_["biases.0"]
            return out[:, 0] if self._n_outputs == 1 else out
        with torch.no_grad(), one_thread(X.size < SMALL):
            model = self._fitted_model()
            x = torch.as_tensor(np.array(X), dtype=_DTYPES[self.dtype], device=str(self.device))
            parts = [model(part) for part in x.split(65_536)]
            return torch.cat(parts).cpu().numpy()

    @property
    def history_(self) -> pd.DataFrame:
        """A row per iteration: robust_risk, penalty, transport_cost, stationarity, seconds."""
        import pandas as pd

        check_is_fitted(self, "n_iter_")
        columns = (
            "iteration",
            "robust_risk",
            "penalty",
            "transport_cost",
            "stationarity",
            "seconds",
        )
        empty = np.empty(0)
        return pd.DataFrame({name: self._history.get(name, empty) for name in columns})

    @property
    def worst_case_(self) -> WorstCase:
        """The worst-case distribution of the fitted model."""
        check_is_fitted(self, "n_iter_")
        if self._worst is None:
            raise AttributeError(
                "no worst case was computed: the fit was interrupted or failed before; fit again, "
                "perhaps with warm_start=True, to get one"
            )
        if "_worst_cache" not in self.__dict__:
            self.__dict__["_worst_cache"] = self._build_worst_case()
        return self.__dict__["_worst_cache"]

    def _build_worst_case(self) -> WorstCase:
        state: dict[str, Any] = self._worst or {}
        names = getattr(self, "feature_names_in_", None)
        fitted = FittedModel(
            self._fitted_model(),
            self._get_loss(self._n_outputs),
            self.reference_,
            self.classes_ if self._classification else None,
            None if names is None else tuple(names),
            _DTYPES[self.dtype],
            str(self.device),
        )
        return approach_named(state["approach"]).worst_case(fitted, state)

    def _robust_certificate(self, X, y, ambiguity, sample_weight, groups=None) -> Certificate:
        """Certificate of the fitted model on new data (the empirical measure of X, y)."""
        ambiguity = self._nested("ambiguity") if ambiguity is None else ambiguity
        approach = approach_to(ambiguity)
        cost = approach.resolve(ambiguity, X, getattr(self, "feature_names_in_", None))
        cost = cost.observed(X, getattr(self, "_categories", None))
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        n_labels = len(self.classes_) if self._classification else 0
        generator = torch.Generator().manual_seed(0)
        plan = self._plan(self.reference_, cost, ambiguity, self._n_outputs, generator)
        plan = replace(plan, groups=groups)
        with one_thread(X.size < SMALL), torch.no_grad():
            x = cost.project(torch.as_tensor(np.array(X), dtype=plan.dtype, device=plan.device))
            target = torch.as_tensor(np.array(y), device=plan.device)
            target = target if n_labels else target.to(plan.dtype)
            w = torch.as_tensor(weight / weight.sum(), device=plan.device)
            return approach.certify(plan, self._fitted_model(), (x, target, w), generator)

    # -- persistence -------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in ("_model_cache", "_worst_cache")}

    def save(self, path: Any) -> None:
        """Write the fitted estimator to ``path``; `drojko.load` reads it without running code."""
        from drojko._persist import save

        save(self, path)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_iter_")
