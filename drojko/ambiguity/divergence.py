r"""Sets that reweight as a minimum over a few levels, which linear training solves jointly.

.. math:: V(L) = \min_p\; c^\top p + \sum_i w_i\,\Psi_i(L_i, p)
               = \max_q \{E_0\, q L - \mathrm{price}(q)\}

L are the losses of the rows, or the mean losses of groups; their slopes :math:`\partial\Psi` are
the worst-case density q. Three families: nothing is reweighted (`Plain`), f-divergences with
:math:`\Psi = \lambda f^*((L-\eta)/\lambda)` (`Priced`), and sums of kinks
:math:`a (L - \eta)_+` (`Tails`: CVaR, total variation, the maximum). Kinks and multipliers are
smoothed by mu; the duals of the kinks give densities for lower bounds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import entr

from drojko._numerics import Kink, root
from drojko.exceptions import InvalidDataError

__all__ = ["Divergence", "Levels", "Part", "Plain", "Priced", "Rise", "Tail", "Tails"]

_LARGE = 690.0  # exponents beyond overflow: that radius is out of reach
_FAR = 1e3  # times the slope of a kink far away that its dual may say
_APART, _WARM = 30.0, 0.3  # prices that losses are apart; smoothing over what they are apart then
_BLOCK = 1 << 14  # cells whose work arrays stay in cache


@dataclass(frozen=True)
class Divergence:
    r"""A power divergence D(P, P0) = E0 f(dP/dP0), f = c phi_k, and its conjugate.

    .. math:: \varphi_k(s) = \frac{s^k - k s + k - 1}{k (k - 1)}, \quad
        \varphi_1(s) = s \log s - s + 1, \qquad f^*(t) = c\, \varphi_k^*(t / c)

    ``kind`` is "kl", "chi-square" or "cressie-read", ``order`` k, and ``curvature`` c = f''(1) in
    the conventions of the set: nats, E (r - 1)^2, and E phi_k.
    """

    kind: str
    order: float
    curvature: float

    def of(self, ratio: np.ndarray, weights: np.ndarray) -> float:
        """D of a ratio (n,) of mean one."""
        k = self.order
        if k == 1.0:
            mean = -float(weights @ entr(ratio))
        elif k == 2.0:
            mean = 0.5 * float(weights @ (ratio - 1.0) ** 2)
        else:
            mean = (float(weights @ ratio**k) - 1.0) / (k * (k - 1.0))
        return self.curvature * max(mean, 0.0)

    def of_event(self, mass: float) -> float:
        """D of P0 given an event of this mass."""
        k = self.order
        if not 0.0 < mass < math.inf:
            raise InvalidDataError(f"mass={mass!r}; expected a share above 0")
        mean = -math.log(mass)
        if k != 1.0:
            mean = math.expm1(min((k - 1.0) * mean, _LARGE)) / (k * (k - 1.0))
        return self.curvature * max(mean, 0.0)

    def log_ratio(self, t: np.ndarray) -> np.ndarray:
        """Log of f*', the ratio."""
        k, c = self.order, self.curvature
        if k == 1.0:
            return t / c
        return np.log1p(np.maximum((k - 1.0) / c * t, -1.0)) / (k - 1.0)

    def conjugate(self, t: np.ndarray) -> np.ndarray:
        """f*, +inf where it has no value."""
        k, c = self.order, self.curvature
        if k == 1.0:
            return c * np.expm1(t / c)
        if k == 2.0:  # where the formula below cancels
            t = np.maximum(t, -c)
            return t + t * t / (2.0 * c)
        inside = 1.0 + (k - 1.0) / c * t
        with np.errstate(divide="ignore"):
            power = np.maximum(inside, 0.0) ** (k / (k - 1.0))
        return np.where((inside > 0) | (k > 1), c * (power - 1.0) / k, np.inf)

    def jet(self, t: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """f*, f*' and f*''; for k > 1 the positive part in them is smoothed by delta."""
        k, c = self.order, self.curvature
        with np.errstate(over="ignore", invalid="ignore"):
            if k == 1.0:
                x = torch.from_numpy(np.asarray(t / c))  # whose exponentials are four times faster
                ratio = torch.exp(x).numpy()
                return c * torch.expm1(x).numpy(), ratio, ratio / c
            power, inside = 1.0 / (k - 1.0), 1.0 + (k - 1.0) / c * t
            if k < 1.0:
                if inside.min(initial=math.inf) <= 0.0:
                    return None
                q = inside**power
                return c * (q * inside - 1.0) / k, q, q / inside / c
            kink = Kink(inside, delta)
            a = kink.value
            b, q = a / kink.root, a**power  # b is the slope of a
            bend = q * (b / kink.root + (k - 1.0) * kink.second) / c
            return c * (q * a - 1.0) / k, q * b, bend


class Part(NamedTuple):
    """One density of a sum, with its derivatives: what a repair of the duals may change.

    ``density`` (m,) in [0, cap]; ``steep`` (m,) its derivative in L, ``cross`` (k, m) in the
    levels; ``mass``: the mean it is to have, and ``level`` the variable whose equation that is.
    """

    density: np.ndarray
    steep: np.ndarray
    cross: np.ndarray
    cap: Any
    level: int
    mass: float | None


@dataclass(frozen=True, eq=False)
class Rise:
    """Smoothed sum of Psi and its derivatives; arrays over cells carry no weights.

    ``value`` with the cost of p; ``density`` (m,) its slope in L; ``steep`` (m,), ``cross`` (k, m)
    second derivatives; ``gradient`` (k,) and ``hessian`` (k, k) in p.
    """

    value: float
    density: np.ndarray
    steep: np.ndarray
    cross: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    parts: tuple[Part, ...] = ()
    records: Mapping[str, Any] = ()  # type: ignore[assignment]


class Levels(ABC):
    """The levels of one set on cells of given weights.

    Attributes
    ----------
    ambiguity : the set, asked for its discrepancy and price
    weights : array of shape (m,)
        Of the cells: positive, sum 1.
    count : int
        Number of levels k.
    positive : tuple of int
        Levels that must stay positive.
    unit : float
        A typical loss.
    """

    count: int = 0
    positive: tuple[int, ...] = ()
    #: Whether the sum has kinks in L, which take a smoothing that falls.
    kinked: bool = False

    def __init__(self, ambiguity: Any, weights: np.ndarray, unit: float = 1.0):
        self.ambiguity, self.weights, self.unit = ambiguity, weights, unit

    @abstractmethod
    def start(self, losses: np.ndarray, mu: float) -> np.ndarray:
        """Levels inside the domain at these losses."""

    @abstractmethod
    def rise(
        self,
        losses: np.ndarray,
        p: np.ndarray,
        mu: float,
        duals: Mapping[str, np.ndarray],
        second: bool = True,
    ) -> Rise | None:
        """Evaluate; None outside the domain. Without ``second`` what it needs may be absent."""

    def best(self, losses: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """Levels that minimise the smoothed sum, from p on."""
        return p

    def warmth(self, losses: np.ndarray) -> float:
        """The smoothing that the way to the optimum begins with at least."""
        return 0.0

    def missing(self, part: Part) -> np.ndarray:
        """The mass that a density lacks, in the equation of its level, (k,)."""
        out = np.zeros(self.count)
        if part.mass is not None:
            out[part.level] = part.mass - self.weights @ part.density
        return out

    def tied(self, parts: Sequence[Part]) -> np.ndarray:
        """What several densities lack together where only their total is given."""
        return np.zeros(self.count)

    def response(self, parts: Sequence[Part], hessian: np.ndarray) -> np.ndarray:
        """How the levels' equations respond to the levels, (k, k); ``hessian`` before clipping."""
        return hessian

    def inside(self, q: np.ndarray) -> tuple[np.ndarray, float]:
        """A density of the set on the way from 1 to q, of mean one, and its price."""
        ambiguity, weights = self.ambiguity, self.weights
        q = np.maximum(q, 0.0)  # rounding
        q = q / (weights @ q)
        if ambiguity.penalty is not None:
            return q, float(ambiguity.penalty) * ambiguity.discrepancy(q, weights)

        def spent(t: float) -> float:
            return ambiguity.discrepancy(np.maximum(1.0 + t * (q - 1.0), 0.0), weights)

        share = _share(spent, float(ambiguity.budget))
        return np.maximum(1.0 + share * (q - 1.0), 0.0), 0.0

    def price(self, q: np.ndarray) -> float:
        """What a density costs in penalty form."""
        penalty = self.ambiguity.penalty
        return (
            0.0 if penalty is None else float(penalty) * self.ambiguity.discrepancy(q, self.weights)
        )


class Plain(Levels):
    """Nothing is reweighted."""

    def start(self, losses: np.ndarray, mu: float) -> np.ndarray:
        """No levels."""
        return np.zeros(0)

    def rise(
        self,
        losses: np.ndarray,
        p: np.ndarray,
        mu: float,
        duals: Mapping[str, np.ndarray],
        second: bool = True,
    ) -> Rise:
        """The mean."""
        one, zero, none = np.ones_like(losses), np.zeros_like(losses), np.zeros((0, losses.size))
        part = Part(one, zero, none, 1.0, 0, None)
        mean = float(self.weights @ losses)
        return Rise(mean, one, zero, none, np.zeros(0), np.zeros((0, 0)), (part,), {})


class Priced(Levels):
    r"""An f-divergence: levels eta and, for a ball, lambda behind a barrier.

    The set gives :math:`f^*` and two derivatives: ``conjugate_jet(t, delta)``.
    """

    def __init__(self, ambiguity: Any, weights: np.ndarray, unit: float = 1.0):
        super().__init__(ambiguity, weights, unit)
        self.ball = ambiguity.penalty is None
        self.count = 2 if self.ball else 1
        self.positive = (1,) if self.ball else ()
        self._last: Any = None

    def start(self, losses: np.ndarray, mu: float) -> np.ndarray:
        """At the exact dual, where that has a multiplier."""
        dual = self.ambiguity.dual(losses, self.weights)
        spread = max(
            math.sqrt(self.weights @ (losses - self.weights @ losses) ** 2), 1e-3 * self.unit
        )
        if not self.ball:
            return np.array([dual.shift])
        least = 1e-3 * spread / math.sqrt(2.0 * self.ambiguity.radius)
        if not math.isfinite(dual.penalty) or dual.penalty < least:
            return np.array([float(losses.max()), least * 1e3])
        return np.array([dual.shift, dual.penalty])

    def rise(
        self,
        losses: np.ndarray,
        p: np.ndarray,
        mu: float,
        duals: Mapping[str, np.ndarray],
        second: bool = True,
    ) -> Rise | None:
        """Evaluate lambda f*((L - eta) / lambda); a price cools with mu towards the one given."""
        key, last = (losses, p, mu), self._last
        if last is not None and all(a is b for a, b in zip(key, last[0], strict=True)):
            return last[1]  # the best levels are evaluated once more
        weights = self.weights
        lam = float(p[1]) if self.ball else float(self.ambiguity.penalty) + 0.1 * mu
        if not lam > 0.0:
            return None
        t = (losses - p[0]) / lam
        jet = self.ambiguity.conjugate_jet(t, mu / self.unit)
        if jet is None:
            return None
        f, q, bend = jet
        steep = bend / lam
        value = float(p[0]) + lam * float(weights @ f)
        if not math.isfinite(value):
            return None
        s0 = float(weights @ steep)
        if not self.ball:
            cross = -steep[None]
            gradient, hessian = np.array([1.0 - weights @ q]), np.array([[s0]])
        else:
            radius = float(self.ambiguity.radius)
            value += lam * radius - mu * math.log(lam / self.unit)
            cross = np.empty((2, t.size))
            np.negative(steep, out=cross[0])
            np.multiply(cross[0], t, out=cross[1])
            s1, s2 = -float(weights @ cross[1]), -float(weights @ (cross[1] * t))
            slope = radius + float(weights @ (f - t * q)) - mu / lam
            gradient = np.array([1.0 - weights @ q, slope])
            hessian = np.array([[s0, s1], [s1, s2 + mu / lam**2]])
        part = Part(q, steep, cross, math.inf, 0, 1.0)
        found = Rise(value, q, steep, cross, gradient, hessian, (part,), {})
        self._last = (key, found)
        return found

    def warmth(self, losses: np.ndarray) -> float:
        """Where losses are many prices apart, one of that size, which cools."""
        far = float(losses.max() - self.weights @ losses)
        near = self.ball or far < _APART * float(self.ambiguity.penalty)
        return 0.0 if near else _WARM * far

    def cooled(self, mu: float) -> bool:
        """Whether levels at mu are a point of the set's own dual, not of one at a larger price."""
        return self.ball or mu < float(self.ambiguity.penalty)

    def best(self, losses: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """Damped Newton steps at fixed losses, from p where that is in the domain."""
        rise = self.rise(losses, p, mu, {})
        if rise is None:
            p = self.start(losses, mu)
            rise = self.rise(losses, p, mu, {})
        if rise is None:
            return p
        for _ in range(30):
            hessian, gradient = rise.hessian, rise.gradient
            mass = 1.0 - float(gradient[0])
            if not self.ball and mass > 0.0:  # on its logarithm, which is straight against KL
                move = np.array([mass * math.log(mass) / max(float(hessian[0, 0]), 1e-300)])
            else:
                try:
                    move = np.linalg.solve(hessian, -gradient)
                except np.linalg.LinAlgError:
                    break
            decrement = -float(gradient @ move)
            if not decrement > 1e-11 * (abs(rise.value) + mu):
                break
            t = min([1.0, *(0.9 * p[j] / -move[j] for j in self.positive if move[j] < 0)])
            goal = rise.value + 1e-15 * abs(rise.value)
            for _ in range(20):
                there = p + t * move
                new = self.rise(losses, there, mu, {})
                if new is not None and new.value <= goal - 1e-4 * t * decrement:
                    break
                t *= 0.4
            else:
                break
            p, rise = there, new
        return p


class Tail(NamedTuple):
    """A kink: cap (L - p[level] + offset)_+ , with the mass that its density is to have."""

    name: str
    cap: Any
    level: int
    offset: float
    mass: float | None


def _blocks(n: int) -> Iterator[slice]:
    """Slices of so many cells; one at least."""
    for start in range(0, max(n, 1), _BLOCK):
        yield slice(start, min(start + _BLOCK, n))


class _Blocks(NamedTuple):
    """Kinks in blocks."""

    parts: Sequence[Kink]

    def moved(self, new: _Blocks, t: float) -> np.ndarray:
        """See `Kink.moved`; of very many kinks what is rounding of duals adds up."""
        pairs = zip(self.parts, new.parts, strict=True)
        return np.concatenate([kink.moved(after, t, _FAR) for kink, after in pairs])


class Tails(Levels):
    """Sums of kinks: each level is where a smoothed density has its mass."""

    kinked = True

    def __init__(
        self,
        ambiguity: Any,
        weights: np.ndarray,
        tails: Sequence[Tail],
        cost: Sequence[float],
        constant: float = 0.0,
    ):
        super().__init__(ambiguity, weights)
        self.tails, self.cost, self.constant = tuple(tails), np.asarray(cost, float), constant
        self.count, self._last = len(cost), None

    @property
    def cap(self) -> float | None:
        """The largest density, where that is all that limits it: of a single kink, of mass one."""
        tail = self.tails[0]
        alone = len(self.tails) == 1 and tail.mass == 1.0 and tail.offset == 0.0
        return float(tail.cap) if alone and np.ndim(tail.cap) == 0 else None

    @classmethod
    def maximum(cls, ambiguity: Any, weights: np.ndarray) -> Tails:
        """The largest loss: no row's density reaches the cap 1 / w but the last one."""
        return cls(ambiguity, weights, [Tail("top", 1.0 / weights, 0, 0.0, 1.0)], [1.0])

    def start(self, losses: np.ndarray, mu: float) -> np.ndarray:
        """Quantiles of the losses, smoothed."""
        order = np.argsort(-losses)
        cum = np.cumsum(self.weights[order])
        p = np.full(self.count, float(losses.max()) + mu)
        for tail in self.tails:
            if tail.mass is not None and np.ndim(tail.cap) == 0:
                cut = int(np.searchsorted(cum, tail.mass / tail.cap))
                p[tail.level] = losses[order[min(cut, losses.size - 1)]]
        return self.best(losses, p, mu)

    def rise(
        self,
        losses: np.ndarray,
        p: np.ndarray,
        mu: float,
        duals: Mapping[str, np.ndarray],
        second: bool = True,
    ) -> Rise:
        """Evaluate every kink, block by block."""
        n, k, weights = losses.size, self.count, self.weights
        value = self.constant + float(self.cost @ p)
        density, gradient, hessian = np.zeros(n), self.cost.copy(), np.zeros((k, k))
        steep, cross = np.zeros(n if second else 0), np.zeros((k, n if second else 0))
        parts, records = [], {}
        for tail, known in zip(self.tails, self._kinks(losses, p, mu), strict=True):
            i, cap, dual = tail.level, tail.cap, duals.get(tail.name)
            share, bend, kinks = np.empty(len(steep)), np.empty(len(steep)), []
            for some, kink in zip(_blocks(n), known, strict=True):
                w = weights[some] * (cap[some] if np.ndim(cap) else cap)
                kinks.append(kink if dual is None else kink.turned(dual[some]))
                slope = kink.slope
                value += float(w @ kink.value)
                gradient[i] -= float(w @ slope)
                density[some] += slope * (cap[some] if np.ndim(cap) else cap)
                if second:
                    share[some], bend[some] = kinks[-1].share, kinks[-1].second
                    hessian[i, i] += float(w @ bend[some])
            records[tail.name] = _Blocks(kinks)
            if not second:
                continue
            share *= cap
            bend *= cap
            steep += bend
            cross[i] -= bend
            own = np.zeros((k, n))
            np.negative(bend, out=own[i])
            parts.append(Part(share, bend, own, cap, i, tail.mass))
        return Rise(value, density, steep, cross, gradient, hessian, tuple(parts), records)

    def _kinks(self, losses: np.ndarray, p: np.ndarray, mu: float) -> list[list[Kink]]:
        """Those of every tail in blocks; the last ones are kept, as steps ask for them again."""
        key, last = (losses, p, mu), self._last
        if last is not None and all(a is b for a, b in zip(key, last[0], strict=True)):
            return last[1]
        found = [
            [
                Kink(losses[some] - (p[tail.level] - tail.offset), mu)
                for some in _blocks(len(losses))
            ]
            for tail in self.tails
        ]
        self._last = key, found
        return found

    def best(self, losses: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """Each level by safeguarded Newton steps on its mass."""
        p = p.copy()
        for i in range(self.count):
            tails = [tail for tail in self.tails if tail.level == i]

            def excess(u: float, tails: list[Tail] = tails, i: int = i) -> tuple[float, float]:
                mass, slope = float(self.cost[i]), 0.0
                for tail in tails:
                    x = (losses - p[i] + tail.offset) / mu - u
                    length = np.sqrt(x * x + 4.0)
                    w = self.weights * tail.cap
                    mass -= 0.5 * float(w @ (1.0 + x / length))
                    slope += 2.0 * float(w @ (1.0 / (length * length * length)))
                return mass, slope

            p[i] += mu * root(excess, 0.0)
        return p

    def response(self, parts: Sequence[Part], hessian: np.ndarray) -> np.ndarray:
        """The sums of the kinks that still move."""
        return np.diag(-sum(part.cross @ self.weights for part in parts))

    def tied(self, parts: Sequence[Part]) -> np.ndarray:
        out = np.zeros(self.count)
        if all(part.mass is None for part in parts):
            out[0] = self.cost[0] - sum(float(self.weights @ part.density) for part in parts)
        return out


def _share(discrepancy: Any, radius: float) -> float:
    """Largest t in [0, 1] with discrepancy(t) <= radius; it is convex in t, and 0 at 0."""
    full = discrepancy(1.0)
    if full <= radius * (1.0 - 1e-13):
        return 1.0
    linear = radius / full
    if discrepancy(linear) >= radius * (1.0 - 1e-11):
        return linear * (1.0 - 1e-13)

    def over(t: float) -> float:  # nearly linear; infinite beyond what the set allows
        return min(math.sqrt(max(discrepancy(t), 0.0) / radius), 1e9) - 1.0

    start = math.sqrt(linear) or 0.5
    t = root(over, start, slope=1.0 / start, low=linear, high=1.0, tol=1e-11)
    return t * min(1.0, radius * (1.0 - 1e-13) / discrepancy(t))  # by convexity inside
