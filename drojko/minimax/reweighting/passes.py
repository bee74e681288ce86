"""Networks against reweightings: stochastic steps with ratios from stale losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor

from drojko._driver import Limits
from drojko._random import spawn
from drojko.ambiguity import AmbiguitySet, Dual
from drojko.measures.base import components
from drojko.measures.empirical import Empirical
from drojko.minimax.conditioning import Conditioned
from drojko.minimax.passes import Passes, PassState
from drojko.minimax.problem import RobustProblem, TrainResult
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import MLP

__all__ = ["ReweightedPasses", "train_network"]

_SOLVES, _STEPS = 4, 32  # duals within a pass at most, and steps between them at least
_FRESH = 5  # passes between new draws of a continuous reference
_CHUNK = 8192  # rows of a forward pass over all draws
_FIRST, _LAST = 0.05, 0.002  # smoothing of the dual, relative to the risk, from first to last pass


class ReweightedPasses(Passes):
    r"""Adam on :math:`E\,q\,\ell(\theta)`, q the ratios of the dual on stored losses.

    Each batch refreshes its own losses in the store; the dual is solved on the whole store every
    few dozen steps, which costs little beside the steps themselves. Atoms stay; a continuous
    reference is drawn anew every few passes, with one forward pass to fill the store. States carry
    the last known loss of every draw and its ratio.
    """

    ambiguity: AmbiguitySet
    groups: Any = None

    def init(self, problem: None = None) -> PassState:
        self.prepare()
        parts = components(self.problem.reference)
        self.atoms = all(isinstance(part, Empirical) for part in parts)
        self.draw()
        losses = self._losses()
        ratio = self._ratios(self._solve(losses, 0.0))
        return self.first((losses, ratio))

    def draw(self) -> None:
        self.drawn = self.generator.get_state()
        drawn = self.problem.support(self.ambiguity, self.n_draws, self.generator, self.groups)
        self.x, self.y, self.w, self.bound = drawn
        self.batch_size = self.batch_size_of(len(self.x))

    def carried(self) -> Any:
        names = getattr(self.bound, "remembers", ())
        return super().carried(), {name: getattr(self.bound, name) for name in names}

    def restore(self, carried: Any) -> None:
        super().restore(carried[0])
        for name, value in carried[1].items():
            setattr(self.bound, name, value)

    def _losses(self) -> Tensor:
        """The current loss of every draw, shape (n,), float64 on the CPU."""
        parts = []
        for x, y in zip(self.x.split(_CHUNK), self.y.split(_CHUNK), strict=True):
            parts.append(self.problem.loss.value(self.problem.model.linearise(x)[0], y))
        return torch.cat(parts).detach().double().cpu()

    def _solve(self, losses: Tensor, progress: float) -> Dual:
        """The dual of stored losses, smoothed less and less."""
        size = float(losses.abs() @ self.w.cpu().double())
        share = _LAST + (_FIRST - _LAST) * max(1.0 - progress, 0.0)
        if not math.isfinite(size):
            return self.bound.dual(losses)  # which says what is wrong with them
        return self.bound.dual(losses, max(size * share, 1e-290))

    def _ratios(self, dual: Dual) -> Tensor:
        return torch.from_numpy(dual.ratio).to(self.w)

    def step(self, state: PassState) -> PassState:
        p = self.problem
        self.load(state.flat)
        if not self.atoms and state.iteration and state.iteration % _FRESH == 0:
            self.draw()
            losses = self._losses()
            ratio = self._ratios(self._solve(losses, state.iteration / self.max_iter))
        else:
            losses, ratio = state.carried[0].clone(), state.carried[1]
        adam, views, batches = self.opened(state)
        every = max(_STEPS, len(batches) // _SOLVES)
        mass = self.w * ratio
        squared = 0.0
        for k, rows in enumerate(batches):
            progress = (state.iteration + k / len(batches)) / self.max_iter
            if k and k % every == 0:
                ratio = self._ratios(self._solve(losses, progress))
                mass = self.w * ratio
            labels, share = self.y[rows], mass[rows] * (len(self.x) / len(rows))
            f, gradient = p.outputs_and_gradient(self.x[rows], labels, share)
            losses[rows.cpu()] = p.loss.value(f, labels).detach().double().cpu()
            squared += self.descend(adam, views, gradient, progress)
        # Of the stored losses, for the record and the ratios of the next pass: what is returned in
        # the end is judged by exact duals.
        penalty, cost = state.penalty, state.cost
        if state.iteration % min(2, -(-_STEPS // len(batches))) == 0:  # small data: every other
            dual = self._solve(losses, (state.iteration + 1) / self.max_iter)
            ratio, penalty, cost = self._ratios(dual), dual.penalty, dual.radius
        price = float(getattr(self.ambiguity, "penalty", None) or 0.0)
        attained = float((self.w * ratio).double().cpu() @ losses)
        return self.closed(
            state, attained - price * cost, squared / len(batches), adam=adam,
            carried=(losses, ratio), penalty=penalty, cost=cost,
        )  # fmt: skip

    def evaluate(self, flat: Tensor, state: PassState) -> tuple[float, float]:
        """Exact dual of all draws, and the norm of the gradient at its ratios."""
        p = self.problem
        self.load(flat)
        dual = self.bound.dual(self._losses())
        mass = self.w * torch.from_numpy(dual.ratio).to(self.w)
        whole = self.ridge_gradient()
        for x, y, m in zip(
            self.x.split(_CHUNK), self.y.split(_CHUNK), mass.split(_CHUNK), strict=True
        ):
            parts = p.outputs_and_gradient(x, y, m)[1]
            whole = whole + torch.cat([g.reshape(-1) for g in parts])
        return dual.value + self.ridge(), float((whole * self.frozen).norm())


def train_network(
    problem: RobustProblem,
    ambiguity: AmbiguitySet,
    generator: torch.Generator,
    *,
    n_draws: int = 2000,
    groups: Any = None,
    outer: Subgradient | None = None,
    limits: Limits | None = None,
) -> TrainResult:
    """Train a network in place by passes; its best parameters are left in it.

    In units in which the draws have mean 0 and spread 1; the set sees its own units.

    Parameters
    ----------
    problem : RobustProblem
        Its radius, penalty and cost are not used: the set is ``ambiguity``.
    ambiguity : AmbiguitySet
        With ``on(x, weights, groups)``, as the density-ratio sets.
    generator : torch.Generator
    n_draws : int
        Requested of a continuous reference.
    groups : array of shape (n,), default=None
        What the points of an empirical reference belong to.
    outer : Subgradient, default=None
        Rates and batches.
    limits : Limits, default=None

    Returns
    -------
    TrainResult
        ``penalty`` is the multiplier of the radius; in the history ``transport_cost`` is D(P*, P0).
    """
    limits = limits or Limits()
    shift = not isinstance(problem.model, MLP) or problem.model.bias
    conditioned = Conditioned.of(problem, shift, n_draws, generator)
    unit = conditioned.loss_unit
    inner: Any = clone(ambiguity)
    if inner.penalty is not None:
        inner.set_params(penalty=float(inner.penalty) / unit)
    solver = ReweightedPasses(
        outer or Subgradient(),
        conditioned.problem,
        spawn(generator),
        limits.max_iter,
        limits.tol,
        n_draws,
    )
    solver.ambiguity, solver.groups = inner, groups
    result = solver.train(limits, conditioned.wrap(limits.callback))
    conditioned.undo()
    history = dict(result.history)
    for name in ("robust_risk", "penalty"):
        if name in history:
            history[name] = history[name] * unit
    return replace(result, penalty=result.penalty * unit, history=history)
