"""The worst case that an estimator shows is the one that its certificate is about."""

import numpy as np
import pytest

from drojko.exceptions import UnsupportedError
from tests.estimators._cases import (
    KINDS,
    ball,
    binary,
    fitted,
    frame,
    linear,
    losses,
    mlp,
    regression,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", KINDS)
def test_samples_attain_the_certified_risk(name):
    """Mean loss of a large sample, by public predictions, against worst_case_risk."""
    model, _, _ = fitted(name)
    c = model.certificate_
    Z, labels = model.worst_case_.sample(2000, random_state=0)
    values = losses(model, Z, labels)
    error = np.hypot(values.std() / np.sqrt(len(values)), c.standard_error)
    assert values.mean() == pytest.approx(c.worst_case_risk, abs=5 * error + 1e-9)
    assert model.worst_case_.risk() == c.worst_case_risk
    assert c.worst_case_risk >= c.nominal_risk * (1 - 1e-9)


@pytest.mark.promise(3)
@pytest.mark.parametrize("name", [name for name in KINDS if "flips" not in name])
def test_the_plan_stays_within_its_budget(name):
    model, _, _ = fitted(name)
    c = model.certificate_
    x, image, _, w = model.worst_case_.pairs()
    spent = w @ ((image - x) ** 2).sum(1)
    # A sampled reference is drawn again here: the budget holds in the mean of the draws.
    slack = 1e-6 if c.standard_error == 0 else 0.1
    assert spent == pytest.approx(c.transport_cost, rel=slack)
    if c.radius is not None and c.standard_error == 0:
        assert spent <= c.radius**2 * (1 + 1e-6)


@pytest.mark.promise(3)
@pytest.mark.parametrize("name", ["linear", "squared", "mlp", "mlp-squared"])
def test_the_cost_is_that_of_optimal_transport(name):
    """POT's exact cost between the points and their images is no larger, and about equal."""
    ot = pytest.importorskip("ot")
    model, X, y = fitted(name)
    moved = model.worst_case_.transport(X, y)
    mass = np.full(len(X), 1.0 / len(X))
    paired = ((moved - X) ** 2).sum(1).mean()
    distance = ((X[:, None] - moved[None]) ** 2).sum(2)
    if not name.endswith("squared"):  # labels stay: rows of another class are out of reach
        distance = distance + 1e6 * (y[:, None] != y[None])
    best = ot.emd2(mass, mass, distance)
    assert best <= paired * (1 + 1e-9)
    # A gradient of a convex function pairs optimally where the penalty is above the curvature.
    if name != "mlp-squared":
        assert best == pytest.approx(paired, rel=0.05)


@pytest.mark.parametrize("name", ["linear", "mlp", "mlp-classes", "squared"])
def test_transport_raises_the_loss_of_new_rows(name, rng):
    model, X, y = fitted(name)
    new = X + 0.05 * X.std(0) * rng.normal(size=X.shape)
    moved = model.worst_case_.transport(new, y)
    before, after = losses(model, new, y), losses(model, moved, y)
    assert (after >= before - 1e-9 * (1 + np.abs(before))).all()
    assert after.mean() > before.mean()
    # A frame with the names of the fit is the same rows.
    if X.shape[1] == 4:
        # (Columns lie in another order in memory, so that sums round differently.)
        again = model.worst_case_.transport(frame(new), y)
        np.testing.assert_allclose(again, moved, rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "linear-classes", "mlp-kde", "squared"])
def test_displacement_adds_up(name):
    model, X, _ = fitted(name)
    table = model.worst_case_.displacement()
    regression_ = name == "squared"
    groups = 1 if regression_ else len(model.classes_)
    assert len(table) == groups * X.shape[1]
    assert table["share"].sum() == pytest.approx(1.0)
    assert (table["q05"] <= table["median"]).all()
    assert (table["median"] <= table["q95"]).all()
    x, image, labels, w = model.worst_case_.pairs()
    row = table.iloc[-1]
    mask = np.ones(len(w), bool) if regression_ else labels == row["class"]
    mean = np.average((image - x)[mask, -1], weights=w[mask])
    assert row["mean"] == pytest.approx(mean)


def test_to_frame_is_a_sample():
    X, y = binary()
    model = linear(radius=0.3).fit(frame(X), np.array(["p", "q"])[y])
    table = model.worst_case_.to_frame(30, random_state=3)
    Z, labels = model.worst_case_.sample(30, random_state=3)
    np.testing.assert_array_equal(table[list("abcd")].to_numpy(), Z)
    assert table["target"].tolist() == labels.tolist()
    assert table.shape == (30, 5)


@pytest.mark.parametrize("name", ["linear-gaussian", "linear-kde", "linear-mixture", "squared-kde"])
def test_densities_are_those_of_the_image(name):
    """A linear model moves all of space: every point is reached, none is -inf."""
    model, _, _ = fitted(name)
    Z, labels = model.worst_case_.sample(50, random_state=0)
    assert np.isfinite(model.worst_case_.log_prob(Z, labels)).all()


def test_the_density_integrates_to_one_on_a_line():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, 1)) + 1.5 * y[:, None]
    for estimator in (
        linear(radius=0.4, reference="gaussian", n_draws=400, random_state=0),
        mlp(radius=0.4, reference="gaussian", n_draws=200, max_iter=30),
    ):
        model = estimator.fit(X, y)
        grid = np.linspace(-8, 9, 3001)
        for label in (0, 1):
            density = np.exp(model.worst_case_.log_prob(grid[:, None], np.full(3001, label)))
            # The mixture of two plans leaves gaps of the grid's width at its jumps.
            assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=2e-2)


def test_a_density_that_does_not_exist_is_not_given():
    X, y = binary()
    with pytest.raises(UnsupportedError, match="no density; use a continuous measure"):
        fitted("linear")[0].worst_case_.log_prob(X, y)
    with pytest.raises(UnsupportedError, match="bounds"):
        fitted("linear-bounds")[0].worst_case_.log_prob(X, y)
    with pytest.raises(UnsupportedError, match="labels move"):
        fitted("mlp-flips")[0].worst_case_.log_prob(X, y)


def test_radius_zero_moves_nothing():
    X, y = binary()
    for model in (linear(radius=0.0).fit(X, y), mlp(radius=0.0).fit(X, y)):
        np.testing.assert_array_equal(model.worst_case_.transport(X, y), X)
        c = model.certificate_
        assert c.lower == c.upper == c.nominal_risk
        assert c.transport_cost == 0.0


def test_a_sample_is_seeded():
    model = fitted("mlp-kde")[0].worst_case_
    first, again = model.sample(9, random_state=4), model.sample(9, random_state=4)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(model.sample(9)[0], model.sample(9)[0])


def test_weights_of_the_cost_steer_the_displacement():
    X, y = binary()
    model = linear().set_params(ambiguity=ball(0.2, weights=[100.0, 1.0, 1.0, 1.0])).fit(X, y)
    moved = np.abs(model.worst_case_.transport(X, y) - X).mean(0)
    # Along the gradient over the weights: 100 times less for the same coefficient.
    ratio = (moved[0] / moved[3]) / np.abs(model.coef_[0, 0] / model.coef_[0, 3])
    assert ratio == pytest.approx(0.01, rel=1e-6)
    assert model.certificate_.transport_cost == pytest.approx(0.04)


def test_worst_cases_of_regression_push_residuals_apart():
    model, X, y = fitted("squared")
    moved = model.worst_case_.transport(X, y)
    r, worse = model.predict(X) - y, model.predict(moved) - y
    np.testing.assert_allclose(worse / r, (worse / r)[0], rtol=1e-8)  # all by one factor
    assert (worse / r)[0] > 1
    assert regression()[0].shape == X.shape


@pytest.mark.promise(3)
def test_rows_of_the_reference_go_where_the_certificate_has_them(tmp_path):
    """The same mean loss and cost, before a file and after; new rows are searched for."""
    from drojko import load

    X, y = binary()
    model = mlp(radius=0.4, reference="empirical", random_state=1).fit(X, y)
    certificate, worst = model.certificate_, model.worst_case_
    x, image, labels, mass = worst.pairs()
    assert mass @ losses(model, image, labels) == pytest.approx(
        certificate.worst_case_risk, rel=1e-9
    )
    assert mass @ ((image - x) ** 2).sum(1) == pytest.approx(certificate.transport_cost, rel=1e-9)
    moved = worst.transport(X, y)
    stored = {row.tobytes() for row in image}
    assert all(row.tobytes() in stored for row in moved)
    assert losses(model, moved, y).mean() == pytest.approx(certificate.worst_case_risk, rel=0.05)
    model.save(tmp_path / "model.drojko")
    again = load(tmp_path / "model.drojko").worst_case_
    np.testing.assert_array_equal(again.transport(X, y), moved)
    fresh = worst.transport(X + 1e-3, y)
    np.testing.assert_array_equal(again.transport(X + 1e-3, y), fresh)
    assert not any(row.tobytes() in stored for row in fresh)
