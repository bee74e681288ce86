"""Inner problem: the worst case of a fixed model, as a flow of maps with proximal corrections."""

from drojko.inner.choice import get_inner
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Batch, Objective
from drojko.inner.reweighting.density_flow import ClassFlow, DensityFlow
from drojko.inner.reweighting.importance import Importance
from drojko.inner.reweighting.semidual import SemiDual, SemiDualWorstCase
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.ascent import proximal_ascent
from drojko.inner.transport.radius import BallSolution, solve_ball
from drojko.inner.transport.solvers import ICNNJKO, Pointwise
from drojko.inner.transport.transported import TransportedWorstCase
from drojko.inner.worst_case import WorstCase

__all__ = [
    "Adversary",
    "BallSolution",
    "Batch",
    "ClassFlow",
    "Coordinates",
    "DensityFlow",
    "ICNNJKO",
    "Importance",
    "InnerSolver",
    "Moved",
    "Objective",
    "Pointwise",
    "ReweightedWorstCase",
    "SemiDual",
    "SemiDualWorstCase",
    "TransportedWorstCase",
    "WorstCase",
    "get_inner",
    "proximal_ascent",
    "solve_ball",
]
