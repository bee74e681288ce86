"""Decisions beyond prediction: any loss of (params, z) against the worst distribution of z.

`MinimaxProblem` takes a loss, a first decision, a reference and an ambiguity set, and minimises the
worst case; `newsvendor`, `portfolio` and `least_squares` build such problems. Losses that carry
their structure as data (`MaxAffine`, `SeparableMaxAffine`, `Quadratic`) have exact worst cases.
"""

from drojko.problems.constraints import Ball, Box, Constraint, Nonnegative, Simplex
from drojko.problems.families.structured import (
    MaxAffine,
    Quadratic,
    SeparableMaxAffine,
    StructuredLoss,
)
from drojko.problems.least_squares import least_squares
from drojko.problems.newsvendor import newsvendor
from drojko.problems.portfolio import portfolio
from drojko.problems.problem import MinimaxProblem, Solution
from drojko.problems.worst_case import DecisionWorstCase

__all__ = [
    "Ball",
    "Box",
    "Constraint",
    "DecisionWorstCase",
    "MaxAffine",
    "MinimaxProblem",
    "Nonnegative",
    "Quadratic",
    "SeparableMaxAffine",
    "Simplex",
    "Solution",
    "StructuredLoss",
    "least_squares",
    "newsvendor",
    "portfolio",
]
