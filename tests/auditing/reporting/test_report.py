"""Reports: worst cases, moves, exports, pictures, comparisons."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from drojko import AuditReport, audit
from drojko.ambiguity import KL, MMD, CVaR, Group, Sinkhorn, Wasserstein
from drojko.auditing import compare
from drojko.auditing.reporting.page import render
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


# Sets that reweight -------------------------------------------------------------------------------


HALVES = np.repeat(["first", "second"], 50)


@pytest.fixture(scope="module")
def logistic():
    X, y = make_classification(100, 4, random_state=0, flip_y=0.2)
    model = LogisticRegression().fit(X, y)
    p = model.predict_proba(X)[np.arange(100), y]
    return model, X, y, -np.log(p)


@pytest.mark.parametrize("ambiguity", [Group(), Group(0.2), KL(radius=0.2)], ids=repr)
def test_groups_and_classes_have_their_masses(logistic, ambiguity):
    model, X, y, losses = logistic
    report = audit(model, X, y, ambiguity, groups=HALVES, random_state=0)
    dual = ambiguity.on(None, np.full(100, 0.01), HALVES).dual(losses)
    mass = 0.01 * dual.ratio
    assert report.table.worst_case_risk[0] == pytest.approx(dual.value, rel=1e-9)
    for frame, labels in ((report.groups, HALVES), (report.shares("class"), y)):
        names = np.unique(labels)
        assert frame.iloc[:, 0].tolist() == names.tolist()
        for row, name in zip(frame.itertuples(), names):
            inside = labels == name
            assert row.mass == pytest.approx(inside.mean())
            assert row.risk == pytest.approx(losses[inside].mean(), rel=1e-6)
            assert row.worst_case_mass == pytest.approx(mass[inside].sum(), abs=1e-9)
            if row.worst_case_mass > 0 and isinstance(ambiguity, KL):
                worst = mass[inside] @ losses[inside] / mass[inside].sum()
                assert row.worst_case_risk == pytest.approx(worst, rel=1e-6)
    page = render({report.name: report})
    assert "Mass and mean loss of each group" in page
    assert "Mass and mean loss of each class" in page
    with pytest.raises(InvalidDataError, match="by="):
        report.shares("row")


def test_groups_that_overlap_have_their_shares_of_the_mixture(logistic):
    model, X, y, losses = logistic
    members = pd.DataFrame({"all": np.ones(100, int), "late": (HALVES == "second").astype(int)})
    report = audit(model, X, y, Group(), groups=members, random_state=0)
    assert report.groups["group"].tolist() == ["all", "late"]
    np.testing.assert_allclose(report.groups["mass"], [2 / 3, 1 / 3])
    means = [losses.mean(), losses[50:].mean()]
    np.testing.assert_allclose(report.groups["risk"], means, rtol=1e-6)
    np.testing.assert_allclose(report.groups["worst_case_mass"], np.argsort(means), atol=1e-12)
    assert report.table.worst_case_risk[0] == pytest.approx(max(means), rel=1e-9)


def test_no_groups_are_an_empty_table(report):
    assert report.groups.empty
    assert report.shares()["worst_case_mass"].sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "ambiguity", [Group(0.3), KL(radius=0.2), CVaR(0.2), MMD(radius=0.2)], ids=repr
)
def test_the_most_harmful_rows_are_those_that_make_most_of_the_risk(logistic, ambiguity):
    model, X, y, losses = logistic
    report = audit(model, X, y, ambiguity, groups=HALVES, random_state=0)
    moves = report.moves(100)
    before, after = (moves.xs(state, level="state") for state in ("before", "after"))
    np.testing.assert_allclose(before["loss"], losses[before.index], rtol=1e-6)
    np.testing.assert_allclose(before["mass"], 0.01)
    part = (after["mass"] * after["loss"]).to_numpy()
    assert (np.diff(part) <= 1e-15).all()
    assert part.sum() == pytest.approx(report.table.worst_case_risk[0], rel=1e-6)
    assert after["harm"].sum() == pytest.approx(part.sum() - losses.mean(), rel=1e-6)
    assert report.displacement()["rms"].max() > 0


def test_displacement_of_masses_does_not_depend_on_units(logistic):
    model, X, y, _ = logistic
    scaled = X * [1.0, 1000.0, 1.0, 1.0]
    other = LogisticRegression()
    other.classes_, other.intercept_ = model.classes_, model.intercept_
    other.coef_ = model.coef_ / [1.0, 1000.0, 1.0, 1.0]
    for ambiguity in (KL(radius=0.2), Group(0.3)):
        one, two = (
            audit(m, Z, y, ambiguity, groups=HALVES, random_state=0).displacement()
            for m, Z in ((model, X), (other, scaled))
        )
        np.testing.assert_allclose(one["share"], two["share"], rtol=1e-6)
        assert one["share"].sum() == pytest.approx(1.0)
        shift = one.groupby("class")["mass"].first()
        assert shift.sum() == pytest.approx(0.0, abs=1e-12)
        assert abs(shift[0]) > 1e-3


def test_a_continuous_reference_has_no_groups(logistic):
    model, X, y, _ = logistic
    with pytest.raises(UnsupportedError, match="groups are known of the rows alone"):
        audit(model, X, y, Group(0.1), groups=HALVES, reference="gaussian")


# Known rows, files --------------------------------------------------------------------------------


def test_known_rows_go_where_the_audit_moved_them(network, moons):
    X, y = moons
    for model, ball in (
        (network, Wasserstein(radius=0.5)),
        (network, Wasserstein(penalty=0.5)),
        (LogisticRegression().fit(X, y), Wasserstein(radius=2.0)),
        (RandomForestClassifier(5, random_state=0).fit(X, y), Wasserstein(radius=0.3)),
    ):
        report = audit(model, X, y, ball, random_state=0, max_evaluations=10_000)
        worst, row = report.worst_case(), report.table.iloc[0]
        image = worst.transport(X, y)
        losses = report.problem.losses(torch.tensor(image), torch.tensor(y)).numpy()
        # Two moves of one row cannot both be taken: the means are right up to one row, and no more.
        one = np.ptp(worst.loss_after) / len(X) if len(worst.mass) > len(X) else 0.0
        assert -1e-9 <= row.worst_case_risk - losses.mean() <= 1.01 * one + 1e-9
        moved = {z.tobytes() for z in worst.after}
        assert all(z.tobytes() in moved for z in image)
        again = worst.transport(X[::-1], y[::-1])[::-1]
        np.testing.assert_allclose(np.sort(again, axis=0).mean(0), image.mean(0), atol=0.05)
        drawn = [worst.transport(X, y, random_state=k) for k in (1, 1)]
        np.testing.assert_array_equal(*drawn)


def test_rows_that_stand_twice_take_both_moves(moons):
    X, y = (np.concatenate([part[:20]] * 2) for part in moons)
    model = LogisticRegression().fit(*moons)
    report = audit(model, X, y, Wasserstein(radius=0.5), random_state=0)
    image = report.worst_case().transport(X, y)
    losses = report.problem.losses(torch.tensor(image), torch.tensor(y)).numpy()
    assert losses.mean() == pytest.approx(report.table.worst_case_risk[0], rel=1e-3)


@pytest.mark.parametrize(
    "ambiguity",
    [Wasserstein(radius=0.3), KL(radius=0.1), Group(0.1), Sinkhorn(0.1, radius=0.3)],
    ids=repr,
)
def test_reports_are_pickled(logistic, ambiguity):
    model, X, y, _ = logistic
    report = audit(model, X, y, ambiguity, groups=HALVES, random_state=0)
    again = pickle.loads(pickle.dumps(report))
    pd.testing.assert_frame_equal(again.table, report.table)
    pd.testing.assert_frame_equal(again.moves(3), report.moves(3))
    pd.testing.assert_frame_equal(again.displacement(), report.displacement())
    pd.testing.assert_frame_equal(again.groups, report.groups)
    np.testing.assert_array_equal(again.worst_case().sample(5, 0)[0], report.samples(5).iloc[:, :4])
    assert render({"m": again}) == render({"m": report})


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_reports_of_modules_are_pickled(network, moons):
    few = [part[:8] for part in moons]
    for module in (network, torch.jit.script(network)):
        report = audit(module, *few, Wasserstein(radius=0.3), inner="pointwise", random_state=0)
        again = pickle.loads(pickle.dumps(report))
        pd.testing.assert_frame_equal(again.moves(3), report.moves(3))
        image = again.worst_case().transport(moons[0][8:12], moons[1][8:12])
        np.testing.assert_allclose(
            image, report.worst_case().transport(moons[0][8:12], moons[1][8:12]), atol=1e-9
        )
