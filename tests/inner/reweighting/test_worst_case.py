import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from drojko import DROClassifier
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, Group, TotalVariation
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.measures import ClassConditional, Empirical, Gaussian, Joint

SETS = [
    KL(radius=0.3), KL(penalty=1.5), ChiSquare(radius=0.5), ChiSquare(penalty=0.4),
    CressieRead(3.0, radius=0.2), CressieRead(1.5, penalty=0.7), CressieRead(0.5, radius=0.1),
    CVaR(0.3), TotalVariation(radius=0.25), TotalVariation(penalty=1.0),
]  # fmt: skip


def one_class(mean, covariance):
    return ClassConditional(measures=[Gaussian(mean=mean, covariance=covariance)])


def gaussian_worst(ambiguity, loss, d=1, **settings):
    """The worst case around N(0, I), at the dual point of a large sample."""
    reference = one_class(np.zeros(d), np.eye(d))
    x, y, w = reference.points(200_000, torch.Generator().manual_seed(5))
    dual = ambiguity.dual(loss(x, y), w)
    return ReweightedWorstCase(
        ambiguity, dual.penalty, dual.shift, loss, reference, classes=np.array([7]), **settings
    )


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_the_ratio_of_a_dual_point_is_the_ratio_of_the_dual(ambiguity, rng):
    losses = rng.normal(size=60)
    dual = ambiguity.dual(losses)
    ratio = np.exp(ambiguity.log_ratio_at(losses, dual.penalty, dual.shift))
    free = np.ones(60, bool)
    if ambiguity.jumps:
        free &= losses < losses.max()
    if isinstance(ambiguity, CVaR | TotalVariation):  # the loss at the step keeps a part of it
        step = dual.shift - (0.5 * dual.penalty if ambiguity.jumps else 0.0)
        free &= ~np.isclose(losses, step, rtol=0, atol=1e-9)
    assert free.sum() >= 58
    np.testing.assert_allclose(ratio[free], dual.ratio[free], rtol=1e-9, atol=1e-12)
    assert (dual.ratio <= ambiguity.ratio_bound + 1e-12).all()


def test_ratios_at_the_ends_of_the_scale():
    losses = np.array([0.0, 1.0])
    assert (KL(radius=0.0).log_ratio_at(losses, np.inf, 0.0) == 0).all()
    assert (KL(radius=9.0).log_ratio_at(losses, 0.0, 1.0) == -np.inf).all()


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_atoms_are_reweighted_exactly(ambiguity, rng):
    X, y = rng.normal(size=(40, 2)), rng.integers(0, 2, 40)
    weight = rng.uniform(0.5, 2.0, 40)
    reference = ClassConditional(Empirical()).fit(X, y, weight)
    loss = lambda x, k: x[:, 0] + k * x[:, 1]  # noqa: E731
    worst = ReweightedWorstCase(ambiguity, 1.0, 0.0, loss, reference, np.array(["a", "b"]))
    direct = ambiguity.dual(X[:, 0] + y * X[:, 1], weight)
    assert worst.risk() == pytest.approx(direct.attained, rel=1e-9)
    assert worst.normaliser == 1.0
    assert worst.effective_sample_size <= 1.0 + 1e-12
    Z, labels = worst.sample(4000, random_state=0)
    assert {tuple(row) for row in Z.tolist()} <= {tuple(row) for row in X.tolist()}
    drawn = np.mean(Z[:, 0] + (labels == "b") * Z[:, 1])
    assert abs(drawn - direct.attained) < 5 * np.std(X[:, 0] + y * X[:, 1]) / math.sqrt(4000)
    share = (weight * direct.ratio / weight.sum())[y == 1].sum()
    assert worst.label_shares()[1] == pytest.approx(share, abs=1e-9)
    with pytest.raises(UnsupportedError):
        worst.log_prob(X, np.array(["a", "b"])[y])


def test_kl_around_a_gaussian_is_the_tilted_gaussian():
    """P* = N((S^-1 - A/lambda)^-1 b/lambda, (S^-1 - A/lambda)^-1) for the loss x'Ax/2 + b'x."""
    a, b, penalty = torch.tensor([0.4, -0.5]).double(), torch.tensor([0.5, 0.2]).double(), 2.0
    loss = lambda x, y: 0.5 * (x**2) @ a + x @ b  # noqa: E731
    worst = gaussian_worst(KL(penalty=penalty), loss, 2)
    variance = 1.0 / (1.0 - a.numpy() / penalty)
    mean = variance * b.numpy() / penalty
    X, y = worst.sample(40_000, random_state=1)
    assert set(y) == {7}
    assert np.abs(X.mean(0) - mean).max() < 5 * math.sqrt(variance.max() / 40_000)
    assert np.abs(X.var(0) - variance).max() < 5 * variance.max() * math.sqrt(2 / 40_000)
    exact = norm(mean, np.sqrt(variance))
    density = worst.log_prob(X[:100], y[:100])
    np.testing.assert_allclose(density, exact.logpdf(X[:100]).sum(1), atol=0.03)  # the constant
    assert worst.normaliser == pytest.approx(1.0, abs=0.02)
    # E r^2 for a tilt by slope t of a standard normal column is a Gaussian integral.
    t = a.numpy() / penalty
    first = np.prod((1 - t) ** -0.5 * np.exp(0.5 * (b.numpy() / penalty) ** 2 / (1 - t)))
    second = np.prod((1 - 2 * t) ** -0.5 * np.exp(2.0 * (b.numpy() / penalty) ** 2 / (1 - 2 * t)))
    assert worst.effective_sample_size == pytest.approx(first**2 / second, rel=0.05)


def test_cvar_keeps_the_tail():
    worst = gaussian_worst(CVaR(0.1), lambda x, y: x[:, 0])
    X, _ = worst.sample(20_000, random_state=0)
    threshold = norm.ppf(0.9)
    assert X.min() > threshold - 0.03
    assert X.mean() == pytest.approx(norm.pdf(threshold) / 0.1, abs=0.02)
    assert worst.effective_sample_size == pytest.approx(0.1, abs=0.005)
    assert worst.log_prob([[0.0]], [7])[0] == -np.inf
    inside = worst.log_prob([[2.0]], [7])[0]
    assert inside == pytest.approx(norm.logpdf(2.0) - math.log(0.1), abs=0.05)


def test_total_variation_moves_mass_to_a_slice_of_the_largest_losses():
    worst = gaussian_worst(TotalVariation(radius=0.2), lambda x, y: x[:, 0])
    X, _ = worst.sample(20_000, random_state=0)
    assert X.min() > norm.ppf(0.2) - 0.03
    top = norm.ppf(0.99)
    # 200 of the 20000 draws of the pool make the slice: 7 % of its mass is one standard error.
    assert (top < X).mean() == pytest.approx(0.2 + 0.01, abs=0.04)
    # Inside the set: half the L1 distance of the ratio from 1 is the mass that moved.
    pool = worst.pool
    moved = 0.5 * float((pool.w * (pool.ratio - 1).abs()).sum())
    assert moved == pytest.approx(0.2, abs=0.005)
    assert worst.risk() < worst.ambiguity.dual(pool.losses, pool.w).value


def test_a_radius_that_reaches_the_maximum_takes_the_slice():
    worst = ReweightedWorstCase(
        KL(radius=50.0), 0.0, 4.0, lambda x, y: x[:, 0], one_class([0.0], [[1.0]]), np.array([0])
    )
    X, _ = worst.sample(500, random_state=0)
    assert X.min() > norm.ppf(0.98)


def test_heavy_ratios_are_resampled():
    """A penalty at which rejection would keep next to nothing."""
    # Of n draws, n exp(-1 / 0.35^2) carry the mass: 570, so that the mean errs by 0.04.
    worst = gaussian_worst(KL(penalty=0.35), lambda x, y: x[:, 0], n_pool=2_000_000)
    assert float(worst.pool.ratio.max()) > 50
    X, _ = worst.sample(3000, random_state=0)
    assert X.mean() == pytest.approx(1 / 0.35, abs=0.2)


def test_label_shares_follow_the_losses():
    reference = ClassConditional(
        measures=[Gaussian([0.0], [[1.0]]), Gaussian([0.0], [[1.0]])], weights=[0.5, 0.5]
    )
    penalty = 1.0
    worst = ReweightedWorstCase(
        KL(penalty=penalty), penalty, math.log(0.5 * (1 + math.e)),
        lambda x, y: y.double(), reference, np.array(["no", "yes"]),
    )  # fmt: skip
    expected = math.e / (1 + math.e)
    np.testing.assert_allclose(worst.label_shares(), [1 - expected, expected], atol=1e-12)
    X, y = worst.sample(5000, random_state=3)
    assert np.mean(y == "yes") == pytest.approx(expected, abs=0.03)
    # Given the label nothing changes.
    np.testing.assert_allclose(worst.log_prob(X[:9], y[:9]), norm.logpdf(X[:9, 0]), atol=1e-12)
    joint = worst.log_joint(X[:9], y[:9]) - norm.logpdf(X[:9, 0])
    np.testing.assert_allclose(np.exp(joint), np.where(y[:9] == "yes", expected, 1 - expected))
    frame = worst.displacement()
    assert list(frame["class"]) == ["no", "yes"]
    np.testing.assert_allclose(frame["mass"], [0.5 - expected, expected - 0.5], atol=1e-9)
    np.testing.assert_allclose(frame["rms"], 0.0, atol=1e-7)


def test_displacement_of_a_shift():
    """A linear loss under KL shifts a Gaussian: mean, every quantile and W2 by b / penalty."""
    worst = gaussian_worst(KL(penalty=2.0), lambda x, y: x[:, 0], 2)
    frame = worst.displacement().set_index("feature")
    for column in ("mean", "q05", "median", "q95", "rms"):
        assert frame.loc["x0", column] == pytest.approx(0.5, abs=0.06)
        assert abs(frame.loc["x1", column]) < 0.06
    assert frame["share"].sum() == pytest.approx(1.0)
    assert frame.loc["x0", "share"] > 0.95
    x, image, _, w = worst.pairs()
    assert x.shape == image.shape
    assert w.sum() == pytest.approx(1.0)
    assert (w @ (image - x))[0] == pytest.approx(0.5, abs=0.15)
    assert worst.to_frame(5).shape == (5, 3)
    assert "KL" in repr(worst)


def test_regression_has_a_joint_density():
    reference = Joint(Gaussian(mean=[0.0, 0.0], covariance=[[1.0, 0.6], [0.6, 1.0]]))
    penalty = 4.0
    worst = ReweightedWorstCase(
        KL(penalty=penalty), penalty, 0.0, lambda x, y: (y - x[:, 0]) ** 2, reference
    )
    precision = np.linalg.inv(np.array([[1.0, 0.6], [0.6, 1.0]]))
    precision -= 2.0 / penalty * np.array([[1.0, -1.0], [-1.0, 1.0]])
    covariance = np.linalg.inv(precision)
    X, y = worst.sample(20_000, random_state=0)
    np.testing.assert_allclose(np.cov(X[:, 0], y), covariance, atol=0.06)
    z = np.column_stack([X[:5], y[:5]])
    exact = -0.5 * np.einsum("ni,ij,nj->n", z, precision, z)
    exact -= 0.5 * math.log(np.linalg.det(covariance)) + math.log(2 * math.pi)
    np.testing.assert_allclose(worst.log_joint(X[:5], y[:5]), exact, atol=0.05)
    with pytest.raises(UnsupportedError, match="log_joint"):
        worst.log_prob(X[:5], y[:5])
    with pytest.raises(UnsupportedError):
        worst.label_shares()


def test_mistakes_are_told():
    unbounded = gaussian_worst(CressieRead(0.5, radius=0.1), lambda x, y: x[:, 0])
    wrong = ReweightedWorstCase(
        unbounded.ambiguity, 0.1, -9.0, unbounded.loss_function, unbounded.reference, np.array([7])
    )
    with pytest.raises(UnboundedRiskError, match="no worst case"):
        wrong.risk()
    foreign = ReweightedWorstCase(
        ChiSquare(radius=0.1), 0.1, 1e9, unbounded.loss_function, unbounded.reference,
        np.array([7]),
    )  # fmt: skip
    with pytest.raises(InvalidDataError, match="other losses"):
        foreign.risk()
    kl = gaussian_worst(KL(radius=0.1), lambda x, y: x[:, 0])
    with pytest.raises(InvalidDataError, match="shape"):
        kl.log_prob([[0.0, 1.0]], [7])
    with pytest.raises(InvalidDataError, match="labels"):
        kl.log_prob([[0.0]], [8])


@pytest.mark.promise(1)
@pytest.mark.filterwarnings("ignore:.*optimum is a constant model")
@pytest.mark.parametrize(
    "ambiguity",
    [TotalVariation(0.1), TotalVariation(penalty=2.0), CressieRead(0.5, 0.1),
     CressieRead(0.5, penalty=1.0), ChiSquare(1e6), KL(0.1)],
    ids=repr,
)  # fmt: skip
def test_the_attained_risk_is_that_of_fresh_draws(ambiguity):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2)) @ np.array([[1.0, 0.5], [0.0, 0.8]])
    y = (X[:, 0] + 0.5 * rng.normal(size=300) > 0).astype(int)
    model = DROClassifier(ambiguity, reference="gaussian", alpha=0.05, random_state=0).fit(X, y)
    worst, certificate = model.worst_case_, model.certificate_
    Z, labels = worst.sample(100_000, random_state=1)
    margin = (2 * labels - 1) * model.decision_function(Z)
    losses = np.logaddexp(0, -margin)
    pool = worst.pool
    # Few draws carry some of these: their share tells how far averages of the ratio scatter.
    noise = losses.std() / np.sqrt(1e5) + float(pool.losses.std()) * np.sqrt(
        1.0 / (len(pool.w) * worst.effective_sample_size)
    )
    assert worst.risk() == pytest.approx(losses.mean(), abs=5 * noise + 1e-12)
    assert certificate.lower <= certificate.worst_case_risk + 1e-12
    assert certificate.lower <= certificate.upper


def test_orders_below_one_count_losses_beyond_the_largest_as_that_one():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = (X[:, 0] + 0.5 * rng.normal(size=200) > 0).astype(int)
    for inner in ("icnn", "importance"):
        worst = (
            DROClassifier(
                CressieRead(0.5, 0.05), reference="gaussian", inner=inner, alpha=0.05,
                random_state=0,
            )
            .fit(X, y)
            .worst_case_
        )  # fmt: skip
        assert np.isfinite(worst.bounded.top)
        Z, _ = worst.sample(2000, random_state=0)
        assert np.abs(Z).max() < 10.0
        if inner == "icnn":
            flow = worst.flow(0)
            assert 0.0 < flow.divergence < 1.0
            assert flow.effective_sample_size > 0.5
            assert np.abs(worst.transport(X[:5], y[:5]) - X[:5]).max() < 5.0


def test_shares_of_a_shift_are_in_standard_deviations():
    """Both columns move by the same number of standard deviations, in other units."""
    mean, scale = np.zeros(2), np.array([1.0, 1000.0])
    reference = one_class(mean, np.diag(scale**2))
    x, y, w = reference.points(100_000, torch.Generator().manual_seed(5))

    def loss(x, y):
        return x[:, 0] + x[:, 1] / 1000.0

    dual = KL(penalty=2.0).dual(loss(x, y), w)
    worst = ReweightedWorstCase(
        KL(penalty=2.0), dual.penalty, dual.shift, loss, reference, classes=np.array([7])
    )
    # Draws: 20,000 in the pool, whose columns differ by chance.
    np.testing.assert_allclose(worst.displacement()["share"], 0.5, atol=0.05)


@pytest.mark.parametrize("reference", ["empirical", "gaussian"])
def test_groups_and_kernels_show_what_changes(reference):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 2)), np.arange(200) % 2
    X[:100, 0] += 3.0
    groups = np.repeat(["near", "far"], 100)
    clf = DROClassifier(Group(0.3), reference=reference, random_state=0)
    frame = clf.fit(X, y, groups=groups).worst_case_.displacement()
    shares = clf.worst_case_.group_weights
    moved = 3.0 * (shares["near"] - 0.5)
    first = frame[frame["feature"] == "x0"]
    np.testing.assert_allclose(first["mean"], moved, atol=0.25)  # means of 50 draws each
    assert frame["share"].sum() == pytest.approx(1.0)
    assert frame.groupby("feature")["share"].sum()["x0"] > 0.8
