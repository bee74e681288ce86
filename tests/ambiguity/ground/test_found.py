"""What "auto" finds in rows, and the price of a swap."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from drojko import DROClassifier, load
from drojko.ambiguity import KL, Wasserstein
from drojko.ambiguity.ground.found import kinds_of
from drojko.exceptions import InvalidDataError, UnsupportedError

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "x": RNG.normal(size=80),
        "kind": RNG.choice(list("abc"), 80),
        "flag": RNG.random(80) < 0.4,
        "count": RNG.integers(0, 9, 80),
    }
)
Y = (TABLE.x + (TABLE.kind == "a") + 0.5 * RNG.normal(size=80) > 0.4).astype(int).to_numpy()
AUTO = Wasserstein(0.3, categorical_features="auto", swap_cost="auto")


def encoder(**how):
    return make_column_transformer(
        (OneHotEncoder(sparse_output=False, **how), ["kind"]), (StandardScaler(), ["x"]),
        remainder="passthrough",
    )  # fmt: skip


def test_groups_come_from_values_and_with_names_from_dropped_ones():
    X = encoder().fit_transform(TABLE).astype(float)
    found = kinds_of(X)
    assert (found.groups, found.codes, found.whole) == ([[0, 1, 2]], [4], [5])
    few = encoder(drop="first").set_output(transform="pandas")
    frame = few.fit_transform(TABLE)
    named = kinds_of(frame.to_numpy(float), frame.columns)
    assert named.groups == [[0, 1]]
    nameless = kinds_of(frame.to_numpy(float))
    assert (nameless.groups, nameless.codes) == ([], [0, 1, 3])


def test_two_rows_are_as_far_apart_in_a_category_as_in_a_number():
    X = encoder().fit_transform(TABLE).astype(float)
    prices = AUTO.settled(X).swap_cost
    kinds = X[:, :3].argmax(1)
    apart = (kinds[:, None] != kinds[None]).mean() * prices[0]
    number = ((X[:, None, 3] - X[None, :, 3]) ** 2).mean()
    assert apart == pytest.approx(number, rel=1e-9)


@pytest.mark.parametrize("frames", [False, True])
def test_an_estimator_behind_a_column_transformer(frames, tmp_path):
    steps = encoder().set_output(transform="pandas") if frames else encoder()
    model = make_pipeline(steps, DROClassifier(AUTO, reference="empirical", random_state=0))
    fitted = model.fit(TABLE, Y)[-1]
    X = np.asarray(model[:-1].transform(TABLE), dtype=float)
    given = AUTO.settled(X)
    by_hand = Wasserstein(
        0.3, categorical_features=[[0, 1, 2], 4], immutable=[5], swap_cost=given.swap_cost
    )
    same = DROClassifier(by_hand, reference="empirical", random_state=0).fit(X, Y)
    np.testing.assert_allclose(fitted.coef_, same.coef_, atol=1e-9)
    x, image, _, mass = fitted.worst_case_.pairs()
    np.testing.assert_array_equal(image[mass > 0][:, 5], x[mass > 0][:, 5])
    assert ((image[:, :3] == 0) | (image[:, :3] == 1)).all()
    # Of new rows, in which a category is missing, the kinds of the fit are asked.
    rows = TABLE.kind != "c"
    new = model[:-1].transform(TABLE[rows])
    before = fitted.robust_certificate(new, Y[rows]).upper
    assert before == pytest.approx(fitted.robust_certificate(new, Y[rows], by_hand).upper, rel=1e-9)
    fitted.save(tmp_path / "model.drojko")
    again = load(tmp_path / "model.drojko")
    assert again.robust_certificate(new, Y[rows]).upper == pytest.approx(before, rel=1e-12)


def test_nothing_is_left_open_for_other_sets_and_without_rows():
    X = encoder().fit_transform(TABLE).astype(float)
    plain = Wasserstein(0.1)
    assert plain.settled(X) is plain
    assert KL(0.1).settled(X).radius == 0.1
    with pytest.raises(InvalidDataError, match="follows from rows"):
        AUTO.validate(6)
    with pytest.raises(UnsupportedError, match="looks at an array"):
        AUTO.settled("no array")


def test_the_target_among_the_features_is_warned_of_by_name():
    frame = pd.DataFrame({"x": TABLE.x, "answer": 5 - 2 * Y})
    with pytest.warns(UserWarning, match="target is among the features: 'answer'"):
        DROClassifier(reference="empirical").fit(frame, Y)
