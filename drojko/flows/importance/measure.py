"""Measures made of velocity flows and rejection-resampling steps, and what they say of log Z."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drojko._numerics import standard_error
from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko.exceptions import ConvergenceWarning, InvalidDataError, SolverError
from drojko.flows.importance.rejection import (
    LEAST,
    RejectionBlock,
    draw_kept,
    effective_sample_size,
    tail_index,
    tail_share,
)
from drojko.flows.importance.velocity import VelocityFlow, log_target
from drojko.measures._arrays import queries
from drojko.measures.base import Measure, draws
from drojko.measures.gaussian import Gaussian
from drojko.measures.mixture import GaussianMixture, net

__all__ = ["Evidence", "ImportanceMeasure", "calibration_draws"]

_SETTLED, _NO_VARIANCE = 0.999, 0.5  # effective sample size where tails do not matter; tail index
_GROUPS = 8  # scrambled nets, independent of each other


@dataclass(frozen=True, eq=False)
class Evidence:
    r"""Draws of a flow, weighted towards its target g, and estimates of log Z = log int g.

    .. math:: w = g(x)/\rho(x), \qquad \widehat{\log Z} = \log \tfrac1n \sum w, \qquad
        \mathrm{ELBO} = \tfrac1n \sum \log w \le \widehat{\log Z}

    Attributes
    ----------
    x : Tensor of shape (n, d)
    weights : Tensor of shape (n,)
        Proportional to w; they sum to 1.
    log_z, log_z_error : float
        Importance sampling's estimate, and its standard error.
    elbo, elbo_error : float
        The lower bound E log w = log Z - KL(rho | g / Z), and its standard error.
    effective_sample_size : float
        (E w)^2 / E w^2 in (0, 1]: 1 where the flow has reached its target.
    tail_index : float
        Of the largest weights (`tail_index`): from 1/2 on they have no variance, the target's tails
        are heavier than the flow's, and where much of the sum stands in them, log_z, means and
        their errors are not to be trusted. NaN where the weights hardly differ.

    Both standard errors hold that of the density's own normaliser, which dominates where the
    rejection steps work much. Draws of the flow alone cannot show a part of the target that the
    flow does not reach: log_z is then too small by the log of its share, by more than its error.
    """

    x: Tensor
    weights: Tensor
    log_z: float
    log_z_error: float
    elbo: float
    elbo_error: float
    effective_sample_size: float
    tail_index: float = math.nan

    def mean(self, values: Tensor) -> tuple[float, float]:
        """Weighted mean of values (n,) under the target, and its standard error."""
        return float(self.weights @ values), standard_error(values, self.weights)

    def __repr__(self) -> str:
        return (
            f"Evidence(log_z={self.log_z:.5f} ± {self.log_z_error:.1g}, elbo={self.elbo:.5f} ± "
            f"{self.elbo_error:.1g}, effective_sample_size={self.effective_sample_size:.4f})"
        )


@dataclass(eq=False, repr=False)
class ImportanceMeasure(Measure):
    r"""Law of a chain of velocity flows and rejection blocks on an initial measure.

    The initial measure may itself be a flow through maps (`FlowStep.corrected`).

    .. math:: \log \rho(y) = \log \rho_0(x_0) - \sum_{\text{flows}} \int \operatorname{div} v\,dt
        + \sum_{\text{blocks}} \log \mathrm{ratio}(u(x_k))

    where y is pulled back through the flows alone to x_0 (rejections move no point), and u = log
    (g / rho_k) at the point x_k on the way where the block stands.

    Parameters
    ----------
    base : Measure
        rho_0, with a density.
    log_prob_target : callable
        log g, (n, d) -> (n,); it may lack its constant.
    stages : sequence of VelocityFlow and RejectionBlock

    Notes
    -----
    ``sample`` draws from what stands below a block and tests: ``draws_per_sample`` is what that
    costs. The flows run in single precision there (what that changes is of the order 1e-6);
    ``log_prob`` runs in double precision.
    """

    _remedy = "run a JKOFlow with an ImportanceCorrectedScheme"

    base: Measure
    log_prob_target: Callable[[Tensor], Tensor]
    stages: Sequence[VelocityFlow | RejectionBlock] = ()

    def __sklearn_is_fitted__(self) -> bool:
        return self.base.__sklearn_is_fitted__()

    @property
    def dim(self) -> int:
        return self.base.dim

    @property
    def _blocks(self) -> list[RejectionBlock]:
        return [stage for stage in self.stages if isinstance(stage, RejectionBlock)]

    @property
    def draws_per_sample(self) -> float:
        """Expected draws of rho_0 per sample: the product over blocks; bounded by their caps."""
        return math.exp(sum(block.log_cost for block in self._blocks))

    @property
    def log_mass_error(self) -> float:
        """Standard error of the log of the mass of `log_prob`: that of the normalisers."""
        return math.sqrt(sum(block.error**2 for block in self._blocks))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, shape (n, d)."""
        return self.sample_with_log_prob(n, generator)[0]

    def sample_with_log_prob(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw n points (n, d) with their log density (n,), known along the way."""
        n, gen = draws(n, generator)
        return self._draw(n, len(self.stages), gen)

    def _draw(self, n: int, depth: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        if depth == 0:
            ready = getattr(self.base, "sample_with_density", None)
            if ready is not None:  # known along the way: nothing has to be inverted
                return ready(n, gen)
            x = self.base.sample(n, gen)
            return x, self.base.log_prob(x)
        stage = self.stages[depth - 1]
        if isinstance(stage, VelocityFlow):
            x, log_density = self._draw(n, depth - 1, gen)
            image, grown = stage.to(torch.float32).push(x)
            return image, log_density - grown
        return self._accept(stage, n, depth - 1, gen)

    def _accept(
        self, block: RejectionBlock, n: int, depth: int, gen: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        cost, tried = math.exp(block.log_cost), 0

        def draw(m: int) -> tuple[Tensor, Tensor]:
            nonlocal tried
            tried += m
            if tried > 50 * cost * n + 1e6:
                raise SolverError(
                    f"a rejection step has not kept {n} of {tried} draws where 1 in {cost:.1f} was "
                    "expected: the target is not the one that it was calibrated for"
                )
            x, log_density = self._draw(m, depth, gen)
            ratio = block.log_ratio(log_target(self.log_prob_target, x) - log_density)
            kept = torch.rand(m, generator=gen, dtype=torch.float64).log() + block.log_cost < ratio
            return x[kept], (log_density + ratio)[kept]

        x, log_density = draw_kept(n, draw, cost)
        return x, log_density

    def log_prob(self, x: Any) -> Tensor:
        with torch.no_grad():
            return self._log_prob(queries(x, self.dim), len(self.stages))

    def _log_prob(self, x: Tensor, depth: int) -> Tensor:
        if depth == 0:
            return self.base.log_prob(x)
        stage = self.stages[depth - 1]
        if isinstance(stage, VelocityFlow):
            x, grown = stage.push(x, backward=True)
            return self._log_prob(x, depth - 1) - grown
        total = self._log_prob(x, depth - 1)
        return total + stage.log_ratio(log_target(self.log_prob_target, x) - total)

    def evidence(
        self, n: int = 10_000, random_state: Any = None, least: float | None = None
    ) -> Evidence:
        """Draw n points and weigh them; see `Evidence`.

        Warns with ConvergenceWarning where the effective sample size is below ``least`` (None: 0.9
        after rejection steps, which aim at 0.999, and 0.1 without any), and where the weights have
        a tail without variance. InvalidDataError for fewer than 2 draws.
        """
        if least is None:
            least = LEAST if self._blocks and self.stages[-1] is self._blocks[-1] else 0.1
        if draws(n, 0)[0] < 2:
            raise InvalidDataError(f"evidence of n={n} draws has no error: give 2 or more")
        x, log_density = self.sample_with_log_prob(n, make_generator(random_state))
        log_weight = log_target(self.log_prob_target, x) - log_density
        weights, mass = torch.softmax(log_weight, 0), self.log_mass_error
        share = effective_sample_size(log_weight)
        finite = log_weight[log_weight > -math.inf]
        elbo = float(finite.mean()) if len(finite) == n else -math.inf
        elbo_error = math.hypot(float(finite.std()) / math.sqrt(n), mass)
        log_z = float(torch.logsumexp(log_weight, 0)) - math.log(n)
        error = math.hypot(float(weights.std()) * math.sqrt(n), mass)
        # A tail matters once what stands in it is more than the error.
        tail = tail_index(log_weight) if share < _SETTLED else math.nan
        heavy = tail >= _NO_VARIANCE and tail_share(log_weight) > error
        if heavy and share >= 0.1:
            warnings.warn(
                f"the largest weights of {n} draws have a tail index of {tail:.2f}: from 0.5 on "
                "they have no variance, and log_z and its error miss what lies in the target's "
                "tails. Start from a wider or heavier-tailed measure, or take more JKO steps",
                ConvergenceWarning,
                stacklevel=2,
            )
        elif share < least:
            warnings.warn(
                f"the effective sample size is {share:.3g} of {n} draws: the flow is far from its "
                "target, and log_z with its error is not to be trusted. Take more JKO steps, "
                "larger last ones, more iterations, or a larger most_draws for the rejections",
                ConvergenceWarning,
                stacklevel=2,
            )
        return Evidence(x, weights, log_z, error, elbo, elbo_error, share, tail)

    def __repr__(self) -> str:  # pyright: ignore
        flows = len(self.stages) - len(self._blocks)
        steps = sum(len(block.steps) for block in self._blocks)
        return (
            f"ImportanceMeasure(flows={flows}, rejections={steps}, "
            f"draws_per_sample={self.draws_per_sample:.3g})"
        )


def calibration_draws(
    measure: ImportanceMeasure, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, int]:
    """Draws (n, d), log density (n,) and the number of independent groups that they come in.

    From a Gaussian through flows alone: scrambled Sobol nets, which cover it more evenly than
    independent draws, so that normalisers have a smaller error; one net for each group.
    """
    base: Any = measure.base
    flows = [stage for stage in measure.stages if isinstance(stage, VelocityFlow)]
    smooth = isinstance(base, Gaussian | GaussianMixture) and len(flows) == len(measure.stages)
    if not (smooth and measure.dim <= 50):
        x, log_density = measure.sample_with_log_prob(n, generator)
        return x, log_density, 1
    each = 2 ** max(int(math.log2(n / _GROUPS)), 4)
    x = torch.cat([net(base, each, spawn(generator)) for _ in range(_GROUPS)])
    log_density = base.log_prob(x)
    for flow in flows:
        x, grown = flow.to(torch.float32).push(x)
        log_density = log_density - grown
    return x, log_density, _GROUPS
