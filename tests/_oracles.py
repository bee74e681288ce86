"""Robust linear problems in small, and their answers by solvers that the package does not use.

Everything here is written for clarity and shares no code with what it judges: the worst case of a
fixed model by one-dimensional convex duality (`Problem.worst_case`, a lower and an upper value that
enclose it), the best model by conic programs (`drojko.baselines`, solved by Clarabel) or, where
there is none, by cutting planes row by row (`planes`). Every answer is an enclosure: ``low`` bounds
the optimum from below, ``high`` is the upper value of a model that is at hand, so that a model
above ``high`` is proven to be worse.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, xlog1py, xlogy

__all__ = ["Optimum", "Problem", "Scalar", "optimum"]

ROUNDING = 1e-12  #: relative accuracy of the one-dimensional searches below


# Losses of one number ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scalar:
    """A loss of v, a classifier's margin or the residual f - y, as sup_s s v - conjugate(s)."""

    name: str
    size: float = 1.0  # delta of "huber", level of "quantile"

    @property
    def classifies(self) -> bool:
        return self.name in {"logistic", "hinge"}

    @property
    def power(self) -> int:
        """The loss of t v is t^power times the loss of v (with delta scaled too)."""
        return {"logistic": 0, "hinge": 0, "squared": 2, "huber": 2}.get(self.name, 1)

    @property
    def lipschitz(self) -> float:
        if self.name == "quantile":
            return max(self.size, 1.0 - self.size)
        return {"squared": math.inf, "huber": self.size}.get(self.name, 1.0)

    @property
    def pieces(self) -> tuple[tuple[float, float], ...]:
        """(slope, offset) of a maximum of affine functions; empty for curved losses."""
        q = self.size
        return {
            "hinge": ((0.0, 0.0), (-1.0, 1.0)),
            "absolute": ((1.0, 0.0), (-1.0, 0.0)),
            "quantile": ((-q, 0.0), (1.0 - q, 0.0)),
        }.get(self.name, ())

    def value(self, v: np.ndarray) -> np.ndarray:
        return self.raised(v, 0.0)[0]

    def raised(self, v: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """sup_s s v + s^2 sigma - conjugate(s), and its derivatives s in v and s^2 in sigma."""
        if self.name == "squared":
            room = 1.0 - 4.0 * sigma
            if room <= 0:
                top = np.full_like(v, math.inf)
                return top, top, top
            s = 2.0 * v / room
            return v * v / room, s, s * s
        if self.name == "logistic":
            return _logistic_raised(v, sigma)
        if self.name == "huber":
            room = max(1.0 - 2.0 * sigma, 0.0)
            s = np.clip(v / room, -self.size, self.size) if room else self.size * np.sign(v)
            s = np.where(s == 0, self.size if not room else 0.0, s)
            return s * v + s * s * (sigma - 0.5), s, s * s
        parts = np.array([slope * v + offset + slope**2 * sigma for slope, offset in self.pieces])
        s = np.array([slope for slope, _ in self.pieces])[parts.argmax(axis=0)]
        return parts.max(axis=0), s, s * s


def _logistic_raised(m: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """max over p in (0, 1) of H(p) - p m + p^2 sigma: at most two local maxima, by bisection."""

    def value(p: np.ndarray) -> np.ndarray:
        return -xlogy(p, p) - xlog1py(1.0 - p, -p) - p * m + p * p * sigma

    if sigma == 0.0:
        p = expit(-m)
        return np.logaddexp(0.0, -m), -p, p * p
    # In t = logit(p): t = 2 sigma p - m.
    bend = 0.5 * (1.0 - math.sqrt(1.0 - 2.0 / sigma)) if sigma > 2.0 else 0.5
    turn = math.log(bend / (1.0 - bend))
    best, at = np.full_like(m, -math.inf), np.zeros_like(m)
    for side in (0, 1):
        low = np.minimum(-m, turn) if side == 0 else np.maximum(-m, -turn)
        high = np.minimum(2.0 * sigma - m, turn) if side == 0 else np.maximum(2 * sigma - m, -turn)
        if sigma <= 2.0:
            low, high = -m, 2.0 * sigma - m
        for _ in range(80):
            middle = 0.5 * (low + high)
            above = middle > 2.0 * sigma * expit(middle) - m
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        p = expit(0.5 * (low + high))
        v = value(p)
        best, at = np.where(v > best, v, best), np.where(v > best, p, at)
    return best, -at, at * at


def _smoothed(
    loss: Scalar, v: np.ndarray, spread: float, price: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """price * log E exp(loss(v + spread xi) / price), xi standard normal, and its derivatives."""
    if loss.name == "squared":
        room = 1.0 - 2.0 * spread**2 / price
        if room <= 0:
            top = np.full_like(v, math.inf)
            return top, top, top, top
        value = v * v / room - 0.5 * price * math.log(room)
        d_room = -v * v / room**2 - 0.5 * price / room
        in_spread = d_room * (-4.0 * spread / price)
        in_price = d_room * 2.0 * spread**2 / price**2 - 0.5 * math.log(room)
        return value, 2.0 * v / room, in_spread, in_price
    # A rule on panels of the normal's line, refined between the kinks: exact to rounding.
    nodes, weights = _rule(loss, v, spread, price)
    at = v[:, None] + spread * nodes
    value, slope, _ = loss.raised(at, 0.0)
    exponent = value / price - 0.5 * nodes**2 + weights
    top = exponent.max(axis=1, keepdims=True)
    tilt = np.exp(exponent - top)
    total = tilt.sum(axis=1)
    log_mean = top[:, 0] + np.log(total) - 0.5 * math.log(2.0 * math.pi)
    tilt /= total[:, None]
    mean = (tilt * value).sum(axis=1)
    in_v = (tilt * slope).sum(axis=1)
    in_spread = (tilt * slope * nodes).sum(axis=1)
    return price * log_mean, in_v, in_spread, log_mean - mean / price


_LEGENDRE = np.polynomial.legendre.leggauss(12)


def _rule(
    loss: Scalar, v: np.ndarray, spread: float, price: float
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes xi and log weights, a row each: panels of Gauss-Legendre that end at the kinks."""
    reach = 9.0 + min(loss.lipschitz * spread / price, 1e4)
    width = min(1.0, 2.0 / spread) if loss.name == "logistic" and spread else 1.0
    count = min(math.ceil(2.0 * reach / width), 4000)
    edges = np.broadcast_to(np.linspace(-reach, reach, count + 1), (len(v), count + 1))
    kinks = {"hinge": (1.0,), "huber": (-loss.size, loss.size), "logistic": ()}
    for kink in kinks.get(loss.name, (0.0,)) if spread else ():
        cut = np.clip((kink - v) / spread, -reach, reach)
        edges = np.sort(np.hstack([edges, cut[:, None]]), axis=1)
    half = 0.5 * np.diff(edges, axis=1)
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    x, w = _LEGENDRE
    nodes = (middle[:, :, None] + half[:, :, None] * x).reshape(len(v), -1)
    with np.errstate(divide="ignore"):
        weights = np.log((half[:, :, None] * w).reshape(len(v), -1))
    return nodes, weights


# Worst cases of given losses ---------------------------------------------------------------------


def reweighted(
    kind: str, losses: np.ndarray, mass: np.ndarray, size: float, *, k: float = 0.0, ball: bool
) -> tuple[float, float]:
    """An enclosure of sup { E_q loss : D(q) <= size } or sup E_q loss - size * D(q)."""
    keep = mass > 0
    losses, mass = losses[keep], mass[keep]
    spread = float(losses.max() - losses.min())
    if spread == 0.0:
        return float(losses[0]), float(losses[0])
    if kind == "cvar":
        value = tail(losses, mass, size)
    elif kind == "tv":
        top = float(losses.max())
        if ball:
            rest = tail(losses, mass, 1.0 - size) if size < 1 else top
            value = size * top + (1.0 - size) * rest
        else:
            value = float(mass @ np.maximum(losses, top - size))
    else:
        base = float(losses.min())  # of a spread of one, so that nothing below depends on units
        scale = 1.0 if ball else spread
        low, high = _divergence((losses - base) / spread, mass, size / scale, k, ball)
        return base + spread * low, base + spread * high
    return value, value


def tail(losses: np.ndarray, mass: np.ndarray, alpha: float) -> float:
    """Mean of the largest losses of total mass alpha."""
    order = np.argsort(-losses)
    taken = np.minimum(np.cumsum(mass[order]), alpha)
    return float(np.diff(taken, prepend=0.0) @ losses[order] / alpha)


def _divergence(
    x: np.ndarray, mass: np.ndarray, size: float, k: float, ball: bool
) -> tuple[float, float]:
    """Cressie-Read of order k (1: Kullback-Leibler) of losses in [0, 1]."""

    def ratio(t: np.ndarray) -> np.ndarray:
        if k == 1.0:
            return np.exp(t)
        return np.maximum(1.0 + (k - 1.0) * t, 0.0) ** (1.0 / (k - 1.0))

    def conjugate(t: np.ndarray) -> np.ndarray:
        if k == 1.0:
            return np.expm1(t)
        return (np.maximum(1.0 + (k - 1.0) * t, 0.0) ** (k / (k - 1.0)) - 1.0) / k

    def phi(s: np.ndarray) -> np.ndarray:
        if k == 1.0:
            return xlogy(s, s) - s + 1.0
        return (s**k - k * s + k - 1.0) / (k * (k - 1.0))

    def level(price: float) -> float:
        """eta at which the ratio's mean is one: between the losses' mean and largest, or beyond."""
        if k == 1.0:
            return 1.0 + price * math.log(mass @ np.exp((x - 1.0) / price))

        def excess(eta: float) -> float:
            return float(mass @ ratio((x - eta) / price)) - 1.0

        floor = 1.0 - price / (1.0 - k) if k < 1 else -price * 2.0
        low = floor + 1e-15 * max(abs(floor), price) if k < 1 else floor
        if k < 1 and excess(low) < 0:
            return low
        return brentq(excess, low, 1.0 + 1e-9, xtol=1e-15, rtol=1e-15)

    def at(log_price: float) -> tuple[float, np.ndarray, float]:
        price = math.exp(log_price)
        eta = level(price)
        q = mass * ratio((x - eta) / price)
        q = q / q.sum()
        dual = eta + price * float(mass @ conjugate((x - eta) / price))
        return dual, q, float(mass @ phi(q / mass))

    if not ball and size > 1e5:  # so dear that only the variance counts, to size^-2
        mean = float(mass @ x)
        return mean, mean + float(mass @ (x - mean) ** 2) / (2.0 * size) + size**-2
    if not ball:
        dual, q, spent = at(math.log(size))
        return float(q @ x) - size * spent, dual
    if size == 0:
        return float(mass @ x), float(mass @ x)

    def missing(log_price: float) -> float:
        return at(log_price)[2] - size

    low, high = -14.0, 14.0
    if missing(low) <= 0:  # all mass on the largest loss, or nearly
        dual, q, spent = at(low)
        return float(q @ x), min(1.0, dual + math.exp(low) * size)
    while missing(high) > 0:
        high += 7.0
    found = brentq(missing, low, high, xtol=1e-13, rtol=1e-14)
    dual, q, spent = at(found)
    share = min(1.0, math.sqrt(size / spent)) if spent > size else 1.0
    for _ in range(60):  # towards the reference until the ball holds it
        inside = mass + share * (q - mass)
        if mass @ phi(inside / mass) <= size:
            break
        share *= 1.0 - 1e-13 * 2**_
    return float(inside @ x), min(1.0, dual + math.exp(found) * size)


# Problems ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """min over (theta, b) of the worst case of E loss plus alpha / 2 |theta|^2.

    ``kind`` is "w2", "w1", "sinkhorn", "kl", "chi2", "cr", "tv", "cvar" or "group"; exactly one of
    radius and penalty is given (neither: the worst group). Labels are 0 and 1 for classifiers.
    """

    kind: str
    loss: Scalar
    X: np.ndarray
    y: np.ndarray
    radius: float | None = None
    penalty: float | None = None
    weight: np.ndarray | None = None
    groups: np.ndarray | None = None
    alpha: float = 0.0
    intercept: bool = True
    k: float = 2.0
    epsilon: float = 0.1
    label_cost: float = math.inf
    tol: float = 1e-3
    tags: tuple[str, ...] = ()
    seed: int = field(default=-1)

    @cached_property
    def mass(self) -> np.ndarray:
        w = np.ones(len(self.X)) if self.weight is None else np.asarray(self.weight, float)
        return w / w.sum()

    @property
    def ball(self) -> bool:
        return self.penalty is None

    def v(self, coef: np.ndarray, b: float) -> np.ndarray:
        """Margins or residuals."""
        f = self.X @ coef + b
        return (2.0 * self.y - 1.0) * f if self.loss.classifies else f - self.y

    @cached_property
    def floor(self) -> float:
        """Below it an objective is zero: 1e-10 of a constant's, or what rounding of y costs."""
        constant = self.worst_case(np.zeros(self.X.shape[1]), _constant(self))[1]
        slip = 64.0 * np.finfo(float).eps * float(np.abs(self.y).max())
        rounding = 0.0 if self.loss.classifies else float(self.loss.value(np.array([slip]))[0])
        return 1e-10 * constant + rounding

    def worst_case(self, coef: np.ndarray, b: float) -> tuple[float, float]:
        """An enclosure of the objective of a model, the ridge term included."""
        coef = np.asarray(coef, float).ravel()
        low, high = self._worst(self.v(coef, float(b)), float(np.linalg.norm(coef)))
        ridge = 0.5 * self.alpha * float(coef @ coef)
        return min(low, high) + ridge, high + ridge

    def _worst(self, v: np.ndarray, norm: float) -> tuple[float, float]:
        size = self.radius if self.ball else self.penalty
        if self.kind in {"w2", "w1", "sinkhorn"}:
            return self._moved(v, norm)
        losses = self.loss.value(v)
        if self.kind == "group":
            names, member = np.unique(self.groups, return_inverse=True)
            mass = np.bincount(member, self.mass, len(names))
            risks = np.bincount(member, self.mass * losses, len(names))
            risks = risks[mass > 0] / mass[mass > 0]
            if size is None:
                return float(risks.max()), float(risks.max())
            return reweighted("tv", risks, mass[mass > 0], size, ball=self.ball)
        if self.kind == "chi2":
            size = size / 2.0 if self.ball else size * 2.0
        order = {"kl": 1.0, "chi2": 2.0}.get(self.kind, self.k)
        kind = self.kind if self.kind in {"tv", "cvar"} else "divergence"
        return reweighted(kind, losses, self.mass, size, k=order, ball=self.ball)

    def priced(self, v: np.ndarray, norm: float, price: float) -> float:
        """sup over transports of E loss - price * cost."""
        return float(self.mass @ self.rows(v, self.second(norm, price), price)[0])

    def second(self, norm: float, price: float) -> float:
        """What a row sees of the coefficients: sigma = norm^2 / (4 price) in order 2, or norm."""
        if self.kind != "w2":
            return norm
        moved = norm * norm + (0.0 if self.loss.classifies else 1.0 / self.label_cost)
        return 0.0 if moved == 0 else moved / (4.0 * price) if price else math.inf

    def rows(self, v: np.ndarray, second: float, price: float) -> tuple[np.ndarray, ...]:
        """Each row's share of it, with derivatives in v, in `second` and in price."""
        zero = np.zeros_like(v)
        if self.kind == "sinkhorn":
            scale = math.sqrt(self.epsilon / 2.0)
            value, s, spread, cost = _smoothed(self.loss, v, scale * second, self.epsilon * price)
            return value, s, scale * spread, self.epsilon * cost
        if self.kind == "w1":
            value, s, _ = self.loss.raised(v, 0.0)
            curve, sigma = zero, 0.0
        else:
            sigma = second
            value, s, curve = self.loss.raised(v, sigma)
        if not self.loss.classifies or math.isinf(self.label_cost):
            return value, s, curve, zero
        other, s2, curve2 = self.loss.raised(-v, sigma)
        other = other - price * self.label_cost
        flips = other > value
        return (
            np.where(flips, other, value),
            np.where(flips, -s2, s),
            np.where(flips, curve2, curve) if self.kind == "w2" else zero,
            np.where(flips, -self.label_cost, 0.0),
        )

    def _moved(self, v: np.ndarray, norm: float) -> tuple[float, float]:
        least = 0.0
        if self.kind == "w1" and self.radius != 0:
            least = self.loss.lipschitz * norm
            if not self.loss.classifies and math.isfinite(self.label_cost):
                least = max(least, self.loss.lipschitz / self.label_cost)
        if not self.ball:
            if least > self.penalty * (1.0 + 1e-9):
                return math.inf, math.inf
            value = self.priced(v, norm, self.penalty)
            return value - ROUNDING * abs(value), value
        if self.radius == 0 and self.kind != "sinkhorn":
            value = float(self.mass @ self.loss.value(v))
            return value, value
        if self.kind == "sinkhorn" and self.radius == 0:
            # The smoothed reference: no tilt is left as the price grows.
            value = self.priced(v, norm, 1e9)
            return value - 1e-9 * abs(value), value
        budget = self.radius**2 if self.kind == "w2" else self.radius

        def dual(price: float) -> float:
            return price * budget + self.priced(v, norm, price)

        best = self._least(dual, least, v, norm)
        return best - 1e-11 * abs(best), best

    def _least(self, dual: Any, least: float, v: np.ndarray, norm: float) -> float:
        """The least value of a convex function on prices from ``least`` on."""
        still = norm == 0.0 and (self.loss.classifies or math.isinf(self.label_cost))
        best = dual(least) if least > 0 else math.inf
        if still and self.kind in {"w2", "sinkhorn"}:
            best = min(
                best, dual(0.0) if self.kind == "w2" else float(self.mass @ self.loss.value(v))
            )
            if self.kind == "sinkhorn" or math.isinf(self.label_cost):
                return best
        if self.kind == "w1" and (not self.loss.classifies or math.isinf(self.label_cost)):
            return dual(least)
        if self.loss.name == "squared" and self.kind != "w1":
            moved = norm**2 + (0.0 if math.isinf(self.label_cost) else 1.0 / self.label_cost)
            least = max(least, moved * (1.0 + 1e-15))
        base = max(norm, 1e-9)

        def at(t: float) -> float:
            return dual(least + base * math.exp(t))

        # Down the slope of a function with one valley, then within it.
        left, middle, right = -1.0, 0.0, 1.0
        values = [at(left), at(middle), at(right)]
        while not values[1] <= min(values[0], values[2]) and left > -45.0 and right < 45.0:
            if values[0] < values[2]:
                step = 1.6 * (middle - left)
                right, middle, left = middle, left, left - step
                values = [at(left), values[0], values[1]]
            else:
                step = 1.6 * (right - middle)
                left, middle, right = middle, right, right + step
                values = [values[1], values[2], at(right)]
        options = {"xatol": 1e-9, "maxiter": 200}
        found = minimize_scalar(at, bounds=(left, right), method="bounded", options=options)
        # SciPy's search ends at 1.5e-8 of the number itself; at kinks that shows: once more near 0.
        near, width = float(found.x), 1e-7 * (1.0 + abs(found.x))
        options["xatol"] = 1e-13
        again = minimize_scalar(
            lambda t: at(near + t), bounds=(-width, width), method="bounded", options=options
        )
        return min(best, float(found.fun), float(again.fun), *values)


# The best model ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimum:
    """An enclosure of the least objective, with the model that attains ``high``."""

    low: float
    high: float
    coef: np.ndarray
    intercept: float
    how: str
    floor: float = 0.0

    @property
    def error(self) -> float:
        """Relative width of the enclosure."""
        return (self.high - self.low) / max(abs(self.high), self.floor, 1e-300)


def optimum(problem: Problem) -> Optimum:
    """The least objective of a problem, by a conic program or by cutting planes."""
    curved = problem.loss.name in {"logistic", "huber"}
    planar = problem.kind == "sinkhorn" or (problem.kind == "w2" and curved and problem.radius != 0)
    if planar:
        return planes(problem, tol=min(1e-6, 1e-2 * problem.tol))
    return _conic(problem)


def ambiguity_of(problem: Problem) -> Any:
    """The ambiguity set that a problem speaks of."""
    from drojko import ambiguity as sets

    size = {"radius": problem.radius, "penalty": problem.penalty}
    if problem.kind in {"w1", "w2"}:
        order = int(problem.kind[1])
        return sets.Wasserstein(**size, order=order, label_cost=problem.label_cost)
    if problem.kind == "sinkhorn":
        return sets.Sinkhorn(problem.epsilon, **size)
    if problem.kind == "cvar":
        return sets.CVaR(problem.radius)
    if problem.kind == "cr":
        return sets.CressieRead(problem.k, **size)
    names = {"kl": "KL", "chi2": "ChiSquare", "tv": "TotalVariation", "group": "Group"}
    return getattr(sets, names[problem.kind])(**size)


def _conic(problem: Problem) -> Optimum:
    from drojko.baselines import ConvexDROClassifier, ConvexDRORegressor
    from drojko.exceptions import SolverError

    loss = problem.loss
    common: dict[str, Any] = {"alpha": problem.alpha, "fit_intercept": problem.intercept}
    common["solver"] = "CLARABEL"
    if loss.classifies:
        model: Any = ConvexDROClassifier(ambiguity_of(problem), loss=loss.name, **common)
    else:
        sizes = {"huber": {"delta": loss.size}, "quantile": {"quantile": loss.size}}
        extra = sizes.get(loss.name, {})
        model = ConvexDRORegressor(ambiguity_of(problem), loss=loss.name, **extra, **common)
    slack, data = 1e-8, (problem.X, problem.y, problem.weight, problem.groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.fit(*data)
        except SolverError:  # numerical trouble: another solver, which is less accurate
            slack = 1e-5
            model.set_params(solver="SCS").fit(*data)
    coef, b = np.asarray(model.coef_).ravel(), float(np.ravel(model.intercept_)[0])
    if problem.kind == "w1" and not problem.ball:  # onto the ball of finite worst cases
        most = problem.penalty / loss.lipschitz
        coef = coef * min(1.0, most / max(float(np.linalg.norm(coef)), 1e-300))
    high = problem.worst_case(coef, b)[1]
    low = min(
        max(model.objective_ - slack * abs(model.objective_), 0.0), high
    )  # no loss is negative
    return Optimum(low, high, coef, b, "conic", problem.floor)


class _Master:
    """min of mass @ s + price * budget + alpha / 2 |theta|^2 over all cuts, by Clarabel."""

    def __init__(self, problem: Problem) -> None:
        self.p = problem
        self.n, self.d = problem.X.shape
        sign = 2.0 * problem.y - 1.0 if problem.loss.classifies else np.ones(self.n)
        self.B = sign[:, None] * np.hstack([problem.X, np.ones((self.n, 1))])
        self.offset = np.zeros(self.n) if problem.loss.classifies else -problem.y
        self.budget = 0.0
        if problem.ball:
            self.budget = problem.radius**2 if problem.kind == "w2" else problem.radius
        self.rows: list[tuple[int, float, float, float, float]] = []

    def add(self, v: np.ndarray, second: float, price: float, values: tuple) -> None:
        """Tangents of every row at (v, second, price)."""
        value, a, c, e = values
        rest = value - a * v - c * second - e * price
        self.rows += list(zip(range(self.n), a, c, e, rest))

    def solve(self) -> tuple[float, np.ndarray, float, float, float]:
        """The least value, theta, b, second coordinate, price."""
        import clarabel
        from scipy import sparse

        p, n, d = self.p, self.n, self.d
        # Variables: theta (d), b, second, price, s (n).
        size = d + 3 + n
        q = np.zeros(size)
        q[d + 2] = self.budget
        q[d + 3 :] = p.mass
        ridge = sparse.diags(np.r_[np.full(d, p.alpha), np.zeros(3 + n)]).tocsc()
        i, a, c, e, rest = (np.array(column) for column in zip(*self.rows))
        i = i.astype(int)
        # a v + c second + e price + rest <= s_i, v = B z + offset.
        dense = np.hstack([a[:, None] * self.B[i], c[:, None], e[:, None]])
        epigraph = sparse.csc_matrix((-np.ones(len(i)), (np.arange(len(i)), i)), (len(i), n))
        blocks = [sparse.hstack([sparse.csc_matrix(dense), epigraph])]
        right = [-(rest + a * self.offset[i])]
        cones: list[Any] = [clarabel.NonnegativeConeT(len(i) + 2)]
        least = sparse.csc_matrix((-np.ones(2), ([0, 1], [d + 1, d + 2])), (2, size))
        blocks.append(least)
        right.append(np.zeros(2))
        fixed = []
        if not p.intercept:
            fixed.append((d, 0.0))
        if not p.ball:
            fixed.append((d + 2, p.penalty))
        if fixed:
            at = [column for column, _ in fixed]
            blocks.append(
                sparse.csc_matrix((np.ones(len(at)), (range(len(at)), at)), (len(at), size))
            )
            right.append(np.array([value for _, value in fixed]))
            cones.append(clarabel.ZeroConeT(len(at)))
        cone = np.zeros((d + 2, size))
        if p.kind == "w2":  # |theta|^2 <= 4 price second, with movable targets + 1 / label_cost
            cone[0, [d + 1, d + 2]] = -1.0, -1.0
            cone[1, [d + 1, d + 2]] = -1.0, 1.0
            cone[2 + np.arange(d), np.arange(d)] = -1.0
            shift = np.zeros(d + 2)
        else:
            cone = cone[1:]
            cone[0, d + 1] = -1.0
            cone[1 + np.arange(d), np.arange(d)] = -1.0
            shift = np.zeros(d + 1)
        if p.kind == "w2" and not p.loss.classifies and math.isfinite(p.label_cost):
            cone, shift = np.vstack([cone, np.zeros(size)]), np.append(shift, p.label_cost**-0.5)
        blocks.append(sparse.csc_matrix(cone))
        right.append(shift)
        cones.append(clarabel.SecondOrderConeT(len(shift)))
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.max_iter = 300
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
        matrix = sparse.vstack(blocks).tocsc()
        found = clarabel.DefaultSolver(ridge, q, matrix, np.concatenate(right), cones, settings)
        solution = found.solve()
        x = np.array(solution.x)
        dual = float(solution.obj_val_dual)
        return min(float(solution.obj_val), dual), x[:d], x[d], x[d + 1], x[d + 2]


def planes(problem: Problem, *, tol: float = 1e-8, rounds: int = 60) -> Optimum:
    """Cutting planes row by row: the worst case of a row is jointly convex in (v, sigma, price)."""
    p, master = problem, _Master(problem)
    d = p.X.shape[1]
    still = (np.zeros(d), _constant(p))
    candidates = [still]
    scale = max(float(np.abs(p.X - p.X.mean(0)).max(initial=0.0)), 1e-12)
    reach = max(float(np.abs(p.y).max()), 1.0) / scale

    def touch(coef: np.ndarray, b: float, second: float, price: float) -> None:
        second = max(second, 0.0)
        # A tangent anywhere is valid; where rows are tilted far, it is dear and says little.
        price = max(price, 0.05 * second if p.kind == "sinkhorn" else 1e-12, 1e-12)
        if p.kind == "sinkhorn" and p.loss.name == "squared":  # finite for price > norm^2 only
            if p.ball:
                price = max(price, 1.05 * second**2)
            second = min(second, math.sqrt(price / 1.04))
        values = p.rows(p.v(coef, b), second, price)
        if all(np.isfinite(part).all() for part in values):
            master.add(p.v(coef, b), second, price, values)

    price = p.penalty if not p.ball else 1.0
    rng = np.random.default_rng(0)
    for _ in range(6):
        coef = reach * rng.normal(size=d) * 0.5
        norm = float(np.linalg.norm(coef))
        cost = price if not p.ball else max(norm, 1e-3) / max(p.radius, 1e-3)
        touch(coef, still[1], min(p.second(norm, cost), 0.2), cost)
    # Losses are not negative.
    zeros = np.zeros(p.X.shape[0])
    master.add(zeros, 0.0, 0.0, (zeros, zeros, zeros, zeros))
    best, low = p.worst_case(*still)[1], -math.inf
    found: tuple[np.ndarray, float] = still
    last: tuple | None = None
    for _ in range(rounds):
        value, coef, b, second, price = master.solve()
        if math.isfinite(value):
            low = max(low, value)
        candidates = [(coef, b)]
        if last is not None:
            candidates.append((0.5 * (coef + found[0]), 0.5 * (b + found[1])))
        for theta, at in candidates:
            high = p.worst_case(theta, at)[1]
            if high < best:
                best, found = high, (theta, at)
        touch(coef, b, second, price)
        touch(coef, b, p.second(float(np.linalg.norm(coef)), max(price, 1e-12)), price)
        if last is not None:
            touch(*(0.5 * (new + old) for new, old in zip((coef, b, second, price), last)))
        last = (coef, b, second, price)
        if best - low <= max(tol * abs(best), p.floor):
            break
    low = min(max(low - 1e-9 * abs(low), 0.0), best)
    return Optimum(low, best, found[0], found[1], "planes", problem.floor)


def _constant(problem: Problem) -> float:
    """The best intercept of a constant model, roughly: a start."""
    if not problem.intercept:
        return 0.0
    if problem.loss.classifies:
        share = float(problem.mass @ problem.y)
        return math.log(share / (1.0 - share)) if 0 < share < 1 else 0.0
    order = np.argsort(problem.y)
    level = problem.loss.size if problem.loss.name == "quantile" else 0.5
    i = np.searchsorted(np.cumsum(problem.mass[order]), level)
    return float(problem.y[order][min(int(i), len(order) - 1)])


def scaled(problem: Problem, x: float, y: float) -> Problem:
    """The same problem in other units: X times x, y times y (classifiers: 1), sizes with them."""
    loss = problem.loss
    y = 1.0 if loss.classifies else y
    unit = y**loss.power
    huber = replace(loss, size=loss.size * y) if loss.name == "huber" else loss
    cost = {"w2": x * x, "w1": x, "sinkhorn": x * x}.get(problem.kind, 1.0)
    radius = problem.radius
    if radius is not None and problem.kind != "cvar":
        radius = radius * (x if problem.kind in {"w2", "w1"} else cost)
    label = problem.label_cost
    if math.isfinite(label):
        per = 1.0 if loss.classifies else (y * y if problem.kind == "w2" else y)
        label = label * cost / per
    return replace(
        problem, loss=huber, X=problem.X * x, y=problem.y if loss.classifies else problem.y * y,
        radius=radius, penalty=None if problem.penalty is None else problem.penalty * unit / cost,
        epsilon=problem.epsilon * x * x, label_cost=label,
        alpha=problem.alpha * unit / (y * y / (x * x)),
    )  # fmt: skip
