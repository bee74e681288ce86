"""Density-ratio sets: exact for any model. Modules of known layers: proven in Wasserstein balls."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from drojko import audit
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation, Wasserstein

SETS = [(KL(), 0.2), (ChiSquare(), 0.5), (CressieRead(1.5), 0.3), (TotalVariation(), 0.1)]


@pytest.mark.parametrize(("own", "radius"), SETS, ids=lambda v: repr(v)[:12])
def test_forests_are_exact(forest, moons, own, radius):
    X, y = moons
    report = audit(forest, X, y, own, radii=[0.0, radius], random_state=0)
    p = np.clip(forest.predict_proba(X), 1e-6, 1.0)
    losses = np.log(p.sum(1)) - np.log(p[np.arange(len(y)), y])
    exact = type(own)(**{**own.get_params(), "radius": radius}).dual(losses).value
    last = report.table.iloc[1]
    assert last.worst_case_risk == pytest.approx(exact, rel=1e-8)
    assert last.upper_bound == pytest.approx(exact, rel=1e-8)
    assert report.table.worst_case_risk[0] == pytest.approx(losses.mean(), rel=1e-12)
    assert last.transport_cost == pytest.approx(radius, rel=1e-6)
    worst = report.worst_case()
    assert worst.risk() == pytest.approx(exact, rel=1e-8)
    moved = report.moves(3)
    before, after = (moved.xs(s, level="state") for s in ("before", "after"))
    assert after.harm.iloc[0] > 0  # total variation raises the largest loss alone
    assert after.mass.iloc[0] > before.mass.iloc[0]
    np.testing.assert_array_equal(after["x0"], before["x0"])


def test_tail_masses_go_from_mild_to_severe(forest, moons):
    X, y = moons
    table = audit(forest, X, y, CVaR(0.5), radii=[0.1, 1.0, 0.5], random_state=0).table
    assert table.radius.tolist() == [1.0, 0.5, 0.1]
    assert table.worst_case_risk[0] == pytest.approx(table.nominal_risk[0])
    assert (np.diff(table.worst_case_risk) > 0).all()
    np.testing.assert_allclose(table.worst_case_risk, table.upper_bound, rtol=1e-9)


@pytest.mark.promise(1)
def test_an_infinite_exponential_moment_is_no_proven_bound():
    """exp(squared error / penalty) has no mean under Gaussians where the penalty is small."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = X[:, 0] + rng.normal(size=200)
    model = LinearRegression().fit(X, y)
    proofs = [
        audit(model, X, y, KL(penalty=p), loss="squared", reference="gaussian", random_state=0)
        .table["proof"]
        .iloc[0]
        for p in (0.05, 50.0)
    ]
    assert proofs == ["local-estimate", "dual"]


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.LeakyReLU])
def test_audits_prove_what_certificates_do_of_a_module(activation):
    """Counting answers that are no numbers does not hide the layers."""
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((12, 6)), np.arange(12) % 3
    generator = torch.Generator().manual_seed(4)
    module = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 6)), torch.nn.Conv1d(1, 2, 3, padding=1), activation(),
        torch.nn.Flatten(), torch.nn.Linear(12, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    report = audit(module, X, y, Wasserstein(radius=0.2), reference="empirical", random_state=0)
    found = report.certificates[0]
    assert (found.proof, found.unproven) == ("linear-bounds", "")
    assert 0.0 < found.lower <= found.upper < 1.2 * found.lower
