"""Estimators in scikit-learn's manner: validate, call the min-max solver, store arrays."""

from drojko.estimators.classifier import DROClassifier
from drojko.estimators.observed import ObservedShift, observed_shift
from drojko.estimators.radius import RadiusSelection, select_radius
from drojko.estimators.regressor import DRORegressor
from drojko.estimators.scoring import make_robust_scorer, make_worst_group_scorer, radius_path
from drojko.estimators.shifts import ShiftReport, shift_report

__all__ = [
    "DROClassifier",
    "DRORegressor",
    "ObservedShift",
    "RadiusSelection",
    "ShiftReport",
    "make_robust_scorer",
    "make_worst_group_scorer",
    "observed_shift",
    "radius_path",
    "select_radius",
    "shift_report",
]
