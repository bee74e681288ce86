"""The size of a set from environments: leave one out, train on the others, look at plain risk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from drojko._sklearn import plain
from drojko.ambiguity import AmbiguitySet
from drojko.estimators.radius.cv import candidates, over_folds
from drojko.estimators.scoring import Rows, split_last
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import label_index

__all__ = ["FEW", "by_environments", "environments_of"]

#: Candidates below the least usual one, as shares of it: the best set may be almost none.
_SMALLER = (0.03, 0.1, 0.3)
#: What "cap" may cost in the mean, and standard errors from which on a gain is one.
_CAP, _CLEAR = 0.01, 2.0
#: Rows of an environment whose risk is mostly noise.
FEW = 10


def by_environments(
    estimator: Any, rows: Rows, radii: Any, rule: str, n_jobs: Any, finish: Callable[..., Any]
) -> Any:
    """What ``finish`` makes of fields of a `RadiusSelection`; see `select_radius`."""
    _, last = split_last(estimator)
    ambiguity = last._nested("ambiguity")
    names, index = environments_of(rows.groups, 'method="environments"')
    radii = candidates(estimator, rows, radii, _SMALLER)
    if ambiguity.nothing not in radii:
        radii = sorted([ambiguity.nothing, *radii])
    folds = [(np.flatnonzero(index != e), np.flatnonzero(index == e)) for e in range(len(names))]
    _check_classes(rows, folds, names, last)
    plain_risk = ambiguity.resized(ambiguity.nothing)

    def chosen(runs: list[Any]) -> Any:
        return finish(_chosen(np.array(runs), radii, names, folds, ambiguity, rule))

    return over_folds(estimator, rows, folds, radii, plain_risk, n_jobs, chosen)


def environments_of(groups: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Names of two environments or more, and the index (n,) of that of each row."""
    if groups is None or np.ndim(groups) != 1:
        raise InvalidDataError(
            f"{where} needs groups=, a label per row of shape (n,): the hospital, year or region "
            "that it is from"
        )
    names, index = label_index(np.asarray(groups))
    if len(names) < 2:
        raise InvalidDataError(
            f"groups holds one environment, {plain(names[0])!r}; {where} needs two or more"
        )
    return names, index


def _check_classes(rows: Rows, folds: list[Any], names: np.ndarray, last: Any) -> None:
    """Raise where the others lack a class of the environment that is left out."""
    if not is_classifier(last):
        return
    y = np.asarray(rows.y)
    for (train, _), name in zip(folds, names, strict=True):
        missing = np.setdiff1d(y, y[train])
        if missing.size:
            raise InvalidDataError(
                f"without the environment {plain(name)!r} no row is left of the class "
                f"{plain(missing[0])!r}: join it with another environment, or leave out its rows"
            )


def _chosen(
    runs: np.ndarray, radii: list[float], names: np.ndarray, folds: list[Any],
    ambiguity: AmbiguitySet, rule: str,
) -> dict[str, Any]:  # fmt: skip
    """What the environments that were left out by now say."""
    import pandas as pd

    risk, k = runs[:, :, 1], len(runs)
    none = radii.index(ambiguity.nothing)
    gains = risk[:, [none]] - risk
    mean, gain, worst = risk.mean(0), gains.mean(0), risk.max(0)
    spread = gains.std(0, ddof=1) if k > 1 else np.full(len(radii), np.nan)
    error = spread / np.sqrt(k)
    table = pd.DataFrame(
        {
            ambiguity.size_name: radii,
            "mean_risk": mean,
            "worst_risk": worst,
            "worst_environment": [plain(names[e]) for e in risk.argmax(0)],
            "gain": gain,
            "gain_se": error,
            "converged": runs[:, :, 3].mean(0),
        }
    )
    best = int(mean.argmin())
    pick, words = best, "least mean"
    if rule == "cap":
        allowed = np.flatnonzero(mean <= mean[best] + _CAP * abs(mean[best]))
        pick = int(allowed[worst[allowed].argmin()])
        words = "least in the worst environment, at most 1 % above the least mean"
    if rule == "clear" and not gain[best] > _CLEAR * error[best]:
        pick, words = none, "none at all, as no size gains beyond two standard errors"
    message = (
        f"Plain risk on {k} environments, each left out once, {words}: {mean[pick]:.6g} "
        f"({worst[pick]:.6g} in {plain(names[risk[:, pick].argmax()])!r}); no set at all: "
        f"{mean[none]:.6g}. {_helps(gain, error, radii, none, ambiguity)}"
    )
    few = [plain(names[e]) for e in range(k) if len(folds[e][1]) < FEW]
    if few:
        message += (
            f" {len(few)} of the environments, such as {few[0]!r}, have fewer than {FEW} rows, "
            "and weigh as much as the others: join small ones."
        )
    return {"radius": radii[pick], "table": table, "message": message}


def _helps(
    gain: np.ndarray, error: np.ndarray, radii: list[float], none: int, ambiguity: AmbiguitySet
) -> str:
    """Whether any size is better than none beyond chance."""
    sizes = [i for i in range(len(radii)) if i != none]
    if not sizes or not np.isfinite(error[sizes]).any():
        return "Two environments or more must be done to say whether any size helps."
    top = max(sizes, key=lambda i: gain[i])
    name = f"{ambiguity.size_name}={radii[top]:g}"
    by = f"{gain[top]:.2g} +- {error[top]:.2g}"
    if gain[top] > _CLEAR * error[top]:
        return f"A set helps: {name} gains {by} over none, beyond two standard errors."
    if gain[top] <= 0:
        return "No size helps: none at all has the least mean."
    return f"No size helps beyond two standard errors: the best, {name}, gains {by} over none."
