"""The worst case of a density-ratio set by a semi-dual flow: samples of the reference suffice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko._settings import check_settings
from drojko.ambiguity import AmbiguitySet
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.exceptions import ConvergenceWarning, InvalidDataError, UnsupportedError
from drojko.flows.functionals import PotentialEnergy
from drojko.flows.functionals.divergence_to import DivergenceTo
from drojko.flows.jko import JKOFlow
from drojko.flows.particles import Particles, draw_particles
from drojko.flows.semidual.scheme import SemiDualScheme, SemiDualStep
from drojko.inner.reweighting.density_flow import check_penalty
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.inner.solver import InnerSolver
from drojko.measures.base import Measure
from drojko.measures.empirical import Empirical
from drojko.measures.pushforward import Pushforward
from drojko.transport.maps import AffineMap, TransportMap

__all__ = ["PotentialFlow", "SemiDual", "SemiDualWorstCase"]

#: Samples of one reference below which its networks would learn the samples themselves.
_FEWEST = 50
#: First JKO step in units of the reference's variance over the penalty, and the growth of steps.
#: Small ones keep the critic at the ratio of where the map is: it then leads nowhere too far.
_STEP, _GROWTH = 0.5, 1.4
#: Share of the gain that a learned ratio has to recover, its admissible means, and the share of
#: the gain by which the map's risk may miss the exact one.
_RECOVERED, _NORMALISER, _MISSED = 0.8, (0.8, 1.25), 0.5


@dataclass(frozen=True, eq=False)
class PotentialFlow:
    r"""A learned worst case of one reference measure, between two exact bounds on its samples.

    .. math:: E_r \ell - \lambda D(r) \le V \le \max_i\,(\ell_i - \lambda u_i) + \lambda E_0 f^*(u)

    with the learned potential u and the ratio r = f*'(u), normalised on the samples; V is the
    exact dual there. Both sides hold for every potential, and meet at u = (loss - shift)/penalty.

    Attributes
    ----------
    measure : SemiDualStep
        T#P0: samples anew, beside the reference's own points.
    lower, dual, upper : float
        The two sides and V.
    nominal : float
        Mean loss of the reference.
    ratio : Tensor of shape (n,)
        r on the samples.
    normaliser : float
        E0 f*'(u) before that: 1 where the potential has converged.
    risk, exact_risk : float
        Mean loss under T#P0, and under the exact worst case on the samples.
    """

    measure: SemiDualStep
    lower: float
    dual: float
    upper: float
    nominal: float
    ratio: Tensor
    normaliser: float
    risk: float
    exact_risk: float

    @property
    def map(self) -> TransportMap:
        """T."""
        return self.measure.map

    @property
    def weakness(self) -> str:
        """What says that the map or the potential has not learned the worst case; or nothing."""
        if self.recovered < _RECOVERED:
            return f"the learned ratio recovers {max(self.recovered, 0.0):.0%} of the exact gain"
        if not _NORMALISER[0] <= self.normaliser <= _NORMALISER[1]:
            return f"the learned ratio has mean {self.normaliser:.3g} instead of 1"
        gain = self.exact_risk - self.nominal
        miss = self.risk - self.exact_risk
        if abs(miss) > _MISSED * gain + 0.05 * abs(self.nominal):
            return f"the map attains a risk of {self.risk:.4g} where {self.exact_risk:.4g} is exact"
        return ""

    @property
    def recovered(self) -> float:
        """Share of the exact gain V - nominal that the learned ratio attains, at most 1."""
        gain = self.dual - self.nominal
        none = gain <= 1e-12 * max(1.0, abs(self.dual))
        return 1.0 if none else (self.lower - self.nominal) / gain


class _InUnits(Pushforward):
    """A measure in other units: (x - centre) / unit."""

    @staticmethod
    def of(reference: Measure, centre: Tensor, unit: Tensor) -> Measure:
        """Atoms where the reference has atoms, draws otherwise."""
        if isinstance(reference, Empirical):
            atoms = (reference.atoms_ - centre.numpy()) / unit.numpy()
            return Empirical(atoms, reference.weights_)
        return _InUnits(reference, AffineMap(torch.diag(1.0 / unit), -centre / unit))

    def flow_particles(self, n: int, generator: torch.Generator) -> Particles:
        """Particles with the moments of the measure, where it knows them."""
        p = draw_particles(self.base, n, generator)
        return Particles(self.map.map(p.x), p.w, torch.zeros_like(p.w), known=False)


@dataclass(kw_only=True, eq=False, repr=False)
class SemiDual(InnerSolver):
    r"""Learn the worst case E loss - penalty * D_f as a map and a potential, from samples alone.

    .. math:: \sup_T \inf_u\; E_0\,[\ell(T(x)) - \lambda u(T(x))] + \lambda E_0 f^*(u)

    for KL and chi-square sets. Training and certificates use the exact dual of the samples; the
    map gives what it has not: where points move, and worst cases beside the samples. It needs no
    density of the reference, as the maps of ``inner="icnn"`` do.

    Parameters
    ----------
    steps : int
        JKO steps from the reference, of growing size.
    hidden : tuple of int
        Widths of the map and of the potential.
    iterations, batch_size : int
        Of each step.
    rate : float
        Learning rate of both networks.
    n_particles : int
        Draws of the reference.
    gradient_penalty : float
        See `SemiDualScheme`.

    Notes
    -----
    Source: Choi, Choi, Kang (2024, arXiv 2402.05443), with a linear term and penalty * D_f.

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> from drojko.measures import Gaussian
    >>> solver = SemiDual(n_particles=2000)
    >>> found = solver.fit_ratio(KL(penalty=2.0), 2.0, lambda x: x[:, 0],
    ...                          Gaussian([0.0], [[1.0]]), 0)
    >>> bool(abs(found.measure.particles.mean() - 0.5) < 0.1)          # N(1 / penalty, 1)
    True
    >>> found.lower <= found.dual <= found.upper
    True
    """

    steps: int = 7
    hidden: Sequence[int] = (32, 32)
    iterations: int = 150
    batch_size: int = 500
    rate: float = 2e-3
    n_particles: int = 5000
    gradient_penalty: float = 0.0

    def validate(self) -> None:
        check_settings(
            self,
            whole={"steps": 1, "iterations": 1, "batch_size": 1, "n_particles": 1},
            widths=("hidden",),
            least={"gradient_penalty": 0.0},
            above={"rate": 0.0},
        )

    def check(self, ambiguity: AmbiguitySet) -> None:
        if not learns(ambiguity):
            raise UnsupportedError(
                f"inner='semidual' learns the worst cases of KL and ChiSquare, not of "
                f"{type(ambiguity).__name__}: use inner='icnn' (the default), or 'auto'"
            )

    def fit_ratio(
        self,
        ambiguity: DensityRatioSet,
        penalty: float,
        loss: Callable[[Tensor], Tensor],
        reference: Measure,
        random_state: Any = None,
        log_share: float = 0.0,
    ) -> PotentialFlow:
        """Learn the worst case of one reference measure at a penalty.

        Parameters
        ----------
        ambiguity : KL or ChiSquare
            Which divergence; its size is not used.
        penalty : float
            Price of D, in the units of the loss.
        loss : callable
            Points (n, d) -> (n,), by differentiable torch functions.
        reference : Measure
            P0: atoms, or a measure that samples.
        random_state : None, int or generator
        log_share : float
            Log of the change s of the mass of this class: D of chi-square sets is that of s r,
            whose part that depends on r is s^2 D(r), to s E loss.

        Raises
        ------
        UnsupportedError
            For other sets, and a penalty that is zero or infinite.
        InvalidDataError
            For fewer than 50 samples, and samples in a subspace.
        """
        self.check(ambiguity)
        check_penalty("inner='semidual'", penalty)
        gen = make_generator(random_state)
        known: Any = ambiguity.divergence
        kind = known.kind
        price = penalty if kind == "kl" else penalty * math.exp(log_share)
        x, w = reference.points(self.n_particles, spawn(gen))
        if len(torch.unique(x, dim=0)) < _FEWEST:
            raise InvalidDataError(
                f"inner='semidual': a reference of {len(x)} samples is too small to learn a map "
                f"from ({_FEWEST} or more distinct ones); worst_case_.sample reweights them "
                "exactly, without a map"
            )
        # Reweighting knows no distance: the columns' units must not matter to the map either.
        centre = w @ x
        unit = (w @ (x - centre).square()).sqrt()
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        scaled = _InUnits.of(reference, centre, unit)
        gain = PotentialEnergy(lambda z: -loss(centre.to(z) + unit.to(z) * z))
        functional = gain + price * DivergenceTo(scaled, kind)
        shared = {**self.get_params(), "hidden": tuple(self.hidden)}
        sizes = [_STEP * _GROWTH**k / price for k in range(shared.pop("steps"))]
        scheme = SemiDualScheme(
            **shared,
            first=self.iterations,
            target_batch=self.batch_size,
            map_steps=1,
            critic_rate=2.5 * self.rate,
            critic="logistic",
            decay=(0.5, 0.9),
        )
        with warnings.catch_warnings():  # what matters here is checked against the dual below
            warnings.simplefilter("ignore", ConvergenceWarning)
            flow = JKOFlow(functional, scheme, step_size=sizes)
            result = flow.run(scaled, self.steps, spawn(gen))
        last: Any = result.measures[-1]
        measure = last.in_units(reference, centre, unit)
        with torch.no_grad():
            losses = loss(x).detach().double().cpu()
            risk = float(measure.weights @ loss(measure.particles).detach().double().cpu())
        exact = ambiguity.priced(price).dual(losses, w)
        conjugate, out = measure.conjugate, measure.critic.value(x)
        ratio = conjugate.ratio(out)
        normaliser = float(w @ ratio)
        ratio = ratio / normaliser
        u, star = conjugate.potential(out)[0], conjugate.conjugate(out)[0]
        found = PotentialFlow(
            measure,
            float(w @ (ratio * losses - price * conjugate.f(ratio))),
            exact.value,
            float((losses - price * u).max()) + price * float(w @ star),
            float(w @ losses),
            ratio,
            normaliser,
            risk,
            exact.attained,
        )
        if found.weakness:
            warnings.warn(
                f"inner='semidual': {found.weakness}; what the map generates is not the worst "
                "case. worst_case_.sample, risk and the certificate are exact without it; give "
                "more rows, more iterations, or a continuous reference with inner='icnn'",
                ConvergenceWarning,
                stacklevel=2,
            )
        return found


def learns(ambiguity: Any) -> bool:
    """Whether a map is learned for this set: of KL and chi-square."""
    return ambiguity.divergence is not None and ambiguity.divergence.kind in ("kl", "chi-square")


@dataclass(frozen=True, repr=False)
class SemiDualWorstCase(ReweightedWorstCase):
    """A reweighted worst case with learned maps that need samples of the reference only.

    ``sample``, ``risk`` and the ratio are the exact reweighting; `transport` and `generate` use
    the map of each class, which needs 50 samples of it.

    Parameters
    ----------
    ambiguity, penalty, shift, loss_function, reference, ...
        As in `ReweightedWorstCase`.
    settings : dict
        Of `SemiDual`.
    """

    settings: dict[str, Any] = field(default_factory=dict)

    _learned_by = ", inner='semidual'"

    def potential_flow(self, k: int = 0) -> PotentialFlow:
        """The learned map and potential of class index ``k`` with its bounds; computed once."""
        if ("semidual", k) not in self._cache:
            loss, reference, share = self._part(k)
            self._cache["semidual", k] = SemiDual(**self.settings).fit_ratio(
                self.ambiguity, self.penalty, loss, reference, self.seed, share
            )
        return self._cache["semidual", k]

    def _map(self, k: int) -> TransportMap:
        return self.potential_flow(k).map

    def generate(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` samples of the learned worst case: new points beside the reference's."""
        if self.classes is None:
            raise UnsupportedError("generate: maps of a joint measure are not learned; use sample")
        gen = make_generator(random_state)
        x, y = self._by_label(n, gen, lambda k, m: self.potential_flow(k).measure.sample(m, gen))
        return x.numpy(), self._decode(y)

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log density of X given y, shape (n,), where the reference has one.

        Raises `UnsupportedError` for a reference known by samples only.
        """
        if self.exact:
            raise UnsupportedError(
                "log_prob: the reference is known by samples only, and so is its worst case; "
                "potential_flow(k).measure.log_ratio(x) is the log density relative to it, and "
                "reference='kde' or 'mixture' gives a reference with a density"
            )
        return super().log_prob(X, y)
