r"""Bounds of margins on shells around each sample, and what they make of loss minus cost.

Per sample, shell and margin three bounds that do not depend on the penalty are stored: a line in
the displacement t from linear relaxation, a quadratic in t, and a chain: what holds on an inner
sphere plus Lipschitz constant times distance. On t0 <= t <= t1 the first and the last are linear
in tau = t² up to a tangent of the square root, the second is; the loss of numbers that are linear
in tau, minus lambda tau, is convex and largest at an end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from drojko.inner.networks.linear import Ball, blocks, linear_bound
from drojko.inner.networks.network import Margins, Network
from drojko.inner.networks.pairs import Pairs, leading, paired

__all__ = ["Shells", "edges"]

_PARTS = 3
_MEMORY = 2**26
_TAIL = 96
#: Room for rounding in the last sums, relative.
_ROOM = 1e-13
#: By how much radii differ, relative, that are meant to be the same.
_SAME = 1e-12


def edges(count: int, inner: float, outer: float) -> Tensor:
    """Radii 0 < s_1 < ... < s_count, geometric from inner to outer; shape (count + 1,)."""
    radii = torch.logspace(math.log10(inner), math.log10(outer), count, dtype=torch.float64)
    radii[-1] = outer  # of any count
    return torch.cat([torch.zeros(1, dtype=torch.float64), radii])


@dataclass(frozen=True)
class Shells:
    """Bounds of n samples, K shells and m margins.

    Attributes
    ----------
    margins : Margins
    edges : Tensor of shape (K + 1,)
    nominal : Tensor of shape (n, m)
        Margins at the samples.
    rates : Tensor of shape (n, m)
        Their Lipschitz constants.
    cap : Tensor of shape (n, m)
        What they do not exceed anywhere.
    level, slope : Tensor of shape (n, K, m)
        m <= level + slope t on the ball of radius s_{k+1}.
    constant, curvature : Tensor of shape (n, K, m)
        m <= constant + curvature t² / 2 there.
    pairs : Pairs
        The same of means of two margins.
    """

    margins: Margins
    edges: Tensor
    nominal: Tensor
    rates: Tensor
    cap: Tensor
    level: Tensor
    slope: Tensor
    constant: Tensor
    curvature: Tensor
    pairs: Pairs

    @staticmethod
    def empty(network: Network, radii: Tensor, rates: Tensor) -> Shells:
        """Chains alone."""
        own = network.margins.own()
        # On a ball of radius zero a linear bound is the margin, rounded upwards.
        parts = [
            linear_bound(network.take(rows), Ball(torch.zeros(len(rows)).double())).level
            for rows in torch.arange(len(network)).split(blocks(network, _MEMORY))
        ]
        nominal = torch.cat(parts).masked_fill(own, 0.0)
        shape = (len(network), len(radii) - 1, nominal.shape[1])
        infinite = torch.full(shape, torch.inf, dtype=torch.float64)
        nothing = torch.zeros(shape, dtype=torch.float64)
        cap = network.largest().masked_fill(own, 0.0)
        flat = (infinite, nothing, infinite, nothing, Pairs.none())
        return Shells(network.margins, radii, nominal, rates, cap, *flat)

    def onto(self, radii: Tensor) -> Shells:
        """On other shells up to the same radius: a ball's bounds hold on those within it."""
        if torch.equal(radii, self.edges):
            return self
        # The same radius of two geometric rows differs by rounding, and a ball holds no larger one.
        away, near = (radii[:, None] - self.edges).abs().min(1)
        radii = torch.where(away <= _SAME * radii, self.edges[near], radii)
        ball = torch.searchsorted(self.edges[1:], radii[1:]).clamp_max(len(self.edges) - 2)
        names = ("level", "slope", "constant", "curvature")
        parts = {name: getattr(self, name)[:, ball] for name in names}
        return replace(self, edges=radii, pairs=self.pairs.onto(ball), **parts)

    def with_lines(self, k: int, rows: Tensor, level: Tensor, slope: Tensor) -> Shells:
        """Linear bounds (j, m) of shell k at some samples (j,), where they are lower."""
        own = self.margins.own()[rows]
        level, slope = level.masked_fill(own, 0.0), slope.masked_fill(own, 0.0)
        levels, slopes = self.level.clone(), self.slope.clone()
        old, steep, middle = levels[rows, k], slopes[rows, k], self.middle(k)
        wins = level + slope * middle < old + steep * middle
        levels[rows, k], slopes[rows, k] = (
            torch.where(wins, level, old), torch.where(wins, slope, steep),
        )  # fmt: skip
        return replace(self, level=levels, slope=slopes)

    def with_quadratics(
        self, k: int, rows: Tensor, which: Tensor, constant: Tensor, curvature: Tensor
    ) -> Shells:
        """Quadratics (j,) of the ball of shell k, of some margins of some samples.

        They replace those of shell k and of all inside it where they are lower.
        """
        square = torch.tensor([self.middle(j) ** 2 for j in range(k + 1)], dtype=torch.float64)
        inside = torch.arange(k + 1)
        at = rows[:, None], inside[None], which[:, None]
        before = self.constant[at] + 0.5 * self.curvature[at] * square
        wins = constant[:, None] + 0.5 * curvature[:, None] * square < before
        constants, curvatures = self.constant.clone(), self.curvature.clone()
        constants[at] = torch.where(wins, constant[:, None], self.constant[at])
        curvatures[at] = torch.where(wins, curvature[:, None], self.curvature[at])
        return replace(self, constant=constants, curvature=curvatures)

    def with_pairs(self, more: Pairs) -> Shells:
        """Means of two margins as well."""
        return replace(self, pairs=self.pairs.joined(more))

    def middle(self, k: int) -> float:
        """A radius inside shell k."""
        return 0.5 * float(self.edges[k] + self.edges[k + 1])

    def outer(self, rows: Tensor, k: int, radius: float | None = None) -> Tensor:
        """Margins' bounds on the outer sphere of shell k, or on another inside it, (j, m)."""
        s = float(self.edges[k + 1]) if radius is None else radius
        chain = self._chain[rows, k] + self.rates[rows] * s
        line = self.level[rows, k] + self.slope[rows, k] * s
        square = self.constant[rows, k] + 0.5 * self.curvature[rows, k] * s * s
        return torch.minimum(torch.minimum(line, square), chain)

    @cached_property
    def _chain(self) -> Tensor:
        """B such that m <= b + rate t beyond the inner sphere of each shell, (n, K + 1, m)."""
        s = self.edges[1:, None]
        best = torch.minimum(
            self.level + self.slope * s, self.constant + 0.5 * self.curvature * s * s
        )
        steps = torch.cat([self.nominal[:, None], best - self.rates[:, None] * s], 1)
        return steps.cummin(1).values

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._at_ends(slice(0, len(self.edges) - 1))

    def _at_ends(self, shells: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss bounds at both ends of all parts of k shells, (n, k, parts), and their radii."""
        low, high = self.edges[:-1][shells], self.edges[1:][shells]
        share = torch.arange(_PARTS + 1, dtype=torch.float64) / _PARTS
        cuts = low[:, None] + (high - low)[:, None] * share
        t0, t1 = cuts[:, :-1], cuts[:, 1:]
        n, _, m = self.level.shape
        out = torch.empty(2, n, *t0.shape, dtype=torch.float64)
        which = torch.arange(len(self.edges) - 1)[shells]
        for rows in torch.arange(n).split(max(1, 500_000 // (t0.numel() * m))):
            margins = self.margins.take(rows)
            for end, chosen in enumerate(self._chosen(rows[:, None], which, t0, t1)):
                out[end, rows] = margins(chosen)
        if len(pairs := self.pairs.within(shells)):
            self._lower(out, pairs, shells.start, t0, t1)
        return out[0], out[1], t0, t1

    def _lower(self, out: Tensor, pairs: Pairs, first: int, t0: Tensor, t1: Tensor) -> None:
        """What means of two margins take off the loss's bounds, shape (2, n, k, parts)."""
        rows, ks, place = pairs.regions(len(self.edges) - 1)
        at = ks - first
        margins, ends = self.margins.take(rows), torch.stack([t0[at], t1[at]])
        both = torch.stack(self._chosen(rows, ks, *ends))
        for p in range(_PARTS):
            u, t = both[:, :, p], ends[:, :, p]
            top = leading(u.mean(0), margins.own())
            constant, curvature = pairs.table(place, top, t.mean(0))
            a = torch.stack([constant + 0.5 * curvature * r[:, None, None] ** 2 for r in t])
            lower = paired(margins, top, u, a + _ROOM * a.abs())
            # One or the other: the least of both at each end is a bound at the ends alone.
            wins = lower.sum(0) < out[:, rows, at, p].sum(0)
            out[:, rows, at, p] = torch.where(wins, lower, out[:, rows, at, p])

    def _chosen(self, rows: Tensor, shells: Tensor, t0: Tensor, t1: Tensor) -> list[Tensor]:
        """Margins' bounds that are linear in t² on [t0, t1], at both ends; (..., parts, m)."""
        middle = 0.5 * (t0 + t1).unsqueeze(-1)
        # The tangent of sqrt(tau) at the middle, which is above it: middle/2 + tau / (2 middle).
        half, per = 0.5 * middle, 0.5 / middle
        at = rows, shells
        lines = (self.level[at], self.slope[at]), (self._chain[at], self.rates[rows])
        forms = [
            (level.unsqueeze(-2) + slope.unsqueeze(-2) * half, slope.unsqueeze(-2) * per)
            for level, slope in lines
        ]
        forms.append((self.constant[at].unsqueeze(-2), 0.5 * self.curvature[at].unsqueeze(-2)))
        forms.append((self.cap[rows].unsqueeze(-2), torch.zeros_like(middle)))
        (base, rise), square = forms[0], middle.square()
        value = base + rise * square
        for start, by in forms[1:]:
            other = start + by * square
            lower = other < value
            value = torch.where(lower, other, value)
            base, rise = torch.where(lower, start, base), torch.where(lower, by, rise)
        found = [base + rise * t.square().unsqueeze(-1) for t in (t0, t1)]
        return [chosen + _ROOM * chosen.abs() for chosen in found]

    def suprema(self, strength: float, k: int | None = None) -> Tensor:
        """Bounds of loss - strength t² on each shell, (n, K), or on one, (n,)."""
        first, last, t0, t1 = self._ends if k is None else self._at_ends(slice(k, k + 1))
        ends = torch.maximum(first - strength * t0**2, last - strength * t1**2)
        both = torch.minimum(ends, self._most[:, None, None] - strength * t0**2).amax(2)
        return both if k is None else both[:, 0]

    def supremum(self, strength: float) -> Tensor:
        """Bounds of sup loss - strength t², (n,)."""
        return torch.maximum(self.suprema(strength).amax(1), self.tail(strength))

    @cached_property
    def _most(self) -> Tensor:
        """The loss where no margin can be larger, (n,); infinite where there is no such place."""
        return torch.nan_to_num(self.margins(self.cap), nan=torch.inf, posinf=torch.inf)

    @cached_property
    def _last(self) -> tuple[Tensor, Tensor]:
        """The chain beyond the last shell, and the loss on its sphere."""
        chain = self._chain[:, -1]
        return chain, self.margins(chain + self.rates * self.edges[-1])

    def tail(self, strength: float) -> Tensor:
        """The same beyond the last shell, by the chain; inf where it does not end."""
        chain, at_last = self._last
        s = float(self.edges[-1])
        value = at_last - strength * s * s
        rate = self.rates.amax(1)
        loss = self.margins
        if math.isfinite(loss.slope):
            stop = loss.slope * rate / (2.0 * strength)
        else:
            bend = float(loss.loss.curvature or math.inf)
            bent = torch.where(rate > 0, bend * rate.square(), 0.0)
            spare = 2.0 * strength - bent
            need = self._steepness(chain + self.rates * s) * rate - bent * s
            stop = torch.where(spare > 1e-6 * strength, need / spare.clamp_min(1e-300), torch.inf)
        far = (stop > s).nonzero().squeeze(1)
        if len(far) == 0:
            return value
        share = torch.linspace(0.0, 1.0, _TAIL + 1, dtype=torch.float64)
        for rows in far.split(max(1, 4_000_000 // (_TAIL * self.rates.shape[1]))):
            known = torch.isfinite(stop[rows])
            end = torch.where(known, stop[rows] * (1 + 1e-9), 2.0 * s)
            t = s * (end / s)[:, None] ** share
            # The loss grows with t, the price too: the one at the right end, the other at the left.
            grown = chain[rows, None] + self.rates[rows, None] * t[:, 1:, None]
            bound = loss.take(rows)(grown + _ROOM * grown.abs()) - strength * t[:, :-1] ** 2
            bound = torch.maximum(bound.amax(1), value[rows])
            bound = torch.minimum(
                torch.where(known, bound, torch.inf), self._endless(rows, strength)
            )
            bound = torch.minimum(bound, self._most[rows] - strength * s * s)
            value = value.index_copy(0, rows, bound)
        return value

    def _endless(self, rows: Tensor, strength: float) -> Tensor:
        """The chain's bound with all distances allowed, without a grid."""
        loss, y = self.margins.loss, self.margins.y[rows]
        chain, rates = self._last[0][rows], self.rates[rows]
        if self.margins.kind == "pairs":
            return loss.rate_bound(chain, y, rates, strength)
        sides = [(chain[:, 0], rates[:, :1])]
        if self.margins.kind == "falls":
            sides = [(chain[:, 0] * (1.0 - 2.0 * y.to(chain.dtype)), rates[:, :1])]
        else:
            sides.append((-chain[:, 1], rates[:, 1:]))
        found = [loss.rate_bound(f, y, rate, strength) for f, rate in sides]
        return torch.stack(found).amax(0)

    def _steepness(self, m: Tensor) -> Tensor:
        """Largest slope of the loss at margins (n, m), (n,)."""
        loss, y = self.margins.loss, self.margins.y
        if self.margins.kind == "falls":
            return loss.gradient(m[:, 0] * (1.0 - 2.0 * y.to(m.dtype)), y).abs()
        return torch.maximum(loss.gradient(m[:, 0], y).abs(), loss.gradient(-m[:, 1], y).abs())
