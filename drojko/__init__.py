"""drojko: distributionally robust optimisation with scikit-learn's manners.

    min over theta of  sup { E_P loss(theta; z) : D(P, P0) <= r }

Models are trained for the worst distribution P near a reference P0 that was fitted to the data;
each result carries a certificate, a lower and an upper bound on the worst-case risk.

Public names load on first use, so that ``import drojko`` costs next to nothing:

>>> import drojko
>>> drojko.ambiguity.Wasserstein(radius=0.1)
Wasserstein(radius=0.1)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AuditReport",
    "Certificate",
    "DROClassifier",
    "DRORegressor",
    "MinimaxProblem",
    "ObservedShift",
    "RadiusSelection",
    "ShiftReport",
    "WorstCase",
    "__version__",
    "ambiguity",
    "audit",
    "auditing",
    "baselines",
    "boosting",
    "displays",
    "distributed",
    "estimators",
    "exceptions",
    "flows",
    "inner",
    "load",
    "losses",
    "make_robust_scorer",
    "make_worst_group_scorer",
    "measures",
    "minimax",
    "nn",
    "observed_shift",
    "problems",
    "radius_path",
    "save",
    "select_radius",
    "shift_report",
    "transport",
]

#: Where the public objects are defined; every other public name is a room, a module of its own.
_HOME = {
    "AuditReport": "drojko.auditing",
    "Certificate": "drojko.certificates",
    "DROClassifier": "drojko.estimators",
    "DRORegressor": "drojko.estimators",
    "MinimaxProblem": "drojko.problems",
    "ObservedShift": "drojko.estimators",
    "RadiusSelection": "drojko.estimators",
    "ShiftReport": "drojko.estimators",
    "WorstCase": "drojko.inner",
    "audit": "drojko.auditing",
    "load": "drojko._persist",
    "save": "drojko._persist",
    "make_robust_scorer": "drojko.estimators",
    "make_worst_group_scorer": "drojko.estimators",
    "observed_shift": "drojko.estimators",
    "radius_path": "drojko.estimators",
    "select_radius": "drojko.estimators",
    "shift_report": "drojko.estimators",
}

if TYPE_CHECKING:
    from drojko import ambiguity as ambiguity
    from drojko import auditing as auditing
    from drojko import baselines as baselines
    from drojko import boosting as boosting
    from drojko import displays as displays
    from drojko import distributed as distributed
    from drojko import estimators as estimators
    from drojko import exceptions as exceptions
    from drojko import flows as flows
    from drojko import inner as inner
    from drojko import losses as losses
    from drojko import measures as measures
    from drojko import minimax as minimax
    from drojko import nn as nn
    from drojko import problems as problems
    from drojko import transport as transport
    from drojko._persist import load as load
    from drojko._persist import save as save
    from drojko.auditing import AuditReport as AuditReport
    from drojko.auditing import audit as audit
    from drojko.certificates import Certificate as Certificate
    from drojko.estimators import DROClassifier as DROClassifier
    from drojko.estimators import DRORegressor as DRORegressor
    from drojko.estimators import ObservedShift as ObservedShift
    from drojko.estimators import RadiusSelection as RadiusSelection
    from drojko.estimators import ShiftReport as ShiftReport
    from drojko.estimators import make_robust_scorer as make_robust_scorer
    from drojko.estimators import make_worst_group_scorer as make_worst_group_scorer
    from drojko.estimators import observed_shift as observed_shift
    from drojko.estimators import radius_path as radius_path
    from drojko.estimators import select_radius as select_radius
    from drojko.estimators import shift_report as shift_report
    from drojko.inner import WorstCase as WorstCase
    from drojko.problems import MinimaxProblem as MinimaxProblem


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value  # the next access does not come here
        return value
    if name in __all__:
        return import_module(f"drojko.{name}")
    raise AttributeError(f"module 'drojko' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
