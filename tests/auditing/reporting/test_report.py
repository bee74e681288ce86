"""Reports: worst cases, moves, exports, pictures, comparisons."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from drojko import AuditReport, audit
from drojko.ambiguity import Wasserstein
from drojko.auditing import compare
from drojko.displays import DisplacementDisplay, RobustnessCurveDisplay, WorstCaseDisplay
from drojko.exceptions import InvalidDataError, UnsupportedError


@pytest.fixture(scope="module")
def report(linear, iris):
    return audit(linear, *iris, Wasserstein(), radii=[0.0, 0.5, 1.0], random_state=0)


def test_a_report_is_frozen_and_prints(report):
    assert isinstance(report, AuditReport)
    with pytest.raises(AttributeError):
        report.table = None
    assert "worst_case_risk" in str(report)
    copied = report.to_frame()
    copied.iloc[0, 0] = 99.0
    assert report.table.iloc[0, 0] == 0.0


def test_worst_cases_are_those_of_the_rows(report, linear, iris):
    for k, radius in enumerate((0.0, 0.5, 1.0)):
        worst = report.worst_case(radius)
        row = report.table.iloc[k]
        assert worst.risk() == pytest.approx(row.worst_case_risk, rel=1e-9)
        assert worst.mass.sum() == pytest.approx(1.0)
        frame = pd.DataFrame(worst.after, columns=iris[0].columns)
        right = linear.predict(frame) == worst.classes[worst.labels]
        assert worst.mass @ right == pytest.approx(row.worst_case_accuracy)
        assert worst.mass @ worst.costs == pytest.approx(radius**2, rel=1e-6, abs=1e-12)
    assert report.worst_case() is report.worst_case(1.0)
    with pytest.raises(InvalidDataError, match=r"0\.7"):
        report.worst_case(0.7)


def test_samples_are_smoothed_by_a_tenth_of_the_radius(report):
    worst = report.worst_case(1.0)
    X, y = worst.sample(4000, random_state=0)
    for k in (0, 1):
        inside = worst.labels == worst.classes.tolist().index(k)
        part = worst.measure.measures_[k]
        spread = worst.mass[inside] / worst.mass[inside].sum() @ worst.after[inside] ** 2
        noise = part.bandwidth_**2
        assert noise.sum() <= 0.01 * (1 + 1e-9)
        # Four standard errors of a second moment of 2000 draws.
        error = 4 * np.sqrt((X[y == k] ** 2).var(0) / (y == k).sum())
        assert (np.abs((X[y == k] ** 2).mean(0) - spread - noise) <= error).all()
    assert np.isfinite(worst.log_prob(X[:5], y[:5])).all()
    with pytest.raises(UnsupportedError, match="atoms"):
        report.worst_case(0.0).log_prob(X[:2], y[:2])


def test_new_rows_move_like_the_audited_ones(report, iris):
    worst = report.worst_case(1.0)
    unique = np.unique(worst.rows, return_counts=True)[1].max() == 1
    moved = worst.transport(worst.before, worst.classes[worst.source])
    if unique:  # one map, no mixture
        np.testing.assert_allclose(moved, worst.after, atol=1e-6)
    nearest = worst._nearest(worst.before, worst.source)
    assert nearest.shape == worst.before.shape


def test_moves_show_rows_before_and_after(report, iris):
    X, y = iris
    found = report.moves(4)
    assert found.index.names == ["row", "state"]
    assert len(found) == 8
    before = found.xs("before", level="state")
    after = found.xs("after", level="state")
    rows = before.index.to_numpy()
    np.testing.assert_allclose(before[list(X.columns)], X.iloc[rows])
    np.testing.assert_array_equal(before["target"], y.iloc[rows])
    assert (after.loss > before.loss).all()
    assert (np.diff(before.harm) <= 0).all()
    with pytest.raises(InvalidDataError, match="at least 1"):
        report.moves(0)


def test_displacement_shares_sum_to_one(report):
    frame = report.displacement()
    assert {"feature", "class", "share"} <= set(frame.columns)
    assert frame.share.sum() == pytest.approx(1.0)


def test_categories_come_back_as_they_went_in(mixed):
    model, X, y = mixed
    report = audit(
        model, X, y, Wasserstein(weights={"age": 0.01}, immutable=["colour"]), radii=[0.3],
        random_state=0,
    )  # fmt: skip
    drawn = report.samples(30)
    assert set(drawn.colour) <= {"red", "green", "blue"}
    assert list(drawn.columns) == ["colour", "age", "income", "target"]
    found = report.moves(5)
    before, after = (found.xs(s, level="state") for s in ("before", "after"))
    np.testing.assert_array_equal(before.colour, X.colour.iloc[before.index])
    np.testing.assert_array_equal(before.colour, after.colour)
    assert not np.allclose(before.age, after.age)
    # The model agrees with what the report says about the moved rows.
    np.testing.assert_array_equal(
        after.prediction, model.predict(after[["colour", "age", "income"]])
    )
    p = model.predict_proba(after[["colour", "age", "income"]])
    own = p[np.arange(5), np.searchsorted(model.classes_, after.target)]
    np.testing.assert_allclose(after.loss, -np.log(own), rtol=1e-6)


def test_categories_may_be_swapped_at_a_cost(mixed):
    model, X, y = mixed
    fixed = audit(model, X, y, Wasserstein(), radii=[0.3], random_state=0)
    swapped = audit(
        model, X, y, Wasserstein(categorical_features=["colour"], swap_cost=0.05), radii=[0.3],
        random_state=0,
    )  # fmt: skip
    assert swapped.table.worst_case_risk[0] > fixed.table.worst_case_risk[0]
    found = swapped.moves(10)
    before, after = (found.xs(s, level="state") for s in ("before", "after"))
    assert (before.colour.to_numpy() != after.colour.to_numpy()).any()


def test_exports(report, tmp_path, iris):
    path = report.export(tmp_path / "worst.csv", n=25)
    back = pd.read_csv(path)
    assert back.shape == (25, 5)
    assert list(back.columns) == [*iris[0].columns, "target"]
    with pytest.raises(InvalidDataError, match="parquet"):
        report.export(tmp_path / "worst.txt")


def test_pictures_of_one_and_of_two_models(report, iris):
    display = report.plot()
    assert isinstance(display, RobustnessCurveDisplay)
    np.testing.assert_array_equal(display.worst_case_risk, report.table.worst_case_risk)
    other = audit(
        LogisticRegression(C=0.01).fit(*iris), *iris, Wasserstein(), radii=[0.0, 1.0],
        random_state=0, name="strong",
    )  # fmt: skip
    two = RobustnessCurveDisplay.from_report(other, ax=display.ax_)
    legend = [text.get_text() for text in two.ax_.get_legend().get_texts()]
    assert any(text.startswith("strong: ") for text in legend)
    accuracy = RobustnessCurveDisplay.from_report(report, metric="accuracy")
    np.testing.assert_array_equal(
        accuracy.ax_.lines[0].get_ydata(), report.table.worst_case_accuracy
    )
    assert WorstCaseDisplay.from_report(report, n_samples=20).source.shape == (20, 2)
    assert DisplacementDisplay.from_report(report).ranking()[0] == "petal length (cm)"


def test_reports_are_compared(report):
    table = compare({"a": report, "b": report})
    assert table.model.tolist() == ["a"] * 3 + ["b"] * 3
    assert compare([report, report]).model.nunique() == 2


def test_rows_as_pictures(iris, linear):
    found = audit(linear, *iris, Wasserstein(), radii=[0.5], images=(2, 2), random_state=0)
    assert found.images(3).shape == (3, 2, 2, 2)
    moves = found.moves(3)
    np.testing.assert_allclose(
        found.images(3)[:, 1].reshape(3, 4),
        moves.xs("after", level="state")[list(iris[0].columns)],
    )
