"""What operations of torch are: nodes of a program, for all that bounds are known of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drojko.exceptions import UnsupportedError
from drojko.inner.networks.layers.operations import (
    Concatenation,
    Convolution,
    Matrix,
    Piece,
    Scaling,
    Sum,
    Unit,
)
from drojko.inner.networks.layers.program import Whole
from drojko.inner.networks.layers.recorder import ROWS, Recorder, Rule, moved, tensors, unit

__all__ = ["RULES"]

_ATEN = torch.ops.aten


# -- rules: (recorder, args, kwargs, output) -> node ------------------------------------------


def _same(func: Any) -> Any:
    """Maps that torch's own call computes for any number of rows."""

    def rule(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
        def run(x: Tensor) -> Tensor:
            found = func(x, *args[1:], **kwargs)
            return found[0] if isinstance(found, tuple) else found

        return rec.add(lambda after: run, (_one(rec, args),), out.shape)

    return rule


def _one(rec: Recorder, args: Any) -> int:
    where = rec.at(args[0])
    if where is None or any(rec.at(t) is not None for t in tensors(args[1:])):
        raise UnsupportedError("it uses what comes from its input as a parameter of a layer")
    return where


def _view(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    return rec.add(moved(out.shape[1:]), (_one(rec, args),), out.shape)


def _expanded(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    return rec.like(_one(rec, args), out)


def _matrix(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    bias, x, w = (None, *args) if len(args) == 2 else args
    where = _one(rec, (x, bias, w))
    if any(kwargs.get(k, 1) != 1 for k in ("alpha", "beta")) or (
        bias is not None and bias.shape != out.shape[1:]
    ):
        raise UnsupportedError("no bounds are known of this form of addmm")
    return rec.add(Matrix(w.detach().T, bias), (where,), out.shape)


def _convolution(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
    where = _one(rec, args)
    lists = (tuple(stride), tuple(padding), tuple(dilation))
    made = Convolution(
        weight.detach(), bias, *lists, transposed, tuple(output_padding), groups, rec.shape(where),
        tuple(out.shape[1:]),
    )  # fmt: skip
    if x.ndim != weight.ndim:
        raise UnsupportedError("no bounds are known of convolutions without a batch")
    return rec.add(made, (where,), out.shape)


def _batch_norm(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    _, weight, bias, mean, variance, training, _, eps = args
    if training or mean is None:
        raise UnsupportedError("batch norms in training mode mix rows")
    factor = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = -mean * factor + (0.0 if bias is None else bias)
    side = (-1, *[1] * (out.ndim - 2))
    made = Scaling(factor.view(side), shift.view(side))
    return rec.add(made, (_one(rec, args),), out.shape)


def _plus(sign: float) -> Any:
    def rule(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
        left, right = (rec.at(a) for a in args[:2])
        step = sign * float(kwargs.get("alpha", 1))
        if left is not None and right is not None:
            return rec.add(Sum(step), (rec.like(left, out), rec.like(right, out)), out.shape)
        if left is not None:
            shift = step * torch.as_tensor(args[1], dtype=torch.float64)
            return rec.scaled(left, out, 1.0, shift)
        assert right is not None
        return rec.scaled(right, out, step, args[0])

    return rule


def _minus_from(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    """Rsub: other - alpha * x."""
    return rec.scaled(_one(rec, args), out, -float(kwargs.get("alpha", 1)), args[1])


def _times(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    left, right = (rec.at(a) for a in args[:2])
    if left is not None and right is not None:
        raise UnsupportedError("no bounds are known of products of what comes from the input")
    where, other = (left, args[1]) if left is not None else (right, args[0])
    assert where is not None
    return rec.scaled(where, out, other, 0.0)


def _over(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    if rec.at(args[1]) is not None or kwargs.get("rounding_mode") is not None:
        raise UnsupportedError("no bounds are known of quotients of what comes from the input")
    factor = 1.0 / torch.as_tensor(args[1], dtype=torch.float64)
    return rec.scaled(_one(rec, args), out, factor, 0.0)


def _negative(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    return rec.scaled(_one(rec, args), out, -1.0, 0.0)


def _padded(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    if len(args) > 2 and args[2] != 0:
        raise UnsupportedError("no bounds are known of padding with other constants than 0")
    return _same(_ATEN.constant_pad_nd)(rec, args, kwargs, out)


def _joined(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    axis = (args[1] if len(args) > 1 else 0) % out.ndim
    parts = [where for t in args[0] if (where := rec.at(t)) is not None]
    if axis == 0 or len(parts) < len(args[0]):
        raise UnsupportedError("no bounds are known of cat along rows or with constants")
    lengths = tuple(t.shape[axis] for t in args[0])
    return rec.add(Concatenation(axis, lengths), tuple(parts), out.shape)


def _maximum(sign: float) -> Any:
    def rule(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
        ends = [where for a in args[:2] if (where := rec.at(a)) is not None]
        if len(ends) < 2:
            raise UnsupportedError("no bounds are known of the maximum with a constant")
        left, right = (rec.like(where, out) for where in ends)
        if sign < 0:
            left, right = (rec.scaled(where, out, -1.0, 0.0) for where in (left, right))
        found = rec.larger(left, right, Whole((left, right), torch.maximum))
        return found if sign > 0 else rec.scaled(found, out, -1.0, 0.0)

    return rule


def _pooled(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    """Max pooling: windows of entries, halved by pairs."""
    where = _one(rec, args)
    if len(rec.shape(where)) != 3:
        raise UnsupportedError("no bounds are known of pooling without channels")
    _, *sides = rec.shape(where)
    rest = [list(a) if isinstance(a, list | tuple) else a for a in args[1:]]
    rest += [None] * (5 - len(rest))
    kernel = rest[0]
    stride, padding, dilation = rest[1] or kernel, rest[2] or [0], rest[3] or [1]
    axes = []
    for k in range(2):
        s, p, d = (v[k % len(v)] for v in (stride, padding, dilation))
        at = torch.arange(out.shape[2 + k])[:, None] * s - p + torch.arange(kernel[k])[None] * d
        axes.append(torch.where((at >= 0) & (at < sides[k]), at, -1))
    rows = axes[0][:, None, :, None].expand(-1, out.shape[3], -1, kernel[1])
    columns = axes[1][None, :, None, :].expand(out.shape[2], -1, kernel[0], -1)
    place = torch.where((rows < 0) | (columns < 0), -1, rows * sides[1] + columns)
    place = place.reshape(out.shape[2] * out.shape[3], -1)
    # What lies outside is replaced by an entry of the same window.
    place = torch.where(place < 0, place.amax(1, keepdim=True), place)
    return _largest(rec, where, place, out)


def _largest(rec: Recorder, where: int, place: Tensor, out: Tensor) -> int:
    """The largest of the entries place (P, k) of each channel (c, ...), shape (c, P)."""
    channels, (count, k) = rec.shape(where)[0], place.shape

    def gathered(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, place]

    at = rec.add(lambda after: gathered, (where,), (ROWS, channels, count, k))
    while k > 1:
        half, whole = k // 2, Whole((at,), _halved(k))
        ends = (0, half), (half, 2 * half), (2 * half, k)
        parts = [_cut(rec, at, *end) for end in ends if end[0] < end[1]]
        if k % 2 == 0:
            at = rec.larger(parts[0], parts[1], whole)
        else:
            most = rec.larger(parts[0], parts[1], Whole((at,), _halved(2 * half)))
            shape = (ROWS, channels, count, half + 1)
            at = rec.add(Concatenation(3, (half, 1)), (most, parts[2]), shape, whole)
        k -= half
    return rec.add(moved(out.shape[1:]), (at,), out.shape)


def _cut(rec: Recorder, where: int, start: int, end: int) -> int:
    def cut(x: Tensor) -> Tensor:
        return x[..., start:end]

    return rec.add(lambda after: cut, (where,), (ROWS, *rec.shape(where)[:-1], end - start))


def _halved(k: int) -> Callable[[Tensor], Tensor]:
    """Pairs of the last axis, the larger of each, and what is left over."""
    half = k // 2

    def run(x: Tensor) -> Tensor:
        most = torch.maximum(x[..., :half], x[..., half : 2 * half])
        return torch.cat([most, x[..., 2 * half : k]], -1)

    return run


def _adaptive(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    """Adaptive max pooling to one entry."""
    if any(side != 1 for side in args[1]):
        raise UnsupportedError("no bounds are known of adaptive max pooling to several entries")
    return _over_last(rec, _one(rec, args), len(args[1]), out)


def _over_some(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
    """Amax over the last axes."""
    where = _one(rec, args)
    axes = 1 + len(rec.shape(where))
    given = {a % axes for a in (args[1] if len(args) > 1 else kwargs.get("dim", ()))}
    if not given or 0 in given or given != set(range(axes - len(given), axes)):
        raise UnsupportedError("no bounds are known of the maximum over these axes")
    return _over_last(rec, where, len(given), out)


def _over_last(rec: Recorder, where: int, axes: int, out: Tensor) -> int:
    before = rec.shape(where)
    k = math.prod(before[len(before) - axes :])
    count = math.prod(before) // k
    flat = rec.add(moved((1, count * k)), (where,), (ROWS, 1, count * k))
    place = torch.arange(count * k).view(count, k)
    return _largest(rec, flat, place, out)


def _simple(name: str) -> Any:
    return _of_number(lambda *a, **k: unit(name))


def _of_number(make: Callable[..., Unit]) -> Any:
    """Functions of one number, by what torch's call is given besides."""

    def rule(rec: Recorder, args: Any, kwargs: Any, out: Tensor) -> int:
        return rec.add(make(*args[1:], **kwargs), (_one(rec, args),), out.shape)

    return rule


def _leaky(slope: float = 0.01) -> Unit:
    act = unit("relu").pieces[0].act
    values = (0.0, math.inf) if slope <= 0 else (-math.inf, math.inf)
    ends = (min(slope, 1.0), max(slope, 1.0))
    return Unit((Piece(act, 1.0 - slope),), ends, values, slope)


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Unit:
    if alpha < 0 or scale <= 0 or input_scale != 1:
        raise UnsupportedError("no bounds are known of this form of elu")
    pieces = [Piece(unit("elu").pieces[0].act, scale * alpha)] if alpha else []
    if alpha != 1.0:
        pieces.append(Piece(unit("relu").pieces[0].act, scale * (1.0 - alpha)))
    return Unit(tuple(pieces), (0.0, scale * max(1.0, alpha)), (-scale * alpha, math.inf))


def _celu(alpha: float = 1.0) -> Unit:
    if alpha <= 0:
        raise UnsupportedError("no bounds are known of celu with alpha <= 0")
    return unit("elu", alpha, 1.0 / alpha)


def _gelu(approximate: str = "none") -> Unit:
    if approximate != "none":
        raise UnsupportedError(
            "no bounds are known of gelu(approximate='tanh'); of gelu() they are"
        )
    return unit("gelu")


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Unit:
    if beta <= 0 or threshold < 20:
        raise UnsupportedError("no bounds are known of this form of softplus")
    made = unit("softplus", 1.0 / beta, beta)
    # Beyond the threshold torch gives the line, which is that much lower.
    return Unit(made.pieces, made.slopes, made.values, error=1.01 * math.exp(-threshold) / beta)


def _clamped(low: float | None = None, high: float | None = None) -> Unit:
    act = unit("relu").pieces[0].act
    if not all(end is None or isinstance(end, int | float) for end in (low, high)):
        raise UnsupportedError("no bounds are known of clamp with tensors")
    values = (-math.inf if low is None else low, math.inf if high is None else high)
    if not values[0] < values[1]:
        raise UnsupportedError("no bounds are known of clamp with min >= max")
    pieces = []
    if low is not None:
        pieces.append(Piece(act, 1.0, 1.0, -low))
    if high is not None:
        pieces.append(Piece(act, -1.0, 1.0, -high))
    slope, level = (1.0, 0.0) if low is None else (0.0, low)
    return Unit(tuple(pieces), (0.0, 1.0), values, slope, level)


def _absolute() -> Unit:
    return Unit((Piece(unit("relu").pieces[0].act, 2.0),), (-1.0, 1.0), (0.0, math.inf), -1.0)


RULES: dict[str, Rule] = {
    "addmm": _matrix, "mm": _matrix, "convolution": _convolution,
    "native_batch_norm": _batch_norm, "add": _plus(1.0), "sub": _plus(-1.0), "rsub": _minus_from,
    "mul": _times, "div": _over, "neg": _negative, "cat": _joined, "expand": _expanded,
    "maximum": _maximum(1.0), "minimum": _maximum(-1.0), "max_pool2d_with_indices": _pooled,
    "amax": _over_some, "adaptive_max_pool2d": _adaptive, "constant_pad_nd": _padded,
    "relu": _simple("relu"), "tanh": _simple("tanh"), "sigmoid": _simple("sigmoid"),
    "silu": _simple("silu"), "gelu": _of_number(_gelu), "elu": _of_number(_elu),
    "celu": _of_number(_celu), "leaky_relu": _of_number(_leaky),
    "softplus": _of_number(_softplus), "hardtanh": _of_number(
        lambda low=-1.0, high=1.0: _clamped(low, high)),
    "clamp": _of_number(lambda low=None, high=None, **k: _clamped(
        k.get("min", low), k.get("max", high))),
    "clamp_min": _of_number(_clamped), "clamp_max": _of_number(lambda high: _clamped(None, high)),
    "abs": _of_number(_absolute),
}  # fmt: skip
RULES |= dict.fromkeys(("view", "_unsafe_view", "squeeze", "unsqueeze", "reshape"), _view)
RULES |= {
    name: _same(getattr(_ATEN, name))
    for name in (
        "permute", "transpose", "select", "slice", "clone", "flip", "index_select", "mean", "sum",
        "avg_pool2d", "_adaptive_avg_pool2d", "reflection_pad1d", "reflection_pad2d",
        "replication_pad1d", "replication_pad2d", "upsample_nearest2d", "upsample_bilinear2d",
        "pixel_shuffle", "pixel_unshuffle",
    )
}  # fmt: skip
