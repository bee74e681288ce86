"""Sets that are not the package's: subclasses, a divergence, one that only offers `on`."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone

import drojko
from drojko import DROClassifier, DRORegressor, audit, radius_path, select_radius
from drojko.ambiguity import (
    KL,
    MMD,
    AmbiguitySet,
    ChiSquare,
    CVaR,
    DensityRatioSet,
    Dual,
    Group,
    Sinkhorn,
    TotalVariation,
    Wasserstein,
)
from drojko.approaches import registry
from drojko.approaches.transport.approach import Transport
from drojko.baselines import ConvexDROClassifier
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.problems import MaxAffine, MinimaxProblem, newsvendor


class MyKL(KL):
    pass


class MyWasserstein(Wasserstein):
    pass


class MyCVaR(CVaR):
    pass


class MyGroup(Group):
    pass


class MyMMD(MMD):
    pass


class MySinkhorn(Sinkhorn):
    pass


class MyTotalVariation(TotalVariation):
    pass


class Entropy(DensityRatioSet):
    """Kullback-Leibler, from its formulas alone."""

    def __init__(self, radius=None, *, penalty=None):
        self.radius = radius
        self.penalty = penalty

    def discrepancy(self, ratio, weights):
        return float(weights @ (ratio * np.log(np.maximum(ratio, 1e-300)) - ratio + 1.0))

    def conjugate(self, t):
        return np.expm1(t)

    def log_ratio(self, t):
        return t


class Doubling(DensityRatioSet):
    """f(r) = r log r + (2 - r) log(2 - r): no row counts more than twice."""

    ratio_bound = 2.0

    def __init__(self, radius=None, *, penalty=None):
        self.radius = radius
        self.penalty = penalty

    def discrepancy(self, ratio, weights):
        if ratio.max() > 2.0:
            return np.inf
        terms = [
            np.where(r > 0, r * np.log(np.maximum(r, 1e-300)), 0.0) for r in (ratio, 2 - ratio)
        ]
        return float(weights @ (terms[0] + terms[1]))

    def conjugate(self, t):
        return 2.0 * (np.logaddexp(0.0, t) - np.log(2.0))

    def log_ratio(self, t):
        return np.log(2.0) - np.logaddexp(0.0, -t)


class Deviations(AmbiguitySet):
    """E loss + radius * deviation of the loss, for a small radius: all it offers is `on`."""

    def __init__(self, radius=None, *, penalty=None):
        self.radius = radius
        self.penalty = penalty

    def on(self, x, weights, groups=None):
        return _Deviations(np.asarray(weights, dtype=float), float(self.radius))


class _Deviations:
    def __init__(self, w, radius):
        self.w, self.radius = w / w.sum(), radius

    def dual(self, losses, smoothing=0.0):
        losses = np.asarray(losses, dtype=float)
        mean = float(self.w @ losses)
        deviation = float(np.sqrt(self.w @ (losses - mean) ** 2 + 1e-12))
        ratio = 1.0 + self.radius * (losses - mean) / deviation
        attained = float(self.w @ (ratio * losses))
        value = mean + self.radius * deviation
        return Dual(value, deviation, mean, ratio, attained, self.radius)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = (X @ [1.0, -1.0, 0.5] + rng.normal(size=80) > 0).astype(int)
    return X, y, np.arange(80) % 2


SETS = {
    "kl": (MyKL(radius=0.1), KL(radius=0.1)),
    "wasserstein": (MyWasserstein(radius=0.1), Wasserstein(radius=0.1)),
    "order one": (MyWasserstein(radius=0.1, order=1), Wasserstein(radius=0.1, order=1)),
    "cvar": (MyCVaR(alpha=0.5), CVaR(alpha=0.5)),
    "group": (MyGroup(radius=0.2), Group(radius=0.2)),
    "mmd": (MyMMD(radius=0.2), MMD(radius=0.2)),
    "sinkhorn": (MySinkhorn(0.1, radius=0.1), Sinkhorn(0.1, radius=0.1)),
    "total variation": (MyTotalVariation(radius=0.1), TotalVariation(radius=0.1)),
    "entropy": (Entropy(radius=0.1), KL(radius=0.1)),
    "doubling": (Doubling(radius=0.1), None),
    "deviations": (Deviations(radius=0.1), ChiSquare(radius=0.01)),
}


def known(ambiguity, groups):
    return {"groups": groups} if ambiguity.knows_groups else {}


@pytest.fixture(scope="module")
def models(data):
    X, y, groups = data

    def fit(ambiguity):
        if ambiguity is None:
            return None
        model = DROClassifier(ambiguity, reference="empirical", alpha=1e-3, random_state=0)
        return model.fit(X, y, **known(ambiguity, groups))

    return {name: tuple(map(fit, pair)) for name, pair in SETS.items()}


@pytest.mark.parametrize("name", SETS)
def test_fit_worst_case_and_scores(name, data, models):
    X, y, groups = data
    model, same = models[name]
    assert model.status_ == "converged", model.message_
    worst, certificate = model.worst_case_, model.certificate_
    # Of order 1 the supremum is approached only.
    gap = 1e-3 if name == "order one" else 1e-6
    assert certificate.gap <= gap * (1.0 + abs(certificate.upper))
    assert worst.risk() == pytest.approx(certificate.worst_case_risk)
    rows, labels = worst.sample(50, random_state=0)
    assert rows.shape == (50, 3)
    assert set(labels.tolist()) <= {0, 1}
    held = model.robust_certificate(X[:40], y[:40], **known(model.ambiguity, groups[:40]))
    score = model.robust_score(X[:40], y[:40], **known(model.ambiguity, groups[:40]))
    assert score == -held.upper
    assert held.nominal_risk <= held.upper
    if same is not None:  # the formulas are those of a set of the package
        assert certificate.upper == pytest.approx(same.certificate_.upper, rel=1e-5)
        np.testing.assert_allclose(model.coef_, same.coef_, rtol=1e-3, atol=1e-3)
        assert type(worst) is type(same.worst_case_) or name == "deviations"


@pytest.mark.parametrize("name", SETS)
def test_paths_and_choices_of_the_size(name, data):
    X, y, groups = data
    ambiguity = SETS[name][0]
    model = DROClassifier(ambiguity, reference="empirical", alpha=1e-3)
    sizes = [0.9, 0.7] if ambiguity.size_name == "alpha" else [0.05, 0.1]
    path = radius_path(model, X, y, sizes, **known(ambiguity, groups))
    assert [type(one.ambiguity) for one in path] == [type(ambiguity)] * 2
    assert path[0].certificate_.upper < path[1].certificate_.upper
    given = sizes if name == "deviations" else None
    found = select_radius(
        model, X, y, radii=given, cv=2, random_state=0, **known(ambiguity, groups)
    )
    assert f"ambiguity__{ambiguity.size_name}" in found.params
    assert type(found.at) is type(ambiguity)


def test_a_set_without_candidates_asks_for_them(data):
    model = DROClassifier(Deviations(radius=0.1), reference="empirical")
    with pytest.raises(InvalidDataError, match="Deviations has no default candidates: give radii"):
        select_radius(model, *data[:2], random_state=0)


@pytest.mark.parametrize("name", SETS)
def test_audits(name, data, models):
    X, y, groups = data
    ambiguity = SETS[name][0]
    report = audit(models["kl"][1], X, y, ambiguity, random_state=0, **known(ambiguity, groups))
    row = report.table.iloc[0]
    assert row.nominal_risk < row.worst_case_risk <= row.upper_bound * (1.0 + 1e-9)
    own = models["kl"][1].robust_certificate(X, y, ambiguity, **known(ambiguity, groups))
    if name != "wasserstein":  # where audits search harder
        assert row.worst_case_risk == pytest.approx(own.worst_case_risk, rel=1e-6)


@pytest.mark.parametrize("name", ["kl", "cvar", "entropy", "doubling", "deviations", "wasserstein"])
def test_decisions(name):
    demand = np.array([[5.0], [9.0], [14.0], [30.0]])
    loss = MaxAffine(lambda q: ([[1.0], [-1.0]], torch.cat([-q, q])))
    ambiguity, same = SETS[name]
    found = MinimaxProblem(loss, [9.0], demand, ambiguity, convex=True).solve()
    assert found.objective >= found.certificate.nominal_risk
    assert found.worst_case.sample(5, 0).shape == (5, 1)
    if same is not None:
        other = MinimaxProblem(loss, [9.0], demand, same, convex=True).solve()
        assert found.objective == pytest.approx(other.objective, rel=1e-4)
    assert newsvendor(demand[:, 0], ambiguity, shortage=3.0).evaluate(9.0)[0].gap < 1e-6


@pytest.mark.parametrize("name", ["kl", "cvar", "group", "mmd", "total variation", "order one"])
def test_programs(name, data, models):
    X, y, groups = data
    ambiguity = SETS[name][0]
    program = ConvexDROClassifier(ambiguity, alpha=1e-3).fit(X, y, **known(ambiguity, groups))
    model = models[name][0]
    whole = model.certificate_.upper + 0.5e-3 * float((model.coef_**2).sum())
    assert program.objective_ == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("name", ["entropy", "doubling", "deviations", "sinkhorn"])
def test_sets_without_a_program_say_so(name, data):
    with pytest.raises(UnsupportedError, match=r"conic_form|no convex reformulation"):
        ConvexDROClassifier(SETS[name][0]).fit(*data[:2])


@pytest.mark.parametrize("name", SETS)
def test_files(name, data, models, tmp_path):
    model = models[name][0]
    kind = type(model.ambiguity)
    model.save(tmp_path / "model")
    with pytest.raises(InvalidDataError, match=rf"{kind.__name__}.*trusted=\[{kind.__name__}\]"):
        drojko.load(tmp_path / "model")
    for copy in (
        drojko.load(tmp_path / "model", trusted=[kind]),
        drojko.load(tmp_path / "model", trusted=[f"{kind.__module__}.{kind.__name__}"]),
        pickle.loads(pickle.dumps(model)),
    ):
        np.testing.assert_array_equal(copy.predict(data[0]), model.predict(data[0]))
        assert type(copy.ambiguity) is kind
        one, other = copy.worst_case_.sample(9, 0), model.worst_case_.sample(9, 0)
        np.testing.assert_array_equal(one[0], other[0])


def test_a_worst_case_keeps_its_set_when_the_estimator_gets_another(data):
    model = DROClassifier(MyKL(radius=0.1), reference="empirical").fit(*data[:2])
    before = model.worst_case_.sample(20, 0)[0]
    model.set_params(ambiguity__radius=2.0)
    model.__dict__.pop("_worst_cache")
    np.testing.assert_array_equal(model.worst_case_.sample(20, 0)[0], before)


def test_continuous_references(data):
    X, y, _ = data
    for ambiguity, same in ((Entropy(radius=0.05), KL(radius=0.05)),):
        one, other = (
            DRORegressor(a, reference="gaussian", random_state=0, loss="huber").fit(X, 1.0 * y)
            for a in (ambiguity, same)
        )
        assert one.certificate_.upper == pytest.approx(other.certificate_.upper, rel=1e-4)
        assert one.certificate_.proof == "dual"
    found = DROClassifier(Deviations(radius=0.1), reference="gaussian", random_state=0).fit(X, y)
    assert found.certificate_.proof == "local-estimate"  # nothing is known beyond the draws


@pytest.mark.parametrize("size", [{"radius": 0.1}, {"radius": 3.0}, {"penalty": 0.7}])
def test_a_divergence_from_its_conjugate(size, rng):
    losses, weights = rng.normal(size=60) ** 3, rng.uniform(size=60)
    own, exact = Entropy(**size).dual(losses, weights), KL(**size).dual(losses, weights)
    assert own.value == pytest.approx(exact.value, rel=1e-9)
    np.testing.assert_allclose(own.ratio, exact.ratio, rtol=1e-6, atol=1e-9)
    path = Entropy(0.1).dual_path(losses, [0.0, 0.1, 1.0, 50.0], weights)
    np.testing.assert_allclose(path, KL(0.1).dual_path(losses, [0.0, 0.1, 1.0, 50.0], weights))
    t = np.log([1e-30, 0.3, 1.0, 4.0])
    for mine, known in zip(Entropy(0.1).conjugate_jet(t, 0.0), KL(0.1).conjugate_jet(t, 0.0)):
        np.testing.assert_allclose(mine, known, rtol=1e-6, atol=1e-20)
    assert Entropy(0.1).curvature == pytest.approx(1.0)
    assert Doubling(0.1).curvature == pytest.approx(2.0)
    assert TotalVariation(0.1).curvature is CVaR(0.1).curvature is None


def test_a_ball_that_holds_every_ratio_allowed(rng):
    losses = rng.normal(size=100)
    found = Doubling(radius=10.0).dual(losses)
    assert found.value == pytest.approx(CVaR(alpha=0.5).dual(losses).value, rel=1e-8)


@pytest.mark.parametrize("missing", ["conjugate", "log_ratio", "discrepancy"])
def test_a_missing_formula_is_named(missing, data):
    methods = {"__init__": Entropy.__init__}
    for name in {"conjugate", "log_ratio", "discrepancy"} - {missing}:
        methods[name] = getattr(Entropy, name)
    kind = type("Partial", (DensityRatioSet,), methods)
    model = DROClassifier(kind(radius=0.1), reference="empirical")
    with pytest.raises(UnsupportedError, match=rf"Partial has no {missing}\(.*needs"):
        model.fit(*data[:2])


def test_what_a_set_lacks_is_named(data):
    X, y, _ = data

    class Nothing(AmbiguitySet):
        def __init__(self, radius=None, *, penalty=None):
            self.radius = radius
            self.penalty = penalty

    class NoDual(Nothing):
        def on(self, x, weights, groups=None):
            return self

    class NoCost(Nothing):
        moves, order = True, 2

    class WrongCost(NoCost):
        def resolve(self, n_features, feature_names=None):
            return n_features

    cases = [
        (Nothing, r"Nothing offers nothing.*on\(x, weights, groups\).*resolve"),
        (NoDual, r"NoDual.on\(...\) returned NoDual, which has no dual\(losses"),
        (NoCost, r"NoCost has no resolve\(.*transport needs"),
        (WrongCost, r"WrongCost.resolve returned int; transport needs"),
    ]
    for kind, message in cases:
        with pytest.raises(UnsupportedError, match=message):
            DROClassifier(kind(radius=0.1)).fit(X, y)
    with pytest.raises(UnsupportedError, match="Nothing offers nothing"):
        audit(DROClassifier(KL(0.1)).fit(X, y), X, y, Nothing(radius=0.1))
    with pytest.raises(UnsupportedError, match="Nothing offers nothing"):
        newsvendor([1.0, 2.0], Nothing(radius=0.1))


def test_a_constructor_that_does_not_store_is_scikit_learns_business():
    class Forgetful(KL):
        def __init__(self, size=0.1):
            super().__init__(radius=2.0 * size)

    with pytest.raises(AttributeError, match="size"):
        clone(DROClassifier(Forgetful()))


def test_a_cost_of_ones_own_moves_points(data):
    X, y, _ = data

    class Metres(AmbiguitySet):
        """Wasserstein of order 2 with columns in centimetres."""

        moves, order = True, 2

        def __init__(self, radius=None, *, penalty=None):
            self.radius = radius
            self.penalty = penalty

        def resolve(self, n_features, feature_names=None):
            return drojko.ambiguity.GroundCost(np.full(n_features, 1e-4))

    own = DROClassifier(Metres(radius=0.001), reference="empirical").fit(X, y)
    same = DROClassifier(Wasserstein(radius=0.1), reference="empirical").fit(X, y)
    assert own.certificate_.upper == pytest.approx(same.certificate_.upper, rel=1e-5)
    assert len(own.worst_case_.sample(5, 0)[0]) == 5


def test_an_approach_of_ones_own(data):
    X, y, _ = data

    class Mine(AmbiguitySet):
        def __init__(self, radius=None, *, penalty=None):
            self.radius = radius
            self.penalty = penalty

    class MyApproach(Transport):
        name = "mine"

        def serves(self, ambiguity):
            return isinstance(ambiguity, Mine)

    before = dict(registry.APPROACHES)
    registry.register(MyApproach())
    try:
        model = DROClassifier(Mine(radius=0.1), reference="empirical").fit(X, y)
        assert model._worst["approach"] == "mine"
        assert len(model.worst_case_.sample(5, 0)[0]) == 5
    finally:
        registry.APPROACHES.clear()
        registry.APPROACHES.update(before)
    with pytest.raises(UnsupportedError, match="'mine', which is not registered"):
        clone(model) and registry.approach_named("mine")
