"""Boosting with the objective of a worst case: does its risk fall, and what does it take?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from harness import SKIPPED, clock
from sklearn.datasets import load_breast_cancer, load_diabetes, make_classification

from drojko.ambiguity import KL, AmbiguitySet, ChiSquare, CVaR, TotalVariation
from drojko.boosting import objective

__all__ = ["DATA", "SETS", "SLOWER", "case"]

#: Target: time over that of plain boosting.
SLOWER = 3.0
ROUNDS, PATIENCE = 200, 30
SETS: tuple[AmbiguitySet, ...] = (
    CVaR(alpha=0.1), CVaR(alpha=0.3), CVaR(alpha=0.5), CVaR(alpha=0.7),
    KL(radius=0.1), KL(radius=0.3), KL(radius=1.5), ChiSquare(radius=0.5), ChiSquare(radius=4.0),
    TotalVariation(radius=0.1), TotalVariation(radius=0.3), TotalVariation(radius=0.6),
)  # fmt: skip

Table = tuple[np.ndarray, np.ndarray]


def _made(flipped: float, **more: Any) -> Callable[[int], Table]:
    return lambda seed: make_classification(
        4000, 20, n_informative=5, flip_y=flipped, random_state=seed, **more
    )


def _diabetes(seed: int) -> Table:
    X, y = load_diabetes(return_X_y=True)
    return X, (y - y.mean()) / y.std()


def _heavy(seed: int) -> Table:
    """Errors with three degrees of freedom."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(4000, 6))
    return X, X[:, 0] + np.sin(3.0 * X[:, 1]) + 0.5 * rng.standard_t(3, 4000)


#: Loss and table; y of the classifications made here is random for a share of the rows.
DATA: dict[str, tuple[str, Callable[[int], Table]]] = {
    "a tenth random": ("logistic", _made(0.1)),
    "three tenths random": ("logistic", _made(0.3)),
    "rare class": ("logistic", _made(0.05, weights=[0.93])),
    "breast cancer": ("logistic", lambda seed: load_breast_cancer(return_X_y=True)),
    "diabetes": ("squared", _diabetes),
    "heavy tails": ("squared", _heavy),
}


def case(name: str, *, smoke: bool = False) -> Callable[[Any], Iterator[dict]]:
    """A row per set: 80 % of the rows are trained on, the others stop it."""

    def rows(context: Any) -> Iterator[dict]:
        try:
            import lightgbm
        except ImportError:
            yield {"method": "objective", "status": f"{SKIPPED}: no LightGBM"}
            return
        loss, load = DATA[name]
        X, y = load(context.seed)
        order = np.random.default_rng(context.seed).permutation(len(y))
        train, held = np.split(order, [int(0.8 * len(y))])
        kind = lightgbm.LGBMClassifier if loss == "logistic" else lightgbm.LGBMRegressor

        def grown(given: Any, *, stops: bool = False) -> tuple[Any, float]:
            more: dict[str, Any] = {}
            if stops:
                stop = lightgbm.early_stopping(PATIENCE, verbose=False)
                more = {"eval_X": X[held], "eval_y": y[held], "eval_metric": given.evaluate,
                        "callbacks": [stop]}  # fmt: skip
            model = kind(n_estimators=ROUNDS, objective=given, verbose=-1, n_jobs=1)
            with clock() as taken:
                model.fit(X[train], y[train], **more)
            return model, taken.seconds

        for ambiguity in SETS[: 1 if smoke else None]:
            robust = objective(ambiguity, loss=loss)
            times = []
            for _ in range(3):  # in turn: a run of half a second is noisy by itself
                plain, mine = grown(None)[1], grown(robust)[1]
                times.append(mine / plain)
            end = robust.robust_risks_[-1] / robust.robust_risks_[0]
            last = grown(robust, stops=True)[0].best_iteration_
            risks = np.array(robust.robust_risks_[: last + 1])
            tens, slower = risks[::10], float(np.median(times))
            rise, up = 100.0 * (risks.max() / risks[0] - 1.0), int((np.diff(tens) >= 0).sum())
            yield {
                "method": repr(ambiguity), "rounds": last, "above start %": rise,
                "tens not falling": up, "risk left": risks[-1] / risks[0] if last else math.nan,
                f"after {ROUNDS}": end, "overhead": math.nan, "times plain": slower,
                "target": f"falls every ten rounds, never above its start, <= {SLOWER:g} x plain",
                "met": bool(not up and rise <= 1e-7 and slower <= SLOWER),
            }  # fmt: skip

    return rows
