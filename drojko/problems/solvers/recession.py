"""Decisions without a minimum: a direction along which the worst case falls for ever."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drojko.problems.constraints import Region
from drojko.problems.families.oracle import Answer, Oracle

__all__ = ["Horizon"]

_FAR = 1e4  # natural lengths from the start beyond which a ray is asked for its end
#: Where along a ray: numbers end before distances do.
_POWERS = np.array([0.0, 3.0, 6.0, 9.0, 12.0, 24.0, 48.0])
_STEADY = 0.99  # of the fall per digit so far
_ENOUGH = 5  # of them at least, where losses overflow or have no finite worst case farther out
_BENDS = 30  # directions that curve, and are taken out of the move


@dataclass(frozen=True)
class Horizon:
    """The first decision, and how far from it a descent looks as if it had no end."""

    start: np.ndarray
    reach: np.ndarray

    @staticmethod
    def of(start: np.ndarray, lengths: np.ndarray) -> Horizon:
        """Of a first decision, and the natural lengths of moves there."""
        return Horizon(start, _FAR * np.maximum(lengths, np.abs(start)))

    def beyond(self, point: np.ndarray) -> bool:
        """Whether a decision lies behind it."""
        return bool((np.abs(point - self.start) > self.reach).any())

    def farther(self) -> Horizon:
        """Where to look next."""
        return Horizon(self.start, 10.0 * self.reach)

    def direction(
        self, oracle: Oracle, region: Region, point: np.ndarray, size: float
    ) -> np.ndarray | None:
        """The way from the start to a point, where the value keeps falling along it.

        A convex function that is bounded below, or has a minimum on a ray, does not fall as much
        per digit of the distance, again and again: a line falls ever more, a logarithm as much. A
        descent wanders where it is held, too:
        what bends the value along the move is taken out of it, as far as that shows in the change
        of the gradient. ``size`` is that of the losses.
        """
        move, bends = point - self.start, np.zeros((len(point), 0))
        for _ in range(min(len(point), _BENDS)):
            move = region.recession(move)
            length = float(np.abs(move).max())
            if not length > 1e-6 * np.abs(point - self.start).max():
                return None
            if _falls(oracle, region, point, move, size):
                return move / np.linalg.norm(move)
            near, far = _answer(oracle, point), _answer(oracle, point + 1e3 * move)
            if near is None or far is None:
                return None
            change = far.gradient - near.gradient
            change = change - bends @ (bends.T @ change)
            norm = float(np.linalg.norm(change))
            if not norm > 1e-9 * np.linalg.norm(near.gradient):
                return None
            bends = np.column_stack([bends, change / norm])
            move = move - bends @ (bends.T @ move)
        return None


def _falls(
    oracle: Oracle, region: Region, point: np.ndarray, move: np.ndarray, size: float
) -> bool:
    """Whether the value falls along a move and its multiples, which the region never ends."""
    last = _answer(oracle, point)
    rate, power, met = 1e-6 * size, -1.0, 0
    if last is None:
        return False
    longer = max(1.0, 1.0 / float(np.abs(move).max()))  # far for variables without any length
    for digits in _POWERS + np.where(_POWERS > 3.0, math.log10(longer), 0.0):
        at = point + 10.0**digits * move
        if not np.abs(region.nearest(at) - at).max() <= 1e-6 * np.abs(at).max():
            return False
        answer = _answer(oracle, at)
        if answer is None:
            break
        fall = (last.value - answer.value) / (digits - power)
        if not fall > rate:
            return False
        # The first point is at the end of the move, not far out: its rate is no rate.
        rate = _STEADY * fall if met else rate
        last, power, met = answer, digits, met + 1
    return met >= _ENOUGH


def _answer(oracle: Oracle, point: np.ndarray) -> Answer | None:
    """The worst case at a point; None where it is not finite."""
    with np.errstate(all="ignore"):
        answer = oracle(point)
    return answer if isinstance(answer, Answer) and np.isfinite(answer.value) else None
