"""Reference measures: draws, weighted points, moments, densities.

`Empirical`, `Gaussian`, `KDE`, `GaussianMixture`, `FlowMeasure` and `Pushforward` are measures of
points; `ClassConditional` (classification) and `Joint` (regression) are measures of pairs (x, y).
"""

from drojko.measures.base import LabelledMeasure, Measure, has_atoms
from drojko.measures.class_conditional import ClassConditional
from drojko.measures.empirical import Empirical
from drojko.measures.flow import FlowMeasure
from drojko.measures.gaussian import Gaussian
from drojko.measures.grouped import Grouped
from drojko.measures.joint import Joint
from drojko.measures.kde import KDE
from drojko.measures.mixture import GaussianMixture
from drojko.measures.pushforward import Pushforward

__all__ = [
    "ClassConditional",
    "Empirical",
    "FlowMeasure",
    "Gaussian",
    "GaussianMixture",
    "Grouped",
    "Joint",
    "KDE",
    "LabelledMeasure",
    "Measure",
    "Pushforward",
    "has_atoms",
]
