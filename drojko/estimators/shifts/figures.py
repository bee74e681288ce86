"""What robustness paid on shifts that occur in nature: the figures that reports quote."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEASURED", "SPLITS", "TASKS", "Measured", "quoted"]

#: Shifts and splits of benchmarks/results/natural.csv, from which these figures are; a test
#: compares them.
TASKS, SPLITS = 15, 10


@dataclass(frozen=True)
class Measured:
    """Tasks with lower and higher target loss than tuned L2, of how many, and the mean in %."""

    better: int
    worse: int
    of: int
    mean: float


MEASURED = {
    "W2, environments": Measured(1, 1, 15, -0.3),
    "KL, environments": Measured(1, 0, 15, -0.2),
    "CVaR, environments": Measured(1, 0, 15, -0.4),
    "Group, environments": Measured(1, 0, 15, -0.4),
    "told the direction: set": Measured(5, 0, 15, -0.8),
    "told the direction: level": Measured(8, 0, 15, -2.3),
    "50 target labels: level": Measured(7, 0, 15, -5.5),
    "stack of L2 and trees": Measured(7, 2, 15, -1.9),
}


def quoted(name: str) -> str:
    """Figures of a method as a phrase.

    >>> quoted("50 target labels: level")
    'better on 7 of 15, worse on 0, -5.5 % in the mean'
    """
    found = MEASURED[name]
    return (
        f"better on {found.better} of {found.of}, worse on {found.worse}, "
        f"{found.mean:+.1f} % in the mean"
    )
