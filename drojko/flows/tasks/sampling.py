"""Sampling from a density known up to a factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko._validation import checked, floats, is_whole, shown
from drojko.exceptions import InvalidDataError
from drojko.flows.envelope_scheme import EnvelopeScheme
from drojko.flows.functionals import KLDivergence
from drojko.flows.importance.measure import ImportanceMeasure
from drojko.flows.jko import JKOFlow
from drojko.flows.result import FlowResult
from drojko.measures.base import Measure

__all__ = ["FlowSample", "sample_density"]


@dataclass(frozen=True, eq=False)
class FlowSample:
    """Draws of a flow's last measure with their importance weights.

    Attributes
    ----------
    x, weights : Tensor of shape (n, d) and (n,)
        Averages under the target are ``weights @ f(x)``; weights sum to 1.
    log_normaliser : float
        log of the integral of exp(log_prob), by importance sampling: unbiased before the log.
    lower_bound : float
        E[log_prob - log rho], at most ``log_normaliser`` in expectation.
    effective_share : float
        Effective sample size as a share of n; 1 for a perfect fit.
    result : FlowResult
    """

    x: Tensor
    weights: Tensor
    log_normaliser: float
    lower_bound: float
    effective_share: float
    result: FlowResult


@checked()
def sample_density(
    log_prob: Callable[[Tensor], Tensor],
    initial: Measure,
    step_sizes: Sequence[float] = (50.0, 200.0, 1000.0),
    n_samples: int = 5000,
    *,
    scheme: Any = None,
    random_state: Any = None,
) -> FlowSample:
    """Flow from a broad measure towards exp(log_prob) / Z; draw, weigh, and estimate Z.

    Long steps are the default: a step is an implicit one, stable at every size, and mass that a
    diffusion would carry over a barrier very slowly goes there at once. With short steps the
    path is that of the Fokker-Planck equation.

    Parameters
    ----------
    log_prob : callable
        (n, d) -> (n,), by torch; a constant may be missing.
    initial : Measure
        Broad enough to overlap with all of the target.
    step_sizes : sequence of float
    n_samples : int
    scheme : object, default=None
        `EnvelopeScheme` by default.
    random_state : None, int or generator

    Examples
    --------
    >>> from drojko.flows import ICNNScheme
    >>> from drojko.measures import Gaussian
    >>> found = sample_density(lambda z: -0.5 * ((z - 1.0) ** 2).sum(1), Gaussian([0.0], [[9.0]]),
    ...                        [10.0, 1e4], 1000, scheme=ICNNScheme(), random_state=0)
    >>> round(found.log_normaliser, 2), round(found.effective_share, 2)  # log sqrt(2 pi) = 0.919
    (0.92, 1.0)
    """
    gen = make_generator(random_state)
    if not is_whole(n_samples, 2):
        raise InvalidDataError(f"n_samples={shown(n_samples)}; expected 2 or more")
    flow = JKOFlow(
        KLDivergence(log_prob),
        EnvelopeScheme() if scheme is None else scheme,
        step_size=floats(step_sizes, "step_sizes").ravel(),
    )
    result = flow.run(initial, random_state=spawn(gen))
    found = ImportanceMeasure(result.measures[-1], log_prob).evidence(n_samples, gen, least=0.0)
    share = found.effective_sample_size
    return FlowSample(found.x, found.weights, found.log_z, found.elbo, share, result)
