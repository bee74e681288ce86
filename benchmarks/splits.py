"""One split of a natural shift, and the ways to train on its source."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from foreign import Unavailable, importable
from harness import SKIPPED
from nature import Task
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold

from drojko import DROClassifier, DRORegressor, select_radius, shift_report
from drojko.ambiguity import KL, ChiSquare, ClassShift, CVaR, Group, Wasserstein
from drojko.boosting import objective

__all__ = ["METHODS", "Method", "Scorer", "Skip", "Split", "intercept_on"]

SOURCE, TEST, LABELS = 1000, 3000, 50
ALPHAS = tuple(float(a) for a in np.geomspace(1e-4, 3.0, 8))
LEAVES, ROUNDS = (8,), (10, 25, 50, 100)
#: Sets that trees may choose from, by environments.
_TREE_SETS = (KL(radius=0.2), CVaR(alpha=0.7))
_CAP = 0.01
#: Candidates of `select_radius` by environments, none at all among them.
_RADII = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6)
_SIZES = {"radius": (0.0, 0.01, 0.03, 0.1, 0.3), "alpha": (1.0, 0.9, 0.7, 0.5, 0.3)}

#: Scores of rows X.
Scorer = Callable[[np.ndarray], np.ndarray]


class Skip(Exception):
    """A method that does not apply; its text is the status of the row."""


class Split:
    """Source rows to train on, others to test on, and rows of the target.

    Columns, and y of a regression, are in units of the training rows' spread. ``fold`` splits the
    training rows by ``place``; nothing below ``target_*`` is looked at by a method that may not.
    """

    def __init__(self, task: Task, seed: int) -> None:
        rng = np.random.default_rng(seed)
        source, target = (rng.permutation(np.flatnonzero(task.target == t)) for t in (False, True))
        n = min(SOURCE, int(0.7 * len(source)))
        m = min(SOURCE, len(target) // 2)
        train, test = source[:n], source[n : n + TEST]
        known, new = target[:m], target[m : m + TEST]
        mean, spread = task.X[train].mean(0), task.X[train].std(0)
        varies = spread > 0
        X = (task.X[:, varies] - mean[varies]) / spread[varies]
        self.logistic, self.seed = task.kind == "classification", seed
        y = task.y
        if not self.logistic:
            y = (y - y[train].mean()) / y[train].std()
        self.X, self.y, self.place = X[train], y[train], task.place[train]
        self.source_X, self.source_y = X[test], y[test]
        self.target_X, self.target_y, self.target_place = X[new], y[new], task.place[new]
        self.known_X, self.known_y = X[known], y[known]
        kind = StratifiedKFold if self.logistic else KFold
        self.thirds = list(kind(3, shuffle=True, random_state=seed).split(self.X, self.y))
        self.environments = [
            (np.flatnonzero(self.place != p), np.flatnonzero(self.place == p))
            for p in np.unique(self.place)
        ]

    def losses(self, score: np.ndarray, y: np.ndarray) -> np.ndarray:
        if self.logistic:
            return np.logaddexp(0.0, (1 - 2 * y) * score)
        return (score - y) ** 2

    # Linear ------------------------------------------------------------------------------------

    def l2(self, X: np.ndarray, y: np.ndarray, alpha: float) -> Scorer:
        if self.logistic:
            model = LogisticRegression(C=1.0 / (alpha * len(y)), max_iter=3000).fit(X, y)
        else:
            model = Ridge(alpha=alpha * len(y)).fit(X, y)
        return _line(model)

    def held(self, folds: list[Any], fit: Callable[[Any, Any], Scorer]) -> float:
        """Mean over folds of the mean loss on what they leave out."""
        return float(np.mean([
            self.losses(fit(self.X[a], self.y[a])(self.X[b]), self.y[b]).mean() for a, b in folds
        ]))  # fmt: skip

    def alpha(self, folds: list[Any]) -> float:
        return min(ALPHAS, key=lambda a: self.held(folds, lambda X, y: self.l2(X, y, a)))

    @cached_property
    def alphas(self) -> tuple[float, float]:
        """By thirds, and by environments."""
        return self.alpha(self.thirds), self.alpha(self.environments)

    @cached_property
    def plain(self) -> Scorer:
        """L2 by thirds."""
        return self.l2(self.X, self.y, self.alphas[0])

    @cached_property
    def plain_environments(self) -> Scorer:
        return self.l2(self.X, self.y, self.alphas[1])

    @cached_property
    def report(self) -> Any:
        """What the environments of the source say."""
        kind = "classification" if self.logistic else "regression"
        return shift_report(self.X, self.y, self.place, task=kind, random_state=self.seed)

    @property
    def spread(self) -> float:
        """Root mean square over the rows of the levels of y given x that were seen."""
        seen = self.report.table
        return math.sqrt(float(np.average(seen["level"] ** 2, weights=seen["rows"])))

    def robust(self, ambiguity: Any, alpha: float = 0.0) -> Any:
        if self.logistic:
            return DROClassifier(ambiguity, alpha=alpha, reference="empirical", effort="none")
        return DRORegressor(ambiguity, alpha=2.0 * alpha, reference="empirical", effort="none")

    # Trees -------------------------------------------------------------------------------------

    def trees(
        self, X: np.ndarray, y: np.ndarray, leaves: int, rounds: int,
        start: np.ndarray | None = None, ambiguity: Any = None,
    ) -> Callable[[np.ndarray, int], np.ndarray]:  # fmt: skip
        """Scores after any number of rounds, without what they started from."""
        from lightgbm import LGBMClassifier, LGBMRegressor

        settings: dict[str, Any] = {
            "n_estimators": rounds, "num_leaves": leaves, "learning_rate": 0.1, "n_jobs": 1,
            "min_child_samples": 10, "verbose": -1, "random_state": self.seed,
        }  # fmt: skip
        if ambiguity is not None:
            loss = "logistic" if self.logistic else "squared"
            settings["objective"] = objective(ambiguity, loss=loss)
        kind = LGBMClassifier if self.logistic else LGBMRegressor
        model = kind(**settings).fit(X, y, init_score=start)
        more = {"raw_score": True} if self.logistic else {}
        return lambda Z, k: np.asarray(model.predict(Z, num_iteration=k, **more))

    def base(self, y: np.ndarray) -> float:
        """Score of the best constant."""
        mean = float(y.mean())
        return math.log(mean / (1.0 - mean)) if self.logistic else mean

    def grow(
        self, folds: list[Any], leaves: int, ambiguity: Any = None, offset: list[Any] | None = None
    ) -> tuple[np.ndarray, int]:
        """Losses of the folds (k,) at the best number of rounds, and that number."""
        risk = np.zeros((len(folds), len(ROUNDS)))
        for i, (a, b) in enumerate(folds):
            start, there = (offset[i] if offset else (np.full(len(a), self.base(self.y[a])),
                            np.full(len(b), self.base(self.y[a]))))  # fmt: skip
            model = self.trees(self.X[a], self.y[a], leaves, ROUNDS[-1], start, ambiguity)
            for j, k in enumerate(ROUNDS):
                score = there + model(self.X[b], k)
                risk[i, j] = self.losses(score, self.y[b]).mean()
        best = int(risk.mean(0).argmin())
        return risk[:, best], ROUNDS[best]

    def grown_robust(self, ambiguity: Any) -> tuple[np.ndarray, int]:
        """Losses of left-out environments and rounds of robust trees as large as plain ones."""
        name = repr(ambiguity)
        if name not in self._grown:
            leaves = self.grown["environments"][0]
            self._grown[name] = self.grow(self.environments, leaves, ambiguity)
        return self._grown[name]

    @cached_property
    def _grown(self) -> dict[str, Any]:
        return {}

    @cached_property
    def grown(self) -> dict[str, tuple[int, int]]:
        """Leaves and rounds of plain trees by thirds and by environments."""
        found = {}
        for name in ("thirds", "environments"):
            tried = {leaves: self.grow(getattr(self, name), leaves) for leaves in LEAVES}
            leaves = min(tried, key=lambda size: float(tried[size][0].mean()))
            found[name] = (leaves, tried[leaves][1])
        return found

    def forest(self, leaves: int, rounds: int, ambiguity: Any = None) -> Scorer:
        base = self.base(self.y)
        start = np.full(len(self.y), base)
        model = self.trees(self.X, self.y, leaves, rounds, start, ambiguity)
        return lambda Z: base + model(Z, rounds)


def _line(model: Any) -> Scorer:
    coef, intercept = np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])
    return lambda Z: Z @ coef + intercept


def intercept_on(split: Split, scorer: Scorer, X: np.ndarray, y: np.ndarray) -> Scorer:
    """A model with its intercept fitted anew."""
    score = scorer(X)
    if not split.logistic:
        move = float((y - score).mean())
    else:
        move = 0.0
        for _ in range(50):  # Newton with half an observation of each class
            p = 1.0 / (1.0 + np.exp(-(score + move)))
            q = 1.0 / (1.0 + np.exp(-move))
            slope = float((p - y).sum()) + q - 0.5
            move -= slope / (float((p * (1 - p)).sum()) + q * (1 - q))
    return lambda Z: scorer(Z) + move


# Methods ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A name, the kind of knowledge it uses, a way to train, and what it is compared with."""

    name: str
    kind: str
    train: Callable[[Split], tuple[Scorer, float]] = field(compare=False)
    full: bool = False


def _w2(method: str, **settings: Any) -> Callable[[Split], tuple[Scorer, float]]:
    def train(split: Split) -> tuple[Scorer, float]:
        model = split.robust(Wasserstein(radius=0.1))
        if method != "rwpi":
            settings.setdefault("radii", _RADII)
        groups = split.place if method == "environments" else None
        chosen = select_radius(model, split.X, split.y, method=method, groups=groups,
                               random_state=split.seed, **settings)  # fmt: skip
        model.set_params(**chosen.params)
        return _line(model.fit(split.X, split.y)), chosen.radius

    return train


def _reweighted(ambiguity: Any, rule: str = "mean") -> Callable[[Split], tuple[Scorer, float]]:
    def train(split: Split) -> tuple[Scorer, float]:
        if isinstance(ambiguity, ClassShift) and not split.logistic:
            raise Skip("for classes only")
        model = split.robust(ambiguity, split.alphas[1])
        chosen = select_radius(model, split.X, split.y, method="environments", rule=rule,
                               radii=_SIZES[ambiguity.size_name], groups=split.place)  # fmt: skip
        model.set_params(**chosen.params)
        known = {"groups": split.place} if ambiguity.knows_groups else {}
        return _line(model.fit(split.X, split.y, **known)), chosen.radius

    return train


def _fixed(split: Split) -> tuple[Scorer, float]:
    return _line(split.robust(Wasserstein(radius=0.1)).fit(split.X, split.y)), 0.1


def _dro(name: str, size: float) -> Callable[[Split], tuple[Scorer, float]]:
    """A linear model of the package dro; it has no choice of a size."""

    def train(split: Split) -> tuple[Scorer, float]:
        from worker import fit_dro

        try:
            importable("dro")
        except Unavailable as reason:
            raise Skip(str(reason).removeprefix(f"{SKIPPED}: ")) from None
        loss = "logistic" if split.logistic else "squared"
        fit = {"set": name, "size": size, "loss": loss, "options": {"solver": "CLARABEL"}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coef, intercept, *_ = fit_dro(fit, split.X, split.y)
        return (lambda Z: Z @ np.ravel(coef) + float(intercept)), size

    return train


def _sign(split: Split) -> float:
    """Whether y given x is higher in the target: the truth, which the method is told."""
    moved = intercept_on(split, split.plain, split.known_X, split.known_y)
    return math.copysign(1.0, float((moved(split.X[:1]) - split.plain(split.X[:1]))[0]))


def _told_set(split: Split) -> tuple[Scorer, float]:
    size = 2.0 * split.spread
    if not split.logistic:  # targets y + m, m between 0 and h: the worst mean is least half-way
        move = 0.5 * _sign(split) * size
        return (lambda Z: split.plain_environments(Z) + move), size
    ambiguity = ClassShift(between=(0.0, size), direction=int(_sign(split) > 0))
    model = split.robust(ambiguity, split.alphas[1])
    return _line(model.fit(split.X, split.y)), size


def _told_level(split: Split) -> tuple[Scorer, float]:
    move = _sign(split) * split.spread
    return (lambda Z: split.plain_environments(Z) + move), abs(move)


def _few_labels(split: Split) -> tuple[Scorer, float]:
    rows = slice(0, LABELS)
    found = intercept_on(split, split.plain, split.known_X[rows], split.known_y[rows])
    return found, float(min(LABELS, len(split.known_y)))


def _trees(folds: str) -> Callable[[Split], tuple[Scorer, float]]:
    def train(split: Split) -> tuple[Scorer, float]:
        leaves, rounds = split.grown[folds]
        return split.forest(leaves, rounds), float(rounds)

    return train


def _robust_trees(ambiguity: Any) -> Callable[[Split], tuple[Scorer, float]]:
    def train(split: Split) -> tuple[Scorer, float]:
        leaves, rounds = split.grown["environments"][0], split.grown_robust(ambiguity)[1]
        return split.forest(leaves, rounds, ambiguity), float(rounds)

    return train


def _chosen_trees(split: Split) -> tuple[Scorer, float]:
    """Set of least loss in the worst environment, the mean at most 1 % above the best."""
    leaves = split.grown["environments"][0]
    tried = [(s, *split.grown_robust(s)) for s in (None, *_TREE_SETS)]
    least = min(float(risk.mean()) for _, risk, _ in tried)
    allowed = [one for one in tried if one[1].mean() <= (1.0 + _CAP) * least]
    ambiguity, _, rounds = min(allowed, key=lambda one: float(one[1].max()))
    return split.forest(leaves, rounds, ambiguity), float(rounds)


def _from_line(split: Split) -> tuple[Scorer, float]:
    """Boosting that starts from the linear model's scores."""
    leaves, alpha = split.grown["environments"][0], split.alphas[1]
    offset = []
    for a, b in split.environments:
        line = split.l2(split.X[a], split.y[a], alpha)
        offset.append((line(split.X[a]), line(split.X[b])))
    risk, rounds = split.grow(split.environments, leaves, None, offset)
    line = split.plain_environments
    if split.held(split.environments, lambda X, y: split.l2(X, y, alpha)) <= risk.mean():
        return line, 0.0
    model = split.trees(split.X, split.y, leaves, rounds, line(split.X))
    return (lambda Z: line(Z) + model(Z, rounds)), float(rounds)


def _stack(split: Split) -> tuple[Scorer, float]:
    """A linear model of both scores, each of rows in environments that they have not seen."""
    (leaves, rounds), alpha = split.grown["environments"], split.alphas[1]
    seen = np.zeros((len(split.y), 2))
    for a, b in split.environments:
        seen[b, 0] = split.l2(split.X[a], split.y[a], alpha)(split.X[b])
        base = split.base(split.y[a])
        model = split.trees(split.X[a], split.y[a], leaves, rounds, np.full(len(a), base))
        seen[b, 1] = base + model(split.X[b], rounds)
    kind = LogisticRegression(C=1.0) if split.logistic else Ridge(alpha=1.0, positive=True)
    top = _line(kind.fit(seen, split.y))
    line, forest = split.plain_environments, split.forest(leaves, rounds)
    return (lambda Z: top(np.column_stack([line(Z), forest(Z)]))), math.nan


def _mlp(split: Split) -> tuple[Scorer, float]:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    settings: Any = {"hidden_layer_sizes": (32,), "early_stopping": True, "max_iter": 200,
                     "random_state": split.seed, "alpha": 1e-2}  # fmt: skip
    if not split.logistic:
        model = MLPRegressor(**settings).fit(split.X, split.y)
        return model.predict, 32.0
    model = MLPClassifier(**settings).fit(split.X, split.y)

    def score(Z: np.ndarray) -> np.ndarray:
        p = np.clip(model.predict_proba(Z)[:, 1], 1e-12, 1.0 - 1e-12)
        return np.log(p / (1.0 - p))

    return score, 32.0


def _wrm(split: Split) -> tuple[Scorer, float]:
    from drojko.baselines import WRMClassifier

    if not split.logistic:
        raise Skip("for classes only")
    model = WRMClassifier(3.0, model="linear", steps=5, max_iter=100, random_state=split.seed)
    model.fit(split.X, split.y)
    coef, intercept = np.ravel(model.weights_[0]), float(np.ravel(model.biases_[0])[0])
    return (lambda Z: Z @ coef + intercept), 3.0


def _best(split: Split, tried: dict[float, Scorer]) -> tuple[Scorer, float]:
    size = min(tried, key=lambda s: float(
        split.losses(tried[s](split.known_X), split.known_y).mean()))  # fmt: skip
    return tried[size], size


def _oracle_l2(split: Split) -> tuple[Scorer, float]:
    return _best(split, {a: split.l2(split.X, split.y, a) for a in ALPHAS})


def _oracle_w2(split: Split) -> tuple[Scorer, float]:
    return _best(split, {
        r: _line(split.robust(Wasserstein(radius=r)).fit(split.X, split.y)) for r in _RADII
    })  # fmt: skip


def _oracle_level(split: Split) -> tuple[Scorer, float]:
    return intercept_on(split, split.plain, split.known_X, split.known_y), math.nan


def _on_target(split: Split) -> tuple[Scorer, float]:
    X, y = split.known_X, split.known_y
    folds = list(KFold(3, shuffle=True, random_state=split.seed).split(X))

    def risk(alpha: float) -> float:
        fits = [(split.l2(X[a], y[a], alpha), b) for a, b in folds]
        return float(np.mean([split.losses(f(X[b]), y[b]).mean() for f, b in fits]))

    alpha = min(ALPHAS, key=risk)
    return split.l2(X, y, alpha), alpha


PLAIN, TREES = "L2, 3 folds", "trees, 3 folds"
METHODS = (
    Method(PLAIN, "plain", lambda split: (split.plain, split.alphas[0])),
    Method("L2, environments", "plain", lambda split: (split.plain_environments, split.alphas[1])),
    Method("W2, environments", "set", _w2("environments")),
    Method("W2, environments, cap", "set", _w2("environments", rule="cap"), full=True),
    Method("W2, cv", "set", _w2("cv", cv=3)),
    Method("W2, rwpi", "set", _w2("rwpi", n_draws=20_000)),
    Method("W2, radius 0.1", "set", _fixed),
    Method("dro: W2, radius 0.1", "set", _dro("W2", 0.1), full=True),
    Method("dro: chi-square(0.1)", "set", _dro("chi-square", 0.1), full=True),
    Method("dro: CVaR(0.5)", "set", _dro("CVaR", 0.5), full=True),
    Method("KL, environments", "set", _reweighted(KL(radius=0.1))),
    Method("chi-square, environments", "set", _reweighted(ChiSquare(radius=0.1)), full=True),
    Method("CVaR, environments", "set", _reweighted(CVaR(alpha=0.5))),
    Method("Group, environments", "set", _reweighted(Group(radius=0.1))),
    Method("class shift, environments", "set", _reweighted(ClassShift(radius=0.1))),
    Method("Group, environments, clear", "set", _reweighted(Group(radius=0.1), "clear"), full=True),
    Method(
        "class shift, environments, clear",
        "set",
        _reweighted(ClassShift(radius=0.1), "clear"),
        full=True,
    ),
    Method(TREES, "trees", _trees("thirds")),
    Method("trees, environments", "trees", _trees("environments")),
    Method("trees, KL(0.2)", "trees", _robust_trees(KL(radius=0.2))),
    Method("trees, CVaR(0.7)", "trees", _robust_trees(CVaR(alpha=0.7))),
    Method("trees, set by environments", "trees", _chosen_trees),
    Method("trees from L2", "trees", _from_line),
    Method("stack of L2 and trees", "trees", _stack),
    Method("perceptron", "plain", _mlp),
    Method("WRM", "set", _wrm, full=True),
    Method("told the direction: set", "told", _told_set),
    Method("told the direction: level", "told", _told_level),
    Method("50 target labels: level", "told", _few_labels),
    Method("oracle: L2", "oracle", _oracle_l2),
    Method("oracle: W2", "oracle", _oracle_w2),
    Method("oracle: level", "oracle", _oracle_level),
    Method("oracle: trained on the target", "oracle", _on_target),
)
