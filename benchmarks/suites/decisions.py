"""Decisions: newsvendor, portfolio, robust equations against optima of other people's solvers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from harness import Check, Context, clock, median, numbers

from drojko.ambiguity import KL, AmbiguitySet, ChiSquare, CVaR, TotalVariation, Wasserstein
from drojko.measures import Gaussian
from drojko.problems import MinimaxProblem, Quadratic, least_squares, newsvendor, portfolio

TITLE = "Decisions: worst cases of stock, portfolios and equations"
ABOUT = """
`drojko.problems` at default settings. `optimum` is the value of a conic program (cvxpy with
Clarabel) that shares no code with drojko: the dual of the set written out for the loss; for
Gaussian references a closed form, or a conic program of closed forms, at which the returned
decision is evaluated, so that Monte-Carlo error shows as excess. `excess` is the objective reached
over the optimum minus 1 (about 1e-8 of it is Clarabel's own), `gap` the relative distance from the
best decision that the solver itself proves, `proof` that of the certificate.
"""
COLUMNS = (
    "objective", "optimum", "excess", "gap", "proof", "iterations",
    "seconds", "reference seconds", "target",
)  # fmt: skip
EXCESS = 1e-3
TAIL = 0.05


def cases(smoke: bool):
    n = 60 if smoke else 1000
    for ambiguity in _sets(8.0, 0.2, smoke):
        yield f"newsvendor, n={n}, {ambiguity!r}", _newsvendor(n, ambiguity)
    n, d = (60, 4) if smoke else (750, 20)
    for ambiguity in _sets(0.004, 30.0, smoke):
        yield f"portfolio, n={n}, d={d}, {ambiguity!r}", _portfolio(n, d, ambiguity)
    n, d = (30, 3) if smoke else (400, 20)
    radii = (0.1,) if smoke else (0.05, 0.3, 1.0)
    for radius in radii:
        yield f"equations, n={n}, d={d}, radius={radius:g}", _equations(n, d, radius)
    yield "newsvendor, Gaussian demand", _gaussian_newsvendor
    if not smoke:
        yield "portfolio, Gaussian returns", _gaussian_portfolio
    yield "half |t|^2 - t'z, penalty=2", _tilt


def _sets(radius: float, penalty: float, smoke: bool) -> list[AmbiguitySet]:
    sets: list[AmbiguitySet] = [Wasserstein(radius=radius), KL(radius=0.05)]
    if smoke:
        return sets
    return [
        *sets, Wasserstein(penalty=penalty), Wasserstein(radius=radius / 4, order=1),
        ChiSquare(radius=0.1), CVaR(alpha=0.5), TotalVariation(radius=0.02),
    ]  # fmt: skip


def _row(
    problem: MinimaxProblem,
    reference: Callable[[], float],
    value: Callable[[Any], float] | None = None,
) -> dict:
    """Solve both ways; ``value`` is the exact risk of a decision where it is known."""
    with clock() as taken, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = problem.solve(random_state=0)
    with clock() as other:
        optimum = reference()
    objective = solution.objective if value is None else value(solution.params)
    excess = (objective - optimum) / abs(optimum)
    return {
        "method": "MinimaxProblem",
        "objective": objective,
        "optimum": optimum,
        "excess": excess,
        "gap": solution.optimality_gap / abs(solution.objective),
        "proof": solution.certificate.proof,
        "iterations": len(solution.history["iteration"]),
        "seconds": taken.seconds,
        "reference seconds": other.seconds,
        "target": f"|excess| <= {EXCESS:g}",
        "met": bool(abs(excess) <= EXCESS),
    }


def _minimum(objective: Any, constraints: list) -> float:
    import cvxpy as cp

    problem = cp.Problem(cp.Minimize(objective), constraints)
    value = problem.solve(solver=cp.CLARABEL)
    if problem.status != "optimal":
        raise RuntimeError(f"the reference solver ended with {problem.status}")
    return float(value)


def _dual(pieces: list[tuple[Any, Any]], ambiguity: AmbiguitySet) -> tuple[Any, list]:
    """Dual of the maximum of affine pieces: values at the samples, dual norm of each slope."""
    import cvxpy as cp

    def top(values: list) -> Any:
        return cp.maximum(*values) if len(values) > 1 else values[0]

    losses = top([value for value, _ in pieces])
    n = losses.size
    if isinstance(ambiguity, Wasserstein) and ambiguity.order == 1:
        steepest = top([norm for _, norm in pieces])
        return cp.sum(losses) / n + ambiguity.radius * steepest, []
    if isinstance(ambiguity, Wasserstein):
        if ambiguity.penalty is not None:
            lifted = [v + cp.square(s) / (4 * ambiguity.penalty) for v, s in pieces]
            return cp.sum(top(lifted)) / n, []
        price = cp.Variable(pos=True)
        lifted = [v + cp.quad_over_lin(s, price) / 4 for v, s in pieces]
        return price * ambiguity.radius**2 + cp.sum(top(lifted)) / n, []
    if isinstance(ambiguity, CVaR):
        t = cp.Variable()
        return t + cp.sum(cp.pos(losses - t)) / (n * ambiguity.alpha), []
    if isinstance(ambiguity, TotalVariation):
        t, r = cp.Variable(), ambiguity.radius
        return r * cp.max(losses) + (1 - r) * t + cp.sum(cp.pos(losses - t)) / n, []
    if isinstance(ambiguity, ChiSquare):
        t = cp.Variable()
        return t + np.sqrt((1 + ambiguity.radius) / n) * cp.norm(cp.pos(losses - t)), []
    s, price, u, level = cp.Variable(), cp.Variable(nonneg=True), cp.Variable(n), cp.Variable(n)
    cone = cp.ExpCone(level - s, price * np.ones(n), u)
    return s + price * ambiguity.radius, [cone, losses <= level, cp.sum(u) / n <= price]


def _newsvendor(n: int, ambiguity: AmbiguitySet):
    def case(context: Context) -> Iterator[dict]:
        import cvxpy as cp

        z = np.random.default_rng(context.seed).gamma(4.0, 10.0, size=n)
        h, b = 1.0, 3.0

        def reference() -> float:
            q = cp.Variable()
            pieces = [(h * (q - z), cp.Constant(h)), (b * (z - q), cp.Constant(b))]
            objective, constraints = _dual(pieces, ambiguity)
            return _minimum(objective, [*constraints, q >= 0])

        yield _row(newsvendor(z, ambiguity, holding=h, shortage=b), reference)

    return case


def _returns(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    factors = rng.standard_t(4, size=(n, 3)) @ rng.normal(size=(3, d)) * 0.008
    return factors + 0.01 * rng.standard_t(4, size=(n, d)) + 0.001 * rng.normal(size=d)


def _portfolio(n: int, d: int, ambiguity: AmbiguitySet):
    def case(context: Context) -> Iterator[dict]:
        import cvxpy as cp

        z = _returns(np.random.default_rng(context.seed), n, d)

        def reference() -> float:
            theta, t = cp.Variable(d), cp.Variable()
            # The pieces t and t + (-theta'z - t) / tail, slopes 0 and -theta / tail.
            steep = cp.norm(theta) / TAIL
            pieces = [(t * np.ones(n), cp.Constant(0.0)), (t + (-z @ theta - t) / TAIL, steep)]
            if isinstance(ambiguity, Wasserstein) and ambiguity.order == 2:
                cvar = t + cp.sum(cp.pos(-z @ theta - t)) / (n * TAIL)
                if ambiguity.penalty is not None:
                    extra = cp.sum_squares(theta) / (4 * ambiguity.penalty * TAIL)
                else:
                    extra = ambiguity.radius * TAIL**-0.5 * cp.norm(theta)
                objective, constraints = cvar + extra, []
            else:
                objective, constraints = _dual(pieces, ambiguity)
            return _minimum(objective, [*constraints, cp.sum(theta) == 1, theta >= 0])

        yield _row(portfolio(z, ambiguity, tail=TAIL), reference)

    return case


def _equations(n: int, d: int, radius: float):
    def case(context: Context) -> Iterator[dict]:
        import cvxpy as cp

        rng = np.random.default_rng(context.seed)
        A = rng.normal(size=(n, d))
        b = A @ rng.normal(size=d) + rng.normal(size=n)

        def reference() -> float:
            x = cp.Variable(d)
            residual = cp.norm(A @ x - b) / np.sqrt(n)
            return _minimum(residual + radius * cp.norm(cp.hstack([x, -1.0])), []) ** 2

        yield _row(least_squares(A, b, Wasserstein(radius=radius)), reference)

    return case


def _gaussian_newsvendor(context: Context) -> Iterator[dict]:
    from scipy.stats import norm

    m, s, h, b, radius = 40.0, 15.0, 1.0, 3.0, 6.0
    price = np.sqrt(h * b) / (2 * radius)

    def value(q: float) -> float:  # the pieces meet at c = q + (h - b) / 4 price
        u = (q + (h - b) / (4 * price) - m) / s
        plain = h * s * (u * norm.cdf(u) + norm.pdf(u)) + b * s * (norm.pdf(u) - u * norm.sf(u))
        return float(plain + h * b / (4 * price) + price * radius**2)

    best = m + s * norm.ppf(b / (b + h)) - (h - b) / (4 * price)
    problem = newsvendor(Gaussian([m], [[s * s]]), Wasserstein(radius=radius), shortage=b)
    yield _row(problem, lambda: value(best), value)


def _gaussian_portfolio(context: Context) -> Iterator[dict]:
    import cvxpy as cp
    from scipy.stats import norm

    rng, d, radius = np.random.default_rng(context.seed), 10, 0.004
    root = 0.01 * rng.normal(size=(d, d)) + 0.02 * np.eye(d)
    m, factor = 0.002 * rng.normal(size=d), norm.pdf(norm.ppf(1 - TAIL)) / TAIL

    def value(theta: Any, length: Callable) -> Any:
        return -m @ theta + factor * length(root.T @ theta) + radius * TAIL**-0.5 * length(theta)

    def reference() -> float:
        theta = cp.Variable(d)
        return _minimum(value(theta, cp.norm), [cp.sum(theta) == 1, theta >= 0])

    problem = portfolio(Gaussian(m, root @ root.T), Wasserstein(radius=radius), tail=TAIL)
    yield _row(problem, reference, lambda p: float(value(p["weights"], np.linalg.norm)))


def _tilt(context: Context) -> Iterator[dict]:
    import torch

    z = np.random.default_rng(context.seed).normal(size=(200, 5)) + 1.0
    m, penalty = z.mean(0), 2.0

    def known(t: torch.Tensor):
        return torch.zeros(5, 5, dtype=t.dtype), -t, 0.5 * t @ t

    optimum = -0.5 * m @ m / (1 + 1 / (2 * penalty))
    for name, loss in (
        ("structure", Quadratic(known)),
        ("search", lambda t, z: 0.5 * t @ t - z @ t),
    ):
        problem = MinimaxProblem(
            loss, np.zeros(5), z, Wasserstein(penalty=penalty), inner="pointwise"
        )
        yield {**_row(problem, lambda: float(optimum)), "method": name}


def summary(rows: list[dict]) -> list[Check]:
    """Largest excess, largest proven gap, time against the conic solver."""
    excess = numbers(rows, "excess")
    gaps = numbers(rows, "gap")
    ratios = [
        row["seconds"] / row["reference seconds"] for row in rows
        if row.get("reference seconds") and row["reference seconds"] > 1e-3
    ]  # fmt: skip
    worst = max(map(abs, excess), default=float("nan"))
    return [
        Check(
            f"objective within {EXCESS:g} of the optimum", f"largest {worst:.2g}", worst <= EXCESS
        ),
        Check("proven relative gap", f"largest {max(gaps, default=float('nan')):.2g}", None),
        Check("CPU seconds over those of the conic solver", f"median {median(ratios):.2g}", None),
    ]
