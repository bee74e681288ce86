r"""What no linear model of several classes can go below, under order-2 Wasserstein.

Any plan p, held with shares s_i in [0, 1] of the rows (the rest stays where it is) such that
E s c = 0 for c = p - e_y, gives for every model and multiplier, with A = E s c x' and M = E s cc',

.. math:: E\,s\,h(p) + \langle A, W\rangle + r \|M^{1/2} W C^{-1/2}\|_F + \tfrac\alpha2 \|W\|^2 ,

and the minimum of that over W is a lower bound. Shares by class make E s c vanish: they are the
stationary law of the chain that goes from class y to class j with the mean of p_j in class y.
Classes that hardly anything goes to or comes from are left out: second moments that are next to
nothing would ask for slopes that balance to all digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko.losses.class_moves import Moves
from drojko.rows import Rows

__all__ = ["ClassGround", "class_lower_bound"]

_ROUNDING = 1e-11  # of sums that are to vanish, over the sum of their terms
_SOLID, _BEYOND = 1e-13, 1e-6  # eigenvalues that count, over the largest; what lies outside them
_RARE = (0.0, 1e-4, 1e-2)  # moved mass of classes that are left out, over the mean


@dataclass(frozen=True, eq=False)
class ClassGround:
    """Ball or price, costs and ridge in the coordinates of the rows, (D,): 0 of intercepts."""

    radius: float | None
    penalty: float | None
    cost: np.ndarray
    ridge: np.ndarray

    @classmethod
    def of(
        cls,
        rows: Rows,
        inverse_cost: np.ndarray,
        radius: float | None,
        penalty: float | None,
        alpha: float,
    ) -> ClassGround:
        """In the coordinates of rows."""
        unit = np.where(rows.dead, 0.0, 1.0 / rows.scale**2)
        whole = np.zeros((2, rows.size))
        whole[:, : rows.d] = inverse_cost * unit, alpha * unit
        return cls(radius, penalty, *whole)

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return self.radius == 0.0 or not self.cost.any()

    @property
    def ball(self) -> bool:
        """Whether there is a multiplier to find."""
        return bool(self.radius) and not self.still


def class_lower_bound(
    rows: Rows, moves: Moves, ground: ClassGround, Z: np.ndarray, mu: float
) -> float:
    """The lower bound of a plan, -inf where nothing is proven.

    Z (K, D) is a model near the best, in whose direction a ridge takes its part.
    """
    plan = moves.plan(rows.w, mu)
    moved = _flows(plan[1], rows, len(Z))
    leaving = moved.sum(axis=1) + moved.sum(axis=0)
    best, before = -np.inf, None
    for rare in _RARE:
        kept = leaving > rare * leaving.mean()
        if before is not None and (kept == before).all():
            continue
        before = kept
        best = max(best, _bound(rows, moves, ground, Z, mu, kept))
    return best


def _flows(pull: np.ndarray, rows: Rows, k: int) -> np.ndarray:
    """Mass that goes from class y to class j, shape (K, K), 0 on the diagonal."""
    moved = np.zeros((k, k))
    for j in range(k):
        moved[:, j] = np.bincount(rows.y, weights=pull[:, j], minlength=k)
    moved = rows.total(moved)
    np.fill_diagonal(moved, 0.0)
    return np.maximum(moved, 0.0)


def _bound(
    rows: Rows, moves: Moves, ground: ClassGround, Z: np.ndarray, mu: float, kept: np.ndarray
) -> float:
    w, y = rows.w * kept[rows.y], rows.y
    share: Any = kept.astype(float)
    if rows.intercept:
        _, pull, _ = moves.plan(w, mu, kept)
        share = _stationary(_flows(pull, rows, len(Z)), kept)
        if share is None:
            return -np.inf
    worth, pull, second = moves.plan(w * share[y], mu, kept)
    total = rows.sum(pull).T
    size = float(rows.total(np.abs(pull).sum()))
    d = rows.d
    if rows.intercept and np.abs(total[:, -1]).max() > _ROUNDING * max(size, 1e-300):
        return -np.inf
    A, ridge = total[:, :d], ground.ridge[:d]
    alive = (ground.cost[:d] > 0.0) & (not ground.still)
    held = np.zeros_like(A)
    if ridge.any():
        held = -ridge * (Z[:, :d] - Z[kept, :d].mean(axis=0)) * kept[:, None]
    held[:, ~alive] = A[:, ~alive]  # what cannot move is held by the ridge alone
    stuck = ~alive & ~(ridge > 0.0) & ~rows.dead
    if np.abs(A[:, stuck]).max(initial=0.0) > _ROUNDING * max(size, 1e-300):
        return -np.inf
    ball = (A - held)[:, alive] / np.sqrt(ground.cost[:d][alive])
    values, vectors = np.linalg.eigh(second)
    solid = values > _SOLID * values.max(initial=0.0)
    within = vectors[:, solid].T @ ball
    beyond = ball - vectors[:, solid] @ within
    if np.abs(beyond).max(initial=0.0) > _BEYOND * np.abs(ball).max(initial=0.0):
        return -np.inf
    spent = float((within**2 / values[solid, None]).sum())
    free = ridge > 0.0
    fee = float((held[:, free] ** 2 / ridge[free]).sum())
    # With a share t of the whole: t worth - t^2 fee / 2, in the ball t spent <= r^2; priced, less
    # t penalty spent.
    most, gain = 1.0, worth
    if ground.penalty is not None and not ground.still:
        gain = worth - ground.penalty * spent
    elif alive.any() and spent > (ground.radius or 0.0) ** 2:
        most = (ground.radius or 0.0) ** 2 / spent
    if fee > 0.0:
        most = min(most, max(gain, 0.0) / fee)
    # What lies outside of the plan's moves is rounding, at models of this size.
    lost = float(np.abs(beyond * np.sqrt(ground.cost[:d][alive])).sum() * np.abs(Z).max())
    return most * gain - 0.5 * most * most * fee - lost


def _stationary(moved: np.ndarray, kept: np.ndarray) -> np.ndarray | None:
    """Shares in (0, 1] of the classes that balance what goes between them; None: there are none."""
    index = np.flatnonzero(kept)
    if not index.size:
        return None
    moved = moved[np.ix_(index, index)]
    leaving = moved.sum(axis=1)
    if not (leaving > 0.0).all():
        return None
    rate = moved / leaving[:, None]
    system = np.vstack([rate.T - np.eye(len(index)), np.ones((1, len(index)))])
    law, right = np.zeros(len(index)), np.append(np.zeros(len(index)), 1.0)
    for _ in range(3):  # refined: what is left over is rounding
        law = law + np.linalg.lstsq(system, right - system @ law, rcond=None)[0]
    share = law / leaving
    if not (share > 0.0).all():
        return None
    out = np.zeros(len(kept))
    out[index] = share / share.max()
    return out
