"""Decisions without a minimum: a direction along which the worst case falls for ever."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drojko.problems.constraints import Region
from drojko.problems.families.oracle import Answer, Oracle

__all__ = ["Horizon"]

_FAR = 1e4  # natural lengths from the start beyond which a ray is asked for its end
#: Where along a ray: numbers end before distances do.
_SHARES = 10.0 ** np.array([0.0, 3.0, 6.0, 9.0, 12.0, 24.0, 48.0])
_ENOUGH = 5  # of them at least, where losses overflow or have no finite worst case farther out


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

        The slope of a convex function along a ray never falls: where it is the same at all
        distances that numbers allow, it is that of the whole ray, which the region never ends.
        ``size`` is that of the losses.
        """
        move = region.recession(point - self.start)
        length = float(np.abs(move).max())
        if not length > 0.0:
            return None
        shares, values = [0.0], [_value(oracle, point)]
        # A million is far for variables without any length.
        for share in _SHARES * np.where(_SHARES > 1e3, max(1.0, 1.0 / length), 1.0):
            at = point + share * move
            if not np.abs(region.nearest(at) - at).max() <= 1e-6 * np.abs(at).max():
                return None
            value = _value(oracle, at)
            if value is None:
                break
            shares.append(float(share))
            values.append(value)
        if len(values) <= _ENOUGH or values[0] is None:
            return None
        falls = np.diff(values) / np.diff(shares)
        steady = bool((falls <= 0.99 * falls[0]).all()) and falls[0] < -1e-6 * size
        return move / np.linalg.norm(move) if steady else None


def _value(oracle: Oracle, point: np.ndarray) -> float | None:
    """The worst case at a point; None where it is not finite."""
    with np.errstate(all="ignore"):
        answer = oracle(point)
    known = isinstance(answer, Answer) and np.isfinite(answer.value)
    return answer.value if known else None
