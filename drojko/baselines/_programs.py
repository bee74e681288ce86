"""What all convex programs share: a parametrised objective, one solve, the solver's own word."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from drojko.ambiguity import GroundCost
from drojko.exceptions import InvalidDataError, SolverError
from drojko.losses import Loss

__all__ = ["Form", "Program", "Rows", "Table", "Units"]

#: Solvers that are free to use, by what they are best at.
SOLVERS = ("CLARABEL", "SCS", "HIGHS", "OSQP")
#: Settings that are tried in turn until one ends as optimal: tight ones first. Shorter steps keep
#: Clarabel inside exponential and power cones where its usual ones end at their boundary.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "CLARABEL": tuple(
        {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol, "max_step_fraction": step}
        for tol in (1e-9, 1e-8, 1e-7)
        for step in (0.99, 0.9, 0.7)
    ),
    "SCS": ({"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 200_000},),
    "OSQP": ({"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 200_000},),
    "HIGHS": ({},),
}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows x of shape (n, d), targets, masses that sum to one, and the model's variables.

    Classification of two classes: ``sign`` is +-1; of more: ``target`` holds class indices and
    ``theta`` is (d, K). ``members`` of shape (n, G) says who is in which group.
    """

    x: np.ndarray
    target: np.ndarray
    mass: np.ndarray
    theta: Any
    intercept: Any
    outputs: Any
    sign: np.ndarray | None = None
    n_classes: int = 0
    members: np.ndarray | None = None
    given: tuple[np.ndarray, np.ndarray] | None = None  # rows and targets in the user's units
    typical: float = 1.0  # what losses are counted in

    @property
    def link(self) -> Any:
        """The constraint outputs = x theta + intercept.

        The outputs are a variable, of shape (n,) or (n, K): cvxpy 1.9 propagates the bounds of
        matrix products as NaN (zero times infinity), which makes linear programs infeasible.
        """
        import cvxpy as cp

        if self.n_classes > 2:
            row = cp.reshape(self.intercept, (1, self.n_classes), order="C")
            return self.outputs == self.x @ self.theta + np.ones((len(self.x), 1)) @ row
        return self.outputs == self.x @ self.theta + self.intercept

    @property
    def u(self) -> Any:
        """Margins or residuals, of shape (n,)."""
        if self.sign is not None:
            import cvxpy as cp

            return cp.multiply(self.sign, self.outputs)
        return self.outputs - self.target

    def losses(self, loss: Loss) -> Any:
        """Loss of each row, a convex expression of shape (n,)."""
        return loss.conic(self.outputs, self.target) / self.typical


@dataclass(frozen=True, eq=False)
class Units:
    """Units in which the numbers of a program are near one.

    Columns are (x - centre) / scale, targets (y - shift) / unit; losses are ``loss`` of these, in
    units of ``typical``, which is ``risk`` in those of the user.
    """

    centre: np.ndarray
    scale: np.ndarray
    shift: float = 0.0
    unit: float = 1.0
    risk: float = 1.0
    typical: float = 1.0
    loss: Loss | None = None

    @classmethod
    def none(cls, d: int) -> Units:
        """The user's own."""
        return cls(np.zeros(d), np.ones(d))

    @classmethod
    def of(
        cls, X: np.ndarray, y: np.ndarray, mass: np.ndarray, loss: Loss, fit_intercept: bool
    ) -> Units:
        """Of the spread of columns and targets; without intercept, of their size."""
        centre = mass @ X if fit_intercept else np.zeros(X.shape[1])
        scale = np.sqrt(mass @ (X - centre) ** 2)
        scale[~(scale > 1e-12 * np.abs(centre))] = 1.0
        shift = float(mass @ y) if fit_intercept else 0.0
        unit = math.sqrt(float(mass @ (y - shift) ** 2))
        found = loss.rescaled(unit) if loss.task == "regression" and unit > 0 else None
        if found is None:
            return cls(centre, scale)
        target = torch.from_numpy((y - shift) / unit)
        typical = float(mass @ found[0].value(torch.zeros_like(target), target).numpy()) or 1.0
        return cls(centre, scale, shift, unit, typical * found[1], typical, found[0])

    def scaled(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and targets in these units."""
        y = y if self.loss is None else (y - self.shift) / self.unit
        return (X - self.centre) / self.scale, y

    def slopes(self, shape: tuple[int, ...]) -> np.ndarray:
        """What coefficients of a shape are multiplied by to be the user's."""
        return np.broadcast_to((self.unit / self.scale).reshape(-1, *[1] * (len(shape) - 1)), shape)

    def restored(self, theta: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercepts in the user's units."""
        theta = self.slopes(theta.shape) * theta
        return theta, self.unit * intercept + self.shift - self.centre @ theta


@dataclass(frozen=True, eq=False)
class Form:
    """A robust risk as a convex expression, its constraints, and its size as parameters.

    ``sizes`` maps parameters of the program to functions of the radius or penalty, so that a
    program that was compiled once is solved for any of them. ``epigraph`` is the constraint whose
    dual values are the worst-case masses, where there is one.
    """

    risk: Any
    constraints: list[Any]
    sizes: list[tuple[Any, Callable[[float], float]]]
    epigraph: Any = None
    multiplier: Any = None
    cost: GroundCost | None = None


@dataclass(eq=False)
class Program:
    """A compiled problem: `solve` for a size, as often as wanted."""

    form: Form
    problem: Any
    solver: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def solve(self, size: float) -> float:
        """Optimal value; raises `SolverError` with the solver's word for anything but optimal."""
        import cvxpy as cp

        for parameter, of in self.form.sizes:
            parameter.value = of(size)
        # HiGHS for linear programs, Clarabel for all cones.
        name = self.solver or ("HIGHS" if self.problem.is_lp() else "CLARABEL")
        failed = None
        for settings in SETTINGS[name] if not self.options else ({},):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what it warns of is raised below
                    self.problem.solve(solver=name, **settings, **self.options)
            except cp.error.SolverError as error:  # perhaps a looser setting ends
                failed = error
                continue
            failed = None
            if self.problem.status != cp.OPTIMAL_INACCURATE:
                break
        if failed is not None:
            raise SolverError(
                f"{name} failed: {failed}. Choose another solver of {', '.join(SOLVERS)}, scale "
                "the features, or use drojko's own estimators, which need none"
            ) from failed
        status = self.problem.status
        if status == cp.OPTIMAL:
            return float(self.problem.value)
        others = f"one of {', '.join(SOLVERS)}"
        reason = f"its answer is not accurate: try another solver ({others}), or scale the features"
        if "infeasible" in status or "unbounded" in status:
            reason = "the worst-case risk is infinite for every model, or has no lower bound"
        raise SolverError(f"{name} ended with status {status!r}; {reason}")


def check_solver(solver: Any) -> str | None:
    """The solver's name in capitals; None: chosen by the class of the problem."""
    if solver is None:
        return None
    if not isinstance(solver, str) or solver.upper() not in SOLVERS:
        raise InvalidDataError(
            f"solver={solver!r}; expected None (chosen by problem class) or one of "
            f"{', '.join(SOLVERS)}"
        )
    return solver.upper()


class Rows:
    """Distinct rows (x, y, groups) of positive mass, and the way back: copies are weights."""

    def __init__(self, X: np.ndarray, y: np.ndarray, mass: np.ndarray, members: Any) -> None:
        self.given, self.given_mass, self.kept = X, mass, mass > 0
        d = X.shape[1]
        parts = [X, y] if members is None else [X, y, members]
        rows = np.column_stack(parts)[self.kept]
        distinct, index = np.unique(rows, axis=0, return_inverse=True)
        self.index = index.ravel()
        self.x, self.y = np.ascontiguousarray(distinct[:, :d]), distinct[:, d].astype(y.dtype)
        self.members = None if members is None else distinct[:, d + 1 :] > 0
        self.mass = np.bincount(self.index, weights=mass[self.kept])

    def masses(self, distinct: np.ndarray) -> np.ndarray:
        """Masses of the given rows: copies share in proportion to their weights."""
        result = np.zeros(len(self.given))
        ratio = distinct / self.mass
        result[self.kept] = ratio[self.index] * self.given_mass[self.kept]
        return result / result.sum()

    def atoms(self, distinct: np.ndarray) -> np.ndarray:
        """Positions of the given rows; those without weight stay."""
        result = self.given.copy()
        result[self.kept] = distinct[self.index]
        return result
