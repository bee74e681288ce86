"""Evolution equations that are gradient flows of an energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from drojko._validation import checked
from drojko.exceptions import InvalidDataError
from drojko.flows.functionals import (
    Entropy,
    Functional,
    InteractionEnergy,
    InternalEnergy,
    PotentialEnergy,
)
from drojko.flows.jko import JKOFlow
from drojko.flows.result import FlowResult
from drojko.measures.base import Measure
from drojko.measures.gaussian import Gaussian

__all__ = ["aggregation", "fokker_planck", "ornstein_uhlenbeck", "porous_medium"]

Steps = float | Sequence[float]


@checked()
def fokker_planck(
    potential: Callable[[Tensor], Tensor],
    initial: Measure,
    step_size: Steps,
    n_steps: int | None = None,
    *,
    temperature: float = 1.0,
    gradient: Callable[[Tensor], Tensor] | None = None,
    scheme: Any = None,
    random_state: Any = None,
) -> FlowResult:
    r"""Solve the Fokker-Planck equation :math:`\dot\rho = \nabla(\rho\nabla V) + \theta\Delta\rho`.

    It is the law of dz = -grad V dt + sqrt(2 temperature) dW and the gradient flow of
    E V(z) + temperature E log rho(z).

    Parameters
    ----------
    potential, gradient : callable
        V, (n, d) -> (n,) by torch, and its gradient (None: by automatic differentiation).
    initial : Measure
        rho_0.
    step_size, n_steps : float or sequence of float, int
        JKO steps; as many as step sizes by default.
    temperature : float
        theta >= 0.
    scheme : object, default=None
        How a step is solved; `ICNNScheme` by default.
    random_state : None, int or generator

    Returns
    -------
    FlowResult
        With the density at each step.

    Examples
    --------
    The equilibrium of V = z^2 / 2 at temperature 2 has variance 2:

    >>> result = fokker_planck(lambda z: 0.5 * (z**2).sum(1), Gaussian([0.0], [[1.0]]),
    ...                        [0.1, 1.0, 10.0, 1000.0], temperature=2.0, random_state=0)
    >>> round(float(result.measures[-1].particles.var(correction=0)), 3)
    2.0
    """
    functional = PotentialEnergy(potential, gradient) + temperature * Entropy()
    flow = JKOFlow(functional, scheme, step_size=step_size)
    return flow.run(initial, n_steps, random_state)


@checked()
def ornstein_uhlenbeck(
    target: Gaussian,
    initial: Measure,
    step_size: Steps,
    n_steps: int | None = None,
    *,
    scheme: Any = None,
    random_state: Any = None,
) -> FlowResult:
    """Flow of dz = -A (z - b) dt + sqrt(2) dW towards N(b, A^-1).

    From a normal law each step is solved to rounding. From another one the maps are those of
    ``scheme``.

    Parameters
    ----------
    target : Gaussian
        N(b, A^-1).
    initial : Measure
        rho_0.
    step_size, n_steps, scheme, random_state
        As in `fokker_planck`.

    Returns
    -------
    FlowResult

    Examples
    --------
    >>> start, target = Gaussian([0.0], [[1.0]]), Gaussian([2.0], [[4.0]])
    >>> result = ornstein_uhlenbeck(target, start, 0.5, 1, random_state=0)
    >>> abs(float(result.measures[-1].particles.mean()) - 2 / 9) < 1e-6  # of the exact step
    True
    """
    if not initial.dim == target.dim:
        raise InvalidDataError(f"initial is on R^{initial.dim}, target on R^{target.dim}")
    mean, precision = target.mean, torch.linalg.inv(target.covariance)

    def potential(z: Tensor) -> Tensor:
        centred = z - mean
        return 0.5 * (centred @ precision * centred).sum(1)

    functional = PotentialEnergy(potential, lambda z: (z - mean) @ precision) + Entropy()
    flow = JKOFlow(functional, scheme, step_size=step_size)
    return flow.run(initial, n_steps, random_state)


@checked()
def porous_medium(
    initial: Measure,
    step_size: Steps,
    n_steps: int | None = None,
    *,
    m: float = 2.0,
    scheme: Any = None,
    random_state: Any = None,
) -> FlowResult:
    r"""Solve the porous-medium equation :math:`\dot u = \Delta u^m`, m > 1.

    Parameters
    ----------
    initial : Measure
        rho_0, with a density.
    m : float
        The power.
    step_size, n_steps, scheme, random_state
        As in `fokker_planck`.

    Returns
    -------
    FlowResult

    Examples
    --------
    >>> result = porous_medium(Gaussian([0.0], [[1.0]]), 0.05, 1, random_state=0)
    >>> x, w = result.measures[-1].particles, result.measures[-1].weights
    >>> 1.0 < float(w @ x[:, 0] ** 2) < 1.06  # d/dt E|x|^2 = 2 d E u, 0.56 at first
    True
    """
    flow = JKOFlow(InternalEnergy(m), scheme, step_size=step_size)
    return flow.run(initial, n_steps, random_state)


@checked()
def aggregation(
    kernel: Callable[[Tensor], Tensor],
    initial: Measure,
    step_size: Steps,
    n_steps: int | None = None,
    *,
    potential: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 0.0,
    scheme: Any = None,
    random_state: Any = None,
) -> FlowResult:
    r"""Solve :math:`\dot\rho = \nabla(\rho\nabla(W * \rho + V)) + \theta\Delta\rho`.

    Particles that attract or repel each other: the gradient flow of E W(z - z') / 2 + E V(z) +
    temperature E log rho(z).

    Parameters
    ----------
    kernel : callable
        W, even: differences (m, d) -> (m,), by torch.

    Examples
    --------
    W = |x|^2 / 2 contracts by 1 + h around the mean:

    >>> result = aggregation(lambda x: 0.5 * (x**2).sum(1), Gaussian([1.0], [[1.0]]), 0.5, 1,
    ...                      random_state=0)
    >>> round(float(result.measures[-1].particles.std(correction=0)), 2)
    0.67
    """
    functional: Functional = InteractionEnergy(kernel)
    if potential is not None:
        functional = functional + PotentialEnergy(potential)
    if temperature:
        functional = functional + temperature * Entropy()
    flow = JKOFlow(functional, scheme, step_size=step_size)
    return flow.run(initial, n_steps, random_state)
