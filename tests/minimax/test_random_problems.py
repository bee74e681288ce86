"""Random linear problems over all sets and losses, against solvers that share nothing with ours.

``pytest tests/minimax/test_random_problems.py --problems 2000`` fits all of them;
``python -m tests.minimax.test_random_problems 2000`` prints a table and the failures.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from drojko import DROClassifier, DRORegressor
from tests._oracles import Optimum, Problem, Scalar, ambiguity_of, optimum, scaled

LOSSES = (
    Scalar("logistic"),
    Scalar("hinge"),
    Scalar("squared"),
    Scalar("absolute"),
    Scalar("huber", 1.35),
    Scalar("quantile", 0.1),
    Scalar("quantile", 0.9),
)
#: Each set with its size, in natural units; "label" stands for a finite label cost.
SETS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("w2", {"radius": 0.1}),
    ("w2", {"radius": 1.0}),
    ("w2", {"radius": 0.0}),
    ("w2", {"penalty": 5.0}),
    ("w2", {"radius": 0.3, "label_cost": 2.0}),
    ("w1", {"radius": 0.1}),
    ("w1", {"penalty": 1.0}),
    ("w1", {"radius": 0.2, "label_cost": 2.0}),
    ("kl", {"radius": 0.1}),
    ("kl", {"penalty": 5.0}),
    ("kl", {"penalty": 0.3}),
    ("chi2", {"radius": 0.5}),
    ("chi2", {"penalty": 0.5}),
    ("cr", {"k": 0.5, "radius": 0.2}),
    ("cr", {"k": 3.0, "radius": 0.2}),
    ("cr", {"k": 3.0, "penalty": 1.0}),
    ("tv", {"radius": 0.2}),
    ("tv", {"penalty": 1.0}),
    ("cvar", {"radius": 0.5}),
    ("cvar", {"radius": 0.1}),
    ("sinkhorn", {"epsilon": 0.1, "radius": 0.1}),
    ("sinkhorn", {"epsilon": 0.3, "penalty": 6.0}),
    ("group", {}),
    ("group", {"radius": 0.2}),
)


def random_problem(seed: int) -> Problem:
    """The problem of a number: sets and losses in turn, everything else by chance."""
    rng = np.random.default_rng([seed, 7])
    kind, sizes = SETS[seed % len(SETS)]
    loss = LOSSES[(seed // len(SETS)) % len(LOSSES)]
    if kind == "w1" and loss.name == "squared":  # infinite in order 1
        loss = Scalar("huber", float(rng.choice([0.2, 1.35, 5.0])))
    n = int(rng.choice([rng.integers(3, 12), rng.integers(12, 61), 200], p=[0.45, 0.5, 0.05]))
    d = int(rng.choice([0, 1, 2, 5], p=[0.15, 0.3, 0.3, 0.25]))
    X = rng.normal(size=(n, d)) if d else np.ones((n, 1))
    tags = [f"n={n}", f"d={d}"]

    def tag(name: str, chance: float) -> bool:
        if rng.random() < chance:
            tags.append(name)
            return True
        return False

    if d and tag("ties", 0.25):
        X = np.round(X)
    if d and tag("offset", 0.15):
        X = X + rng.normal(size=X.shape[1]) * 30.0
    if d and kind not in {"w1", "w2", "sinkhorn"} and tag("columns", 0.15):
        X = X * 2.0 ** rng.integers(-6, 7, X.shape[1])
    theta = rng.normal(size=X.shape[1]) / np.maximum(X.std(axis=0), 0.1)
    f = (X - X.mean(axis=0)) @ theta + rng.normal()
    if loss.classifies:
        noise = 0.0 if tag("exact", 0.1) else 1.0
        y = (f + noise * rng.logistic(size=n) > np.median(f)).astype(float)
        y[:2] = 0.0, 1.0
    else:
        noise = 0.0 if tag("exact", 0.1) else float(rng.choice([0.1, 1.0]))
        y = f + noise * (rng.standard_t(3, size=n) if rng.random() < 0.3 else rng.normal(size=n))
        if noise and tag("rounded", 0.2):
            y = np.round(y)
    if tag("duplicates", 0.2):
        pick = np.r_[0, 1, rng.integers(0, n, n - 2)]
        X, y = X[pick], y[pick]
    weight = None
    if tag("weights", 0.25):
        weight = rng.integers(0, 4, n).astype(float) if rng.random() < 0.5 else rng.random(n) + 0.1
        weight[:2] = np.maximum(weight[:2], 1.0)
    groups = None
    if kind == "group":
        groups = rng.integers(0, 3, n)
        if weight is not None:
            weight = np.maximum(weight, 0.5)
    alpha = float(rng.choice([0.0, 0.01, 1.0], p=[0.6, 0.25, 0.15]))
    if (
        loss.name == "logistic"
        and alpha == 0.0
        and not (kind in {"w1", "w2"} and sizes.get("radius"))
    ):
        alpha = 0.01  # separable classes have no best model otherwise
    if alpha:
        tags.append(f"alpha={alpha:g}")
    intercept = not tag("no intercept", 0.15)
    problem = Problem(
        kind, loss, X, y, weight=weight, groups=groups, alpha=alpha, intercept=intercept,
        tol=float(rng.choice([1e-3, 1e-6])), tags=tuple(tags), seed=seed, **sizes,
    )  # fmt: skip
    return problem


def units(problem: Problem) -> tuple[float, float]:
    """Factors of X and y, powers of two from 1e-3 to 1e3, so that scaling rounds nothing."""
    rng = np.random.default_rng([problem.seed, 11])
    if rng.random() < 0.5:
        return 1.0, 1.0
    x, y = 2.0 ** rng.integers(-10, 11, 2)
    return float(x), float(y)


def fitted(problem: Problem, x: float = 1.0, y: float = 1.0) -> Any:
    """Our model of the problem in units that are x and y times smaller."""
    p = scaled(problem, x, y)
    common: dict[str, Any] = {
        "reference": "empirical", "alpha": p.alpha, "fit_intercept": p.intercept, "tol": p.tol,
        "max_iter": 1000, "random_state": 0,
    }  # fmt: skip
    if p.loss.classifies:
        model: Any = DROClassifier(ambiguity_of(p), loss=p.loss.name, **common)
    else:
        sizes = {"huber": {"delta": p.loss.size}, "quantile": {"quantile": p.loss.size}}
        extra = sizes.get(p.loss.name, {})
        model = DRORegressor(ambiguity_of(p), loss=p.loss.name, **extra, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(p.X, p.y, p.weight, p.groups)


@dataclass
class Verdict:
    """What a fit says, what is true, and where they disagree."""

    problem: Problem
    best: Optimum
    status: str
    objective: tuple[float, float]
    gap: float
    faults: list[str]
    seconds: float = 0.0
    units: tuple[float, float] = (1.0, 1.0)

    @property
    def excess(self) -> float:
        """Proven distance from the optimum, relative; at least this far."""
        return max(self.objective[0] - self.best.high, 0.0) / max(abs(self.best.high), 1e-300)

    def __str__(self) -> str:
        p = self.problem
        loss = p.loss.name + (f"({p.loss.size:g})" if p.loss.name in {"huber", "quantile"} else "")
        size = f"radius={p.radius}" if p.ball else f"penalty={p.penalty}"
        extra = f" k={p.k}" if p.kind == "cr" else ""
        extra += "" if math.isinf(p.label_cost) else f" label_cost={p.label_cost:g}"
        return (
            f"#{p.seed} {p.kind} {size}{extra} {loss} [{', '.join(p.tags)}] tol={p.tol:g} "
            f"units={self.units[0]:g},{self.units[1]:g}: {self.status}, objective "
            f"{self.objective[0]:.10g}, best {self.best.high:.10g} (+- {self.best.error:.0e}, "
            f"{self.best.how}), gap {self.gap:.2g}: {'; '.join(self.faults)}"
        )


def judged(problem: Problem, x: float = 1.0, y: float = 1.0) -> Verdict:
    """Fit, solve, compare; all figures in the problem's natural units."""
    best = optimum(problem)
    start = time.process_time()
    try:
        model = fitted(problem, x, y)
    except Exception as error:
        nan = (math.nan, math.nan)
        what = f"{type(error).__name__}: {str(error)[:160]}"
        return Verdict(problem, best, "raised", nan, math.nan, [what], units=(x, y))
    seconds = time.process_time() - start
    unit = 1.0 if problem.loss.classifies else y
    value = unit**problem.loss.power
    coef = np.ravel(model.coef_) * (x / unit)
    b = float(np.ravel(model.intercept_)[0]) / unit
    objective = problem.worst_case(coef, b)
    floor = problem.floor
    gap = float(getattr(model, "optimality_gap_", math.nan))
    faults = []
    # A model that is at hand and better than the solver's: the truth is at most this.
    if objective[1] < best.high:
        best = replace(best, high=objective[1], coef=coef, intercept=b)
    # Rounding: of the searches in the judge, and of sums.
    slack = floor + 4e-11 * abs(best.high)
    excess = objective[0] - best.high - slack
    if model.status_ == "converged" and excess > problem.tol * abs(best.high):
        faults.append(f"converged, but {excess / max(abs(best.high), 1e-300):.2e} above")
    if not math.isnan(gap):
        if excess > gap * abs(objective[0]):
            faults.append(f"gap {gap:.2e} does not bound {excess / abs(objective[0]):.2e}")
        if model.status_ == "converged" and gap > problem.tol:
            faults.append(f"converged with gap {gap:.2e}")
    elif model.status_ == "converged":
        faults.append("converged without a proven gap")
    certificate = model.certificate_
    ridge = 0.5 * problem.alpha * float(coef @ coef)
    low, high = (objective[0] - ridge, objective[1] - ridge)
    if certificate is not None and math.isfinite(high):
        loose = 1e-9 * abs(high) + floor
        if certificate.upper / value < low - loose:
            faults.append(f"certificate's upper {certificate.upper / value:.10g} below {low:.10g}")
        if certificate.lower / value > high + loose:
            faults.append(f"certificate's lower {certificate.lower / value:.10g} above {high:.10g}")
    return Verdict(problem, best, model.status_, objective, gap, faults, seconds, (x, y))


@cache
def verdict(seed: int) -> Verdict:
    """The judgement of the problem of a number."""
    problem = random_problem(seed)
    return judged(problem, *units(problem))


NAMES = [
    " ".join([kind, *(f"{name}={value}" for name, value in sizes.items())]) for kind, sizes in SETS
]


@pytest.fixture
def numbers(request, seed, index):
    """Numbers of the problems of one set."""
    count = request.config.getoption("--problems")
    first = 100_000 * seed + index
    return range(first, 100_000 * seed + count, len(SETS))


@pytest.mark.parametrize("index", range(len(SETS)), ids=NAMES)
def test_words_and_bounds_hold(numbers):
    """Within tol where "converged" is said; gaps and certificates enclose the truth."""
    found = [verdict(number) for number in numbers]
    wrong = [v for v in found if v.faults]
    assert not wrong, "\n".join(map(str, wrong))
    assert max(v.best.error for v in found) < 1e-4  # or the judge knows too little


@pytest.mark.parametrize("index", range(len(SETS)), ids=NAMES)
def test_nearly_all_converge(numbers):
    found = [verdict(number) for number in numbers]
    short = [v for v in found if v.status != "converged"]
    assert len(short) <= len(found) // 100, "\n".join(map(str, short))


def test_the_truth_of_a_problem_is_an_enclosure():
    """What the judge calls the least objective is reached, and no model is below."""
    rng = np.random.default_rng(0)
    for number in range(0, 168, 5):
        problem = random_problem(number)
        best = optimum(problem)
        assert best.low <= best.high
        assert problem.worst_case(best.coef, best.intercept)[1] == pytest.approx(best.high)
        for width in (1e-3, 1e-1, 1.0):
            coef = best.coef + width * rng.normal(size=best.coef.shape)
            shift = width * rng.normal() if problem.intercept else 0.0
            assert problem.worst_case(coef, best.intercept + shift)[1] >= best.low - best.floor


@pytest.mark.parametrize("index", range(len(SETS)), ids=NAMES)
def test_worst_cases_do_not_depend_on_units(index):
    problem = random_problem(index)
    rng = np.random.default_rng(index)
    coef, b = 0.1 * rng.normal(size=problem.X.shape[1]), 0.3
    low, high = problem.worst_case(coef, b)
    assert low <= high
    x, y = 32.0, 0.25
    other = scaled(problem, x, y)
    y = 1.0 if problem.loss.classifies else y
    value = y**problem.loss.power
    assert other.worst_case(coef * y / x, b * y)[1] == pytest.approx(value * high, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name}-{loss.size:g}")
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.2])
def test_the_judges_one_dimensional_worst_case_is_a_maximum(loss, sigma):
    """max over t of loss(v + t) - t^2 / 4 sigma, on a grid."""
    v = np.linspace(-4.0, 4.0, 17)
    value, slope, _ = loss.raised(v, sigma)
    if sigma == 0.0:
        near = loss.value(v + 1e-7) - loss.value(v)
        assert np.all(near >= 1e-7 * slope - 1e-13)  # a subgradient
        return
    t = np.linspace(-60.0, 60.0, 240_001)
    grid = [np.max(loss.value(at + t) - t * t / (4.0 * sigma)) for at in v]
    assert value == pytest.approx(np.array(grid), abs=1e-6)


def test_two_local_worst_cases_of_the_logistic_loss():
    m, sigma = np.linspace(-3.0, 12.0, 31), 4.0
    t = np.linspace(-60.0, 60.0, 240_001)
    grid = [np.max(np.logaddexp(0.0, -at - t) - t * t / (4.0 * sigma)) for at in m]
    assert Scalar("logistic").raised(m, sigma)[0] == pytest.approx(np.array(grid), abs=1e-6)


def main() -> None:
    arguments = [int(a) for a in sys.argv[1:]]
    count, first, step = (arguments + [200, 0, 1][len(arguments) :])[:3]
    table: dict[str, list[int]] = {}
    for number in range(first, count, step):
        start = time.process_time()
        found = verdict(number)
        spent = time.process_time() - start
        row = table.setdefault(NAMES[number % len(SETS)], [0, 0, 0, 0])
        row[0] += 1
        row[1] += found.status == "converged"
        row[2] += bool(found.faults)
        row[3] += not math.isnan(found.gap)
        if found.best.error > 1e-5:
            print(f"   #{number} truth only to {found.best.error:.1e} ({found.best.how})")
        if found.faults or found.status != "converged":
            print(f"{found} [{found.seconds:.2f} of {spent:.2f} s]", flush=True)
    print(f"{'set':36s} problems converged faults gaps")
    for name, row in [*table.items(), ("all", [sum(column) for column in zip(*table.values())])]:
        print(f"{name:36s} {row[0]:8d} {row[1]:9d} {row[2]:6d} {row[3]:4d}")


if __name__ == "__main__":
    main()
