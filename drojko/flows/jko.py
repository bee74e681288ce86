"""Gradient flows of functionals of measures, by minimising movements (JKO steps)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drojko._driver import Status, keeping, run
from drojko._random import generator as make_generator
from drojko._validation import check_number, checked, floats, is_real, is_whole, shown
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows.flow_measures import FlowStep
from drojko.flows.functionals.base import Functional
from drojko.flows.icnn.map_problem import FittedMap, MapProblem
from drojko.flows.icnn.scheme import ICNNScheme
from drojko.flows.particles import Particles, draw_particles
from drojko.flows.result import FlowResult, FlowSolver, Steps, finish, result_of
from drojko.measures.base import Measure
from drojko.transport.icnn import ICNN
from drojko.transport.maps import Composition, TransportMap

__all__ = ["FlowState", "JKOFlow"]

_DRAWS = 16  # that tell one initial measure from another
_TRIALS = 8  # step sizes tried for one adaptive step


@dataclass(frozen=True, eq=False, kw_only=True)
class FlowState(Steps):
    """Where a flow is: particles to train on, particles kept apart, and all measures so far."""

    train: Particles
    held: Particles
    generator: torch.Generator
    potential: ICNN | None = None
    until: float = math.inf
    proposed: float | None = None

    @property
    def maps(self) -> tuple[TransportMap, ...]:
        """T_1, ..., T_k."""
        return getattr(self.measures[-1], "maps", ()) if self.step else ()

    def moved(self, *maps: TransportMap, to: Particles) -> FlowStep:
        """The measure that further maps lead to, with its particles."""
        return FlowStep(self.measures[0], Composition((*self.maps, *maps)), to)


@checked()
class JKOFlow(FlowSolver):
    r"""The gradient flow of F in the Wasserstein space, step by step.

    .. math:: T_k = \arg\min_T F(T_\# \rho_k) + \frac{1}{2h} E_{\rho_k} |T(x) - x|^2,
        \qquad \rho_{k+1} = (T_k)_\# \rho_k

    over gradients of convex functions. As h -> 0 this is d rho/dt = div(rho grad dF/drho): the
    Fokker-Planck equation for F = E V + E log rho, the porous-medium equation for
    `InternalEnergy`. The error at a fixed time is of order h.

    Parameters
    ----------
    functional : Functional
        F; see `drojko.flows.functionals`.
    scheme : object, default=None
        How a step is solved: `ICNNScheme` (None: with its defaults), `SemiDualScheme` for
        a functional `DivergenceTo` samples, or `ImportanceCorrectedScheme` for `KLDivergence`.
    step_size : float or sequence of float
        h, or one for each step (small ones first: the beginning is the stiff part).
    adaptive : float, default=None
        Choose h by comparing one step with two of half its size: the particles' root mean square
        difference is at most this share of their standard deviation. The halves are kept;
        ``step_size`` (a number) is the first h tried. Three maps are fitted for each step.

    Raises
    ------
    InvalidDataError
        For step sizes that are not positive, or too few of them.
    UnsupportedError
        For a functional of the density (`FDivergence`, `InternalEnergy`) with an initial measure
        that has none.

    Notes
    -----
    Particles are drawn once and pushed on once per step, with their densities, so that the
    fortieth step costs what the first one does. Source: Jordan, Kinderlehrer, Otto (1998); with
    input-convex networks Mokrov et al. (2021, arXiv 2106.00736).

    Examples
    --------
    The Ornstein-Uhlenbeck flow towards N(2, 4); the first two steps of the exact chain have means
    0.2222, 0.4198 and variances 1.5517, 2.0170:

    >>> from drojko.flows.functionals import Entropy, PotentialEnergy
    >>> from drojko.measures import Gaussian
    >>> F = PotentialEnergy(lambda z: (z[:, 0] - 2.0) ** 2 / 8) + Entropy()
    >>> result = JKOFlow(F, step_size=0.5).run(Gaussian([0.0], [[1.0]]), 2, random_state=0)
    >>> x, w = result.measures[-1].particles, result.measures[-1].weights
    >>> mean = w @ x
    >>> round(float(mean), 3), round(float(w @ (x - mean) ** 2), 3)
    (0.42, 2.017)
    """

    def __init__(
        self,
        functional: Functional,
        scheme: ICNNScheme | Any | None = None,
        *,
        step_size: float | Sequence[float] | np.ndarray,
        adaptive: float | None = None,
    ) -> None:
        if adaptive is not None and not (is_real(adaptive) and adaptive > 0 and is_real(step_size)):
            raise InvalidDataError(
                f"adaptive={shown(adaptive)} with step_size={shown(step_size)}; give a positive "
                "share and one number to start from"
            )
        scheme = ICNNScheme() if scheme is None else scheme
        if isinstance(scheme, type) or not (
            hasattr(scheme, "solver") or hasattr(scheme, "fit_map")
        ):
            raise InvalidDataError(
                f"scheme={shown(scheme)}; expected settings such as ICNNScheme(), SemiDualScheme() "
                "or ImportanceCorrectedScheme()"
            )
        self._sizes = floats(step_size, "step_size")
        if self._sizes.ndim > 1 or isinstance(step_size, bool | np.bool_):
            raise InvalidDataError(
                f"step_size={shown(step_size)}; expected a positive number, or one for each step"
            )
        self.functional = functional
        self.scheme: Any = scheme
        self.step_size = step_size
        self.adaptive = adaptive

    def _size(self, k: int) -> float:
        return float(self._sizes[k] if self._sizes.ndim else self._sizes)

    # -- the driver's functions --------------------------------------------------------------

    def init(self, problem: tuple[Measure, torch.Generator]) -> FlowState:
        initial, gen = problem
        train = draw_particles(initial, self.scheme.n_particles, gen)
        held = draw_particles(initial, max(2, self.scheme.n_particles // 2), gen)
        if self.functional.density == "absolute" and not train.known:
            raise UnsupportedError(
                f"{self.functional!r} is a functional of the density, and "
                f"{type(initial).__name__} has none; start from a continuous measure"
            )
        return FlowState(measures=(initial,), train=train, held=held, generator=gen)

    def step(self, state: FlowState) -> FlowState:
        """One JKO step; the state given stays as it is."""
        if self.adaptive is None:
            return self._once(state, min(self._size(state.step), state.until - state.time))
        h = state.proposed or self._size(0)
        for _ in range(_TRIALS):  # within one step of the driver, which it may not leave without
            h = min(h, state.until - state.time)
            whole = self._once(state, h)
            half = self._once(state, 0.5 * h)
            both = self._once(half, 0.5 * h)
            moved = whole.train.x - both.train.x
            spread = state.train.mean_and_covariance()[1].trace()
            error = math.sqrt(float(state.train.w @ moved.square().sum(1)) / max(spread, 1e-300))
            # The error of a step is of order h^2.
            factor = 0.9 * math.sqrt(self.adaptive / max(error, 1e-300))
            change = min(2.0, max(0.25, factor))
            if error <= self.adaptive:
                break
            h = h * change
        last = {**both.last, "step": state.step + 1, "error": error}
        for name in ("movement", "decrease", "step_seconds"):
            last[name] = half.last[name] + both.last[name]
        last["step_seconds"] += whole.last["step_seconds"]
        for name in ("translation", "linear", "refined"):
            last[name] = max(half.last[name], both.last[name])
        image = state.moved(Composition(both.maps[-2:]), to=both.train)
        return replace(both, measures=(*state.measures, image), last=last, proposed=h * change)

    def _once(self, state: FlowState, h: float) -> FlowState:
        train = MapProblem.of(self.functional, state.train, h)
        held = train.on(state.held)
        began = time.perf_counter()
        found: FittedMap = self.scheme.fit_map(train, held, state.generator, state.potential)
        before = held.functional.value(state.held.x, state.held.log_density, state.held.w)
        shift, linear = train.residual(found.train)
        move = max(found.train.move, 1e-300)
        mass = float(found.train.d_log_det.sum()) * math.sqrt(train.particles.x.shape[1])
        numbers = {
            "energy": found.held.energy,
            "movement": found.held.move / (2.0 * h),
            "decrease": before - found.held.energy,
            "translation": shift / (math.sqrt(move) / h),
            "linear": linear / (move / h + abs(mass)),
            "refined": float(found.refined),
        }
        image = state.train.moved(found.train.image, found.train.log_det)
        held = state.held.moved(found.held.image, found.held.log_det)
        return state.after(
            state.moved(found.map, to=image), h, began, numbers,
            train=image, held=held, potential=found.potential,
        )  # fmt: skip

    def terminate(self, state: FlowState) -> Status | None:
        """A flow goes on for as many steps as asked for, or until its last time."""
        return Status.CONVERGED if state.time >= state.until * (1.0 - 1e-12) else None

    def finite(self, state: FlowState) -> bool:
        return bool(torch.isfinite(state.train.x).all())

    # -- the public one ----------------------------------------------------------------------

    def run(
        self,
        initial: Measure,
        n_steps: int | None = None,
        random_state: Any = None,
        callback: Callable[[FlowState], bool | None] | None = None,
        *,
        until: float = math.inf,
        checkpoint: Any = None,
        checkpoint_every: float = 60.0,
    ) -> FlowResult:
        """Run the flow from a measure.

        Parameters
        ----------
        initial : Measure
            rho_0, ready to use.
        n_steps : int, default=None
            At most; None: as many as there are step sizes.
        random_state : None, int or generator
            Of the particles, of new networks and of their mini-batches.
        callback : callable, default=None
            Called with the `FlowState` after each step; True ends the flow.
        until : float
            Time at which the flow ends; the last step is shortened to meet it.
        checkpoint : str or path-like, default=None
            A file that the flow is written to between steps; the same call goes on from it, and
            ends as if it had never stopped. Of a flow that has ended it gives the result again.
            The file before it is kept with ``.previous`` at the end of its name.
        checkpoint_every : float
            Seconds between two files. One is written as well when the flow ends or is interrupted.

        Returns
        -------
        FlowResult

        Raises
        ------
        KeyboardInterrupt
            With the steps so far as its ``result``.
        InvalidDataError
            For arguments out of range, and a ``checkpoint`` of another call, which it names.
        """
        given = self._sizes.size if self._sizes.ndim else None
        n_steps = given if n_steps is None else n_steps
        if n_steps is None:
            raise InvalidDataError("give n_steps, or a step size for each step")
        if not is_whole(n_steps, 1):
            raise InvalidDataError(f"n_steps={shown(n_steps)}; a flow takes at least 1 step")
        if given is not None and given < n_steps:
            raise InvalidDataError(f"step_size has {given} entries for {n_steps} steps")
        wrong = ~((self._sizes > 1e-150) & (self._sizes < 1e150))  # whose squares are numbers
        if wrong.any():
            raise InvalidDataError(
                f"step_size={float(self._sizes[wrong].flat[0])!r}; it must be a positive number"
            )
        check_number("until", until, above=0, infinite=True)
        solver: Any = self
        if hasattr(self.scheme, "solver"):  # a scheme with a state of its own
            if self.adaptive is not None or until != math.inf:
                raise UnsupportedError(
                    f"{type(self.scheme).__name__} takes the step sizes given: leave out adaptive "
                    "and until"
                )
            solver = self.scheme.solver(self.functional, [self._size(k) for k in range(n_steps)])
        gen = make_generator(random_state)
        keeper = None
        if checkpoint is not None:
            known = None if random_state is None else gen.get_state()
            steps = (n_steps, until, self._sizes, self.adaptive)
            keeper = _checkpoint(self, solver, initial, checkpoint, checkpoint_every, steps, known)
        start: Any = solver.init((initial, gen))
        if solver is self:
            start = replace(start, until=until)
        rows: list[dict[str, float]] = []  # and the last state, for interrupts without outcome
        last: list[Any] = []

        def report(state: Any) -> bool:
            rows.append(solver.record(state))
            last[:] = [state]
            return callback is not None and bool(callback(state))

        def work() -> FlowResult:
            outcome = run(solver, start, max_iter=n_steps, callback=report, keeper=keeper)
            # The number of steps is a limit where a time is the goal.
            return finish(solver, outcome, complete=math.isinf(until))

        def so_far() -> FlowResult | None:
            return result_of(last[0], Status.INTERRUPTED, rows[: last[0].step]) if last else None

        return keeping(work, so_far)


def _checkpoint(
    flow: JKOFlow, solver: Any, initial: Measure, path: Any, every: float, steps: Any, known: Any
) -> Any:
    """Where the states of a flow are kept; a measure is known by what it draws."""
    from drojko._driver.checkpoints import Checkpoint
    from drojko._driver.snapshots import code_in

    given = [initial, *code_in(flow.functional, vars(solver))]
    draws = initial.sample(_DRAWS, make_generator(0))
    about = {"functional": flow.functional, "scheme": flow.scheme, "steps": steps}
    about |= {"initial measure": (type(initial), draws)}
    about |= {} if known is None else {"random_state": known}
    return Checkpoint(path, every, given, **about)
