r"""Worst-case risk of a fixed linear model of several classes under order-2 Wasserstein.

.. math:: \min_{\lambda\ge 0} \lambda r^2 + E \sup_\delta \{\ell(f + W\delta, y)
          - \lambda \|\delta\|^2_C\}

What is attained is that of two maps that spend the budget between them; the bound is exact where
one basin is all that rows have, and comes from branch and bound elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from drojko.losses.class_moves import Moves, squares_of
from drojko.minimax.transport.risk import RidgeData
from drojko.rows.rows import products

__all__ = ["ClassRisk", "class_robust_risk"]

_CLOSE = 1e-9  # of the bound: what the two maps may miss
_SOLVES = 60
_ROUNDING = 1e-13  # of a risk
_TINY = 1e-140  # penalty that is as good as none


@dataclass(frozen=True, eq=False)
class ClassRisk:
    """Of radius form the risk, of penalty form risk - penalty * cost, from both sides.

    ``low_penalty``, ``high_penalty`` and ``share`` (of the first) say which maps attain
    ``attained`` (of both forms: ``risk`` is its mean loss and ``cost`` what it spends);
    ``spread`` and ``losses`` are loss - penalty * cost and loss of each row.
    """

    value: float
    attained: float
    nominal: float
    penalty: float
    cost: float
    risk: float
    low_penalty: float
    high_penalty: float
    share: float
    spread: np.ndarray
    losses: np.ndarray
    proof: str
    model: _Model = field(repr=False)

    @property
    def weight(self) -> np.ndarray:
        """Of the rows, (n,)."""
        return self.model.w

    def of(self, coef: np.ndarray, intercept: np.ndarray) -> bool:
        """Whether it is that of this model."""
        own = self.model
        return np.array_equal(own.coef, coef) and np.array_equal(own.intercept, intercept)


@dataclass(frozen=True, eq=False)
class _Map:
    """All rows at their worst moves for a penalty."""

    penalty: float
    moves: Any
    gain: np.ndarray  # loss - penalty * cost
    spent: np.ndarray
    value: float
    cost: float

    @property
    def losses(self) -> np.ndarray:
        """Losses of the rows where they move to."""
        return self.gain + (self.penalty * self.spent if math.isfinite(self.penalty) else 0.0)

    @property
    def risk(self) -> float:
        """Their mean."""
        return self.value + (self.penalty * self.cost if math.isfinite(self.penalty) else 0.0)


class _Model:
    def __init__(self, data: RidgeData, coef: np.ndarray, intercept: np.ndarray) -> None:
        own = data.own  # rows of other processes count in sums alone
        self.data, self.y, self.w = own, own.y, own.weight
        self.coef, self.intercept, self.table = coef, intercept, data.X
        self.f = products(own.X, np.ascontiguousarray(coef.T)) + intercept
        self.gram = (coef * data.inverse_cost) @ coef.T

    def total(self, sums: Any) -> Any:
        """Sums over all rows, from those over the rows here."""
        return sums if self.table is self.data.X else cast(Any, self.table).total(sums)

    def at(self, penalty: float, near: Any = None) -> _Map:
        half = 0.5 / penalty
        moves: Moves = self.data.loss.class_moves(self.f, self.y, self.gram, half, near, 1e-10)
        if near is not None:
            moves = moves.looked_around()
        c = moves.best()
        c[np.arange(len(c)), self.y] -= 1.0
        spent = half * half * ((c @ self.gram) * c).sum(axis=1)
        gain = moves.values(0.0)
        means = self.total(np.array([self.w @ gain, self.w @ spent])).tolist()
        return _Map(penalty, moves, gain, spent, *means)

    def ceiling(self, at: _Map, nodes: int | None) -> tuple[float, str]:
        """Upper bound of the mean gain, and its proof."""
        w, own = self.w, float(self.w @ at.gain)
        if own != at.value and own > 0.0:  # what rows may miss goes by the mean of all
            w = w * (at.value / own)
        bound, proof = self.data.loss.class_ceilings(self.f, self.y, self.gram, at.moves, w, nodes)
        return float(self.total(self.w @ np.maximum(bound, at.gain))), proof


def class_robust_risk(
    data: RidgeData,
    coef: np.ndarray,
    intercept: np.ndarray,
    *,
    radius: float | None = None,
    penalty: float | None = None,
    guess: float | None = None,
    nodes: int | None = None,
) -> ClassRisk:
    """The worst case of the model, from both sides.

    Parameters
    ----------
    data : RidgeData
        With class indices y and a loss of several outputs.
    coef, intercept : arrays of shape (K, d) and (K,)
    radius, penalty : exactly one of them
    guess : a penalty close to the optimal one, if known.
    nodes : how many parts are looked at by branch and bound; None: some.
    """
    model = _Model(data, coef, intercept)
    still = model.at(math.inf)
    nominal = still.value
    size = float(squares_of(model.gram).max())
    if penalty is not None and math.isfinite(penalty):
        found = model.at(penalty)
        upper, proof = model.ceiling(found, nodes)
        lower = max(found.value, nominal)
        return _result(model, found, found, 0.0, upper, lower, nominal, proof)
    budget = (radius or 0.0) ** 2
    # Losses rise by at most the largest |w_j - w_y| per unit moved.
    if not budget or math.sqrt(budget * size) <= _ROUNDING * nominal:
        nominal *= 1.0 + _ROUNDING if budget and size else 1.0
        return _result(model, still, still, 0.0, nominal, nominal, nominal, "dual")
    low, high = _bracket(model, budget, guess)
    low, high = model.at(low.penalty), model.at(high.penalty)  # as any other draw will find them
    spread = low.cost - high.cost
    share = min(max((budget - high.cost) / spread, 0.0), 1.0) if spread > 0.0 else 0.0
    # The duals of both are about the same, and bounds cost more than all else.
    at = min((low, high), key=lambda at: at.penalty * budget + at.value)
    bound, proof = model.ceiling(at, nodes)
    upper = at.penalty * budget + bound
    if high.cost > budget * (1.0 + 1e-12):  # a cold start found moves that cost more
        high = low = still
        share = 0.0
    lower = share * low.risk + (1.0 - share) * high.risk
    return _result(model, low, high, share, max(upper, lower), max(lower, nominal), nominal, proof)


def _result(
    model: _Model,
    low: _Map,
    high: _Map,
    share: float,
    upper: float,
    lower: float,
    nominal: float,
    proof: str,
) -> ClassRisk:
    def mix(a: Any, b: Any) -> Any:
        return b if share == 0.0 else share * a + (1.0 - share) * b

    return ClassRisk(
        value=upper,
        attained=min(lower, upper),
        nominal=nominal,
        penalty=high.penalty if share < 0.5 else low.penalty,
        cost=mix(low.cost, high.cost),
        risk=mix(low.risk, high.risk),
        low_penalty=low.penalty,
        high_penalty=high.penalty,
        share=share,
        spread=mix(low.gain, high.gain),
        losses=mix(low.losses, high.losses),
        proof=proof,
        model=model,
    )


def _bracket(model: _Model, budget: float, guess: float | None) -> tuple[_Map, _Map]:
    """Maps that cost at least and at most the budget, close enough to each other."""
    if guess is None or not 0.0 < guess < math.inf:
        guess = math.sqrt(model.gram.diagonal().max() / budget)
    at = model.at(guess)
    low: _Map | None = None
    high: _Map | None = None
    factor = 1.0 + 1e-3
    for solve in range(_SOLVES):
        low, high = (at, high) if at.cost >= budget else (low, at)
        if low is None or high is None:
            # Of a smooth worst case the cost falls about as the square of the penalty.
            step = math.sqrt(max(at.cost, 1e-300) / budget)
            step = min(max(step, 1e-3), 1e3)
            step = step * factor if high is None else step / factor
            penalty = at.penalty * step
            factor = factor**2 if factor > 1.1 else 1.0 + 10.0 * (factor - 1.0)
        else:
            missed = _missed(low, high, budget)
            if (
                missed <= _CLOSE * abs(high.risk)
                or high.penalty - low.penalty <= 1e-13 * high.penalty
            ):
                break
            x, y = math.log(low.cost / budget), math.log(budget / max(high.cost, 1e-300))
            t = x / (x + y) if solve % 3 != 2 else 0.5
            penalty = low.penalty ** (1.0 - t) * high.penalty**t
            if not low.penalty < penalty < high.penalty:
                break
        if not _TINY <= penalty <= 1.0 / _TINY:
            break
        at = model.at(penalty, at.moves)
    one: Any = high if high is not None else low
    return (one if low is None else low), one


def _missed(low: _Map, high: _Map, budget: float) -> float:
    """Dual value less what the mixture attains."""
    share = (budget - high.cost) / max(low.cost - high.cost, 1e-300)
    attained = share * low.risk + (1.0 - share) * high.risk
    return min(at.penalty * budget + at.value for at in (low, high)) - attained
