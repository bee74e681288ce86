"""Tables in their own terms: whole steps, swaps at a price, nothing below 0, columns by name."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from drojko import DROClassifier, audit
from drojko.ambiguity import KL, Wasserstein
from drojko.exceptions import InvalidDataError
from tests.zoo.pipelines import NUMBERS, TEXT, flights

TABLE, LATE, _ = flights(150)
X = TABLE.drop(columns="date")
AUTO = {"categorical_features": "auto"}


def linear():
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), TEXT), (StandardScaler(), NUMBERS),
        remainder="passthrough",
    )  # fmt: skip
    return make_pipeline(encode, LogisticRegression(max_iter=3000)).fit(X, LATE)


def boosted():
    encode = make_column_transformer((OrdinalEncoder(), TEXT), remainder="passthrough")
    return make_pipeline(encode, HistGradientBoostingClassifier(max_iter=10)).fit(X, LATE)


@pytest.mark.parametrize("fitted", [linear, boosted])
@pytest.mark.parametrize("price", [np.inf, 0.5])
def test_rows_stay_rows_that_can_exist(fitted, price):
    model = fitted()
    report = audit(
        model, X, LATE, Wasserstein(swap_cost=price, **AUTO), radii=[0.5], scale="standard",
        random_state=0, max_evaluations=15_000,
    )  # fmt: skip
    worst, table, row = report.worst_case(), report.space.table, report.table.iloc[0]
    before, after = table(worst.before), table(worst.after)
    for name in ("miles", "month"):
        moved = after[name].astype(float)
        assert (moved == np.round(moved)).all()
        assert moved.min() >= 0
    kinds = ["carrier", "origin", "weekend"]
    for name in kinds:
        assert set(after[name].astype(str)) <= set(before[name].astype(str))
    swapped = sum((after[name] != before[name]).astype(float) for name in kinds)
    assert swapped.any() == (price < np.inf) or fitted is boosted  # whom it may not pay
    assert price < np.inf or not swapped.any()
    numbers = ["delay", "miles", "month"]
    gone = after[numbers].astype(float) - before[numbers].astype(float)
    spread = X[numbers].astype(float).var(ddof=0)
    costs = (gone**2 / spread).sum(axis=1) + (swapped * price if price < np.inf else 0.0)
    np.testing.assert_allclose(costs, worst.costs, rtol=1e-9, atol=1e-12)
    assert worst.mass @ costs <= 0.25 * (1 + 1e-9)
    # The model's own losses there, and a bound that holds.
    answers = model.predict_proba(after.astype(X.dtypes.to_dict()))
    own = -np.log(np.clip(answers[np.arange(len(after)), worst.labels], 1e-6, 1))
    np.testing.assert_allclose(own, worst.loss_after, rtol=1e-6, atol=1e-9)
    assert row.nominal_risk < row.worst_case_risk <= row.upper_bound + 1e-9
    assert "fractions" not in row.finding
    lines = report.checks.set_index("check").detail
    assert lines["kept at or above 0"].endswith("miles, month")
    assert ("price of a swap" in lines.index) == (price < np.inf)


def test_a_linear_model_comes_close_to_its_bound():
    row = audit(
        linear(), X, LATE, Wasserstein(0.3, **AUTO), scale="standard", random_state=0
    ).table.iloc[0]
    assert row.proof == "ridge-1d"
    gain = row.worst_case_risk - row.nominal_risk
    assert row.upper_bound - row.worst_case_risk <= 0.05 * gain


def test_whole_steps_are_the_best_ones():
    """One column of counts and a model of it alone: rows are bought at the price of their steps."""
    rng = np.random.default_rng(0)
    counts = pd.DataFrame({"visits": rng.integers(0, 9, 60)})
    y = (counts.visits + rng.integers(-3, 4, 60) > 4).astype(int).to_numpy()
    model = LogisticRegression().fit(counts, y)
    report = audit(model, counts, y, Wasserstein(0.5, **AUTO), random_state=0)
    # Brute force: all whole moves of each row, mixed over the price of the budget.
    moves = np.arange(0, 30)
    f = model.decision_function(pd.DataFrame({"visits": moves}))
    losses = np.logaddexp(0.0, -np.outer(2 * y - 1, f))
    costs = (moves - counts.visits.to_numpy()[:, None]) ** 2.0
    prices = np.concatenate([[0.0], np.geomspace(1e-3, 10, 20_000)])
    dual = [p * 0.25 + np.mean(np.max(losses - p * costs, axis=1)) for p in prices]
    exact = min(dual)
    assert report.table.worst_case_risk[0] <= exact + 1e-9
    assert report.table.worst_case_risk[0] == pytest.approx(exact, rel=2e-3)


def test_columns_are_found_by_name():
    """What a model refuses, in the words of this package's own estimators."""
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["a", "b", "c"])
    y = (table.a > 0).to_numpy()
    own = DROClassifier(KL(0.1), reference="empirical", alpha=0.1).fit(table, y)
    foreign = make_pipeline(StandardScaler(), LogisticRegression()).fit(table, y)
    others = {
        "has the columns of the fit in another order, 'c' where 'a' was": table[["c", "b", "a"]],
        "lacks 'b', which the model was fitted on": table.drop(columns="b"),
        "has 'date' more than the model was fitted on": table.assign(date=0.0),
    }
    for words, other in others.items():
        with pytest.raises(InvalidDataError, match=words):
            own.predict(other)
        for model in (own, foreign):
            with pytest.raises(InvalidDataError, match=words):
                audit(model, other, y, KL(0.1))
    with pytest.raises(InvalidDataError, match="X lacks 'month', which the model was fitted on"):
        audit(linear(), X.drop(columns="month"), LATE, KL(0.1))


@pytest.mark.parametrize("ball", [Wasserstein(0.2), KL(0.1)], ids=["W2", "KL"])
def test_what_a_model_predicts_from_is_audited(ball):
    """Columns in another order and beside others, of a model that reads them by name."""
    encode = make_column_transformer((StandardScaler(), NUMBERS))
    model = make_pipeline(encode, LogisticRegression()).fit(X, LATE)
    other = X[X.columns[::-1]].assign(note="late")
    assert np.array_equal(model.predict(other), model.predict(X))
    settings = {"scale": "standard", "random_state": 0}
    whole, moved = (audit(model, table, LATE, ball, **settings) for table in (X, other))
    pd.testing.assert_frame_equal(whole.table, moved.table)
    newer = audit(model, X, LATE, Wasserstein(0.2), **settings, compare_to=other[::2])
    same = audit(model, X, LATE, Wasserstein(0.2), **settings, compare_to=X[::2])
    assert newer.observed.distance == same.observed.distance


class ByPlace(ClassifierMixin, BaseEstimator):
    """Takes any table, and reads its first column whatever its name."""

    def fit(self, X, y):
        self.classes_, self.feature_names_in_ = np.unique(y), np.asarray(X.columns, dtype=object)
        return self

    def predict(self, X):
        return self.classes_[(np.asarray(X)[:, 0] > 0).astype(int)]


def test_a_model_that_reads_columns_by_their_places_is_not_given_others():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
    y = (table.a > 0).to_numpy()
    model = ByPlace().fit(table, y)
    with pytest.raises(InvalidDataError, match="another order, 'b' where 'a' was"):
        audit(model, table[["b", "a"]], y, KL(0.1))


@pytest.mark.parametrize("ball", [Wasserstein(0.2), KL(0.1)], ids=["W2", "KL"])
@pytest.mark.parametrize("last", [LogisticRegression(max_iter=3000), DecisionTreeClassifier()])
def test_columns_that_a_pipeline_drops_need_not_be_there(ball, last):
    used = [*TEXT, *NUMBERS]
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), TEXT), (StandardScaler(), NUMBERS)
    )
    model = make_pipeline(encode, last).fit(TABLE, LATE)
    settings = {"scale": "standard", "random_state": 0, "max_evaluations": 2000}
    whole, few = (audit(model, table, LATE, ball, **settings) for table in (TABLE, X[used]))
    assert few.table.nominal_risk[0] == pytest.approx(whole.table.nominal_risk[0], rel=1e-12)
    assert few.table.worst_case_risk[0] > few.table.nominal_risk[0]
    lacking = "carrier" if "carrier" in used else used[0]
    with pytest.raises(InvalidDataError, match=f"X lacks .*'{lacking}'"):
        audit(model, X[used].drop(columns=lacking), LATE, ball, **settings)


class Foreign:
    """A table of another library: its columns are not pandas' own, and it can become pandas'."""

    def __init__(self, table):
        self.table, self.columns, self.shape = table, list(table.columns), table.shape

    def __len__(self):
        return len(self.table)

    def to_pandas(self):
        if self.table.empty:
            raise ImportError("pyarrow is required")
        return self.table


def test_tables_of_other_libraries_are_those_of_pandas():
    model = linear()
    own, other = (
        audit(model, kind(X), LATE, Wasserstein(0.2), scale="standard", random_state=0,
              compare_to=kind(X[50:]))
        for kind in (lambda table: table, Foreign)
    )  # fmt: skip
    pd.testing.assert_frame_equal(own.table, other.table)
    assert own.meaning.equals(other.meaning)
    with pytest.raises(InvalidDataError, match=r"pyarrow is required.*give a pandas one"):
        audit(model, Foreign(X[:0]), LATE, KL(0.1))


def test_unknown_categories():
    odd = X.assign(carrier=X.carrier.where(X.index != 3, "ZZ"))
    model = linear()
    report = audit(model, odd, LATE, KL(0.1))
    row = report.table.iloc[0]
    assert row.nominal_accuracy == pytest.approx(model.score(odd, LATE), abs=1e-12)
    (said,) = [line for line in report.findings if "unknown categories" in line]
    assert "'carrier': 'ZZ' (1 row)" in said
    assert not any("unknown" in line for line in audit(model, X, LATE, KL(0.1)).findings)
    with pytest.raises(InvalidDataError, match=r"unknown categories \['ZZ'\].*takes them"):
        audit(boosted(), odd, LATE, KL(0.1))


def test_the_target_among_the_columns():
    given = X.assign(answer=np.where(LATE == "late", 3, 7))
    model = make_pipeline(
        make_column_transformer(("passthrough", ["delay", "answer"])), LogisticRegression()
    ).fit(given, LATE)
    finding = audit(model, given, LATE, KL(0.1)).table.finding[0]
    assert "target among the columns: answer tells it exactly" in finding
    assert "target" not in audit(linear(), X, LATE, KL(0.1)).table.finding[0]


def test_many_categories_are_one_column():
    ids = pd.Series(np.arange(20_000).astype(str))
    given = pd.DataFrame({"id": ids, "x": np.sin(np.arange(20_000.0))})
    y = (given.x > 0).astype(int).to_numpy()
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["id"]), remainder="passthrough"
    )
    model = make_pipeline(encode, LogisticRegression(max_iter=20, tol=1e-2)).fit(given, y)
    report = audit(model, given, y, KL(0.1))
    assert report.space.names == ("id", "x")
    assert report.table.nominal_accuracy[0] == pytest.approx(model.score(given, y), abs=1e-12)
