"""Any learner against the worst weights: the game, its certificate, its warnings."""

import pickle
import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from drojko.ambiguity import KL, ChiSquare, CVaR, Group, TotalVariation, Wasserstein
from drojko.boosting import ReweightedClassifier, ReweightedRegressor
from drojko.boosting.worst import best_constant_risk
from drojko.exceptions import InvalidDataError, UnsupportedError

SETS = [KL(radius=0.2), ChiSquare(radius=0.4), CVaR(alpha=0.5), TotalVariation(radius=0.1)]
PLAIN = LogisticRegression(C=1e6, max_iter=500)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    return X, (rng.random(300) < expit(4 * X[:, 0] - 2 * X[:, 1] + 0.5)).astype(int)


def log_loss(model, X, y):
    index = np.searchsorted(model.classes_, y)
    return -np.log(model.predict_proba(X)[np.arange(len(y)), index])


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_the_upper_bound_is_the_dual_of_what_is_deployed(ambiguity, rows):
    X, y = rows
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(y))
    model = ReweightedClassifier(PLAIN, ambiguity, cv=0).fit(X, y, sample_weight=weight)
    losses = log_loss(model, X, y)
    certificate = model.certificate_
    assert certificate.upper == pytest.approx(ambiguity.dual(losses, weight).value, rel=1e-9)
    assert certificate.nominal_risk == pytest.approx(np.average(losses, weights=weight))
    assert certificate.upper == model.history_["robust_risk"][-1]


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_linear_learners_end_near_a_proven_bound(ambiguity, rows):
    X, y = rows
    certificate = ReweightedClassifier(PLAIN, ambiguity, cv=0).fit(X, y).certificate_
    assert certificate.lower <= certificate.upper <= 1.05 * certificate.lower


def test_a_response_of_an_exact_minimiser_is_a_lower_bound(rows):
    X, y = rows
    target = X @ [1.0, 2.0, 0.0] + y
    for ambiguity in (ChiSquare(radius=0.4), ChiSquare(penalty=0.5), KL(penalty=1.0)):
        model = ReweightedRegressor(LinearRegression(), ambiguity, cv=0).fit(X, target)
        assert model.best_response_ <= model.certificate_.upper
        assert model.certificate_.lower <= model.certificate_.upper
        assert model.best_response_ == pytest.approx(model.certificate_.upper, rel=0.03)


def test_trees_have_no_lower_bound_and_say_so(rows):
    X, y = rows
    trees = GradientBoostingClassifier(n_estimators=3, max_depth=2, random_state=0)
    model = ReweightedClassifier(trees, CVaR(alpha=0.5), n_rounds=8, cv=0).fit(X, y)
    assert np.isnan(model.certificate_.lower)
    assert np.isnan(model.robust_cv_)
    assert model.best_response_ == max(model.history_["response"])
    assert model.certificate_.upper < CVaR(alpha=0.5).dual(log_loss(trees.fit(X, y), X, y)).value


def test_probabilities_are_the_mean_and_sum_to_one(rows):
    X, y = rows
    names = np.array(["no", "yes"])[y]
    trees = DecisionTreeClassifier(max_depth=2, random_state=0)
    model = ReweightedClassifier(trees, KL(radius=0.1), n_rounds=4, cv=0).fit(X, names)
    said = model.predict_proba(X)
    assert said == pytest.approx(np.mean([m.predict_proba(X) for m in model.estimators_], axis=0))
    assert said.sum(axis=1) == pytest.approx(1.0)
    assert set(model.predict(X)) <= {"no", "yes"}
    assert (model.predict(X) == names[0]).any()


def test_several_classes():
    X, y = load_iris(return_X_y=True)
    X = X[:, :2]  # where two of the classes overlap
    model = ReweightedClassifier(PLAIN, CVaR(alpha=0.5), n_rounds=5, cv=0).fit(X, y)
    assert model.predict_proba(X).shape == (150, 3)
    assert not model.certificate_.lower > model.certificate_.upper
    bayes = ReweightedClassifier(
        GaussianNB(), KL(radius=0.1), n_rounds=3, cv=3, random_state=0
    ).fit(X, y)
    assert bayes.robust_cv_ < bayes.best_constant_


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_best_constant_is_the_best(ambiguity, n_classes):
    rng = np.random.default_rng(2)
    y = rng.choice(n_classes, 60, p=[0.6, 0.4] if n_classes == 2 else [0.6, 0.3, 0.1])
    weight = rng.uniform(0.5, 2.0, 60)
    best = best_constant_risk(ambiguity, y, weight, None, n_classes)
    every = [
        ambiguity.dual(-np.log(p)[y], weight).value
        for p in rng.dirichlet(np.ones(n_classes), 2000) + 1e-9
    ]
    assert best <= min(every) + 1e-4
    assert min(every) <= best * 1.02  # two thousand constants come near it


def test_the_best_constant_of_a_regression():
    y = np.array([0.0, 0.0, 0.0, 4.0])
    worst_half = best_constant_risk(CVaR(alpha=0.5), y, np.ones(4), None, None)
    assert worst_half == pytest.approx(4.0)  # half of the mass on (4 - c)^2, half on c^2: c = 2
    assert best_constant_risk(CVaR(alpha=0.5), np.ones(4), np.ones(4), None, None) == 0.0


def test_cross_validation_follows_the_held_out_risk_and_warns_where_trees_overfit(rows):
    X, y = rows
    deep = DecisionTreeClassifier(min_samples_leaf=2, random_state=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = ReweightedClassifier(deep, CVaR(alpha=0.5), n_rounds=5, random_state=0).fit(X, y)
    assert any("robust_cv_" in str(one.message) for one in said)
    assert model.robust_cv_ > 1.25 * model.certificate_.upper
    rng = np.random.default_rng(7)
    new = rng.normal(size=(3000, 3))
    labels = (rng.random(3000) < expit(4 * new[:, 0] - 2 * new[:, 1] + 0.5)).astype(int)
    small = GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ReweightedClassifier(small, KL(radius=0.05), n_rounds=5, random_state=0).fit(X, y)
    held = KL(radius=0.05).dual(log_loss(model, new, labels)).value
    assert model.robust_cv_ == pytest.approx(held, rel=0.15)


def test_a_set_that_leaves_only_the_constant_warns():
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(100, 2)), rng.integers(0, 2, 100)
    with pytest.warns(UserWarning, match="best constant"):
        ReweightedClassifier(PLAIN, CVaR(alpha=0.1), n_rounds=5, cv=0).fit(X, y)


def test_groups_and_their_folds(rows):
    X, y = rows
    groups = np.repeat(np.arange(5), 60)
    y = np.where(groups == 4, 1 - y, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ReweightedClassifier(PLAIN, Group(), n_rounds=10, cv=GroupKFold(5))
        model.fit(X, y, groups=groups)
        columns = (groups[:, None] == np.arange(5)).astype(int)
        same = clone(model).set_params(cv=2, random_state=0).fit(X, y, groups=columns)
    losses = log_loss(model, X, y)
    means = [losses[groups == g].mean() for g in range(5)]
    assert model.certificate_.upper == pytest.approx(max(means), rel=1e-6)
    assert same.certificate_.upper == pytest.approx(model.certificate_.upper)
    with pytest.raises(InvalidDataError, match="groups of the rows"):
        clone(model).fit(X, y)


class Deaf(ClassifierMixin, BaseEstimator):
    """Takes weights and ignores them."""

    def fit(self, X, y, sample_weight=None):
        self.inner_ = DecisionTreeClassifier(max_depth=2).fit(X, y)
        self.classes_ = self.inner_.classes_
        return self

    def predict_proba(self, X):
        return self.inner_.predict_proba(X)

    def predict(self, X):
        return self.inner_.predict(X)


@pytest.mark.parametrize(
    ("learner", "words"),
    [
        (Deaf(), "ignores sample_weight"),
        (KNeighborsClassifier(), "takes no sample_weight"),
        (make_pipeline(StandardScaler(), KNeighborsClassifier()), "takes no sample_weight"),
        (LinearSVC(), "CalibratedClassifierCV"),
    ],
)
def test_learners_that_cannot_play(learner, words, rows):
    with pytest.raises(UnsupportedError, match=words):
        ReweightedClassifier(learner, KL(radius=0.1), cv=0).fit(*rows)


@pytest.mark.parametrize(
    "learner",
    [
        PLAIN,
        DummyClassifier(),
        GaussianNB(),
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), make_pipeline(StandardScaler(), LogisticRegression())),
        GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_learners_that_heed_weights_play(learner, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ReweightedClassifier(learner, KL(radius=0.1), n_rounds=2, cv=0).fit(*rows)
    assert model.predict_proba(rows[0]).shape == (300, 2)


def test_regressors_of_one_value_and_trees(rows):
    X, y = rows
    target = X[:, 0] + 0.1 * y
    trees = GradientBoostingRegressor(n_estimators=5, random_state=0)
    model = ReweightedRegressor(trees, CVaR(alpha=0.3), n_rounds=4, cv=2, random_state=0)
    said = model.fit(X, target).predict(X)
    assert said == pytest.approx(np.mean([m.predict(X) for m in model.estimators_], axis=0))
    assert model.certificate_.upper == pytest.approx(
        CVaR(alpha=0.3).dual((said - target) ** 2).value
    )
    constant = ReweightedRegressor(DummyRegressor(), KL(radius=0.1), cv=0, n_rounds=3)
    with pytest.warns(UserWarning, match="best constant"):
        constant.fit(X, target)


@pytest.mark.filterwarnings("ignore:ReweightedClassifier")
def test_scikit_learns_manners(rows):
    X, y = rows
    model = ReweightedClassifier(PLAIN, CVaR(alpha=0.5), n_rounds=3, cv=2, random_state=0)
    assert clone(model).get_params()["ambiguity__alpha"] == 0.5
    first, second = clone(model).fit(X, y), clone(model).fit(X, y)
    assert first.predict_proba(X).tolist() == second.predict_proba(X).tolist()
    assert first.robust_cv_ == second.robust_cv_
    again = pickle.loads(pickle.dumps(first))
    assert again.predict_proba(X).tolist() == first.predict_proba(X).tolist()
    search = GridSearchCV(
        clone(model).set_params(cv=0), {"ambiguity__alpha": [0.3, 0.9]}, cv=2
    ).fit(X, y)
    assert search.best_params_["ambiguity__alpha"] in (0.3, 0.9)
    piped = make_pipeline(StandardScaler(), clone(model)).fit(X, y)
    assert piped.score(X, y) > 0.6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_rounds": 0}, "n_rounds"),
        ({"ambiguity": Wasserstein(radius=0.1)}, "reweights"),
        ({"ambiguity": "cvar"}, "expected a set"),
        ({"estimator": LinearRegression()}, "no classifier"),
        ({"estimator": 3}, "expected a learner"),
        ({"ambiguity": CVaR(alpha=2.0)}, "alpha"),
    ],
)
def test_bad_settings(settings, words, rows):
    model = ReweightedClassifier(PLAIN, KL(radius=0.1)).set_params(**settings)
    with pytest.raises((InvalidDataError, UnsupportedError), match=words):
        model.fit(*rows)


def test_bad_data(rows):
    X, y = rows
    model = ReweightedClassifier(PLAIN, KL(radius=0.1), cv=0)
    with pytest.raises(InvalidDataError, match="1 class"):
        model.fit(X, np.zeros(300))
    with pytest.raises(InvalidDataError, match="300 rows"):
        model.fit(X, y[:200])
    with pytest.raises(InvalidDataError, match="shape"):
        model.fit(X, np.column_stack([y, y]))


def test_an_interrupt_keeps_the_models_so_far(rows):
    X, y = rows

    class Tired(LogisticRegression):
        calls = 0

        def fit(self, X, y, sample_weight=None):
            Tired.calls += 1
            if Tired.calls == 5:
                raise KeyboardInterrupt
            return super().fit(X, y, sample_weight)

    model = ReweightedClassifier(Tired(), KL(radius=0.1), cv=0)
    with pytest.raises(KeyboardInterrupt) as stopped:
        model.fit(X, y)
    assert stopped.value.result is model
    assert len(model.estimators_) == 2  # two calls tried the weights, the fifth stopped
    assert model.predict_proba(X).shape == (300, 2)


def test_what_is_printed_is_what_is_known(rows):
    linear = str(
        ReweightedClassifier(PLAIN, KL(radius=0.1), n_rounds=3, cv=0).fit(*rows).certificate_
    )
    assert "least of any linear model (lower bound)" in linear
    assert "attained risk" not in linear
    trees = DecisionTreeClassifier(max_depth=2, random_state=0)
    said = str(
        ReweightedClassifier(trees, KL(radius=0.1), n_rounds=3, cv=0).fit(*rows).certificate_
    )
    assert "upper bound [dual]" in said
    assert "lower bound" not in said
    assert "gap" not in said


def test_folds_of_one_class_are_told_before_a_learner_fails():
    X = np.random.default_rng(0).normal(size=(40, 2))
    rare = np.r_[1, np.zeros(39, int)]
    game = ReweightedClassifier(LogisticRegression(), CVaR(alpha=0.5), n_rounds=2, cv=KFold(4))
    with pytest.raises(InvalidDataError, match="fold 1 of cv leaves one value of y"):
        game.fit(X, rare)


def test_groups_do_not_reach_folds_that_ignore_them():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    y = (X[:, 0] + rng.logistic(size=60) > 0).astype(int)
    game = ReweightedClassifier(LogisticRegression(), Group(), n_rounds=2, cv=2, random_state=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        game.fit(X, y, groups=np.tile(["a", "b"], 30))
    assert not any("groups parameter" in str(one.message) for one in said)
