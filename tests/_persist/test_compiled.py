"""Trees and indices in model files: equal predictions, and arrays that do not fit are refused."""

import warnings

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import Matern, WhiteKernel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier
from sklearn.multioutput import ClassifierChain
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, SplineTransformer
from sklearn.tree import DecisionTreeClassifier

import drojko
from drojko._persist import _parts
from drojko._persist.compiled import StoredLeaves, StoredSpline, StoredTree, held, restored
from drojko.exceptions import DrojkoError, InvalidDataError

X, Y = make_classification(120, 5, n_classes=3, n_informative=4, n_redundant=0, random_state=0)
TREE = DecisionTreeClassifier(max_depth=4, random_state=0)

MODELS = {
    "tree": TREE,
    "forest": RandomForestClassifier(5, random_state=0),
    "outlier forest": IsolationForest(n_estimators=5, max_features=0.5, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=3, init=TREE, random_state=0),
    "histograms": HistGradientBoostingClassifier(max_iter=3, categorical_features=[4]),
    "ada": AdaBoostClassifier(TREE, n_estimators=3, random_state=0),
    "bagging": BaggingClassifier(TREE, 3, max_features=0.5, random_state=0),
    "voting": VotingClassifier([("t", TREE), ("l", LogisticRegression())]),
    "neighbours": KNeighborsClassifier(p=3),
    "ball": KNeighborsClassifier(algorithm="ball_tree", metric="manhattan"),
    "perceptron": MLPClassifier((4,), max_iter=5, random_state=0),
    "calibrated": CalibratedClassifierCV(TREE, cv=2),
    "selected": make_pipeline(SelectKBest(k=2), TREE),
    "splines": make_pipeline(SplineTransformer(4, knots="quantile"), LogisticRegression()),
    "periodic splines": make_pipeline(SplineTransformer(extrapolation="periodic"), TREE),
    "gaussian process": GaussianProcessClassifier(1.0 * Matern(nu=1.5) + WhiteKernel()),
    "grid": GridSearchCV(
        make_pipeline(FunctionTransformer(np.clip, kw_args={"a_min": -1, "a_max": 1}), TREE),
        {"decisiontreeclassifier__max_depth": [1, 2]}, scoring="f1_macro", cv=2,
    ),
    "one against one": OneVsOneClassifier(
        TunedThresholdClassifierCV(LogisticRegression(), cv=2, thresholds=5)
    ),
}  # fmt: skip


def fitted(name):
    table = X.copy()
    table[:, 4] = np.round(table[:, 4] - table[:, 4].min())
    model = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(table, Y), table


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_those_of_before(name, tmp_path):
    model, table = fitted(name)
    drojko.save(model, tmp_path / "m.drojko")
    loaded = drojko.load(tmp_path / "m.drojko")
    asked = next(a for a in ("predict_proba", "score_samples", "predict") if hasattr(model, a))
    other = table + 0.3
    np.testing.assert_array_equal(getattr(loaded, asked)(other), getattr(model, asked)(other))
    assert type(loaded) is type(model)


def test_the_model_is_left_as_it_was(tmp_path):
    model = fitted("forest")[0]
    before = model.estimators_[0].tree_
    drojko.save(model, tmp_path / "m.drojko")
    assert model.estimators_[0].tree_ is before


def test_several_outputs_and_chains(tmp_path):
    many = RandomForestRegressor(3, random_state=0).fit(X, np.column_stack([Y, -Y]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain = ClassifierChain(TREE).fit(X, np.column_stack([Y > 0, Y > 1]).astype(int))
    for model in (many, chain):
        drojko.save(model, tmp_path / "m.drojko")
        found = drojko.load(tmp_path / "m.drojko").predict(X)
        np.testing.assert_array_equal(found, model.predict(X))


def _set(name, index, value):
    def change(stored):
        nodes = stored.nodes.copy()
        nodes[name][index] = value
        stored.nodes = nodes

    return change


def _attr(name, value):
    return lambda stored: setattr(stored, name, value)


WRONG_TREE = {
    "a child that does not exist": _set("left_child", 0, 10_000),
    "a child of nobody": _set("left_child", 0, -1),
    "a cycle": _set("left_child", 1, 0),
    "two parents": _set("right_child", 0, 1),
    "a column that does not exist": _set("feature", 0, 5),
    "a negative column": _set("feature", 0, -7),
    "more columns than the model": _attr("columns", 50),
    "values of other nodes": _attr("values", np.zeros((2, 1, 3))),
    "more classes": _attr("classes", np.array([9])),
    "more outputs": _attr("outputs", 4),
    "other nodes": _attr("nodes", np.zeros(3)),
}
WRONG_LEAVES = {
    "a child that does not exist": _set("left", 0, 10_000),
    "a column that does not exist": _set("feature_idx", 0, 5),
    "a negative column": _set("feature_idx", 0, -1),
    "categories of a number": _set("is_categorical", 0, 1),
    "no sets": _attr("raw", np.zeros((0, 3), np.uint32)),
}


def forged(name, kind, change):
    model = fitted(name)[0]
    whole = held(model, (part for part, _ in _parts(model)))
    stored = next(part for part, _ in _parts(whole) if isinstance(part, kind))
    change(stored)
    return whole, model


def made(whole):
    for part, _ in _parts(whole):
        if hasattr(type(part), "_check_stored"):
            part._check_stored()
    return restored(whole, lambda found: (part for part, _ in _parts(found)))


@pytest.mark.parametrize("name", ["tree", "forest", "boosting", "bagging"])
@pytest.mark.parametrize("what", WRONG_TREE)
def test_trees_that_do_not_fit_are_refused(name, what):
    whole, _ = forged(name, StoredTree, WRONG_TREE[what])
    with pytest.raises(InvalidDataError, match="tree"):
        made(whole)


@pytest.mark.parametrize("what", WRONG_LEAVES)
def test_trees_of_histograms_that_do_not_fit_are_refused(what):
    whole, _ = forged("histograms", StoredLeaves, WRONG_LEAVES[what])
    with pytest.raises(InvalidDataError, match="tree"):
        made(whole)


def test_trees_belong_to_models_that_check_their_rows():
    """A tree as a step of its own would read any row that it is given."""
    whole = forged("selected", StoredTree, lambda stored: None)[0]
    whole.steps[-1] = ("tree", whole.steps[-1][1].tree_)
    with pytest.raises(InvalidDataError, match="does not fit the model"):
        made(whole)


@pytest.mark.parametrize(
    "what",
    [
        lambda one: setattr(one, "degree", 50),  # more than there are coefficients
        lambda one: setattr(one, "coefficients", one.coefficients[:2]),
        lambda one: setattr(one, "knots", one.knots[::-1].copy()),
        lambda one: setattr(one, "knots", one.knots * np.nan),
        lambda one: setattr(one, "knots", one.knots.astype(object)),
    ],
)
def test_splines_that_do_not_fit_are_refused(what):
    whole, _ = forged("splines", StoredSpline, what)
    with pytest.raises(InvalidDataError, match="spline"):
        made(whole)


def test_boosting_starts_with_as_many_numbers_as_it_adds_to():
    whole = forged("boosting", StoredTree, lambda stored: None)[0]
    whole.init_ = DecisionTreeClassifier(max_depth=1).fit(X, Y > 0)
    whole = held(whole, (part for part, _ in _parts(whole)))
    with pytest.raises((InvalidDataError, ValueError)):
        made(whole)


def test_the_depth_of_a_file_is_not_believed():
    whole, model = forged("tree", StoredTree, _attr("depth", 0))
    path = made(whole).decision_path(X)
    assert (path != model.decision_path(X)).nnz == 0


def test_foreign_models_are_refused_in_a_sentence(tmp_path):
    found = pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=2, verbose=-1).fit(X, Y)
    with pytest.raises(DrojkoError, match=r"lightgbm.*joblib\.dump.*--unsafe-pickle"):
        drojko.save(found, tmp_path / "m.drojko")
