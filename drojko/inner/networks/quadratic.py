r"""Quadratic upper bounds of a margin on a ball, by duality, anchored at a point of it.

With d the displacement, D_l the change of layer l's pre-activations from the anchor and
e_l = h - h* - S D_l what a layer adds to its linear part, every unit satisfies

.. math:: (e - \alpha D)(\beta D - e) \ge 0, \quad \tfrac12 m D^2 \le e \le \tfrac12 M D^2,
          \quad e \le C + k D

(or e >= C + k D) and, between a line above and one below, (C + k D - e)(e - c - q D) >= 0. Their
combination with multipliers T, eta, kappa, U is for each unit

.. math:: -P e^2 + x e D - z D^2 - l e + g D + \text{const}
.. math:: P = T + U, \quad x = T(\alpha + \beta) + U(k + q), \quad
          z = T \alpha\beta + U k q - \tfrac12 \eta M,
.. math:: l = \eta + \kappa - U(C + c), \quad g = \kappa k - U(C q + c k), \quad
          \text{const} = \kappa C - U C c,

and is maximised over all e in closed form, last layer first: a layer whose effect on the margin is
at most b'D h + D h'B D h/2 leaves

.. math:: A = 2P - B \succ 0, \quad b_0 = b - l, \quad X = B S + x,
.. math:: \tfrac12 D^\top (S B S - 2z + X^\top A^{-1} X) D
          + (S b + g + X^\top A^{-1} b_0)^\top D + \tfrac12 b_0^\top A^{-1} b_0 + \text{const}.

Any multipliers are a proof. At the maximiser the derivative in a multiplier is its constraint, so
that improving them takes no automatic differentiation. Sectors after Fazlyab et al. (2019,
arXiv 1906.04893), products of lines after Raghunathan et al. (2018, arXiv 1811.01057); anchoring
and curvature are our own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko.inner.networks.constraints import PRODUCTS, Layer, Multipliers, Units, descend, still
from drojko.inner.networks.nested import taken
from drojko.inner.networks.network import Network

__all__ = ["SHIFT", "Quadratic", "forward_error", "quadratic_bound", "region_bytes", "trust_region"]

#: How many starts from other regions are tried; after how many steps regions may leave, and below
#: which share of the way to the goal, over all steps, they do.
_CANDIDATES, _CHECK, _STALLED = 2, 4, 0.7
#: Subtracted from matrices before they are factored: far above rounding, so that what is computed
#: with them is an upper bound of the quadratic forms of the exact ones.
SHIFT = 1e-9
#: Least pivot of a layer that is dominated with a margin; steps towards a first curvature.
_THIN, _NEWTON = 0.02, 1


@dataclass(frozen=True)
class Quadratic:
    r"""margin <= constant + curvature/2 * \|d\|^2 on the ball; shape (n,) each.

    ``multipliers`` of the regions that were improved; ``work``: how often any was tried.
    """

    constant: Tensor
    curvature: Tensor
    multipliers: Multipliers | None
    work: int


@dataclass
class _Pass:
    """A layer after elimination: what finds the maximising e again."""

    layer: Layer
    units: Units
    push: Tensor  # e = push * D + offset; with a factor (factor')^-1 (push @ moved + offset) / root
    offset: Tensor
    factor: Tensor | None = None
    inverse: Tensor | None = None  # of the roots of P

    def adding(self, moved: Tensor, d: Tensor) -> Tensor:
        """The maximising e where the layer before has moved, and with it D."""
        if self.factor is None or self.inverse is None:
            return self.push * d + self.offset
        right = (self.push @ moved.unsqueeze(2)) + self.offset.unsqueeze(2)
        e = torch.linalg.solve_triangular(self.factor.transpose(1, 2), right, upper=True)
        return e.squeeze(2) * self.inverse


def region_bytes(network: Network) -> int:
    """Rough memory of one region while its multipliers are improved."""
    widths = [w.shape[0] for w in network.weights]
    squares = sum(h * h for h in [*widths[:-1], network.dim])
    return 8 * (10 * squares + 4 * sum(w.numel() for w in network.weights) + 160 * sum(widths))


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
    along: Tensor
    layers: list[Layer]
    free: list[Tensor]
    moments: list[tuple[Tensor, Tensor]]
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
        const, g = const + self.value, g + self.along
        anchor, radius = self.anchor, self.radius
        qd = (q @ anchor.unsqueeze(2)).squeeze(2)
        c = const - (g * anchor).sum(1) + 0.5 * (qd * anchor).sum(1)
        g0 = g - qd
        far = anchor.norm(dim=1) + radius
        rounding = 4.0 * self.error + 1e-11 * (
            self.value.abs() + const.abs() + g.norm(dim=1) * far + size * far.square()
        )
        used, d, cost, mu = trust_region(q, g0, radius, size, self.mu)
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
        free = [layer.at(own) for layer, own in zip(self.layers, start.layers, strict=True)]
        return replace(self, free=free, mu=None)

    @property
    def multipliers(self) -> Multipliers:
        pairs = zip(self.layers, self.free, strict=True)
        layers = tuple(layer.multipliers(free) for layer, free in pairs)
        place = self.layers[-1].around.slope * self.rows
        return Multipliers(layers, place)


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
    along: Tensor | None = None,
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
    along : Tensor of shape (n, r), optional
        What the displacement adds by itself, ``along @ d``.
    """
    a, h = network.forward(anchor)
    along = torch.zeros_like(anchor) if along is None else along
    value = (rows * h).sum(1) + levels + (along * anchor).sum(1)
    error = forward_error(network, rows, levels, anchor, a)
    error = error + network.slack * (along * anchor).abs().sum(1)
    arounds = [
        act.around(low - network.slack * low.abs(), high + network.slack * high.abs(), at)
        for act, (low, high), at in zip(network.acts, intervals, a, strict=True)
    ]
    layers: list[Layer] = []
    pull = rows
    for around, w in zip(arounds[::-1], network.weights[::-1], strict=True):
        layers.insert(0, Layer.of(around, pull))
        pull = (around.slope * pull) @ w
    n = len(rows)
    nothing = torch.zeros(n, dtype=torch.float64)
    endless = torch.full_like(nothing, torch.inf)
    goal = -endless if goal is None else goal
    free = [layer.start(k + 1 == len(layers)) for k, layer in enumerate(layers)]
    work = _Work(
        torch.arange(n), rows, anchor, radius, value, error, goal, along, layers,
        free,
        still(free),
        endless, endless.clone(), nothing.clone(),
    )  # fmt: skip
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    improved: list[Multipliers] = []
    count = n

    def left(work: _Work, stay: Tensor, steps: int) -> _Work:
        if bool(stay.all()):
            return work
        ended = ~stay
        done.append((work.index[ended], work.constant[ended], work.curvature[ended]))
        if steps:
            improved.append(work.multipliers.take(ended))
        return taken(work, stay)

    work = work.tried(network)
    work = left(work, work.open, 0)
    if known is not None and len(work.index):
        for index in known.near(work.multipliers.place, _CANDIDATES):
            trial = work.started(known.take(index)).tried(network)
            wins = (trial.best < work.best)[:, None, None]
            pairs = zip(trial.free, work.free, strict=True)
            free = [torch.where(wins, one, two) for one, two in pairs]
            work = replace(trial, free=free, mu=None)
            count += len(work.index)
        work = left(work, work.open, 0)
    before = work.best
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
            work = left(work, stay, step)
    done.append((work.index, work.constant, work.curvature))
    improved.append(work.multipliers)
    index, constant, curvature = (torch.cat(parts) for parts in zip(*done, strict=True))
    order = index.argsort()
    known = functools.reduce(Multipliers.joined, improved)
    return Quadratic(constant[order], curvature[order], known, count)


def forward_error(
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
    network: Network, layers: list[Layer], free: list[Tensor], rows: Tensor
) -> tuple[list[_Pass], Tensor, Tensor, Tensor, Tensor]:
    """All e's eliminated: constant, gradient (n, r), Hessian (n, r, r) in d - anchor, its size."""
    const = torch.zeros(len(rows), dtype=torch.float64)
    passes: list[_Pass] = []
    linear, square = rows, None
    size = torch.zeros_like(const)
    for k in range(len(layers) - 1, -1, -1):
        layer, w, s = layers[k], network.weights[k], layers[k].around.slope
        factor, inverse = None, None
        if square is not None:
            factor, failed, inverse = _dominated(layer, free[k], square)
            const = torch.where(failed == 0, const, torch.inf)  # no bound without a factor
        units = layer.combined(free[k])
        b0 = linear - units.linear
        const = const + units.const
        g = s * linear + units.along
        if factor is None:
            ratio = 0.5 * units.mixed / units.square
            diagonal = ratio * units.mixed - 2.0 * units.flat
            g = g + ratio * b0
            const = const + (0.25 * b0.square() / units.square).sum(1)
            passes.append(_Pass(layer, units, ratio, 0.5 * b0 / units.square))
            spread = (ratio * units.mixed).abs() + 2.0 * units.spread
            size = size + (spread @ w.square()).sum(1)
            # Symmetric up to rounding: of all that follows the lower half is read.
            square, linear = (w.T * diagonal.unsqueeze(1)) @ w, g @ w
            continue
        assert square is not None
        assert inverse is not None
        bsw = square @ (s.unsqueeze(2) * w)
        right = torch.empty(*bsw.shape[:2], bsw.shape[2] + 1, dtype=torch.float64)
        torch.addcmul(bsw, units.mixed.unsqueeze(2), w, out=right[..., :-1])
        right[..., -1] = b0
        y = torch.linalg.solve_triangular(factor, right.mul_(inverse.unsqueeze(2)), upper=False)
        yw, yb = y[..., :-1], y[..., -1]
        linear = g @ w + (yw.transpose(1, 2) @ yb.unsqueeze(2)).squeeze(2)
        const = const + 0.5 * yb.square().sum(1)
        both = bsw.mul_(s.unsqueeze(2)).addcmul_((-2.0 * units.flat).unsqueeze(2), w)
        parts = w.T @ both, yw.transpose(1, 2) @ yw
        # The first is a sum, of which neither part is larger than it and the other.
        size = sum(map(torch.linalg.matrix_norm, parts), 4.0 * units.spread @ w.square().sum(1))
        passes.append(_Pass(layer, units, yw, yb, factor, inverse))
        square = parts[0].add_(parts[1])
    assert square is not None
    return passes[::-1], const, linear, square, size


def _dominated(layer: Layer, free: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of 2P - B scaled by the roots of P, where there is none, and one over those roots.

    Products are raised where it is not positive definite with a margin.
    """

    def factored(base: Tensor, free: Tensor, square: Tensor) -> tuple[Tensor, ...]:
        inverse = (base * free[:, :PRODUCTS].exp().sum(1)).rsqrt()
        a = (square * -inverse.unsqueeze(2)).mul_(inverse.unsqueeze(1))
        a.diagonal(dim1=1, dim2=2).add_(2.0 - SHIFT)
        return a, *torch.linalg.cholesky_ex(a), inverse

    a, factor, failed, inverse = factored(layer.base, free, square)
    thin = ~(factor.diagonal(dim1=1, dim2=2).square().amin(1) > _THIN) | failed.ne(0)
    bad = thin.nonzero().squeeze(1)
    if len(bad) == 0:
        return factor, failed, inverse
    safe, most = torch.nan_to_num(-a[bad]), 1e-8 * torch.finfo(a.dtype).max
    top = torch.linalg.eigvalsh(safe.clamp(-most, most))[:, -1] + 2.0 - _THIN  # of B, scaled
    lift = (top / 2.0).clamp_min(1e-3) * 1.4
    free[bad, :PRODUCTS] += lift.log().clamp_min(0.02)[:, None, None]
    again = factored(layer.base[bad], free[bad], square[bad])
    for whole, part in zip((factor, failed, inverse), again[1:], strict=True):
        whole[bad] = part
    return factor, failed, inverse


def trust_region(
    q: Tensor, g: Tensor, radius: Tensor, size: Tensor, mu: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mu > largest eigenvalue of q, near where ||(mu - q)^-1 g|| = radius; that d; g'd/2; next mu.

    The matrix that is factored lies below mu - q by more than rounding: success proves mu.
    """
    shift = SHIFT * (size + torch.linalg.matrix_norm(q)) + 1e-30
    if mu is None:
        mu = _estimate(q, g, radius)
        for _ in range(_NEWTON):
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
    free: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    moved: Tensor,
    count: int,
) -> None:
    """A step of Adam in all multipliers; each derivative is a constraint at the maximiser."""
    for one, w, own, past in zip(passes, network.weights, free, moments, strict=True):
        d = moved @ w.T
        e = one.adding(moved, d)
        descend(one.layer, one.units, own, past, d, e, count)
        moved = one.layer.around.slope * d + e
