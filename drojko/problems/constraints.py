"""Sets that a decision must lie in: a projection each, and the linear rows that describe it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._validation import Checked, check_number, did_you_mean, floats, is_whole, shown
from drojko.exceptions import InvalidDataError
from drojko.problems.parameters import Layout

__all__ = ["Ball", "Box", "Constraint", "Nonnegative", "Region", "Simplex", "build_region"]


class Constraint(Checked):
    """A convex set of decisions: ``project`` returns its nearest point, in any shape."""

    _shapes = {"params": "* finite"}

    def project(self, params: Tensor) -> Tensor:
        """Nearest point of the set."""
        raise NotImplementedError


def _entries(name: str, side: str, value: Any, n: int) -> np.ndarray:
    array = floats(value, f"{name}: {side}").ravel()
    if not is_whole(n, 1):
        raise InvalidDataError(f"{name}: n={shown(n)}; expected a number of entries")
    if array.size not in (1, n):
        raise InvalidDataError(f"{name}: {side} has {array.size} entries; expected 1 or {n}")
    return np.broadcast_to(array, (n,))


def _range(name: str, lower: Any, upper: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    low = _entries(name, "lower", -math.inf if lower is None else lower, n)
    high = _entries(name, "upper", math.inf if upper is None else upper, n)
    if not (low <= high).all() or (low == math.inf).any() or (high == -math.inf).any():
        raise InvalidDataError(f"{name}: lower exceeds upper, or one of them is NaN")
    return low, high


def _check_range(name: str, lower: Any, upper: Any) -> None:
    """As far as the number of decisions is not known yet."""
    sides = [1 if side is None else max(floats(side, name).size, 1) for side in (lower, upper)]
    _range(name, lower, upper, max(sides))


@dataclass(frozen=True, eq=False)
class Box(Constraint):
    r"""Decisions with :math:`l \le \theta \le u`.

    Parameters
    ----------
    lower, upper : float or array, default=None
        In the units of the decision; None or infinity: no bound.

    Examples
    --------
    >>> Box(0.0, 1.0).project(torch.tensor([-1.0, 0.5, 2.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    lower: Any = None
    upper: Any = None

    def __post_init__(self) -> None:
        _check_range("Box", self.lower, self.upper)

    def project(self, params: Tensor) -> Tensor:
        """Clip to the bounds."""
        low, high = _range("Box", self.lower, self.upper, params.numel())
        flat = params.reshape(-1)
        low, high = (torch.tensor(side).to(flat) for side in (low, high))
        return torch.clamp(flat, low, high).view_as(params)


@dataclass(frozen=True)
class Nonnegative(Box):
    r"""Decisions with :math:`\theta \ge 0`.

    Examples
    --------
    >>> Nonnegative().project(torch.tensor([-1.0, 0.5]))
    tensor([0.0000, 0.5000])
    """

    lower: Any = field(default=0.0, init=False, repr=False)
    upper: Any = field(default=None, init=False, repr=False)


@dataclass(frozen=True, eq=False)
class Simplex(Constraint):
    r"""Decisions with :math:`\sum_j \theta_j = \mathrm{total}` and :math:`l \le \theta \le u`.

    Parameters
    ----------
    total : float, default=1.0
    lower, upper : float or array, default 0 and None
        Bounds of each entry. ``lower=-inf`` allows short positions.

    Examples
    --------
    >>> Simplex().project(torch.tensor([0.9, 0.5, -1.0]))
    tensor([0.7000, 0.3000, 0.0000])
    """

    total: float = 1.0
    lower: Any = 0.0
    upper: Any = None

    def __post_init__(self) -> None:
        check_number("Simplex: total", self.total)
        _check_range("Simplex", self.lower, self.upper)

    def limits(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Bounds as arrays; raises `InvalidDataError` where no decision meets them."""
        low, high = _range("Simplex", self.lower, self.upper, n)
        slack = 1e-12 * max(1.0, abs(self.total))
        if not (low.sum() - slack <= self.total <= high.sum() + slack):
            raise InvalidDataError(
                f"Simplex: {n} entries between {low.min():g} and {high.max():g} cannot sum to "
                f"{self.total:g}"
            )
        return low, high

    def project(self, params: Tensor) -> Tensor:
        """clip(theta - tau, l, u) with the tau that gives the total: a root of a monotone sum."""
        low, high = self.limits(params.numel())
        v = params.detach().reshape(-1).double().cpu().numpy()
        if not np.isfinite(low).any() and not np.isfinite(high).any():
            return params + (self.total - params.sum()) / params.numel()
        # The sum is piecewise linear in tau with kinks where an entry meets a bound.
        kinks = np.concatenate([v - low, v - high])
        kinks = np.unique(kinks[np.isfinite(kinks)])
        sums = np.clip(v[None] - kinks[:, None], low, high).sum(1)  # falls along the kinks
        above = int(np.searchsorted(-sums, -self.total))
        left = kinks[above - 1] if above > 0 else kinks[0] - 1.0
        right = kinks[above] if above < len(kinks) else kinks[-1] + 1.0
        at = [float(np.clip(v - tau, low, high).sum()) for tau in (left, right)]
        tau = left + (self.total - at[0]) * (right - left) / ((at[1] - at[0]) or math.inf)
        return torch.tensor(np.clip(v - tau, low, high)).to(params).view_as(params)


@dataclass(frozen=True, eq=False)
class Ball(Constraint):
    r"""Decisions with :math:`\|\theta - c\|_2 \le \mathrm{radius}`.

    Parameters
    ----------
    radius : float
        Positive, in the units of the decision.
    centre : float or array, default=0.0

    Examples
    --------
    >>> Ball(1.0).project(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    radius: float
    centre: Any = 0.0

    def __post_init__(self) -> None:
        radius = check_number("Ball: radius", self.radius, above=0)
        object.__setattr__(self, "radius", radius)
        if not np.isfinite(floats(self.centre, "Ball: centre")).all():
            raise InvalidDataError("Ball: centre contains NaN or infinity; expected numbers")

    def middle(self, n: int) -> np.ndarray:
        """The centre as an array, for decisions of n numbers."""
        return _entries("Ball", "centre", self.centre, n)

    def project(self, params: Tensor) -> Tensor:
        """Shrink towards the centre."""
        centre = torch.tensor(self.middle(params.numel())).to(params).view_as(params)
        if not bool(torch.isfinite(centre).all()):
            raise InvalidDataError(f"Ball: centre={shown(self.centre)} overflows in {params.dtype}")
        move = params - centre
        return centre + move * (self.radius / move.norm().clamp_min(self.radius))


@dataclass(frozen=True)
class Region:
    """All constraints on the flat vector: a projection, and rows for cutting planes.

    ``rows`` is False when a projection has no description by rows and cones; ``joined`` are the
    variables whose entries a projection ties together.
    """

    parts: tuple[tuple[slice, tuple[int, ...], Callable[[Tensor], Tensor]], ...]
    lower: np.ndarray
    upper: np.ndarray
    sums: tuple[tuple[slice, float], ...]
    balls: tuple[tuple[slice, np.ndarray, float], ...]
    joined: tuple[slice, ...]
    rows: bool

    def project(self, flat: Tensor) -> Tensor:
        """Nearest decision that meets every constraint."""
        flat = flat.clone()
        for where, shape, project in self.parts:
            found = project(flat[where].view(shape))
            plain = isinstance(found, Tensor) and not found.is_complex() and not found.is_meta
            if not plain or found.shape != shape or not bool(torch.isfinite(found).all()):
                raise InvalidDataError(
                    f"the constraint's projection returned {shown(found)}; expected a finite "
                    f"tensor of shape {shape}, that of the decision"
                )
            flat[where] = found.detach().reshape(-1)
        return flat

    def nearest(self, point: np.ndarray) -> np.ndarray:
        """`project` of an array."""
        return self.project(torch.from_numpy(point)).numpy()

    def recession(self, move: np.ndarray) -> np.ndarray:
        """A direction near ``move`` that never leaves the rows and cones."""
        move = np.array(move)
        move[np.isfinite(self.lower)] = np.maximum(move[np.isfinite(self.lower)], 0.0)
        move[np.isfinite(self.upper)] = np.minimum(move[np.isfinite(self.upper)], 0.0)
        for where, _ in self.sums:
            part = move[where]
            free = np.isinf(self.lower[where]) & np.isinf(self.upper[where])
            if free.any():
                part[free] -= part.sum() / free.sum()
            else:  # scaled to cancel
                up, down = part.clip(min=0.0).sum(), part.clip(max=0.0).sum()
                part *= np.where(part > 0, min(1.0, -down / up if up > 0 else 0.0), 1.0)
                part *= np.where(part < 0, min(1.0, -up / down if down < 0 else 0.0), 1.0)
        for where, _, _ in self.balls:
            move[where] = 0.0
        return move


_NAMES = {"simplex": Simplex, "nonnegative": Nonnegative}


def _constraint(given: Any) -> Any:
    if isinstance(given, str) and given in _NAMES:
        return _NAMES[given]()
    if isinstance(given, tuple) and len(given) == 3 and given[0] == "box":
        return Box(given[1], given[2])
    if isinstance(given, Constraint) or callable(given):
        return given
    raise InvalidDataError(
        f"constraint={shown(given)}; expected 'simplex', 'nonnegative', ('box', lower, upper), an "
        "object of drojko.problems (Box, Nonnegative, Simplex, Ball), a function that projects, or "
        "a dict of these from the names of params"
    )


def build_region(constraint: Any, layout: Layout) -> Region:
    """Constraints of all variables; a dict gives one per name, a list one per position."""
    where = layout.slices
    size = max(part.stop for part in where.values())
    if constraint is None:
        given: dict[str, Any] = {}
    elif isinstance(constraint, dict):
        given = {str(name): value for name, value in constraint.items() if value is not None}
    elif isinstance(constraint, list):
        given = {str(i): value for i, value in enumerate(constraint) if value is not None}
    elif len(where) == 1:
        given = {layout.names[0]: constraint}
    else:
        raise InvalidDataError(
            f"constraint={constraint!r} and params hold {list(where)}: give a dict from these "
            "names to constraints"
        )
    if unknown := sorted(set(given) - set(where)):
        raise InvalidDataError(
            f"constraint names {unknown[0]!r}; {did_you_mean(unknown[0], where, 'params are ')}"
        )
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    low, high = np.full(size, -math.inf), np.full(size, math.inf)
    parts, sums, balls, joined, rows = [], [], [], [], True
    for name, value in given.items():
        part, n = where[name], where[name].stop - where[name].start
        item = _constraint(value)
        project = item.project if isinstance(item, Constraint) else item
        parts.append((part, shapes[name], project))
        if not isinstance(item, Box):
            joined.append(part)
        if isinstance(item, Box):
            low[part], high[part] = _range("Box", item.lower, item.upper, n)
        elif isinstance(item, Simplex):
            low[part], high[part] = item.limits(n)
            sums.append((part, float(item.total)))
        elif isinstance(item, Ball):
            balls.append((part, item.middle(n), float(item.radius)))
        else:
            rows = False
    return Region(tuple(parts), low, high, tuple(sums), tuple(balls), tuple(joined), rows)
