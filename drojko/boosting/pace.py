"""How long the steps of boosting are, so that the worst-case risk falls from where it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["Pace"]

#: Damping of the first round, and its growth between rounds: at first and most, least, and the
#: powers that it is raised to after a rise and after a record.
_FIRST, _MOST, _LEAST, _SLOWER, _FASTER = 1024.0, 2.0, 1.1, 0.5, 1.2
#: What a rise does to the damping, and its most; before the first full step only beyond this share
#: of the record.
_RISEN, _SHORTEST, _DRIFT = 2.0, 2.0**20, 1e-3
#: Share of the last ratios that is kept while steps are short, and the damping from which on.
_KEPT, _SHORT = 0.8, 8.0


@dataclass(frozen=True)
class Pace:
    """State of the damping between two rounds.

    Where all losses are equal, as at the score 0, the worst case has a kink: one tree seldom leads
    down, many small ones together do, each fitted to weights that the others moved. So steps begin
    tiny, and grow by the round as fast as the risk allows.

    Attributes
    ----------
    damped : float
        By how much leaves are shorter than their Newton step.
    growth : float
        What the damping is divided by after a record.
    record, last : float
        Least risk so far, and that of the round before.
    starting : bool
        Whether no full step was made yet.
    """

    damped: float
    growth: float
    record: float
    last: float
    starting: bool

    @classmethod
    def first(cls, risk: float) -> Pace:
        """Before the first tree."""
        return cls(_FIRST, _MOST, risk, risk, True)

    def after(self, risk: float) -> Pace:
        """What a round that ended in this risk makes of it."""
        damped, growth = self.damped, self.growth
        if risk < self.record:
            damped, growth = max(damped / growth, 1.0), min(growth**_FASTER, _MOST)
        elif risk >= self.last:
            growth = max(growth**_SLOWER, _LEAST)
            if not self.starting or risk > self.record + _DRIFT * abs(self.record):
                damped = min(damped * _RISEN, _SHORTEST)
        return replace(
            self, damped=damped, growth=growth, record=min(self.record, risk), last=risk,
            starting=self.starting and damped > 1.0,
        )  # fmt: skip

    @property
    def kept(self) -> float:
        """Share of the last ratios that stays, as long as steps are short."""
        if not self.starting:
            return 0.0
        return _KEPT * min(1.0, math.log(self.damped, _SHORT))
