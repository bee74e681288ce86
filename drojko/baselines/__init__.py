"""Baselines: convex programs by cvxpy, and adversarial training sample by sample.

They share losses, ambiguity sets and conventions with the estimators, and none of their solvers, so
that each checks the other.
"""

from drojko.baselines.ascent import AdversarialClassifier, WRMClassifier
from drojko.baselines.convex import ConvexDROClassifier, ConvexDRORegressor

__all__ = [
    "AdversarialClassifier",
    "ConvexDROClassifier",
    "ConvexDRORegressor",
    "WRMClassifier",
]
