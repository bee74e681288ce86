"""What a report says first: limits, sizes in the data, carriers, next steps, and its exports."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, audit, observed_shift
from drojko.ambiguity import KL, CVaR, Group, Wasserstein
from drojko.auditing import Comparison
from drojko.auditing.reporting.decision import useful_bounds
from drojko.auditing.reporting.page import render
from drojko.estimators.observed import distance_of_halves
from drojko.exceptions import InvalidDataError, UnsupportedError


@pytest.fixture(scope="module")
def data():
    X, y = make_classification(240, 4, random_state=0, flip_y=0.1)
    return pd.DataFrame(X, columns=list("abcd")), y


@pytest.fixture(scope="module")
def model(data):
    return LogisticRegression().fit(*data)


@pytest.fixture(scope="module")
def report(model, data):
    table = audit(model, *data, Wasserstein(), radii=[0.1, 0.3, 1.0], random_state=0).table
    limit = {"accuracy": float(table.worst_case_accuracy[1] - 0.01),
             "risk": float(table.worst_case_risk[:2].mean())}  # fmt: skip
    return audit(model, *data, Wasserstein(), radii=[0.1, 0.3, 1.0], random_state=0, limit=limit)


def test_limits_are_crossed_where_the_table_says_so(report):
    accuracy, risk = report.decision.limits
    assert "A shift of radius 1 crosses it" in accuracy
    assert "at 0.3 none was found that does, which is no proof" in accuracy
    assert "A shift of radius 0.3 crosses it" in risk
    assert "up to 0.1 it is proven to hold" in risk
    assert "radius 1, the first that crosses your limit" in report.decision.steps[0].text


def test_a_limit_that_holds_is_proven_only_by_a_bound(model, data):
    forest = RandomForestClassifier(10, random_state=0).fit(*data)
    for one, words in ((model, "it is proven to hold"), (forest, "which is no proof")):
        found = audit(
            one, *data, Wasserstein(), radii=[0.05], limit={"risk": 5.0}, random_state=0,
            max_evaluations=2000,
        ).decision.limits[0]  # fmt: skip
        assert "No shift was found that crosses it, up to radius 0.05" in found
        assert words in found
    missed = audit(model, *data, KL(radius=0.1), limit=0.999, random_state=0)
    assert "missed today" in missed.decision.limits[0]


@pytest.mark.parametrize("limit", ["0.8", {"accuracy": 2.0}, {"loss": 1.0}, {"auc": None}, True])
def test_limits_that_are_none(model, data, limit):
    with pytest.raises(InvalidDataError, match="limit"):
        audit(model, *data, KL(radius=0.1), limit=limit)


def test_a_regression_has_a_limit_on_its_loss(data):
    X, y = data
    line = LinearRegression().fit(X, y)
    found = audit(line, X, y, Wasserstein(), radii=[0.1], limit=0.001, random_state=0)
    assert "missed today" in found.decision.limits[0]
    with pytest.raises(InvalidDataError, match="a regression has none"):
        audit(line, X, y, Wasserstein(), radii=[0.1], limit={"accuracy": 0.5})


# Sizes in the data -------------------------------------------------------------------------------


def test_sizes_are_shares_of_the_spread(report, data):
    X = data[0].to_numpy()
    spread = np.sqrt(X.var(axis=0).sum())
    np.testing.assert_allclose(report.meaning.share_of_spread, report.table.radius / spread)
    np.testing.assert_allclose(report.meaning.length, report.table.radius)
    scaled = audit(
        LogisticRegression().fit(*data), *data, Wasserstein(), radii=[0.1], scale="standard",
        random_state=0,
    )  # fmt: skip
    assert scaled.meaning.share_of_spread[0] == pytest.approx(0.1 / 2.0)  # four columns


def test_halves_are_that_far_apart(data):
    X, y = data[0].to_numpy(), data[1]
    found, rows = distance_of_halves(Wasserstein(radius=1.0), X, max_rows=40)
    rng = np.random.default_rng(5)
    costs = []
    for _ in range(30):
        order = rng.permutation(len(X))
        one, two = X[order[:40]], X[order[40:80]]
        cost = ((one[:, None] - two) ** 2).sum(2)
        costs.append(cost[linear_sum_assignment(cost)].mean())
    assert rows == 40
    assert found == pytest.approx(np.sqrt(np.mean(costs)), rel=0.15)
    within, _ = distance_of_halves(Wasserstein(radius=1.0), X, y.astype(float), max_rows=40)
    assert within < found  # classes lie closer together
    assert np.isnan(distance_of_halves(Wasserstein(radius=1.0), X[:8], max_rows=40)[0])


def test_a_shift_that_was_seen_is_in_the_units_of_the_set(model, data):
    X, y = data
    moved = X.assign(a=X["a"] + 1.5)
    found = audit(
        model, X, y, Wasserstein(weights=[4, 1, 1, 1]), radii=[1.0, 4.0], random_state=0,
        compare_to=(moved, y),
    )  # fmt: skip
    low, high = found.observed.interval
    assert low < 3.0 < high  # 1.5 at a weight of 4
    assert found.observed.distance == pytest.approx(3.0, rel=0.1)
    times = found.meaning.times_observed
    np.testing.assert_allclose(times, [1.0 / found.observed.distance, 4 / found.observed.distance])
    assert "radius 4, the first no smaller than the shift that was seen" in str(found.decision)
    known = observed_shift(X, moved, random_state=0)
    again = audit(model, X, y, Wasserstein(), radii=[1.0], compare_to=known, random_state=0)
    assert again.observed is known
    same = audit(model, X, y, Wasserstein(), radii=[1.0], compare_to=X, random_state=0)
    assert same.observed.interval[0] == 0.0
    assert "× the shift" not in str(same.decision)


def test_class_shares_are_a_lower_bound_under_sets_that_reweight(model, data):
    X, y = data
    new = np.repeat([0, 1], [180, 60])
    found = audit(model, X, y, KL(), radii=[0.01, 0.5], random_state=0, compare_to=(X, new))
    p, q = np.bincount(y) / 240, np.array([0.75, 0.25])
    assert found.observed.distance == pytest.approx(q @ np.log(q / p))
    assert found.observed.interval[0] > 0
    tail = audit(model, X, y, CVaR(alpha=0.5), random_state=0, compare_to=(X, new))
    assert tail.observed.distance == pytest.approx((q / p).max() - 1)
    for given, error in ((X, UnsupportedError), ((X, new + 5), InvalidDataError)):
        with pytest.raises(error, match="compare_to"):
            audit(model, X, y, KL(radius=0.1), compare_to=given)
    with pytest.raises(UnsupportedError, match="compare_to"):
        audit(model, X, y, Group(0.1), groups=y, compare_to=(X, new))
    with pytest.raises(InvalidDataError, match="columns"):
        audit(model, X, y, Wasserstein(0.1), compare_to=X.iloc[:, :2])


def test_masses_that_move(model, data):
    found = audit(model, *data, KL(), radii=[0.1], random_state=0).meaning.iloc[0]
    p = model.predict_proba(data[0])[np.arange(240), data[1]]
    ratio = KL(radius=0.1).dual(-np.log(p)).ratio
    assert found.effective_share == pytest.approx(1 / np.mean(ratio**2), rel=1e-6)
    assert found.largest_ratio == pytest.approx(ratio.max(), rel=1e-6)
    assert found.mass_moved == pytest.approx(0.5 * np.abs(ratio - 1).mean(), rel=1e-6)


# Bounds and steps --------------------------------------------------------------------------------


def test_only_bounds_that_say_something_are_shown(model, data):
    table = pd.DataFrame({
        "worst_case_risk": [1.0, 1.0, 1.0, 1.0, 1.0, np.inf],
        "upper_bound": [1.1, 13.8, 2.0, 40.0, np.inf, np.inf],
        "proof": ["dual", "largest-loss", "local-estimate", "lipschitz", "dual", "dual"],
    })  # fmt: skip
    shown = useful_bounds(table, np.full(6, 5.0))
    np.testing.assert_array_equal(np.isfinite(shown), [True] + [False] * 5)
    assert useful_bounds(table, np.full(6, 50.0))[3] == 40.0  # no larger than losses that occur
    forest = RandomForestClassifier(5, random_state=0).fit(*data)
    found = audit(forest, *data, Wasserstein(), radii=[0.1], random_state=0, max_evaluations=2000)
    assert np.isnan(found.bounds).all()
    assert "is not known" in found.decision.headline
    assert f"{found.table.upper_bound[0]:.4g}" not in render({"forest": found})


def test_the_code_of_the_steps_runs(report, data):
    X, y = data
    step = report.decision.steps[0].code
    names = {"DROClassifier": DROClassifier, "Wasserstein": Wasserstein, "X_train": X, "y_train": y}
    fitted = eval(step, names)
    assert fitted.ambiguity == Wasserstein(radius=1.0)
    again = audit(fitted, X, y, Wasserstein(), radii=[1.0], random_state=0)
    assert "trained against this set" in again.decision.steps[0].text
    hold = next(s.code for s in report.decision.steps if s.code.startswith("audit("))
    own = eval(re.search(r"Wasserstein\(.*?\)", hold).group(), names)
    assert own.immutable == [report.carriers()["column"][0]]


def test_nothing_has_to_be_done_against_what_does_nothing(model, data):
    found = audit(model, *data, Wasserstein(), radii=[1e-4], random_state=0)
    assert [step.text.split(" against")[0] for step in found.decision.steps] == [
        "Nothing has to be done"
    ]


def test_sizes_in_the_wrong_units_are_told(data):
    X, y = data
    large = X * [1.0, 1e4, 1e4, 1e4]
    other = make_pipeline(StandardScaler(), LogisticRegression()).fit(large, y)
    how = {"radii": [0.3], "random_state": 0}
    first = audit(other, large, y, Wasserstein(), **how).decision.steps[0]
    assert "less than 1.0\xa0% of the spread" in first.text
    again = {"audit": audit, "model": other, "X": large, "y": y, "Wasserstein": Wasserstein}
    code = first.code.replace("...", "radii=[0.3], random_state=0").replace("radius=0.3, ", "")
    mended = eval(code, again)
    assert mended.meaning["share_of_spread"].iloc[0] > 0.1
    assert "spread" not in mended.decision.steps[0].text


def test_rows_to_collect_are_those_of_the_class_that_costs_most(data):
    X, y = data
    heavy = LogisticRegression(class_weight={0: 20.0, 1: 1.0}).fit(X, y)
    found = audit(heavy, X, y, KL(radius=0.3), random_state=0)
    gain = found.shares().set_index("class").eval("worst_case_mass - mass")
    assert gain.idxmax() == 1
    assert any(
        step.text.startswith("Collect more rows of class 1") for step in found.decision.steps
    )


# Exports and several models ----------------------------------------------------------------------


def strict(text):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_complete(report, model, data, tmp_path):
    found = strict(report.to_json(tmp_path / "r.json"))
    assert strict((tmp_path / "r.json").read_text(encoding="utf-8")) == found
    assert [row["radius"] for row in found["table"]] == [0.1, 0.3, 1.0]
    assert found["table"][2]["worst_case_risk"] == report.table.worst_case_risk[2]
    assert found["decision"]["headline"] == report.decision.headline
    assert [s["radius"] for s in found["shifts"]] == [0.1, 0.3, 1.0]
    assert found["shifts"][0]["carriers"][0]["column"] in "abcd"
    assert found["observed"] is None
    X, y = data
    labels = np.where(y == 1, "nä", "</script>")
    odd = LogisticRegression().fit(X, labels)
    kinds = pd.Series(np.where(X["a"] > 0, "x", "y"))
    found = strict(audit(odd, X, labels, KL(radius=0.1), groups=kinds, random_state=0).to_json())
    assert {row["class"] for row in found["shifts"][0]["classes"]} == set(labels)
    lost = RandomForestClassifier(3, random_state=0).fit(X, y)
    forest = audit(lost, X, y, Wasserstein(), radii=[0.1], random_state=0, max_evaluations=500)
    assert strict(forest.to_json())["table"][0]["useful_bound"] is None


def test_several_models_make_one_report(model, data, tmp_path):
    X, y = data
    other = LogisticRegression(C=0.01).fit(X, y)
    both = audit(
        {"<i>one</i>": model, "two": other}, X, y, Wasserstein(), radii=[0.1, 0.3],
        random_state=0, limit=0.8, compare_to=(X + 0.5, y),
    )  # fmt: skip
    assert isinstance(both, Comparison)
    assert both.table.model.tolist() == ["<i>one</i>"] * 2 + ["two"] * 2
    assert len(both) == 2
    assert list(both) == ["<i>one</i>", "two"]
    alone = audit(other, X, y, Wasserstein(), radii=[0.1, 0.3], random_state=0, name="two")
    pd.testing.assert_frame_equal(both["two"].table, alone.table)
    assert both["two"].observed is both["<i>one</i>"].observed
    lines = both.plot().ax_.get_legend().get_texts()
    assert {text.get_text().split(":")[0] for text in lines} == {"<i>one</i>", "two"}
    found = strict(both.to_json())
    assert list(found["models"]) == ["<i>one</i>", "two"]
    page = both.to_html(tmp_path / "p.html").read_text(encoding="utf-8")
    for text in (page, both._repr_html_()):
        assert "<i>one</i>" not in text
        assert "&lt;i&gt;one&lt;/i&gt;" in text
    with pytest.raises(InvalidDataError, match="none of the models"):
        both["three"]
    for wrong in ({}, {"a": model}):
        with pytest.raises(InvalidDataError):
            audit(wrong, X, y, KL(radius=0.1), name="x")
    with pytest.raises(InvalidDataError, match="at broken"):
        audit({"broken": "no model"}, X, y, KL(radius=0.1))


def test_an_interrupt_keeps_the_models_so_far(model, data, monkeypatch):
    from drojko.auditing import front

    asked = []

    def read(*given):
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return front_model(*given)

    front_model = front.audited_model
    monkeypatch.setattr(front, "audited_model", read)
    with pytest.raises(KeyboardInterrupt) as stopped:
        audit({"one": model, "two": model}, *data, KL(radius=0.1), random_state=0)
    assert list(stopped.value.result) == ["one"]


def test_short_forms_for_notebooks_are_escaped(data):
    X, y = data
    X = X.rename(columns={"a": "<b>a</b>"})
    clf = DROClassifier(Wasserstein(0.1), reference="empirical", random_state=0).fit(X, y)
    report = audit(clf, X, y, Wasserstein(0.1), random_state=0, name="<u>m</u>")
    duals = [KL(radius=0.1).dual([0.0, 1.0]), Group().on(None, None, [0, 1]).dual([0.0, 1.0])]
    shown = [clf.certificate_, clf.worst_case_, report.worst_case(), report, *duals]
    for one in shown:
        text = one._repr_html_()
        assert "<b>" not in text
        assert "<u>" not in text
        assert "nan" not in text
        assert len(text) < 20_000
        assert "http" not in text
    assert f"{clf.certificate_.upper:.6g}" in shown[0]._repr_html_()
