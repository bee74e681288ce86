"""Are probabilities what they say: Brier score and calibration error of weighted rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import expit, softmax

__all__ = ["calibration"]

#: Classes of confidence of equal width, as C. Guo, G. Pleiss, Y. Sun, K. Weinberger (2017), "On
#: calibration of modern neural networks", arXiv 1706.04599, use.
BINS = 15


def calibration(f: Any, y: Any, mass: Any) -> tuple[float, float]:
    r"""Brier score and expected calibration error of logits f (n,) or (n, K), labels y (n,).

    .. math:: \mathrm{Brier} = E |p - e_y|^2 \; (\text{halved for two classes}), \qquad
        \mathrm{ECE} = \sum_b P(b)\,|P(\hat y = y \mid b) - E(\max_k p_k \mid b)|

    >>> round(calibration([0.0, 40.0], [1, 1], [0.5, 0.5])[0], 6)  # half of (1/2)^2
    0.125
    >>> calibration([40.0, -40.0], [1, 0], [0.5, 0.5])[1] < 1e-12
    True
    """
    f, y, mass = (np.asarray(part, dtype=np.float64) for part in (f, y, mass))
    mass = mass / mass.sum()
    if not np.isfinite(f).all():
        return math.nan, math.nan
    p = softmax(f, axis=1) if f.ndim == 2 else np.stack([expit(-f), expit(f)], axis=1)
    truth = np.arange(p.shape[1]) == y[:, None]
    brier = float(mass @ ((p - truth) ** 2).sum(1)) / (2.0 if f.ndim == 1 else 1.0)
    top = p.max(1)
    right = p.argmax(1) == y
    at = np.minimum((top * BINS).astype(int), BINS - 1)
    gaps = np.bincount(at, mass * (right - top), BINS)
    return brier, float(np.abs(gaps).sum())
