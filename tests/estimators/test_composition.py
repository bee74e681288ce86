"""Estimators inside of pipelines and searches, and seen by scikit-learn's callbacks."""

import numpy as np
import pytest
from sklearn.callback import ScoringMonitor
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from drojko import DROClassifier, make_robust_scorer
from drojko.ambiguity import Wasserstein

X, Y = load_breast_cancer(return_X_y=True)


@pytest.mark.promise(15)
def test_the_robust_scorer_looks_into_pipelines():
    scorer = make_robust_scorer(Wasserstein(radius=0.2))
    pipeline = make_pipeline(StandardScaler(), DROClassifier(reference="empirical")).fit(X, Y)
    alone = DROClassifier(reference="empirical").fit(scale(X), Y)
    assert scorer(pipeline, X, Y) == pytest.approx(scorer(alone, scale(X), Y), rel=1e-9)
    search = GridSearchCV(
        pipeline, {"droclassifier__ambiguity__radius": [0.01, 0.2]}, scoring=scorer, cv=2
    ).fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_ == {"droclassifier__ambiguity__radius": 0.2}


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    "settings", [{}, {"model": "mlp", "hidden_layer_sizes": (4,), "tol": 1, "max_iter": 30}]
)
def test_a_monitor_scores_every_iteration(settings):
    monitor = ScoringMonitor(scoring="neg_log_loss")
    model = DROClassifier(
        Wasserstein(0.3), reference="empirical", inner="pointwise", random_state=0, **settings
    ).set_callbacks(monitor)
    model.fit(scale(X[:200]), Y[:200])
    log = monitor.get_logs().data_as_pandas
    assert len(log) == model.n_iter_
    # Nominal log loss of the training data: the first model is worse than the last.
    assert log["neg_log_loss"].iloc[0] < log["neg_log_loss"].iloc[-1]
