r"""Lipschitz constants of a perceptron's margins by semidefinite duality.

Slopes of secants lie in [a, b], so that T (h - a D)'(b D - h) >= 0 for any diagonal T >= 0. With
B = v v' behind the last layer and, layer by layer,

.. math:: A = 2T - B \succ 0, \quad X = T(a + b), \quad B \leftarrow W^\top(X A^{-1} X - 2abT)W,

the largest eigenvalue of the last B is a bound of L², whatever the multipliers T (Fazlyab, Robey,
Hassani, Morari and Pappas, 2019, arXiv 1906.04893, "LipSDP-neuron", in its Schur form).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from drojko.inner.networks.network import Margins, Network

__all__ = ["lipschitz", "margin_constants", "of_margins", "product_of_norms"]

_RATE, _DECAY = 0.1, (0.9, 0.99)
#: Of one layer, differences of outputs whose multipliers are improved in few steps: the others take
#: their mean, which loses per cents; of two layers it would lose a third.
_LEAD, _FEW = 16, 50
#: Powers of a step that follow the largest eigenvalue.
_POWERS = 10


def product_of_norms(network: Network, rows: Tensor) -> Tensor:
    """The simple bound, of ``rows @ last hidden layer``, rows (p, width)."""
    bound = rows.norm(dim=1)
    for w, act in zip(network.weights, network.acts, strict=True):
        bound = bound * torch.linalg.matrix_norm(w, 2) * max(map(abs, act.slopes))
    return bound * (1.0 + 1e-9)


@torch.no_grad()
def lipschitz(network: Network, rows: Tensor, steps: int, lead: int | None = None) -> Tensor:
    """Lipschitz constants (p,) of ``rows @ last hidden layer`` in the displacement, everywhere.

    With ``lead`` multipliers are improved for so many of the rows, and serve the others as well.
    """
    bound = product_of_norms(network, rows)
    norm = rows.norm(dim=1)
    live = (norm > 0).nonzero().squeeze(1)
    if steps == 0 or len(live) == 0:
        return bound
    unit = rows[live] / norm[live].unsqueeze(1)
    few = len(live) if lead is None else min(lead, len(live))
    top = bound[live].topk(few).indices
    own, logs = _improved(network, unit[top], steps)
    best = torch.full_like(norm[live], math.inf).index_copy(0, top, own)
    if few < len(live):
        common = [log.mean(0, keepdim=True) for log in logs]
        for part in torch.arange(len(live)).split(few):
            given = [log.repeat(len(part), 1) for log in common]
            value = _proven(_squared(network, unit[part], given, False)[0])
            best[part] = torch.minimum(best[part], torch.nan_to_num(value, nan=math.inf))
    found = best.clamp_min(0.0).sqrt() * norm[live] * (1.0 + 1e-7)
    bound[live] = torch.minimum(bound[live], torch.nan_to_num(found, nan=math.inf))
    return bound


def _improved(network: Network, unit: Tensor, steps: int) -> tuple[Tensor, list[Tensor]]:
    """The lowest L² (p,) of some steps of Adam, and the logarithms of the last multipliers."""
    logs = [torch.zeros(len(unit), w.shape[0], dtype=torch.float64) for w in network.weights]
    first, second = ([torch.zeros_like(p) for p in logs] for _ in range(2))
    lowest, found, along = torch.full((len(unit),), math.inf, dtype=torch.float64), None, unit
    for w in network.weights[::-1]:
        along = along @ w
    for step in range(1, steps + 1):
        square, back = _squared(network, unit, logs, step == 1)
        value, along = _largest(square, along, 3 * _POWERS if step == 1 else _POWERS)
        lower = value < lowest  # False for NaN as well
        lowest = torch.where(lower, value, lowest)
        found = square if found is None else torch.where(lower[:, None, None], square, found)
        for k, slope in enumerate(_slopes(network, back, along)):
            slope = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
            first[k].mul_(_DECAY[0]).add_(slope, alpha=1.0 - _DECAY[0])
            second[k].mul_(_DECAY[1]).addcmul_(slope, slope, value=1.0 - _DECAY[1])
            root = (second[k] / (1.0 - _DECAY[1] ** step)).sqrt().clamp_min(1e-30)
            logs[k].sub_(_RATE / (1.0 - _DECAY[0] ** step) * first[k] / root)
    assert found is not None
    return _proven(found), logs


def _squared(
    network: Network, unit: Tensor, logs: list[Tensor], first: bool
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The last B (p, r, r), and by layer what its maximiser is followed through; T at first."""
    square = unit.unsqueeze(2) * unit.unsqueeze(1)
    back: list[tuple[Tensor, Tensor]] = []
    for k in range(len(logs) - 1, -1, -1):
        w, (low, high) = network.weights[k], network.acts[k].slopes
        if first and k + 1 < len(logs):  # of v v' it is one
            top = torch.linalg.eigvalsh(square)[:, -1].clamp_min(1e-12)
            logs[k].copy_(top.log().unsqueeze(1).expand_as(logs[k]))
        factor, root = _positive(square, logs[k])
        t = root.square()
        x = (t * (low + high) / root).unsqueeze(2) * w
        y = torch.linalg.solve_triangular(factor, x, upper=False)
        square = y.transpose(1, 2) @ y - 2.0 * low * high * (w.T * t.unsqueeze(1)) @ w
        square = 0.5 * (square + square.transpose(1, 2))
        solved = torch.linalg.solve_triangular(factor.transpose(1, 2), y, upper=True)
        back.append((t, solved / root.unsqueeze(2)))
    return square, back[::-1]


def _largest(square: Tensor, along: Tensor, powers: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues nearly (p,), and their vectors, by powers: proofs take the others."""
    for _ in range(powers):
        along = along / along.norm(dim=1, keepdim=True).clamp_min(1e-300)
        along = (square @ along.unsqueeze(2)).squeeze(2)
    size = along.norm(dim=1)
    return size, along / size.clamp_min(1e-300).unsqueeze(1)


def _proven(square: Tensor) -> Tensor:
    """Upper bounds (p,) of the largest eigenvalues."""
    known = torch.isfinite(square).flatten(1).all(1)
    values = torch.linalg.eigvalsh(torch.where(known[:, None, None], square, 0.0))[:, -1]
    return torch.where(known, values + 1e-9 * square.flatten(1).norm(dim=1), math.inf)


def _slopes(network: Network, back: list[tuple[Tensor, Tensor]], moved: Tensor) -> list[Tensor]:
    """Derivatives of the largest eigenvalue in the logarithms of the multipliers."""
    slopes = []
    for (t, solve), w, act in zip(back, network.weights, network.acts, strict=True):
        low, high = act.slopes
        d, h = moved @ w.T, (solve @ moved.unsqueeze(2)).squeeze(2)
        slopes.append(2.0 * t * (h - low * d) * (high * d - h))
        moved = h
    return slopes


def _positive(square: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of 2 - B scaled by the roots of T, which are raised until there is one."""
    for attempt in range(3):
        root = (0.5 * log).exp()
        scaled = square / (root.unsqueeze(2) * root.unsqueeze(1))
        a = -scaled
        a.diagonal(dim1=1, dim2=2).add_(2.0 - 1e-3)
        factor, info = torch.linalg.cholesky_ex(a)
        bad = info.ne(0).nonzero().squeeze(1)
        if len(bad) == 0 or attempt == 2:
            break
        top = torch.linalg.eigvalsh(torch.nan_to_num(scaled[bad]))[:, -1]
        log[bad] += (0.7 * top).clamp_min(1.01).log().unsqueeze(1)
    factor[info.ne(0)] = math.nan
    return factor, root


def margin_constants(network: Network, steps: int) -> Tensor:
    """Constants of all margins of all samples, (n, m)."""
    few = steps <= _FEW and len(network.weights) == 1 if network.dense else False
    lead = _LEAD if few else None
    return (
        network.constants(steps)
        if not network.dense
        else of_margins(network.margins, lambda rows: lipschitz(network, rows, steps, lead))
    )


def of_margins(margins: Margins, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Constants of all margins of all samples (n, m), from those of rows on what they weigh."""
    weight = margins.weight
    if margins.kind != "pairs":
        return of(weight).expand(len(margins), margins.levels.shape[1])
    i, j = torch.triu_indices(len(weight), len(weight), 1)
    table = torch.zeros(len(weight), len(weight), dtype=torch.float64)
    table[i, j] = of(weight[i] - weight[j])
    return (table + table.T)[margins.y]
