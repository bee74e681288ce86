"""Estimators with fast parameters for the checks that walk over all of them."""

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.inner import Pointwise

# The empirical reference, for which weights are copies exactly (promise 4 of the checks).
INSTANCES = [
    DROClassifier(reference="empirical"),
    DRORegressor(reference="empirical"),
    DROClassifier(Wasserstein(penalty=10.0), reference="empirical", loss="hinge"),
    DRORegressor(Wasserstein(radius=0.05), reference="empirical", loss="absolute"),
    DRORegressor(reference="empirical", loss="huber", inner=Pointwise()),
]
