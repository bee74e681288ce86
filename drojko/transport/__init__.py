"""Transport maps: input-convex potentials, their gradients, and compositions."""

from drojko.transport.envelope import QuadraticEnvelope
from drojko.transport.icnn import ICNN
from drojko.transport.jet import Probes
from drojko.transport.maps import (
    AffineMap,
    BrenierMap,
    Composition,
    IdentityMap,
    TransportMap,
    bures_map,
    set_affine,
)

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
