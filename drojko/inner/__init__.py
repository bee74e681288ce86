"""Inner problem: the worst case of a fixed model, as a flow of maps with proximal corrections."""

from drojko.inner.adversary import Adversary, Moved
from drojko.inner.ascent import proximal_ascent
from drojko.inner.coordinates import Coordinates
from drojko.inner.density_flow import ClassFlow, DensityFlow
from drojko.inner.importance import Importance
from drojko.inner.objective import Batch, Objective
from drojko.inner.radius import BallSolution, solve_ball
from drojko.inner.reweighted import ReweightedWorstCase
from drojko.inner.semidual import SemiDual, SemiDualWorstCase
from drojko.inner.solvers import ICNNJKO, InnerSolver, Pointwise, get_inner
from drojko.inner.transported import TransportedWorstCase
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
