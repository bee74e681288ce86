"""Smoothed duals of sets that reweight: ratios that are continuous in the losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import entr, expit, logit

from drojko._numerics import root
from drojko.ambiguity.base import Dual
from drojko.ambiguity.duals.scaling import Sample

__all__ = ["capped", "divergence", "flat", "reweighted", "soft_maximum"]


def reweighted(
    bound: Any, losses: np.ndarray, value: float, penalty: float, shift: float, ratio: np.ndarray
) -> Dual:
    """A dual with what its ratio attains and spends."""
    weights = bound.weights
    spent = bound.ambiguity.discrepancy(ratio, weights)
    return Dual(value, penalty, shift, ratio, float((weights * ratio) @ losses), spent)


def flat(bound: Any, losses: np.ndarray) -> Dual:
    """The mean: nothing is reweighted."""
    mean = float(bound.weights @ losses)
    return Dual(mean, math.inf, mean, np.ones(losses.size), mean, 0.0)


def divergence(bound: Any, losses: np.ndarray, smoothing: float) -> Dual:
    r"""Smoothed dual of an f-divergence: its multiplier stays above a least one.

    .. math:: V_\delta = \max_{D(q) \le r} E_0 q \ell - \underline\lambda D(q)
              = \min_{\lambda \ge \underline\lambda} \Phi(\lambda) - \underline\lambda r, \qquad
              \underline\lambda = \delta / \min(r, D_{\max})

    so that the ratio stays continuous where the worst case would jump to the largest loss.
    """
    family = bound.ambiguity
    reach = family.radius_of_maximum(bound.least)
    given, radius = family.penalty, family.radius
    if radius == 0.0 or reach <= 0.0:
        return flat(bound, losses)
    sample = Sample(losses, bound.weights, plain=bound.positive)
    sample.hint = bound.start
    ball = None
    if given is None:
        least = smoothing / min(float(radius or 0.0), reach)
        ball = None if sample.constant else family._ball(sample, float(radius or 0.0))
        penalty = 0.0 if ball is None else sample.enlarge(ball.penalty)
    else:
        least = smoothing / reach
        penalty = float(given)
    if ball is not None and penalty >= least:
        worst, value = ball, sample.restore(ball.excess) - least * ball.radius
    else:
        penalty = max(penalty, least)
        worst = family._priced(sample, penalty)
        value = sample.restore(worst.excess)
    ratio = np.ones(losses.size)
    if worst.ratio is not None:
        ratio = sample.scatter(worst.ratio)
    bound.start = sample.hint
    attained = float((bound.weights * ratio) @ losses)
    shift = sample.restore(worst.shift)
    return Dual(value, penalty, shift, ratio, attained, worst.radius)


def capped(bound: Any, losses: np.ndarray, alpha: float, smoothing: float) -> Dual:
    r"""Smoothed CVaR: ratios below 1 / alpha with an entropy in the place of the two bounds.

    .. math:: V_\delta = \min_\eta\; \eta
              + \frac{\kappa}{\alpha} E_0 \log(1 + e^{(\ell - \eta) / \kappa}) - \delta,
              \qquad \kappa = \delta \alpha / h(\alpha)

    with the entropy h of a coin: h(alpha q) lies between 0 and, on average, h(alpha).
    """
    if alpha >= 1.0:
        return flat(bound, losses)
    w = bound.weights
    entropy = float(entr(alpha) + entr(1.0 - alpha))
    kappa = smoothing * alpha / entropy
    eta = _threshold(losses, w, alpha, kappa, bound.start)
    bound.start = eta
    t = (losses - eta) / kappa
    ratio = expit(t) / alpha
    value = eta + kappa / alpha * float(w @ np.logaddexp(0.0, t)) - smoothing
    return reweighted(bound, losses, value, kappa, eta, ratio)


def _threshold(
    losses: np.ndarray, w: np.ndarray, alpha: float, kappa: float, start: float | None
) -> float:
    """Return eta with E expit((losses - eta) / kappa) = alpha."""
    offset = kappa * float(logit(alpha))
    low, high = float(losses.min()) - offset, float(losses.max()) - offset
    if start is None or not low < start < high:
        order = np.argsort(losses)
        cut = int(np.searchsorted(np.cumsum(w[order]), 1.0 - alpha))
        start = float(losses[order[min(cut, losses.size - 1)]])
        start = min(max(start, low), high)

    centred, first = (losses - start) / kappa, start

    def excess(u: float) -> tuple[float, float]:
        share = expit(centred - u)
        return alpha - float(w @ share), float(w @ (share * (1.0 - share)))

    low, high = (low - first) / kappa, (high - first) / kappa
    return first + kappa * root(excess, 0.0, low=low, high=high, tol=1e-14)


def soft_maximum(bound: Any, losses: np.ndarray, smoothing: float) -> Dual:
    r"""Smoothed maximum :math:`\kappa \log E_0 e^{\ell/\kappa}`: kappa log(1/min w) = smoothing."""
    if bound.least >= 1.0:
        return flat(bound, losses)
    w = bound.weights
    kappa = smoothing / -math.log(bound.least)
    live = w > 0
    top = float(losses[live].max())
    ratio = np.where(live, np.exp(np.minimum((losses - top) / kappa, 0.0)), 0.0)
    total = float(w @ ratio)
    value = top + kappa * math.log(total)
    return reweighted(bound, losses, value, kappa, value, ratio / total)
