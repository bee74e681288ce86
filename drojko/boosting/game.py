"""The game between a learner and the weights of the rows: fit, look for the worst weights, repeat.

Everything here is arrays and calls, so that all rows and each fold play the same game.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import _safe_indexing

from drojko.ambiguity import Dual
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["Game", "check_heeds_weights", "fitted", "play"]

#: Share of the newest worst weights: a game without it circles, the last losses never close.
_STEP = 0.3
#: Rows of a class in the test of whether a learner heeds its weights, and the two weights.
_COPIES, _HEAVY, _LIGHT = 12, 0.95, 0.05


@dataclass(frozen=True, eq=False)
class Game:
    """What was played.

    Attributes
    ----------
    models : list of fitted learners
    answers : ndarray
        Mean over the models of what they say of the rows.
    risks : list of float
        Worst-case risk of the mean of the models so far, after each round.
    responses : list of float
        Mean loss of each model under the weights that it answered, less the price of these.
    dual : Dual
        At the mean of all models.
    """

    models: list[Any]
    answers: np.ndarray
    risks: list[float]
    responses: list[float]
    dual: Dual


def play(
    fit: Callable[[np.ndarray], Any],
    answer: Callable[[Any], np.ndarray],
    losses: Callable[[np.ndarray], np.ndarray],
    worst: Callable[[np.ndarray], Dual],
    base: np.ndarray,
    n_rounds: int,
    price: float,
    seen: Callable[[Game], None] | None = None,
) -> Game:
    r"""Damped best responses.

    .. math:: f_t \in \arg\min_f E_0\, q_t\, \ell(f), \quad \bar f_t = \tfrac1t \sum_{s \le t} f_s,
        \quad q_{t+1} = .7\, q_t + .3\, \frac{dP^*}{dP_0}(\ell(\bar f_t))
    """
    q, spent = np.ones(len(base)), 0.0  # a bound of D(q): it is convex
    mass = base / base.sum()
    models: list[Any] = []
    risks: list[float] = []
    responses: list[float] = []
    mean = np.empty(0)
    for t in range(1, n_rounds + 1):
        model = fit(base * q)
        said = answer(model)
        responses.append(float(mass @ (q * losses(said))) - price * spent)
        mean = said if t == 1 else mean + (said - mean) / t
        dual = worst(losses(mean))
        models, risks = [*models, model], [*risks, float(dual.value)]
        game = Game(models, mean, risks, responses, dual)
        if seen is not None:
            seen(game)
        q = (1.0 - _STEP) * q + _STEP * dual.ratio
        spent = (1.0 - _STEP) * spent + _STEP * dual.radius
    return game


def fitted(estimator: Any, X: Any, y: np.ndarray, weight: np.ndarray, seed: int) -> Any:
    """A copy of a learner, fitted to weighted rows."""
    model = clone(estimator)
    states = {
        name: seed
        for name in model.get_params(deep=True)
        if name == "random_state" or name.endswith("__random_state")
    }
    model.set_params(**states)
    name = _argument(model)
    try:
        return model.fit(X, y, **{name: weight})
    except TypeError as error:
        if "sample_weight" in str(error):
            raise _unweighted(estimator, "takes no sample_weight") from error
        raise


def _argument(model: Any) -> str:
    """What ``fit`` calls the weights: a pipeline wants the name of its last step before them."""
    steps = getattr(model, "steps", None)
    if steps:
        return f"{steps[-1][0]}__{_argument(steps[-1][1])}"
    known = inspect.signature(model.fit).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    if "sample_weight" not in known and not takes_any:
        raise _unweighted(model, "takes no sample_weight")
    return "sample_weight"


def _unweighted(estimator: Any, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(estimator).__name__} {why}: the game is played with the weights of the rows. Use a "
        "learner that heeds them, such as LogisticRegression, HistGradientBoostingClassifier or "
        "RandomForestClassifier; of a pipeline, the last step gets them"
    )


def check_heeds_weights(
    estimator: Any, X: Any, y: np.ndarray, answer: Callable[[Any, Any], np.ndarray], seed: int
) -> Any:
    """Raise unless answers at two points depend on the weights of the rows that lie there.

    Two rows of the data, with two targets many times each: heavy on one target or on the other,
    what is learned must differ. Returns one that was learned.
    """
    targets = np.unique(y)
    if len(targets) < 2:
        raise InvalidDataError("y has one value only: there is nothing to learn")
    low, high = targets[0], targets[-1]
    every = [low, high] if y.dtype.kind == "f" else list(targets)  # a learner wants all classes
    rows = [int(np.flatnonzero(y == low)[0]), int(np.flatnonzero(y == high)[0])]
    points = _safe_indexing(X, np.tile(rows, _COPIES * len(every)))
    labels = np.repeat(np.asarray(every, y.dtype), 2 * _COPIES)
    tilt = np.where(labels == low, _HEAVY, _LIGHT)
    there = _safe_indexing(X, rows)
    models = [
        fitted(estimator, points, labels, weight, seed) for weight in (tilt, _HEAVY + _LIGHT - tilt)
    ]
    said = [answer(model, there) for model in models]
    if np.allclose(said[0], said[1], rtol=1e-6, atol=1e-9):
        raise _unweighted(estimator, "ignores sample_weight: other weights teach it the same")
    return models[0]
