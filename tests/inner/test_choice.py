"""inner='auto' and inner='semidual' from the names that estimators take to their worst cases."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, ChiSquare, CVaR, Wasserstein
from drojko.exceptions import ConvergenceWarning, InvalidDataError, UnsupportedError
from drojko.inner import ICNNJKO, Importance, Pointwise, SemiDual, SemiDualWorstCase, get_inner
from drojko.inner.choice import choose_inner
from drojko.measures import Empirical


@pytest.mark.parametrize(
    ("ambiguity", "d", "sampled", "n", "exact", "kind"),
    [
        (Wasserstein(0.1), 5, False, 100, True, Pointwise),
        (Wasserstein(0.1), 5, True, 100, False, ICNNJKO),
        (Wasserstein(0.1), 500, True, 100, False, ICNNJKO),
        (KL(0.1), 5, False, 1500, False, SemiDual),
        (KL(0.1), 5, False, 0, False, ICNNJKO),
        (ChiSquare(0.1), 5, False, 20, False, ICNNJKO),
        (KL(0.1), 5, True, 500, False, ICNNJKO),
        (KL(0.1), 100, True, 500, False, Importance),
        (CVaR(alpha=0.5), 5, False, 500, False, ICNNJKO),
    ],
)
def test_choice_by_set_dimension_and_reference(ambiguity, d, sampled, n, exact, kind):
    choice = choose_inner(ambiguity, d, sampled=sampled, n_samples=n, exact_loss=exact)
    assert type(choice.inner) is kind
    assert choice.reason in str(choice)


def data(n=440):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], n // 2)
    return rng.normal(size=(n, 2)) + y[:, None], y


def test_the_choice_is_reported_and_changes_no_certificate():
    X, y = data(2400)
    settings = {"reference": "empirical", "random_state": 0}
    auto = DROClassifier(KL(radius=0.1), inner="auto", **settings).fit(X, y)
    plain = DROClassifier(KL(radius=0.1), **settings).fit(X, y)
    assert "SemiDual" in auto.certificate_.inner
    assert "auto" in str(auto.certificate_)
    assert "SemiDual" in auto.message_
    assert plain.certificate_.inner == ""
    assert auto.certificate_.upper == pytest.approx(plain.certificate_.upper, rel=1e-13)
    assert isinstance(auto.worst_case_, SemiDualWorstCase)
    assert "semidual" in repr(auto.worst_case_)


def test_worst_case_with_a_small_solver():
    X, y = data()
    inner = SemiDual(hidden=(16,), steps=3, iterations=40, batch_size=128)
    model = DROClassifier(
        ChiSquare(penalty=0.5), inner=inner, reference="empirical", random_state=0
    ).fit(X, y)
    worst = model.worst_case_
    Z, labels = worst.generate(50, random_state=0)
    assert Z.shape == (50, 2)
    assert set(labels) <= {0, 1}
    moved = worst.transport(X[:5], y[:5])
    assert moved.shape == (5, 2)
    assert np.isfinite(moved).all()
    found = worst.potential_flow(0)
    assert found.lower <= found.dual <= found.upper
    with pytest.raises(UnsupportedError, match=r"samples only.*log_ratio"):
        worst.log_prob(X[:2], y[:2])


@pytest.mark.parametrize("ambiguity", [Wasserstein(0.1), CVaR(alpha=0.5)])
def test_sets_that_it_does_not_know(ambiguity):
    with pytest.raises(UnsupportedError, match="KL and ChiSquare"):
        DROClassifier(ambiguity, inner="semidual").fit(*data(40))


def test_names_and_settings():
    assert isinstance(get_inner("semidual"), SemiDual)
    with pytest.raises(InvalidDataError, match="semidual"):
        get_inner("nothing")
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"hidden": (0,)}, {"batch_size": 1.5}):
        with pytest.raises(InvalidDataError, match=next(iter(wrong))):
            get_inner(SemiDual(**wrong))


def test_auto_knows_atoms_by_what_was_fitted():
    X, y = make_blobs(2400, centers=2, random_state=0)
    settings = {"inner": "auto", "alpha": 0.1, "random_state": 0}
    by_name = DROClassifier(KL(radius=0.1), reference="empirical", **settings).fit(X, y)
    by_object = DROClassifier(KL(radius=0.1), reference=Empirical(), **settings).fit(X, y)
    assert by_object.certificate_.inner == by_name.certificate_.inner
    assert by_object.certificate_.inner.startswith("inner='auto' chose SemiDual")


def test_units_of_columns_do_not_matter_to_learned_maps():
    X, y = data()
    inner = SemiDual(hidden=(16,), steps=3, iterations=40, batch_size=128)
    risks = []
    for unit in (1.0, 1e4):
        scale = np.array([1.0, unit])
        model = DROClassifier(KL(penalty=0.5), inner=inner, reference="empirical", random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            worst = model.fit(X * scale, y).worst_case_
            risks.append([worst.potential_flow(k).recovered for k in (0, 1)])
            moved = worst.transport(X[:5] * scale, y[:5]) / scale
        risks[-1].extend(moved.ravel())
    np.testing.assert_allclose(risks[0], risks[1], rtol=2e-2, atol=2e-2)


def test_a_map_that_has_learned_little_says_so():
    X, y = data(120)
    inner = SemiDual(hidden=(4,), steps=1, iterations=1, batch_size=32)
    model = DROClassifier(KL(penalty=0.3), inner=inner, reference="empirical", random_state=0)
    worst = model.fit(X, y).worst_case_
    with pytest.warns(ConvergenceWarning, match="worst_case_.sample, risk and the certificate"):
        worst.transport(X[:2], y[:2])


@pytest.mark.filterwarnings("ignore:.*optimum is a constant model")
def test_no_map_is_chosen_where_none_can_be_learned():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(2400, 2)), np.repeat([0, 1], 1200)
    few = np.round(X)  # the same points again and again
    flat = np.c_[X[:, 0], np.where(y == 0, 1.0, X[:, 1])]
    settings = {"inner": "auto", "reference": "empirical", "alpha": 0.1, "random_state": 0}
    for table, word in ((few, "distinct"), (flat, "subspace")):
        found = DROClassifier(KL(radius=0.1), **settings).fit(table, y).certificate_.inner
        assert word in found
        assert "ICNNJKO" in found
    regression = DRORegressor(KL(radius=0.1), **settings).fit(X, X[:, 0] + rng.normal(size=2400))
    assert "targets" in regression.certificate_.inner
