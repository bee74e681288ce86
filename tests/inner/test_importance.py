"""Importance-corrected worst cases of density-ratio sets against closed forms and exact duals."""

import math

import numpy as np
import pytest
import torch

from drojko import DROClassifier
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.inner import Importance, get_inner
from drojko.inner.importance import ImportanceWorstCase
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
        with pytest.raises(UnsupportedError, match="jumps"):
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
