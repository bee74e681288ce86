"""Sums over rows: slices, carriers, swaps and scores against what numpy and scikit-learn give."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from drojko import audit
from drojko.ambiguity import KL, Wasserstein
from drojko.auditing.reporting.page import render
from drojko.auditing.reporting.scores import calibration
from drojko.exceptions import InvalidDataError


@pytest.fixture(scope="module")
def plain():
    X, y = make_classification(200, 4, random_state=0, flip_y=0.2)
    X = pd.DataFrame(X, columns=list("abcd"))
    return LogisticRegression().fit(X, y), X, y


@pytest.fixture(scope="module")
def tilted(plain):
    model, X, y = plain
    return audit(model, X, y, KL(radius=0.2), random_state=0)


def test_slices_are_sums_over_rows(plain, tilted):
    model, X, y = plain
    p = model.predict_proba(X)[np.arange(200), y]
    mass = KL(radius=0.2).dual(-np.log(p)).ratio / 200
    right = model.predict(X) == y
    kind = np.where(X["a"] > 0, "high", "low")
    table = tilted.slices(pd.Series(kind, name="kind")).set_index("kind")
    for name in ("high", "low"):
        inside, row = kind == name, table.loc[name]
        assert row.mass == pytest.approx(inside.mean())
        assert row.risk == pytest.approx(-np.log(p[inside]).mean(), rel=1e-6)
        assert row.accuracy == pytest.approx(right[inside].mean())
        assert row.worst_case_mass == pytest.approx(mass[inside].sum(), rel=1e-6)
        worst = mass[inside] @ right[inside] / mass[inside].sum()
        assert row.worst_case_accuracy == pytest.approx(worst, rel=1e-6)


@pytest.mark.parametrize("by", ["b", 1, "target"])
def test_every_row_is_in_one_slice(tilted, by):
    table = tilted.slices(by)
    assert table.mass.sum() == pytest.approx(1.0)
    assert table.worst_case_mass.sum() == pytest.approx(1.0)
    row = tilted.table.iloc[0]
    assert table.mass @ table.risk == pytest.approx(row.nominal_risk)
    assert table.worst_case_mass @ table.worst_case_risk == pytest.approx(row.worst_case_risk)
    assert table.worst_case_mass @ table.worst_case_accuracy == pytest.approx(
        row.worst_case_accuracy
    )
    if by != "target":
        np.testing.assert_allclose(table.mass, 0.25, atol=0.011)
        assert len(tilted.slices(by, bins=7)) == 7


def test_slices_of_moved_rows_are_where_rows_came_from(plain):
    X, y = plain[1].to_numpy(), plain[2]
    report = audit(
        LogisticRegression().fit(X, y), X, y, Wasserstein(), radii=[0.1, 0.4], random_state=0
    )
    for radius in (0.1, 0.4):
        table = report.slices("x0", radius)
        np.testing.assert_allclose(table.mass, table.worst_case_mass)
        assert table.worst_case_mass @ table.worst_case_risk == pytest.approx(
            report.worst_case(radius).risk()
        )


def test_missing_values_and_whole_numbers_have_slices_of_their_own(plain):
    _, X, y = plain
    X = X.assign(a=X.a.where(np.arange(200) % 4 > 0), b=(X.b > 0).astype(int))
    model = HistGradientBoostingClassifier(max_iter=5).fit(X, y)
    report = audit(model, X, y, KL(radius=0.1), random_state=0)
    table = report.slices("a")
    assert table["a"].tolist()[-1] == "missing"
    assert table.mass.iloc[-1] == pytest.approx(0.25)
    assert report.slices("b")["b"].tolist() == [0, 1]
    assert np.isnan(report.carriers().set_index("column").share["a"])


def test_columns_may_have_the_names_of_the_table(plain):
    X = plain[1].set_axis(["mass", "risk", "name", "target"], axis=1)
    report = audit(LogisticRegression().fit(X, plain[2]), X, plain[2], KL(0.1), random_state=0)
    for name in X:
        table = report.slices(name)
        assert table.columns[0].removesuffix("_") == name
        assert table["mass"].sum() == pytest.approx(1.0)
    assert "Slices of risk" in render({"m": report})


@pytest.mark.parametrize("by", ["z", 9, [1, 2, 3], None, np.ones((200, 2)), dict])
def test_what_no_rows_are_sliced_by(tilted, by):
    with pytest.raises(InvalidDataError, match="by"):
        tilted.slices(by)
    with pytest.raises(InvalidDataError, match="bins"):
        tilted.slices("a", bins=1)


def test_a_regression_has_no_accuracies(rng):
    X = rng.normal(size=(80, 2))
    y = X @ [1.0, 2.0] + rng.normal(size=80)
    report = audit(LinearRegression().fit(X, y), X, y, KL(radius=0.1), random_state=0)
    table = report.slices("target")
    assert table[["accuracy", "worst_case_accuracy"]].isna().all().all()
    assert (table.worst_case_mass - table.mass).abs().max() > 0.01
    assert report.table[["nominal_brier", "nominal_ece"]].isna().all().all()


def test_carriers_share_the_budget(plain):
    model, X, y = plain
    weights = {"a": 1.0, "b": 4.0, "c": 0.25, "d": 1.0}
    report = audit(model, X, y, Wasserstein(weights=weights), radii=[0.3], random_state=0)
    found = report.carriers().set_index("column")
    moved = report.worst_case()
    shift = moved.after - moved.before
    spent = moved.mass @ shift**2 * list(weights.values())
    assert spent.sum() == pytest.approx(0.09, rel=1e-6)
    np.testing.assert_allclose(found.share[list("abcd")], spent / 0.09, rtol=1e-6)
    np.testing.assert_allclose(found["mean"][list("abcd")], moved.mass @ shift)
    spread = found["mean"] / found["in_spreads"]
    np.testing.assert_allclose(spread[list("abcd")], X.std(ddof=0), rtol=1e-9)


def test_shares_under_sets_that_reweight_do_not_depend_on_units(plain):
    _, X, y = plain
    model = LogisticRegression().fit(X.to_numpy(), y)
    scaled = X * [1.0, 1000.0, 1e-3, 1.0]
    other = LogisticRegression()
    other.classes_, other.intercept_ = model.classes_, model.intercept_
    other.coef_ = model.coef_ / [1.0, 1000.0, 1e-3, 1.0]
    one, two = (
        audit(m, Z.to_numpy(), y, KL(radius=0.2), random_state=0).carriers().set_index("column")
        for m, Z in ((model, X), (other, scaled))
    )
    for name in ("share", "in_spreads"):
        np.testing.assert_allclose(one[name], two[name][one.index], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("as_text", [True, False])
def test_swaps_are_pairs_of_categories(rng, as_text):
    n = 150
    colour, size = rng.choice(["red", "green", "blue"], n), rng.normal(size=n)
    y = (size + (colour == "red") + 0.3 * rng.normal(size=n) > 0.3).astype(int)
    hot = pd.get_dummies(pd.Series(colour), prefix="is").astype(float)
    X = pd.DataFrame({"colour": colour, "size": size}) if as_text else hot.assign(size=size)
    groups = ["colour"] if as_text else [list(hot.columns)]
    encode = ColumnTransformer([("c", OneHotEncoder(), ["colour"])], remainder="passthrough")
    steps = [encode, LogisticRegression()] if as_text else [LogisticRegression()]
    model = make_pipeline(*steps).fit(X, y)
    ball = Wasserstein(categorical_features=groups, swap_cost=0.2)
    report = audit(model, X, y, ball, radii=[0.4], random_state=0)
    swaps, worst = report.swaps(), report.worst_case()
    assert len(swaps)
    assert (swaps.before != swaps.after).all()
    assert (np.diff(swaps.mass) <= 0).all()
    columns = [j for j, name in enumerate(report.space.names) if name != "size"]
    changed = (worst.after != worst.before)[:, columns].any(1)
    assert swaps.mass.sum() == pytest.approx(worst.mass[changed].sum())
    names = {"red", "green", "blue"} if as_text else {"is_red", "is_green", "is_blue"}
    assert {*swaps.before, *swaps.after} <= names
    share = report.carriers().set_index("column").share
    assert share.sum() == pytest.approx(1.0)
    swapped = 0.2 * worst.mass[changed].sum() / (worst.mass @ worst.costs)
    assert share["size"] == pytest.approx(1 - swapped)


# Probabilities -----------------------------------------------------------------------------------


def test_calibration_is_that_of_scikit_learn_and_of_the_definition(rng):
    f, mass = rng.normal(size=300) * 2, rng.random(300)
    y = (rng.random(300) < 0.5).astype(int)
    p = 1 / (1 + np.exp(-f))
    brier, ece = calibration(f, y, mass)
    assert brier == pytest.approx(brier_score_loss(y, p, sample_weight=mass))
    top, right = np.maximum(p, 1 - p), (p > 0.5) == y
    total = 0.0
    for k in range(15):
        inside = (top >= k / 15) & (top < (k + 1) / 15)
        if inside.any():
            weight = mass[inside]
            total += abs(weight @ right[inside] - weight @ top[inside])
    assert ece == pytest.approx(total / mass.sum())
    three, kinds = rng.normal(size=(300, 3)), rng.integers(0, 3, 300)
    q = np.exp(three) / np.exp(three).sum(1, keepdims=True)
    assert calibration(three, kinds, np.ones(300))[0] == pytest.approx(brier_score_loss(kinds, q))
    assert np.isnan(calibration([np.nan, 1.0], [0, 1], [1, 1])).all()


def test_the_table_has_the_scores_of_today(plain, tilted):
    _, X, y = plain
    p = LogisticRegression().fit(X, y).predict_proba(X)[:, 1]
    row = tilted.table.iloc[0]
    assert row.nominal_brier == pytest.approx(brier_score_loss(y, p))
    assert row.worst_case_brier > row.nominal_brier
    assert 0 <= row.nominal_ece < row.worst_case_ece
