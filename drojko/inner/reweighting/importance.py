"""The worst case of a density-ratio set by importance-corrected flows of its reference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drojko._numerics import standard_error
from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko._settings import check_settings
from drojko.ambiguity import AmbiguitySet
from drojko.ambiguity.duals.bounded import BoundedRatio
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.exceptions import (
    ConvergenceWarning,
    InvalidDataError,
    SolverError,
    UnsupportedError,
)
from drojko.flows.functionals import KLDivergence
from drojko.flows.functionals.energies import scale_and_order
from drojko.flows.importance.measure import ImportanceMeasure, calibration_draws
from drojko.flows.importance.rejection import (
    LEAST,
    RejectionBlock,
    draw_kept,
    effective_sample_size,
)
from drojko.flows.importance.scheme import ImportanceCorrectedScheme
from drojko.flows.importance.velocity import log_target
from drojko.flows.jko import JKOFlow
from drojko.inner.reweighting.density_flow import check_penalty, own_divergence
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.inner.solver import InnerSolver
from drojko.measures.base import Measure, components, draws

__all__ = ["Importance", "ImportanceWorstCase", "RatioFlow"]

#: Ratios below it count as it while fields are trained: log 0 has no gradient.
_FLOOR = 1e-3
#: Effective sample size at which rejection steps alone do: draws are weighted on top of them.
_ALONE = 0.9
#: Effective sample size from which draws are as good as draws of the worst case; most draws that
#: one of the worst case may take otherwise.
_SETTLED, _MOST = 0.999, 100.0
_FIRST, _GROWTH = 0.05, 4.0  # step sizes in units of the reference's variance


@dataclass(frozen=True, eq=False)
class RatioFlow:
    r"""The worst case r P0 of one reference measure, sampled and weighed.

    Attributes
    ----------
    measure : ImportanceMeasure
        A law close to it that samples and has a density.
    x : Tensor of shape (n, d)
        Draws of ``measure``.
    mass : Tensor of shape (n,)
        Their masses under the worst case itself; they sum to 1.
    value, error : float
        E loss - penalty * D of the worst case, and the standard error of that.
    risk, divergence : float
        Its two parts.
    log_normaliser, normaliser_error : float
        Log E0 of the ratio at the dual point (0 where that is exact), and its standard error.
    effective_sample_size : float
        Of the masses, as a share.
    choice : str
        Which way was taken, and what the ways cost.
    """

    measure: ImportanceMeasure
    x: Tensor
    mass: Tensor
    value: float
    error: float
    risk: float
    divergence: float
    log_normaliser: float
    normaliser_error: float
    effective_sample_size: float
    choice: str
    log_weight: Callable[[Tensor, Tensor], Tensor] = field(repr=False)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of the worst case, shape (n, d): no point where the ratio is 0.

        What separates ``measure`` from the worst case is settled by a test of each draw, with the
        largest weight that was seen as the bound: no draw comes up twice.
        """
        n, gen = draws(n, generator)
        bound = math.log(max(1.0, min(float(self.mass.max()) * len(self.mass), _MOST)))
        if self.effective_sample_size >= _SETTLED:
            bound = 0.0

        def draw(m: int) -> tuple[Tensor]:
            x, log_density = self.measure.sample_with_log_prob(m, gen)
            coin = torch.rand(m, generator=gen, dtype=torch.float64).log()
            return (x[coin <= self.log_weight(x, log_density) - bound],)

        return draw_kept(n, draw, math.exp(bound))[0]


@dataclass(kw_only=True, eq=False, repr=False)
class Importance(InnerSolver):
    r"""Sample the worst case p0 * ratio(loss) itself: JKO steps, then rejection steps.

    .. math:: p_*(x) \propto p_0(x)\, (f^*)'\left(\frac{\ell(x) - \mathrm{shift}}
        {\mathrm{penalty}}\right)

    is known up to its constant for KL, chi-square and Cressie-Read sets on a continuous
    reference. Rejection steps carry mass between separate components of the reference, which no
    single map of moderate size does. Where they alone reach an effective sample size of 0.9 with
    few draws, no field is trained; `RatioFlow.choice` says which way was taken.

    Parameters
    ----------
    steps : int
        JKO steps where rejection steps alone do not do.
    width, iterations : int
        Of their velocity fields.
    n_particles, n_calibration, n_draws : int
        Particles that fields are trained on; draws that normalisers are computed on; draws of
        the value.
    direct_draws : float
        Rejection steps alone may ask for that many draws of the reference per sample.
    most_draws : float
        Cap after JKO steps.
    enough : float
        Effective sample size that rejection steps aim at.

    Notes
    -----
    For sets that reweight. Wasserstein sets move points: use ``"icnn"`` or ``"pointwise"``.
    Source: Hertrich, Gruhlke (2025, arXiv 2407.20444).

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> from drojko.measures import GaussianMixture
    >>> two = GaussianMixture(means=[[-4.0], [4.0]], covariances=[[[1.0]], [[1.0]]])
    >>> found = Importance().fit_ratio(KL(penalty=8.0), 8.0, 0.0, lambda x: x[:, 0], two, 0)
    >>> exact = 1 / 128 + math.log(math.cosh(0.5))
    >>> bool(abs(found.value / 8.0 - exact) < 3 * found.error / 8.0 + 1e-6)
    True
    """

    steps: int = 3
    width: int = 48
    iterations: int = 300
    n_particles: int = 30_000
    n_calibration: int = 100_000
    n_draws: int = 20_000
    direct_draws: float = 20.0
    most_draws: float = 30.0
    enough: float = 0.999

    def validate(self) -> None:
        check_settings(
            self,
            whole={
                "steps": 0, "width": 1, "iterations": 1, "n_particles": 1, "n_calibration": 1,
                "n_draws": 1,
            },
            least={"direct_draws": 0.0, "most_draws": 1.0, "enough": 0.0},
        )  # fmt: skip
        if not self.enough < 1.0:
            raise InvalidDataError(f"Importance: enough={self.enough!r}; expected a share below 1")

    def check(self, ambiguity: AmbiguitySet) -> None:
        """Raise `UnsupportedError` for sets whose worst case has no continuous density ratio."""
        if ambiguity.order is None and ambiguity.divergence is None:
            raise UnsupportedError(  # of transport `fit` says what to do
                f"inner='importance' samples the worst cases of KL, ChiSquare and CressieRead, "
                "whose density ratio is a continuous function of the loss; that of "
                f"{type(ambiguity).__name__} jumps or is none, and is sampled by the default: "
                "leave inner at 'icnn', or set 'auto'"
            )

    def fit_ratio(
        self,
        ambiguity: DensityRatioSet,
        penalty: float,
        shift: float,
        loss: Callable[[Tensor], Tensor],
        reference: Measure,
        random_state: Any = None,
        log_share: float = 0.0,
        *,
        bounded: BoundedRatio | None = None,
    ) -> RatioFlow:
        """Sample the worst case of one reference measure at a dual point.

        Parameters
        ----------
        ambiguity : KL, ChiSquare or CressieRead
        penalty, shift : float
            The dual point.
        loss : callable
            Points (n, d) -> (n,); differentiable by torch where JKO steps are needed.
        reference : Measure
            P0, with a density.
        random_state : None, int or generator
        log_share : float
            Log of the change of the mass of this class.
        bounded : BoundedRatio, default=None
            How the ratio of the dual point is bounded; its share does not matter here.

        Raises
        ------
        UnsupportedError
            For other sets, a reference without density, a penalty that is zero or infinite.
        SolverError
            Where too few draws of the reference carry the worst case to begin with.
        """
        self.check(ambiguity)
        check_penalty("inner='importance'", penalty)
        gen = make_generator(random_state)

        def log_ratio(x: Tensor, floor: float = 0.0) -> Tensor:
            losses = loss(x)
            ratio = _log_ratio(ambiguity, (losses - shift) / penalty, floor)
            if bounded is not None and bounded.level < math.inf:
                level = math.log(max(bounded.level, 1e-300))
                ratio = torch.where(losses < bounded.top, ratio.clamp_max(level), level)
            return ratio

        known: Any = ambiguity.divergence

        def target(x: Tensor) -> Tensor:
            ratio = log_ratio(x, 0.0 if known.kind == "kl" else _FLOOR)
            return reference.log_prob(x) + ratio.to(torch.float64)

        measure, choice = self._way(target, reference, gen)
        x, log_density = measure.sample_with_log_prob(self.n_draws, spawn(gen))
        with torch.no_grad():
            losses = loss(x).detach().double().cpu()
            exact = log_ratio(x).double()
            log_weight = reference.log_prob(x) + exact - log_density
        mass = torch.softmax(log_weight, 0)
        log_z = float(torch.logsumexp(log_weight, 0)) - math.log(len(mass))
        log_z_error = math.hypot(float(mass.std()) * math.sqrt(len(mass)), measure.log_mass_error)
        own = exact - log_z + log_share
        kind, k = known.kind, known.order
        risk = float(mass @ losses)
        divergence, parts = own_divergence(kind, k, own, mass)
        # Of value = E* [loss - penalty f(r)/r], and what an error of the normaliser adds to D.
        each = losses - penalty * parts
        kept = mass > 0
        error = standard_error(each[kept], mass[kept])

        def settle(x: Tensor, log_density: Tensor) -> Tensor:
            with torch.no_grad():
                return reference.log_prob(x) + log_ratio(x).double() - log_density - log_z

        return RatioFlow(
            measure,
            x,
            mass,
            risk - penalty * divergence,
            math.hypot(error, penalty * _steepness(kind, k, own, mass) * log_z_error),
            risk,
            divergence,
            log_z,
            log_z_error,
            effective_sample_size(log_weight),
            choice,
            settle,
        )

    def _way(
        self, target: Callable[[Tensor], Tensor], reference: Measure, gen: torch.Generator
    ) -> tuple[ImportanceMeasure, str]:
        start = ImportanceMeasure(reference, target)
        x, log_density, groups = calibration_draws(start, self.n_calibration, spawn(gen))
        with torch.no_grad():
            u = log_target(target, x) - log_density
        words = []
        try:
            most = max(self.direct_draws, 1.0 + 1e-9)
            block = RejectionBlock.design(
                u, None, 0.2, most_draws=most, enough=self.enough, n_groups=groups
            )
            ratio = block.log_ratio(u)
            share = effective_sample_size(u - ratio, ratio.exp())
            words.append(
                f"rejection steps alone: {math.exp(block.log_cost):.3g} draws per sample, "
                f"effective sample size {share:.4f}"
            )
            measure = ImportanceMeasure(reference, target, (block,))
            if share >= min(self.enough, _ALONE) or self.steps == 0:
                return measure, f"{words[0]} (taken)"
        except SolverError as error:
            if self.steps == 0:
                raise
            words.append(f"rejection steps alone: {error}")
            share, measure = 0.0, None
        variance = float((x - x.mean(0)).square().mean())
        sizes = [_FIRST * variance * _GROWTH**k for k in range(self.steps)]
        shared = ("width", "iterations", "n_particles", "n_calibration", "most_draws")
        own = {name: getattr(self, name) for name in shared}
        scheme = ImportanceCorrectedScheme(**own, least_ess=0.0)
        flow = JKOFlow(KLDivergence(target), scheme, step_size=sizes)
        try:
            result = flow.run(reference, self.steps, spawn(gen))
        except SolverError as error:
            raise SolverError(
                f"{error}. Or there is no worst case: exp(loss / penalty) has no mean where the "
                "loss grows faster than the reference falls off; raise the penalty"
            ) from error
        last: Any = result.measures[-1]
        cost, flow_share = (
            float(result.columns[name][-1])
            for name in ("draws_per_sample", "effective_sample_size")
        )
        words.append(
            f"{self.steps} JKO steps and rejection steps: {cost:.3g} draws per sample, effective "
            f"sample size {flow_share:.4f}"
        )
        if measure is not None and share >= flow_share:
            return measure, f"{words[0]} (taken); {words[1]}"
        return last, f"{words[0]}; {words[1]} (taken)"


def _log_ratio(ambiguity: Any, t: Tensor, floor: float) -> Tensor:
    """Log of (f*)'(t) by torch operations; ``floor`` bounds the ratio from below."""
    scale, k = scale_and_order(ambiguity.divergence.kind, ambiguity.divergence.order)
    if k == 1.0:
        return t
    inside = 1.0 + (k - 1.0) / scale * t
    if floor and k > 1.0:
        inside = inside.clamp_min(floor ** (k - 1.0))
    positive = torch.where(inside > 0, inside, 1.0).log() / (k - 1.0)
    # From inside = 0 on the ratio is infinite for k < 1, and zero beyond.
    return torch.where(inside > 0, positive, math.inf if k < 1.0 else -math.inf)


def _steepness(kind: str, k: float, own: Tensor, mass: Tensor) -> float:
    """Derivative of D in the log of the normaliser, in absolute value."""
    scale, k = scale_and_order(kind, k)
    kept = mass > 0
    return abs(scale / k * float(mass[kept] @ ((k - 1.0) * own[kept]).exp()))


@dataclass(frozen=True, repr=False)
class ImportanceWorstCase(ReweightedWorstCase):
    """A reweighted worst case whose draws come from importance-corrected flows.

    ``settings`` are those of `Importance`; ``class_flow(k)`` is the flow of class index k (0 for
    a regression), ``choice`` says which way each class took.
    """

    settings: dict[str, Any] = field(default_factory=dict)

    _learned_by = ", inner='importance'"

    def class_flow(self, k: int = 0) -> RatioFlow:
        """The flow of one class, with its weighted draws; computed on first use."""
        if ("importance", k) not in self._cache:
            part = self._joint_loss, components(self.reference)[k], 0.0
            loss, reference, share = part if self.classes is None else self._part(k)
            self._cache["importance", k] = Importance(**self.settings).fit_ratio(
                self.ambiguity,
                self.penalty,
                self.shift,
                loss,
                reference,
                self.seed,
                share,
                bounded=self.pool.bounded,
            )
            share = self._cache["importance", k].effective_sample_size
            if share < LEAST:
                warnings.warn(
                    f"inner='importance': the effective sample size of a class is {share:.3g}, "
                    f"and {Importance(**self.settings).enough:g} was aimed at: raise most_draws or "
                    "steps, take a larger penalty or a smaller radius, or leave inner at 'icnn', "
                    "whose draws are exact",
                    ConvergenceWarning,
                    stacklevel=3,
                )
        return self._cache["importance", k]

    @property
    def _degenerate(self) -> bool:
        return not 0.0 < self.penalty < math.inf

    def _joint_loss(self, z: Tensor) -> Tensor:
        return self._capped_loss(z[:, :-1], z[:, -1])

    @property
    def choice(self) -> str:
        """Which way was taken, a line per class."""
        if self._degenerate:
            return f"penalty {self.penalty:g} at the dual point: draws are reweighted, none flows"
        if self.classes is None:
            return self.class_flow(0).choice
        shares = self.label_shares()
        rows = [k for k in range(len(self.classes)) if shares[k] > 0]
        return "\n".join(f"class {self.classes[k]}: {self.class_flow(k).choice}" for k in rows)

    def _tilted(self, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        if self._degenerate:
            return super()._tilted(n, gen)
        if self.classes is None:
            z = self.class_flow(0).sample(n, gen)
            return z[:, :-1], z[:, -1]
        return self._by_label(n, gen, lambda k, m: self.class_flow(k).sample(m, gen))
