"""Flows of maps: one proximal step over transport maps, for worst cases and gradient flows."""

from drojko.flows import functionals
from drojko.flows.envelope_scheme import EnvelopeScheme
from drojko.flows.flow_measures import FlowStep
from drojko.flows.icnn.map_state import MapState
from drojko.flows.icnn.scheme import ICNNScheme
from drojko.flows.importance.measure import Evidence, ImportanceMeasure
from drojko.flows.importance.scheme import ImportanceCorrectedScheme
from drojko.flows.jko import JKOFlow
from drojko.flows.line_scheme import LineScheme
from drojko.flows.result import FlowResult
from drojko.flows.semidual.scheme import SemiDualScheme, SemiDualStep

__all__ = [
    "EnvelopeScheme",
    "Evidence",
    "FlowResult",
    "FlowStep",
    "ICNNScheme",
    "ImportanceCorrectedScheme",
    "ImportanceMeasure",
    "JKOFlow",
    "LineScheme",
    "MapState",
    "SemiDualScheme",
    "SemiDualStep",
    "functionals",
]
