"""Decisions against the worst case: minimise a loss of (params, z) over an ambiguity set for z."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Outcome, Status, arithmetic, keeping, run
from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko._threads import one_thread
from drojko._validation import check_flag, check_number, is_whole, shown
from drojko.ambiguity import AmbiguitySet
from drojko.ambiguity.duals.scaling import NonFiniteLossError
from drojko.approaches.registry import approach_to
from drojko.certificates import Certificate
from drojko.exceptions import (
    ConvergenceWarning,
    InvalidDataError,
    NonFiniteError,
    UnboundedRiskError,
    UnsupportedError,
)
from drojko.inner.choice import get_inner
from drojko.inner.reweighting.importance import Importance
from drojko.inner.reweighting.semidual import SemiDual
from drojko.inner.solver import InnerSolver
from drojko.measures import Empirical, Measure
from drojko.problems.constraints import Region, build_region
from drojko.problems.families.adversary import decision_model
from drojko.problems.families.oracle import Decided, Draws, Family
from drojko.problems.families.registry import family_of
from drojko.problems.parameters import Layout
from drojko.problems.solvers.level import LevelBundle
from drojko.problems.solvers.spectral import SpectralGradient
from drojko.problems.worst_case import DecisionWorstCase

__all__ = ["MinimaxProblem", "Solution"]

#: Draws of a continuous reference: for losses with a formula or a reweighting set, and for others.
_EXACT_DRAWS, _SEARCH_DRAWS = 20_000, 2_000
#: Number of entries of the draws from which torch's threads are worth their start.
_SMALL = 2_000_000
_TOLD = (Status.MAX_ITER, Status.MAX_TIME, Status.STALLED, Status.UNBOUNDED)
_REMEDIES = (
    "Bound the decision (constraint=; a portfolio by long_only=True or max_weight=), or take a "
    "larger radius or a smaller penalty."
)

_UNFINISHED = "Without a certificate and a history."

Loss = Callable[[Any, Tensor], Tensor]
Callback = Callable[[int, dict[str, float]], bool | None]


@dataclass(frozen=True, repr=False)
class Solution:
    """What `MinimaxProblem.solve` returns.

    Attributes
    ----------
    params
        The decision, of the kind and shape of the first one.
    certificate : Certificate
        Bounds of the worst case of this decision, on draws of their own where the reference is
        continuous.
    worst_case : DecisionWorstCase
        The worst distribution of z for this decision.
    objective : float
        The certificate's upper bound: the worst-case risk, in penalty form minus the penalty's
        share.
    optimality_gap : float
        Proven: no decision is better by more than that on the draws that were optimised on, which
        for an empirical reference are all there is; nowhere, not just near by. inf where nothing
        is proven: losses that were not declared convex, worst cases that are estimates, runs that
        ended before the optimum was surrounded.
    relative_gap : float
        That gap, beyond rounding, relative to the objective and a percent of the mean loss (for
        objectives near zero); NaN where nothing is proven. "converged" says for convex losses that
        it is at most ``tol``.
    direction
        Of the shape of ``params``, None but for status "unbounded": along it the worst case falls
        without end, at the same rate wherever it was asked.
    history : dict of ndarray
        A column per quantity, a row per iteration.
    status, message : str
        Why the solver stopped ("converged", "stalled", "max_iter", "max_time", "callback",
        "unbounded"), and what can be done about it.
    """

    params: Any
    certificate: Certificate
    worst_case: DecisionWorstCase
    objective: float
    optimality_gap: float
    relative_gap: float = math.nan
    direction: Any = None
    history: dict[str, np.ndarray] = field(default_factory=dict)
    status: str = "converged"
    message: str = ""

    @property
    def lower_bound(self) -> float:
        """What no decision can go below (up to Monte-Carlo error): objective - optimality_gap."""
        return self.objective - self.optimality_gap

    def __repr__(self) -> str:
        with np.printoptions(precision=5, threshold=12, edgeitems=4):
            lines = [f"Solution: {self.status}", f"  params = {self.params}"]
        lines.append(f"  objective = {self.objective:.6g}  [{self.certificate.proof}]")
        if math.isfinite(self.optimality_gap):
            lines.append(f"  no decision is better by more than {self.optimality_gap:.2g}")
        error = self.certificate.standard_error
        if error > 0:
            lines.append(f"  Monte-Carlo standard error of the objective {error:.2g}")
        lines.append(f"  {self.worst_case!r}")
        return "\n".join(lines)


class MinimaxProblem:
    r"""Minimise the worst case of any loss over a set of distributions near a reference.

    .. math:: \min_{\theta \in \Theta}\; \sup \{ E_P \ell(\theta, z) : D(P, P_0) \le r \}

    or its penalised form: decisions (stock, portfolios, plans) instead of predictions, so that
    there are no labels.

    Parameters
    ----------
    loss : callable
        ``loss(params, z) -> (n,)`` in torch, for rows z of shape (n, d), float64. One of
        `MaxAffine`, `SeparableMaxAffine` and `Quadratic` where the loss is of that kind: their
        worst cases, and certificates, are exact.
    params : number, array, tensor, or dict or list of these
        The first decision. ``loss`` gets tensors in the same container.
    reference : Measure or array of shape (n, d)
        P0: a fitted measure of `drojko.measures`, or data, whose empirical measure it is. Frames
        give their columns' names to the ambiguity set.
    ambiguity : AmbiguitySet
        `drojko.ambiguity.Wasserstein` of order 2 with its costs and bounds, of order 1 for
        `MaxAffine` and `SeparableMaxAffine`, or a set that reweights: KL, ChiSquare, CressieRead,
        TotalVariation, CVaR.
    inner : {"icnn", "pointwise", "auto"} or InnerSolver, default="icnn"
        Finds worst cases of losses without known structure under transport sets.
    constraint : optional
        "simplex", "nonnegative", ``("box", lower, upper)``, a `Box`, `Nonnegative`, `Simplex` or
        `Ball`, or a function that projects a tensor; for several variables a dict from their
        names.
    convex : bool, default=None
        Whether the loss is convex in params for every z. True: a bundle method, for kinks too,
        with a proven bound on the optimum. None and False: a projected gradient method.
    n_draws : int, default=None
        Draws of a continuous reference to optimise on, and as many fresh ones for the certificate.

    Examples
    --------
    The worst case of :math:`\frac12\|t\|^2 - t^\top z` at penalty 2 is decided by
    t = E z / (1 + 1/4):

    >>> import torch
    >>> from drojko.ambiguity import Wasserstein
    >>> from drojko.problems import MinimaxProblem
    >>> problem = MinimaxProblem(
    ...     lambda t, z: 0.5 * t @ t - z @ t, torch.zeros(2), [[0.0, 1.0], [2.0, 4.0]],
    ...     Wasserstein(penalty=2.0), inner="pointwise",
    ... )
    >>> problem.solve(tol=1e-9).params
    tensor([0.8000, 2.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        loss: Loss,
        params: Any,
        reference: Any,
        ambiguity: AmbiguitySet,
        *,
        inner: str | InnerSolver | None = None,
        constraint: Any = None,
        convex: bool | None = None,
        n_draws: int | None = None,
    ) -> None:
        if isinstance(loss, type) or not callable(loss):
            raise InvalidDataError(
                f"loss={shown(loss)}; expected a function loss(params, z) -> (n,) or an object of "
                "drojko.problems (MaxAffine, SeparableMaxAffine, Quadratic)"
            )
        approach_to(ambiguity)
        if n_draws is not None and not is_whole(n_draws, 2):
            raise InvalidDataError(f"n_draws={shown(n_draws)}; expected an integer of at least 2")
        if convex is not None:
            check_flag("convex", convex)
        self.loss = loss
        self.layout, self.first = Layout.of(params)
        self.reference, self.names = reference_of(reference)
        self.ambiguity = ambiguity
        self.inner = get_inner("icnn" if isinstance(inner, str) and inner == "auto" else inner)
        if isinstance(self.inner, Importance | SemiDual):
            raise UnsupportedError(
                f"inner={inner!r} is for estimators: the worst case of a decision in a set that "
                "reweights is sampled exactly; leave inner at its default"
            )
        self.constraint = constraint
        self.region: Region = build_region(constraint, self.layout)
        self.convex, self.n_draws = convex, n_draws
        self.family: Family = family_of(ambiguity, loss, self.inner, self.reference.dim, self.names)

    def _draws(self, generator: torch.Generator) -> Draws:
        n = self.n_draws or (_EXACT_DRAWS if self.family.exact else _SEARCH_DRAWS)
        return self.family.inside(*self.reference.points(n, generator), self.sampled)

    @property
    def sampled(self) -> bool:
        """Whether expectations under the reference are Monte-Carlo averages."""
        return not isinstance(self.reference, Empirical)

    def evaluate(
        self, params: Any = None, *, random_state: Any = None
    ) -> tuple[Certificate, DecisionWorstCase]:
        """Worst case of a fixed decision, and its certificate.

        Parameters
        ----------
        params : as in the constructor, default=None
            The decision; None: the first one.
        random_state : None, int or generator
            Of the draws of a continuous reference, and of the search for worst cases.

        Raises
        ------
        UnboundedRiskError
            When the worst case is infinite; the message names a penalty for which it is not.
        """
        flat = self.first if params is None else self.layout.read(params)
        return self._certify(flat, make_generator(random_state), math.nan)

    def _certify(
        self, flat: Tensor, generator: torch.Generator, stationarity: float
    ) -> tuple[Certificate, DecisionWorstCase]:
        draws = self._draws(spawn(generator))
        with arithmetic("the certificate"), one_thread(draws.x.numel() < _SMALL):
            model = decision_model(self.loss, self.layout, flat)
            self._check(model, draws)
            of = Decided(model, draws, self.reference, self.sampled, spawn(generator), stationarity)
            found = self.family.certify(of)
        return found[0], DecisionWorstCase(found[1])

    @staticmethod
    def _check(model: Any, draws: Draws) -> None:
        values = model.linearise(draws.x[:64])[0]
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteLossError(
                "loss(params, z) is NaN or infinite at rows of the reference; start at params "
                "where it is finite, or look at the scale of the data"
            )

    def solve(
        self,
        *,
        max_iter: int = 1000,
        tol: float = 1e-5,
        random_state: Any = None,
        max_time: float | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> Solution:
        """Minimise the worst case.

        Parameters
        ----------
        max_iter : int
            Steps of the outer method.
        tol : float
            Convex losses: largest gap between the objective and the proven bound of the optimum,
            relative to the objective. Others: norm of the projected gradient, each entry relative
            to the root mean square of the rows' own slopes. Neither depends on the units of
            losses and decisions.
        random_state : None, int or generator
            Of the draws of a continuous reference, and of the search for worst cases.
        max_time : float, default=None
            Seconds after which no further step starts.
        callback : callable, default=None
            ``callback(iteration, record)`` after each step; True stops.
        verbose : bool
            Show the progress.

        Raises
        ------
        UnboundedRiskError
            When the worst case of the first decision is infinite.
        KeyboardInterrupt
            After Ctrl-C; the exception's ``result`` is the solution so far. Where the certificate
            was cut short its numbers are NaN, and ``worst_case`` is None.
        NonFiniteError
            When losses turn NaN; its ``last_state`` is the last decision where they were not.

        Warns
        -----
        ConvergenceWarning
            When a limit or a stall comes before the tolerance, or there is no minimum.
        """
        if not is_whole(max_iter, 1):
            raise InvalidDataError(f"solve got max_iter={shown(max_iter)}; expected 1 or more")
        check_number("solve got tol", tol, least=0)
        if max_time is not None:
            check_number("solve got max_time", max_time, above=0, infinite=True)
        if callback is not None and not callable(callback):
            raise InvalidDataError(f"solve got callback={shown(callback)}; expected a function")
        check_flag("solve got verbose", verbose)
        generator = make_generator(random_state)
        limits: Any = {"max_iter": int(max_iter), "max_time": max_time}
        best: list[Any] = []  # state so far, for interrupts that leave no outcome
        count = itertools.count(1)

        def report(state: Any, record: dict[str, float]) -> bool:
            if not best or state.value <= best[0].value:
                best[:] = [state]
            return callback is not None and bool(callback(next(count), record))

        def so_far() -> Solution | None:
            words = f"{Status.INTERRUPTED.advice} {_UNFINISHED}"
            return self._solution(best[0], Status.INTERRUPTED, words) if best else None

        solution = keeping(
            lambda: self._solve(float(tol), limits, generator, report, verbose), so_far
        )
        if solution.status == Status.INTERRUPTED:
            error: Any = KeyboardInterrupt(f"{solution.message} It is the exception's `result`.")
            error.result = solution
            raise error
        return solution

    def _solve(
        self,
        tol: float,
        limits: dict[str, Any],
        generator: torch.Generator,
        callback: Callable[[Any, dict[str, float]], bool],
        verbose: bool,
    ) -> Solution:
        draws = self._draws(spawn(generator))
        model = decision_model(self.loss, self.layout, self.region.project(self.first))
        self._check(model, draws)
        with (
            arithmetic("the decision"),
            one_thread(draws.x.numel() < _SMALL),
            _status(verbose) as told,
        ):
            oracle = self.family.oracle(model, draws)
            kind: Any = LevelBundle if self.convex and self.region.rows else SpectralGradient
            solver = kind(oracle, self.region, tol)
            count = itertools.count(1)

            def report(state: Any) -> bool:
                record = solver.record(state)
                if told is not None:
                    numbers = ", ".join(f"{name} {value:.6g}" for name, value in record.items())
                    told.update(f"iteration {next(count)}: {numbers}")
                return callback(state, record)

            try:
                outcome: Outcome[Any] = run(
                    solver,
                    solver.init(None),
                    callback=report,
                    best=lambda state: state.value,
                    **limits,
                )
            except UnboundedRiskError:
                self._check(model, draws)  # or is it NaN?
                raise
            except NonFiniteError as error:
                if error.last_state is not None:
                    error.last_state = self._decision(error.last_state.point)
                raise
        state, status, message = outcome.best_state, outcome.status, outcome.message
        if status is Status.CONVERGED:  # what the test was made at, up to rounding the best
            state = outcome.state
        if status is Status.UNBOUNDED:
            message = f"{message} {_REMEDIES}"
        if status is Status.STALLED and oracle.reason:
            message = f"{message} At other decisions that were tried {oracle.reason}."
        found: Any = None
        try:
            flat = torch.from_numpy(np.array(state.point))
            found = self._certify(flat, generator, state.stationarity)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, NonFiniteError):
                error.last_state = self._decision(state.point)
            if status is not Status.INTERRUPTED and not isinstance(error, KeyboardInterrupt):
                raise
            status, message = Status.INTERRUPTED, f"{Status.INTERRUPTED.advice} {message}"
        if status in _TOLD:
            warnings.warn(f"MinimaxProblem: {status}: {message}", ConvergenceWarning, stacklevel=5)
        return self._solution(
            state, status, message, found, outcome.state.direction, outcome.columns()
        )

    def _solution(
        self,
        state: Any,
        status: Status,
        message: str,
        found: tuple[Certificate, DecisionWorstCase] | None = None,
        direction: np.ndarray | None = None,
        history: dict[str, np.ndarray] | None = None,
    ) -> Solution:
        """A state as a solution, without numbers where no certificate was found."""
        nan, proven = math.nan, self.family.exact
        unknown = (Certificate(nan, nan, nan, nan, self.ambiguity.radius, nan, nan), None)
        certificate, worst = found or unknown
        return Solution(
            params=self._decision(state.point),
            certificate=certificate,
            worst_case=cast(Any, worst),
            objective=certificate.upper,
            optimality_gap=state.gap if proven else math.inf,
            relative_gap=state.relative_gap if proven else math.nan,
            direction=None if direction is None else self._decision(direction),
            history=history or {},
            status=str(status),
            message=message,
        )

    def _decision(self, point: np.ndarray) -> Any:
        """A flat point as the decision was given."""
        return self.layout.restore(torch.from_numpy(np.array(point)))

    def __repr__(self) -> str:
        name = getattr(self.loss, "__name__", type(self.loss).__name__)
        variables = ", ".join(
            f"{name}{list(shape)}"
            for name, shape in zip(self.layout.names, self.layout.shapes, strict=True)
        )
        return (
            f"MinimaxProblem(loss={name}, {variables}, reference={type(self.reference).__name__} "
            f"on R^{self.reference.dim}, {self.ambiguity!r})"
        )


def _status(wanted: bool) -> Any:
    """Where progress is shown while the block lasts; None: it is not."""
    if not wanted:
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("MinimaxProblem")


def reference_of(given: Any) -> tuple[Measure, list[str] | None]:
    """The measure of z, and the names of its columns where they have any.

    Raises `InvalidDataError` for a measure that is not fitted, and for what is no table of numbers.
    """
    if isinstance(given, Measure):
        if not given.__sklearn_is_fitted__():
            raise InvalidDataError(
                f"reference={given!r} is not fitted: call fit(Z) on it, or give the data themselves"
            )
        return given, None
    if isinstance(given, str):
        raise InvalidDataError(
            f"reference={shown(given)}; expected data of shape (n, d) or a fitted measure of "
            "drojko.measures"
        )
    measure = Empirical().fit(given)
    columns = getattr(given, "columns", None)
    named = columns is not None and all(isinstance(name, str) for name in columns)
    return measure, [str(name) for name in columns] if columns is not None and named else None
