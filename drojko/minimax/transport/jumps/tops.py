"""The largest score of a group's categories, up and down, smoothed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["SIGNS", "Tops", "softmax"]

SIGNS = (1.0, -1.0)


def softmax(a: np.ndarray, mu: float) -> tuple[float, np.ndarray]:
    """``mu log sum exp(a / mu)`` and its gradient; at mu = 0 the maximum."""
    top = float(a.max())
    if mu == 0.0:
        share = np.zeros_like(a)
        share[a.argmax()] = 1.0
        return top, share
    share = np.exp((a - top) / mu)
    total = float(share.sum())
    return top + mu * float(np.log(total)), share / total


@dataclass(frozen=True, eq=False)
class Tops:
    r"""Smoothed maxima :math:`T_g^\pm` of plus and minus the scores of a group's categories.

    ``value`` (2, G), ``bias``, what they exceed the mean score under ``share[k][g]`` by, and
    ``mu``, how wide they are.
    """

    scores: list[np.ndarray]
    value: np.ndarray
    bias: np.ndarray
    share: list[list[np.ndarray]]
    mu: float

    @classmethod
    def of(cls, scores: list[np.ndarray], mu: float) -> Tops:
        """Of the scores of the categories of each group."""
        found = [[softmax(sign * score, mu) for score in scores] for sign in SIGNS]
        value = np.array([[top for top, _ in side] for side in found])
        share = [[part for _, part in side] for side in found]
        mean = [
            [sign * float(part @ score) for part, score in zip(side, scores, strict=True)]
            for sign, side in zip(SIGNS, share, strict=True)
        ]
        return cls(scores, value, value - np.array(mean), share, mu)

    def ahead(self, change: list[np.ndarray]) -> Tops:
        """With the shares as they change, to first order, with the scores."""
        share = []
        for sign, side in zip(SIGNS, self.share, strict=True):
            parts = []
            for part, step in zip(side, change, strict=True):
                rise = sign * (step - float(part @ step))
                new = part * np.maximum(1.0 + rise / self.mu, 0.0) if self.mu > 0.0 else part
                parts.append(new / new.sum())
            share.append(parts)
        return replace(self, share=share)

    def bend(self, k: int, g: int, images: np.ndarray) -> np.ndarray:
        """Second derivatives in the parameters of the group's columns, by images of categories."""
        share = self.share[k][g]
        mean = share @ images
        apart = images - mean
        return (
            (apart.T * (share / self.mu)) @ apart if self.mu > 0.0 else 0.0 * np.outer(mean, mean)
        )
