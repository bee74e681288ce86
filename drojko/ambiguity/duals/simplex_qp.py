"""Quadratic programs over the probability simplex, by a primal-dual interior-point method.

The losses are given, or those of a model that is trained on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

__all__ = ["KINKED", "Iterate", "Jet", "Trained", "solve"]

_STEPS = 80
_SOLVED = 1e-11  # duality gap and residuals at the end
_BACK = 0.995  # share of the way to the boundary that a step may go
_NEGLIGIBLE = 1e-13  # rows whose squared couplings in the Newton matrix are smaller are left out
_ROUGH = 1e-4  # complementarity down to which a factor of small rank serves for the direction
_DIRECT = 2500  # largest Newton matrix in the points themselves
_ROUNDING = 1e-13  # complementarity below which more steps hardly help
_CENTRED = 0.3  # least share of the complementarity that a careful step aims at
_KINK, KINKED = 0.3, 1e-8  # smoothing of losses, over the complementarity, and the least
_BENT, _HALVINGS = 0.3, 10  # share of the residuals that losses may bend by
_FIXED = np.empty((0, 0))


class Jet(NamedTuple):
    """A model's losses (n,) at parameters of shape (k,), with what a Newton step needs of them.

    ``tangent`` (n, k) holds their gradients, ``hessian`` (k, k) is that of p'losses + penalty, and
    ``pull`` (k,) the gradient of the penalty alone.
    """

    losses: np.ndarray
    tangent: np.ndarray
    hessian: np.ndarray
    pull: np.ndarray


class Trained(Protocol):
    """Losses l(theta), convex in the parameters of a model, plus a penalty on these.

    All are over ``unit``, so that they are of order 1.
    """

    @property
    def size(self) -> int:
        """Number of parameters."""
        ...

    @property
    def unit(self) -> float:
        """What the losses were divided by."""
        ...

    def jet(self, theta: np.ndarray, p: np.ndarray, smoothing: float) -> Jet:
        """The losses near theta under masses p; kinks are smoothed by at most ``smoothing``."""
        ...


@dataclass(eq=False)
class Iterate:
    """A point of the interior: p > 0, s > 0 (multipliers of p >= 0), nu, kappa > 0, t > 0."""

    p: np.ndarray
    s: np.ndarray
    nu: float
    kappa: float
    t: float
    ball: bool  # whether kappa and t vary
    theta: np.ndarray = field(default_factory=lambda: np.empty(0))  # of the model
    gap: float = np.inf


class _Newton:
    """Solves with kappa K + diag(s / p), K = L L', by Cholesky of I + a matrix of small rank.

    With P = diag(sqrt(p / s)) that is P^-1 (I + kappa P K P) P^-1, whose eigenvalues are at least
    1: nothing breaks down as p and s go to zero. Rows where kappa p k / s is negligible (points
    that leave the support) are those of the identity and drop out.
    """

    def __init__(self, gram: np.ndarray | None, factor: np.ndarray, it: Iterate, rough: bool):
        self.scale = np.sqrt(it.p / it.s)
        diagonal = (factor**2).sum(1) if gram is None else gram.diagonal()
        large = it.kappa * diagonal * self.scale**2
        self.kept = np.flatnonzero(large * max(1.0, float(large.max())) > _NEGLIGIBLE)
        self.low = np.empty((0, 0))
        scale = self.scale[self.kept]
        m = factor.shape[1]
        # Where ranks are small the inverse of M is the difference of large numbers: not at the end.
        direct = self.kept.size <= 3 * m or (not rough and self.kept.size <= _DIRECT)
        if direct and gram is not None:
            whole = self.kept.size == self.scale.size
            matrix = gram if whole else gram[np.ix_(self.kept, self.kept)]
            matrix = (it.kappa * scale)[:, None] * matrix * scale
        elif direct:
            low = (np.sqrt(it.kappa) * scale)[:, None] * factor[self.kept]
            matrix = low @ low.T
        else:
            self.low = (np.sqrt(it.kappa) * scale)[:, None] * factor[self.kept]
            matrix = self.low.T @ self.low
        matrix[np.diag_indices_from(matrix)] += 1.0
        self.cholesky = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)

    def __call__(self, right: np.ndarray) -> np.ndarray:
        """Return the solution for each column of ``right``."""
        scaled = self.scale[:, None] * right
        part = scaled[self.kept]
        if self.low.size == 0:
            solved = cho_solve(self.cholesky, part, check_finite=False)
        else:
            solved = self._woodbury(part)
            for _ in range(2):  # the difference of large numbers: refine it
                left = part - solved - self.low @ (self.low.T @ solved)
                solved += self._woodbury(left)
        scaled[self.kept] = solved
        return self.scale[:, None] * scaled

    def _woodbury(self, right: np.ndarray) -> np.ndarray:
        inner = cho_solve(self.cholesky, self.low.T @ right, check_finite=False)
        return right - self.low @ inner


def solve(
    losses: np.ndarray,
    weights: np.ndarray,
    factor: np.ndarray,
    gram: np.ndarray | None,
    *,
    radius: float | None = None,
    penalty: float | None = None,
    start: Iterate | None = None,
    careful: bool = False,
    model: Trained | None = None,
) -> tuple[Iterate, Iterate]:
    r"""Maximise l'p over p >= 0, 1'p = 1 with |L'(p - w)| <= radius, or a price for it.

    .. math:: \max_p\; l^\top p - \mathrm{penalty} \cdot (p - w)^\top K (p - w)
              \quad\text{or s.t.}\quad (p - w)^\top K (p - w) \le \mathrm{radius}^2

    Mehrotra's predictor and corrector on the optimality conditions

        -l + kappa K (p - w) - s + nu 1 = 0,  p s = mu,  kappa t = mu,
        1'p = 1,  (p - w)'K(p - w) / 2 + t = radius^2 / 2,

    with kappa = 2 penalty fixed in the penalised form; at most 80 steps within one evaluation of a
    dual, which no limit of a fit has to reach. A solution is approximate: who needs bounds makes
    them from p (primal) and kappa (p - w) (dual), see `drojko.ambiguity.MMD`.

    Parameters
    ----------
    losses, weights : ndarray of shape (n,)
        Losses of order 1; positive weights that sum to 1.
    factor : ndarray of shape (n, m)
        L with K = L L'.
    gram : ndarray of shape (n, n) or None
        K, where it is at hand.
    radius, penalty : float
        Exactly one, positive.
    start : Iterate, default=None
        An iterate of a problem with similar losses.
    model : Trained, default=None
        Its losses stand in for ``losses``, and its penalised worst case is minimised in theta on
        the same path: the conditions gain p'grad l + grad penalty = 0.
    careful : bool
        Stay near the central path: more steps, for problems on which long ones end at the boundary.

    Returns
    -------
    Iterate, Iterate
        The solution, and an iterate from the middle of the path to start from next time.

    References
    ----------
    S. Mehrotra (1992), On the implementation of a primal-dual interior point method.
    """
    ball = radius is not None
    half = 0.5 * radius**2 if radius is not None else 0.0
    apply = (lambda v: factor @ (factor.T @ v)) if gram is None else (lambda v: gram @ v)
    it = _first(losses, weights, half, penalty) if start is None else deepcopy(start)
    jet = Jet(losses, np.empty((len(losses), 0)), _FIXED, np.empty(0))
    if model is not None:
        it.theta = np.zeros(model.size)
    middle, best = deepcopy(it), deepcopy(it)
    stalled, smoothing = 0, 1.0
    for _ in range(_STEPS):
        u = it.p - weights
        h = apply(u)
        quadratic = float(u @ h)
        comp = float(it.p @ it.s) + (it.kappa * it.t if ball else 0.0)
        if model is not None:
            smoothing = max(_KINK * comp, KINKED)
            jet = model.jet(it.theta, it.p, smoothing)
        balance = jet.tangent.T @ it.p + jet.pull
        dual = -jet.losses + it.kappa * h - it.s + it.nu
        mass = float(it.p.sum()) - 1.0
        ring = 0.5 * quadratic + it.t - half if ball else 0.0
        # What the bounds made from this iterate would differ by.
        gap = comp + float(np.abs(dual).max()) + it.kappa * abs(ring) + abs(mass)
        gap += float(np.abs(balance).sum())
        if gap < best.gap:
            stalled = 0
            best = deepcopy(it)
            best.gap = gap
        else:
            stalled += 1
        if comp > 1e-2:
            middle = deepcopy(it)
        patience = 12 if best.gap > 1e-8 else 3 if comp > _ROUNDING else 1
        if gap <= _SOLVED or stalled >= patience:
            break
        try:
            newton = _Newton(gram, factor, it, rough=comp > _ROUGH)
        except LinAlgError:
            break
        direction = _directions(it, newton, h, dual, ring, mass, balance, jet)
        dp, ds, dnu, dk, dt, _ = direction(0.0)
        primal, dual_step = _lengths(it, dp, ds, dk, dt, 1.0)
        after = float((it.p + primal * dp) @ (it.s + dual_step * ds))
        if ball:
            after += (it.kappa + dual_step * dk) * (it.t + primal * dt)
        sigma = min(max(after / max(comp, 1e-300), 0.0), 1.0) ** 3
        if careful:
            sigma = max(sigma, _CENTRED)
        mu = sigma * comp / (losses.size + ball)
        if ball:  # the ball is curved and couples both sides: one length for all, and its curvature
            share = min(primal, dual_step) ** 2
            moved = apply(dp)
            dp, ds, dnu, dk, dt, dtheta = direction(
                mu,
                share * dp * ds,
                share * dk * dt,
                share * 0.5 * float(dp @ moved),
                share * dk * moved,
            )
        else:
            dp, ds, dnu, dk, dt, dtheta = direction(mu, dp * ds)
        length = min(_lengths(it, dp, ds, dk, dt, _BACK))
        if not np.isfinite(length + dnu):
            break
        if model is not None:  # where losses bend, a step goes as far as they are nearly straight
            slack, rise = max(comp, _BENT * float(np.abs(dual).max())), jet.tangent @ dtheta
            for _ in range(_HALVINGS):
                new = model.jet(it.theta + length * dtheta, it.p, smoothing).losses
                if float((new - jet.losses - length * rise).max()) <= slack:
                    break
                length *= 0.5
        it.p += length * dp
        it.s += length * ds
        it.nu += length * dnu
        it.kappa += length * dk
        it.t += length * dt
        it.theta += length * dtheta
    return best, middle


def _directions(
    it: Iterate,
    newton: _Newton,
    slope: np.ndarray,
    dual: np.ndarray,
    ring: float,
    mass: float,
    balance: np.ndarray,
    jet: Jet,
) -> Callable[..., tuple[np.ndarray, np.ndarray, float, float, float, np.ndarray]]:
    """The linearised conditions at an iterate, for several right-hand sides.

    Unknowns beside p are kappa (in a ball), nu and theta; their columns in the first condition are
    K(p - w), 1 and the losses' gradients, with a minus.
    """
    first = [] if not it.ball else [slope]
    right = np.column_stack([*first, np.ones(slope.size), -jet.tangent])
    border, k = newton(right), len(first)
    corner = right.T @ border
    if it.ball:
        corner[0, 0] += it.t / it.kappa
    corner[k + 1 :, k + 1 :] += jet.hessian
    sides = np.append(np.full(k, -ring), np.append(-mass, balance))

    def direction(target, pairs=0.0, last=0.0, curve=0.0, bend=0.0):
        """Step of all to complementarity ``target``; the other terms are of second order."""
        complement = (target - pairs) / it.p - it.s
        b = newton((-dual - bend + complement)[:, None])[:, 0]
        ends = right.T @ b - sides
        if it.ball:
            ends[0] += curve + (target - last) / it.kappa - it.t
        try:
            found = np.linalg.solve(corner, ends)
        except np.linalg.LinAlgError:
            found = np.linalg.lstsq(corner, ends, rcond=None)[0]
        dp, dt, dk = b - border @ found, 0.0, 0.0
        if it.ball:
            dk = float(found[0])
            dt = (target - last - it.kappa * it.t - it.t * dk) / it.kappa
        return dp, complement - it.s * dp / it.p, float(found[k]), dk, float(dt), found[k + 1 :]

    return direction


def _first(losses: np.ndarray, weights: np.ndarray, half: float, penalty: float | None) -> Iterate:
    """Return the centre of the ball, with multipliers that balance."""
    spread = float(np.ptp(losses)) or 1.0
    nu = float(losses.max()) + spread
    # In a ball kappa |L'(p - w)| is of the order of the losses: larger, and it falls faster than
    # the residuals do.
    kappa = 2.0 * penalty if penalty is not None else spread / math.sqrt(2.0 * half)
    return Iterate(weights.copy(), nu - losses, nu, kappa, half, penalty is None)


def _lengths(it, dp, ds, dk, dt, share):
    """Return the longest steps that keep p, t and s, kappa positive."""
    primal = _reach(np.append(it.p, it.t), np.append(dp, dt))
    dual = _reach(np.append(it.s, it.kappa), np.append(ds, dk))
    return min(1.0, share * primal), min(1.0, share * dual)


def _reach(x: np.ndarray, dx: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(dx < 0, -x / dx, np.inf)
    return float(ratio.min())
