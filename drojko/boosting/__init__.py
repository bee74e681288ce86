"""Boosted trees and any other learner against a set that reweights.

`objective` for LightGBM and XGBoost; `ReweightedClassifier` and `ReweightedRegressor` for any
estimator that takes weights.
"""

from drojko.boosting.objectives import RobustObjective, objective
from drojko.boosting.reweighted import ReweightedClassifier, ReweightedRegressor

__all__ = ["ReweightedClassifier", "ReweightedRegressor", "RobustObjective", "objective"]
