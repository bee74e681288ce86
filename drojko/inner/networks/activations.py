r"""What is proven about an activation on an interval: lines, secants and curvature around a point.

Everything that is not closed form is read off a grid and completed by Taylor's theorem: with
values and slopes of f at the grid and K >= |f''|, f is at most v + max(0, ±f') h + K h²/2 within
half a cell h of a grid point. The constants are suprema of |phi'''| and |phi''''|, outwards in the
last digit: with s the sigmoid and p = s(1 - s), softplus has phi''' = p(1 - 2s) and
phi'''' = p(1 - 6p); the sigmoid one derivative more; silu n s^(n-1) + a s^(n); tanh four to sixteen
times the sigmoid's at 2a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.models import ACTIVATIONS

__all__ = ["Activation", "Around", "activation"]

_CELLS = 24
#: Beyond it every activation is a line up to 1e-15, and smooth ones have no curvature left.
_FLAT = 40.0
_FLAT_ERROR = 1e-14
#: Nearer than this to the anchor, differences lose too many digits.
_NEAR = 1e-3
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Around:
    r"""An activation on [l, u], seen from an anchor a: h = phi(t) - phi(a), D = t - a, e = h - S D.

    ``curved``: (least, largest) of 2e/D²; ``secant``: (least <= 0, largest >= 0) of e/D;
    ``above``: e <= C + k D as (C, k); ``below``: e >= C + k D; ``reach``: max |D|. ``floor``:
    another line below, which is near all of the interval and not just the anchor.
    """

    slope: Tensor
    curved: tuple[Tensor, Tensor]
    secant: tuple[Tensor, Tensor]
    above: tuple[Tensor, Tensor]
    below: tuple[Tensor, Tensor]
    reach: Tensor
    floor: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Activation:
    """An activation; phi' and phi'' lie in ``slopes`` and ``bends``, |phi'''| below ``third``.

    Where ``third`` is infinite, nothing but lines is known; ReLU has bounds around points as well.
    """

    name: str
    slopes: tuple[float, float]
    bends: tuple[float, float]
    third: float
    fourth: float
    convex: bool
    values: tuple[float, float]

    @property
    def anchored(self) -> bool:
        """Whether `around` knows of it."""
        return math.isfinite(self.third) or self.name == "relu"

    def __call__(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        return _FURTHER[self.name](a) if self.name in _FURTHER else ACTIVATIONS[self.name][0](a)

    def bend(self, a: Tensor) -> Tensor:
        """Phi'' of a smooth activation."""
        s = torch.sigmoid(a)
        p = s * torch.sigmoid(-a)
        if self.name == "softplus":
            return p
        if self.name == "sigmoid":
            return p * (1.0 - 2.0 * s)
        if self.name == "silu":
            return p * (2.0 + a * (1.0 - 2.0 * s))
        if self.name == "gelu":
            return _bell(a) * (2.0 - a.square())
        t = torch.tanh(a)
        return -2.0 * t * (1.0 - t.square())

    # -- lines ----------------------------------------------------------------------------------

    def lines(
        self, low: Tensor, high: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lines above and below on [low, high]: (slope, level) twice, tight near ``at``."""
        at = 0.5 * (low + high) if at is None else torch.clamp(at, low, high)
        if self.convex:
            chord, level = self._chord(low, high)
            h, slope = self(at)
            slack = 4.0 * _EPS * (h.abs() + slope * at.abs() + 1e-300)
            return chord, level, slope, h - slope * at - slack
        grid = _Grid.on(low, high)
        h, slope = self(grid.points)
        ends = h[..., 0], h[..., -1]
        left, right = grid.points - low.unsqueeze(-1), high.unsqueeze(-1) - grid.points
        rise = (h - ends[0].unsqueeze(-1)) / left.clamp_min(1e-12)
        fall = (ends[1].unsqueeze(-1) - h) / right.clamp_min(1e-12)
        wide = ((high - low) > 1e-6).to(low.dtype)
        chord = wide * (ends[1] - ends[0]) / (high - low).clamp_min(1e-12)
        tangent = self(at)[1]
        zero = torch.zeros_like(low)
        above = [
            chord,
            tangent,
            wide * rise[..., 1:].amax(-1),
            wide * fall[..., :-1].amin(-1),
            zero,
        ]
        below = [
            chord,
            tangent,
            wide * rise[..., 1:].amin(-1),
            wide * fall[..., :-1].amax(-1),
            zero,
        ]
        up = self._lowest(grid, h, slope, above, at, 1.0)
        down = self._lowest(grid, h, slope, below, at, -1.0)
        return up[0], up[1], down[0], -down[1]

    def _chord(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Of a convex activation: its chord, moved up by rounding."""
        (first, _), (last, steep) = self(low), self(high)
        width = high - low
        chord = torch.where(width > 1e-6, (last - first) / width.clamp_min(1e-6), steep)
        chord = chord.clamp(*self.slopes)
        slack = 4.0 * _EPS * (first.abs() + last.abs() + low.abs() + high.abs())
        return chord, torch.maximum(first - chord * low, last - chord * high) + slack

    def _lowest(
        self, grid: _Grid, h: Tensor, slope: Tensor, slopes: list[Tensor], at: Tensor, sign: float
    ) -> tuple[Tensor, Tensor]:
        """The line of one of the slopes that is lowest at ``at`` above sign * phi."""
        bend = max(self.bends[1], -self.bends[0])
        # The slope is chosen by a few points of the grid; the level is proven by all.
        t, value = grid.points[..., ::4], h[..., ::4]
        best, lowest = slopes[0], torch.full_like(at, torch.inf)
        for k in slopes:
            height = (sign * (value - k.unsqueeze(-1) * t)).amax(-1) + sign * k * at
            best, lowest = torch.where(height < lowest, k, best), torch.minimum(height, lowest)
        steep = best.unsqueeze(-1)
        level = grid.peak(sign * (h - steep * grid.points), sign * (slope - steep), bend)
        slack = 4.0 * _EPS * (h.abs() + (steep * grid.points).abs()).amax(-1) + _FLAT_ERROR
        return best, level + slack

    # -- around an anchor -----------------------------------------------------------------------

    def around(self, low: Tensor, high: Tensor, at: Tensor) -> Around:
        """Bounds on [low, high] widened to hold the anchor."""
        low, high = torch.minimum(low, at - 1e-9), torch.maximum(high, at + 1e-9)
        h, slope = self(at)
        reach = torch.maximum(high - at, at - low)
        up, up_level, down, down_level = self.lines(low, high, at)
        scale = 8.0 * _EPS * (h.abs() + (slope.abs() + 1.0) * (at.abs() + reach))
        above = (up_level + up * at - h + scale, up - slope)
        below = (down_level + down * at - h - scale, down - slope)
        if math.isinf(self.third):
            curved, secant = self._kinked(low, high, at, slope)
        elif self.convex:
            curved, secant = self._peaked(low, high, at, h, slope)
        else:
            curved, secant = self._smooth(low, high, at, h, slope)
        floor = self._tangent(0.5 * (low + high), at, h, slope) if self.convex else below
        return Around(slope, curved, secant, above, below, reach, floor)

    def _tangent(self, spot: Tensor, at: Tensor, h: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Of a convex activation at a spot: e >= C + k D, moved down by rounding."""
        value, steep = self(spot)
        d = at - spot
        size = h.abs() + value.abs() + (slope.abs() + steep.abs() + 1.0) * (at.abs() + d.abs())
        return value + steep * d - h - 8.0 * _EPS * size, steep - slope

    @staticmethod
    def _kinked(
        low: Tensor, high: Tensor, at: Tensor, slope: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """ReLU: e is 0 on the side of the anchor, |t| on the other; 2|t|/(|t| + |a|)² is curved."""
        other = torch.where(at > 0, (-low).clamp_min(0.0), high.clamp_min(0.0))
        size = at.abs()
        t = torch.minimum(other, size)
        bend = torch.where(other > 0, 2.0 * t / (t + size).square().clamp_min(1e-300), 0.0)
        bend = torch.where((other > 0) & (size < 1e-12), 1e12, bend.clamp_max(1e12)) * (1 + 1e-12)
        steep = other / (other + size).clamp_min(1e-300) * (1 + 1e-12)
        zero = torch.zeros_like(steep)
        secant = torch.where(at > 0, -steep, zero), torch.where(at > 0, zero, steep)
        return (zero, bend), secant

    def _peaked(
        self, low: Tensor, high: Tensor, at: Tensor, h: Tensor, slope: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Softplus: phi'' is even and falls away from zero, so that an interval's ends will do.

        2e/D² has the slope 2k/D³, k = D e' - 2e, and k'' = D phi'''(a + D) changes sign once beside
        zero: it rises up to D = -2a, where phi is a line plus an even function, and falls beyond.
        e/D never falls, as phi is convex.
        """
        ends = torch.stack([low, high])
        value, d = self(ends)[0], ends - at
        near = d.abs() < _NEAR
        safe = torch.where(near, _NEAR, d)
        rise = value - h - slope * safe
        blur = 8.0 * _EPS * (value.abs() + h.abs() + (slope * safe).abs()) + _FLAT_ERROR
        ratio, loose = 2.0 * rise / safe.square(), 2.0 * blur / safe.square()
        bend, third = self.bend(at), self.third / 3.0 * _NEAR
        least = torch.where(near, bend - third, ratio - loose).amin(0)
        most = torch.where(near, bend + third, ratio + loose).amax(0)
        # tanh(|a|/2) / (2|a|) at the maximum, and a quarter where that is near zero.
        size = at.abs()
        peak = torch.tanh(0.5 * size) / (2.0 * size).clamp_min(1e-3) * (1.0 + 8.0 * _EPS)
        peak = torch.where(size < 1e-3, self.bends[1], peak)
        most = torch.where((low <= -at) & (-at <= high), peak, most).clamp(*self.bends)
        # Next to the anchor |e/D| is at most half of the largest curvature times |D|.
        flat = 0.5 * self.bends[1] * _NEAR
        share, off = rise / safe, blur / safe.abs()
        down = torch.where(near[0], -flat, share[0] - off[0])
        up = torch.where(near[1], flat, share[1] + off[1])
        up = torch.minimum(up, self.slopes[1] - slope + 1e-15).clamp_min(0.0)
        down = torch.maximum(down, self.slopes[0] - slope - 1e-15).clamp_max(0.0)
        return (least.clamp(*self.bends), most), (down, up)

    def _smooth(
        self, low: Tensor, high: Tensor, at: Tensor, h: Tensor, slope: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        grid = _Grid.on(low, high)
        value, steep = self(grid.points)
        d = grid.points - at.unsqueeze(-1)
        near = d.abs() < _NEAR
        safe = torch.where(near, 1.0, d)
        s, bend = slope.unsqueeze(-1), self.bend(at).unsqueeze(-1)
        rounding = 8.0 * _EPS * (value.abs() + h.abs().unsqueeze(-1) + (s * safe).abs())
        # 2e/D² averages phi'' with weights 2(1 - s): its slope is an average of phi''' over three,
        # its second derivative one of phi'''' over six.
        ratio = torch.where(near, bend, 2.0 * (value - h.unsqueeze(-1) - s * safe) / safe.square())
        rate = torch.where(near, 0.0, 2.0 * (steep - s) / safe.square() - 2.0 * ratio / safe)
        half = grid.half.unsqueeze(-1)
        blur = 2.0 * rounding / safe.square() * (1.0 + 4.0 * half / safe.abs())
        loose = torch.where(near, self.third / 3.0 * (d.abs() + half), blur)
        bends = self.bends
        top = grid.peak(ratio + loose, rate, self.fourth / 6.0)
        least = -grid.peak(loose - ratio, -rate, self.fourth / 6.0)
        top, least = top.clamp(*bends), least.clamp(*bends)
        # e/D averages phi' - S uniformly.
        bound = max(bends[1], -bends[0])
        secant = torch.where(near, 0.0, (value - h.unsqueeze(-1)) / safe - s)
        rate = torch.where(near, 0.0, (steep - s - secant) / safe)
        loose = torch.where(near, 0.5 * bound * (d.abs() + half), blur * safe.abs())
        up = grid.peak(secant + loose, rate, self.third / 3.0) + _FLAT_ERROR
        down = -grid.peak(loose - secant, -rate, self.third / 3.0) - _FLAT_ERROR
        up = torch.minimum(up, self.slopes[1] - slope + 1e-15).clamp_min(0.0)
        down = torch.maximum(down, self.slopes[0] - slope - 1e-15).clamp_max(0.0)
        # Far out phi is a line: there |2e/D²| is at most twice the secant over the distance.
        for edge, out in ((_FLAT, high > _FLAT), (-_FLAT, low < -_FLAT)):
            inside = (at < edge) if edge > 0 else (at > edge)
            gap = torch.where(inside, (edge - at).abs(), torch.inf).clamp_min(_NEAR)
            tail = torch.where(inside, 2.0 / gap, 1e-12)
            top = torch.where(out, torch.maximum(top, (tail * up).clamp_max(bends[1])), top)
            least = torch.where(out, torch.minimum(least, (tail * down).clamp_min(bends[0])), least)
            top = torch.where(out & ~inside, torch.maximum(top, top.new_tensor(1e-12)), top)
            least = torch.where(out & ~inside, torch.minimum(least, top.new_tensor(-1e-12)), least)
        return (least, top), (down, up)


@dataclass(frozen=True)
class _Grid:
    """Equal cells on the curved part of an interval, and its two ends in front and behind."""

    points: Tensor
    half: Tensor

    @staticmethod
    def on(low: Tensor, high: Tensor) -> _Grid:
        a, b = low.clamp(-_FLAT, _FLAT), high.clamp(-_FLAT, _FLAT)
        share = torch.linspace(0.0, 1.0, _CELLS + 1, dtype=low.dtype, device=low.device)
        middle = torch.lerp(a.unsqueeze(-1), b.unsqueeze(-1), share)
        points = torch.cat([low.unsqueeze(-1), middle, high.unsqueeze(-1)], -1)
        return _Grid(
            points, (b - a) * (0.5 / _CELLS) * (1 + 1e-9) + 1e-15 * (1 + a.abs() + b.abs())
        )

    def peak(self, value: Tensor, slope: Tensor, second: float) -> Tensor:
        """Upper bound of a function on the interval, given |f''| <= second; see the module."""
        inner, rate, half = value[..., 1:-1], slope[..., 1:-1], self.half.unsqueeze(-1)
        right = inner[..., :-1] + rate[..., :-1].clamp_min(0.0) * half
        left = inner[..., 1:] + (-rate[..., 1:]).clamp_min(0.0) * half
        top = torch.maximum(right.amax(-1), left.amax(-1)) + 0.5 * second * self.half.square()
        return torch.maximum(top, torch.maximum(value[..., 0], value[..., -1]))


def _bell(a: Tensor) -> Tensor:
    """The density of the normal distribution."""
    return (-0.5 * a.square()).exp() / math.sqrt(2.0 * math.pi)


def _gelu(a: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.special.ndtr(a)
    return a * share, share + a * _bell(a)


def _elu(a: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.where(a > 0, a, torch.expm1(a.clamp_max(0.0)))
    return h, torch.where(a > 0, 1.0, h + 1.0)


#: Those that only modules of the user's have.
_FURTHER = {"gelu": _gelu, "elu": _elu}
_ALL = {
    known.name: known
    for known in (
        Activation("softplus", (0.0, 1.0), (0.0, 0.25), 0.0962251, 0.125, True, (0.0, math.inf)),
        Activation(
            "sigmoid", (0.0, 0.25), (-0.0962251, 0.0962251), 0.125, 0.1277, False, (0.0, 1.0)
        ),
        Activation("tanh", (0.0, 1.0), (-0.7698004, 0.7698004), 2.0, 4.0859, False, (-1.0, 1.0)),
        Activation(
            "silu",
            (-0.0998394, 1.0998394),
            (-0.0369145, 0.5),
            0.3082,
            0.5,
            False,
            (-0.2784646, math.inf),
        ),
        Activation(
            "gelu",
            (-0.1289045, 1.1289045),
            (-0.1079820, 0.7978846),
            0.7788,
            1.5958,
            False,
            (-0.1699713, math.inf),
        ),
        Activation("elu", (0.0, 1.0), (0.0, 1.0), math.inf, math.inf, True, (-1.0, math.inf)),
        Activation("relu", (0.0, 1.0), (0.0, math.inf), math.inf, math.inf, True, (0.0, math.inf)),
    )
}


def activation(name: str) -> Activation | None:
    """The activation of this name; None: nothing is proven of it."""
    return _ALL.get(name)
