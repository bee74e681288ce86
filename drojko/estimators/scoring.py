"""Choosing among robust models: scorers at one fixed ambiguity set, paths over the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sklearn.base import clone

from drojko.ambiguity import AmbiguitySet

__all__ = ["make_robust_scorer", "radius_path"]


def make_robust_scorer(ambiguity: AmbiguitySet) -> Callable[..., float]:
    """Scorer ``(estimator, X, y) -> -upper bound`` of the worst-case risk in one fixed set.

    Accuracy on the held-out fold picks the radius by nominal risk, which defeats the purpose; the
    estimator's own set differs from candidate to candidate. A fixed set compares like with like.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from drojko import DROClassifier, make_robust_scorer
    >>> from drojko.ambiguity import Wasserstein
    >>> X, y = load_iris(return_X_y=True)
    >>> search = GridSearchCV(
    ...     DROClassifier(reference="empirical"),
    ...     {"ambiguity__radius": [0.05, 0.5]},
    ...     scoring=make_robust_scorer(Wasserstein(radius=0.3)),
    ...     cv=2,
    ... ).fit(X[50:], y[50:])
    >>> search.best_params_
    {'ambiguity__radius': 0.5}
    """
    return _RobustScorer(ambiguity)


class _RobustScorer:
    """A picklable scorer."""

    def __init__(self, ambiguity: AmbiguitySet) -> None:
        self.ambiguity = ambiguity

    def __call__(self, estimator: Any, X: Any, y: Any, **kwargs: Any) -> float:
        if hasattr(estimator, "steps"):  # a pipeline: distances are in the units of its last step
            X = estimator[:-1].transform(X) if len(estimator.steps) > 1 else X
            estimator = estimator.steps[-1][1]
        return float(estimator.robust_score(X, y, ambiguity=self.ambiguity, **kwargs))

    def __repr__(self) -> str:
        return f"make_robust_scorer({self.ambiguity!r})"


def radius_path(
    estimator: Any, X: Any, y: Any, radii: Sequence[float], **fit_params: Any
) -> list[Any]:
    """Fitted copies of ``estimator``, one per radius, each started from the one before.

    Returns
    -------
    list of estimators, in the order of ``radii``

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier, radius_path
    >>> X, y = load_iris(return_X_y=True)
    >>> path = radius_path(DROClassifier(reference="empirical"), X[50:], y[50:], [0.1, 0.2])
    >>> [model.certificate_.radius for model in path]
    [0.1, 0.2]
    """
    fitted: list[Any] = []
    for radius in radii:
        model = clone(estimator).set_params(ambiguity__radius=radius, warm_start=True)
        if fitted:
            previous = fitted[-1]
            model.parameters_ = previous.parameters_
            model.certificate_ = previous.certificate_
        model.fit(X, y, **fit_params)
        model.set_params(warm_start=estimator.warm_start)
        fitted.append(model)
    return fitted
