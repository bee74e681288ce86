"""Flows of maps: one proximal step over transport maps, for worst cases and gradient flows."""

from drojko.flows.icnn_scheme import ICNNScheme, MapState

__all__ = ["ICNNScheme", "MapState"]
