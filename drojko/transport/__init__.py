"""Transport maps: input-convex potentials, their gradients, and compositions."""

from drojko.transport.envelope import QuadraticEnvelope
from drojko.transport.icnn import ICNN
from drojko.transport.initialise import bures_map, set_affine
from drojko.transport.maps import AffineMap, BrenierMap, Composition, IdentityMap, TransportMap

__all__ = [
    "ICNN",
    "AffineMap",
    "BrenierMap",
    "Composition",
    "IdentityMap",
    "QuadraticEnvelope",
    "TransportMap",
    "bures_map",
    "set_affine",
]
