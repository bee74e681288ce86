"""Numerics that many rooms need: a monotone root, smoothed kinks, Adam.

Building any optimiser of torch loads its compiler stack (a second of import time per worker);
Adam's rule itself is a few lines, and an explicit state can be checkpointed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Adam", "Kink", "batches", "cosine", "endless", "root", "separated", "standard_error",
]  # fmt: skip


def root(
    function: Callable[[float], float | tuple[float, float]],
    start: float,
    *,
    slope: float = 1.5,
    low: float = -math.inf,
    high: float = math.inf,
    tol: float = 1e-13,
) -> float:
    """The zero of an increasing function: Newton or secant steps inside a shrinking bracket.

    Plateaus say nothing to a secant: without a bracket a step that hardly changes the value is
    followed by a longer one, and inside a bracket every other step halves it once eight steps
    have not settled (jumps, or rounding).

    Parameters
    ----------
    function : callable
        Its value, or (value, slope); about linear with slope of order 1 for secants, as is the
        logarithm of one quantity in that of another.
    start, slope : float
        First point, and a guess of the slope there.
    low, high : float
        A bracket, where one is known.
    tol : float
        Absolute value of the function that counts as zero.

    Examples
    --------
    >>> round(root(lambda t: math.expm1(t) - 1.0, 0.0), 9)
    0.693147181
    >>> round(root(lambda t: (t**3 - 8.0, 3.0 * t**2), 1.0, low=0.0, high=9.0), 9)
    2.0
    """
    t, previous, step = start, None, 1.0
    for iteration in range(400):
        found = function(t)
        value, known = found if isinstance(found, tuple) else (found, None)
        if abs(value) <= tol:
            break
        low, high = (t, high) if value < 0 else (low, t)
        flat = False
        if known is not None:
            slope = known if known > 0.0 else slope
        elif previous is not None and t != previous[0]:
            secant = (value - previous[1]) / (t - previous[0])
            slope = secant if 1e-3 < secant < 1e3 else slope
            flat = abs(value) > 0.5 * abs(previous[1])
        previous = (t, value)
        move = -value / slope
        if math.isinf(high - low):  # no bracket yet: steps that may grow
            size = min(abs(move), 4.0 * step)
            size = max(size, step) if flat else size
            move = math.copysign(size, move)
            step = 2.0 * max(abs(move), step)
            after = t + move
        else:
            after = t + move
            if not low < after < high or (iteration >= 8 and iteration % 2 == 1):
                after = 0.5 * (low + high)
        if min(abs(after - t), high - low) <= 4e-16 * max(1.0, abs(t)):
            break
        t = after
    return t


def endless(value: Callable[[float], float], decades: int = 12) -> bool:
    """Whether a function is negative at 1 and at least five times as low at each power of ten.

    Of a convex function along a ray that is a fall without end, as far as numbers go; others may
    turn later.

    >>> endless(lambda t: 1.0 - 2.0 * t), endless(lambda t: 1e-9 * t * t - 2.0 * t)
    (True, False)
    """
    before = value(1.0)
    for power in range(1, decades + 1):
        now = value(10.0**power) if before < 0.0 else math.inf
        if not now <= 5.0 * before < 0.0:
            return False
        before = now
    return True


def standard_error(values: Any, weights: Any) -> float:
    r"""Standard error of a weighted mean, :math:`\sqrt{\sum w_i^2 (v_i - \sum w_j v_j)^2}`.

    Parameters
    ----------
    values, weights : array or tensor of shape (n,)
        Weights sum to 1.

    Examples
    --------
    >>> standard_error([0.0, 2.0], [0.5, 0.5])
    0.7071067811865476
    """
    v, w = (
        np.asarray(part.detach().cpu() if isinstance(part, torch.Tensor) else part, np.float64)
        for part in (values, weights)
    )
    return math.sqrt(float(w**2 @ (v - w @ v) ** 2))


@dataclass
class Adam:
    r"""Adam, :math:`\theta \leftarrow \theta - \eta\,\hat m / (\sqrt{\hat v} + \epsilon_t)`.

    m and v are exponential means of the gradient and its square, hats remove their start at
    zero, and epsilon_t is 1e-8 divided by the root of v's correction. Write the gradient into
    ``gradient``, then call ``step``. Source: Kingma, Ba (2015, arXiv 1412.6980), in the form at
    the end of their section 2.

    Examples
    --------
    >>> theta = torch.tensor([1.0, -2.0], dtype=torch.float64)
    >>> adam = Adam.like(theta)
    >>> _ = adam.gradient.copy_(torch.tensor([5.0, -0.1]))
    >>> adam.step(theta, rate=0.1)
    >>> [round(t, 6) for t in theta.tolist()]  # the first step has the length of the rate
    [0.9, -1.9]
    """

    gradient: Tensor
    first: Tensor
    second: Tensor
    count: int = 0
    decay: tuple[float, float] = (0.9, 0.999)

    @staticmethod
    def like(flat: Tensor) -> Adam:
        """Zero moments for a parameter vector."""
        return Adam(torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros_like(flat))

    def step(self, flat: Tensor, rate: float) -> None:
        """One step along ``self.gradient`` with learning rate ``rate``."""
        b1, b2 = self.decay
        self.count += 1
        self.first.mul_(b1).add_(self.gradient, alpha=1 - b1)
        self.second.mul_(b2).addcmul_(self.gradient, self.gradient, value=1 - b2)
        scale = math.sqrt(1 - b2**self.count) / (1 - b1**self.count)
        flat.addcdiv_(self.first, self.second.sqrt().add_(1e-8), value=-rate * scale)


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of mini-batches for ever: a new order once fewer than ``size`` of n rows are left.

    Examples
    --------
    >>> found = batches(5, 2, torch.Generator().manual_seed(0))
    >>> len(set(torch.cat([next(found), next(found)]).tolist()))
    4
    """
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n // size * size].split(size)


def cosine(progress: float, least: float = 0.0) -> float:
    """Share of a learning rate at a progress in [0, 1]: from 1 to ``least`` along a cosine.

    >>> cosine(0.0), round(cosine(1.0, 0.05), 6)
    (1.0, 0.05)
    """
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Kink:
    r"""Smoothed positive parts of x (mu > 0), with a dual w each, by default the primal x / e.

    .. math:: (x)_+ \approx \tfrac12\left(x + \sqrt{x^2 + 4\mu^2}\right)
              = \max_{0 < q < 1}\; q x + \mu\,(\log q + \log(1-q)) + \text{const}

    Newton's method on the smoothed problem converges in few steps at any mu when the curvature
    takes a dual w in [-1, 1] of each kink, updated by its own linearised equation w e = x (T. F.
    Chan, G. H. Golub, P. Mulet, 1999, A nonlinear primal-dual method for total variation-based
    image restoration); (1 + w) / 2 is the share of the slope beyond the kink.

    Examples
    --------
    >>> kink = Kink(np.array([-1.0, 0.0, 2.0]), 0.1)
    >>> kink.value.round(3), kink.slope.round(3)
    (array([0.01 , 0.1  , 2.005]), array([0.01 , 0.5  , 0.998]))
    """

    def __init__(self, x: np.ndarray, mu: float, dual: np.ndarray | None = None) -> None:
        with np.errstate(over="ignore"):  # a step far too long
            self.root = np.sqrt(x * x + 4.0 * mu * mu)
        self.x, self.tilt = x, x / self.root
        # The smaller of (root + x) / 2 and (root - x) / 2, without cancellation.
        self.small = 2.0 * mu * mu / (self.root + np.abs(x))
        self.dual = self.tilt if dual is None else dual

    @property
    def value(self) -> np.ndarray:
        """Smoothed positive part, above (x)_+ by at most mu."""
        return np.maximum(self.x, 0.0) + self.small

    @property
    def slope(self) -> np.ndarray:
        """Its derivative, in (0, 1)."""
        low = self.small / self.root
        return np.where(self.x > 0, 1.0 - low, low)

    @property
    def second(self) -> np.ndarray:
        """Primal-dual curvature; the second derivative where w is the primal dual."""
        return 0.5 * (1.0 - self.dual * self.tilt) / self.root

    @property
    def share(self) -> np.ndarray:
        """The slope that the dual stands for, in [0, 1]."""
        return 0.5 * (1.0 + self.dual)

    def turned(self, dual: np.ndarray) -> Kink:
        """The same kinks with other duals."""
        new = copy.copy(self)
        new.dual = dual
        return new

    def moved(self, new: Kink, t: float, far: float = math.inf) -> np.ndarray:
        """Dual after a step of length t that took the kinks to those of ``new``.

        Far from a kink a share is at most ``far`` times that of the slope, which is tiny there.
        """
        towards = t * (self.tilt - self.dual)
        with np.errstate(over="ignore"):
            along = (1.0 - self.dual * self.tilt) / self.root * (new.x - self.x)
        dual = np.clip(self.dual + towards + along, -1.0, 1.0)
        if far < math.inf:
            most = np.minimum(2.0 * far * new.small / new.root, 2.0) - 1.0
            np.copyto(dual, np.where(new.x < 0.0, np.minimum(dual, most), np.maximum(dual, -most)))
        return dual


def telling(X: np.ndarray, y: np.ndarray, classes: int) -> list[int]:
    """Columns of X (n, d) that tell the target exactly: its classes 0 ... K - 1, or its value.

    Rows are too few below 20 to say so.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.arange(30) % 2
    >>> telling(np.column_stack([np.sin(np.arange(30)), 5.0 - 2.0 * y]), y, 2)
    [1]
    """
    if len(X) < 20:
        return []
    found = list(range(X.shape[1]))
    for n in sorted({min(len(X), 1_000), len(X)}):  # few columns stand the first look
        part, target = np.asarray(X[:n][:, found], dtype=np.float64), y[:n]
        if classes:
            present = [part[target == k] for k in range(classes) if (target == k).any()]
            if len(present) < 2:
                return []
            low = np.stack([rows.min(axis=0) for rows in present])
            high = np.stack([rows.max(axis=0) for rows in present])
            apart = (np.diff(np.sort(low, axis=0), axis=0) > 0).all(axis=0)
            kept = (low == high).all(axis=0) & apart
        else:
            both = part - part.mean(axis=0), target - target.mean()
            sizes = np.sqrt((both[0] ** 2).sum(axis=0) * (both[1] ** 2).sum())
            kept = (sizes > 0) & (np.abs(both[1] @ both[0]) >= (1.0 - 1e-12) * sizes)
        found = [column for column, keep in zip(found, kept, strict=True) if keep]
    return found


def separated(outputs: np.ndarray, y: np.ndarray) -> bool:
    """Whether outputs (n,), (n, 1) or (n, K) put every row on the side of its class y (n,)."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return bool((outputs.reshape(-1) * (2.0 * y - 1.0) > 0).all())
    rows, others = np.arange(len(y)), np.array(outputs)
    others[rows, y] = -math.inf
    return bool((outputs[rows, y] > others.max(axis=1)).all())
