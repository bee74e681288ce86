"""Exact robust risks and optima of linear models, written without drojko: the referees.

Order-2 Wasserstein, cost |x' - x|^2, labels fixed. For a linear model with margin s and n = |theta|
a sample's worst case at penalty p is max_t phi(t - s) - (p / n^2) t^2.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, xlogy

#: Relative distance of a relaxation from the risk it bounds at which cuts are no longer added.
TOLERANCE = 1e-5


def worst_logistic(s: np.ndarray, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """max_t log(1 + e^(t - s)) - kappa t^2 and its global maximiser, vectorised.

    The derivative expit(t - s) - 2 kappa t falls, and where 8 kappa < 1 also rises between the two
    t at which expit' = 2 kappa: one root in each falling stretch, found by bisection and Newton.
    """
    end = np.full_like(s, 0.5 / kappa)
    best_t = np.zeros_like(s)
    best = np.full_like(s, -np.inf)
    if 8.0 * kappa < 1.0:
        width = math.sqrt(1.0 - 8.0 * kappa)
        turn = 2.0 * math.log1p(width) - math.log(8.0 * kappa)
        pieces = [
            (np.zeros_like(s), np.clip(s - turn, 0.0, end)),
            (np.clip(s + turn, 0.0, end), end),
        ]
    else:
        pieces = [(np.zeros_like(s), end)]
    for low, high in pieces:
        a, b = low.copy(), high.copy()
        t = 0.5 * (a + b)
        for step in range(60):
            p = expit(t - s)
            g = p - 2.0 * kappa * t
            a, b = np.where(g > 0, t, a), np.where(g > 0, b, t)
            newton = t - g / np.minimum(p * (1.0 - p) - 2.0 * kappa, -1e-300)
            inside = (newton > a) & (newton < b)
            new = np.where(inside & (step > 2), newton, 0.5 * (a + b))
            if np.abs(new - t).max() <= 1e-14 * (1.0 + 0.5 / kappa):
                break
            t = new
        value = np.logaddexp(0.0, t - s) - kappa * t * t
        better = value > best
        best, best_t = np.where(better, value, best), np.where(better, t, best_t)
    return best, best_t


def worst(loss: str, s: np.ndarray, kappa: float) -> np.ndarray:
    """Worst loss minus cost per sample; s: margins, or residuals for the squared loss."""
    if loss == "logistic":
        return worst_logistic(s, kappa)[0]
    if loss == "hinge":
        return np.maximum(0.0, 1.0 - s + 0.25 / kappa)
    return s * s * (kappa / (kappa - 1.0)) if kappa > 1.0 else np.full_like(s, np.inf)


def robust_risk(
    loss: str,
    X: np.ndarray,
    y: np.ndarray,
    coef: np.ndarray,
    intercept: float,
    *,
    radius: float | None = None,
    penalty: float | None = None,
) -> float:
    """The common evaluator: robust risk of a linear model (y: 0 and 1, or numbers)."""
    f = X @ coef + intercept
    s = f - y if loss == "squared" else (2.0 * y - 1.0) * f
    norm = float(coef @ coef)
    if norm == 0.0:
        return float(_plain(loss, s).mean())
    if penalty is not None:
        return float(worst(loss, s, penalty / norm).mean())
    if loss == "squared":
        return (math.sqrt(float((s * s).mean())) + radius * math.sqrt(norm)) ** 2
    root = math.sqrt(norm)

    def dual(log_penalty: float) -> float:
        p = math.exp(log_penalty)
        return p * radius**2 + float(worst(loss, s, p / norm).mean())

    # Slopes are at most one: at the best penalty the budget is spent, so p <= n / (2 radius).
    top = math.log(0.5 * root / radius) + 1e-9
    grid = np.linspace(top - 12.0, top, 49)
    values = [dual(t) for t in grid]
    k = int(np.argmin(values))
    bounds = (grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)])
    found = minimize_scalar(dual, bounds=bounds, method="bounded", options={"xatol": 1e-11})
    # Without movement the risk is the limit of a vanishing penalty only if the loss is bounded.
    return float(min(found.fun, min(values)))


def _plain(loss: str, s: np.ndarray) -> np.ndarray:
    if loss == "squared":
        return s * s
    return np.logaddexp(0.0, -s) if loss == "logistic" else np.maximum(0.0, 1.0 - s)


def optimum(
    loss: str,
    X: np.ndarray,
    y: np.ndarray,
    *,
    radius: float | None = None,
    penalty: float | None = None,
) -> tuple[np.ndarray, float, float, str]:
    """Minimise the robust risk by convex programs: coefficients, intercept, lower bound, how.

    The lower bound is the value of a relaxation (logistic) or the program's own value.
    """
    if loss == "logistic":
        return _logistic(X, y, radius, penalty)
    if loss == "squared":
        return _squared(X, y, radius, penalty)
    return _hinge(X, y, radius, penalty)


def _solve(objective, constraints):
    import cvxpy as cp

    problem = cp.Problem(cp.Minimize(objective), constraints)
    tight = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    problem.solve(solver=cp.CLARABEL, **tight)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise RuntimeError(f"Clarabel: {problem.status}")
    return float(problem.value), problem.status.replace("_", " ")


def _squared(X, y, radius, penalty) -> tuple[np.ndarray, float, float, str]:
    import cvxpy as cp

    n, d = X.shape
    theta, b = cp.Variable(d), cp.Variable()
    residual = (X @ theta + b - y) / math.sqrt(n)
    if radius is not None:
        value, how = _solve(cp.norm(residual) + radius * cp.norm(theta), [])
        value = value**2
    else:  # R / (1 - |theta|^2 / penalty)
        w = cp.Variable(nonneg=True)
        value, how = _solve(
            cp.quad_over_lin(residual, w), [w <= 1 - cp.sum_squares(theta) / penalty]
        )
    return theta.value, float(b.value), value, f"Clarabel, {how}"


class _Program:
    """Epigraph program of a loss max_p {-p s + p^2 q - h(p)}, q >= |theta|^2 / (4 penalty)."""

    def __init__(self, X, y, radius, penalty) -> None:
        self.X, self.sign, self.form = X, 2.0 * y - 1.0, (radius, penalty)
        self.rows, self.p = np.zeros(0, int), np.zeros(0)

    def cut(self, p: np.ndarray) -> None:
        """One more p for each sample."""
        self.rows = np.concatenate([self.rows, np.arange(len(self.X))])
        self.p = np.concatenate([self.p, p])

    def solve(self, height, keep: float = math.inf) -> tuple[float, str]:
        """Optimal value; cuts that are further than ``keep`` below the sample's best go."""
        import cvxpy as cp

        (n, d), (radius, penalty) = self.X.shape, self.form
        theta, b, q = cp.Variable(d), cp.Variable(), cp.Variable(nonneg=True)
        xi = cp.Variable(n, nonneg=True)  # p = 0 is always a choice
        objective = cp.sum(xi) / n
        if radius is not None:
            lam = cp.Variable(nonneg=True)
            objective = objective + lam * radius**2
            constraints = [q >= cp.quad_over_lin(theta, 4 * lam)]
        else:
            constraints = [q >= cp.sum_squares(theta) / (4 * penalty)]
        slope = self.p * self.sign[self.rows]
        right = -(slope[:, None] * self.X[self.rows]) @ theta - slope * b
        right = right + self.p**2 * q - height(self.p)
        value, how = _solve(objective, [*constraints, xi[self.rows] >= right])
        self.theta, self.b, self.q = theta.value, float(b.value), max(float(q.value), 1e-12)
        used = right.value >= xi.value[self.rows] - keep
        self.rows, self.p = self.rows[used], self.p[used]
        return value, how


def _hinge(X, y, radius, penalty) -> tuple[np.ndarray, float, float, str]:
    program = _Program(X, y, radius, penalty)
    program.cut(np.ones(len(X)))
    value, how = program.solve(lambda p: -p)
    return program.theta, program.b, value, f"Clarabel, {how}"


def _logistic(X, y, radius, penalty) -> tuple[np.ndarray, float, float, str]:
    """Cutting planes: log(1 + e^u) = max_p {p u - h(p)}, h = p log p + (1 - p) log(1 - p).

    With q = |theta|^2 / (4 penalty) the worst case of a sample is max_p {-p s + p^2 q - h(p)}:
    jointly convex in the variables for each p. Some p give a relaxation, and its value is a lower
    bound, whichever they are; the maximisers at its solution are the next ones.
    """
    program = _Program(X, y, radius, penalty)
    sign = program.sign
    form = {"radius": radius, "penalty": penalty}
    for p in (0.02, 0.3, 1.0):
        program.cut(np.full(len(X), p))
    theta, b, q = logistic_descent(X, y, **form)
    best, lower, at = robust_risk("logistic", X, y, theta, b, **form), -math.inf, (theta, b)
    rounds = 0
    while best - lower > TOLERANCE * best and rounds < 15:
        s = sign * (X @ theta + b)
        for shift in (0.0,) if rounds else (-0.5, 0.0, 0.5):
            _, t = worst_logistic(s + shift, 0.25 / q)
            program.cut(expit(t - s - shift))
        value, _ = program.solve(_entropy, keep=1.0)
        theta, b, q = program.theta, program.b, program.q
        lower = max(lower, value)
        risk = robust_risk("logistic", X, y, theta, b, **form)
        if risk < best:
            best, at = risk, (theta, b)
        rounds += 1
    return (*at, lower, f"L-BFGS, then Clarabel, {rounds} rounds of cuts")


def logistic_descent(X, y, radius=None, penalty=None) -> tuple[np.ndarray, float, float]:
    """SciPy's L-BFGS on the exact dual: theta, b and q; kinks may stop it early."""
    n, d = X.shape
    sign = 2.0 * y - 1.0

    def dual(z):  # theta, b, log penalty
        lam = penalty if penalty is not None else math.exp(min(max(z[-1], -60.0), 60.0))
        norm, s = max(float(z[:d] @ z[:d]), 1e-20), sign * (X @ z[:d] + z[d])
        value, t = worst_logistic(s, lam / norm)
        slope, cost = -expit(t - s) * sign / n, float((t * t).mean()) / norm
        budget = 0.0 if radius is None else radius**2
        gradient = X.T @ slope + 2.0 * lam * cost / norm * z[:d]
        last = lam * (budget - cost) if penalty is None else 0.0
        return value.mean() + lam * budget, np.concatenate([gradient, [slope.sum(), last]])

    z = np.concatenate([sign @ X / n, [0.0, 0.0]])
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 2000, "maxfun": 3000}
    z = minimize(dual, z, jac=True, method="L-BFGS-B", options=options).x
    lam = penalty if penalty is not None else math.exp(min(max(z[-1], -60.0), 60.0))
    return z[:d], float(z[d]), max(float(z[:d] @ z[:d]) / (4.0 * lam), 1e-12)


def _entropy(p: np.ndarray) -> np.ndarray:
    return xlogy(p, p) + xlogy(1.0 - p, 1.0 - p)


def exact_risk(
    name: str, size: float, loss: str, X: np.ndarray, y: np.ndarray, coef: np.ndarray, b: float
) -> float:
    """Exact robust risk of a linear model in the set called ``name``: one evaluator for everybody.

    W2 as above. W1 with labels that stay: mean + radius * Lipschitz constant * |theta|, for losses
    that are Lipschitz (their supremum over x is not attained). Sinkhorn: the one-dimensional dual
    of `drojko`. Sets that reweight: their exact duals in `drojko.ambiguity`, on these losses.
    """
    if name == "W2":
        return robust_risk(loss, X, y, coef, b, radius=size)
    f = X @ coef + b
    losses = _plain(loss, f - y if loss == "squared" else (2.0 * y - 1.0) * f)
    if name == "W1":
        return float(losses.mean() + size * np.linalg.norm(coef))
    from worker import ambiguity

    return float(ambiguity(name, size).dual(losses).value)


def dual_descent(
    name: str, size: float, loss: str, X: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, float, float, str]:
    """SciPy's L-BFGS on the robust risk with its inner problem eliminated (logistic loss)."""
    if loss != "logistic":
        raise NotImplementedError(loss)
    if name == "W2":
        theta, b, _ = logistic_descent(X, y, radius=size)
        return theta, b, exact_risk(name, size, loss, X, y, theta, b), "L-BFGS"
    from worker import ambiguity

    n, d = X.shape
    sign = 2.0 * y - 1.0
    given = None if name == "W1" else ambiguity(name, size)

    def risk(z):
        s = sign * (X @ z[:d] + z[d])
        losses = np.logaddexp(0.0, -s)
        ratio, value, pull = 1.0, float(losses.mean()), 0.0
        if given is None:
            norm = math.sqrt(float(z[:d] @ z[:d]) + 1e-24)
            value, pull = value + size * norm, size / norm
        else:
            dual = given.dual(losses)
            ratio, value = dual.ratio, dual.value
        slope = -expit(-s) * sign * ratio / n
        return value, np.concatenate([X.T @ slope + pull * z[:d], [slope.sum()]])

    start = np.concatenate([0.1 * (sign @ X) / n, [0.0]])
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 2000, "maxfun": 3000}
    found = minimize(risk, start, jac=True, method="L-BFGS-B", options=options)
    return found.x[:d], float(found.x[d]), float(found.fun), str(found.message)
