"""How far apart two samples are: means and covariances, what is left beside them, an interval."""

from drojko.estimators.observed.front import ObservedShift, observed_shift
from drojko.estimators.observed.halves import distance_of_halves

__all__ = ["ObservedShift", "distance_of_halves", "observed_shift"]
