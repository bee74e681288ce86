"""The search over combinations of categories, where no formula finds the best one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.swaps import Swaps
from drojko.inner.transport.ascent import proximal_ascent
from drojko.inner.transport.bounds import Structure, lipschitz_bound
from drojko.inner.transport.candidates import Stay, best_of, knows_classes
from drojko.models import ACTIVATIONS, MLP

__all__ = ["every_combination", "greedy", "lipschitz_upper", "search"]

_KEPT = 6  # combinations per sample that are ascended from in full
_STACKED = 8192  # rows of one evaluation
_PAIRS = 400  # pairs of swaps that the first greedy round tries, at most
_ROUNDS = 12

#: Where to ascend from: samples at some categories, the cost of those, further starts.
Start = tuple[Batch, Tensor, Sequence[Tensor]]


def every_combination(swaps: Swaps, batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
    """The batch at every combination of categories, with what that costs."""
    own = swaps.state(batch.x)
    for combination in swaps.combinations():
        choice = combination.expand_as(own)
        yield replace(batch, x=swaps.apply(batch.x, own, choice)), swaps.fee(own, choice)


def search(
    objective: Objective, screening: int, swaps: Swaps, batch: Batch, extra: Sequence[Tensor]
) -> Iterator[Start]:
    """All combinations, or per sample the best of them after ``screening`` steps from each."""
    combinations = swaps.combinations()
    if len(combinations) <= _KEPT or knows_classes(objective):
        for at, paid in every_combination(swaps, batch):
            yield at, paid, extra
        return
    own, n = swaps.state(batch.x), len(batch)
    scores = []
    for part in combinations.split(max(1, _STACKED // max(1, n * (1 + len(extra))))):
        m, choice = len(part), part.repeat_interleave(n, 0)
        many, owns = batch.repeat(m), own.repeat(m, 1)
        many = replace(many, x=swaps.apply(many.x, owns, choice))
        starts = [q.repeat(m, 1) for q in extra]
        found = best_of(objective, many, (Stay(),), screening=screening, extra=starts)
        paid = swaps.fee(owns, choice)
        scores.append((found.value - objective.penalty * paid).reshape(m, n))
    for best in torch.cat(scores).topk(_KEPT, dim=0).indices:
        choice = combinations[best]
        yield replace(batch, x=swaps.apply(batch.x, own, choice)), swaps.fee(own, choice), extra


def greedy(
    objective: Objective, screening: int, swaps: Swaps, batch: Batch, extra: Sequence[Tensor]
) -> Iterator[Start]:
    """Swap by swap: each round takes the single swap, at first also the pair, that gains most.

    A swap is judged where the sample is now, and an ascent follows each round: a lower bound.
    """
    own = swaps.state(batch.x)
    choice, q = own, batch.q0
    zero = torch.zeros_like(batch.q0[:, 0]) if batch.q0.shape[1] else batch.q0.new_zeros(len(batch))
    yield batch, zero, extra
    singles = [(g, k) for g, values in enumerate(swaps.values) for k in range(len(values))]
    for step in range(min(_ROUNDS, swaps.n_groups)):
        at = replace(batch, x=swaps.apply(batch.x, own, choice))
        found = proximal_ascent(objective, at, q, max(1, screening))
        q = found.q
        best = found.value - objective.penalty * swaps.fee(own, choice)
        moves = [(single,) for single in singles]
        if step == 0 and len(singles) ** 2 <= 2 * _PAIRS:
            moves += [
                (a, b) for i, a in enumerate(singles) for b in singles[i + 1 :] if a[0] != b[0]
            ]
        chosen = choice
        for move in moves:
            trial = choice.clone()
            for g, k in move:
                trial[:, g] = k
            moved = replace(batch, x=swaps.apply(batch.x, own, trial))
            value = objective.value(moved, q) - objective.penalty * swaps.fee(own, trial)
            wins = value > best
            best = torch.where(wins, value, best)
            chosen = torch.where(wins.unsqueeze(1), trial, chosen)
        if torch.equal(chosen, choice):
            break
        choice = chosen
        at = replace(batch, x=swaps.apply(batch.x, own, choice))
        yield at, swaps.fee(own, choice), [q, *extra]


def lipschitz_upper(
    objective: Objective, swaps: Swaps, batch: Batch, known: Structure
) -> tuple[Tensor, str]:
    r"""Bound over all swaps from how far each can move the output, and its proof.

    A swap in group g moves the output by at most s_g, so with V the bound for continuous moves,
    convex in the output, sup J <= max V(f +- sum_S s_g) - penalty * sum_S c_g, where S is one of
    the G + 1 prefixes in the order of s_g / c_g.
    """
    model, loss = objective.model, objective.loss
    norms = known.norms
    convex = loss.scalar and loss.convex and loss.has_worst_case
    if norms is None or not isinstance(model, MLP) or not convex:
        value = objective.risk(batch, batch.q0)
        return torch.full_like(value, -math.inf), "local-estimate"
    first, *others = [w.detach() for w in model.weights]
    inner = 1.0
    for weight in others:
        norm = float(torch.linalg.matrix_norm(weight, 2))
        inner *= norm * ACTIVATIONS[model.activation][1] * (1.0 + 1e-12)
    reach = []
    own = swaps.state(batch.x)
    for g, images in enumerate(swaps.steps(first)):
        reach.append(torch.cdist(images, images).amax(1)[own[:, g]] * inner)
    reach = torch.stack(reach, 1)
    order = (reach / swaps.costs).argsort(dim=1, descending=True, stable=True)
    moved, paid = reach.gather(1, order).cumsum(1), swaps.costs[order].cumsum(1)
    f = model.linearise(batch.x)[0]
    square = float(norms) ** 2
    kappa = objective.strength / square if square > 0 else math.inf
    if not kappa > loss.growth:
        return torch.full_like(f, math.inf), "lipschitz"
    best = lipschitz_bound(objective, batch, norms)
    for k in range(swaps.n_groups):
        for sign in (1.0, -1.0):
            value = loss.robust_value(f + sign * moved[:, k], batch.y, kappa)
            best = torch.maximum(best, value - objective.penalty * paid[:, k])
    return best, "lipschitz"
