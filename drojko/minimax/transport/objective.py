r"""Worst cases that see a linear model through a norm, as problems of the common solver.

.. math:: \min_{z, \lambda}\; \lambda\rho + \sum_i w_i\,G_i(u_i, N, \lambda)
          + \tfrac12 z^\top R z, \qquad N = n^2(z)

G is the worst case of one row at the price lambda, jointly convex: of order-2 Wasserstein

.. math:: G(u, N, \lambda) = \max_t \ell(u + t, y) - \lambda t^2 / N ,

a function of u and sigma = N / 4 lambda, and its log-mean under noise for Sinkhorn sets
(`drojko.minimax.sinkhorn.objective`). At a fixed penalty lambda is no variable; without either,
nothing moves. Kinks are smoothed by mu, and the vertex z = 0 by a share of mu that joins N.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from drojko.exceptions import UnsupportedError
from drojko.losses import Loss
from drojko.losses.jets import jet, kinks
from drojko.minimax.newton import State, Terms, solve_symmetric
from drojko.minimax.transport.bound import Ground, lower_bound, plan_of
from drojko.minimax.transport.risk import spend
from drojko.rows import Rows, blocks

__all__ = ["SCALARS", "SEPARABLE", "Kinks", "NormObjective", "Point", "Sums", "TransportRows"]

_FAR = 1e-6  # of N: less than that does not smooth the vertex
_STRAIGHT = 1e-4  # mu over the unit from which on straight parts of smooth losses stay as they are
#: Of a jet, what is summed over rows; the first four without second derivatives.
SCALARS = ("value", "bias", "s", "l", "ss", "sl", "ll", "curve_s")
SEPARABLE = (
    "The classes can be separated, so without alpha or a radius the risk falls to zero along a "
    "ray and no minimum exists: add alpha > 0 or a radius > 0 (on columns that may move)."
)


@dataclass(frozen=True, eq=False)
class Point:
    """Where G is asked for: predictions, N, and p; without ``second`` first derivatives only.

    ``z`` are the parameters, for objectives that see more of them than this.
    """

    u: np.ndarray
    square: float
    p: float
    z: np.ndarray
    mu: float = 0.0
    duals: Mapping[str, Any] = field(default_factory=dict)
    second: bool = False


@dataclass(eq=False)
class Sums:
    """Sums over rows of G and its derivatives in (u, N, p), those in u by row, weights in.

    p is the variable that stands for lambda, if there is one; the budget's term is included.
    ``curve`` is the derivative in N as it multiplies second derivatives of N: where there are
    duals it belongs to their mixture, like all second derivatives. ``bias`` is what smoothing
    costs, ``spent`` what the worst case costs, ``plan`` what a bound needs.
    """

    value: float
    spent: float
    u: np.ndarray
    n: float = 0.0
    p: float = 0.0
    uu: Any = 0.0
    un: Any = 0.0
    up: Any = 0.0
    nn: float = 0.0
    np: float = 0.0
    pp: float = 0.0
    curve: float = 0.0
    bias: float = 0.0
    plan: Any = None
    extra: Any = None  # what does not go through u, N and p
    records: Mapping[str, Any] = field(default_factory=dict)


class NormObjective(ABC):
    """An objective of `Newton`; ``budget`` > 0 makes the price lambda of moving a variable."""

    first_smoothing: float = 0.1
    cooling = 0.1
    patient = True  # bounds ask for duals that balance
    spent_to = 0.05  # of the budget, at the start

    def __init__(self, rows: Rows, loss: Loss, ground: Ground, budget: float):
        self.rows, self.loss, self.ground, self.budget = rows, loss, ground, budget
        self.positive: tuple[int, ...] = (0,) if budget else ()
        self.unit = self.rate = 1.0
        self.near, self.mu = True, math.nan  # whether the vertex is smoothed, last for which mu
        self.first: tuple[np.ndarray, float | None] | None = None

    def begin(self, z: np.ndarray, lam: float | None, share: float) -> None:
        """Start at z and, if known, lambda, with mu a share of the unit."""
        self.first, self.first_smoothing = (z, lam), share

    @abstractmethod
    def sums(self, at: Point) -> Sums | None:
        """G and its derivatives; None outside of its domain."""

    @abstractmethod
    def width(self, mu: float) -> float:
        """By how much n² is raised, as a root, while the vertex is smoothed by mu."""

    def exchanged(self, level: float, square: float) -> float:
        """Lambda from the variable that stands for it, and the other way round."""
        return level

    def price(self, p: np.ndarray, square: float) -> float:
        """Lambda: a variable, the penalty, or infinite where nothing is tilted or moved."""
        if not p.size:
            return self.ground.penalty or math.inf
        return self.exchanged(self._level(p), square)

    def _level(self, p: np.ndarray) -> float:
        return float(p[0]) * self.rate if p.size else 0.0

    @property
    def spread(self) -> float:
        """What moves predictions by a loss of ordinary size; p is made as large."""
        steep = self.loss.lipschitz or math.inf
        return self.unit / steep if math.isfinite(steep) else math.sqrt(self.unit)

    def square(self, z: np.ndarray, mu: float) -> float:
        """N, with what smooths the vertex."""
        return self.ground.square(z) + (self.width(mu) ** 2 if self.near else 0.0)

    # The protocol -------------------------------------------------------------------------------

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """Where `begin` says, or a step towards the least plain risk from a constant model."""
        rows, z, loss = self.rows, np.zeros(self.rows.size), self.loss
        if rows.intercept and loss.task == "regression":
            z[-1] = float(np.median(rows.y))
        u = rows.predict(z)
        value = loss.value(torch.from_numpy(u), torch.from_numpy(rows.y)).numpy()
        self.unit = float(rows.w @ value)
        if self.ground.offset and not self.unit > 0.0:  # a perfect fit still has slopes
            self.unit = 1e-6 * (self.loss.lipschitz or 1.0)
        if not self.unit > 1e-280:
            return z, np.ones(len(self.positive))
        z, lam = self.first or (self._plain(z, u), None)
        p = self.multiplier(z, self.first_smoothing * self.unit, lam)
        if p.size:
            self.rate, p = float(p[0]) * self.rate / self.spread, np.array([self.spread])
        return z, p

    def _plain(self, z: np.ndarray, u: np.ndarray) -> np.ndarray:
        """A step towards the least plain risk, where it is one."""
        rows, w, ridge, mu = self.rows, self.rows.w, self.ground.ridge, self.unit
        at = self.loss.smoothed(u, rows.y, mu)
        free, gradient = rows.free, rows.sum(w * at.slope) + ridge * z
        hessian = rows.gram(w * np.maximum(at.second, 0.0)) + np.diag(ridge)
        new = z.copy()
        new[free] += solve_symmetric(hessian[np.ix_(free, free)], -gradient[free])
        for _ in range(4):
            risk = float(w @ self.loss.smoothed(rows.predict(new), rows.y, mu).value)
            if risk + self.ground.decay(new) < float(w @ at.value) + self.ground.decay(z):
                return new
            new = z + 0.1 * (new - z)
        return z

    def multiplier(self, z: np.ndarray, mu: float, guess: float | None = None) -> np.ndarray:
        """About the best p at z; ``guess`` is a price."""
        if not self.budget:
            return np.zeros(0)
        u, square = self.rows.predict(z), self.square(z, mu)
        if guess is None or not 0.0 < guess < math.inf:
            guess = 0.5 * math.sqrt(square / self.budget) * self.unit / self.spread

        def at(lam: float) -> tuple[float, float, Sums | None]:
            found = self.sums(Point(u, square, self.exchanged(lam, square), z, mu))
            spent = math.inf if found is None else found.spent
            return spent, -2.0 * spent / lam, found  # close to a power law

        least, close = self.loss.growth * square, self.spent_to
        lam, found = spend(at, self.budget, guess, least=least, close=close)
        if found is None:  # the edge of the domain
            lam *= 1.0 + 1e-6
        return np.array([self.exchanged(lam, square) / self.rate])

    def terms(
        self,
        z: np.ndarray,
        p: np.ndarray,
        u: np.ndarray,
        mu: float,
        duals: Mapping[str, Any],
        second: bool = True,
    ) -> Terms:
        """The chain rule through N; see `Terms`."""
        s, square, rate = None, self.square(z, mu), self.rate
        if np.isfinite(u).all():
            s = self.sums(Point(u, square, self._level(p), z, mu, duals, second))
        if s is None or not math.isfinite(s.value):
            return Terms(math.inf)
        cost, ridge = self.ground.cost, self.ground.ridge
        s.bias += s.n * (square - self.ground.square(z))
        value, gp = s.value + self.ground.decay(z), np.array([rate * s.p])[: p.size]
        pull = 2.0 * cost * z  # dN/dz
        gz = s.n * pull + ridge * z
        if not second:
            return Terms(value, s.u, gz=gz, gp=gp, records=s.records, detail=(u, s))
        Hz = 2.0 * s.curve * cost + ridge
        if s.nn or np.ndim(s.un):
            Hz = np.diag(Hz) + np.outer(s.nn * pull, pull)
        if np.ndim(s.un):
            across = np.outer(self.rows.sum(s.un), pull)
            Hz += across + across.T
        if not p.size:
            return Terms(value, s.u, s.uu, gz, Hz, gp, records=s.records, detail=(u, s))
        Hpp, hup = np.array([[rate**2 * s.pp]]), rate * s.up[:, None]
        Hzp = (rate * s.np * pull)[:, None]
        return Terms(value, s.u, s.uu, gz, Hz, gp, Hpp, hup, Hzp, s.records, (u, s))

    def tidy(self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """The price inside the domain."""
        if mu != self.mu:
            self.mu, self.near = mu, self._close(z, mu)
        if p.size and self.loss.growth:
            least = self.loss.growth * self.square(z, mu) / self.rate
            return np.maximum(p, least * (1.0 + 1e-6))
        return p

    def restart(self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """About the best price."""
        return self.multiplier(z, mu, self.price(p, self.square(z, mu)))

    def accepted(self, state: State) -> bool:
        """Away from the vertex, where N is large, there is nothing to smooth."""
        before, self.near = self.near, self._close(state.z, state.mu)
        return self.near != before

    def _close(self, z: np.ndarray, mu: float) -> bool:
        return self.width(mu) ** 2 > _FAR * self.ground.square(z)

    def bias(self, state: State) -> float:
        """What kinks and vertex cost."""
        return state.terms.detail[1].bias

    def unbounded(self, state: State) -> str | None:
        """Whether logistic risk falls to zero along a ray: its minimum is not attained."""
        if self.loss.attained:
            return None
        y, w, ground = self.rows.y, self.rows.w, self.ground
        held = ground.penalty is not None or bool(ground.ridge.any())
        if held and np.ptp(y[w > 0]) > 0:
            return None  # only the intercept of a single class is free to grow
        if (held or ground.moves) and state.row["robust_risk"] > 1e-10 * self.unit:
            return None
        apart = ((2.0 * y - 1.0) * state.u > 0) | (w == 0)
        return SEPARABLE if bool(apart.all()) else None

    def record(self, state: State, exact: bool = False) -> dict[str, float]:
        """The exact objective at this price, of which the smoothed one is an upper bound."""
        square, detail = self.ground.square(state.z), state.terms.detail
        sums = detail[1] if detail is not None and detail[0] is state.u else None
        value, found = state.terms.value, sums
        if sums is None or sums.bias > 0.0:
            found = self.sums(Point(state.u, square, self._level(state.p), state.z))
            value = math.inf if found is None else found.value + self.ground.decay(state.z)
        spent = sums or found
        return {
            "robust_risk": value,
            "penalty": self.price(state.p, square),
            "transport_cost": math.nan if spent is None else spent.spent,
        }


class Kinks(NamedTuple):
    """Duals of kinks, which take a step along."""

    duals: Any

    def moved(self, new: Any, t: float) -> np.ndarray:
        """See `drojko.losses.jets`."""
        return self.duals * [[1.0], [1.0], [t], [1.0]]


class TransportRows(NormObjective):
    """Order-2 Wasserstein: the worst case of a row is a point.

    In a ball the variable is sigma, in which kinks lie on hyperplanes, with a budget's term
    r² N / 4 sigma; where labels may flip it is lambda.
    """

    def __init__(self, rows: Rows, loss: Loss, ground: Ground):
        super().__init__(rows, loss, ground, (ground.radius or 0.0) ** 2)
        self.flips = ground.moves and math.isfinite(ground.flip_cost)
        self.by_sigma = self.budget > 0.0 and not self.flips
        self.smooth = False
        self.refused: UnsupportedError | None = None  # why a loss of one's own has no jet there

    def sample(self, index: np.ndarray, w: np.ndarray) -> TransportRows:
        """The same problem on some rows, with these weights."""
        return TransportRows(self.rows.take(index, w), self.loss, self.ground)

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """See `NormObjective`; smooth losses need no smoothing."""
        self.smooth = not self.flips and not self.loss.straight and self.loss.kink_free(0.0)
        return super().start()

    def width(self, mu: float) -> float:
        """Only a ball makes the vertex sharp."""
        radius = self.ground.radius
        return 3.0 * mu / self.unit * self.spread / radius if radius is not None else 0.0

    def exchanged(self, level: float, square: float) -> float:
        """Sigma and lambda."""
        return 0.25 * square / level if self.by_sigma else level

    def sums(self, at: Point) -> Sums | None:
        """Jets in (u, sigma, lambda), block by block, and the chain rule through sigma."""
        how = self._how(at)
        found = self._gathered(at, how, self.rows.w)
        return None if found is None else self._chained(at, how, *found)

    def _how(self, at: Point) -> tuple[float, float, float, tuple[float, float] | None]:
        """Lambda, sigma, mu of the loss's kinks, and what labels cost."""
        lam = self.exchanged(at.p, at.square) if self.budget else self.ground.penalty or math.inf
        sigma = 0.25 * at.square / lam if at.square > 0.0 else 0.0
        price = (lam, self.ground.flip_cost) if self.flips else None
        return lam, sigma, 0.0 if self.smooth else at.mu, price

    def _gathered(
        self, at: Point, how: tuple[float, float, float, Any], w: np.ndarray
    ) -> tuple[dict[str, float], dict[str, np.ndarray], Any] | None:
        """Sums of the jets under weights, their derivatives in u by row, and duals of kinks."""
        u, n, y, second, old = at.u, len(at.u), self.rows.y, at.second, None
        _, sigma, mu, price = how
        if mu > 0.0 and second:
            old = at.duals.get("kinks")
            old = np.full((kinks(self.flips), 4, n), np.nan) if old is None else old.copy()
        by_row = {name: np.empty(n) for name in ("u", "uu", "us", "ul")[: 4 if second else 1]}
        names = SCALARS[: 8 if second else 4]
        total: dict[str, float] = dict.fromkeys(names, 0.0)
        for part in blocks(n, 16):
            near = None if old is None else old[:, :, part]
            try:
                found = jet(self.loss, u[part], y[part], sigma, mu, price, near)
            except UnsupportedError as error:
                self.refused = error
                return None
            for name, out in by_row.items():
                np.multiply(w[part], getattr(found, name), out=out[part])
            for name in names:
                x = getattr(found, name)
                if isinstance(x, np.ndarray):
                    total[name] += float(w[part] @ x)
                elif x:
                    total[name] += x * float(w[part].sum())
        return total, by_row, old

    def _chained(
        self,
        at: Point,
        how: tuple[float, float, float, Any],
        total: dict[str, float],
        by_row: dict[str, np.ndarray],
        old: Any,
    ) -> Sums:
        """The derivatives in (u, N, p) from those in (u, sigma, lambda)."""
        lam, sigma, mu, price = how
        s, square, ball = total["s"], at.square, self.budget * lam if self.budget else 0.0
        rate, fall = (0.25 / lam, -sigma / lam) if lam else (0.0, 0.0)  # of sigma in N and lambda
        spent = -(s * fall + total["l"])
        out = Sums(total["value"], spent, by_row["u"], bias=total["bias"])
        out.plan, out.records = (sigma, mu, price, old), {"kinks": Kinks(old)} if mu > 0.0 else {}
        if self.by_sigma:
            out.value += ball  # r² N / 4 sigma
            if sigma:
                out.n, out.p = ball / square, s - ball / sigma
        else:
            out.value += ball
            out.n, out.p = s * rate, self.budget - spent
        if not at.second:
            return out
        # Far from a kink most rows have no curvature at all.
        out.uu = np.maximum(by_row["uu"], 0.0)
        out.uu[out.uu <= 1e-13 * out.uu.max(initial=0.0)] = 0.0
        curve, ss, sl = total["curve_s"], total["ss"], total["sl"]
        if self.by_sigma:
            out.curve, out.np, out.up = out.n, -out.n / sigma, by_row["us"]
            out.pp = ss + 2.0 * ball / sigma**2
            return out
        out.curve, out.nn, out.un = curve * rate, ss * rate**2, by_row["us"] * rate
        if self.budget:
            out.np = (ss * fall + sl - curve / lam) * rate
            out.up = by_row["us"] * fall + by_row["ul"]
            pp = (ss * fall + 2.0 * sl - 2.0 * curve / lam) * fall + total["ll"]
            # Rounding may eat the curvature; the power law lambda^-2 gives its usual size.
            out.pp = max(pp, 0.1 * self.budget / lam)
        return out

    def accepted(self, state: State) -> bool:
        """Kinks appear where the worst case of a smooth loss turns convex, and disappear."""
        before, sigma = self.smooth, state.terms.detail[1].plan[0]
        self.smooth = not self.flips and self.loss.kink_free(sigma)
        if self.loss.straight and not before:
            self.smooth &= state.mu < _STRAIGHT * self.unit
        return super().accepted(state) or self.smooth != before

    def lower(self, state: State, need: float) -> float:
        """From the worst case; the smoothed one knows how ties are to be split."""
        sigma, mu, price, duals = state.terms.detail[1].plan
        best = 0.0
        # Far from its kinks smoothing leaves a little mass on the wrong side.
        for width, split in ((mu, duals), (0.0, None)):
            if best < need and (split is not None or width == 0.0):
                plan = plan_of(self.rows, self.loss, state.u, sigma, width, price, split)
                found = lower_bound(self.rows, self.loss, self.ground, plan, state.z, need)
                best = max(best, found)
        return best
