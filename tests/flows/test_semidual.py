"""Semi-dual flows: conjugates, exact Gaussian chains, costs that stay flat, samples only."""

import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from benchmarks.exact_flows import gaussian_step
from drojko.ambiguity import KL, ChiSquare
from drojko.exceptions import ConvergenceWarning, InvalidDataError, UnsupportedError
from drojko.flows import ICNNScheme, JKOFlow, SemiDualScheme
from drojko.flows.functionals import DivergenceTo, Entropy, PotentialEnergy, WassersteinTo
from drojko.flows.functionals.divergence_to import CONJUGATES, conjugate_named, split
from drojko.flows.semidual.nets import Critic, WholeMap, affine_step, gaussian_log_ratio
from drojko.measures import Empirical, Gaussian

KINDS = sorted(CONJUGATES)
QUICK = {"iterations": 30, "first": 30, "n_particles": 500, "batch_size": 64, "target_batch": 64}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(d, n=1000, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=gen, dtype=torch.float64)


def flow(target, k, h=0.2, start=None, **options):
    start = start or Gaussian(np.zeros(2), np.eye(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver = JKOFlow(DivergenceTo(target), SemiDualScheme(**options), step_size=h)
        return solver.run(start, k, random_state=0)


# -- conjugates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(r=st.floats(1e-3, 1.99), w=st.floats(-6, 6))
def test_fenchel_and_young(kind, r, w):
    """u r <= f(r) + f*(u), with equality at the ratio of u."""
    c = conjugate_named(kind)
    u, star = c.potential(tensor(w))[0], c.conjugate(tensor(w))[0]
    assert float(c.f(tensor(r)) + star - u * r) >= -1e-12
    own = c.ratio(tensor(w))
    assert float(c.f(own) + star - u * own) == pytest.approx(0.0, abs=1e-9 * (1 + float(own) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_in_the_networks_output(kind):
    c = conjugate_named(kind)
    w = torch.linspace(-1.9, 5.0, 40, dtype=torch.float64, requires_grad=True)
    for which in (c.potential, c.conjugate):
        value, slope = which(w)
        (exact,) = torch.autograd.grad(value.sum(), w)
        torch.testing.assert_close(slope.detach(), exact)
    # d f*/dw = f*'(u) du/dw: the ratio.
    ratio = c.ratio(w) * c.potential(w)[1]
    torch.testing.assert_close(c.conjugate(w)[1].detach(), ratio.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_of_a_measure_from_itself_is_zero(kind):
    c = conjugate_named(kind)
    assert float(c.f(tensor(1.0))) == 0.0
    assert float(c.f(tensor(0.5))) > 0.0


def test_softplus_forbids_ratios_above_two():
    assert torch.isinf(conjugate_named("softplus").f(tensor(2.1)))


# -- networks ------------------------------------------------------------------------------------


def nets(d, seed=0):
    gen = torch.Generator().manual_seed(seed)
    zero, one = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    whole = WholeMap(zero, 2 * one, one, 1.5, (8, 8), 1.0, gen)
    critic = Critic(zero + 0.3, 2 * one, (8, 8), 1.0, gen)
    for net in (whole.net, critic.net):
        net.weights[-1].data.normal_(generator=gen)
    return whole, critic


@pytest.mark.parametrize("d", [1, 3])
def test_gradients_by_hand_against_differences(d):
    whole, critic = nets(d)
    x = draw(d, 6)
    out, back = whole.linearise(whole.inner(x))
    w, slope = critic.linearise(out)
    g = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    for module, gradients, value in (
        (critic, slope(g, parameters=True), lambda: (g * critic.linearise(out)[0]).sum()),
        (
            whole,
            back(slope(g)),
            lambda: (g * critic.linearise(whole.linearise(whole.inner(x))[0])[0]).sum(),
        ),
    ):
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            flat = parameter.data.view(-1)
            i = len(flat) // 2
            kept = float(flat[i])
            flat[i] = kept + 1e-2
            high = float(value())
            flat[i] = kept - 1e-2
            low = float(value())
            flat[i] = kept
            exact = float(gradient.reshape(-1)[i])
            assert (high - low) / 2e-2 == pytest.approx(exact, rel=0.02, abs=5e-3)  # float32


def test_the_map_starts_at_the_identity_and_composes_exactly():
    gen = torch.Generator().manual_seed(0)
    start = WholeMap(tensor(1.0, 2.0), tensor(0.5, 3.0), tensor(4.0, 4.0), 2.0, (8,), 1.0, gen)
    x = draw(2, 20)
    torch.testing.assert_close(start.map(x), x, atol=1e-5, rtol=1e-5)
    whole = nets(2)[0]
    matrix, shift = tensor([2.0, 0.5], [0.5, 1.0]), tensor(1.0, -1.0)
    expected = whole.map(x) @ matrix.T + shift
    whole.compose(matrix, shift)
    torch.testing.assert_close(whole.map(x), expected, atol=1e-4, rtol=1e-4)


def test_log_ratio_of_two_gaussians():
    p, q = Gaussian([1.0, 0.0], [[2.0, 0.3], [0.3, 1.0]]), Gaussian([0.0, 2.0], np.eye(2))
    m, s, c = gaussian_log_ratio(p.mean, p.covariance, q.mean, q.covariance)
    x = draw(2, 10)
    exact = p.log_prob(x) - q.log_prob(x)
    torch.testing.assert_close(0.5 * (x * (x @ m)).sum(1) + x @ s + c, exact)
    critic = nets(2)[1]
    critic.fix(m, s, c)
    torch.testing.assert_close(critic.fixed_value(x), exact, atol=1e-4, rtol=1e-4)


# -- flows ---------------------------------------------------------------------------------------


def test_affine_steps_are_the_exact_chain():
    """The published two-dimensional chain whose matrices do not commute."""
    target = Gaussian([0.0, 0.5], [[2.0, 0.6], [0.6, 0.5]])
    start = Gaussian([1.0, -1.0], [[1.0, -0.4], [-0.4, 0.8]])
    matrix, shift = affine_step(start.mean, start.covariance, target.mean, target.covariance, 0.2)
    expected = tensor([1.080327, 0.185975], [0.185975, 0.854544])
    torch.testing.assert_close(matrix, expected, atol=1e-6, rtol=0)
    chain = gaussian_step(start, target, 0.2)
    torch.testing.assert_close(matrix @ start.mean + shift, chain.mean)
    torch.testing.assert_close(matrix @ start.covariance @ matrix.T, chain.covariance)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_gaussian_to_gaussian_is_within_two_percent(d):
    rng = np.random.default_rng(d)
    a = rng.normal(size=(d, d))
    target = Gaussian(rng.normal(size=d), a @ a.T / d + 0.3 * np.eye(d))
    start = Gaussian(np.zeros(d), np.eye(d))
    result = flow(target, 3, start=start, iterations=80, n_particles=4000)
    chain = start
    for measure in result.measures[1:]:
        chain = gaussian_step(chain, target, 0.2)
        x = measure.sample(100_000, torch.Generator().manual_seed(1))
        spread = chain.covariance.trace().sqrt()
        assert float((x.mean(0) - chain.mean).norm() / spread) < 0.02
        off = torch.cov(x.T).reshape(d, d) - chain.covariance
        assert float(off.norm() / chain.covariance.norm()) < 0.02


def test_step_size_means_the_same_as_with_input_convex_networks():
    """One step of the same h from the same start: not h times or over the dimension."""
    target, start = Gaussian(np.ones(3), np.eye(3)), Gaussian(np.zeros(3), np.eye(3))
    ours = flow(target, 1, h=1.0, start=start, iterations=0).measures[-1].particles
    from drojko.flows.functionals import KLDivergence

    other = JKOFlow(KLDivergence(target.log_prob), ICNNScheme(iterations=0), step_size=1.0)
    theirs = other.run(start, 1, random_state=0).measures[-1].particles
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=2e-3, rtol=0)
    assert float(ours.mean()) == pytest.approx(0.5, abs=2e-3)  # h / (1 + h)
    assert SemiDualScheme.step_of_averaged(0.5, 3) == 1.5


@pytest.mark.slow
def test_networks_alone_reach_the_chain():
    """The mean of the ratio is 1, and the symmetric divergence small, without Gaussian fits."""
    from benchmarks.exact_flows import symmetric_kl

    target, start = Gaussian([1.0, -0.5], [[1.5, 0.4], [0.4, 0.6]]), Gaussian([0, 0], np.eye(2))
    result = flow(target, 5, start=start, gaussian=False, iterations=250, target_batch=1024)
    chain = start
    for _ in range(5):
        chain = gaussian_step(chain, target, 0.2)
    x = result.measures[-1].sample(100_000, torch.Generator().manual_seed(1))
    found = Gaussian(x.mean(0).numpy(), torch.cov(x.T).numpy())
    assert symmetric_kl(found, chain) < 0.02
    normaliser = result.history["normaliser"]
    assert normaliser[1:].between(0.9, 1.1).all()
    assert normaliser[3:].between(0.95, 1.05).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence_moves_towards_its_target(kind):
    target, start = Gaussian([1.0, 0.0], np.eye(2)), Gaussian([0.0, 0.0], np.eye(2))
    solver = JKOFlow(
        DivergenceTo(target, kind),
        SemiDualScheme(iterations=150, n_particles=2000, batch_size=128, target_batch=256),
        step_size=1.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = solver.run(start, 2, random_state=0)
    mean = result.measures[-1].particles.mean(0)
    assert 0.15 < float(mean[0]) < 1.3
    assert abs(float(mean[1])) < 0.15
    # Its ratio to the target falls along the way that is left.
    low, high = result.measures[-1].log_ratio([[-1.0, 0.0], [2.0, 0.0]]).tolist()
    assert low > high


def test_cost_of_a_phase_does_not_grow():
    result = flow(Gaussian([1.0, 0.0], np.eye(2)), 12, tol=0.0, **QUICK)
    rows = result.history["rows"].to_numpy()
    assert (rows == rows[0]).all()
    assert rows[0] == 30 * (2 * 2 * 64 + 128)  # two map steps and a critic step per iteration
    sizes = [sum(p.numel() for p in m.map.parameters()) for m in result.measures[1:]]
    assert len(set(sizes)) == 1  # one network from the start, however many steps


def test_the_gradient_penalty_and_noise_flatten_the_critic():
    target = draw(2, 500) * tensor(1.0, 0.3)
    slopes = []
    for options in ({}, {"gradient_penalty": 10.0}):
        result = flow(target, 1, tol=0.0, gaussian=False, **QUICK | options)
        y = draw(2, 100)
        _, back = result.measures[-1].critic.linearise(y.float())
        slopes.append(float(back(torch.ones(100)).norm()))
    assert slopes[1] < 0.7 * slopes[0]


def test_same_seed_same_flow():
    first, second = (flow(draw(2, 300), 1, tol=0.0, **QUICK) for _ in range(2))
    torch.testing.assert_close(first.measures[1].particles, second.measures[1].particles)
    state = torch.random.get_rng_state()
    flow(draw(2, 300), 1, **QUICK)
    assert torch.equal(state, torch.random.get_rng_state())


# -- samples only, bad input ---------------------------------------------------------------------


def test_there_is_no_density_and_the_error_says_why():
    step = flow(draw(2, 300), 1, **QUICK).measures[-1]
    with pytest.raises(UnsupportedError, match=r"known by samples.*log_ratio"):
        step.log_prob([[0.0, 0.0]])
    assert torch.isfinite(step.log_ratio([[0.0, 0.0]])).all()
    assert step.sample(5).shape == (5, 2)


def test_other_schemes_name_this_one():
    with pytest.raises(UnsupportedError, match="SemiDualScheme"):
        JKOFlow(DivergenceTo(draw(2)), step_size=0.1).run(Gaussian([0, 0], np.eye(2)), 1)


def test_functionals_are_split():
    to = DivergenceTo(draw(2, 10))
    factor, found, rest = split(2.0 * (3.0 * to + PotentialEnergy(lambda z: z[:, 0])))
    assert factor == 6.0
    assert found is to
    assert rest.value(torch.ones(1, 2), torch.zeros(1)) == pytest.approx(2.0)
    for wrong, word in (
        (Entropy(), "exactly one|density"),
        (to + to, "exactly one"),
        (to + Entropy(), "functional of the density"),
        (to + WassersteinTo(Empirical(draw(2, 10).numpy())), "ICNNScheme"),
    ):
        with pytest.raises((UnsupportedError, InvalidDataError), match=word):
            split(wrong)


@pytest.mark.parametrize(
    ("target", "word"),
    [
        (np.column_stack([np.arange(20.0), np.ones(20)]), "column 1.*constant.*drop"),
        (np.column_stack([np.arange(20.0), np.arange(20.0)]), "subspace"),
        (np.eye(3), "columns"),
    ],
)
def test_degenerate_targets_are_named(target, word):
    with pytest.raises(InvalidDataError, match=word):
        flow(target, 1, **QUICK)


@pytest.mark.parametrize(
    "setting",
    [{"iterations": -1}, {"batch_size": 1.5}, {"rate": np.nan}, {"noise": -1}, {"critic": "x"}],
)
def test_settings_out_of_range(setting):
    with pytest.raises(InvalidDataError, match=next(iter(setting))):
        JKOFlow(DivergenceTo(draw(2)), SemiDualScheme(**setting), step_size=0.1).run(
            Gaussian([0, 0], np.eye(2)), 1
        )
    with pytest.raises(InvalidDataError, match="kind"):
        DivergenceTo(draw(2), "total-variation")


def test_a_flow_too_far_from_its_target_says_so():
    far = DivergenceTo(Gaussian([30.0, 0.0], np.eye(2)))
    scheme = SemiDualScheme(gaussian=False, **QUICK)
    with pytest.warns(ConvergenceWarning, match="target_batch|wider initial"):
        result = JKOFlow(far, scheme, step_size=0.01).run(
            Gaussian([0, 0], 0.1 * np.eye(2)), 1, random_state=0
        )
    assert "mean" in result.message


# -- worst cases ---------------------------------------------------------------------------------


def hill(z):
    return 3.0 * torch.nn.functional.softplus(z[:, 0])


@pytest.mark.parametrize("ball", [KL(penalty=2.0), ChiSquare(penalty=1.5)])
def test_learned_ratios_against_the_exact_dual(ball):
    from drojko.inner.reweighting.semidual import SemiDual

    x = draw(1, 600)
    solver = SemiDual(hidden=(16, 16), steps=5, iterations=80, batch_size=256)
    found = solver.fit_ratio(ball, ball.penalty, hill, Empirical(x.numpy()), 0)
    exact = ball.dual(hill(x))
    assert found.dual == pytest.approx(exact.value, rel=1e-9)
    assert found.lower <= exact.value <= found.upper  # for every potential, by duality
    assert found.recovered > 0.8
    assert found.nominal < found.risk
    assert float(found.ratio.mean()) == pytest.approx(1.0)


def test_worst_cases_of_few_samples_and_other_sets_are_refused():
    from drojko.ambiguity import CVaR
    from drojko.inner.reweighting.semidual import SemiDual

    few = Empirical(draw(2, 20).numpy())
    with pytest.raises(InvalidDataError, match=r"too small.*sample"):
        SemiDual().fit_ratio(KL(penalty=1.0), 1.0, hill, few)
    with pytest.raises(UnsupportedError, match="CVaR"):
        SemiDual().fit_ratio(CVaR(alpha=0.5), 1.0, hill, few)
    with pytest.raises(UnsupportedError, match="nothing moves"):
        SemiDual().fit_ratio(KL(radius=0.0), np.inf, hill, few)
