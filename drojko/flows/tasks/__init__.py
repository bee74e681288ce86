"""Problems that are gradient flows: equations, sampling, posteriors, filtering."""

from drojko.flows.tasks.equations import (
    aggregation,
    fokker_planck,
    ornstein_uhlenbeck,
    porous_medium,
)
from drojko.flows.tasks.filtering import FilterResult, filter_diffusion
from drojko.flows.tasks.logistic import LogisticPosterior, bayesian_logistic
from drojko.flows.tasks.sampling import FlowSample, sample_density

__all__ = [
    "FilterResult",
    "FlowSample",
    "LogisticPosterior",
    "aggregation",
    "bayesian_logistic",
    "filter_diffusion",
    "fokker_planck",
    "ornstein_uhlenbeck",
    "porous_medium",
    "sample_density",
]
