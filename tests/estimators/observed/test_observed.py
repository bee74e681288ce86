"""How far apart two samples are: planted moves, and nothing where nothing moved."""

import numpy as np
import pandas as pd
import pytest

from drojko import observed_shift
from drojko.ambiguity import KL, Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError

N = 240


def samples(seed, d=2, n=N):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d))


@pytest.mark.parametrize("order", [1, 2])
def test_a_move_of_the_mean_is_its_length(order):
    """In either order a translation costs its length; weights count as in the set."""
    found = []
    for seed in range(6):
        old, new = samples(seed)
        one = observed_shift(
            old,
            new + np.array([1.5, 0.0]),
            ambiguity=Wasserstein(radius=1.0, order=order, weights=[4.0, 1.0]),
            random_state=0,
        )
        found.append(one.distance)
        assert one.interval[0] < 3.0 < one.interval[1]
        assert one.interval[0] <= one.distance <= one.interval[1]
        assert one.table.column[0] == "x0"
        assert one.table["share"][0] > 0.9
        assert one.table.distance[0] == pytest.approx(3.0, rel=0.2)
    assert np.mean(found) == pytest.approx(3.0, abs=3 * np.std(found) / 6**0.5)


def test_a_change_of_scale():
    """W2 between N(0, 1) and N(0, s^2) is |s - 1| (Gelbrich 1990)."""
    found = [
        observed_shift(old, 2.0 * new, random_state=0).distance
        for old, new in (samples(seed, d=1) for seed in range(8))
    ]
    assert np.mean(found) == pytest.approx(1.0, abs=3 * np.std(found) / 8**0.5)


def test_no_shift_is_seen_where_there_is_none():
    seen = [observed_shift(*samples(seed, d=5), random_state=0) for seed in range(10)]
    assert sum(one.interval[0] == 0.0 for one in seen) >= 8  # 95 % each
    assert all("No shift beyond chance" in one.message for one in seen if one.interval[0] == 0.0)
    assert np.mean([one.distance for one in seen]) < 0.5 * np.mean([one.noise for one in seen])


def test_the_same_rows_in_another_order():
    X, _ = samples(0)
    one = observed_shift(X, X[::-1], random_state=0)
    assert one.interval[0] == 0.0


def test_units_of_columns_scale_out():
    old, new = samples(1)
    new = new + np.array([0.5, -1.0])
    one = observed_shift(old, new, random_state=3)
    scaled = Wasserstein(radius=1.0, weights=[1e-6, 1e6])
    other = observed_shift(old * [1e3, 1e-3], new * [1e3, 1e-3], ambiguity=scaled, random_state=3)
    assert other.distance == pytest.approx(one.distance, rel=1e-6)
    assert other.noise == pytest.approx(one.noise, rel=1e-6)


def test_far_from_the_origin_no_digits_are_lost():
    old, new = samples(1)
    one = observed_shift(old, new + np.array([1.0, 0.0]), random_state=3)
    other = observed_shift(old + 1e7, new + 1e7 + np.array([1.0, 0.0]), random_state=3)
    assert other.distance == pytest.approx(one.distance, rel=1e-5)


def test_classes_are_compared_within_and_their_masses_told():
    old, new = samples(2)
    y_old = (old[:, 0] > 0).astype(int)
    y_new = (new[:, 0] > -1).astype(int)  # other shares, and another law within
    one = observed_shift(old, new, y_old=y_old, y_new=y_new, random_state=0)
    rows = one.table.set_index("column")
    assert rows.loc["y = 1", "mean_old"] == pytest.approx(y_old.mean())
    assert rows.loc["y = 1", "mean_new"] == pytest.approx(y_new.mean())
    assert one.interval[0] > 0.0  # though X has not moved at all
    assert observed_shift(old, new, random_state=0).interval[0] == 0.0


def test_classes_of_many_rows_and_of_few():
    """Covariances of one, spreads of columns of the other."""
    old, new = samples(7, d=4)
    y_old, y_new = np.arange(N) < 20, np.arange(N) < 12
    move = np.array([1.0, 0.0, 0.0, 0.0])
    one = observed_shift(old, new + move, y_old=y_old, y_new=y_new, random_state=0)
    assert one.interval[0] < 1.0 < one.interval[1]


def test_with_a_label_cost_rows_change_class():
    old, new = samples(3)
    y_old, y_new = np.zeros(N), np.arange(N) % 4 == 0
    ball = Wasserstein(radius=1.0, label_cost=0.01)
    one = observed_shift(old, new, ambiguity=ball, y_old=y_old, y_new=y_new, random_state=0)
    # a quarter of the rows at .01 each
    assert one.distance**2 == pytest.approx(0.0025, abs=0.05)


def test_columns_that_cannot_move_are_named():
    old, new = samples(4)
    frames = [pd.DataFrame(X, columns=["age", "income"]) for X in (old, new + np.array([5.0, 0.0]))]
    one = observed_shift(*frames, ambiguity=Wasserstein(1.0, immutable=["age"]), random_state=0)
    assert one.interval[0] == 0.0
    assert "no radius allows for: age" in one.message
    assert "age" in one._repr_html_()
    assert "ObservedShift" in repr(one)


def test_the_same_seed_gives_the_same_answer_and_inputs_stay():
    old, new = samples(5)
    before = old.copy(), new.copy()
    one, two = (observed_shift(old, new, random_state=7) for _ in range(2))
    assert one.distance == two.distance
    assert one.interval == two.interval
    assert np.array_equal(old, before[0])
    assert np.array_equal(new, before[1])


def test_bad_input():
    old, new = samples(6)
    with pytest.raises(UnsupportedError, match="Wasserstein"):
        observed_shift(old, new, ambiguity=KL(radius=0.1))
    with pytest.raises(ValueError, match="features"):
        observed_shift(old, new[:, :1])
    with pytest.raises(ValueError, match="minimum of 8"):
        observed_shift(old[:5], new)
    with pytest.raises(InvalidDataError, match="both y_old and y_new"):
        observed_shift(old, new, y_old=np.zeros(N))
    labels = np.zeros(N), np.arange(N) < 3
    with pytest.raises(InvalidDataError, match="too few"):
        observed_shift(old, new, y_old=labels[0], y_new=labels[1])
    with pytest.raises(InvalidDataError, match="classes"):
        observed_shift(old, new, y_old=old[:, 0], y_new=new[:, 0])
    with pytest.raises(InvalidDataError, match="max_rows"):
        observed_shift(old, new, max_rows=1)
    both = np.arange(N) % 2
    for odd, match in (
        (both[:-1], r"y_new has shape \(239,\)"),
        (both[:, None], r"y_new has shape \(240, 1\)"),
        (np.where(both == 1, 1.0, np.nan), "y_new holds missing values"),
        (np.array([None, *both[1:]], dtype=object), "y_new holds missing values"),
        (both.astype(str), "words and numbers"),
    ):
        with pytest.raises(InvalidDataError, match=match):
            observed_shift(old, new, y_old=both, y_new=odd)


def test_columns_of_tables_are_matched_by_name():
    old, new = samples(7, d=3)
    new = new * [1.0, 2.0, 3.0]
    tables = [pd.DataFrame(X, columns=list("abc")) for X in (old, new)]
    known = observed_shift(*tables, random_state=0)
    turned = observed_shift(tables[0], tables[1][["c", "a", "b"]], random_state=0)
    assert turned.distance == known.distance
    pd.testing.assert_frame_equal(turned.table, known.table)
    with pytest.raises(InvalidDataError, match="only one has z"):
        observed_shift(tables[0], tables[1].assign(z=0.0))


@pytest.mark.parametrize("scale", [1e-160, 1e-8, 1e8, 1e150])
@pytest.mark.parametrize("order", [1, 2])
def test_units_as_small_or_large_as_numbers_are(order, scale):
    old, new = samples(8)
    new = new + 0.4
    ball = Wasserstein(radius=1.0, order=order)
    known = observed_shift(old, new, ambiguity=ball, random_state=0)
    found = observed_shift(scale * old, scale * new, ambiguity=ball, random_state=0)
    assert found.distance == pytest.approx(scale * known.distance, rel=1e-9)
    assert found.interval == pytest.approx(tuple(scale * v for v in known.interval), rel=1e-9)
    assert known.distance > 0.0
