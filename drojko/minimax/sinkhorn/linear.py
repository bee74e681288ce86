r"""Exact Sinkhorn minimax for linear models with scalar losses.

.. math:: \min_{\theta, b, \lambda \ge 0} \; \lambda\rho
          + E\, G(\theta'x + b, s, \lambda\varepsilon) + \tfrac\alpha2 \|\theta\|^2, \qquad
          s^2 = \tfrac\varepsilon2\, \theta' W^{-1} \theta, \quad
          G(f, s, T) = T \log E_g\, e^{\ell(f + s g, y) / T}

The noise of Q_x enters through one Gaussian number, so that G and its derivatives are
one-dimensional (`drojko.losses.tilts`). The problem is jointly convex, since T log E exp(l / T) is
the perspective of a convex nondecreasing function of the losses, and is solved by the common
Newton's method from the solution of the Wasserstein problem of the same size, which is the limit
of epsilon to 0. More noise than the set has smooths the vertex.
Source of the dual: J. Wang, R. Gao, Y. Xie, 2021, Sinkhorn Distributionally Robust Optimization,
arXiv 2109.11926.

**Bound.** A share in [0, 1] of the tangent

.. math:: G(f, s, T) \ge G_0 + G_f (f - f_0) + G_s (s - s_0) + G_T (T - T_0)

at any point lies below G >= 0. With s = kappa n(z) the sum over the rows is below the objective of
every model, and its minimum over z and lambda >= 0 is

.. math:: \mathrm{const} + \min_z \{c'z + \kappa E G_s\, n(z) + \tfrac12 z' R z\}

where epsilon E KL <= radius, as G_T = -KL. Tangents at a nearly optimal point nearly do that, and
nearly balance: the point moves a little to where they do, and rows are thinned out by the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from drojko._driver import Limits
from drojko._numerics import standard_error
from drojko.certificates import Certificate
from drojko.exceptions import UnboundedRiskError
from drojko.losses import Loss
from drojko.losses.tilts import Tilted
from drojko.minimax.newton import LinearFit, State, check_columns
from drojko.minimax.transport.bound import Ground, balance, pinned_columns
from drojko.minimax.transport.linear import LinearProblem, solve_ridge, turn
from drojko.minimax.transport.objective import NormObjective, Point, Sums
from drojko.minimax.transport.risk import RidgeData, spend
from drojko.rows import Rows, is_wide, rows_of

__all__ = ["SinkhornRisk", "SinkhornRows", "certify_linear", "sinkhorn_risk", "solve_sinkhorn"]

_EPS = float(np.finfo(np.float64).eps)
_FIRST = 1e-4  # accuracy of the Wasserstein solution
_ENDLESS = 1e100  # predictions beyond which nothing is learned


@dataclass(frozen=True)
class SinkhornRisk:
    """The exact worst case of one linear model.

    ``value`` is the robust risk, ``attained`` what the tilted laws attain inside the set (radius
    form) or net of the penalty, ``risk`` their mean loss, ``transport_cost`` epsilon E KL, which
    they spend, ``nominal`` the mean loss without noise, ``deviation`` the noise's deviation s in
    units of predictions, ``spread`` (n,) what the mean of is taken for the dual value.
    """

    value: float
    attained: float
    risk: float
    transport_cost: float
    nominal: float
    penalty: float
    deviation: float
    spread: np.ndarray
    losses: np.ndarray


def sinkhorn_risk(
    data: RidgeData,
    coef: np.ndarray,
    intercept: float,
    *,
    epsilon: float,
    radius: float | None = None,
    penalty: float | None = None,
    guess: float | None = None,
) -> SinkhornRisk:
    r"""Worst-case risk of the linear model ``coef'x + intercept``, exact.

    Parameters
    ----------
    data : RidgeData, with fixed labels
    coef, intercept : array of shape (d,), float
    epsilon : float
    radius, penalty : exactly one of them.
    guess : float, a first guess of the multiplier of a radius.

    Raises
    ------
    UnboundedRiskError
        Squared loss at a penalty not above the squared dual norm of ``coef``.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> data = RidgeData(np.array([[1.0], [3.0]]), np.array([0.0, 0.0]), loss=get_loss("squared"))
    >>> found = sinkhorn_risk(data, np.array([1.0]), 0.0, epsilon=0.5, penalty=2.0)
    >>> round(found.value, 9), round(2 / (2 - 1) * 5 - 2 * 0.5 / 2 * math.log(1 - 1 / 2), 9)
    (10.34657359, 10.34657359)
    """
    f = data.predictions(coef, intercept)
    square = data.squared_norm(coef)
    s = math.sqrt(0.5 * epsilon * square)
    w = data.weight
    nominal = float(w @ data.loss.tilt(f, data.y, 0.0, 0.0).value)
    if (penalty is None and not radius) or s == 0.0:
        plain = data.loss.tilt(f, data.y, s, 0.0)
        value = float(w @ plain.value)
        lam = penalty if penalty is not None else (0.0 if radius else math.inf)
        return SinkhornRisk(value, value, value, 0.0, nominal, lam, s, plain.value, plain.value)
    least = data.loss.growth * square
    if penalty is None:

        def at(lam: float) -> tuple[float, float, Tilted]:
            found = data.loss.tilt(f, data.y, s, 1.0 / (epsilon * lam))
            # d KL / d lambda = -epsilon Var l / (epsilon lambda)^3
            slope = -float(w @ found.cov[5]) / (epsilon * lam**3)
            return epsilon * float(w @ found.divergence), slope, found

        if guess is None or not least < guess < math.inf:
            steep = max(float(w @ data.loss.tilt(f, data.y, s, 0.0).mean[0] ** 2), 1e-300)
            guess = least + math.sqrt(square * steep / (4.0 * (radius or 0.0)))
        lam, found = spend(at, radius or 0.0, guess, least=least)
    elif least and penalty <= least:
        raise UnboundedRiskError(
            f"{data.loss.name} loss: the worst case is infinite for penalty={penalty:.6g}; it is "
            f"finite for penalty > {square:.6g}, the squared dual norm of the coefficients"
        )
    else:
        lam, found = penalty, data.loss.tilt(f, data.y, s, 1.0 / (epsilon * penalty))
    spent = epsilon * float(w @ found.divergence)
    risk = float(w @ found.mean[2])
    value = float(w @ found.value)
    if penalty is not None:
        return SinkhornRisk(value, value, risk, spent, nominal, lam, s, found.value, found.mean[2])
    budget = float(radius or 0.0)
    value += lam * budget
    if spent > budget:
        # Rounding: a mixture with Q spends no more than its share, as KL is convex.
        plain = float(w @ data.loss.tilt(f, data.y, s, 0.0).value)
        share = budget / spent
        risk, spent = share * risk + (1.0 - share) * plain, budget
    return SinkhornRisk(
        max(value, risk), min(risk, value), risk, spent, nominal, lam, s, found.value,
        found.mean[2],
    )  # fmt: skip


def certify_linear(
    data: RidgeData,
    coef: np.ndarray,
    intercept: float,
    *,
    epsilon: float,
    radius: float | None,
    penalty: float | None,
    guess: float | None = None,
    sampled: bool = False,
    stationarity: float = math.nan,
) -> tuple[Certificate, float]:
    """Certificate of a linear model, both sides from one root, and its multiplier."""
    found = sinkhorn_risk(
        data, coef, intercept, epsilon=epsilon, radius=radius, penalty=penalty, guess=guess
    )
    own = standard_error(found.losses, data.weight) if sampled else 0.0
    certificate = Certificate(
        nominal_risk=found.nominal,
        lower=found.attained,
        upper=found.value,
        worst_case_risk=found.risk,
        radius=radius,
        penalty=found.penalty,
        transport_cost=found.transport_cost,
        standard_error=max(standard_error(found.spread, data.weight), own) if sampled else 0.0,
        risk_error=own,
        stationarity=stationarity,
        proof="ridge-1d",
    )
    return certificate, found.penalty


def solve_sinkhorn(
    data: RidgeData,
    *,
    epsilon: float,
    radius: float | None = None,
    penalty: float | None = None,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    limits: Limits | None = None,
    aim: float | None = None,
    warm_start: tuple[np.ndarray, float, float | None] | None = None,
) -> LinearFit:
    """Minimise the Sinkhorn worst-case risk of a linear model.

    Time is linear in the number of rows.

    Parameters
    ----------
    data : RidgeData, with fixed labels
    epsilon : float
    radius, penalty : exactly one of them; the radius in squared units of X.
    alpha, fit_intercept, limits, warm_start : as in `solve_ridge`
    aim : float, relative accuracy worked for; None: 1e-7, or the tol where that is less.

    Raises
    ------
    UnboundedRiskError
        If the first model has no finite worst case (never in radius form).

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> data = RidgeData(X, np.array([0, 0, 1, 1]), loss=get_loss("logistic"))
    >>> solution = solve_sinkhorn(data, epsilon=0.1, radius=0.1)
    >>> solution.status, solution.gap < 1e-7
    ('converged', True)
    """
    limits = limits or Limits(200, 1e-6)
    aim = min(limits.tol, 1e-7) if aim is None else aim
    if is_wide(data.X):
        turned = turn(data, alpha, fit_intercept)
        if turned is not None:
            rotation, data = turned
            if warm_start is not None:
                warm_start = (*rotation.inward(*warm_start[:2]), *warm_start[2:])
            found = solve_sinkhorn(
                data, epsilon=epsilon, radius=radius, penalty=penalty, alpha=alpha,
                fit_intercept=fit_intercept, limits=rotation.limits(limits), aim=aim,
                warm_start=warm_start,
            )  # fmt: skip
            return rotation.back(found)
    rows = rows_of(data.X, data.y, data.weight, intercept=fit_intercept)
    check_columns(rows)
    # The noise is there at radius 0, too.
    ground = Ground.of(rows, data, 1.0, penalty, alpha)

    def exact(coef: np.ndarray, intercept: float, guess: float | None) -> SinkhornRisk:
        guess = guess if radius else None
        return sinkhorn_risk(
            data, coef, intercept, epsilon=epsilon, radius=radius, penalty=penalty, guess=guess
        )

    problem = LinearProblem(data, rows, ground, alpha, limits, aim, exact)
    objective = SinkhornRows(rows, data.loss, ground, epsilon, radius or 0.0)
    lower = 0.0
    if warm_start is None:
        first, lower = _first(problem, epsilon, radius, penalty)
        still = not ground.square(rows.inward(first.coef, first.intercept)) > 0.0
        if radius and still and first.objective <= lower * (1.0 + 10.0 * _FIRST):
            first = _transport(problem, math.sqrt(radius), None, min(limits.tol, 1e-6))
            still = not ground.square(rows.inward(first.coef, first.intercept)) > 0.0
        if first.status == "unbounded" or (radius and still and first.status == "converged"):
            risk = exact(first.coef, first.intercept, None)
            return replace(first, risk=risk, multiplier=risk.penalty)
        warm_start = first.coef, first.intercept, first.multiplier
    coef, intercept, lam = warm_start
    z = rows.inward(np.asarray(coef, dtype=np.float64), float(intercept))
    objective.begin(z, lam, 1e-6 if ground.square(z) > 0.0 else 1e-1)
    return problem.train(objective, lower)


def _transport(
    problem: LinearProblem, radius: float | None, penalty: float | None, aim: float
) -> LinearFit:
    """The Wasserstein problem of a size."""
    return solve_ridge(
        problem.data,
        radius=radius,
        penalty=penalty,
        alpha=problem.alpha,
        fit_intercept=problem.rows.intercept,
        limits=Limits(100, aim, problem.limits.time_left),
        aim=aim,
    )


def _first(
    problem: LinearProblem, epsilon: float, radius: float | None, penalty: float | None
) -> tuple[LinearFit, float]:
    """The Wasserstein solution, where that is constant the one of a smaller radius; its bound.

    By Jensen's inequality Sinkhorn's risk of any model is at least Wasserstein's at the same size.
    Of radius 0 the noise is what keeps coefficients small: a ball of its size does so, too.
    """
    if radius is None:
        found = _transport(problem, None, penalty, _FIRST)
        return found, found.lower
    size = math.sqrt(radius or 0.25 * epsilon)
    found = _transport(problem, size, None, _FIRST)
    lower = found.lower if radius else 0.0
    for shrink in (0.5, 0.1, 0.01):
        if found.status == "unbounded" or problem.data.squared_norm(found.coef) > 0.0:
            break
        found = _transport(problem, size * shrink, None, _FIRST)
    return found, lower


class SinkhornRows(NormObjective):
    """Rows whose worst cases are tilted laws; the variable is lambda.

    The noise is there at radius 0, too: the ground always moves.
    """

    def __init__(self, rows: Rows, loss: Loss, ground: Ground, epsilon: float, radius: float):
        super().__init__(rows, loss, ground, radius)
        self.epsilon = epsilon

    def width(self, mu: float) -> float:
        """Noise that moves losses by mu, where a penalty allows that much."""
        width = mu / self.unit * self.spread / math.sqrt(0.5 * self.epsilon)
        if self.ground.penalty is not None and self.loss.growth:
            width = min(width, 0.5 * math.sqrt(self.ground.penalty / self.loss.growth))
        return width

    def tilted(self, u: np.ndarray, square: float, lam: float) -> tuple[Tilted, float] | None:
        """The laws at a price and their inverse temperature; None where there are none."""
        if self.loss.growth and lam <= self.loss.growth * square:
            return None
        eta, s = 1.0 / (self.epsilon * lam), math.sqrt(0.5 * self.epsilon * square)
        try:
            return self.loss.tilt(u, self.rows.y, s, eta), eta
        except UnboundedRiskError:
            return None

    def sums(self, at: Point) -> Sums | None:
        """Moments of the tilted laws, and the chain rule through the noise's deviation."""
        lam = at.p if self.budget else self.ground.penalty or math.inf
        found = self.tilted(at.u, at.square, lam)
        if found is None:
            return None
        (law, eta), epsilon, w = found, self.epsilon, self.rows.w
        s = math.sqrt(0.5 * epsilon * at.square)
        rate = 0.25 * epsilon / s if s > 0.0 else 0.0  # ds / dN
        steep, spent = float(w @ law.mean[1]), epsilon * float(w @ law.divergence)
        out = Sums(float(w @ law.value), spent, w * law.mean[0], steep * rate)
        out.plan, out.curve = (law, s, lam, eta), out.n
        if self.budget:
            out.value += lam * self.budget
            out.p = self.budget - spent
        if at.second:
            ff, fs, ft, ss, st, tt = law.second(eta)
            out.uu, out.un = np.maximum(w * ff, 0.0), w * fs * rate
            out.nn = (float(w @ ss) - (steep / s if s else 0.0)) * rate**2
            out.up, out.np = epsilon * w * ft, epsilon * rate * float(w @ st)
            out.pp = epsilon**2 * float(w @ tt)
        return out

    def lower(self, state: State, need: float) -> float:
        """From tangents near the iterate; 0 if nothing better was proven."""
        at, s, lam, eta = state.terms.detail[1].plan
        rows, ground, radius, u, best = self.rows, self.ground, self.budget, state.u, 0.0
        w, kappa, pinned = rows.w, math.sqrt(0.5 * self.epsilon), pinned_columns(rows, ground)
        way, before = 1.0, math.inf  # of the noise that holds more of c, which far out is less
        for _ in range(8):
            mass = w
            if pinned.any():
                thinned = balance(rows, w[None], at.mean[0][None], pinned)
                if thinned is None:
                    break
                mass = thinned[0]
            spent = self.epsilon * float(mass @ at.divergence)
            if radius and spent > radius:
                mass, spent = mass * (radius / spent), radius
            slope, spread = mass * at.mean[0], float(mass @ at.mean[1])
            const = float(mass @ at.value) - float(slope @ u) - spread * s
            size = float(mass @ np.abs(at.value)) + float(np.abs(slope) @ np.abs(u)) + spread * s
            if radius:
                const += lam * spent
                size += lam * spent
            c = rows.sum(slope)
            c[pinned] = 0.0
            held, short = _held(ground, c, kappa * spread)
            best = max(best, const + held - 16.0 * _EPS * size)
            if best >= need:
                break
            # Next: better balanced, and a little more noise, or less, to hold c.
            off, moved = rows.sum(w * at.mean[0]), False
            if pinned.any() and np.abs(off[pinned]).max() > 1e-13 * float(w @ np.abs(at.mean[0])):
                shift = np.zeros(rows.size)
                curved = rows.gram(np.maximum(w * at.second(eta)[0], 0.0))[np.ix_(pinned, pinned)]
                shift[pinned] = np.linalg.lstsq(curved, -off[pinned], rcond=1e-14)[0]
                u, moved = u + rows.predict(shift), True
                if not np.abs(u).max() < _ENDLESS:  # where no row has curvature
                    break
            if short > 1.0:
                way, before = (-way if short > before else way), short
                s *= 1.0 + max(way * (2.0 * (short - 1.0) + 4.0 * _EPS), -0.5)
            elif not moved:
                break
            found = self.tilted(u, (s / kappa) ** 2, lam)
            if found is None:
                break
            at, eta = found
        return best


def _held(ground: Ground, c: np.ndarray, strength: float) -> tuple[float, float]:
    """Minimum of c'z + strength n(z) + ridge over z, and by how much c is too long for -inf."""
    movable = (ground.cost > 0.0) & (c != 0.0)
    fixed = (ground.cost == 0.0) & (c != 0.0)
    left = -float((c[fixed] ** 2 / (2.0 * ground.ridge[fixed])).sum())
    cost, ridge, c = ground.cost[movable], ground.ridge[movable], c[movable]
    dual = math.sqrt(float((c * c / cost).sum()))
    if dual <= strength:
        return left, 1.0
    if not ridge.any():
        return -math.inf, dual / strength if strength > 0.0 else 1.0
    # The ball holds q cost / (ridge + q cost) of c, as much as it can, the ridge the rest.
    middle = math.log(float(ridge.max() / cost.max()))
    low, high = middle - 80.0, middle + 80.0
    for _ in range(100):
        q = math.exp(0.5 * (low + high))
        ball = q * cost / (ridge + q * cost)
        inside = float(((ball * c) ** 2 / cost).sum()) <= strength * strength
        low, high = (0.5 * (low + high), high) if inside else (low, 0.5 * (low + high))
    q = math.exp(low)
    rest = ridge / (ridge + q * cost) * c
    return left - float((rest**2 / (2.0 * ridge)).sum()), 1.0
