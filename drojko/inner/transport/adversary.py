"""A solved inner problem: the map that sends reference draws to their worst case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drojko._validation import checked, chosen
from drojko.exceptions import UnboundedRiskError
from drojko.inner.objective import Batch, Objective
from drojko.inner.reach import Reach, worst_slope
from drojko.inner.swaps import MOST_COMBINATIONS, Swaps, best_prefix
from drojko.inner.transport import swapping
from drojko.inner.transport.ascent import Ascent, picked
from drojko.inner.transport.bounds import Structure, is_exact, structure, upper_bound
from drojko.inner.transport.candidates import (
    Candidate,
    Stay,
    Support,
    best_of,
    knows_classes,
    solve_linear_classes,
)
from drojko.inner.transport.growth import growth, refuse
from drojko.inner.transport.search.rounds import EFFORTS, Search
from drojko.models import MLP

__all__ = ["Adversary", "Moved"]

_WEAKNESS = ("ridge-1d", "strong-concavity", "lipschitz", "local-estimate")
_FAR = 1e7  # mean displacement, in spreads of the data, that only an unbounded problem reaches


@dataclass(frozen=True, repr=False)
class Moved:
    r"""Worst-case positions of a batch, and what they attain: :math:`J = \ell(x') - \lambda c`.

    Attributes
    ----------
    batch : Batch
        The n samples.
    at : Batch
        The same at the labels and categories that they take, from where they moved to ``q``.
    found : Ascent
        The ascent that ended there.
    value, cost, risk : Tensor of shape (n,)
        J, the ground cost (label moves and swaps included) and the loss.
    q, labels : Tensor of shape (n, r) and (n,)
        Positions in coordinates, and labels there.
    """

    batch: Batch
    at: Batch
    found: Ascent
    value: Tensor
    cost: Tensor
    risk: Tensor

    @property
    def q(self) -> Tensor:
        """Positions in coordinates, shape (n, r)."""
        return self.found.q

    @property
    def labels(self) -> Tensor:
        """Labels that are taken, shape (n,)."""
        return self.at.y

    @staticmethod
    def of(
        objective: Objective, batch: Batch, at: Batch, found: Ascent, fee: Tensor | float = 0.0
    ) -> Moved:
        """Positions reached by an ascent from ``at``, which costs ``fee`` of shape (n,)."""
        cost = objective.cost(batch, found.q)
        risk = found.value + objective.penalty * cost
        cost = cost + fee
        return Moved(batch, at, found, risk - objective.penalty * cost, cost, risk)

    def better(self, other: Moved) -> Moved:
        """Sample by sample the one of larger value."""
        return picked(other.value > self.value, other, self)


@checked(constructor=False)
@dataclass(frozen=True)
class Adversary:
    r"""The worst-case map :math:`x \mapsto \arg\max_q J(q)`, over candidates and their ascents.

    `solve` moves any batch of draws, not only those it was built on. For a ridge loss without
    bounds the maximiser is a formula and the candidates are not used.

    Parameters
    ----------
    objective : Objective
        J, at a penalty.
    candidates : tuple of Candidate
        Maps that ascents start from.
    screening, corrections : int
        Proximal steps from every candidate, and from the best one of each sample.
    tol : float
        Samples stop where an ascent would gain less than this, relative to ``1 + |J|``.
    n_labels : int
        Classes; 0: regression.
    label_cost : float
        Ground cost of another label, in the units of X squared; infinite: labels stay.
    search : Search, optional
        Starts beyond the candidates, in the place of screening and corrections.

    Raises
    ------
    UnboundedRiskError
        From `solve`, where the loss grows as fast as penalty times cost.

    Examples
    --------
    A squared error of f(x) = x at 1 and penalty 2: argmax of z^2 - 2 (z - 1)^2 is z = 2.

    >>> import numpy as np
    >>> from drojko.ambiguity import GroundCost
    >>> from drojko.inner.coordinates import Coordinates
    >>> from drojko.losses import get_loss
    >>> model = MLP(1, 1, hidden=())
    >>> with torch.no_grad():
    ...     _ = [p.fill_(float(p.ndim == 2)) for p in model.parameters()]
    >>> x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    >>> coordinates = Coordinates.build(GroundCost(np.ones(1)), x)
    >>> J = Objective(model, get_loss("squared", "regression"), coordinates, penalty=2.0)
    >>> moved = Adversary(J).solve(J.batch(x, y))
    >>> moved.value.tolist(), moved.cost.tolist()
    ([2.0], [1.0])
    """

    objective: Objective
    candidates: tuple[Candidate, ...] = (Stay(),)
    screening: int = 12
    corrections: int = 50
    tol: float = 1e-9
    n_labels: int = 0
    label_cost: float = math.inf
    search: Search | None = None

    def with_effort(self, effort: str) -> Adversary:
        """The same with another effort: "warm" is known starts alone, "rough" a few more."""
        chosen("effort", effort, ("warm", "rough", *EFFORTS))
        search = None if self.search is None else self.search.with_effort(effort)
        return replace(self, search=search)

    def with_penalty(self, penalty: float) -> Adversary:
        """The same candidates at another penalty: risks of a support do not depend on it."""
        return replace(self, objective=self.objective.with_penalty(penalty))

    @property
    def exact(self) -> bool:
        """Whether the maximiser is a formula, or with bounds a search on a line."""
        return is_exact(self.objective)

    @property
    def local(self) -> bool:
        """Whether an ascent from each sample ends at its global maximiser: J is concave."""
        if self.exact or knows_classes(self.objective):
            return True
        return 2.0 * self.objective.strength > structure(self.objective).curvature

    @property
    def smooth(self) -> bool:
        """Whether the model has no kinks, as far as one can tell from outside."""
        model = self.objective.model
        return not (
            isinstance(model, MLP) and model.activation == "relu" and len(model.weights) > 1
        )

    @property
    def flips(self) -> list[int]:
        """Labels that a sample may take beside its own."""
        return list(range(self.n_labels)) if math.isfinite(self.label_cost) else []

    @property
    def swaps(self) -> Swaps | None:
        """Categories that a sample may take beside its own; None: there are none."""
        return self.objective.coordinates.swaps

    @property
    def discrete(self) -> bool:
        """Whether worst cases may jump to another label or category."""
        return bool(self.flips) or self.swaps is not None

    @torch.no_grad()
    def solve(self, batch: Batch, extra: Sequence[Tensor] = ()) -> Moved:
        """Worst-case position of each sample of ``batch``; ``extra`` are further starts."""
        best: Any = None
        quick = replace(self, search=None) if self._many_places else self
        for at, fee, starts in self._places(batch, extra):
            moved = Moved.of(self.objective, batch, at, quick._ascend(at, starts), fee)
            best = moved if best is None else best.better(moved)
        if quick is not self:  # in full where each sample is best off, and where it was
            fee = best.cost - self.objective.cost(batch, best.q)
            for at, paid in ((best.at, fee), (batch, 0.0)):
                moved = Moved.of(self.objective, batch, at, self._ascend(at, [best.q]), paid)
                best = best.better(moved)
        mean = float((best.q - batch.q0).square().sum(1).mean())
        if not mean < _FAR**2 and self.objective.penalty <= self._floor():
            raise UnboundedRiskError(self._unbounded_message())
        return best

    @property
    def _many_places(self) -> bool:
        """Whether a search at every combination of categories would cost too much."""
        swaps = self.swaps
        many = swaps is not None and swaps.n_combinations > MOST_COMBINATIONS
        return many and self.search is not None and not self.exact

    def _labelled(self, batch: Batch) -> Iterator[tuple[Batch, Tensor | float]]:
        """The batch at its own labels, and at each label it may take with the cost of that."""
        yield batch, 0.0
        for label in self.flips:
            flipped = replace(batch, y=torch.full_like(batch.y, label))
            yield flipped, self.label_cost * (batch.y != label).to(batch.q0.dtype)

    def _places(
        self, batch: Batch, extra: Sequence[Tensor]
    ) -> Iterator[tuple[Batch, Tensor | float, Sequence[Tensor]]]:
        """The batch at labels and categories, the cost of taking them, and where to start there."""
        swaps = self.swaps
        for labelled, fee in self._labelled(batch):
            if swaps is None:
                yield labelled, fee, extra
            elif self.exact:
                at, paid = self._ridge_swaps(labelled, swaps)
                yield at, fee + paid, extra
            else:
                few = swaps.n_combinations <= MOST_COMBINATIONS
                search = swapping.search if few else swapping.greedy
                for at, paid, starts in search(
                    self.objective, self.screening, swaps, labelled, extra
                ):
                    yield at, fee + paid, starts

    def _ridge_swaps(self, batch: Batch, swaps: Swaps) -> tuple[Batch, Tensor]:
        """The best categories for a ridge loss, and the cost of taking them."""
        f, whole, kappa = self._line(batch)
        own, price, loss = swaps.state(batch.x), self.objective.penalty, self.objective.loss
        held = self.objective.coordinates.lower is not None and kappa < math.inf
        reach = self._reach(batch, whole) if held else None

        def worth(index: Tensor, at: Tensor) -> Tensor:
            if reach is None:
                return loss.robust_value(at, batch.y[index], kappa)
            rows, answer = index.cpu().numpy(), batch.y[index].cpu().numpy()
            best = worst_slope(loss, _double(at), answer, reach.take(rows))[1]
            return torch.as_tensor(best).to(at)

        choice, _, _ = best_prefix(swaps, own, whole[0], loss, f, batch.y, price, kappa, worth)
        return replace(batch, x=swaps.apply(batch.x, own, choice)), swaps.fee(own, choice)

    def _line(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """Outputs (n,), their slope (1, d), and the price of a squared unit of output."""
        objective = self.objective
        f, backward = objective.model.linearise(batch.x)
        whole = backward(torch.ones_like(f))[:1]
        square = float(objective.coordinates.pull(whole).square().sum())
        kappa = objective.strength / square if square > 0 else math.inf
        held = objective.coordinates.lower is not None  # in a box, or by a loss without growth
        if not (kappa > objective.loss.growth or held):
            raise UnboundedRiskError(self._unbounded_message())
        return f, whole, kappa

    def _reach(self, batch: Batch, whole: Tensor) -> Reach:
        """How far samples move within the bounds."""
        coordinates: Any = self.objective.coordinates
        low, high = coordinates.lower - batch.q0, coordinates.upper - batch.q0
        slope = _double(coordinates.pull(whole)[0])
        return Reach(slope, self.objective.strength, _double(low), _double(high))

    def _floor(self) -> float:
        """A penalty above which the worst case is proven finite; infinity where none is known."""
        norms = structure(self.objective).norms
        if norms is None:
            return math.inf
        return (
            self.objective.loss.growth
            * (float(norms.max()) / self.objective.coordinates.scale) ** 2
        )

    @torch.no_grad()
    def check_finite(self, batch: Batch, ball: bool) -> None:
        """Raise `UnboundedRiskError` where the worst case is infinite along a ray.

        Of a ``ball``, or at the objective's penalty. What is proven finite is not looked at.
        """
        penalty = None if ball else self.objective.penalty
        floor = self._floor()
        if not floor < (math.inf if penalty is None else penalty):
            refuse(growth(self.objective, (at for at, _ in self._labelled(batch))), penalty)

    def _unbounded_message(self) -> str:
        known = self._floor()
        floor = f"a penalty above {known:.6g}" if known < math.inf else "a larger penalty"
        return (
            f"the worst-case risk is infinite at penalty={self.objective.penalty:.6g}: the loss "
            f"grows as fast as the transport cost. It is finite for {floor}; or give a radius"
        )

    def _ascend(self, batch: Batch, extra: Sequence[Tensor]) -> Ascent:
        if self.exact:
            return self._ridge(batch)
        if knows_classes(self.objective):
            return solve_linear_classes(self.objective, batch)
        if self.search is not None:
            starts = (q for c in self.candidates for q in c.starts(self.objective, batch))
            return self.search.run(self.objective, batch, [*starts, *extra])
        return best_of(
            self.objective,
            batch,
            self.candidates,
            screening=self.screening,
            corrections=self.corrections,
            tol=self.tol,
            extra=extra,
        )

    def _ridge(self, batch: Batch) -> Ascent:
        objective, q = self.objective, batch.q0
        f, whole, kappa = self._line(batch)
        lower, upper = objective.coordinates.lower, objective.coordinates.upper
        if lower is not None and kappa == math.inf:
            q = q.clamp(lower, upper)
        elif lower is not None:
            reach = self._reach(batch, whole)
            p, _ = worst_slope(objective.loss, _double(f), batch.y.cpu().numpy(), reach)
            q = q + torch.as_tensor(reach.move(p)[0]).to(q)
        elif kappa < math.inf:
            direction = objective.coordinates.pull(whole)
            shift = objective.loss.shift(f, batch.y, kappa)
            q = q + shift.unsqueeze(1) * (direction / float(direction.square().sum()))
        value, gradient = objective.value_and_gradient(batch, q)
        return Ascent(q, value, gradient)

    @torch.no_grad()
    def stay(self, batch: Batch) -> Moved:
        """Nothing moves: the worst case at an infinite penalty, or in a ball of radius 0."""
        objective = self.objective.with_penalty(1.0)  # any: infinity times no cost is NaN
        value, gradient = objective.value_and_gradient(batch, batch.q0)
        return Moved.of(objective, batch, batch, Ascent(batch.q0, value, gradient))

    @torch.no_grad()
    def share_basins(self, batch: Batch, rounds: int, size: int) -> tuple[Adversary, Moved]:
        """Add a max-affine support built on ``batch``; ``rounds`` of solve and share."""
        best = self.solve(batch)
        if self.exact or rounds == 0:
            return self, best
        classes = self.n_labels > 0
        for _ in range(rounds):
            support = Support.build(self.objective, best.at, best.q, classes, len(batch))
            shared = replace(self, candidates=(support,), corrections=0, search=None)
            found = best.better(shared.solve(batch))
            gained = float((found.value - best.value).mean())
            best = found
            if gained <= 1e-6 * (1.0 + float(best.value.mean().abs())):
                break
        support = Support.build(self.objective, best.at, best.q, classes, size)
        return replace(self, candidates=(*self.candidates, support)), best

    def upper(self, moved: Moved, known: Structure | None = None) -> tuple[Tensor, str]:
        """Upper bound of sup J per sample, and its proof; over all labels and categories."""
        known = structure(self.objective) if known is None else known
        batch, penalty = moved.batch, self.objective.penalty
        bound, proof = upper_bound(self.objective, moved.at, moved.found, known)
        if not self.discrete:
            return bound, proof
        bound = bound - penalty * (moved.cost - self.objective.cost(batch, moved.q))
        for labelled, fee in self._labelled(batch):
            for other, weaker in self._upper_swapped(labelled, moved.q, known):
                bound = torch.maximum(bound, other - penalty * fee)
                proof = max(proof, weaker, key=_WEAKNESS.index)
        return bound, proof

    def becoming(self, batch: Batch) -> list[tuple[Batch, Tensor | float]] | None:
        """All that a batch may become without moving, and the cost; None: too many swaps."""
        swaps = self.swaps
        if swaps is not None and swaps.n_combinations > MOST_COMBINATIONS:
            return None
        found: list[tuple[Batch, Tensor | float]] = []
        for labelled, fee in self._labelled(batch):
            every = [(labelled, 0.0)]
            if swaps is not None:
                every = list(swapping.every_combination(swaps, labelled))
            found += [(at, fee + paid) for at, paid in every]
        return found

    def _upper_swapped(
        self, labelled: Batch, start: Tensor, known: Structure
    ) -> list[tuple[Tensor, str]]:
        """Upper bounds of sup J - penalty * swap cost at fixed labels, which cover all swaps."""
        swaps, objective = self.swaps, self.objective
        if swaps is None:
            warm = self.with_effort("warm")
            return [upper_bound(objective, labelled, warm._ascend(labelled, [start]), known)]
        if self.exact:
            at, paid = self._ridge_swaps(labelled, swaps)
            bound, proof = upper_bound(objective, at, self._ridge(at), known)
            return [(bound - objective.penalty * paid, proof)]
        if swaps.n_combinations > MOST_COMBINATIONS:
            return [swapping.lipschitz_upper(objective, swaps, labelled, known)]
        options = []
        quick = replace(self, candidates=(Stay(),), screening=0).with_effort("warm")
        for at, paid in swapping.every_combination(swaps, labelled):
            bound, proof = upper_bound(objective, at, quick._ascend(at, [start]), known)
            options.append((bound - objective.penalty * paid, proof))
        return options


def _double(values: Tensor) -> Any:
    return values.double().cpu().numpy()
