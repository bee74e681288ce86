"""Estimators with fast parameters for the checks that walk over all of them."""

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, CVaR, Sinkhorn, Wasserstein
from drojko.inner import Pointwise

# The empirical reference, for which weights are copies exactly (promise 4 of the checks).
INSTANCES = [
    DROClassifier(reference="empirical"),
    DRORegressor(reference="empirical"),
    DROClassifier(Wasserstein(penalty=10.0), reference="empirical", loss="hinge"),
    DRORegressor(Wasserstein(radius=0.05), reference="empirical", loss="absolute"),
    DRORegressor(reference="empirical", loss="huber", inner=Pointwise()),
    DROClassifier(KL(0.1), reference="empirical", alpha=0.01),
    DRORegressor(CVaR(0.3), reference="empirical", alpha=0.01),
    DROClassifier(Wasserstein(0.1, order=1), reference="empirical"),
    DRORegressor(Sinkhorn(0.1, radius=0.05), reference="empirical"),
]
