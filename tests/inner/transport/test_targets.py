"""Regressions whose targets move: the worst case is that of the certificate, row by row."""

import numpy as np
import pytest

import drojko
from drojko import DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.exceptions import UnsupportedError

LOSSES = {
    "squared": lambda r: r**2,
    "absolute": np.abs,
    "huber": lambda r: np.where(np.abs(r) < 1.35, 0.5 * r**2, 1.35 * (np.abs(r) - 0.675)),
}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    return X, X @ [1.0, 0.5] + 0.3 * rng.normal(size=60)


def risk(model, X, y, loss):
    return LOSSES[loss](model.predict(X) - y)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "settings",
    [
        {"radius": 0.3},
        {"penalty": 5.0, "weights": [1.0, 4.0]},
        {"radius": 0.5, "immutable": [0, 1]},
    ],
    ids=["ball", "penalty", "targets alone"],
)
def test_images_attain_risk_and_cost_of_the_certificate(rows, loss, settings, tmp_path):
    X, y = rows
    ball = Wasserstein(label_cost=2.0, **settings)
    model = DRORegressor(ball, loss=loss, reference="empirical").fit(X, y)
    model.save(tmp_path / "model.drojko")
    again = drojko.load(tmp_path / "model.drojko")
    for worst in (model.worst_case_, again.worst_case_):
        x, image, before, after, mass = worst._moved
        found = model.certificate_
        assert mass @ risk(model, image, after, loss) == pytest.approx(found.worst_case_risk)
        weights = np.asarray(settings.get("weights", [1.0, 1.0]))
        cost = (image - x) ** 2 @ weights + 2.0 * (after - before) ** 2
        assert mass @ cost == pytest.approx(found.transport_cost)
        table = worst.displacement().set_index("feature")
        assert table["share"].sum() == pytest.approx(1.0)
        assert table.loc["target", "share"] == pytest.approx(
            2.0 * mass @ (after - before) ** 2 / found.transport_cost
        )
        if "immutable" in settings:
            assert (image == x).all()
            assert table.loc["target", "share"] == 1.0


def test_no_row_could_move_to_a_worse_place_at_that_price(rows):
    """Loss minus price times cost, on a grid of moves of x and y."""
    X, y = rows
    model = DRORegressor(Wasserstein(penalty=5.0, label_cost=2.0), reference="empirical").fit(X, y)
    x, image, before, after, _ = model.worst_case_._moved

    def worth(z, target):
        cost = ((z - x) ** 2).sum(1) + 2.0 * (target - before) ** 2
        return risk(model, z, target, "squared") - 5.0 * cost

    reached = worth(image, after)
    for a in np.linspace(-0.3, 0.3, 5):
        for b in np.linspace(-0.3, 0.3, 5):
            for c in np.linspace(-0.3, 0.3, 5):
                assert (worth(x + np.array([a, b]), before + c) <= reached + 1e-9).all()


def test_draws_have_the_risk_and_no_density(rows):
    X, y = rows
    model = DRORegressor(Wasserstein(radius=0.3, label_cost=2.0), reference="empirical").fit(X, y)
    Z, targets = model.worst_case_.sample(4000, random_state=0)
    losses = risk(model, Z, targets, "squared")
    error = losses.std() / np.sqrt(4000)
    assert abs(losses.mean() - model.certificate_.worst_case_risk) < 4 * error
    assert model.worst_case_.transport(X[:3], y[:3]) == pytest.approx(
        model.worst_case_._moved[1][:3]
    )
    with pytest.raises(UnsupportedError, match="targets move"):
        model.worst_case_.log_prob(X, y)
