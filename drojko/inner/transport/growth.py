r"""Whether a worst case is finite at all: a loss along rays, against the squared distance.

.. math:: g = \limsup_{s \to \infty} \frac{\ell(x + s d)}{c(x, x + s d)}

Along a ray on which g exceeds the penalty, loss - penalty * cost has no maximum; where it is
infinite the loss outgrows every penalty, so that every ball has an infinite worst case as well.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from drojko.exceptions import UnboundedRiskError
from drojko.inner.objective import Batch, Objective

__all__ = ["growth", "refuse"]

#: Distances in spreads of the data.
_DISTANCES = 10.0 ** np.arange(-3.0, 13.0)
_SETTLED = 1e6  # those from which on exponents are those of the limit ...
_ABRUPT = 6.0  # ... and what none but exponentials reach before
_ROWS, _OUTPUTS, _AXES, _RANDOM = 4, 8, 8, 4
_ASCENT, _AWAY = 12, 1e4  # steps of a direction to a steeper one, and where they are taken
_SURE = 1e-7  # relative error of a coefficient that was measured
_REFUSALS = (ArithmeticError, LookupError, RuntimeError, ValueError)
_REMEDIES = (
    "bound the columns (bounds=), make those that cannot move so far immutable, or take a set that "
    "reweights (KL, CVaR, ChiSquare) or a loss that grows more slowly"
)


def growth(objective: Objective, batches: Iterable[Batch]) -> float:
    """The largest g of the rays that were tried, 0 at least, in units of a penalty.

    Rays start at a few rows of each batch and follow the gradients of the outputs and of the loss
    (there and far away) to either side, columns, and random directions; bounds end them. Exact for
    a linear model with one output, and else a lower bound, as far as numbers go.
    """
    found = [_steepest(objective, _few(batch)) for batch in batches if batch.q0.numel()]
    return max([0.0, *found]) / objective.coordinates.scale**2


def refuse(found: float, penalty: float | None) -> None:
    """Raise `UnboundedRiskError` where a growth leaves no finite worst case.

    ``penalty`` None: of a ball, in which only what outgrows every penalty is infinite.
    """
    if math.isinf(found):
        raise UnboundedRiskError(
            "the worst-case risk is infinite at every penalty and in every ball: far from the data "
            f"the loss of this model grows faster than the transport cost; {_REMEDIES}"
        )
    if penalty is not None and found > 0.0 and penalty <= found * (1.0 + _SURE):
        raise UnboundedRiskError(
            f"the worst-case risk is infinite at penalty={penalty:.6g}: the loss grows as fast as "
            f"the transport cost. It can be finite for a penalty above {found:.6g}: raise it, give "
            f"a radius, or {_REMEDIES}"
        )


def _few(batch: Batch) -> Batch:
    """Rows whose targets are as different as they get."""
    order = batch.y.argsort()
    at = torch.linspace(0, len(order) - 1, min(_ROWS, len(order)), device=order.device)
    return batch.take(order[at.round().long()])


def _steepest(objective: Objective, batch: Batch) -> float:
    """The largest g of the rays from the rows of a batch, in coordinates."""
    best = 0.0
    for direction in _directions(objective, batch):
        for sign in (1.0, -1.0):
            ray = _open(objective, sign * direction)
            moves = ray.norm(dim=1) > 0.5
            if bool(moves.any()):
                lines = _lines(objective, batch, ray)
                best = max([best, *map(_exponent, lines[moves.cpu().numpy()])])
                if math.isinf(best):
                    return best
    return best


def _lines(objective: Objective, batch: Batch, ray: Tensor) -> np.ndarray:
    """Losses along rays, shape (n, distances): at once, or one by one where some are refused."""
    far = torch.from_numpy(_DISTANCES).to(ray).repeat_interleave(len(ray))[:, None]
    lines = _risk(objective, batch.repeat(len(_DISTANCES)), far * ray.repeat(len(_DISTANCES), 1))
    if np.isnan(lines).all():
        lines = np.concatenate([_risk(objective, batch, s * ray) for s in _DISTANCES])
    return lines.reshape(len(_DISTANCES), -1).T


def _risk(objective: Objective, batch: Batch, move: Tensor) -> np.ndarray:
    """Losses after a move; NaN where the model refuses rows so far away."""
    try:
        with np.errstate(all="ignore"):
            return objective.risk(batch, batch.q0 + move).detach().double().cpu().numpy()
    except _REFUSALS:
        return np.full(len(batch), np.nan)


def _open(objective: Objective, direction: Tensor) -> Tensor:
    """Unit directions near the given ones that no bound ends; zero where there are none."""
    lower, upper = objective.coordinates.lower, objective.coordinates.upper
    if lower is not None and upper is not None:
        ends = torch.isfinite(lower), torch.isfinite(upper)
        direction = torch.where(ends[0], direction.clamp_min(0.0), direction)
        direction = torch.where(ends[1], direction.clamp_max(0.0), direction)
    direction = torch.where(torch.isfinite(direction), direction, 0.0)
    largest = direction.abs().amax(1, keepdim=True)
    direction = direction / torch.where(largest > 0, largest, 1.0)  # no square may vanish
    return direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-300)


def _directions(objective: Objective, batch: Batch) -> Iterable[Tensor]:
    """Directions of shape (n, r) that matter to the loss; the likeliest first."""
    f, backward = objective.model.linearise(objective.decode(batch, batch.q0))
    flat = objective.model.n_outputs == 1
    for k in range(1 if flat else min(f.shape[1], _OUTPUTS)):
        slope = torch.zeros_like(f)
        slope[(...,) if flat else (..., k)] = 1.0
        yield objective.coordinates.pull(backward(slope))
    first = objective.model.first_layer()
    if first is not None and len(first) == 1:
        return  # of one linear combination of the columns there is no other
    still, ray = objective.with_penalty(0.0), torch.zeros_like(batch.q0)
    for step in range(_ASCENT + 1):  # a direction that the gradients far along it pull to the side
        far = min(10.0**step, _AWAY) if step else 0.0
        with contextlib.suppress(*_REFUSALS), np.errstate(all="ignore"):
            slope = still.value_and_gradient(batch, batch.q0 + far * ray)[1]
            ray = _open(objective, ray + _open(objective, slope))
        if step in (0, 2, _ASCENT):
            yield ray
    r = batch.q0.shape[1]
    generator = torch.Generator().manual_seed(0)
    for k in range(min(r, _AXES)):
        yield torch.nn.functional.one_hot(torch.tensor(k), r).to(batch.q0).expand_as(batch.q0)
    for _ in range(_RANDOM):
        yield torch.randn(batch.q0.shape, generator=generator, dtype=torch.float64).to(batch.q0)


def _exponent(line: np.ndarray) -> float:
    """The limit of a line of losses over their squared distances: 0, a number or infinity."""
    known = np.isfinite(line)
    count = len(line) if known.all() else int(known.argmin())
    overflows = count < len(line) and line[count] == math.inf
    below = np.flatnonzero(line[:count] <= 0.0)
    # Positive values within three decades of the last one: powers of sums need some way to show.
    last = slice(max(0, count - 4, below[-1] + 1 if len(below) else 0), count)
    s, value = _DISTANCES[last], line[last]
    if len(value) < 2:
        return math.inf if overflows else 0.0
    steep = np.diff(np.log(value)) / np.diff(np.log(s))
    settled = s[-1] >= _SETTLED and len(s) == 4
    # Where numbers end early: at infinity, or an exponential, steeper by ten each decade, at NaN.
    ends = overflows or (len(steep) > 1 and steep[-1] > 3.0 * steep[-2] > 0.0)
    if (settled and steep.min() > 2.02) or (ends and steep[-1] > _ABRUPT):
        return math.inf
    return float(value[-1] / s[-1] / s[-1]) if settled and steep[-1] > 1.98 else 0.0
