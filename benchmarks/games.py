"""Games between a learner and the weights of rows: how far they get, and what they say of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from drojko.ambiguity import KL, AmbiguitySet, CVaR
from drojko.boosting import ReweightedClassifier

__all__ = ["DATA", "DRAWS", "GAP", "HELD", "SETS", "case", "learners"]

#: Targets: upper bound over the best known, cross-validation over rows held out.
GAP, HELD = 0.05, 0.15
SETS: dict[str, AmbiguitySet] = {"CVaR": CVaR(0.7), "KL": KL(0.1)}
ROWS, NEW, LONG = 400, 4_000, 60
#: Eight columns, four of them informative; what else is told to `make_classification`.
DATA: dict[str, dict[str, Any]] = {
    "usual": {"flip_y": 0.05, "class_sep": 1.5},
    "noisy": {"flip_y": 0.3, "class_sep": 1.0},
    "close": {"flip_y": 0.02, "class_sep": 0.5},
    "rare": {"flip_y": 0.02, "class_sep": 1.0, "weights": [0.9]},
    "apart": {"flip_y": 0.0, "class_sep": 2.5},
}
#: How many draws of each.
DRAWS = dict.fromkeys(DATA, 2) | {"usual": 5}


def learners() -> dict[str, Any]:
    """Names and learners; the last one is of its library's default size."""
    return {
        "logistic regression": LogisticRegression(C=100.0, max_iter=500),
        "small boosting": GradientBoostingClassifier(n_estimators=8, max_depth=1, random_state=0),
        "default boosting": GradientBoostingClassifier(random_state=0),
    }


def case(data: str, name: str, seed: int, *, smoke: bool = False) -> Callable[..., Iterator[dict]]:
    """Rows of one set and one draw of data, one for each learner (for a smoke run the first)."""

    def rows(context: Any) -> Iterator[dict]:
        X, y = make_classification(ROWS + NEW, 8, n_informative=4, **DATA[data],
                                   random_state=1000 * context.seed + seed)  # fmt: skip
        train, test = slice(0, ROWS), slice(ROWS, None)
        for learner, model in list(learners().items())[: 1 if smoke else None]:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                small = learner != "default boosting"
                cv = None if small else 2
                robust = ReweightedClassifier(model, SETS[name], cv=cv, random_state=0)
                robust.fit(X[train], y[train])
            p = np.clip(robust.predict_proba(X[test])[np.arange(NEW), y[test]], 1e-15, 1.0)
            held = SETS[name].dual(-np.log(p)).value  # type: ignore[attr-defined]
            upper, lower = robust.certificate_.upper, robust.certificate_.lower
            if math.isnan(lower) and small:  # no bound is known: a game three times as long
                more = ReweightedClassifier(model, SETS[name], n_rounds=LONG, cv=0, random_state=0)
                lower = min(more.fit(X[train], y[train]).history_["robust_risk"])
            found = {
                "method": learner, "upper": upper, "best known": lower,
                "game gap %": 100.0 * (upper / lower - 1.0), "cross-validated": robust.robust_cv_,
                "held out": held,
                "cv off %": 100.0 * (robust.robust_cv_ / held - 1.0) if small else math.nan,
                "rows off %": 100.0 * (upper / held - 1.0),
                "constant": held / robust.best_constant_,
                "warned": any("says nothing of new data" in str(one.message) for one in said),
            }  # fmt: skip
            if small:
                found["target"] = f"gap <= {100 * GAP:g} %, cv within {100 * HELD:g} %"
                near = abs(found["cv off %"]) <= 100 * HELD
                found["met"] = bool(found["game gap %"] <= 100 * GAP and near)
            else:
                found |= {"target": "warned", "met": found["warned"]}
            yield found

    return rows
