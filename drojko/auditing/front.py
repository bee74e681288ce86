"""`audit`: how bad the worst shift of each size is for a model, and what it looks like."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast, overload

import numpy as np
from sklearn.base import clone

from drojko._driver import arithmetic, keeping
from drojko._random import generator as make_generator
from drojko._threads import SMALL, one_thread
from drojko._validation import checked, is_widths, shown
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.base import check_effort
from drojko.approaches.registry import approach_to
from drojko.auditing.attacks.transport import transport
from drojko.auditing.certified import certified, reweight
from drojko.auditing.checks import Health, health, notes
from drojko.auditing.progress import Progress, progress_bar
from drojko.auditing.reading.faithful import faithful, farthest
from drojko.auditing.reading.models import audited_model, whole_table
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reading.setup import build_problem, searched, sets_of, size_name
from drojko.auditing.reporting.comparison import Comparison
from drojko.auditing.reporting.decision import check_limit
from drojko.auditing.reporting.meaning import seen
from drojko.auditing.reporting.report import COLUMNS, AuditReport
from drojko.auditing.reporting.row import Row, calibrated, table_row
from drojko.certificates import Certificate
from drojko.estimators._parallel import named, workers
from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError
from drojko.inner.choice import get_inner
from drojko.inner.transport.solvers import ICNNJKO

__all__ = ["audit"]

#: Steps of the learned map: shorter than in a fit, as every row is corrected along a path of radii.
STEPS = 60


@overload
def audit(  # pyright: ignore[reportOverlappingOverload]
    model: Mapping[str, Any], X: Any, y: Any, ambiguity: AmbiguitySet, **settings: Any
) -> Comparison: ...
@overload
def audit(model: Any, X: Any, y: Any, ambiguity: AmbiguitySet, **settings: Any) -> AuditReport: ...
@checked()
def audit(  # pyright: ignore[reportInconsistentOverload]
    model: Any,
    X: Any,
    y: Any,
    ambiguity: AmbiguitySet,
    *,
    radii: Any = None,
    loss: Any = None,
    reference: Any = "kde",
    random_state: Any = None,
    sample_weight: Any = None,
    scale: str | None = None,
    inner: Any = None,
    groups: Any = None,
    max_evaluations: int = 150_000,
    images: tuple[int, int] | None = None,
    name: str | None = None,
    verbose: bool = False,
    n_jobs: int | None = None,
    effort: str = "fast",
    max_time: float | None = None,
    limit: Any = None,
    compare_to: Any = None,
) -> AuditReport | Comparison:
    r"""Audit a fitted model against the worst distribution near the data.

    .. math:: \sup\{E_P\,\ell(\text{model}; z) : D(P, P_0) \le r\}
              \quad\text{for every } r \text{ of } \mathrm{radii}

    from below (attained by rows that the report shows) and from above (proven where possible),
    beside noise, gradient ascent with restarts and a search without gradients at the same budget.

    Parameters
    ----------
    model : object
        A torch module, a fitted drojko estimator, or a fitted scikit-learn classifier or regressor
        (pipelines and searches too). It is not changed. A dict of models, by their names, gives a
        `Comparison`: one table, the same axes.
    X, y : array-like or DataFrame of shape (n, d), array-like of shape (n,)
        Rows as the model takes them, best ones that its training has not seen.
    ambiguity : AmbiguitySet
        Distances are in the units of X; categories stay unless they have a ``swap_cost``. With
        ``categorical_features="auto"`` whole numbers move in whole steps, and columns that hold
        no negative value get none: bounds by default, which ``bounds`` of the set replace.
    radii : array-like, default=None
        Sizes of the set (of `CVaR` alphas); None: the set's own radius or penalty.
    loss : str, Loss or callable, default=None
        As in the estimators. None: "logistic" (cross-entropy) for models with probabilities,
        "hinge" for decision functions, "squared" for regression, "zero-one" for labels alone.
        Classifiers also have "zero-one", the share of wrong labels, and "squared" and "absolute",
        half of what the probabilities differ from 0 and 1. Callables on predictions (logits, of
        classifiers) need no gradients where the set reweights or the model is searched.
    reference : str or measure, default="kde"
        P0. "kde" and "empirical": the rows themselves, so that numbers have no Monte-Carlo error;
        with "kde", samples of the worst case are smoothed by at most a tenth of the radius. Others
        are fitted to the rows and stand for fixed draws, the same for all radii.
    random_state : int, generator or None
    sample_weight : array-like of shape (n,), default=None
    scale : "standard" or None
        "standard": distances in standard deviations of the columns; ``weights`` multiply.
    inner : str or settings object, default=None
        Solver of the worst case (`drojko.inner`); None: "icnn" with 60 steps.
    groups : array-like, default=None
        The group of each row, for `Group` sets and for `AuditReport.groups`.
    max_evaluations : int, default=150000
        Rows that the search for worst cases of a model without gradients asks about, at most (600
        times each row, at least 8): more find worse ones and take longer in proportion.
    images : (height, width), default=None
        Rows of X as pictures, for the report.
    name : str, default=None
        Of the model, for the report; None: the name of its class.
    verbose : bool, default=False
        Show a progress bar, on standard error.
    n_jobs : int, default=None
        Sizes at once, on the workers of joblib's `parallel_config`; -1: one on each core. The
        report is the same bit by bit, whatever the number (to rounding beside None, where more
        than a million numbers get torch several threads). It helps where sizes know nothing of one
        another and each takes long: `Sinkhorn`, order 1, `MMD`. Order 2 goes along a path of sizes,
        one after the other; of 2,000 rows or more, models without gradients are searched in
        blocks of rows at once. The other duals take milliseconds.

    effort : {"fast", "thorough"}, default="fast"
        On the worst case of a network and its bounds. "thorough" searches in rounds, says what it
        may miss, and works longer on the bounds.
    max_time : float, default=None
        Seconds after which baselines, further searches and bounds are left out: what the report
        says then is valid, only looser.
    limit : float or dict, default=None
        What must not be crossed: a dict with "accuracy", "auc" (at least) or "risk", the mean loss
        (at most). A number: the accuracy of a classifier, the mean loss of a regression. The
        report says at which sizes it holds and at which it was crossed.
    compare_to : DataFrame, array, (X_new, y_new) or ObservedShift, default=None
        A newer sample, of which the report says how far it is in the units of the set
        (`drojko.observed_shift`, with the audit's own ``scale``, weights and fixed columns); under
        sets that reweight, how far the shares of its classes are, which needs ``y_new``.

    Returns
    -------
    AuditReport or Comparison
        `Comparison` for a dict of models.

    Raises
    ------
    InvalidDataError
        For what is no fitted model, data that do not fit it, and sizes that are none.
    UnsupportedError
        For sets that need gradients of a model without; the message lists what is offered.
    KeyboardInterrupt
        After Ctrl-C; where a size was finished, the report so far is the exception's ``result``.

    Notes
    -----
    Of order-2 Wasserstein balls, rows are moved by the learned map, proximal corrections and
    searches of every baseline; the best mixture of all positions within the budget is the worst
    case, so that numbers are monotone in the radius. Where a baseline finds more than the inner
    solver, the finding says "weak inner solver" and the better one is used.

    Accuracy is that of the model's own ``predict``. Differentiable copies of scikit-learn models
    are compared with the model on all rows and on rows moved out to the largest size; where they
    differ, a finding says so, and the model's own answers are used.

    Missing values stay as they are, under sets that reweight (not MMD) and where rows are
    searched, with a scikit-learn estimator that takes them; the other values of such a row may
    move. ``samples`` of the report hold NaN again.

    Models without gradients are searched under Wasserstein sets of either order, networks under
    order 1 (a lower bound); density-ratio sets are exact for any model. Probabilities are read
    between 1e-6 and 1 where there are no gradients.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from drojko import audit
    >>> from drojko.ambiguity import KL
    >>> X, y = load_iris(return_X_y=True)
    >>> forest = RandomForestClassifier(20, random_state=0).fit(X, y)
    >>> report = audit(forest, X, y, KL(), radii=[0, 0.1], random_state=0)
    >>> table = report.table
    >>> bool(table.worst_case_risk[1] > table.worst_case_risk[0] >= table.nominal_risk[0])
    True
    """
    given = dict(locals())
    if isinstance(model, Mapping):
        return _several(**given)
    import pandas as pd

    approach_to(ambiguity)
    workers(n_jobs, 1)
    check_effort("audit", effort, max_time)
    began = time.perf_counter()
    generator = make_generator(random_state)
    sets = sets_of(ambiguity, radii)
    settings = get_inner(ICNNJKO(steps=STEPS, rounds=2) if inner is None else inner)
    X = whole_table(model, X)
    read = audited_model(model, X, y)
    problem = build_problem(
        read,
        X,
        y,
        sets[-1][1],
        loss=loss,
        reference=reference,
        scale=scale,
        sample_weight=sample_weight,
        groups=groups,
        generator=generator,
    )
    deadline = math.inf if max_time is None else began + max_time
    problem = replace(problem, effort=effort, deadline=deadline)
    sides = images if isinstance(images, list | tuple) else ()
    area = math.prod(sides) if len(sides) == 2 and is_widths(sides) else -1
    if images is not None and area != len(read.space.raw_names):
        raise InvalidDataError(
            f"images={shown(images)}: X has {len(read.space.raw_names)} columns, not their product"
        )
    limits, observed = check_limit(limit, read.classes), seen(problem, compare_to)
    sizes = []
    for size, own in sets:  # with the columns of the problem's own
        given = own.get_params(deep=False)
        kept = {name: given[name] for name in {"penalty", own.size_name} & set(given)}
        sizes.append((size, cast(Any, clone(problem.ambiguity)).set_params(**kept)))
    fitted = getattr(model, "steps", [[model]])[-1][-1]
    found: list[Row] = []
    general: Health
    size = size_name(ambiguity, radii)

    def report() -> AuditReport:
        f = problem.outputs(problem.x)
        scores = dict(zip(("brier", "ece"), calibrated(problem, f, problem.y, problem.w)))
        nominal = general.nominal | scores
        rows = [table_row(size, problem, one, nominal) for one in found]
        checks = [{size: one.size, **line} for one in found for line in one.checks]
        return AuditReport(
            table=pd.DataFrame(rows, columns=[size, *COLUMNS]),
            checks=pd.DataFrame(checks, columns=[size, "check", "value", "passed", "detail"]),
            certificates=tuple(one.certificate for one in found),
            worst_cases=tuple(one.worst for one in found),
            name=name or type(fitted).__name__,
            about={
                "ambiguity": repr(ambiguity),
                "reference": str(reference),
                "scale": scale,
                "note": problem.model.note,
                "loss": problem.loss.name or type(problem.loss).__name__,
                "task": "regression" if problem.classes is None else "classification",
                "rows": len(problem.x),
                "features": len(read.space.raw_names),
                "gradients": problem.model.tabular is not None,
                "evaluations": problem.calls[0],
                "units": "standard deviations" if scale else "units of X",
                "interrupted": len(found) < len(sizes),
                "trained against": repr(getattr(fitted, "ambiguity", None)),
            },
            space=read.space,
            classes=problem.classes,
            problem=replace(problem, progress=Progress()),  # the report outlives the bar
            image_shape=None if images is None else (int(images[0]), int(images[1])),
            ambiguity=ambiguity,
            limit=limits,
            observed=observed,
        )

    def all_sizes() -> AuditReport:
        nonlocal problem, general
        threads = one_thread(problem.x.numel() < SMALL)
        with progress_bar(verbose) as progress, threads, arithmetic("the audit"):
            problem = faithful(replace(problem, progress=progress), farthest(problem, sizes))
            while True:
                general = health(problem)
                for one in _search(problem, sizes, settings, general, max_evaluations, n_jobs):
                    notes(problem, one)
                    one.checks = [*general.checks, *one.checks]
                    one.findings = [*general.findings, *one.findings]
                    found.append(one)
                reached = [np.asarray(one.after[0]) for one in found if one.after is not None]
                again = problem.model.compare(np.concatenate(reached)) if reached else problem.model
                if problem.model.differing or not again.differing:
                    return report()
                problem, found[:] = replace(problem, model=again), []  # it went where copies differ

    return keeping(all_sizes, lambda: found and report())


def _several(model: Mapping[str, Any], name: Any, max_time: Any, **given: Any) -> Comparison:
    """The audits of several models, one after the other: what is left of the time is shared."""
    began, found = time.perf_counter(), cast(dict[str, AuditReport], {})
    if name is not None or not model:
        raise InvalidDataError("a dict of models needs one at least, and names them itself")
    check_effort("audit", given["effort"], max_time)

    def each() -> Comparison:
        for k, (key, one) in enumerate(model.items()):
            left = None
            if max_time is not None:
                left = max(max_time - (time.perf_counter() - began), 1e-6) / (len(model) - k)
            with named(str(key)):
                report = audit(one, **given, name=str(key), max_time=left)
            found[str(key)] = report
            given["compare_to"] = report.observed or given["compare_to"]
        return Comparison(found)

    return keeping(each, lambda: found and Comparison(found))


def _search(
    problem: AuditProblem,
    sizes: list[tuple[float, Any]],
    settings: Any,
    general: Health,
    max_evaluations: int,
    n_jobs: int | None,
) -> Iterator[Row]:
    """What is found at every size; nothing where the model is not fit to be audited."""
    left, nan = list(sizes), math.nan
    # Families that audits know more of than a certificate, by the name of their approach.
    name_of = approach_to(problem.ambiguity).name
    if general.unusable:
        work: Iterator[Row] = iter(())
    elif name_of in ("reweighting", "support"):
        work = reweight(problem, sizes, n_jobs)
    elif searched(problem.ambiguity, problem.model):
        work = transport(problem, sizes, settings, general, max_evaluations, n_jobs)
    else:
        work = certified(problem, sizes, settings, n_jobs)
    try:
        for one in work:
            yield one
            left.pop(0)
    except (InvalidDataError, NonFiniteError, RuntimeError) as error:
        if isinstance(error, UnsupportedError) or not problem.model.tally.bad:
            raise  # and no search that met NaN
    for size, own in left:
        empty = Certificate(nan, nan, nan, nan, own.radius, nan, nan, proof="local-estimate")
        yield Row(size, empty, None)
