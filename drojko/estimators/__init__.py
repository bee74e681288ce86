"""Estimators in scikit-learn's manner: validate, call the min-max solver, store arrays."""

from drojko.estimators.classifier import DROClassifier
from drojko.estimators.regressor import DRORegressor
from drojko.estimators.scoring import make_robust_scorer, radius_path

__all__ = ["DROClassifier", "DRORegressor", "make_robust_scorer", "radius_path"]
