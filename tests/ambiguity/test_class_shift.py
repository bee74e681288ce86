"""Class shares that move: against linear programs, in fits, in stated directions."""

import cvxpy as cp
import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.base import clone

from drojko import DROClassifier, DRORegressor, audit, select_radius
from drojko.ambiguity import ClassShift, Group
from drojko.boosting import ReweightedClassifier
from drojko.exceptions import InvalidDataError

SETS = [
    ClassShift(radius=0.1),
    ClassShift(radius=0.3, direction=1),
    ClassShift(between=(-0.7, 0.4)),
    ClassShift(between=(0.0, 1.5), direction=0),
]


def program(ambiguity, shares, risks):
    """The largest mean risk over the shares of the set, by cvxpy."""
    q, k = cp.Variable(len(shares)), ambiguity.direction
    rules = [q >= 0, cp.sum(q) == 1]
    if k is not None:
        rest = np.delete(np.arange(len(shares)), k)
        rules += [q[rest] == shares[rest] / shares[rest].sum() * (1 - q[k])]
    if ambiguity.radius is not None:
        rules += [cp.norm1(q - shares) / 2 <= ambiguity.radius]
        rules += [] if k is None else [q[k] >= shares[k]]
    else:
        moves = np.arange(len(shares)) if k is None else [k]
        low, high = (expit(logit(shares) + end) for end in ambiguity.between)
        rules += [q[moves] >= low[moves], q[moves] <= high[moves]]
    problem = cp.Problem(cp.Maximize(risks @ q), rules)
    return problem.solve(solver=cp.CLARABEL)


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_dual_is_the_linear_program(ambiguity, n_classes, seed):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(n_classes), rng.integers(0, n_classes, 30)]
    w, losses = rng.uniform(0.2, 2.0, len(y)), rng.normal(size=len(y))
    dual = ambiguity.bind(None, y, w).dual(losses)
    mass = np.bincount(y, w)
    risks = np.bincount(y, w * losses) / mass
    assert dual.value == pytest.approx(program(ambiguity, mass / mass.sum(), risks), abs=1e-6)
    assert np.average(dual.ratio, weights=w) == pytest.approx(1.0)
    assert np.average(dual.ratio * losses, weights=w) == pytest.approx(dual.attained)
    assert dual.attained == pytest.approx(dual.value)
    assert (dual.ratio >= 0).all()


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_smoothing_costs_no_more_than_it_says_and_is_continuous(ambiguity):
    rng = np.random.default_rng(5)
    y, losses = rng.integers(0, 3, 40), rng.normal(size=40)
    bound = ambiguity.bind(None, y, None)
    for smoothing in (1e-3, 0.1, 10.0):
        smooth = bound.dual(losses, smoothing)
        assert smooth.value <= bound.dual(losses).value + 1e-12
        assert smooth.value >= bound.dual(losses).value - smoothing
        near = bound.dual(losses + 1e-8 * rng.normal(size=40), smoothing)
        assert np.abs(near.ratio - smooth.ratio).max() < 1e-3


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_linear_fits_are_proven_and_as_low_as_a_program(ambiguity, loss):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(120, 2))
    y = (X[:, 0] + rng.normal(size=120) > 0.8).astype(int)
    fit = DROClassifier(ambiguity, loss=loss, alpha=0.05, reference="empirical", tol=1e-5)
    fit.fit(X, y)
    assert fit.status_ == "converged"
    assert 0 <= fit.optimality_gap_ <= 1e-5
    beta, shift, worst = cp.Variable(2), cp.Variable(), cp.Variable()
    margins = cp.multiply(2 * y - 1, X @ beta + shift)
    losses = cp.logistic(-margins) if loss == "logistic" else cp.pos(1 - margins)
    share = y.mean()
    if ambiguity.radius is not None:
        ends = [share - ambiguity.radius, share + ambiguity.radius]
        if ambiguity.direction is not None:
            ends[0] = share
    elif ambiguity.direction is None:  # both classes keep within the range
        low, high = ambiguity.between
        ends = [expit(logit(share) + max(low, -high)), expit(logit(share) + min(high, -low))]
    else:  # of class 0
        low, high = ambiguity.between
        ends = [expit(logit(share) - high), expit(logit(share) - low)]
    ends = np.clip(ends, 0.0, 1.0)
    means = [cp.sum(losses[y == k]) / (y == k).sum() for k in (0, 1)]
    rules = [worst >= (1 - q) * means[0] + q * means[1] for q in ends]
    least = cp.Problem(cp.Minimize(worst + 0.025 * cp.sum_squares(beta)), rules)
    best = least.solve(solver=cp.CLARABEL)
    own = fit.certificate_.upper + 0.025 * float((fit.coef_**2).sum())
    assert own == pytest.approx(best, rel=3e-5)


def test_labels_of_any_kind_and_what_a_direction_names():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(90, 2))
    y = np.array(["low", "mid", "top"])[np.argsort(X[:, 0] + rng.normal(size=90)).argsort() // 30]
    model = DROClassifier(ClassShift(radius=0.2, direction="top"), reference="empirical", alpha=0.1)
    model.fit(X, y)
    certificate = model.certificate_
    losses = -np.log(model.predict_proba(X)[np.arange(90), np.searchsorted(model.classes_, y)])
    means = np.array([losses[y == name].mean() for name in model.classes_])
    top = means[2] if means[2] > losses.mean() else losses.mean()
    expected = losses.mean() + (0.2 / (2 / 3)) * max(top - losses.mean(), 0.0)
    assert certificate.upper == pytest.approx(expected, rel=1e-6)
    drawn = model.worst_case_.sample(4000, random_state=0)[1]
    share = 1 / 3 + (0.2 if means[2] > losses.mean() else 0.0)
    assert np.mean(drawn == "top") == pytest.approx(share, abs=0.03)
    with pytest.raises(InvalidDataError, match=r"direction='tip'.*top"):
        clone(model).set_params(ambiguity__direction="tip").fit(X, y)


def test_it_is_the_group_set_whose_groups_are_the_classes():
    rng = np.random.default_rng(3)
    y, losses = rng.integers(0, 3, 50), rng.normal(size=50)
    one = ClassShift(radius=0.15).bind(None, y, None).dual(losses)
    other = Group(radius=0.15).on(None, None, y).dual(losses)
    assert one.value == pytest.approx(other.value)
    assert one.ratio == pytest.approx(other.ratio)


def test_nothing_moves_at_zero():
    y, losses = np.array([0, 1, 1]), np.array([1.0, 2.0, 6.0])
    for ambiguity in (ClassShift(radius=0.0), ClassShift(between=(0, 0)),
                      ClassShift(radius=0.0, direction=1)):  # fmt: skip
        dual = ambiguity.bind(None, y, None).dual(losses)
        assert dual.value == pytest.approx(3.0)
        assert dual.ratio == pytest.approx(np.ones(3))


def test_audits_selection_and_other_learners_take_it():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(150, 2))
    y = np.where(X[:, 0] + rng.normal(size=150) > 1.0, "yes", "no")
    ambiguity = ClassShift(radius=0.1, direction="yes")
    model = DROClassifier(ambiguity, reference="empirical").fit(X, y)
    report = audit(model, X, y, ambiguity, radii=[0.1, 0.2], reference="empirical")
    assert report.table["upper_bound"][0] == pytest.approx(model.certificate_.upper, rel=1e-6)
    assert report.table["upper_bound"][1] > report.table["upper_bound"][0]
    chosen = select_radius(model, X, y, radii=[0.0, 0.1], random_state=0)
    assert chosen.radius in (0.0, 0.1)
    from sklearn.linear_model import LogisticRegression

    plain = ReweightedClassifier(LogisticRegression(C=1e5), ambiguity, cv=0).fit(X, y)
    assert plain.certificate_.upper == pytest.approx(model.certificate_.upper, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give one of them"),
        ({"radius": 0.1, "between": (0, 1)}, "give one of them"),
        ({"radius": 1.5}, "at most 1"),
        ({"between": (0.5, 1)}, "low <= 0 <= high"),
        ({"between": 1.0}, "low <= 0 <= high"),
        ({"between": ("a", 1)}, "low <= 0 <= high"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(InvalidDataError, match=words):
        ClassShift(**settings).bind(None, [0, 1], None)


def test_regressions_have_no_classes():
    with pytest.raises(InvalidDataError, match="label_cost"):
        DRORegressor(ClassShift(radius=0.1), reference="empirical").fit([[0.0], [1.0]], [0.0, 1.0])
