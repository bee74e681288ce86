"""Cross-validation of the radius: certified held-out risk at one fixed ambiguity set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, check_cv

from drojko._driver import keeping
from drojko._random import spawn
from drojko._sklearn import plain
from drojko._validation import shown
from drojko.ambiguity import AmbiguitySet
from drojko.ambiguity.duals.scaling import floats
from drojko.estimators._parallel import in_parallel, named, workers
from drojko.estimators.scoring import Rows, radius_path, size_of, split_last
from drojko.exceptions import InvalidDataError

__all__ = ["by_cv", "candidates", "over_folds"]


def by_cv(
    estimator: Any,
    rows: Rows,
    radii: Any,
    at: Any,
    cv: Any,
    rule: str,
    n_jobs: Any,
    rng: Any,
    finish: Callable[[dict[str, Any]], Any],
) -> Any:
    """What ``finish`` makes of fields of a `RadiusSelection`: of the folds done, after Ctrl-C.

    The other arguments are those of `select_radius`, checked.
    """
    (_, last), (X, y, _, groups) = split_last(estimator), rows
    ambiguity = last._nested("ambiguity")
    radii = candidates(estimator, rows, radii)
    fixed = _evaluation_set(at, last.ambiguity, ambiguity, radii)
    fixed._validate_params()
    labels = groups if groups is None or np.ndim(groups) == 1 else None  # splitters want labels
    if isinstance(cv, int):
        labels = None  # these folds know no groups
        seed = int(torch.randint(2**31 - 1, (1,), generator=spawn(rng)))
        kind = StratifiedKFold if is_classifier(last) else KFold
        cv = kind(cv, shuffle=True, random_state=seed)
    try:
        folds = list(check_cv(cv, y, classifier=is_classifier(last)).split(X, y, labels))
        for train, test in folds:  # of a splitter of the user's own
            np.asarray(y)[train], np.asarray(y)[test]
    except (ValueError, TypeError, IndexError) as error:
        raise InvalidDataError(f"cv={shown(cv)} makes no folds of these rows: {error}") from error
    if is_classifier(last):
        _check_folds(np.asarray(y), folds)
    if fixed.knows_groups:
        _check_groups(fixed, rows, folds)
    inherited = at is None and fixed is ambiguity
    return over_folds(
        estimator, rows, folds, radii, fixed, n_jobs,
        lambda runs: finish(_chosen(runs, radii, ambiguity, fixed, rule, inherited)),
    )  # fmt: skip


def candidates(
    estimator: Any, rows: Rows, radii: Any, smaller: Sequence[float] = ()
) -> list[float]:
    """Sizes to compare, none at all among them where they are not given.

    ``smaller``: shares of the smallest of them that are added.
    """
    steps, last = split_last(estimator)
    ambiguity = last._nested("ambiguity")
    if radii is None:
        Z = rows.seen(steps)
        names = getattr(Z, "columns", None)
        n = len(rows.y)
        share = np.full(n, 1.0 / n) if rows.weight is None else rows.weight / rows.weight.sum()
        names = None if names is None else [str(column) for column in names]
        found = ambiguity.candidates(floats(Z, "X"), names, share).tolist()
        nothing = ambiguity.nothing
        least = min(found, key=ambiguity.room)
        found += [nothing + part * (least - nothing) for part in smaller]
        radii = [
            nothing,
            *(float(f"{nothing + float(f'{size - nothing:.3g}'):.6g}") for size in found),
        ]
    radii = sorted(set(floats(radii, "radii").ravel().tolist()))
    if not radii:
        raise InvalidDataError("radii is empty: give one candidate or more")
    for radius in radii:
        ambiguity.resized(radius)._validate_params()
    return radii


def over_folds(
    estimator: Any, rows: Rows, folds: list[Any], radii: list[float], at: AmbiguitySet,
    n_jobs: Any, finish: Callable[[list[Any]], Any],
) -> Any:  # fmt: skip
    """What ``finish`` makes of the folds: of those done by then, after Ctrl-C."""
    steps, last = split_last(estimator)
    runs: list[Any] = []
    if workers(n_jobs, len(folds)) > 1:
        last = clone(last).set_params(verbose=False)  # bars of several folds would mix
    jobs = [(steps, last, rows.at(train), rows.at(test), radii, at) for train, test in folds]

    def so_far() -> Any:
        return finish(runs) if runs else None

    def all_folds() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted in the table instead
            warnings.filterwarnings("ignore", "(?s).*optimum is a constant model")
            with closing(in_parallel(_fold, jobs, n_jobs)) as done:
                for fold in done:
                    runs.append(fold)
        return so_far()

    return keeping(all_folds, so_far)


def _chosen(
    done: list[Any], radii: list[float], ambiguity: AmbiguitySet, fixed: AmbiguitySet, rule: str,
    inherited: bool,
) -> dict[str, Any]:  # fmt: skip
    """What the folds that are done say."""
    import pandas as pd

    runs, name = np.array(done), ambiguity.size_name
    mean = runs.mean(0)
    spread = runs.std(0, ddof=1) if len(runs) > 1 else np.full_like(mean, np.nan)
    error = spread / np.sqrt(len(runs))
    table = pd.DataFrame(
        {
            name: radii,
            "upper_bound": mean[:, 0],
            "upper_bound_se": error[:, 0],
            "nominal_risk": mean[:, 1],
            "nominal_risk_se": error[:, 1],
            "proven": mean[:, 2],
            "converged": mean[:, 3],
        }
    )
    best = int(np.argmin(mean[:, 0]))
    chosen = best
    if rule == "1se" and np.isfinite(error[best, 0]):
        within = np.flatnonzero(mean[:, 0] <= mean[best, 0] + error[best, 0])
        chosen = int(max(within, key=lambda i: ambiguity.room(radii[i])))  # the largest set
    own = ", the estimator's own set (at=)," if inherited else ""
    words = "the least" if rule == "min" else "the largest set within one standard error of it"
    message = (
        f"Certified risk at {fixed!r}{own} on {len(runs)} held-out folds, {words}: "
        f"{mean[chosen, 0]:.6g} +- {error[chosen, 0]:.2g}."
    )
    if len(radii) > 1 and chosen == best and chosen in (0, len(radii) - 1):
        message += f" It lies at the end of the candidates: try others beyond {radii[chosen]:g}."
    if mean[chosen, 3] < 1.0:
        message += (
            f" Its fits converged in {mean[chosen, 3]:.0%} of the folds only, so that the choice "
            "is not to be trusted: add alpha > 0, or raise max_iter."
        )
    return {"radius": radii[chosen], "table": table, "message": message, "at": fixed}


def _evaluation_set(
    at: Any, given: Any, ambiguity: AmbiguitySet, radii: Sequence[float]
) -> AmbiguitySet:
    """The set at which all candidates are compared; see `select_radius`."""
    if isinstance(at, AmbiguitySet):
        return at
    if at is not None:
        if not isinstance(at, Real):
            raise InvalidDataError(f"at={at!r}; expected an ambiguity set or a radius")
        return ambiguity.resized(float(at))
    own = getattr(given, ambiguity.size_name, None)
    if own is not None and own != ambiguity.nothing:
        return ambiguity
    positive = [radius for radius in radii if radius != ambiguity.nothing]
    if not positive:
        raise InvalidDataError("radii holds no ambiguity at all: add a positive radius or give at=")
    return ambiguity.resized(sorted(positive)[len(positive) // 2])


def _check_groups(at: AmbiguitySet, rows: Rows, folds: list[Any]) -> None:
    """Warn of folds that hold one group only, where a set of groups is none, or all of a group."""
    groups = rows.groups
    if groups is None or np.ndim(groups) != 1:
        return
    alone = sum(len(np.unique(np.asarray(groups)[test])) < 2 for _, test in folds)
    if alone:
        warnings.warn(
            f"at={at!r} says nothing in {alone} of {len(folds)} folds, which hold one group only: "
            "the risk there is the plain one. Give an integer cv, so that each fold holds every "
            'group, or method="environments", which compares plain risks by intent',
            UserWarning,
            stacklevel=5,
        )
        return
    labels, known = np.asarray(groups), np.unique(np.asarray(groups))
    without = [(k, np.setdiff1d(known, labels[train])) for k, (train, _) in enumerate(folds, 1)]
    for number, missing in without:
        if missing.size:
            warnings.warn(
                f"fold {number} of {len(folds)} is trained without the group "
                f"{plain(missing[0])!r}, all of whose rows it holds out, and judged by it: give "
                "fewer folds, or join small groups",
                UserWarning,
                stacklevel=5,
            )
            return


def _check_folds(y: np.ndarray, folds: list[Any]) -> None:
    """Raise for folds whose rows to train on lack a class."""
    for number, (train, _) in enumerate(folds, 1):
        missing = np.setdiff1d(y, y[train])
        if missing.size:
            raise InvalidDataError(
                f"fold {number} of {len(folds)} of cv would be trained without the class "
                f"{plain(missing[0])!r}, all of whose {int((y == missing[0]).sum())} rows it holds "
                "out: give fewer folds, an integer cv (folds are then stratified), or a splitter "
                "that leaves every class in"
            )


def _fold(
    steps: Any, last: Any, train: Rows, test: Rows, radii: Sequence[float], at: AmbiguitySet
) -> list[list[float]]:
    """A row per radius: certified risk, plain risk, whether proven, whether converged."""
    inside, outside = train.X, test.X
    if steps is not None:
        steps = clone(steps)
        inside = steps.fit_transform(inside, train.y)
        outside = steps.transform(outside)
    fit_params = train.known(last._nested("ambiguity"))
    models = radius_path(last, inside, train.y, radii, **fit_params)
    rows = []
    for model in models:
        with named(size_of(model.ambiguity)):
            certificate = model._certificate(outside, test.y, at, **test.known(at))
        rows.append(
            [
                certificate.upper,
                certificate.nominal_risk,
                float(certificate.proof != "local-estimate"),
                float(model.status_ == "converged"),
            ]
        )
    return rows
