"""Importance-corrected worst cases of density-ratio sets against closed forms and exact duals."""

import math

import numpy as np
import pytest
import torch

from drojko import DROClassifier
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    CressieRead,
    CVaR,
    Group,
    Sinkhorn,
    TotalVariation,
)
from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError
from drojko.inner import Importance, get_inner
from drojko.inner.reweighting.importance import ImportanceWorstCase
from drojko.measures import Gaussian, GaussianMixture

SMALL = Importance(n_calibration=32_000, n_draws=8000, iterations=60, n_particles=4000, width=8)


def four(dim):
    means = np.zeros((4, dim))
    means[:, 0] = [-9.0, -3.0, 3.0, 9.0]
    means[:, 1] = [0.0, 6.0, -6.0, 0.0]
    return means, GaussianMixture(means=means.tolist(), covariances=[np.eye(dim).tolist()] * 4)


@pytest.mark.parametrize("dim", [2, 10])
def test_kl_on_four_components(dim):
    """Value penalty * log E exp(x_1 / penalty): a sum over components; weights are its terms."""
    (means, reference), penalty = four(dim), 6.0
    tilt = means[:, 0] / penalty
    exact = penalty * (np.logaddexp.reduce(tilt) - math.log(4)) + 0.5 / penalty
    weights = np.exp(tilt - np.logaddexp.reduce(tilt))
    found = SMALL.fit_ratio(KL(penalty=penalty), penalty, 0.0, lambda x: x[:, 0], reference, 0)
    assert found.value == pytest.approx(exact, rel=0.005)
    assert abs(found.value - exact) < 4 * found.error + 1e-3
    assert found.effective_sample_size > 0.98
    x = found.sample(8000, torch.Generator().manual_seed(1))
    nearest = torch.cdist(x, torch.from_numpy(means)).argmin(1)
    assert np.bincount(nearest, minlength=4) / 8000 == pytest.approx(weights, abs=0.02)
    assert "taken" in found.choice


@pytest.mark.parametrize(
    ("make", "bound"),
    [(ChiSquare, 0.01), (lambda penalty: CressieRead(3.0, penalty=penalty), 0.01)],
)
def test_values_at_the_exact_dual_point(make, bound):
    """The dual on a fine quadrature of N(0, 1) gives the dual point and the value."""
    q = (np.arange(20_001) + 0.5) / 20_001
    x = torch.special.ndtri(torch.from_numpy(q))
    set_ = make(penalty=2.0)
    dual = set_.dual(x.numpy())
    reference = Gaussian([0.0], [[1.0]])
    found = SMALL.fit_ratio(set_, dual.penalty, dual.shift, lambda z: z[:, 0], reference, 0)
    assert abs(found.value - dual.value) < 4 * found.error + bound * abs(dual.value)
    assert found.log_normaliser == pytest.approx(0.0, abs=4 * found.normaliser_error + 1e-3)


def test_jko_steps_where_rejection_alone_does_not_do():
    """The tilt by 3 standard deviations: rejection alone would need exp(9) draws per sample."""
    reference, penalty = Gaussian([0.0], [[1.0]]), 1.0 / 3.0
    found = SMALL.fit_ratio(KL(penalty=penalty), penalty, 0.0, lambda x: x[:, 0], reference, 0)
    assert "3 JKO steps" in found.choice.split(";")[1]
    assert found.choice.endswith("(taken)")
    assert found.value == pytest.approx(1.5, rel=0.02)  # 1 / (2 penalty)
    assert float(found.mass @ found.x[:, 0]) == pytest.approx(3.0, abs=0.1)
    assert found.effective_sample_size > 0.8


def test_other_sets_and_penalties_say_so():
    reference = Gaussian([0.0], [[1.0]])
    for set_ in (CVaR(0.2), TotalVariation(0.2)):
        with pytest.raises(UnsupportedError, match="jumps or is none"):
            SMALL.fit_ratio(set_, 1.0, 0.0, lambda x: x[:, 0], reference, 0)
    with pytest.raises(UnsupportedError, match="finite penalty"):
        SMALL.fit_ratio(KL(radius=0.1), 0.0, 0.0, lambda x: x[:, 0], reference, 0)
    with pytest.raises(UnsupportedError, match="moves points"):
        SMALL.fit(None, None, None)
    with pytest.raises(InvalidDataError, match="width"):
        get_inner(Importance(width=0))
    assert isinstance(get_inner("importance"), Importance)


def test_the_classifier_samples_its_worst_case_by_it():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(m, 1.5, (60, 2)) for m in ([-2, 0], [0, -2], [2, 0], [0, 2])])
    y = np.repeat([0, 1], 120)
    settings = {"ambiguity": KL(radius=0.05), "random_state": 0, "max_iter": 50}
    fitted = DROClassifier(reference="gaussian", inner=SMALL, **settings).fit(X, y)
    worst = fitted.worst_case_
    assert isinstance(worst, ImportanceWorstCase)
    Z, labels = worst.sample(4000, random_state=1)
    losses = worst.loss_function(torch.from_numpy(Z), torch.from_numpy(labels))
    # The mean loss of the draws is the risk that the exact dual's worst case attains.
    certificate = fitted.certificate_
    spread = float(losses.std()) / math.sqrt(len(Z))
    assert abs(float(losses.mean()) - certificate.worst_case_risk) < 5 * spread + 0.02
    assert worst.choice.count("class") == 2
    with pytest.raises(UnsupportedError, match="reference='mixture'"):
        DROClassifier(reference="empirical", inner="importance", **settings).fit(X, y)


def test_draws_follow_the_worst_case_where_rejections_are_capped():
    """A tilt whose tail the cap cuts off: mean and tail of the draws against a quadrature."""
    reference = GaussianMixture(
        means=[[-2.0], [2.0]], covariances=[[[1.0]], [[0.25]]], weights=[0.7, 0.3]
    )

    def loss(x):
        return torch.nn.functional.softplus(-2.0 * x[:, 0])

    penalty = 1.5
    solver = Importance(n_calibration=32_000, n_draws=8000)
    found = solver.fit_ratio(KL(penalty=penalty), penalty, 0.0, loss, reference, 0)
    assert found.effective_sample_size < 0.98  # otherwise this shows nothing
    x = found.sample(40_000, torch.Generator().manual_seed(1))[:, 0]
    grid = torch.linspace(-12.0, 6.0, 20_001, dtype=torch.float64)[:, None]
    log_mass = reference.log_prob(grid) + loss(grid) / penalty
    mass = log_mass.softmax(0)
    mean = float(mass @ grid[:, 0])
    # Four standard errors; points come up more than once, which doubles the variance at most.
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(2.0) * float(x.std()) / 200)
    tail = float(mass[grid[:, 0] < -6.0].sum())
    assert float((x < -6.0).double().mean()) == pytest.approx(tail, rel=0.5)


def test_orders_below_one_have_the_slice_of_largest_losses():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 2))
    y = (X[:, 0] + 0.5 * rng.normal(size=240) > 0).astype(int)
    settings = {"reference": "gaussian", "random_state": 0, "alpha": 0.05}
    solver = Importance(n_calibration=32_000, n_draws=8000)
    risks = []
    for inner in (solver, "icnn"):
        model = DROClassifier(CressieRead(0.5, 0.12), inner=inner, **settings).fit(X, y)
        worst = model.worst_case_
        assert worst.pool.bounded.top < math.inf
        Z, labels = worst.sample(40_000, random_state=1)
        margin = (2 * labels - 1) * model.decision_function(Z)
        losses = np.logaddexp(0, -margin)
        risks.append((losses.mean(), losses.std() / 200))
    (first, noise), (second, other) = risks
    assert first == pytest.approx(second, abs=5 * (noise + other))


@pytest.mark.parametrize(
    "ambiguity", [Sinkhorn(0.1, radius=0.2), MMD(radius=0.1), Group()], ids=repr
)
def test_sets_without_a_density_ratio_are_refused(ambiguity):
    X, y = np.random.default_rng(0).normal(size=(40, 2)), np.repeat([0, 1], 20)
    model = DROClassifier(ambiguity, inner="importance", reference="empirical")
    groups = {"groups": y} if isinstance(ambiguity, Group) else {}
    with pytest.raises(UnsupportedError, match="inner='importance'"):
        model.fit(X, y, **groups)


def test_losses_that_are_no_numbers_and_a_share_of_one():
    reference = Gaussian([0.0], [[1.0]])
    with pytest.raises(NonFiniteError, match="nan"):
        SMALL.fit_ratio(
            KL(penalty=5.0), 5.0, 0.0, lambda x: torch.where(x[:, 0] > 1, math.nan, x[:, 0]),
            reference, 0,
        )  # fmt: skip
    for enough in (1.0, 1.1):
        with pytest.raises(InvalidDataError, match="enough"):
            get_inner(Importance(enough=enough))
