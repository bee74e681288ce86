"""What layers are made of: affine maps with their transposes, and functions of one number.

Tensors hold a sample per row, (n, *shape). Affine maps know themselves in absolute values as well:
how far a box spreads, what the terms of a sum add up to, and a norm that they do not exceed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from drojko.inner.networks.activations import Activation

__all__ = [
    "Affine", "Concatenation", "Convolution", "Matrix", "Piece", "Positive", "Scaling", "Sum",
    "Unit", "flat", "spectral_norm",
]  # fmt: skip

_EPS = torch.finfo(torch.float64).eps
#: Entries of a matrix whose norm is computed, and the shorter side.
_DENSE, _SIDE = 4_000_000, 768
#: Entries of a convolution's matrix that is used in its place, and how many to one of its own.
_MATRIX, _SPARSE = 300_000, 16
_ROUNDED = 1.0 + 1e-9


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value, outwards; what is too large for it: a bound by sums."""
    if matrix.numel() == 0:
        return 0.0
    if min(matrix.shape) > _SIDE or not bool(torch.isfinite(matrix).all()):
        size = matrix.abs()
        return math.sqrt(float(size.sum(0).max()) * float(size.sum(1).max())) * _ROUNDED
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    scale = float(gram.diagonal().max())
    if not scale > 0.0:
        return 0.0
    top = float(torch.linalg.eigvalsh(gram / scale)[-1]) + 1e-12 * len(gram)
    return math.sqrt(top * scale) * _ROUNDED


class Affine(ABC):
    """x -> A x + b of one or several x."""

    @abstractmethod
    def forward(self, *parts: Tensor) -> Tensor:
        """The map."""

    @abstractmethod
    def back(self, rows: Tensor) -> tuple[Tensor, ...]:
        """A' rows, for each of the x."""

    @abstractmethod
    def spread(self, *parts: Tensor) -> Tensor:
        """|A| x of x >= 0."""

    def size(self, *parts: Tensor) -> Tensor:
        """|A| x + |b| of x >= 0: what the terms of each sum add up to."""
        return self.spread(*parts)

    @abstractmethod
    def deviation(self, *parts: Tensor) -> Tensor:
        """How far the output moves at most, in norm, when each x moves that far."""


@dataclass(frozen=True)
class Matrix(Affine):
    """Of the last axis: weight (out, in), bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.nn.functional.linear(parts[0], self.weight, self.bias)

    def back(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (rows @ self.weight,)

    def spread(self, *parts: Tensor) -> Tensor:
        return parts[0] @ self.weight.abs().T

    def size(self, *parts: Tensor) -> Tensor:
        spread = self.spread(*parts)
        return spread if self.bias is None else spread + self.bias.abs()

    def deviation(self, *parts: Tensor) -> Tensor:
        return parts[0] * spectral_norm(self.weight)


@dataclass(frozen=True)
class Convolution(Affine):
    """A convolution of shape -> shape, with what torch calls its arguments."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    @cached_property
    def _matrix(self) -> Tensor | None:
        """Of the linear part, (after, before), where products with it are quicker; else None."""
        inside, outside = math.prod(self.before), math.prod(self.after)
        own = self.weight.numel() * outside / self.after[0]
        if self.transposed:
            own = self.weight.numel() * inside / self.before[0]
        if inside * outside > min(_MATRIX, _SPARSE * own):
            return None
        eye = torch.eye(inside, dtype=self.weight.dtype).view(-1, *self.before)
        return self._run(eye, self.weight, None).flatten(1).T.contiguous()

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups,
        )  # fmt: skip

    def forward(self, *parts: Tensor) -> Tensor:
        if self._matrix is None:
            return self._run(parts[0], self.weight, self.bias)
        out = (parts[0].flatten(1) @ self._matrix.T).view(-1, *self.after)
        return out if self.bias is None else out.add_(self._offset)

    @property
    def _offset(self) -> Tensor:
        assert self.bias is not None
        return self.bias.view(-1, *[1] * (len(self.after) - 1))

    def back(self, rows: Tensor) -> tuple[Tensor, ...]:
        if self._matrix is not None:
            return ((rows.flatten(1) @ self._matrix).view(-1, *self.before),)
        like = rows.new_empty(1).expand(len(rows), *self.before)
        found = torch.ops.aten.convolution_backward(
            rows, like, self.weight, None, self.stride, self.padding, self.dilation,
            self.transposed, self.output_padding, self.groups, [True, False, False],
        )  # fmt: skip
        return (found[0],)

    def spread(self, *parts: Tensor) -> Tensor:
        return self._run(parts[0], self.weight.abs(), None)

    def size(self, *parts: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.abs()
        return self._run(parts[0], self.weight.abs(), bias)

    def deviation(self, *parts: Tensor) -> Tensor:
        return parts[0] * self._norm()

    def _norm(self) -> float:
        """Exact where the matrix is small; else what padding, strides and the torus allow."""
        inside, outside = math.prod(self.before), math.prod(self.after)
        if min(inside, outside) <= _SIDE and inside * outside <= _DENSE:
            eye = torch.eye(outside, dtype=torch.float64).view(-1, *self.after)
            return spectral_norm(self.back(eye)[0].flatten(1))
        ones = torch.ones(1, *self.before, dtype=torch.float64)
        sums = float(self.spread(ones).max())
        absolute = Convolution(
            self.weight.abs(), None, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups, self.before, self.after,
        )  # fmt: skip
        columns = float(absolute.back(torch.ones(1, *self.after, dtype=torch.float64))[0].max())
        return min(math.sqrt(sums * columns), self._on_torus()) * _ROUNDED

    def _on_torus(self) -> float:
        """The same without strides and on a torus that holds the padded input: no smaller."""
        shape = self.after if self.transposed else self.before
        sides = [s + 2 * p for s, p in zip(shape[1:], self.padding, strict=True)]
        weight = self.weight
        kernel = weight.new_zeros(*weight.shape[:2], *sides)
        places = [
            torch.arange(k) * step for k, step in zip(weight.shape[2:], self.dilation, strict=True)
        ]
        if any(int(at[-1]) >= side for at, side in zip(places, sides, strict=True)):
            return math.inf
        grid = torch.meshgrid(*places, indexing="ij")
        kernel[(slice(None), slice(None), *grid)] = weight
        axes = tuple(range(2, kernel.ndim))
        waves = torch.fft.fftn(kernel, dim=axes).flatten(2).movedim(2, 0)  # (waves, out, in)
        squares = [
            torch.linalg.eigvalsh(w @ w.mH if w.shape[1] < w.shape[2] else w.mH @ w)[:, -1].max()
            for w in waves.split(waves.shape[1] // self.groups, 1)
        ]
        return math.sqrt(max(0.0, *map(float, squares))) * _ROUNDED


@dataclass(frozen=True)
class Scaling(Affine):
    """factor * x + shift, entry by entry; tensors that broadcast over one sample."""

    factor: Tensor
    shift: Tensor

    def forward(self, *parts: Tensor) -> Tensor:
        return parts[0] * self.factor + self.shift

    def back(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (rows * self.factor,)

    def spread(self, *parts: Tensor) -> Tensor:
        return parts[0] * self.factor.abs()

    def size(self, *parts: Tensor) -> Tensor:
        return self.spread(*parts) + self.shift.abs()

    def deviation(self, *parts: Tensor) -> Tensor:
        return parts[0] * float(self.factor.abs().max()) * _ROUNDED


@dataclass(frozen=True)
class Positive(Affine):
    """A linear map without negative coefficients: what moves entries, and means of them."""

    map: Callable[[Tensor], Tensor]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def forward(self, *parts: Tensor) -> Tensor:
        return self.map(parts[0])

    def back(self, rows: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaf = rows.new_zeros(len(rows), *self.before).requires_grad_(True)
            return torch.autograd.grad(self.map(leaf), leaf, rows)

    def spread(self, *parts: Tensor) -> Tensor:
        return self.map(parts[0])

    def deviation(self, *parts: Tensor) -> Tensor:
        ones = torch.ones(1, *self.before, dtype=torch.float64)
        columns = self.back(torch.ones(1, *self.after, dtype=torch.float64))[0]
        return parts[0] * math.sqrt(float(self.map(ones).max()) * float(columns.max())) * _ROUNDED


@dataclass(frozen=True)
class Sum(Affine):
    """x + sign * y, of the same shape."""

    sign: float = 1.0

    def forward(self, *parts: Tensor) -> Tensor:
        return parts[0] + self.sign * parts[1]

    def back(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows, self.sign * rows

    def spread(self, *parts: Tensor) -> Tensor:
        return parts[0] + abs(self.sign) * parts[1]

    def deviation(self, *parts: Tensor) -> Tensor:
        return (parts[0] + abs(self.sign) * parts[1]) * _ROUNDED


@dataclass(frozen=True)
class Concatenation(Affine):
    """Along an axis, counted with that of the samples; how long the parts are there."""

    axis: int
    lengths: tuple[int, ...]

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.axis)

    def back(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(self.lengths, self.axis)

    def spread(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.axis)

    def deviation(self, *parts: Tensor) -> Tensor:
        return torch.stack(parts).norm(dim=0) * _ROUNDED


@dataclass(frozen=True)
class Piece:
    """height * phi(rate * x + shift), rate > 0."""

    act: Activation
    height: float = 1.0
    rate: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Unit:
    r"""A function of one number, :math:`\phi(x) = s x + c + \sum_j h_j \phi_j(r_j x + t_j)`.

    Attributes
    ----------
    slopes, values : (float, float)
        Ranges of the derivative and of the function.
    error : float
        By how much torch's may differ.
    """

    pieces: tuple[Piece, ...]
    slopes: tuple[float, float]
    values: tuple[float, float] = (-math.inf, math.inf)
    slope: float = 0.0
    level: float = 0.0
    error: float = 0.0

    @property
    def steepest(self) -> float:
        """Its Lipschitz constant."""
        return max(map(abs, self.slopes))

    def forward(self, x: Tensor) -> Tensor:
        """Its values."""
        if self.slope == self.level == 0.0 and self.pieces == (Piece(self.pieces[0].act),):
            return self.pieces[0].act(x)[0]
        out = self.slope * x + self.level
        for p in self.pieces:
            out = out + p.height * p.act(p.rate * x + p.shift)[0]
        return out

    def derivative(self, x: Tensor) -> Tensor:
        """Its slopes; at a kink one of them."""
        if self.slope == 0.0 and self.pieces == (Piece(self.pieces[0].act),):
            return self.pieces[0].act(x)[1]
        parts = (p.height * p.rate * p.act(p.rate * x + p.shift)[1] for p in self.pieces)
        return sum(parts, torch.full_like(x, self.slope))

    def lines(self, low: Tensor, high: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lines above and below on [low, high]: (slope, level) twice, tight near ``at``."""
        up = down = torch.full_like(low, self.slope)
        above = torch.full_like(low, self.level + self.error)
        below = torch.full_like(low, self.level - self.error)
        for p in self.pieces:
            a, b = p.rate * low + p.shift, p.rate * high + p.shift
            if p.rate != 1.0 or p.shift != 0.0:
                room = 4.0 * _EPS * (a.abs() + b.abs() + 2.0 * abs(p.shift))
                a, b = a - room, b + room
            found = p.act.lines(a, b, p.rate * at + p.shift)
            first, last = (0, 2) if p.height >= 0 else (2, 0)
            up = up + p.height * p.rate * found[first]
            down = down + p.height * p.rate * found[last]
            levels = [p.height * (found[k + 1] + found[k] * p.shift) for k in (first, last)]
            size = abs(p.height) * sum(
                found[k + 1].abs() + (found[k] * p.shift).abs() for k in (0, 2)
            )
            room = 8.0 * _EPS * (size + abs(self.level) + abs(p.height * p.rate) * (
                low.abs() + high.abs()) + abs(self.slope) * (low.abs() + high.abs()))  # fmt: skip
            above, below = above + levels[0] + room, below + levels[1] - room
        return up, above, down, below

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two lines of one slope on [low, high], about that of the chord: slope, above, below."""
        width = high - low
        chord = (self.forward(high) - self.forward(low)) / width.clamp_min(1e-300)
        chord = torch.where(width > 1e-9, chord, 0.0).clamp(*self.slopes)
        one, two = (self.lines(low, high, at) for at in (low, high))
        above = _leaning(chord, one[:2], two[:2], low, high, 1.0)
        below = _leaning(chord, one[2:], two[2:], low, high, -1.0)
        return chord, above, below

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of its values on [low, high]."""
        if self.slopes[0] >= 0.0:
            least, most = self.forward(low), self.forward(high)
        else:
            up, above, down, below = self.lines(low, high, 0.5 * (low + high))
            most = torch.maximum(up * low, up * high) + above
            least = torch.minimum(down * low, down * high) + below
        size = 1.0 + sum(abs(p.height) * (1.0 + p.rate + abs(p.shift)) for p in self.pieces)
        room = 8.0 * _EPS * size * (1.0 + low.abs() + high.abs())
        room = room + self.error + 8.0 * _EPS * (least.abs() + most.abs())
        return (least - room).clamp_min(self.values[0]), (most + room).clamp_max(self.values[1])


def _leaning(
    slope: Tensor, one: tuple[Tensor, ...], two: tuple[Tensor, ...], low: Tensor, high: Tensor,
    sign: float,
) -> Tensor:  # fmt: skip
    """Level at a slope of a line above (``sign`` 1) or below what two others are.

    A mean of the two is one as well; what it lacks in slope is added at the worse end.
    """
    gap = two[0] - one[0]
    share = ((slope - one[0]) / torch.where(gap == 0.0, 1.0, gap)).clamp(0.0, 1.0)
    share = torch.where(gap == 0.0, 0.5, share)
    steep = torch.lerp(one[0], two[0], share)
    off = sign * (steep - slope)
    level = torch.lerp(one[1], two[1], share) + sign * torch.maximum(off * low, off * high)
    size = sum(part.abs() for part in (one[1], two[1]))
    size = size + (one[0].abs() + two[0].abs() + slope.abs()) * (low.abs() + high.abs())
    return level + sign * 8.0 * _EPS * size


def flat(x: Tensor, lead: int = 1) -> Tensor:
    """All axes after the first ``lead`` as one, also where there are none."""
    return x.reshape(*x.shape[:lead], -1)
