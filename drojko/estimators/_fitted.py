"""What a fitted estimator answers: predictions, its worst case, certificates on other data."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone

from drojko._driver import arithmetic
from drojko._sklearn import check_is_fitted, checked_weight
from drojko._threads import SMALL, one_thread
from drojko._validation import check_flag, shown
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.base import (
    COLUMNS,
    MORE,
    FittedModel,
    NoWorstCase,
    arrays,
    check_effort,
    warn_of_time,
)
from drojko.approaches.reference import empirical
from drojko.approaches.registry import approach_named, approach_to
from drojko.certificates import Certificate
from drojko.estimators._models import build_model, check_stored
from drojko.exceptions import InvalidDataError
from drojko.inner.transport.storage import unpack_module
from drojko.inner.worst_case import WorstCase
from drojko.losses import Loss
from drojko.measures import LabelledMeasure
from drojko.measures._arrays import strange_groups
from drojko.minimax.problem import TrainResult
from drojko.models import TabularModel
from drojko.rows import fingerprint, products

if TYPE_CHECKING:
    import pandas as pd

#: Attributes that are rebuilt on demand.
CACHES = ("_model_cache", "_reference_cache", "_worst_cache")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Fitted(BaseEstimator):
    """The half of an estimator that `fit` has filled; `BaseDRO` is the other one."""

    model: Any
    dtype: str
    device: Any
    classes_: Any
    parameters_: dict[str, np.ndarray]
    _classification: bool
    _nested: Any
    _plan: Any
    _placed: Any
    _plain_inner: Any
    _work: Any
    _late: tuple[Any, float, int, int] | None
    __sklearn_is_fitted__: Any

    def _get_loss(self, n_outputs: int) -> Loss:
        raise NotImplementedError

    def _fitted_model(self) -> TabularModel:
        """The model as a module, rebuilt from its arrays on demand."""
        if "_model_cache" not in self.__dict__:
            model = build_model(self, self._n_outputs, torch.Generator().manual_seed(0))
            unpack_module(model, self.parameters_)
            self.__dict__["_model_cache"] = model
        return self.__dict__["_model_cache"]

    def _predictions(self, X: np.ndarray) -> np.ndarray:
        """Outputs of the model: numpy where the model is a formula."""
        if self.model != "linear" and hasattr(X, "rows"):
            raise X.refused(f"model={shown(self.model)}")
        if self.model == "linear":
            out = products(X, self.parameters_["weights.0"].T) + self.parameters_["biases.0"]
            return out[:, 0] if self._n_outputs == 1 else out
        with torch.no_grad(), one_thread(X.size < SMALL):
            model = self._fitted_model()
            x = torch.as_tensor(np.array(X), dtype=DTYPES[self.dtype], device=str(self.device))
            parts = [model(part) for part in x.split(65_536)]
            return torch.cat(parts).cpu().numpy()

    @property
    def history_(self) -> pd.DataFrame:
        """A row per iteration: robust_risk, penalty, transport_cost, stationarity, seconds.

        With ``early_stopping`` also held_out_risk, the robust risk of the rows held out; of linear
        fits to many rows also passes, how often training had read them all by then.
        """
        import pandas as pd

        check_is_fitted(self, "n_iter_")
        empty = np.empty(0)
        names = (*COLUMNS, *(name for name in MORE if name in self._history))
        return pd.DataFrame({name: self._history.get(name, empty) for name in names})

    @property
    def reference_(self) -> LabelledMeasure:
        """The fitted reference."""
        check_is_fitted(self, "n_iter_")
        return self._reference_cache

    @cached_property
    def _reference_cache(self) -> LabelledMeasure:
        given: Any = self._reference
        if given is None:
            raise NoWorstCase(
                "reference_, worst_case_: the rows of a sparse matrix or of batches are not kept, "
                "nor those of a model saved with reference=False, and a rank may have none; "
                "certificate_ is there. Fit on an array (X.toarray()) to have them"
            )
        if isinstance(given, tuple):
            seen = getattr(self, "_seen", None)
            if seen is not None and tuple(map(fingerprint, given[:2])) != tuple(seen):
                raise InvalidDataError(
                    "reference_, worst_case_: X or y was changed after fit, which keeps no copy of "
                    "large data: put back what it held, or fit on copies"
                )
            given = empirical(*given, classification=self._classification)
        return given

    @property
    def worst_case_(self) -> WorstCase:
        """The worst-case distribution of the fitted model."""
        check_is_fitted(self, "n_iter_")
        self._finish()
        if self._worst is None:
            raise AttributeError(
                "no worst case was computed: the fit was interrupted or failed before; fit again, "
                "perhaps with warm_start=True, to get one"
            )
        return self._worst_cache

    def _finish(self) -> None:
        """Compute the worst case that ``effort="none"`` has left for later."""
        if self._late is None:
            return
        ambiguity, penalty, seed, count = self._late
        approach, reference, model = approach_to(ambiguity), self.reference_, self._fitted_model()
        generator = torch.Generator().manual_seed(seed)
        x, y, w = arrays(reference.points(count, generator))
        cost = approach.resolve(ambiguity, x, getattr(self, "feature_names_in_", None))
        cost = cost.observed(x, self._categories)
        plan = replace(self._plan(ambiguity, cost, self._n_outputs), effort="none", max_time=None)
        with one_thread(x.size < SMALL), torch.no_grad(), arithmetic("the worst case"):
            plan = self._placed(plan, approach, (x, y, w), None, seed, reference)[0]
            work = self._work(approach, plan, model)
            ended = TrainResult(self.status_, self.message_, self.n_iter_, penalty, math.nan)
            self._worst = {"approach": approach.name, **work.assess(ended).state}
        self._late = None

    @cached_property
    def _worst_cache(self) -> WorstCase:
        state: dict[str, Any] = self._worst or {}
        names = getattr(self, "feature_names_in_", None)
        fitted = FittedModel(
            self._fitted_model(),
            self._get_loss(self._n_outputs),
            self.reference_,
            self.classes_ if self._classification else None,
            None if names is None else tuple(names),
            DTYPES[self.dtype],
            str(self.device),
        )
        return approach_named(state["approach"]).worst_case(fitted, state)

    def _settle(self, ambiguity: Any) -> Any:
        """A set whose "auto" is what the rows of the fit have shown: of new rows, too."""
        known, given = getattr(self, "_found", None), ambiguity.get_params(deep=False)
        if known is None:
            return ambiguity
        words = ("categorical_features", "swap_cost")
        auto = {name for name in words if isinstance(given.get(name), str) and name in known}
        fixed = {"immutable"} if "categorical_features" in auto and not given["immutable"] else ()
        changes = {name: known[name] for name in (*auto, *fixed)}
        return clone(ambiguity).set_params(**changes) if changes else ambiguity

    def _known(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """New rows, checked, and their targets as training takes them."""
        raise NotImplementedError

    def robust_certificate(
        self,
        X: Any,
        y: Any,
        ambiguity: AmbiguitySet | None = None,
        sample_weight: Any = None,
        groups: Any = None,
        *,
        effort: str = "fast",
        max_time: float | None = None,
    ) -> Certificate:
        """Certificate of the fitted model on new data, around their empirical measure.

        ``groups`` as in `fit`: a `Group` set needs them. ``effort`` and ``max_time``, in seconds,
        as in the constructor: they count where the worst case has to be searched.
        """
        check_is_fitted(self)
        check_effort("robust_certificate", effort, max_time)
        self._warn_of_groups(ambiguity, groups)
        return self._certificate(X, y, ambiguity, sample_weight, groups, effort, max_time)

    def _certificate(
        self,
        X: Any,
        y: Any,
        ambiguity: AmbiguitySet | None,
        sample_weight: Any = None,
        groups: Any = None,
        effort: str = "fast",
        max_time: float | None = None,
    ) -> Certificate:
        """`robust_certificate` without a word on the rows."""
        X, y = self._known(X, y)
        if ambiguity is None:
            ambiguity = cast(AmbiguitySet, self._nested("ambiguity"))
        approach = approach_to(ambiguity)
        ambiguity = cast(AmbiguitySet, self._settle(ambiguity))
        cost = approach.resolve(ambiguity, X, getattr(self, "feature_names_in_", None))
        cost = cost.observed(X, getattr(self, "_categories", None))
        weight = checked_weight(sample_weight, X)
        n_labels = len(self.classes_) if self._classification else 0
        generator = torch.Generator().manual_seed(0)
        plan = replace(
            self._plan(ambiguity, cost, self._n_outputs),
            effort=effort,
            max_time=max_time,
            inner=self._plain_inner(),
            generator=generator,
            groups=groups,
        )
        with one_thread(X.size < SMALL), torch.no_grad(), arithmetic("the certificate"):
            if hasattr(X, "rows"):
                exact = None
                if self.model == "linear" and approach.takes_tables(ambiguity):
                    points = (X, np.asarray(y), weight / weight.sum())
                    exact = approach.assessed(plan, self._fitted_model(), points)
                if exact is None:
                    raise X.refused(f"a certificate against {type(ambiguity).__name__}")
                return exact.certificate
            x = cost.project(torch.as_tensor(np.array(X), dtype=plan.dtype, device=plan.device))
            target = torch.as_tensor(np.array(y), device=plan.device)
            target = target if n_labels else target.to(plan.dtype)
            w = torch.as_tensor(weight / weight.sum(), device=plan.device)
            found = approach.certify(plan, self._fitted_model(), (x, target, w), generator)
        warn_of_time(plan, found, 3)
        return found

    def _warn_of_groups(self, ambiguity: AmbiguitySet | None, groups: Any) -> None:
        """The worst of groups that training did not weigh is a test, and no certificate of it."""
        strange = strange_groups(getattr(self, "_groups", None), groups)
        if strange and (self.ambiguity if ambiguity is None else ambiguity).knows_groups:
            warnings.warn(
                f"{type(self).__name__}: the rows are of groups that it was not fitted to, "
                f"{strange}: the worst case is over the groups of these rows, not over those that "
                "were trained for. Check the labels, or fit with these groups",
                UserWarning,
                stacklevel=3,
            )

    def robust_score(
        self,
        X: Any,
        y: Any,
        ambiguity: AmbiguitySet | None = None,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> float:
        """Minus the certified upper bound of the worst-case risk on new data; larger is better.

        ``ambiguity=None`` takes the estimator's own set. To compare estimators, fix one set: see
        `drojko.make_robust_scorer`.
        """
        return -self.robust_certificate(X, y, ambiguity, sample_weight, groups).upper

    # -- persistence -------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in CACHES}

    def save(self, path: Any, *, reference: bool = True) -> None:
        """Write the fitted estimator to ``path``; `drojko.load` reads it without running code.

        ``reference=False`` leaves out ``reference_`` and ``worst_case_``, and with them the rows.
        """
        from drojko._persist import save

        check_flag("reference", reference)
        if reference and self.__sklearn_is_fitted__():
            self._finish()
        save(self, path, reference=reference)

    def _drop_reference(self) -> None:
        """Forget the training rows, and what stands on them."""
        if self.__sklearn_is_fitted__():
            self._reference = self._late = None
            self._worst = {"approach": (self._worst or {}).get("approach")}
            for name in CACHES:
                self.__dict__.pop(name, None)

    def _check_stored(self) -> None:
        check_stored(self)
