"""How large the ambiguity set should be: by cross-validation, or by statistical inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sklearn.utils import check_consistent_length
from sklearn.utils.validation import _num_samples

from drojko._random import generator
from drojko._sklearn import checked_weight
from drojko._validation import checked, chosen
from drojko.estimators.radius.cv import by_cv
from drojko.estimators.radius.environments import by_environments
from drojko.estimators.radius.inference import by_calibration, by_profile
from drojko.estimators.scoring import Rows, split_last
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RadiusSelection", "select_radius"]

_RULES = {"cv": ("min", "1se"), "environments": ("mean", "cap", "clear")}
_METHODS = (*_RULES, "rwpi", "calibration")


@dataclass(frozen=True, eq=False)
class RadiusSelection:
    """A radius, how it was found, and what else was considered.

    Attributes
    ----------
    radius : float
        In the conventions of the ambiguity set; for `CVaR` the tail mass alpha.
    method : {"cv", "environments", "rwpi", "calibration"}
    table : DataFrame
        "cv": a row per candidate, with means over the folds and their standard errors: the
        certified ``upper_bound`` at the set ``at``, the plain ``nominal_risk``, and the shares of
        folds in which the bound is ``proven`` and the fit ``converged``. "environments": a row per
        candidate with the mean of the plain risks of left-out environments, the worst of them and
        its name, the mean ``gain`` over no set at all with its standard error, and the share of
        fits that ``converged``. The other methods: a row per level.
    message : str
        One sentence on what was done.
    params : dict
        For ``estimator.set_params(**params)``.
    at : AmbiguitySet or None
        The set at which "cv" compared the candidates.
    """

    radius: float
    method: str
    table: pd.DataFrame
    message: str
    params: dict[str, Any] = field(default_factory=dict)
    at: Any = None

    def __repr__(self) -> str:
        text = self.table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        head = f"RadiusSelection(radius={self.radius:.6g}, method={self.method!r})"
        return f"{head}\n  {self.message}\n" + "\n".join(f"  {line}" for line in text.split("\n"))


@checked()
def select_radius(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    method: str = "cv",
    radii: Sequence[float] | None = None,
    at: Any = None,
    cv: Any = 5,
    rule: str | None = None,
    level: float = 0.05,
    two_sided: bool = False,
    n_draws: int = 200_000,
    sample_weight: Any = None,
    groups: Any = None,
    n_jobs: int | None = None,
    random_state: Any = None,
) -> RadiusSelection:
    r"""Choose the radius of an estimator's ambiguity set.

    .. math:: \text{cv:} \quad \min_r \sum_k \sup\{E_P\,\ell(\hat\theta_r^{(-k)}) :
                  P \in \text{at, around fold } k\}

    .. math:: \text{environments:} \quad \min_r \sum_e E_{P_e}\,\ell(\hat\theta_r^{(-e)})

    .. math:: \text{rwpi:} \quad r^2 = q_{1-\mathrm{level}}(H^\top G^{-1} H) / n, \qquad
                  H \sim N(0, \mathrm{Cov}\, h),\; G = E\, D_x h\, W^{-1} D_x h^\top,\;
                  h = \nabla_\beta \ell

    .. math:: \text{calibration:} \quad r = \phi''(1)\, z_{1-\mathrm{level}}^2 / (2 n)

    "cv" trains at every candidate, warm-started from small to large, and compares the certified
    worst-case risk on the held-out folds at one fixed set: any estimator, any set with a radius.

    "environments" leaves one environment out at a time (a hospital, a year, a region: ``groups``),
    trains on the others at every candidate, down to almost none and none at all, and compares the
    plain risk on the one left out: what the next environment would cost, if it differs from these
    as they do from each other. It says whether any size helps beyond two standard errors.

    "rwpi", robust Wasserstein profile inference, is the smallest radius at which the ball around
    the data holds, with probability 1 - level, a distribution for which the true coefficients are
    optimal (with whatever intercept). It is for linear models with the logistic (two classes),
    squared or huber loss in a Wasserstein ball of order 2, with weights and immutable columns.
    For the logistic loss also of order 1, where it is the paper's upper bound: the quantile of the
    norm of N(0, Cov x), over n^(1/2). The radius falls as n^(-1/2), whatever the dimension.

    "calibration" is the radius at which the minimal worst-case risk is an upper confidence bound
    of the minimal true risk, of level 1 - level, asymptotically: KL, chi-square, Cressie-Read.

    Parameters
    ----------
    estimator : DROClassifier, DRORegressor, or a pipeline that ends in one
        Not changed. A pipeline's other steps are fitted anew in each fold; radii are in the
        units of what the last step sees.
    X, y : array-like of shapes (n, d) and (n,)
    method : {"cv", "environments", "rwpi", "calibration"}, default="cv"
    radii : sequence of float, default=None
        Candidates of "cv" and "environments"; tail masses for `CVaR`. None: 0 and eight more; for
        transport from 1 % to 100 % of a standard deviation of the columns (weighted as the cost
        is), for divergences such that the worst case is 0.5 to 17 standard errors above the mean.
        "environments" adds three between these and none.
    at : AmbiguitySet or float, default=None
        The set at which "cv" compares, or the radius of the estimator's own kind of set: the shift
        that one wants to be safe against. None: the estimator's own set; if it has none, or no
        positive radius, the middle one of the positive candidates. The unshifted risk would
        prefer radius 0, and each candidate's own set the smallest.
    cv : int, splitter or iterable, default=5
        An int: that many shuffled folds, stratified for classifiers.
    rule : str, default=None
        "cv": "min" (None), the minimiser of the held-out bound, or "1se", the largest set within
        one standard error of it. "environments": "mean" (None), the least mean over them; "cap",
        the least risk in the worst one among candidates whose mean is within 1 % of the least; or
        "clear", the least mean where it gains beyond two standard errors over no set, else none.
    level : float, default=0.05
        Probability of error of "rwpi" and "calibration".
    two_sided : bool, default=False
        "calibration": half of ``level`` for a lower bound as well.
    n_draws : int, default=200000
        Monte-Carlo draws of the limit law of "rwpi".
    sample_weight : array-like of shape (n,), default=None
        Each row counts as one observation: n is (sum w)^2 / sum w^2.
    groups : array-like of shape (n,) or (n, n_groups), default=None
        What rows belong to: the environments, labels of shape (n,); a `Group` set needs it, as the
        estimator's or as ``at``. Labels also go to splitters that keep groups of rows together.
    n_jobs : int, default=None
        Folds of "cv", or environments, at once, on the workers of joblib's `parallel_config`
        (processes, threads, Dask); -1: one on each core. The result is the same bit by bit,
        whatever the number (to rounding beside None, where more than a million numbers get torch
        several threads).
        ``verbose`` estimators are silent then.
    random_state : None, int or generator, default=None
        Of the shuffled folds and the draws of "rwpi"; estimators have their own.

    Returns
    -------
    RadiusSelection

    Raises
    ------
    UnsupportedError
        For a method that does not apply to the estimator's set, loss or model; it names what does.
    InvalidDataError
        For arguments without meaning; for "rwpi" also for classes that can be separated.
    KeyboardInterrupt
        After Ctrl-C; where a fold of "cv" was done, what those say is the exception's ``result``.
    Exception
        Whatever a fit of "cv" raises, with the radius that it was at.

    Notes
    -----
    "rwpi" and "calibration" are about balls around the data: use ``reference="empirical"``. A
    continuous reference adds its own bandwidth. With ``alpha > 0`` the true coefficients of "rwpi"
    are those of the penalised problem.

    References
    ----------
    J. Blanchet, Y. Kang, K. Murthy (2016), Robust Wasserstein profile inference and applications
    to machine learning, arXiv 1610.05627. J. Duchi, P. Glynn, H. Namkoong (2016), Statistics of
    robust optimization: a generalized empirical likelihood approach, arXiv 1610.03425.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from drojko.estimators import DRORegressor, select_radius
    >>> from drojko.ambiguity import Wasserstein
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = DRORegressor(Wasserstein(radius=0.01), reference="empirical")
    >>> chosen = select_radius(model, X, y, method="rwpi", random_state=0)
    >>> print(f"{chosen.radius:.3f}")
    0.005
    >>> model.set_params(**chosen.params).fit(X, y).status_
    'converged'
    >>> folds = select_radius(model, X, y, radii=[0, 0.005, 0.0125, 0.05], at=0.01, random_state=0)
    >>> folds.radius, list(folds.table.columns[:2])
    (0.0125, ['radius', 'upper_bound'])
    """
    chosen("method", method, _METHODS)
    rules = _RULES.get(method, _RULES["cv"])
    rule = rules[0] if rule is None else rule
    chosen("rule", rule, rules)
    if not 0.0 < level < 1.0:
        raise InvalidDataError(f"level={level!r}; expected a number between 0 and 1, such as 0.05")
    if n_draws < 1000:
        raise InvalidDataError(f"n_draws={n_draws!r}; expected 1000 or more")
    _, last = split_last(estimator)
    ambiguity = last._nested("ambiguity")
    name = ambiguity.resized(ambiguity.nothing).size_name  # of a set that has a size to choose
    check_consistent_length(X, y)
    if groups is not None and _num_samples(groups) != _num_samples(X):
        raise InvalidDataError(
            f"groups has {_num_samples(groups)} rows and X has {_num_samples(X)}: give one per row"
        )
    rng = generator(random_state)
    weight = None
    if sample_weight is not None:
        weight = checked_weight(sample_weight, X)
    rows = Rows(X, y, weight, groups)
    prefix = "ambiguity__" if last is estimator else f"{estimator.steps[-1][0]}__ambiguity__"

    def finish(found: dict[str, Any]) -> RadiusSelection:
        params = {prefix + name: found["radius"]}
        if "penalty" in ambiguity.get_params(deep=False):
            params[prefix + "penalty"] = None
        return RadiusSelection(method=method, params=params, **found)

    if method == "cv":
        return by_cv(estimator, rows, radii, at, cv, rule, n_jobs, rng, finish)
    if method == "environments":
        return by_environments(estimator, rows, radii, rule, n_jobs, finish)
    if method == "rwpi":
        return finish(by_profile(estimator, rows, level, n_draws, rng))
    return finish(by_calibration(ambiguity, rows.count, level, two_sided))
