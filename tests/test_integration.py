"""Promise 15: the estimators inside of scikit-learn's machinery, end to end on real data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from drojko import DROClassifier, DRORegressor, make_robust_scorer
from drojko.ambiguity import Wasserstein
from tests.estimators._cases import CHEAP, binary, classes, linear, mlp, regression

pytestmark = [
    pytest.mark.promise(15),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture
def people():
    """A frame with a category, a sex that cannot be changed and a bounded share."""
    rng = np.random.default_rng(0)
    n = 160
    frame = pd.DataFrame(
        {
            "age": rng.integers(20, 60, n),
            "sex": rng.choice(["f", "m"], n),
            "share": rng.random(n),
            "city": pd.Categorical(rng.choice(["Oslo", "Rome", "Lima"], n)),
        }
    )
    score = 0.1 * (frame["age"] - 40) + 2 * frame["share"] + (frame["sex"] == "f") - 1.5
    return frame, (score + rng.logistic(size=n) > 0).map({True: "yes", False: "no"})


def preparation():
    return ColumnTransformer(
        [
            ("scaled", StandardScaler(), ["age"]),
            ("coded", OneHotEncoder(sparse_output=False, drop="if_binary"), ["sex", "city"]),
        ],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_columns_by_name_through_a_column_transformer(people, model):
    X, y = people
    ambiguity = Wasserstein(
        0.3,
        immutable=["sex_m", "city_Lima", "city_Oslo", "city_Rome"],
        weights={"age": 4.0},
        bounds={"share": (0.0, 1.0)},
    )
    make = linear if model == "linear" else mlp
    pipeline = make_pipeline(preparation(), make().set_params(ambiguity=ambiguity)).fit(X, y)
    assert pipeline.predict(X).dtype == y.to_numpy().dtype
    last, Z = pipeline[-1], pipeline[:-1].transform(X)
    assert last.feature_names_in_.tolist() == Z.columns.tolist()
    names = Z.columns.tolist()
    moved = last.worst_case_.transport(Z, y) - Z.to_numpy()
    for name in ambiguity.immutable:
        assert (moved[:, names.index(name)] == 0).all()
    share = names.index("share")
    arrived = Z["share"].to_numpy() + moved[:, share]
    assert arrived.min() >= -1e-12
    assert arrived.max() <= 1 + 1e-12
    table = last.worst_case_.displacement()
    assert set(table["feature"]) == set(names)
    assert set(table["class"]) == {"no", "yes"}
    typo = clone(pipeline).set_params(
        **{"droclassifier__ambiguity": Wasserstein(0.3, immutable=["sex_w"])}
    )
    with pytest.raises(ValueError, match="unknown feature 'sex_w'; did you mean 'sex_m'"):
        typo.fit(X, y)


def test_clone_and_nested_parameters():
    estimator = DROClassifier()
    estimator.set_params(ambiguity__radius=0.3, inner__steps=7, inner__maps=2)
    copy = clone(estimator)
    assert copy is not estimator
    assert copy.ambiguity is not estimator.ambiguity
    assert (copy.ambiguity.radius, copy.inner.steps, copy.inner.maps) == (0.3, 7, 2)
    assert "ambiguity__radius" in copy.get_params()
    assert "Wasserstein(radius=0.3)" in repr(copy)
    with pytest.raises(ValueError, match="Invalid parameter 'radios'"):
        copy.set_params(ambiguity__radios=1.0)


@pytest.mark.slow
def test_grid_search_over_the_radius_in_two_processes():
    X, y = binary()
    scorer = make_robust_scorer(Wasserstein(0.3))
    search = GridSearchCV(
        DROClassifier(reference="empirical"),
        {"ambiguity__radius": [0.01, 0.3], "loss": ["logistic"]},
        scoring=scorer,
        cv=3,
        n_jobs=2,
    ).fit(X, y)
    assert search.best_params_["ambiguity__radius"] == 0.3
    alone = linear(radius=0.3).fit(X, y)
    np.testing.assert_allclose(search.best_estimator_.coef_, alone.coef_, rtol=1e-9)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    # What one process says, two say as well.
    single = clone(search).set_params(n_jobs=1).fit(X, y)
    np.testing.assert_array_equal(
        single.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


def test_grid_search_over_settings_of_a_perceptron():
    X, y = binary()
    grid = {"inner__steps": [2, 3], "hidden_layer_sizes": [(3,), (3, 3)]}
    search = GridSearchCV(mlp(max_iter=2, inner=CHEAP), grid, cv=2).fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert CHEAP.steps == 5


def test_a_regression_in_a_pipeline():
    X, y = regression()
    pipeline = make_pipeline(StandardScaler(), DRORegressor(reference="empirical"))
    scores = cross_val_score(pipeline, X, y, cv=3)
    assert scores.mean() > 0.3


@pytest.mark.parametrize("name", ["linear", "linear-classes", "mlp", "regression"])
def test_a_scoring_monitor_gives_a_row_per_iteration(name):
    X, y = classes() if name == "linear-classes" else binary()
    estimator = mlp() if name == "mlp" else linear(max_iter=8)
    scoring = "accuracy"
    if name == "regression":
        (X, y), scoring = regression(), "r2"
        estimator = linear(DRORegressor, 0.02, loss="absolute")
    monitor = ScoringMonitor(scoring=scoring)
    model = estimator.set_callbacks(monitor).fit(X, y)
    log = monitor.get_logs().data_as_pandas
    assert len(log) == model.n_iter_
    assert log[scoring].notna().all()
    if name in ("linear", "regression"):
        assert log[scoring].iloc[-1] == pytest.approx(model.score(X, y), abs=0.05)


def test_a_progress_bar_and_a_monitor_within_a_search(capsys):
    X, y = binary()
    monitor = ScoringMonitor(scoring="accuracy")
    estimator = mlp(max_iter=2, inner="pointwise").set_callbacks(monitor)
    search = GridSearchCV(estimator, {"ambiguity__radius": [0.1, 0.2]}, cv=2)
    search.set_callbacks(ProgressBar()).fit(X, y)
    assert "DROClassifier" in capsys.readouterr().out
    assert len(monitor.get_logs().data) == 2 * (2 * 2 + 1)  # passes x (candidates x folds + refit)


def test_metadata_routing():
    X, y = binary()
    weight = np.where(np.arange(len(y)) < 50, 1.0, 3.0)
    direct = linear().fit(StandardScaler().fit_transform(X), y, sample_weight=weight)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), linear().set_fit_request(sample_weight=True))
        with pytest.raises(UnsetMetadataPassedError, match="StandardScaler"):
            pipeline.fit(X, y, sample_weight=weight)
        pipeline[0].set_fit_request(sample_weight=False)
        pipeline.fit(X, y, sample_weight=weight)
        np.testing.assert_array_equal(pipeline[-1].coef_, direct.coef_)
        pipeline[-1].set_fit_request(sample_weight=False)
        with pytest.raises(TypeError, match="not routed to any object"):
            pipeline.fit(X, y, sample_weight=weight)
        search = GridSearchCV(
            linear().set_fit_request(sample_weight=True).set_score_request(sample_weight=True),
            {"ambiguity__radius": [0.1, 0.2]},
            cv=2,
        ).fit(X, y, sample_weight=weight)
        assert np.isfinite(search.best_score_)


def test_inside_of_other_meta_estimators():
    X, y = classes()
    ovr = OneVsRestClassifier(linear()).fit(X, y)
    assert ovr.score(X, y) > 0.6
    assert ovr.decision_function(X).shape == (len(X), 3)
    bag = BaggingClassifier(linear(max_iter=5), n_estimators=3, random_state=0).fit(X, y)
    assert bag.score(X, y) > 0.6


def test_the_html_representation_is_made():
    X, y = binary()
    text = linear().fit(X, y)._repr_html_()
    assert "DROClassifier" in text
    assert "ambiguity" in text
