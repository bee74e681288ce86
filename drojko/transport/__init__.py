"""Transport maps: input-convex potentials, their gradients, and compositions."""

from drojko.transport.envelope import QuadraticEnvelope
from drojko.transport.icnn import ICNN
from drojko.transport.initialise import bures_map, set_affine
from drojko.transport.maps import AffineMap, BrenierMap, Composition, IdentityMap, TransportMap
from drojko.transport.stochastic_jet import Probes

__all__ = [
    "ICNN",
    "AffineMap",
    "BrenierMap",
    "Composition",
    "IdentityMap",
    "Probes",
    "QuadraticEnvelope",
    "TransportMap",
    "bures_map",
    "set_affine",
]
