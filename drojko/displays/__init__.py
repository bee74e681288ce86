"""Pictures of fitted models: data holders that draw themselves on request.

As in scikit-learn, ``__init__`` stores numbers, ``from_estimator`` and ``from_report`` compute
them and plot, and ``plot(ax=None)`` draws; it sets ``ax_`` and ``figure_``. matplotlib is imported
when something is drawn, not before.
"""

from drojko.displays.convergence import ConvergenceDisplay
from drojko.displays.displacement import DisplacementDisplay
from drojko.displays.robustness_curve import RobustnessCurveDisplay
from drojko.displays.worst_case import WorstCaseDisplay

__all__ = [
    "ConvergenceDisplay",
    "DisplacementDisplay",
    "RobustnessCurveDisplay",
    "WorstCaseDisplay",
]
