"""Audits of models with gradients: closed forms, limits, sandwiches, invariances."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from drojko import DROClassifier, audit
from drojko.ambiguity import MMD, Group, Sinkhorn, Wasserstein
from drojko.auditing.reporting.report import COLUMNS
from drojko.exceptions import InvalidDataError, UnsupportedError

RADII = [0.0, 0.2, 0.5]


def sandwiched(table):
    assert (table.worst_case_risk <= table.upper_bound * (1 + 1e-9) + 1e-12).all()
    assert (np.diff(table.worst_case_risk) >= 0).all()
    assert (np.diff(table.upper_bound) >= -1e-12).all()


def test_the_table_is_the_contract(linear, iris):
    report = audit(linear, *iris, Wasserstein(), radii=RADII, random_state=0)
    assert list(report.table.columns) == ["radius", *COLUMNS]
    assert report.table.radius.tolist() == RADII
    first = report.table.iloc[0]
    p = linear.predict_proba(iris[0])
    assert first.nominal_risk == pytest.approx(log_loss(iris[1], p), rel=1e-9)
    assert first.worst_case_risk == first.nominal_risk == first.upper_bound
    assert first.nominal_accuracy == accuracy_score(iris[1], linear.predict(iris[0]))
    assert first.nominal_auc == pytest.approx(roc_auc_score(iris[1], p[:, 1]))
    sandwiched(report.table)


def test_linear_models_are_exact_and_agree_with_the_estimators(iris):
    X, y = iris
    model = DROClassifier(Wasserstein(0.2), random_state=0).fit(X, y)
    report = audit(model, X, y, Wasserstein(), radii=RADII, random_state=0)
    for radius, row in report.table.set_index("radius").iterrows():
        exact = model.robust_certificate(X, y, Wasserstein(radius))
        assert row.worst_case_risk == pytest.approx(exact.upper, rel=1e-8)
        assert row.upper_bound == pytest.approx(exact.upper, rel=1e-8)
        assert row.transport_cost == pytest.approx(radius**2, rel=1e-6, abs=1e-15)


def test_squared_loss_has_its_closed_form(rng):
    """(sqrt(MSE) + radius * norm)^2."""
    X = rng.normal(size=(60, 3))
    y = X @ [1.0, -2.0, 0.5] + rng.normal(size=60)
    model = LinearRegression().fit(X, y)
    table = audit(model, X, y, Wasserstein(), radii=[0.1, 1.0], random_state=0).table
    rmse, norm = np.sqrt(np.mean((model.predict(X) - y) ** 2)), np.linalg.norm(model.coef_)
    expected = (rmse + np.array([0.1, 1.0]) * norm) ** 2
    np.testing.assert_allclose(table.worst_case_risk, expected, rtol=1e-7)
    np.testing.assert_allclose(table.upper_bound, expected, rtol=1e-7)
    assert table.worst_case_accuracy.isna().all()


@pytest.mark.promise(5)
def test_a_planted_worst_case_is_found(rng):
    """A loss that is linear in x: mean + radius * norm, every row moved along the slope."""
    X, slope = rng.normal(size=(50, 2)), np.array([3.0, 4.0])
    net = torch.nn.Sequential(torch.nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(slope)[None])
        net[0].bias.zero_()
    y = rng.normal(size=50)
    report = audit(net, X, y, Wasserstein(), radii=[2.0], loss=lambda f, y: f, random_state=0)
    # Ascent on a linear loss is exact at any penalty; the mixture spends the budget exactly.
    assert report.table.worst_case_risk[0] == pytest.approx((X @ slope).mean() + 10.0, rel=1e-6)
    worst = report.worst_case()
    np.testing.assert_allclose(worst.after - worst.before, np.tile(0.4 * slope, (50, 1)), rtol=1e-3)
    assert report.findings == []


def test_the_gain_is_exact_where_it_is_proven(network, moons):
    """Above the threshold the bound by strong concavity is tight: it proves the gain."""
    table = audit(network, *moons, Wasserstein(), radii=[0.02, 0.1], random_state=0).table
    assert set(table.proof) <= {"strong-concavity", "lipschitz", "branch-and-bound"}
    gain = table.worst_case_risk - table.nominal_risk
    assert (gain >= 0.99 * (table.upper_bound - table.nominal_risk)).all()
    assert (table.ascent_risk <= table.worst_case_risk).all()
    assert (table.random_noise_risk < table.worst_case_risk).all()
    sandwiched(table)


def test_penalty_form(network, moons):
    one = audit(network, *moons, Wasserstein(penalty=2.0), random_state=0)
    row, certificate = one.table.iloc[0], one.certificate()
    assert one.table.columns[0] == "penalty"
    assert row.penalty == 2.0
    value = row.worst_case_risk - 2.0 * row.transport_cost
    assert certificate.lower == pytest.approx(value, rel=1e-12)
    assert certificate.lower <= certificate.upper
    radius = np.sqrt(row.transport_cost)
    ball = audit(network, *moons, Wasserstein(), radii=[radius], random_state=0).table.iloc[0]
    assert ball.worst_case_risk == pytest.approx(row.worst_case_risk, rel=1e-4)
    with pytest.raises(InvalidDataError, match="penalty"):
        one.worst_case(1.0)


def test_weights_are_copies_and_rows_have_no_order(network, moons):
    X, y = moons
    X, y = X[:40], y[:40]
    weight = np.arange(40) % 3
    heavy = audit(
        network, X, y, Wasserstein(), radii=[0.1], sample_weight=weight, random_state=0
    ).table
    copies = np.repeat(np.arange(40), weight)[::-1]
    copied = audit(network, X[copies], y[copies], Wasserstein(), radii=[0.1], random_state=0).table
    names = ["nominal_risk", "worst_case_risk", "upper_bound", "nominal_auc", "nominal_accuracy"]
    np.testing.assert_allclose(heavy[names], copied[names], rtol=1e-5)


def test_standard_units_are_those_of_standardised_columns(iris):
    X, y = iris
    model = LogisticRegression(C=0.1).fit(X, y)
    found = audit(model, X, y, Wasserstein(), radii=[0.3], scale="standard", random_state=0).table
    weights = (1.0 / X.to_numpy().var(axis=0)).tolist()
    same = audit(model, X, y, Wasserstein(weights=weights), radii=[0.3], random_state=0).table
    assert found.worst_case_risk[0] == pytest.approx(same.worst_case_risk[0], rel=1e-9)
    with pytest.raises(InvalidDataError, match="scale"):
        audit(model, X, y, Wasserstein(), radii=[0.3], scale="robust")


def test_nothing_is_changed(network, moons):
    before = [p.clone() for p in network.parameters()]
    X, y = moons[0].copy(), moons[1].copy()
    network.train()
    state = torch.get_rng_state()
    audit(network, X, y, Wasserstein(), radii=[0.1], random_state=0)
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters()))
    np.testing.assert_array_equal(X, moons[0])


def test_a_seed_is_a_result(network, moons):
    tables = [
        audit(network, *moons, Wasserstein(), radii=[0.3, 1.0], random_state=5).table
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_bounds_and_immutable_columns_hold(network, moons):
    X, y = moons
    ball = Wasserstein(bounds=(float(X.min()), float(X.max())), immutable=[0])
    report = audit(network, X, y, ball, radii=[0.5], random_state=0)
    worst = report.worst_case()
    np.testing.assert_array_equal(worst.after[:, 0], worst.before[:, 0])
    assert worst.after.min() >= X.min() - 1e-12
    assert worst.after.max() <= X.max() + 1e-12
    free = audit(network, X, y, Wasserstein(), radii=[0.5], random_state=0)
    assert free.table.worst_case_risk[0] >= report.table.worst_case_risk[0]


def test_a_continuous_reference_has_a_standard_error(linear, iris):
    report = audit(
        linear, *iris, Wasserstein(), radii=[0.0, 0.2], reference="gaussian", random_state=0
    )
    assert report.certificate().standard_error > 0
    sandwiched(report.table)
    assert report.about["rows"] >= 5000


def test_other_sets_go_through_the_estimators(linear, iris):
    X, y = iris
    groups = (X.iloc[:, 0] > 5.5).to_numpy()
    for own, radii in (
        (Wasserstein(order=1), [0.0, 0.2]),
        (Sinkhorn(0.01), [0.05]),
        (MMD(), [0.1]),
    ):
        report = audit(linear, X, y, own, radii=radii, random_state=0)
        assert (report.table.worst_case_risk <= report.table.upper_bound * (1 + 1e-9)).all()
        assert report.table.worst_case_risk.iloc[-1] > report.table.nominal_risk.iloc[-1]
    mixed = audit(linear, X, y, Group(), radii=[0.5], groups=groups, random_state=0)
    assert mixed.table.worst_case_risk[0] >= mixed.table.nominal_risk[0]


def test_sets_that_need_gradients_say_what_does_not(forest, moons):
    with pytest.raises(UnsupportedError, match="without gradients: Wasserstein, KL"):
        audit(forest, *moons, Sinkhorn(0.1), radii=[0.1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": None}, "no size"),
        ({"radii": []}, "shape"),
        ({"radii": [-1.0]}, "non-negative"),
        ({"radii": ["a"]}, "numbers"),
        ({"y": np.full(100, 7)}, "does not know"),
        ({"y": np.zeros(3)}, "3"),
        ({"sample_weight": np.zeros(100)}, "not all zero"),
        ({"ambiguity": 0.1}, "ambiguity set"),
        ({"images": (3, 3)}, "product"),
    ],
)
def test_errors_say_what_to_do(linear, iris, change, message):
    given = {"X": iris[0], "y": iris[1], "ambiguity": Wasserstein(), "radii": [0.1], **change}
    with pytest.raises(InvalidDataError, match=message):
        audit(linear, **given)


def test_columns_must_be_those_of_the_model(linear, iris):
    X, y = iris
    with pytest.raises((InvalidDataError, ValueError)):
        audit(linear, X.iloc[:, :3], y, Wasserstein(), radii=[0.1])
    with pytest.raises((InvalidDataError, ValueError)):
        audit(linear, X.rename(columns={X.columns[0]: "other"}), y, Wasserstein(), radii=[0.1])
    with pytest.raises(InvalidDataError, match="shape"):
        audit(linear, X[:0], y[:0], Wasserstein(), radii=[0.1])
    with pytest.raises(InvalidDataError, match="predict"):
        audit(object(), X, y, Wasserstein(), radii=[0.1])
