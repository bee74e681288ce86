r"""Worst cases that swap categories, as a problem of the common solver.

.. math:: \varphi_i = \mu \log\sum_c e^{a_{ic}/\mu}, \qquad
          a_{ic} = G(u_{ic}, \sigma) - \lambda\,fee_{ic}, \qquad
          u_{ic} = u_i \pm \sum_{g \in S_c} (T_g^\pm \mp v_{g, own}^\top\theta)

over the sets S of groups that pay in a row to within a few mu: its own place, and prefixes upwards
and downwards (`drojko.inner.swaps`). :math:`T_g^\pm` are the smoothed maxima over the categories of
:math:`\pm v^\top\theta`: many rows tie at once where two categories do. Most rows have one place.

The bound is that of plain order 2. Against swaps that are fixed, masses and all, rows stand
elsewhere, and what the swaps cost is gone from the budget (`lower_bound`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drojko.inner.swaps import prefixes
from drojko.losses import Loss
from drojko.losses.jets import jet
from drojko.minimax.newton import State, Terms
from drojko.minimax.transport.bound import Ground, lower_bound, plan_of
from drojko.minimax.transport.objective import SCALARS, Kinks, Point, Sums, TransportRows
from drojko.minimax.transport.risk import RidgeData
from drojko.minimax.transport.swaps.chain import Chain
from drojko.minimax.transport.swaps.groups import Groups
from drojko.minimax.transport.swaps.places import Duals, Places
from drojko.rows import Rows

__all__ = ["SwapRows"]

_NEAR = 25.0  # widths below the best place at which another one has no share
_SIGNS = np.array([1.0, -1.0])


@dataclass(frozen=True, eq=False)
class _Tops:
    """Scores of the categories, smoothed maxima T (2, G), and the chain of all of them.

    ``share[k][g]`` are the masses of the categories, ``dual`` those of the duals.
    """

    scores: list[np.ndarray]
    value: np.ndarray
    bias: np.ndarray
    share: list[list[np.ndarray]]
    dual: list[list[np.ndarray]]
    chain: Chain


@dataclass(eq=False)
class _Mix:
    """How the mass of rows with several places is spread over them."""

    chain: Chain
    paid: np.ndarray
    tops: _Tops
    still: Any  # jets
    away: Any
    value: float  # beyond that of the share which stays
    bias: float


class SwapRows(TransportRows):
    """`TransportRows` of rows whose categories may be swapped; its variable is lambda."""

    first_smoothing = 0.03  # at larger ones most rows have many places

    def __init__(self, rows: Rows, loss: Loss, ground: Ground, data: RidgeData, alpha: float):
        super().__init__(rows, loss, ground)
        self.by_sigma = False
        self.data, self.alpha = data, alpha
        swaps, own = data.swaps.swaps, data.swaps.own
        self.own, self.costs = own.numpy(), swaps.costs.numpy()
        self.columns = [c.numpy() for c in swaps.columns]
        self.values = [v.numpy() for v in swaps.values]
        # Scores of the categories from the parameters of their columns.
        self.maps = [
            np.where(rows.dead[c], 0.0, v / rows.scale[c])
            for c, v in zip(self.columns, self.values, strict=True)
        ]
        none = np.zeros(0, dtype=int)
        self.places = Places.of(none, none, np.zeros((0, len(self.costs)), dtype=bool))

    def sample(self, index: np.ndarray, w: np.ndarray) -> SwapRows:
        """The same problem on some rows."""
        data, groups = self.data, self.data.swaps
        some = replace(
            data, X=data.X[index], y=data.y[index], weight=w,
            swaps=Groups(groups.swaps, groups.own[index]),
        )  # fmt: skip
        return SwapRows(self.rows.take(index, w), self.loss, self.ground, some, self.alpha)

    # Places -------------------------------------------------------------------------------------

    def _tops(self, z: np.ndarray, mu: float, duals: Any = None) -> _Tops:
        sizes = [len(images) for images in self.maps]
        scores = [i @ z[c] for c, i in zip(self.columns, self.maps, strict=True)]
        up = [sign * score for sign in _SIGNS for score in scores]
        first = np.array([score[0] for score in up])
        rest = np.concatenate([score[1:] for score in up])
        index = np.repeat(np.arange(2 * len(sizes)), [size - 1 for size in 2 * sizes])
        chain = Chain.of(first, rest, index, mu * self.spread / self.unit, duals)
        split = np.cumsum([size - 1 for size in 2 * sizes])[:-1]

        def shares(stay: np.ndarray, share: np.ndarray) -> list[list[np.ndarray]]:
            whole = [
                np.append(one, part) for one, part in zip(stay, np.split(share, split), strict=True)
            ]
            return [whole[: len(sizes)], whole[len(sizes) :]]

        share = shares(chain.stay, chain.share)
        plain = [own @ score for own, score in zip(share[0] + share[1], up, strict=True)]
        value = chain.value.reshape(2, -1)
        bias = value - np.reshape(plain, value.shape)
        return _Tops(scores, value, bias, share, shares(chain.dual_stay, chain.dual_share), chain)

    def _moved(self, places: Places, tops: _Tops) -> np.ndarray:
        """By how much the output differs at the places."""
        sign = _SIGNS[places.down]
        gain = np.zeros(len(places.rows))
        for g, score in enumerate(tops.scores):
            own = score[self.own[places.rows, g]]
            gain += places.mask[:, g] * (tops.value[places.down, g] - sign * own)
        return sign * gain

    def _search(self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float) -> Places:
        """The places with a share at this point."""
        square, tops = self.square(z, mu), self._tops(z, mu)
        at = Point(u, square, self._level(p), z, mu)
        lam, sigma, width, price = self._how(at)
        slack, found = _NEAR * mu, []
        scores = [torch.from_numpy(s) for s in tops.scores]
        args = self.data.swaps.swaps, self.data.swaps.own, scores, torch.from_numpy(tops.value)
        price_f = 0.25 / sigma if sigma > 0.0 else math.inf
        line = self.loss, torch.from_numpy(u), torch.from_numpy(self.rows.y), lam, price_f
        for k, part in enumerate(prefixes(*args, *line, slack)):
            order, rows = part.order.numpy(), part.rows.numpy()
            position = np.full((len(rows), len(self.costs)), order.shape[1])
            np.put_along_axis(position, order, np.arange(order.shape[1])[None], 1)
            row, depth = np.nonzero(part.useful.numpy())
            mask = position[row] <= depth[:, None]
            found.append((rows[row], np.full(len(row), k), mask))
        rows, down, mask = (np.concatenate(one) for one in zip(*found, strict=True))
        # Sets that were prefixes stay while they are near: their order changes with every step.
        known = self.places
        places = Places.of(
            np.append(known.rows, rows), np.append(known.down, down), np.append(known.mask, mask, 0)
        )
        if not len(places.rows):
            return places
        inside, index = places.inside, places.index
        y, there = self.rows.y, u[places.rows] + self._moved(places, tops)
        value = jet(self.loss, there, y[places.rows], sigma, width, price).value
        value = value - lam * (places.mask @ self.costs)
        best = np.array(jet(self.loss, u[inside], y[inside], sigma, width, price).value)
        np.maximum.at(best, index, value)
        kept = value > best[index] - slack
        return Places.of(places.rows[kept], places.down[kept], places.mask[kept])

    def tidy(self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """The price inside the domain; at another mu other places count."""
        changed = mu != self.mu
        p = super().tidy(z, u, p, mu)
        if changed:
            self.places = self._search(z, u, p, mu)
        return p

    def accepted(self, state: State) -> bool:
        """Places come and go."""
        super().accepted(state)
        self.places = self._search(state.z, state.u, state.p, state.mu)
        return True

    # Sums ---------------------------------------------------------------------------------------

    def sums(self, at: Point) -> Sums | None:
        """Those of `TransportRows` with what stays, and those of the other places."""
        how = self._how(at)
        lam, places = how[0], self.places
        if at.mu == 0.0:
            model = self.data.swaps.model(self.data, *self.rows.outward(at.z))
            plan = model.plan(lam)
            return Sums(plan.value + self.budget * lam, plan.cost, np.zeros(0))
        old = tops = None
        if at.second:
            old, tops = places.duals(at.duals.get("places")), at.duals.get("tops")
            count = 2 * sum(len(images) - 1 for images in self.maps)
            tops = np.full((4, count), np.nan) if tops is None else tops.copy()
        mix, w = self._mixed(at, how, self._tops(at.z, at.mu, tops), old), self.rows.w
        chain = mix.chain
        kept = w.copy()
        kept[places.inside] *= chain.stay
        found = self._gathered(at, how, kept)
        if found is None:
            return None
        total, by_row, kinked = found
        if at.second:  # second derivatives have the masses of the duals
            more = w[places.inside] * (chain.dual_stay - chain.stay)
            for name in SCALARS[4:]:
                total[name] += float(more @ np.broadcast_to(getattr(mix.still, name), more.shape))
            some = chain.dual_stay / np.maximum(chain.stay, 1e-300)
            for name in ("uu", "us", "ul"):
                by_row[name][places.inside] *= some
        mass = w[places.rows] * chain.share
        twice = w[places.rows] * chain.dual_share
        for name in SCALARS[1 : len(total)]:
            share = mass if name in SCALARS[:4] else twice
            total[name] += float(share @ np.broadcast_to(getattr(mix.away, name), mass.shape))
        total["value"] += mix.value
        total["bias"] += mix.bias
        total["l"] -= float(mass @ mix.paid)
        out = self._chained(at, how, total, by_row, kinked)
        np.add.at(out.u, places.rows, mass * mix.away.u)
        out.extra = mix
        out.records = {**out.records, "places": Duals(places.key, old), "tops": Kinks(tops)}
        return out

    def _mixed(
        self, at: Point, how: tuple[float, float, float, Any], tops: _Tops, duals: Any
    ) -> _Mix:
        """Shares of the places of the rows that have several."""
        lam, sigma, width, price = how
        places, mu, y, w = self.places, at.mu, self.rows.y, self.rows.w
        rows, inside = places.rows, places.inside
        still = jet(self.loss, at.u[inside], y[inside], sigma, width, price)
        there = at.u[rows] + self._moved(places, tops)
        away = jet(self.loss, there, y[rows], sigma, width, price)
        paid = places.mask @ self.costs
        value = away.value - lam * paid
        chain = Chain.of(still.value, value, places.index, mu, duals)
        mass, steep = w[rows] * chain.share, np.abs(away.u)
        blunt = (places.mask * tops.bias[places.down]).sum(1)
        extra = float(w[inside] @ chain.value - (w[inside] * chain.stay) @ still.value)
        bias = extra - float(mass @ value - mass @ (steep * blunt))
        return _Mix(chain, paid, tops, still, away, extra, bias)

    def terms(
        self,
        z: np.ndarray,
        p: np.ndarray,
        u: np.ndarray,
        mu: float,
        duals: Mapping[str, Any],
        second: bool = True,
    ) -> Terms:
        """With what the categories' own parameters add."""
        found = super().terms(z, p, u, mu, duals, second)
        if not math.isfinite(found.value):
            return found
        mix, places = found.detail[1].extra, self.places
        pull = self.rows.w[places.rows] * mix.chain.share * mix.away.u
        gz = np.array(found.gz)
        for g, (columns, images) in enumerate(zip(self.columns, self.maps, strict=True)):
            some = pull * places.mask[:, g]
            up, down = (float(some[places.down == k].sum()) for k in (0, 1))
            own = np.bincount(self.own[places.rows, g], some, len(images))
            share = mix.tops.share
            gz[columns] += (up * share[0][g] + down * share[1][g] - own) @ images
        if not second:
            return replace(found, gz=gz)
        more = self._bent(z, p, mu, mix)
        size, rate = len(z), self.rate
        found = replace(found, gz=gz, Hz=found.Hz + more[:size, :size])
        if not p.size:
            return found
        return replace(
            found,
            Hzp=found.Hzp + rate * more[:size, size:],
            Hpp=found.Hpp + rate * rate * more[size:, size:],
        )

    def _bent(self, z: np.ndarray, p: np.ndarray, mu: float, mix: _Mix) -> np.ndarray:
        """Second derivatives in (z, lambda): of the other places, and of the choice of a place."""
        places, rows, ground, size, chain = self.places, self.rows, self.ground, len(z), mix.chain
        square = self.square(z, mu)
        lam = self.price(p, square)
        rate, fall = (0.25 / lam, -0.25 * square / lam**2) if lam else (0.0, 0.0)
        still, away, mass = mix.still, mix.away, rows.w[places.rows] * chain.dual_share
        block = rows.take(places.inside).block(slice(None))
        moved = block[places.index]
        for g, (columns, images) in enumerate(zip(self.columns, self.maps, strict=True)):
            tops = np.stack([mix.tops.share[k][g] @ images for k in (0, 1)])
            step = tops[places.down] - images[self.own[places.rows, g]]
            moved[:, columns] += places.mask[:, g, None] * step
        pull = 2.0 * ground.cost * z
        out = np.zeros((size + 1, size + 1))
        # The places as more rows.
        out[:size, :size] = (moved * (mass * np.maximum(away.uu, 0.0))[:, None]).T @ moved
        across = np.append(rate * pull, fall)
        cross = np.append((mass * away.us) @ moved, 0.0)
        out += np.outer(cross, across) + np.outer(across, cross)
        if np.ndim(away.ul):
            cross = (mass * away.ul) @ moved
            out[:size, size] += cross
            out[size, :size] += cross
        self._bend_tops(out, mass * away.u, mix.tops)
        # What is gained by another place changes its share.
        first = np.empty((len(block), size + 1))
        first[:, :size] = still.u[:, None] * block + np.outer(still.s, rate * pull)
        first[:, size] = still.s * fall + still.l
        other = np.empty((len(moved), size + 1))
        other[:, :size] = away.u[:, None] * moved + np.outer(away.s, rate * pull)
        other[:, size] = away.s * fall + away.l - mix.paid
        for level in chain.levels:
            to = places.index[level]
            other[level] -= first[to]
            first[to] += chain.step[level, None] * other[level]
        bend = rows.w[places.rows] * chain.bend
        return out + (other * bend[:, None]).T @ other

    def _bend_tops(self, out: np.ndarray, pull: np.ndarray, tops: _Tops) -> None:
        """Add the second derivatives of the smoothed maxima over categories."""
        places, chain, at = self.places, tops.chain, 0
        for k, sign in enumerate(_SIGNS):
            for g, (columns, images) in enumerate(zip(self.columns, self.maps, strict=True)):
                side = places.mask[:, g] & (places.down == k)
                weight = max(sign * float(pull[side].sum()), 0.0)
                some = slice(at, at + len(images) - 1)
                at = some.stop
                if weight == 0.0:
                    continue
                mean, apart = images[0], np.empty_like(images[1:])
                for j, step in enumerate(chain.step[some]):
                    apart[j] = images[j + 1] - mean
                    mean = mean + step * apart[j]
                bend = (apart.T * chain.bend[some]) @ apart
                out[np.ix_(columns, columns)] += weight * bend

    # The bound ----------------------------------------------------------------------------------

    def lower(self, state: State, need: float) -> float:
        """The plain bound at the places, with what is left of the budget."""
        sums: Sums = state.terms.detail[1]
        mix, places, data = sums.extra, self.places, self.data
        sigma, mu, price, _ = sums.plan
        mass = self.rows.w[places.rows] * mix.chain.dual_share
        fees = float(mass @ mix.paid)
        if self.budget and fees > self.budget * (1.0 - 1e-12):
            mass = mass * (self.budget * (1.0 - 1e-12) / fees)
            fees = float(mass @ mix.paid)
        stay = self.rows.w - np.bincount(places.rows, mass, self.rows.n)
        real = mass > 0.0
        some, mass = places.rows[real], mass[real]
        X = np.concatenate([data.X, data.X[some]]).astype(np.float64)
        for g, (columns, values) in enumerate(zip(self.columns, self.values, strict=True)):
            tops = np.stack([mix.tops.dual[k][g] @ values for k in (0, 1)])[places.down[real]]
            own = values[self.own[some, g]]
            part = np.ix_(np.arange(self.rows.n, len(X)), columns)
            X[part] += places.mask[real][:, g, None] * (tops - own)
        w = np.append(np.maximum(stay, 0.0), mass)
        X, y, w = X[w > 0], np.concatenate([data.y, data.y[some]])[w > 0], w[w > 0]
        whole = replace(data, X=X, y=y, weight=w, swaps=None)
        rows = Rows(X, y, whole.weight, intercept=self.rows.intercept)
        radius = math.sqrt(self.budget - fees) if self.budget else None
        ground = Ground.of(rows, whole, radius, self.ground.penalty, self.alpha)
        z, toll = rows.inward(*self.rows.outward(state.z)), fees * (self.ground.penalty or 0.0)
        u, best = rows.predict(z), 0.0
        for width in dict.fromkeys((mu, 0.0)):
            if best < need:
                plan = plan_of(rows, self.loss, u, sigma, width, price, None)
                found = lower_bound(rows, self.loss, ground, plan, z, need + toll) - toll
                best = max(best, found)
        return best
