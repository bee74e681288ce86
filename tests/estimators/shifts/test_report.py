"""What the report says of environments whose differences are planted."""

import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest

from drojko import shift_report
from drojko.ambiguity import ClassShift
from drojko.exceptions import InvalidDataError

N, PLACES = 900, 3


def made(kind, seed=0, regression=False):
    """Rows of three places: alike, or different in one way."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, PLACES, N)
    away = place - 1.0
    X = rng.normal(size=(N, 2))
    if kind == "x":
        X[:, 0] += 1.5 * away
    slope = 1.0 + (1.5 * away if kind == "slopes" else 0.0)
    score = slope * X[:, 0] + (1.5 * away if kind == "level" else 0.0)
    noise = 0.5 * rng.normal(size=N) if regression else rng.logistic(size=N)
    y = score + noise
    return X, y if regression else (y > 0).astype(int), place


def differs(report):
    return dict(zip(report.differences["aspect"], report.differences["differs"], strict=True))


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("kind", ["none", "x", "level", "slopes"])
def test_what_was_planted_is_found_and_nothing_else(kind, regression):
    report = shift_report(*made(kind, regression=regression), random_state=0)
    found = differs(report)
    assert found["x"] == (kind == "x")
    assert found["y given x: level"] == (kind == "level")
    assert found["y given x: slopes"] == (kind == "slopes")
    # Shares move with the level, and with an x that y depends on.
    assert found["shares of y"] == (kind in ("x", "level"))
    assert (report.recommendation, report.ambiguity) == ("none of these", None)
    assert "A plain model" in report.reasons[-1]
    if kind == "none":
        assert "do not differ" in report.reasons[0]
        assert report.spread < 0.2
    if kind == "level":
        assert report.spread == pytest.approx(1.5, rel=0.25)
        assert report.table["level"].to_numpy() == pytest.approx([-1.5, 0.0, 1.5], abs=0.5)
        # A model of the two others is their middle: -0.75, 0 or 0.75 away on the other side.
        assert report.table["unseen"].to_numpy() == pytest.approx([-2.25, 0.0, 2.25], abs=0.75)
        assert report.unseen == pytest.approx(np.sqrt((report.table["unseen"] ** 2).mean()))


def test_a_direction_that_is_known_names_a_set():
    X, y, place = made("level")
    labels = np.array(["no", "yes"])[y]
    report = shift_report(X, labels, place, direction="yes", random_state=0)
    assert isinstance(report.ambiguity, ClassShift)
    low, high = report.ambiguity.between
    assert (low, report.ambiguity.direction) == (0.0, "yes")
    assert high == pytest.approx(2.0 * report.unseen, rel=0.05)
    assert report.recommendation == repr(report.ambiguity)
    alike = shift_report(*made("none"), direction=1, random_state=0)
    assert alike.ambiguity is None  # whatever spread chance shows
    assert any("Give the range yourself" in line for line in alike.reasons)


def test_units_order_and_names_do_not_matter():
    X, y, place = made("level", regression=True)
    first = shift_report(X, y, place, random_state=0)
    other = shift_report(X * [1e-6, 1e6] + 3.0, 5.0 + 1e6 * y, place, random_state=0)
    gains = first.differences["gain"].to_numpy()
    assert other.differences["gain"].to_numpy() == pytest.approx(gains, abs=1e-6)
    assert other.spread == pytest.approx(1e6 * first.spread, rel=1e-6)
    again = shift_report(X, y, np.array(["u", "v", "w"])[place], random_state=0)
    assert again.differences.equals(first.differences)
    assert again.reach.equals(first.reach)


def test_several_classes_many_rows_and_small_places():
    X, y, place = made("level", regression=True)
    three = np.digitize(y, [-1.0, 1.0])
    report = shift_report(pd.DataFrame(X, columns=["a", "b"]), three, place, random_state=0)
    assert differs(report)["y given x: level"]
    assert set(report.table["of"]) <= {0, 1, 2}
    assert list(report.reach["set"]).count("ClassShift") == 2
    # A place of one row, and one of one class: their levels are finite.
    alone = np.where(np.arange(N) == 5, 7, place)
    two = np.where(place == 0, 0, y > 0).astype(int)
    report = shift_report(X[:300], two[:300], alone[:300], random_state=0)
    assert any("fewer than 10 rows" in line for line in report.reasons)
    assert report.table["rows"].tolist()[-1] == 1
    assert np.isfinite(report.table[["level", "level_se"]]).all(axis=None)
    assert shift_report(X, y, place, max_rows=200, random_state=0).rows == 200


def test_forms_for_people_and_programs(tmp_path):
    X, y, place = made("level")
    report = shift_report(X, y, np.array(["<a>", "b", "c"])[place], random_state=0)
    text = report._repr_html_()
    assert "&lt;a&gt;" in text
    assert "<a>" not in text
    assert text.count("none of these") == 1
    read = json.loads(report.to_json(tmp_path / "report.json"))
    assert read == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read["recommendation"] == "none of these"
    assert read["ambiguity"] is None
    assert [row["aspect"] for row in read["differences"]] == list(report.differences["aspect"])
    assert math.isclose(read["spread"], report.spread)
    assert repr(pickle.loads(pickle.dumps(report))) == repr(report)
    assert "none of these" in repr(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": np.zeros(N)}, "one environment"),
        ({"groups": None}, "needs groups="),
        ({"groups": [None, "a"] * (N // 2)}, r"groups\[0\] is missing"),
        ({"groups": np.array([1, "a"] * (N // 2), dtype=object)}, "no order"),
        ({"groups": np.arange(N - 1)}, "rows: give one of each"),
        ({"y": np.zeros(N, dtype=int)}, "1 class"),
        ({"y": np.full(N, np.nan)}, "NaN or infinity"),
        ({"y": np.arange(N) / 7, "task": "classification"}, 'task="regression"'),
        ({"y": np.zeros((N, 2))}, "a class or a number for each row"),
        ({"X": np.ones((N, 2))}, "constant"),
        ({"direction": "maybe"}, "names no class"),
        ({"direction": 1, "task": "regression"}, "is about classes"),
        ({"task": "ranking"}, "choose one of these"),
        ({"max_rows": 3}, "100 or more"),
    ],
)
def test_bad_input_is_named(change, words):
    X, y, place = made("none")
    given = {"X": X, "y": y, "groups": place, **change}
    with pytest.raises(InvalidDataError, match=words):
        shift_report(given.pop("X"), given.pop("y"), given.pop("groups"), **given)


def test_environments_of_one_class_are_said_to_be_no_measurement():
    X, y, _ = made("none")
    place = np.where(y == 1, np.arange(N) % 2, 1 + np.arange(N) % 2)  # 0: ones, 2: noughts
    reasons = shift_report(X, y, place, random_state=0).reasons
    assert any(text.startswith("All rows of 2 of the environments, such as 0") for text in reasons)
    assert not any("one class" in text for text in shift_report(*made("level")).reasons)


@pytest.mark.parametrize("places", [2, 6])
def test_a_range_from_a_few_environments_is_an_order_of_magnitude(places):
    rng = np.random.default_rng(0)
    place = rng.integers(0, places, N)
    X = rng.normal(size=(N, 2))
    y = (X[:, 0] + np.linspace(-2, 2, places)[place] + rng.logistic(size=N) > 0).astype(int)
    report = shift_report(X, y, place, direction=1, random_state=0)
    said = f"an order of magnitude, as {places} environments" in report.reasons[-1]
    assert said == (places == 2)
    assert isinstance(report.ambiguity, ClassShift)
