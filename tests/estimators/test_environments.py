"""The size of a set from left-out environments."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, DRORegressor, select_radius
from drojko.ambiguity import KL, CVaR, Group, Wasserstein
from drojko.exceptions import InvalidDataError


@pytest.fixture(scope="module")
def steep():
    """Environments in which a second column follows the target, each with a sign of its own."""
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c", "d", "e", "f"], 30)
    sign = np.repeat([3.0, -2.0, 2.5, 2.0, -1.0, 1.5], 30)
    x = rng.normal(size=180)
    y = x + rng.normal(size=180)
    return np.column_stack([x, 0.3 * sign * y + rng.normal(size=180)]), y, groups


def ridge():
    return DRORegressor(Wasserstein(radius=0.1), reference="empirical")


def test_the_table_is_what_leaving_one_out_by_hand_gives(steep):
    X, y, groups = steep
    found = select_radius(ridge(), X, y, method="environments", radii=[0.0, 0.3], groups=groups)
    risks = np.empty((6, 2))
    for e, name in enumerate("abcdef"):
        out = groups == name
        for j, radius in enumerate([0.0, 0.3]):
            model = ridge().set_params(ambiguity__radius=radius).fit(X[~out], y[~out])
            risks[e, j] = np.mean((model.predict(X[out]) - y[out]) ** 2)
    table = found.table
    assert table["mean_risk"].to_numpy() == pytest.approx(risks.mean(0), rel=1e-4)
    assert table["worst_risk"].to_numpy() == pytest.approx(risks.max(0), rel=1e-4)
    assert table["worst_environment"].tolist() == ["abcdef"[i] for i in risks.argmax(0)]
    gain = risks[:, 0] - risks[:, 1]
    assert table["gain"][1] == pytest.approx(gain.mean(), rel=1e-3)
    assert table["gain_se"][1] == pytest.approx(gain.std(ddof=1) / np.sqrt(6), rel=1e-3)
    assert (table["gain"][0], table["gain_se"][0]) == (0.0, 0.0)
    plain = LinearRegression()
    out = groups == "a"
    first = np.mean((plain.fit(X[~out], y[~out]).predict(X[out]) - y[out]) ** 2)
    assert risks[0, 0] == pytest.approx(first, rel=1e-4)


def test_candidates_reach_almost_none_and_none_at_all(steep):
    X, y, groups = steep
    usual = select_radius(ridge(), X, y, random_state=0).table["radius"]
    found = select_radius(ridge(), X, y, method="environments", groups=groups)
    radii = found.table["radius"].to_numpy()
    assert radii[0] == 0.0
    assert len(radii) == len(usual) + 3
    assert radii[1] == pytest.approx(0.03 * usual[1], rel=1e-2)
    given = select_radius(ridge(), X, y, method="environments", radii=[0.1], groups=groups)
    assert given.table["radius"].tolist() == [0.0, 0.1]


def test_candidates_of_a_tail_approach_one(steep):
    X, y, groups = steep
    model = DRORegressor(CVaR(alpha=0.5), reference="empirical")
    found = select_radius(model, X, y, method="environments", groups=groups)
    alphas = found.table["alpha"].to_numpy()
    assert alphas.max() == 1.0
    assert 0.99 < np.sort(alphas)[-2] < 1.0


def test_a_size_that_helps_is_called_so_and_one_that_does_not_is_not(steep):
    groups = steep[2]
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(60, 40))  # as many columns as rows, nearly: plain training overfits
    noisy = wide[:, 0] + rng.normal(size=60)
    found = select_radius(ridge(), wide, noisy, method="environments", groups=groups[::3])
    assert found.radius > 0
    assert "A set helps" in found.message
    calm = rng.normal(size=(180, 2))
    target = calm @ [1.0, 2.0] + 0.1 * rng.normal(size=180)
    same = select_radius(ridge(), calm, target, method="environments", groups=groups)
    assert "No size helps" in same.message
    by = {"method": "environments", "rule": "clear"}
    clear = select_radius(ridge(), wide, noisy, groups=groups[::3], **by)
    assert clear.radius == found.radius
    none = select_radius(ridge(), calm, target, groups=groups, **by)
    assert none.radius == 0.0


def test_the_capped_rule_looks_at_the_worst_environment(steep):
    X, y, groups = steep
    radii = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4]
    settings = {"method": "environments", "radii": radii, "groups": groups}
    table = select_radius(ridge(), X, y, **settings).table
    capped = select_radius(ridge(), X, y, rule="cap", **settings).radius
    allowed = table[table["mean_risk"] <= 1.01 * table["mean_risk"].min()]
    assert capped == allowed.loc[allowed["worst_risk"].idxmin(), "radius"]


def test_classes_pipelines_and_workers(steep):
    X, y, groups = steep
    labels = np.where(y > 0, "up", "down")
    model = make_pipeline(StandardScaler(), DROClassifier(KL(radius=0.1), reference="empirical"))
    settings = {"method": "environments", "radii": [0.0, 0.05], "groups": groups}
    one = select_radius(model, X, labels, **settings)
    two = select_radius(model, X, labels, n_jobs=2, **settings)
    assert one.table.equals(two.table)
    assert one.params == {
        "droclassifier__ambiguity__radius": one.radius,
        "droclassifier__ambiguity__penalty": None,
    }


def test_small_environments_of_one_class_are_named(steep):
    X, y, _ = steep
    groups = np.array(["rest", "more"])[np.arange(180) % 2].astype(object)
    groups[0] = "single"
    found = select_radius(ridge(), X, y, method="environments", radii=[0.1], groups=groups)
    assert "'single', have fewer than 10 rows" in found.message
    labels = (y > 0).astype(int)
    only = np.where(np.arange(180) == 0, 2, labels)
    model = DROClassifier(KL(radius=0.1), reference="empirical")
    with pytest.raises(InvalidDataError, match="'single' no row is left of the class 2"):
        select_radius(model, X, only, method="environments", radii=[0.1], groups=groups)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"groups": None}, "needs groups="),
        ({"groups": np.zeros(180)}, "one environment"),
        ({"groups": np.ones((180, 2))}, r"shape \(n,\)"),
        ({"rule": "1se"}, "rule"),
    ],
)
def test_bad_settings(settings, words, steep):
    X, y, groups = steep
    settings = {"groups": groups, **settings}
    with pytest.raises(InvalidDataError, match=words):
        select_radius(ridge(), X, y, method="environments", **settings)


def test_cross_validation_names_the_set_it_inherited_and_warns_of_lone_groups(steep):
    X, y, groups = steep
    said = select_radius(ridge(), X, y, radii=[0.1], random_state=0).message
    assert "Wasserstein(radius=0.1), the estimator's own set (at=)," in said
    assert (
        "own set" not in select_radius(ridge(), X, y, radii=[0.1], at=0.2, random_state=0).message
    )
    with pytest.warns(UserWarning, match="one group only"):
        select_radius(ridge(), X, y, radii=[0.1], at=Group(), cv=GroupKFold(6), groups=groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_radius(ridge(), X, y, radii=[0.1], at=Group(), cv=2, groups=groups, random_state=0)
