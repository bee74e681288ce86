"""Ambiguity sets: which distributions count as near the reference.

    { P : D(P, P0) <= radius }     or     the penalty  penalty * D(P, P0)

Each set is one file: its discrepancy D, what `radius` means, its geometry. A set is a plain
settings object with `get_params` and `set_params`, so it can be searched over. Sets that reweight
the reference (KL, chi-square, Cressie-Read, total variation, CVaR) have an exact `dual`.
"""

from drojko.ambiguity.base import AmbiguitySet, Dual
from drojko.ambiguity.chi_square import ChiSquare
from drojko.ambiguity.class_shift import ClassShift
from drojko.ambiguity.cressie_read import CressieRead
from drojko.ambiguity.cvar import CVaR
from drojko.ambiguity.duals.density_ratio import DensityRatioSet, Reweighting
from drojko.ambiguity.ground.columns import one_hot_groups
from drojko.ambiguity.ground.cost import GroundCost
from drojko.ambiguity.group import BoundGroup, Group, GroupDual, group_columns
from drojko.ambiguity.kl import KL
from drojko.ambiguity.latent import Conditional, Marginal
from drojko.ambiguity.mmd import MMD, BoundMMD, MMDDual
from drojko.ambiguity.sinkhorn import Sinkhorn
from drojko.ambiguity.total_variation import TotalVariation
from drojko.ambiguity.wasserstein import Wasserstein

__all__ = [
    "AmbiguitySet",
    "BoundGroup",
    "BoundMMD",
    "CVaR",
    "ChiSquare",
    "ClassShift",
    "Conditional",
    "CressieRead",
    "DensityRatioSet",
    "Dual",
    "GroundCost",
    "Group",
    "GroupDual",
    "KL",
    "MMD",
    "MMDDual",
    "Marginal",
    "Reweighting",
    "Sinkhorn",
    "TotalVariation",
    "Wasserstein",
    "group_columns",
    "one_hot_groups",
]
