"""Flows of maps: one proximal step over transport maps, for worst cases and gradient flows."""

from drojko.flows import functionals
from drojko.flows.flow_measures import FlowStep
from drojko.flows.icnn_scheme import ICNNScheme, MapState
from drojko.flows.jko import FlowResult, JKOFlow

__all__ = ["FlowResult", "FlowStep", "ICNNScheme", "JKOFlow", "MapState", "functionals"]
