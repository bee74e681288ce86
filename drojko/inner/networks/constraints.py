r"""What is proven of a layer's units around an anchor, and the multipliers that combine it.

With D the change of a unit's pre-activation and e what the unit adds to its linear part there are
products of two lines, a single line and the curvature:

.. math:: (e - C - k D)(e - c - q D) \le 0, \quad e \le C + k D \text{ or } e \ge C + k D, \quad
          \tfrac12 m D^2 \le e \le \tfrac12 M D^2.

Products: of the steepest and the flattest secant (Fazlyab et al. 2019, arXiv 1906.04893), and of a
line above and one below (Raghunathan et al. 2018, arXiv 1811.01057).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.networks.activations import Around
from drojko.inner.networks.nested import taken

__all__ = ["PRODUCTS", "Layer", "Multipliers", "Units", "descend", "still"]

_RATE, _DECAY = 0.1, (0.9, 0.99)
#: Products and the line, by their logarithms, and the curvature's multiplier itself.
PRODUCTS, _ETA = 2, 3
#: Where those begin that are not worth much at first.
_SECTOR, _LINE, _BAND = 10.0, -5.0, -4.0


@dataclass(frozen=True)
class Multipliers:
    """Per layer (n, kinds, width), as logarithms but for the last; what others may start from.

    ``place`` (n, width) says where: the margin's derivatives in the last pre-activations.
    """

    layers: tuple[Tensor, ...]
    place: Tensor

    def take(self, index: Tensor) -> Multipliers:
        """Some of them."""
        return taken(self, index)

    def near(self, place: Tensor, count: int) -> list[Tensor]:
        """Indices (n,) of the nearest, the next, ..."""
        count = min(count, len(self.place))
        away = torch.cdist(place, self.place)
        return list(away.topk(count, largest=False).indices.unbind(1))

    def joined(self, more: Multipliers, most: int = 10**9) -> Multipliers:
        """Both, the latest ``most`` of them."""
        pairs = zip(self.layers, more.layers, strict=True)
        layers = tuple(torch.cat(pair)[-most:] for pair in pairs)
        return Multipliers(layers, torch.cat([self.place, more.place])[-most:])


@dataclass
class Units:
    """A layer's combination of constraints: -P e² + x e D - z D² - l e + g D + const, (n, width);
    const is that of the module (n,).

    ``spread``: what z is the sum of in size.
    """

    values: Tensor  # of products and the line (n, _ETA, width), the latter with its sign
    bend: Tensor
    square: Tensor
    mixed: Tensor
    flat: Tensor
    spread: Tensor
    linear: Tensor
    along: Tensor
    const: Tensor


@dataclass(frozen=True)
class Layer:
    """A layer's constraints, and what its multipliers are multiples of.

    ``sign``: whether the margin rises with a unit. ``levels``, ``slopes``: both factors of the
    products.
    """

    around: Around
    scale: Tensor
    base: Tensor
    sign: Tensor
    levels: tuple[Tensor, Tensor]
    slopes: tuple[Tensor, Tensor]
    line: tuple[Tensor, Tensor]

    @staticmethod
    def of(around: Around, pull: Tensor) -> Layer:
        """``pull`` (n, width): the margin's derivative in the layer's outputs."""
        size = pull.abs()
        scale = size + 1e-3 * size.amax(1, keepdim=True) + 1e-30
        up = pull >= 0
        sign = torch.where(up, 1.0, -1.0).to(pull.dtype)
        low, high = around.secant
        base = 0.2 * scale / ((high - low).clamp_min(1e-6) * around.reach)
        line = tuple(torch.where(up, a, b) for a, b in zip(around.above, around.below, strict=True))
        zero = torch.zeros_like(low)
        (top, rise), (floor, tilt) = around.above, around.floor
        levels = torch.stack([zero, top], 1), torch.stack([zero, floor], 1)
        slopes = torch.stack([low, rise], 1), torch.stack([high, tilt], 1)
        return Layer(around, scale, base, sign, levels, slopes, line)  # type: ignore[arg-type]

    def start(self, last: bool) -> Tensor:
        """First multipliers: nearly all on the curvature, unless it explodes at a kink.

        Sectors of layers before the last begin where those of trained networks end up: what they
        add is small, and a layer that is barely dominated adds much.
        """
        least, largest = self.around.curved
        up = self.sign > 0
        bend = torch.where(up, largest, -least).clamp_min(0.0)
        low, high = self.around.secant
        steep = torch.where(up, torch.maximum(high, -low), torch.maximum(-low, high))
        share = (4.0 * steep / (bend * self.around.reach).clamp_min(1e-12)).clamp_max(1.0)
        sector = 5.0 * (1.0 - share) + (1.0 if last else _SECTOR)
        flat = torch.zeros_like(share)
        numbers = sector.log(), flat + _BAND, flat + _LINE, self.sign * 0.97 * share
        return torch.stack(numbers, 1)

    def at(self, multipliers: Tensor) -> Tensor:
        """The free numbers of multipliers."""
        free = multipliers - self._units
        free[:, _ETA] = multipliers[:, _ETA] / self.scale
        return free.clamp(-30.0, 30.0)

    def multipliers(self, free: Tensor) -> Tensor:
        """Those at free numbers: logarithms, and the last itself."""
        found = free + self._units
        found[:, _ETA] = free[:, _ETA] * self.scale
        return found

    @property
    def _units(self) -> Tensor:
        """Logarithms of what multipliers are multiples of."""
        parts = [self.base.log()] * PRODUCTS + [self.scale.log()] * 2
        return torch.stack(parts, 1)

    def combined(self, free: Tensor) -> Units:
        """The constraints' combination at multipliers, from their free numbers."""
        around, eta = self.around, free[:, _ETA] * self.scale
        shares = free[:, :_ETA].exp()
        m = shares[:, :PRODUCTS] * self.base.unsqueeze(1)
        k = shares[:, PRODUCTS] * self.scale * self.sign
        bend = torch.where(eta > 0, around.curved[1], around.curved[0])
        (c, d), (p, q), (level, steep) = self.levels, self.slopes, self.line
        flat = m * p * q
        curve = 0.5 * eta * bend
        return Units(
            torch.cat([m, k.unsqueeze(1)], 1), bend, m.sum(1), (m * (p + q)).sum(1),
            flat.sum(1) - curve, flat.abs().sum(1) + curve.abs(), eta + k - (m * (c + d)).sum(1),
            k * steep - (m * (c * q + d * p)).sum(1),
            (k * level - (m * c * d).sum(1)).sum(1),
        )  # fmt: skip


def descend(
    layer: Layer, units: Units, free: Tensor, moments: tuple[Tensor, Tensor],
    d: Tensor, e: Tensor, count: int,
) -> None:  # fmt: skip
    """A step of Adam in a layer's multipliers, in place; derivatives are constraints at D and e."""
    (c, f), (p, q), (level, steep) = layer.levels, layer.slopes, layer.line
    d1, e1 = d.unsqueeze(1), e.unsqueeze(1)
    products = (p * d1 + c - e1) * (e1 - f - q * d1)
    slope = torch.cat([products, (level + steep * d - e).unsqueeze(1)], 1).mul_(units.values)
    curve = layer.scale * (0.5 * units.bend * d.square() - e)
    slope = torch.cat([slope, curve.unsqueeze(1)], 1)
    slope = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
    first, second = moments
    first.mul_(_DECAY[0]).add_(slope, alpha=1.0 - _DECAY[0])
    second.mul_(_DECAY[1]).addcmul_(slope, slope, value=1.0 - _DECAY[1])
    root = (second / (1.0 - _DECAY[1] ** count)).sqrt().clamp_min(1e-30)
    free.sub_(_RATE / (1.0 - _DECAY[0] ** count) * first / root)
    free[:, :_ETA].clamp_(-30.0, 30.0)


def still(free: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Moments of Adam before its first step."""
    return [(torch.zeros_like(own), torch.zeros_like(own)) for own in free]
