"""Any learner that takes weights, trained against a set that reweights."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    RegressorMixin,
    is_classifier,
)
from sklearn.model_selection import KFold, StratifiedKFold, check_cv
from sklearn.utils.validation import _num_samples

from drojko._driver import keeping
from drojko._random import generator
from drojko._sklearn import LogitClassifier, check_is_fitted, checked_weight
from drojko._validation import floats, is_whole, shown
from drojko.ambiguity import AmbiguitySet
from drojko.boosting.answers import Numbers, Probabilities, Scores, is_linear
from drojko.boosting.game import Game, check_heeds_weights, fitted, play
from drojko.boosting.worst import best_constant_risk, check_reweights, worst
from drojko.certificates import Certificate
from drojko.estimators import DROClassifier, DRORegressor
from drojko.estimators.scoring import Rows
from drojko.exceptions import DrojkoError, InvalidDataError

__all__ = ["ReweightedClassifier", "ReweightedRegressor"]

#: Cross-validated over training risk, from which on the latter says nothing of new data.
_OVERFITTED = 1.25
#: Distance from the best constant below which nothing was learned for the worst case.
_CONSTANT = 1.02


class _Reweighted(MetaEstimatorMixin, BaseEstimator):
    """What both have in common: the game, its certificate, its cross-validation."""

    _twin: Any
    _folds: Any
    _answers: Any
    certificate_: Certificate
    estimators_: list[Any]
    best_constant_: float
    robust_cv_: float

    def __init__(
        self,
        estimator: Any,
        ambiguity: AmbiguitySet,
        *,
        n_rounds: int = 20,
        cv: Any = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.ambiguity = ambiguity
        self.n_rounds = n_rounds
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, groups: Any = None) -> Any:
        """Play the game on all rows, then in each fold of ``cv``.

        Parameters
        ----------
        X : array-like, sparse matrix or frame with n rows
            Handed to the learner as it is.
        y : array-like of shape (n,)
        sample_weight : array-like of shape (n,), default=None
            The reference: non-negative, not all zero.
        groups : array-like of shape (n,) or (n, G), default=None
            For `Group`, and for a ``cv`` that splits by groups.

        Returns
        -------
        self

        Raises
        ------
        UnsupportedError
            For sets that move points, learners that ignore weights or know no probabilities.
        InvalidDataError
            For data that do not fit together.
        KeyboardInterrupt
            After Ctrl-C: the mean of the models so far is kept, as the exception's ``result``.
        """
        self._check()
        n, target = _num_samples(X), self._targets(y)
        weight = checked_weight(sample_weight, np.empty((n, 1)))
        if self.ambiguity.knows_groups and groups is None:
            name = type(self.ambiguity).__name__
            raise InvalidDataError(f"{name} needs the groups of the rows: fit(X, y, groups=...)")
        for part, name in ((target, "y"), (groups, "groups")):
            if part is not None and _num_samples(part) != n:
                raise InvalidDataError(f"X has {n} rows, {name} has {_num_samples(part)}")
        seed = int(torch.randint(2**31 - 1, (), generator=generator(self.random_state)))
        classes = self._n_classes
        usual = Numbers() if classes is None else Probabilities(classes)
        sample = check_heeds_weights(self.estimator, X, target, usual.of, seed)
        linear = is_linear(sample, X, classes)
        answers: Any = Scores() if linear and classes is not None else usual
        data = Rows(X, target, weight, groups)
        games: list[Game] = []

        def keep(game: Game) -> None:
            if not games:
                self._forget()
                self._answers, first = answers, game.models[0]
                for name in ("n_features_in_", "feature_names_in_"):
                    if hasattr(first, name):
                        setattr(self, name, getattr(first, name))
            games[:] = [game]
            self.estimators_ = game.models
            self.history_ = {"robust_risk": game.risks, "response": game.responses}

        def work() -> Any:
            game = self._play(data, answers, seed, keep)
            self.best_response_ = max(game.responses)
            self.best_constant_ = best_constant_risk(self._known, target, weight, groups, classes)
            lower = self._least_of_linear(data) if linear else math.nan
            self.certificate_ = self._certificate(game, data, answers, lower)
            self.robust_cv_ = self._cross_validated(data, answers, seed)
            self._warn()
            return self

        return keeping(work, lambda: self if games else None)

    def _check(self) -> None:
        """Look at the settings."""
        name, learner = type(self).__name__, type(self.estimator).__name__
        check_reweights(self.ambiguity, name)
        if not is_whole(self.n_rounds, 1):
            raise InvalidDataError(
                f"{name} got n_rounds={shown(self.n_rounds)}; expected 1 or more"
            )
        if not hasattr(self.estimator, "fit"):
            raise InvalidDataError(
                f"{name} got estimator={shown(self.estimator)}; expected a learner"
            )
        if is_classifier(self.estimator) is not is_classifier(self):
            kind = "classifier" if is_classifier(self) else "regressor"
            raise InvalidDataError(f"{name} got {learner}, which is no {kind}")

    def _forget(self) -> None:
        for name in [name for name in vars(self) if name.endswith("_") and name != "classes_"]:
            delattr(self, name)

    def _play(self, data: Rows, answers: Any, seed: int, seen: Any = None) -> Game:
        known, groups = self._known, _present(data.groups)
        return play(
            fit=lambda mass: fitted(self.estimator, data.X, data.y, mass, seed),
            answer=lambda model: answers.of(model, data.X),
            losses=lambda said: answers.losses(said, data.y),
            worst=lambda losses: worst(known, losses, data.y, data.weight, groups),
            base=data.weight,
            n_rounds=self.n_rounds,
            price=float(self.ambiguity.penalty or 0.0),
            seen=seen,
        )

    def _certificate(self, game: Game, data: Rows, answers: Any, lower: float) -> Certificate:
        dual, losses = game.dual, answers.losses(game.answers, data.y)
        return GameCertificate(
            nominal_risk=float(data.weight @ losses / data.weight.sum()),
            lower=min(lower, dual.value),  # rounding; NaN stays
            upper=dual.value,
            worst_case_risk=dual.attained,
            radius=None if self.ambiguity.penalty is not None else self.ambiguity.budget,
            penalty=dual.penalty,
            transport_cost=dual.radius,
            proof="dual",
            discrepancy="discrepancy spent",
        )

    def _least_of_linear(self, data: Rows) -> float:
        """Proven lower bound of the worst-case risk of any linear model, where there is one."""
        robust = self._twin(self.ambiguity, reference="empirical", tol=1e-4)
        known = {"groups": data.groups} if self.ambiguity.knows_groups else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                robust.fit(data.X, data.y, sample_weight=data.weight, **known)
            except (DrojkoError, ValueError):
                return math.nan
        return robust.certificate_.upper - abs(robust.certificate_.upper) * robust.optimality_gap_

    def _cross_validated(self, data: Rows, answers: Any, seed: int) -> float:
        """Worst-case risk of rows held out, the whole game played in each fold."""
        labels = None
        if self.cv is None or is_whole(self.cv, 0):
            if self.cv == 0:
                return math.nan
            folds = self._folds(5 if self.cv is None else self.cv, shuffle=True, random_state=seed)
        else:
            folds = check_cv(self.cv, data.y, classifier=is_classifier(self))
            labels = data.groups if np.ndim(data.groups) == 1 else None
        losses, times = np.zeros(len(data.y)), np.zeros(len(data.y))
        for number, (train, test) in enumerate(folds.split(data.X, data.y, labels), 1):
            if len(np.unique(data.y[train])) < 2:
                raise InvalidDataError(
                    f"fold {number} of cv leaves one value of y to train on: give fewer folds, a "
                    "splitter that leaves two classes in, or cv=0 for no robust_cv_"
                )
            game, held = self._play(data.at(train), answers, seed), data.at(test)
            said = np.mean([answers.of(model, held.X) for model in game.models], axis=0)
            losses[test] += answers.losses(said, held.y)
            times[test] += 1.0
        tried = np.flatnonzero(times)
        part = data.at(tried)
        mean = losses[tried] / times[tried]
        return worst(self._known, mean, part.y, part.weight, _present(part.groups)).value

    def _warn(self) -> None:
        name, upper, held = type(self).__name__, self.certificate_.upper, self.robust_cv_
        if held > upper + (_OVERFITTED - 1.0) * abs(upper):
            warnings.warn(
                f"{name}: the worst-case risk is {upper:.4g} on the rows it was trained on, but "
                f"{held:.4g} on rows held out (robust_cv_): the bound says nothing of new data, "
                "and the weights follow losses near zero. Regularise the learner (fewer or "
                "smaller trees, larger leaves), or take fewer rounds of boosting",
                UserWarning,
                stacklevel=5,
            )
        risk = upper if math.isnan(held) else max(upper, held)
        if risk * _CONSTANT >= self.best_constant_:
            warnings.warn(
                f"{name}: the worst-case risk, {risk:.4g}, is that of the best constant, "
                f"{self.best_constant_:.4g}, or within 2 % of it: in a set this large nothing of "
                "use is learned from X. Take a smaller set",
                UserWarning,
                stacklevel=5,
            )

    def _mean(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "estimators_")
        return np.mean([self._answers.of(model, X) for model in self.estimators_], axis=0)

    @property
    def _n_classes(self) -> int | None:
        return len(self.classes_) if is_classifier(self) else None  # type: ignore[attr-defined]

    @property
    def _known(self) -> AmbiguitySet:
        """The set, with classes as indices."""
        return self.ambiguity.for_data(None, getattr(self, "classes_", None))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = getattr(self.estimator, "__sklearn_tags__", None)
        if inner is not None:
            tags.input_tags = replace(inner().input_tags)
        return tags

    def _targets(self, y: Any) -> np.ndarray:
        """What the learner is to learn."""
        raise NotImplementedError


def _present(groups: Any) -> Any:
    """Groups of some rows: of columns, those that have a row among them."""
    if groups is None or np.ndim(groups) != 2:
        return groups
    groups = np.asarray(groups)
    return groups[:, groups.astype(bool).any(axis=0)]


class GameCertificate(Certificate):
    """A `Certificate` of a game: ``lower`` is of any linear model, NaN where nothing is known."""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as text; no bound and no gap where there is none."""
        names = [name for name, _ in super().rows()]
        rows = dict(super().rows())
        if math.isnan(self.lower):
            return [(name, rows[name]) for k, name in enumerate(names) if k not in (1, 3)]
        names[1] = "least of any linear model (lower bound)"
        return list(zip(names, rows.values(), strict=True))


class ReweightedClassifier(LogitClassifier, ClassifierMixin, _Reweighted):
    r"""A classifier that takes weights, trained against the worst weights of a set.

    .. math:: \min_f \max_{q :\, D(q P_0, P_0) \le r} E_0\, q\, \ell(f), \qquad
        f_t \in \arg\min_f E_0\, q_t\, \ell(f), \quad \bar f = \tfrac1T \sum_t f_t

    with :math:`q_{t+1} = .7\, q_t + .3\, dP^*/dP_0` at the losses of the mean so far, and the
    logistic loss (cross-entropy for several classes). The mean of the models is deployed: of their
    scores where these are linear in X, else of their probabilities.

    Parameters
    ----------
    estimator : classifier
        With ``predict_proba``, and ``sample_weight`` in ``fit``; or a pipeline that ends in one.
    ambiguity : AmbiguitySet
        One that reweights by the losses: `KL`, `ChiSquare`, `CressieRead`, `CVaR`,
        `TotalVariation`, `Group`, or a user's own.
    n_rounds : int, default=20
    cv : int, splitter or iterable, default=None
        Folds in each of which the whole game is played once more, for ``robust_cv_``: None for
        five, 0 for none.
    random_state : int, numpy generator or None, default=None
        Of the folds, and of the learner and its steps where they have a ``random_state``.

    Attributes
    ----------
    certificate_ : Certificate
        ``upper`` is the exact dual at the deployed mean, for the rows that were fitted. ``lower``
        is a proven bound of what any linear model can reach, where the learner is linear in X; NaN
        for trees and other learners, of which no such bound is known.
    best_response_ : float
        Largest mean loss of a model under the weights that it answered: a lower bound only if
        the learner had minimised it exactly.
    robust_cv_ : float
        Worst-case risk of rows that the game did not see. NaN for ``cv=0``.
    best_constant_ : float
        Worst-case risk of the best constant probabilities.
    estimators_ : list of fitted classifiers
        Of class indices.
    classes_ : ndarray
    history_ : dict of lists
        ``robust_risk`` of the mean and ``response`` of each model, round by round.

    Raises
    ------
    UnsupportedError
        From `fit`: for sets that move points, for learners that ignore weights (they are tried at
        two points with two weightings) or know no probabilities.
    InvalidDataError
        From `fit`: for arguments or data that do not fit together.

    Notes
    -----
    Probabilities are those of the reweighted data, not frequencies: calibrate them for decisions
    at a threshold. They are kept 2e-16 away from 0 in the loss. Where the learner fits its training
    rows, their losses and with them ``upper`` go to zero; a warning says so.

    References
    ----------
    Y. Freund, R. Schapire (1999), Adaptive game playing using multiplicative weights.
    H. Namkoong, J. Duchi (2016), Stochastic gradient methods for distributionally robust
    optimization with f-divergences.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.ensemble import GradientBoostingClassifier
    >>> from drojko.ambiguity import CVaR
    >>> from drojko.boosting import ReweightedClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> trees = GradientBoostingClassifier(n_estimators=5, random_state=0)
    >>> robust = ReweightedClassifier(trees, CVaR(alpha=0.5), n_rounds=5, cv=2, random_state=0)
    >>> robust.fit(X, y).certificate_.upper < robust.robust_cv_ < robust.best_constant_
    True
    """

    _twin = DROClassifier
    _folds = StratifiedKFold

    def decision_function(self, X: Any) -> np.ndarray:
        """Log odds (n,), or scores (n, K) whose softmax is the probabilities."""
        return self._answers.scores(self._mean(X))

    def _targets(self, y: Any) -> np.ndarray:
        y = np.asarray(y)
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if y.ndim != 1:
            raise InvalidDataError(f"y has shape {y.shape}; expected a class per row, (n,)")
        return self._encode(y)[1]


class ReweightedRegressor(RegressorMixin, _Reweighted):
    r"""A regressor that takes weights, trained against the worst weights of a set.

    .. math:: \min_f \max_{q :\, D(q P_0, P_0) \le r} E_0\, q\, (f - y)^2, \qquad
        f_t \in \arg\min_f E_0\, q_t\, (f - y)^2, \quad \bar f = \tfrac1T \sum_t f_t

    As `ReweightedClassifier`, which has the details, with the squared error.

    Parameters
    ----------
    estimator : regressor
        With ``sample_weight`` in ``fit``; or a pipeline that ends in one.
    ambiguity, n_rounds, cv, random_state
        As of `ReweightedClassifier`.

    Attributes
    ----------
    certificate_, best_response_, robust_cv_, best_constant_, estimators_, history_
        As of `ReweightedClassifier`.

    Raises
    ------
    UnsupportedError, InvalidDataError
        From `fit`, likewise.

    References
    ----------
    Those of `ReweightedClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from drojko.ambiguity import ChiSquare
    >>> from drojko.boosting import ReweightedRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> line = ReweightedRegressor(LinearRegression(), ChiSquare(radius=0.5), cv=0).fit(X, y)
    >>> line.certificate_.relative_gap < 0.05  # of the best of all linear models
    True
    """

    _twin = DRORegressor
    _folds = KFold

    def predict(self, X: Any) -> np.ndarray:
        """Mean of what the models predict, (n,)."""
        return self._mean(X)

    def _targets(self, y: Any) -> np.ndarray:
        target = floats(y, "y")
        target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
        if target.ndim != 1 or not np.isfinite(target).all():
            raise InvalidDataError(f"y is {shown(y)}; expected a finite number per row, (n,)")
        return target
