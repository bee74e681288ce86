r"""Quadratic upper bounds of a margin on a ball, by duality, anchored at a point of it.

With d the displacement, D_l the change of layer l's pre-activations from the anchor and
e_l = h - h* - S D_l what a layer adds to its linear part, every unit satisfies

.. math:: (e - \alpha D)(\beta D - e) \ge 0, \quad \tfrac12 m D^2 \le e \le \tfrac12 M D^2,
          \quad e \le C + k D

(or e >= C + k D). Their combination with multipliers T, eta, kappa is maximised over all e in
closed form, last layer first: a layer whose effect on the margin is at most b'D h + D h'B D h/2
leaves

.. math:: A = 2T - B \succ 0, \quad b_0 = b - \eta - \kappa, \quad X = B S + T(\alpha + \beta),
.. math:: \tfrac12 D^\top (S B S + \eta M - 2 T \alpha\beta + X^\top A^{-1} X) D
          + (S b + \kappa k + X^\top A^{-1} b_0)^\top D + \tfrac12 b_0^\top A^{-1} b_0 + \kappa C.

Any multipliers are a proof. At the maximiser the derivative in a multiplier is its constraint, so
that improving them takes no automatic differentiation. Sectors after Fazlyab et al. (2019,
arXiv 1906.04893); anchoring and curvature are our own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from drojko.inner.networks.activations import Around
from drojko.inner.networks.network import Network

__all__ = ["Multipliers", "Quadratic", "quadratic_bound", "region_bytes"]

_RATE, _DECAY = 0.1, (0.9, 0.99)
#: How many starts from other regions are tried; after how many steps regions may leave, and below
#: which share of the way to the goal, over all steps, they do.
_CANDIDATES, _CHECK, _STALLED = 4, 4, 0.7
#: Subtracted from matrices before they are factored: far above rounding, so that what is computed
#: with them is an upper bound of the quadratic forms of the exact ones.
_SHIFT = 1e-9


@dataclass(frozen=True)
class Multipliers:
    """Per layer (n, width): log T, eta and log kappa; what other regions may start from.

    ``place`` (n, width) says where: the margin's derivatives in the last pre-activations.
    """

    sector: tuple[Tensor, ...]
    curved: tuple[Tensor, ...]
    line: tuple[Tensor, ...]
    place: Tensor

    def take(self, index: Tensor) -> Multipliers:
        """Some of them."""
        return _taken(self, index)

    def near(self, place: Tensor, count: int) -> list[Tensor]:
        """Indices (n,) of the nearest, the next, ..."""
        count = min(count, len(self.place))
        away = torch.cdist(place, self.place)
        return list(away.topk(count, largest=False).indices.unbind(1))

    def joined(self, more: Multipliers, most: int = 10**9) -> Multipliers:
        """Both, the latest ``most`` of them."""
        sector, curved, line = (
            tuple(torch.cat([a, b])[-most:] for a, b in zip(one, two, strict=True))
            for one, two in zip(self._parts, more._parts, strict=True)
        )
        return Multipliers(sector, curved, line, torch.cat([self.place, more.place])[-most:])

    @property
    def _parts(self) -> tuple[tuple[Tensor, ...], ...]:
        return self.sector, self.curved, self.line


@dataclass(frozen=True)
class Quadratic:
    r"""margin <= constant + curvature/2 * \|d\|^2 on the ball; shape (n,) each.

    ``multipliers`` of the regions that were improved; ``work``: how often any was tried.
    """

    constant: Tensor
    curvature: Tensor
    multipliers: Multipliers
    work: int


def _taken(part: Any, index: Tensor) -> Any:
    """Some rows of all tensors in nested lists, tuples and dataclasses."""
    if isinstance(part, Tensor):
        return part[index]
    if isinstance(part, list | tuple):
        return type(part)(_taken(p, index) for p in part)
    if part is None:
        return None
    return replace(part, **{f.name: _taken(getattr(part, f.name), index) for f in fields(part)})


@dataclass(frozen=True)
class _Layer:
    """What a layer's multipliers are scaled by, and its geometry."""

    around: Around
    scale: Tensor
    base: Tensor
    sign: Tensor
    line: tuple[Tensor, Tensor]

    @staticmethod
    def of(around: Around, pull: Tensor) -> _Layer:
        """``pull`` (n, width): the margin's derivative in the layer's outputs."""
        size = pull.abs()
        scale = size + 1e-3 * size.amax(1, keepdim=True) + 1e-30
        sign = torch.where(pull >= 0, 1.0, -1.0)
        low, high = around.secant
        base = 0.2 * scale / ((high - low).clamp_min(1e-6) * around.reach)
        up = pull >= 0
        line = tuple(torch.where(up, a, b) for a, b in zip(around.above, around.below, strict=True))
        return _Layer(around, scale, base, sign, line)  # type: ignore[arg-type]

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        """First multipliers: nearly all on the curvature, unless it explodes at a kink."""
        least, largest = self.around.curved
        up = self.sign > 0
        bend = torch.where(up, largest, -least).clamp_min(0.0)
        low, high = self.around.secant
        steep = torch.where(up, torch.maximum(high, -low), torch.maximum(-low, high))
        share = (4.0 * steep / (bend * self.around.reach).clamp_min(1e-12)).clamp_max(1.0)
        eta = self.sign * 0.97 * share
        return (5.0 * (1.0 - share) + 1.0).log(), eta, torch.full_like(eta, -5.0)

    def values(self, t: Tensor, e: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """T, eta, signed kappa, and the bend that eta multiplies."""
        eta = e * self.scale
        least, largest = self.around.curved
        bend = torch.where(eta > 0, largest, least)
        return self.base * t.exp(), eta, self.sign * k.exp() * self.scale, bend


@dataclass
class _Pass:
    """A layer after elimination: what finds the maximising e again."""

    layer: _Layer
    values: tuple[Tensor, Tensor, Tensor, Tensor]
    solve: Tensor  # e = solve @ D + offset, or solve * D + offset in the last layer
    offset: Tensor


def region_bytes(network: Network) -> int:
    """Rough memory of one region while its multipliers are improved."""
    widths = [w.shape[0] for w in network.weights]
    squares = sum(h * h for h in [*widths[:-1], network.dim])
    return 8 * (10 * squares + 4 * sum(w.numel() for w in network.weights) + 120 * sum(widths))


@dataclass(frozen=True)
class _Work:
    """Regions whose multipliers are being improved: one row each of everything.

    ``free`` are logarithms and multiples of the layers' scales; ``best`` and the two numbers
    after it are the best bound so far, at the region's radius.
    """

    index: Tensor
    rows: Tensor
    anchor: Tensor
    radius: Tensor
    value: Tensor
    error: Tensor
    goal: Tensor
    layers: list[_Layer]
    free: list[list[Tensor]]
    moments: list[list[tuple[Tensor, Tensor]]]
    best: Tensor
    constant: Tensor
    curvature: Tensor
    mu: Tensor | None = None

    @property
    def open(self) -> Tensor:
        return self.best > self.goal

    def tried(self, network: Network, improve: int = 0) -> _Work:
        """The bound at the present multipliers, which are then improved for the count-th time."""
        passes, const, g, q, size = _eliminated(network, self.layers, self.free, self.rows)
        const, anchor, radius = const + self.value, self.anchor, self.radius
        qd = (q @ anchor.unsqueeze(2)).squeeze(2)
        c = const - (g * anchor).sum(1) + 0.5 * (qd * anchor).sum(1)
        g0 = g - qd
        far = anchor.norm(dim=1) + radius
        rounding = 4.0 * self.error + 1e-11 * (
            self.value.abs() + const.abs() + g.norm(dim=1) * far + size * far.square()
        )
        used, d, cost, mu = _trust_region(q, g0, radius, size, self.mu)
        total = c + cost + 0.5 * used * radius.square() + rounding
        wins = total < self.best  # False for NaN as well
        if improve:
            _improve(network, passes, self.free, self.moments, d - anchor, improve)
        return replace(
            self, mu=mu, best=torch.where(wins, total, self.best),
            constant=torch.where(wins, c + cost + rounding, self.constant),
            curvature=torch.where(wins, used, self.curvature),
        )  # fmt: skip

    def started(self, start: Multipliers) -> _Work:
        """At other multipliers, one row for each region."""
        free = [
            [
                (t - layer.base.log()).clamp(-30.0, 30.0),
                (e / layer.scale).clamp(-30.0, 30.0),
                (k - layer.scale.log()).clamp(-30.0, 30.0),
            ]
            for layer, t, e, k in zip(
                self.layers, start.sector, start.curved, start.line, strict=True
            )
        ]
        return replace(self, free=free, mu=None)

    @property
    def multipliers(self) -> Multipliers:
        each = list(zip(self.free, self.layers, strict=True))
        return Multipliers(
            tuple(free[0] + layer.base.log() for free, layer in each),
            tuple(free[1] * layer.scale for free, layer in each),
            tuple(free[2] + layer.scale.log() for free, layer in each),
            self.layers[-1].around.slope * self.rows,
        )


@torch.no_grad()
def quadratic_bound(
    network: Network,
    rows: Tensor,
    levels: Tensor,
    anchor: Tensor,
    intervals: list[tuple[Tensor, Tensor]],
    radius: Tensor,
    steps: int,
    known: Multipliers | None = None,
    goal: Tensor | None = None,
) -> Quadratic:
    """Bounds of ``rows @ h + levels``, tight at displacements of length ``radius`` near the anchor.

    Parameters
    ----------
    rows, levels : Tensor of shape (n, width) and (n,)
    anchor : Tensor of shape (n, r)
    intervals : list of (low, high)
        Pre-activations on the region that the bounds are for.
    steps : int
        How often the multipliers are improved at most.
    known : Multipliers, optional
        Of other regions: the nearest are tried as a start.
    goal : Tensor of shape (n,), optional
        A bound that will do at the radius: regions are left where it is reached, or out of reach.
    """
    a, h = network.forward(anchor)
    value = (rows * h).sum(1) + levels
    error = _forward_error(network, rows, levels, anchor, a)
    arounds = [
        act.around(low - network.slack * low.abs(), high + network.slack * high.abs(), at)
        for act, (low, high), at in zip(network.acts, intervals, a, strict=True)
    ]
    layers: list[_Layer] = []
    pull = rows
    for around, w in zip(arounds[::-1], network.weights[::-1], strict=True):
        layers.insert(0, _Layer.of(around, pull))
        pull = (around.slope * pull) @ w
    n = len(rows)
    nothing = torch.zeros(n, dtype=torch.float64)
    endless = torch.full_like(nothing, torch.inf)
    goal = -endless if goal is None else goal
    work = _Work(
        torch.arange(n), rows, anchor, radius, value, error, goal, layers,
        [list(layer.start()) for layer in layers],
        [[(torch.zeros_like(q), torch.zeros_like(q)) for q in (p.scale,) * 3] for p in layers],
        endless, endless.clone(), nothing.clone(),
    )  # fmt: skip
    done: list[_Work] = []
    count = n

    def left(work: _Work, stay: Tensor) -> _Work:
        if bool(stay.all()):
            return work
        done.append(_taken(work, ~stay))
        return _taken(work, stay)

    work = work.tried(network)
    work = left(work, work.open)
    if known is not None and len(work.index):
        for index in known.near(work.multipliers.place, _CANDIDATES):
            trial = work.started(known.take(index)).tried(network)
            wins = (trial.best < work.best).unsqueeze(1)
            free = [
                [torch.where(wins, p, q) for p, q in zip(one, two, strict=True)]
                for one, two in zip(trial.free, work.free, strict=True)
            ]
            work = replace(trial, free=free, mu=None)
            count += len(work.index)
        work = left(work, work.open)
    before, first = work.best, len(done)
    for step in range(1, steps + 1):
        if not len(work.index):
            break
        work = work.tried(network, step)
        count += len(work.index)
        if step % _CHECK == 0:
            stay = work.open
            if step > 2 * _CHECK:
                rest = torch.where(work.goal.isfinite(), work.best - work.goal, 0.0)
                stay &= before - work.best >= _STALLED / steps * rest
            before = work.best[stay]
            work = left(work, stay)
    whole = [*done, work]
    improved = functools.reduce(Multipliers.joined, (w.multipliers for w in whole[first:]))
    order = torch.cat([w.index for w in whole]).argsort()
    constant, curvature = (
        torch.cat([getattr(w, name) for w in whole])[order] for name in ("constant", "curvature")
    )
    return Quadratic(constant, curvature, improved, count)


def _forward_error(
    network: Network, rows: Tensor, levels: Tensor, anchor: Tensor, a: list[Tensor]
) -> Tensor:
    """Rounding of the margin at the anchor, (n,)."""
    slack, first = network.slack, network.weights[0].abs()
    error = slack * (network.size + anchor.abs() @ first.T)
    for k, (act, at) in enumerate(zip(network.acts, a, strict=True)):
        value = act(at)[0].abs()
        error = max(map(abs, act.slopes)) * error
        if k + 1 < len(network.weights):
            w = network.weights[k + 1].abs()
            error = error @ w.T + slack * (value @ w.T + network.biases[k + 1].abs())
        else:
            error = (error * rows.abs()).sum(1)
            error = error + slack * ((value * rows.abs()).sum(1) + levels.abs())
    return error


def _eliminated(
    network: Network, layers: list[_Layer], free: list[list[Tensor]], rows: Tensor
) -> tuple[list[_Pass], Tensor, Tensor, Tensor, Tensor]:
    """All e's eliminated: constant, gradient (n, r), Hessian (n, r, r) in d - anchor, its size."""
    const = torch.zeros(len(rows), dtype=torch.float64)
    passes: list[_Pass] = []
    linear, square = rows, None
    size = torch.zeros_like(const)
    for k in range(len(layers) - 1, -1, -1):
        layer, w = layers[k], network.weights[k]
        s, (low, high) = layer.around.slope, layer.around.secant
        level, steep = layer.line
        if square is not None:
            _dominate(layer, free[k], square)
        t, eta, kappa, bend = values = layer.values(*free[k])
        b0 = linear - eta - kappa
        const = const + (kappa * level).sum(1)
        diagonal = eta * bend
        g = s * linear + kappa * steep
        if square is None:
            diagonal = diagonal + 0.5 * t * (high - low).square()
            g = g + 0.5 * (low + high) * b0
            const = const + (0.25 * b0.square() / t).sum(1)
            passes.append(_Pass(layer, values, 0.5 * (low + high), 0.5 * b0 / t))
            inner = (w.T * diagonal.unsqueeze(1)) @ w
            size = (
                size
                + inner.flatten(1).norm(dim=1)
                + (w.T * diagonal.abs().unsqueeze(1) @ w).diagonal(dim1=1, dim2=2).sum(1)
            )
        else:
            diagonal = diagonal - 2.0 * t * low * high
            root = t.sqrt()
            scaled = square / (root.unsqueeze(2) * root.unsqueeze(1))
            a = -scaled
            a.diagonal(dim1=1, dim2=2).add_(2.0 - _SHIFT)
            factor, _ = torch.linalg.cholesky_ex(a)
            sw = s.unsqueeze(2) * w
            xw = (square @ sw + (t * (low + high)).unsqueeze(2) * w) / root.unsqueeze(2)
            right = torch.cat([xw, (b0 / root).unsqueeze(2)], 2)
            y = torch.linalg.solve_triangular(factor, right, upper=False)
            yw, yb = y[..., :-1], y[..., -1]
            linear_part = g @ w + (yw.transpose(1, 2) @ yb.unsqueeze(2)).squeeze(2)
            const = const + 0.5 * yb.square().sum(1)
            parts = (
                sw.transpose(1, 2) @ (square @ sw),
                (w.T * diagonal.unsqueeze(1)) @ w,
                yw.transpose(1, 2) @ yw,
            )
            inner = parts[0] + parts[1] + parts[2]
            size = sum((p.flatten(1).norm(dim=1) for p in parts), torch.zeros_like(const))
            solved = torch.linalg.solve_triangular(
                factor.transpose(1, 2), y, upper=True
            ) / root.unsqueeze(2)
            passes.append(_Pass(layer, values, solved[..., :-1], solved[..., -1]))
            square, linear = 0.5 * (inner + inner.transpose(1, 2)), linear_part
            continue
        square, linear = 0.5 * (inner + inner.transpose(1, 2)), g @ w
    assert square is not None
    return passes[::-1], const, linear, square, size


def _dominate(layer: _Layer, free: list[Tensor], square: Tensor) -> None:
    """Raise T where 2T - B is not positive definite with a margin."""
    t = (layer.base * free[0].exp()).sqrt()
    a = -square / (t.unsqueeze(2) * t.unsqueeze(1))
    a.diagonal(dim1=1, dim2=2).add_(2.0 - 0.02)
    bad = torch.linalg.cholesky_ex(a)[1].ne(0).nonzero().squeeze(1)
    if len(bad) == 0:
        return
    safe = torch.nan_to_num(-a[bad], nan=0.0, posinf=1e300, neginf=-1e300)
    top = torch.linalg.eigvalsh(safe)[:, -1] + 2.0 - 0.02  # of B, scaled
    lift = (top / 2.0).clamp_min(1e-3) * 1.4
    free[0][bad] += lift.log().clamp_min(0.02).unsqueeze(1)


def _trust_region(
    q: Tensor, g: Tensor, radius: Tensor, size: Tensor, mu: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mu > largest eigenvalue of q, near where ||(mu - q)^-1 g|| = radius; that d; g'd/2; next mu.

    The matrix that is factored lies below mu - q by more than rounding: success proves mu.
    """
    shift = _SHIFT * (size + q.flatten(1).norm(dim=1)) + 1e-30
    if mu is None:
        mu = _estimate(q, g, radius)
        for _ in range(3):
            mu = _newton(q, g, radius, shift, mu)[3]
    return _newton(q, g, radius, shift, mu)


def _newton(
    q: Tensor, g: Tensor, radius: Tensor, shift: Tensor, mu: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factor, bad = _factored(q, mu - shift)
    if bool(bad.any()):
        rows = bad.nonzero().squeeze(1)
        part = torch.nan_to_num(q[rows]), torch.nan_to_num(g[rows])
        mu = mu.index_copy(0, rows, _secular(*part, radius[rows], torch.nan_to_num(shift[rows])))
        factor, bad = _factored(q, mu - shift)
    y = torch.linalg.solve_triangular(factor, g.unsqueeze(2), upper=False)
    cost = torch.where(bad, torch.inf, 0.5 * y.square().sum((1, 2)))
    d = torch.linalg.solve_triangular(factor.transpose(1, 2), y, upper=True)
    z = torch.linalg.solve_triangular(factor, d, upper=False)
    length = d.squeeze(2).norm(dim=1).clamp_min(1e-300)
    # Newton's step of 1/radius - 1/length, which is nearly linear in mu.
    move = (length - radius) / radius * length.square() / z.square().sum((1, 2)).clamp_min(1e-300)
    return mu, d.squeeze(2), cost, torch.where(torch.isfinite(move), mu + move, mu)


def _estimate(q: Tensor, g: Tensor, radius: Tensor) -> Tensor:
    """A guess from above: some steps of the power method."""
    v = torch.nan_to_num(g) + 1e-9
    value = torch.zeros_like(radius)
    for _ in range(8):
        v = v / v.norm(dim=1, keepdim=True).clamp_min(1e-300)
        image = (q @ v.unsqueeze(2)).squeeze(2)
        value, v = torch.maximum(value, (image * v).sum(1)), image
    return 1.1 * value + g.norm(dim=1) / radius


def _factored(q: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors of diagonal - q, and where there is none."""
    a = -q
    a.diagonal(dim1=1, dim2=2).add_(diagonal.unsqueeze(1))
    factor, info = torch.linalg.cholesky_ex(a)
    return factor, info.ne(0) | ~torch.isfinite(factor.diagonal(dim1=1, dim2=2)).all(1)


def _secular(q: Tensor, g: Tensor, radius: Tensor, shift: Tensor) -> Tensor:
    """The multiplier itself, by bisection in the logarithm of its distance to the spectrum."""
    values, vectors = torch.linalg.eigh(torch.nan_to_num(q))
    squares = (vectors.transpose(1, 2) @ torch.nan_to_num(g).unsqueeze(2)).squeeze(2).square()
    top = values[:, -1]
    low = (4.0 * shift + 1e-12 * top.abs()).clamp_min(1e-30).log()
    high = torch.maximum(low + 1e-9, (squares.sum(1).sqrt() / radius).clamp_min(1e-30).log() + 0.1)
    goal = radius.square()
    for _ in range(30):
        middle = 0.5 * (low + high)
        gaps = (top + middle.exp()).unsqueeze(1) - values
        long = (squares / gaps.square().clamp_min(1e-300)).sum(1) > goal
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    return top + high.exp()


def _improve(
    network: Network,
    passes: list[_Pass],
    free: list[list[Tensor]],
    moments: list[list[tuple[Tensor, Tensor]]],
    moved: Tensor,
    count: int,
) -> None:
    """A step of Adam in all multipliers; each derivative is a constraint at the maximiser."""
    for k, (one, w) in enumerate(zip(passes, network.weights, strict=True)):
        d = moved @ w.T
        if one.solve.ndim == 3:
            e = (one.solve @ moved.unsqueeze(2)).squeeze(2) + one.offset
        else:
            e = one.solve * d + one.offset
        t, _, kappa, bend = one.values
        low, high = one.layer.around.secant
        level, steep = one.layer.line
        slopes = (
            t * (e - low * d) * (high * d - e),
            one.layer.scale * (0.5 * bend * d.square() - e),
            kappa * (level + steep * d - e),
        )
        moved = one.layer.around.slope * d + e
        for j, slope in enumerate(slopes):
            slope = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
            first, second = moments[k][j]
            first.mul_(_DECAY[0]).add_(slope, alpha=1.0 - _DECAY[0])
            second.mul_(_DECAY[1]).addcmul_(slope, slope, value=1.0 - _DECAY[1])
            root = (second / (1.0 - _DECAY[1] ** count)).sqrt().clamp_min(1e-30)
            free[k][j].sub_(_RATE / (1.0 - _DECAY[0] ** count) * first / root)
            if j != 1:
                free[k][j].clamp_(-30.0, 30.0)
