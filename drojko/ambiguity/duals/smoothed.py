"""Smoothed duals of sets that reweight, with their second derivatives."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import entr, expit, logit

from drojko._numerics import root
from drojko.ambiguity.duals.point import Curve
from drojko.ambiguity.duals.scaling import Sample
from drojko.ambiguity.duals.support import Reweighting

__all__ = ["capped", "divergence", "flat", "maximum", "soft_maximum"]


def flat(bound: Reweighting, losses: np.ndarray) -> Curve:
    """The mean: nothing is reweighted."""
    mean = float(bound.weights @ losses)
    empty = np.zeros((losses.size, 0))
    return Curve(
        mean,
        math.inf,
        mean,
        np.ones(losses.size),
        mean,
        0.0,
        diagonal=np.zeros(losses.size),
        columns=empty,
        core=np.zeros((0, 0)),
        exact=mean,
    )


def divergence(bound: Reweighting, losses: np.ndarray, smoothing: float, barrier: bool) -> Curve:
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
    if barrier and given is None and float(radius or 0.0) >= reach:
        return maximum(bound, losses, smoothing)
    sample = Sample(losses, bound.weights, plain=bound.positive)
    sample.hint = bound.start
    ball, exact = None, math.nan
    if given is None:
        least = smoothing / min(float(radius or 0.0), reach)
        ball = None if sample.constant else family._ball(sample, float(radius or 0.0))
        penalty = 0.0 if ball is None else sample.enlarge(ball.penalty)
        exact = sample.restore(0.0 if ball is None else ball.excess)
    else:
        least = smoothing / reach
        penalty = float(given)
    if ball is not None and penalty >= least:
        worst, value = ball, sample.restore(ball.excess) - least * ball.radius
    else:
        ball, penalty = None, max(penalty, least)
        worst = family._priced(sample, penalty)
        value = sample.restore(worst.excess)
        exact = value if penalty == given else exact
    ratio = np.ones(losses.size)
    if worst.ratio is not None:
        ratio = sample.scatter(worst.ratio)
    bound.start = sample.hint
    w = bound.weights
    attained = float((w * ratio) @ losses)
    if not barrier:
        shift = sample.restore(worst.shift)
        return Curve(value, penalty, shift, ratio, attained, worst.radius, exact=exact)
    steep = w * family.steepness(ratio)
    total = max(float(steep.sum()), 1e-300)
    deviation = losses - float(steep @ losses) / total
    columns, core = [steep], [-1.0 / total]
    square = float(steep @ deviation**2)
    if ball is not None and square > 0.0:
        columns.append(steep * deviation)
        core.append(-1.0 / square)
    return Curve(
        value,
        penalty,
        sample.restore(worst.shift),
        ratio,
        attained,
        worst.radius,
        diagonal=steep / penalty,
        columns=np.column_stack(columns),
        core=np.diag(core) / penalty,
        exact=exact,
    )


def capped(bound: Reweighting, losses: np.ndarray, alpha: float, smoothing: float) -> Curve:
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
    share = expit(t)
    ratio = share / alpha
    value = eta + kappa / alpha * float(w @ np.logaddexp(0.0, t)) - smoothing
    steep = w * share * expit(-t)
    total = max(float(steep.sum()), 1e-300)
    return Curve(
        value,
        kappa,
        eta,
        ratio,
        float((w * ratio) @ losses),
        max(float(ratio.max()) - 1.0, 0.0),
        diagonal=steep / (alpha * kappa),
        columns=steep[:, None],
        core=np.array([[-1.0 / (total * alpha * kappa)]]),
    )


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


def soft_maximum(bound: Reweighting, losses: np.ndarray, smoothing: float) -> Curve:
    r"""Smoothed maximum :math:`\kappa \log E_0 e^{\ell/\kappa}`: kappa log(1/min w) = smoothing."""
    if bound.least >= 1.0:
        return flat(bound, losses)
    w = bound.weights
    kappa = smoothing / -math.log(bound.least)
    live = w > 0
    top = float(losses[live].max())
    ratio = np.where(live, np.exp(np.minimum((losses - top) / kappa, 0.0)), 0.0)
    total = float(w @ ratio)
    ratio /= total
    mass = w * ratio
    value = top + kappa * math.log(total)
    return Curve(
        value,
        kappa,
        value,
        ratio,
        float(mass @ losses),
        -math.log(total) if total < 1.0 else 0.0,
        diagonal=mass / kappa,
        columns=mass[:, None],
        core=np.array([[-1.0 / kappa]]),
    )


def maximum(bound: Reweighting, losses: np.ndarray, smoothing: float) -> Curve:
    r"""The maximum behind a logarithmic barrier.

    .. math:: \min_M\; M - \kappa E_0 \log\frac{M - \ell}{\kappa}, \qquad
              q = \frac{\kappa}{M - \ell}, \qquad M - E_0 q \ell = \kappa

    with kappa = smoothing: the attained mean is within kappa of M, which is above all losses.
    """
    if bound.least >= 1.0:
        return flat(bound, losses)
    w, kappa = bound.weights, smoothing
    top = float(losses[w > 0].max())
    distance = np.where(w > 0, top - losses, 0.0)
    # The harmonic mean of M - loss is concave in M: from below, Newton's method is monotone.
    x = kappa * float(w[(distance == 0.0) & (w > 0)].sum())
    for _ in range(60):
        inverse = 1.0 / (x + distance)
        first = float(w @ inverse)
        slope = float(w @ inverse**2) / first**2
        move = (kappa - 1.0 / first) / slope
        x += max(move, 0.0)
        if move <= 1e-15 * x:
            break
    ratio = np.where(w > 0, kappa / (x + distance), 0.0)
    ratio /= float(w @ ratio)
    steep = w * ratio**2 / kappa
    return Curve(
        top + x - kappa + kappa * float(w @ np.log(np.where(w > 0, ratio, 1.0))),
        kappa,
        top + x,
        ratio,
        float((w * ratio) @ losses),
        float(bound.ambiguity.radius_of_maximum(min(1.0 / float(ratio.max()), 1.0))),
        diagonal=steep,
        columns=steep[:, None],
        core=np.array([[-1.0 / float(steep.sum())]]),
        exact=top,
    )
