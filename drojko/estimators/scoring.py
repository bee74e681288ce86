"""Comparing robust models: scorers at one fixed ambiguity set, paths over the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn import get_config
from sklearn.base import clone
from sklearn.metrics import check_scoring
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import MetadataRequest

from drojko._driver import keeping
from drojko._validation import checked, floats, is_whole, shown
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.registry import approach_to
from drojko.estimators._parallel import in_parallel, named
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import membership

__all__ = [
    "Rows", "make_robust_scorer", "make_worst_group_scorer", "radius_path", "size_of", "split_last",
]  # fmt: skip


def make_robust_scorer(ambiguity: AmbiguitySet) -> Callable[..., float]:
    """Scorer ``(estimator, X, y) -> -upper bound`` of the worst-case risk in one fixed set.

    Accuracy on the held-out fold picks the radius by nominal risk, which defeats the purpose; the
    estimator's own set differs from candidate to candidate. A fixed set compares like with like,
    whatever set each candidate was trained for. `drojko.select_radius` does the search at less
    cost. A `Group` set needs ``groups``: route them, with ``set_score_request(groups=True)``.

    Parameters
    ----------
    ambiguity : AmbiguitySet
        The set that every candidate is scored in.

    Returns
    -------
    scorer : callable
        For ``scoring=``; can be pickled.

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
    approach_to(ambiguity)
    return _RobustScorer(ambiguity)


def make_worst_group_scorer(
    scoring: Any = None, *, column: Any = None, min_rows: int = 10
) -> Callable[..., float]:
    """Scorer of any estimator by the group of rows that it serves worst: the least of their scores.

    Parameters
    ----------
    scoring : str, callable or None, default=None
        A scorer of scikit-learn, applied to the rows of each group ("neg_log_loss", "accuracy");
        None: the estimator's ``score``. Larger is better.
    column : name or index, default=None
        The column of X that holds the groups. None: ``groups`` is routed to the scorer, with
        ``set_score_request(groups=True)``, labels of shape (n,) or columns of 0 and 1.
    min_rows : int, default=10
        Groups of fewer rows (in a fold) are scored together: of a few rows the worst is noise.

    Returns
    -------
    scorer : callable
        For ``scoring=``; can be pickled.

    Raises
    ------
    InvalidDataError
        For a ``min_rows`` below 1; when called, without groups.

    Notes
    -----
    Groups that a fold lacks count nothing there. A score that needs both classes ("roc_auc") is NaN
    for a group of one, and so is the worst then.

    References
    ----------
    S. Sagawa, P. W. Koh, T. B. Hashimoto, P. Liang (2020), Distributionally robust neural networks
    for group shifts, arXiv 1911.08731.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.dummy import DummyClassifier
    >>> X = np.repeat([[0], [1]], 10, axis=0)
    >>> y = np.array([0] * 12 + [1] * 8)
    >>> worst = make_worst_group_scorer("accuracy", column=0)
    >>> worst(DummyClassifier().fit(X, y), X, y)
    0.2
    """
    if not is_whole(min_rows, 1):
        raise InvalidDataError(f"min_rows={shown(min_rows)}; expected 1 or more")
    return _WorstGroupScorer(scoring, column, min_rows)


class _Routed:
    """A scorer that may ask for more than X and y."""

    def __init__(self) -> None:
        self._request: Any = None

    def set_score_request(self, **requests: bool | str | None) -> Self:
        """Ask for ``sample_weight`` or ``groups``, as scikit-learn's scorers do."""
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "set_score_request needs sklearn.set_config(enable_metadata_routing=True)"
            )
        request = MetadataRequest(owner=self)
        for name, alias in requests.items():
            if name not in ("sample_weight", "groups"):
                raise TypeError(
                    f"set_score_request has no {name!r}; it takes sample_weight, groups"
                )
            request.score.add_request(param=name, alias=alias)
        self._request = request
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """What the scorer asks for: nothing before `set_score_request`."""
        return self._request or MetadataRequest(owner=self)


class _RobustScorer(_Routed):
    """A picklable scorer at one set."""

    def __init__(self, ambiguity: AmbiguitySet) -> None:
        super().__init__()
        self.ambiguity = ambiguity

    def __call__(self, estimator: Any, X: Any, y: Any, **kwargs: Any) -> float:
        steps, last = split_last(estimator)  # distances are in the units of the last step
        X = X if steps is None else steps.transform(X)
        return float(last.robust_score(X, y, ambiguity=self.ambiguity, **kwargs))

    def __repr__(self) -> str:
        return f"make_robust_scorer({self.ambiguity!r})"


class _WorstGroupScorer(_Routed):
    """A picklable scorer by the worst group."""

    def __init__(self, scoring: Any, column: Any, min_rows: int) -> None:
        super().__init__()
        self.scoring, self.column, self.min_rows = scoring, column, min_rows

    def __call__(
        self, estimator: Any, X: Any, y: Any, groups: Any = None, sample_weight: Any = None
    ) -> float:
        if self.column is not None:
            groups = _safe_indexing(X, self.column, axis=1)
        if groups is None:
            raise InvalidDataError(
                "make_worst_group_scorer has no groups: name the column= of X that holds them, or "
                "route them with set_score_request(groups=True)"
            )
        members = membership(groups)[0] > 0
        if len(members) != np.shape(y)[0]:
            raise InvalidDataError(
                f"groups has {len(members)} rows and y has {np.shape(y)[0]}: give one per row"
            )
        small = members.sum(axis=0) < self.min_rows
        together = members[:, small].any(axis=1, keepdims=True)
        members = np.hstack([members[:, ~small], together])
        scorer: Any = check_scoring(estimator, self.scoring)
        found = []
        for rows in map(np.flatnonzero, members.T):
            if len(rows):
                weight = None if sample_weight is None else _safe_indexing(sample_weight, rows)
                more = {} if weight is None else {"sample_weight": weight}
                part = _safe_indexing(X, rows), _safe_indexing(y, rows)
                found.append(float(scorer(estimator, *part, **more)))
        return float(np.min(found))  # NaN where one of them is

    def __repr__(self) -> str:
        return f"make_worst_group_scorer({self.scoring!r}, column={self.column!r})"


@checked()
def radius_path(
    estimator: Any,
    X: Any,
    y: Any,
    radii: Sequence[float],
    *,
    n_jobs: int | None = None,
    **fit_params: Any,
) -> list[Any]:
    """Fitted copies of ``estimator``, one per radius, each started from the next smaller one.

    Parameters
    ----------
    estimator : DROClassifier, DRORegressor, or a pipeline that ends in one
        The steps before the last are fitted once; radii are in the units of the last.
    X, y : array-like of shapes (n, d) and (n,)
    radii : sequence of float
        In any order; tail masses for `CVaR`.
    n_jobs : int, default=None
        None: one fit after the other, each started from the one before. A number: that many fits at
        once (joblib), each from the start, so that the models are the same bit by bit for every
        number, 1 too. They are those of None up to ``tol`` where the problem is convex; a network
        may end elsewhere. ``verbose`` is silent meanwhile.
    **fit_params
        For ``fit`` of the last step, such as ``sample_weight``.

    Returns
    -------
    list of estimators, in the order of ``radii``

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C; the exception's ``result`` is the list, with None where no model is.
    Exception
        Whatever a fit raises, with the radius that it was at.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko import DROClassifier, radius_path
    >>> X, y = load_iris(return_X_y=True)
    >>> path = radius_path(DROClassifier(reference="empirical"), X[50:], y[50:], [0.1, 0.2])
    >>> [model.certificate_.radius for model in path]
    [0.1, 0.2]
    """
    steps, last = split_last(estimator)
    if steps is not None:
        steps: Any = clone(steps)
        X = steps.fit_transform(X, y)
    ambiguity = last._nested("ambiguity")
    sizes = floats(radii, "radii")
    if sizes.ndim != 1:
        raise InvalidDataError(f"radii={shown(radii)}; expected a list of numbers")
    sets = [ambiguity.resized(radius) for radius in sizes]
    order = sorted(range(len(sizes)), key=lambda i: ambiguity.room(sizes[i]))
    fitted: dict[int, Any] = {}

    def so_far() -> list[Any]:
        return [fitted.get(i) for i in range(len(sizes))]

    def keep(i: int, model: Any) -> None:
        fitted[i] = model if steps is None else _joined(estimator, steps, model)

    def all_sizes() -> list[Any]:
        if n_jobs is not None:
            jobs = [(last, sets[i], X, y, fit_params) for i in order]
            with closing(in_parallel(_from_the_start, jobs, n_jobs)) as models:
                for i, model in zip(order, models, strict=True):
                    keep(i, model)
            return so_far()
        previous: Any = None
        for i in order:
            model: Any = clone(last)
            model.set_params(ambiguity=sets[i], warm_start=True, checkpoint=None)
            if previous is not None:
                model.parameters_ = previous.parameters_
                model.certificate_ = previous.certificate_
            try:
                with named(size_of(sets[i])):
                    model.fit(X, y, **fit_params)
            finally:
                model.set_params(warm_start=last.warm_start)
                if hasattr(model, "status_"):
                    keep(i, model)
            # Without a minimum the coefficients are large for no reason: no place to start from.
            previous = None if model.status_ == "unbounded" else model
        return so_far()

    return keeping(all_sizes, lambda: so_far() if fitted else None)


def _from_the_start(last: Any, ambiguity: AmbiguitySet, X: Any, y: Any, fit_params: Any) -> Any:
    """A fit of its own, for a worker: without a progress bar."""
    model: Any = clone(last)
    model.set_params(ambiguity=ambiguity, verbose=False, checkpoint=None)
    with named(size_of(ambiguity)):
        model.fit(X, y, **fit_params)
    return model.set_params(verbose=last.verbose)


def size_of(ambiguity: AmbiguitySet) -> str:
    """How messages call the size of a set.

    >>> from drojko.ambiguity import CVaR
    >>> size_of(CVaR(alpha=0.1))
    'alpha=0.1'
    """
    return f"{ambiguity.size_name}={getattr(ambiguity, ambiguity.size_name):g}"


class Rows(NamedTuple):
    """Samples with what belongs to each."""

    X: Any
    y: Any
    weight: Any
    groups: Any

    @property
    def count(self) -> float:  # pyright: ignore
        """How many observations the rows stand for."""
        weight = np.ones(np.shape(self.y)[0]) if self.weight is None else self.weight
        return float(weight.sum() ** 2 / (weight**2).sum())

    def seen(self, steps: Any) -> Any:
        """X after the steps of a pipeline, fitted here."""
        return self.X if steps is None else clone(steps).fit_transform(self.X, self.y)

    def at(self, rows: np.ndarray) -> Rows:
        """Some of them."""
        return Rows(*(None if part is None else _safe_indexing(part, rows) for part in self))

    def known(self, ambiguity: Any) -> dict[str, Any]:
        """Arguments for a fit or a certificate at a set."""
        found = {"sample_weight": self.weight}
        if ambiguity.knows_groups:
            found["groups"] = self.groups
        return {name: value for name, value in found.items() if value is not None}


def split_last(estimator: Any) -> tuple[Any, Any]:
    """The pipeline before the last step, or None, and the drojko estimator in the last step."""
    steps, last = None, estimator
    if hasattr(estimator, "steps"):
        last = estimator.steps[-1][1]
        steps = estimator[:-1] if len(estimator.steps) > 1 else None
    if not hasattr(last, "robust_score"):
        raise InvalidDataError(
            f"{type(last).__name__} is no drojko estimator: give a DROClassifier, a DRORegressor "
            "or a pipeline that ends in one"
        )
    return steps, last


def _joined(pipeline: Any, steps: Any, model: Any) -> Any:
    """A pipeline of fitted steps."""
    joined: Any = clone(pipeline)
    joined.steps = [*steps.steps, (pipeline.steps[-1][0], model)]
    return joined
