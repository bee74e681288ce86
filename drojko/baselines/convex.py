"""Robust linear models by conic programming: slow, general, and independent of our solvers."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, clone

from drojko._sklearn import (
    Interval,
    LogitClassifier,
    NestedDefaults,
    check_is_fitted,
    checked_data,
    checked_weight,
    fitting,
)
from drojko.ambiguity import AmbiguitySet, GroundCost, Wasserstein
from drojko.baselines._programs import Form, Program, Rows, Table, Units, check_solver
from drojko.baselines._reweighting import reweighting_form
from drojko.baselines._transport import order_one_form, order_two_form
from drojko.exceptions import (
    InvalidDataError,
    SolverError,
    UnboundedRiskError,
    UnsupportedError,
)
from drojko.losses import Loss, loss_with
from drojko.measures._arrays import members_of

__all__ = ["ConvexDROClassifier", "ConvexDRORegressor", "SUPPORTED"]

#: Which losses have a convex reformulation in which set.
SUPPORTED: dict[str, tuple[str, ...]] = {
    "Wasserstein(order=1)": ("logistic", "hinge", "absolute", "huber", "quantile"),
    "Wasserstein(order=2)": ("hinge (two classes)", "squared", "absolute", "quantile"),
    "KL, ChiSquare, CressieRead, TotalVariation, CVaR, MMD, Group": ("all",),
}


def _unsupported(what: str) -> UnsupportedError:
    pairs = "; ".join(f"{name}: {', '.join(losses)}" for name, losses in SUPPORTED.items())
    return UnsupportedError(f"{what} has no convex reformulation here. Supported: {pairs}")


_FAR = 4.0  # digits from one from which on other units are tried first


def _size_name(ambiguity: Any) -> str:
    return ambiguity.size_name if ambiguity.penalty is None else "penalty"


@dataclass(eq=False, repr=False)
class _ConvexDRO(NestedDefaults, BaseEstimator):
    """What both estimators share."""

    ambiguity: AmbiguitySet | None = None
    _: KW_ONLY
    alpha: float = 0.0
    fit_intercept: bool = True
    solver: str | None = None
    solver_options: dict[str, Any] | None = None

    _nested_defaults = {"ambiguity": lambda: Wasserstein(radius=0.1, order=1)}
    _parameter_constraints: ClassVar[dict] = {
        "ambiguity": [AmbiguitySet, None],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "solver": [str, None],
        "solver_options": [dict, None],
    }

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _read(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rows, and class indices or float targets."""
        raise NotImplementedError

    @fitting
    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Build the program and solve it.

        Parameters
        ----------
        X : array-like of shape (n, d)
        y : array-like of shape (n,)
        sample_weight : array-like of shape (n,), default=None
        groups : array-like of shape (n,) or (n, G), default=None
            For `Group` sets: a label per row, or columns of 0 and 1.

        Returns
        -------
        self : object
        """
        X, y = self._read(X, y)
        weight = checked_weight(sample_weight, X)
        ambiguity = self._nested("ambiguity")
        members = members_of(groups, weight)[0] if ambiguity.knows_groups else None
        self._rows = rows = Rows(X, y, weight / weight.sum(), members)
        names = getattr(self, "feature_names_in_", None)
        resolved = ambiguity.validate(rows.x.shape[1], None if names is None else list(names))
        size = getattr(ambiguity, _size_name(ambiguity))
        size = math.nan if size is None else float(size)  # any mixture of groups
        tries = [Units.none(rows.x.shape[1])]
        if callable(getattr(ambiguity, "on", None)):  # nothing moves: columns have no geometry
            units = Units.of(rows.x, rows.y, rows.mass, self._loss(), self.fit_intercept)
            sizes = np.append(units.scale, units.unit)
            tries.insert(0 if (abs(np.log10(sizes)) > _FAR).any() else 1, units)
        for units in tries:
            self._build(ambiguity, resolved, units)
            try:
                self._finish(size)
            except SolverError:
                if units is tries[-1]:
                    raise
            else:
                break
        return self

    def _build(self, ambiguity: Any, resolved: Any, units: Units, tries: int | None = None) -> None:
        import cvxpy as cp

        rows, self._units = self._rows, units
        X, y, mass = rows.x, rows.y, rows.mass
        classes = len(getattr(self, "classes_", ()))
        loss = units.loss or self._loss()
        shape = (X.shape[1], classes) if classes > 2 else X.shape[1]
        theta = cp.Variable(shape)
        size = classes if classes > 2 else 1
        intercept = cp.Variable(size) if self.fit_intercept else np.zeros(size)
        sign = 2.0 * y - 1.0 if classes == 2 else None
        outputs = cp.Variable((len(X), classes) if classes > 2 else len(X))
        parts = (mass, theta, intercept, outputs, sign, classes, rows.members, (X, y))
        table = Table(*units.scaled(X, y), *parts, units.typical)
        form = self._form(ambiguity, resolved, loss, table)
        objective = form.risk
        if self.alpha > 0:
            user = cp.multiply(units.slopes(theta.shape), theta)
            objective = objective + 0.5 * self.alpha / units.risk * cp.sum_squares(user)
        problem = cp.Problem(cp.Minimize(objective), [table.link, *form.constraints])
        solver = check_solver(self.solver)
        self._program = Program(form, problem, solver, dict(self.solver_options or {}))
        self._table = table

    def _form(self, ambiguity: Any, resolved: Any, loss: Loss, table: Table) -> Form:
        name = type(ambiguity).__name__
        if ambiguity.radius == 0 and not ambiguity.knows_groups:
            return Form(table.mass @ table.losses(loss), [], [])
        if callable(getattr(ambiguity, "on", None)):
            return reweighting_form(ambiguity, loss, table)
        if ambiguity.order is None or not isinstance(resolved, GroundCost):
            raise _unsupported(name)
        if resolved.bounded or getattr(ambiguity, "categorical_features", None) is not None:
            raise _unsupported(f"{name} with bounds or categorical features")
        if ambiguity.order == 1:
            if loss.lipschitz is None or not (loss.scalar or loss.has_pairs):
                raise _unsupported(f"{name}(order=1) with loss={loss!r}")
            if math.isinf(loss.lipschitz):
                raise UnboundedRiskError(
                    f"the {loss.name} loss grows faster than an order-1 cost: the worst case is "
                    "infinite for every radius > 0 and every penalty. Use order=2"
                )
            if table.n_classes > 2 and math.isfinite(ambiguity.label_cost):
                raise _unsupported(f"{name}(order=1) with label_cost and several classes")
            return order_one_form(ambiguity, resolved, loss, table)
        if table.n_classes > 2 or not (loss.lines or loss.quadratic):
            what = "several classes" if table.n_classes > 2 else f"loss={loss!r}"
            raise _unsupported(f"{name}(order=2) with {what}")
        return order_two_form(ambiguity, resolved, loss, table)

    def refit(self, size: float) -> Self:
        """Solve again for another radius (or penalty, or alpha of a CVaR) on the same data.

        The program is not compiled again. ``ambiguity`` itself stays as it is.

        Parameters
        ----------
        size : float
            In the place of the size that the set was given by; positive.

        Returns
        -------
        self : object
        """
        check_is_fitted(self)
        if self.__dict__.get("_program") is None:
            raise InvalidDataError("refit needs the program of a fit in this process: call fit")
        ambiguity = self._nested("ambiguity")
        clone(ambiguity).set_params(**{_size_name(ambiguity): size}).validate(
            self.n_features_in_, None
        )
        if not size > 0 or not self._program.form.sizes:
            raise InvalidDataError(
                f"refit got {size!r}: for radius 0, sets without a size, and back, call fit"
            )
        self._finish(float(size))
        return self

    def _finish(self, size: float) -> None:
        program, table, units = self._program, self._table, self._units
        priced = self._nested("ambiguity").penalty is not None
        self.objective_ = units.risk * program.solve(size / units.risk if priced else size)
        self.size_ = size
        theta = np.asarray(table.theta.value, dtype=np.float64)
        b = getattr(table.intercept, "value", table.intercept)
        theta, intercept = units.restored(theta, np.atleast_1d(np.asarray(b, dtype=np.float64)))
        self._keep(theta, intercept)
        form = program.form
        self.multiplier_ = None if form.multiplier is None else float(form.multiplier.value)
        for name in ("worst_case_weights_", "worst_case_atoms_"):
            self.__dict__.pop(name, None)
        if form.epigraph is not None:
            dual = np.maximum(np.asarray(form.epigraph.dual_value), 0.0)
            self.worst_case_weights_ = self._rows.masses(dual)
        elif form.cost is not None and self._nested("ambiguity").order == 2:
            self.worst_case_atoms_ = self._rows.atoms(self._atoms(theta, intercept, size))

    def _keep(self, theta: np.ndarray, intercept: np.ndarray) -> None:
        raise NotImplementedError

    def _atoms(self, theta: np.ndarray, intercept: np.ndarray, size: float) -> np.ndarray:
        """Where the atoms move in order 2: by a multiple of theta in the geometry of X."""
        table, ambiguity = self._table, self._nested("ambiguity")
        cost: Any = self._program.form.cost
        inverse = cost.inverse_weights
        square = float(theta @ (inverse * theta))
        f, sign = table.x @ theta + intercept, table.sign
        u = f - table.target if sign is None else f * sign
        if self.multiplier_ is None:  # each residual is stretched by the same factor
            if math.isfinite(ambiguity.label_cost):
                square += 1.0 / ambiguity.label_cost
            risk = float(table.mass @ u**2)
            if square == 0 or risk == 0:
                return table.x.copy()
            penalty = size
            if ambiguity.penalty is None:
                penalty = math.sqrt(square) * (math.sqrt(risk) / size + math.sqrt(square))
            step = u / (penalty - square)
        else:  # by slope / (2 penalty) for the piece that is active for it
            penalty, pieces = max(self.multiplier_, 1e-300), self._loss().lines
            values = np.array([s * u + o + s**2 * square / (4.0 * penalty) for s, o in pieces])
            slope = np.array([s for s, _ in pieces])[values.argmax(axis=0)]
            step = (1.0 if sign is None else sign) * slope / (2.0 * penalty)
        return table.x + np.outer(step, inverse * theta)

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {
            k: v for k, v in state.items() if k not in ("_program", "_table", "_rows", "_units")
        }


@dataclass(eq=False, repr=False, kw_only=True)
class ConvexDROClassifier(LogitClassifier, _ConvexDRO):
    r"""Robust linear classifier on the empirical measure, by conic programming.

    .. math:: \min_\theta\; \sup\{E_P\,\ell(\theta; x, y) : D(P, \hat P_n) \le r\}
              + \tfrac{\alpha}{2}\|\theta\|^2

    The same losses, sets and conventions as `drojko.DROClassifier` with
    ``reference="empirical"``, solved by cvxpy with an open solver: an independent check, and the
    baseline of the benchmarks. It is slower by orders of magnitude.

    Parameters
    ----------
    ambiguity : AmbiguitySet, default=None
        None: ``Wasserstein(radius=0.1, order=1)``. Order 1: logistic and hinge, norms 1, 2 and
        inf, with label cost for two classes. Order 2: hinge of two classes. KL, chi-square,
        Cressie-Read, total variation, CVaR, groups and MMD on the support (up to 4000 rows): every
        loss, several classes too.
    loss : {"logistic", "hinge"} or Loss, default="logistic"
        A `drojko.losses.Loss` with `conic`; for order 1 with ``lipschitz``, for order 2 with
        ``lines``.
    alpha : float, default=0.0
        L2 penalty on the coefficients.
    fit_intercept : bool, default=True
    solver : {"CLARABEL", "SCS", "HIGHS", "OSQP"}, default=None
        None: HiGHS for linear programs, Clarabel otherwise.
    solver_options : dict, default=None
        Passed to the solver.

    Attributes
    ----------
    objective_ : float
        Optimal value, the L2 term included.
    coef_, intercept_, classes_
        In scikit-learn's shapes.
    worst_case_weights_ : ndarray of shape (n,)
        Worst-case masses of the samples, from the solver's dual values (sets that reweight).
    worst_case_atoms_ : ndarray of shape (n, d)
        Where the samples move (order 2). In order 1 the supremum is attained only in a limit.
    multiplier_ : float or None
        Penalty that belongs to the radius (transport sets).

    Raises
    ------
    UnsupportedError
        For a pair of loss and set without convex reformulation; lists those that have one.
    SolverError
        When the solver does not end with an optimal status; carries its word.

    References
    ----------
    S. Shafieezadeh-Abadeh, D. Kuhn, P. Mohajerin Esfahani (2017), arXiv 1710.10016. A. Ben-Tal,
    D. den Hertog, A. De Waegenaere, B. Melenberg, G. Rennen (2013), Robust solutions of
    optimization problems affected by uncertain probabilities.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from drojko.ambiguity import CVaR
    >>> from drojko.baselines import ConvexDROClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = ConvexDROClassifier(CVaR(alpha=0.5), alpha=0.01).fit(X[50:], y[50:])
    >>> round(clf.objective_, 3), clf.worst_case_weights_.shape
    (0.367, (100,))
    """

    loss: str | Loss = "logistic"
    _parameter_constraints: ClassVar[dict] = {
        **_ConvexDRO._parameter_constraints,
        "loss": [str, Loss],
    }

    def _loss(self) -> Loss:
        return loss_with(self.loss, "classification", len(self.classes_))

    def _read(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = checked_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        return np.asarray(X), self._encode(y)[1]

    def _keep(self, theta: np.ndarray, intercept: np.ndarray) -> None:
        self.coef_ = np.atleast_2d(theta.T)
        self.intercept_ = intercept

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits: shape (n,) for two classes, else (n, n_classes)."""
        check_is_fitted(self)
        X = checked_data(self, X, dtype=np.float64, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities of a logistic model, shape (n, n_classes)."""
        check_is_fitted(self)
        if not self._loss().calibrated:
            raise UnsupportedError(
                f"predict_proba needs loss='logistic': {self.loss!r} gives no probabilities"
            )
        return super().predict_proba(X)


@dataclass(eq=False, repr=False, kw_only=True)
class ConvexDRORegressor(RegressorMixin, _ConvexDRO):
    r"""Robust linear regression on the empirical measure, by conic programming.

    .. math:: \min_\theta\; \sup\{E_P\,\ell(\theta; x, y) : D(P, \hat P_n) \le r\}
              + \tfrac{\alpha}{2}\|\theta\|^2

    Parameters
    ----------
    ambiguity : AmbiguitySet, default=None
        None: ``Wasserstein(radius=0.1, order=2)``. Order 1: absolute, huber, quantile. Order 2:
        squared (the square-root form), absolute, quantile. A finite ``label_cost`` lets targets
        move. Sets that reweight: every loss.
    loss : {"squared", "absolute", "huber", "quantile"} or Loss, default="squared"
    quantile : float, default=0.5
    delta : float, default=1.35
    alpha, fit_intercept, solver, solver_options
        As in `ConvexDROClassifier`.

    Attributes
    ----------
    objective_, coef_, intercept_, worst_case_weights_, worst_case_atoms_, multiplier_
        As in `ConvexDROClassifier`; ``coef_`` of shape (d,), ``intercept_`` a float.

    Raises
    ------
    UnboundedRiskError
        For the squared loss in order 1.
    UnsupportedError, SolverError
        As in `ConvexDROClassifier`.

    References
    ----------
    J. Blanchet, Y. Kang, K. Murthy (2016), arXiv 1610.05627, for the square-root form.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from drojko.ambiguity import Wasserstein
    >>> from drojko.baselines import ConvexDRORegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ConvexDRORegressor(Wasserstein(radius=0.01)).fit(X, y / y.std())
    >>> round(model.objective_, 3), round(model.refit(0.02).objective_, 3)
    (0.634, 0.763)
    """

    loss: str | Loss = "squared"
    quantile: float = 0.5
    delta: float = 1.35
    _nested_defaults = {"ambiguity": lambda: Wasserstein(radius=0.1)}
    _parameter_constraints: ClassVar[dict] = {
        **_ConvexDRO._parameter_constraints,
        "loss": [str, Loss],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
        "delta": [Interval(Real, 0, None, closed="neither")],
    }

    def _loss(self) -> Loss:
        return loss_with(self.loss, "regression", delta=self.delta, q=self.quantile)

    def _read(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = checked_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        return np.asarray(X), np.asarray(y, dtype=np.float64)

    def _keep(self, theta: np.ndarray, intercept: np.ndarray) -> None:
        self.coef_ = theta
        self.intercept_ = float(intercept[0])

    def predict(self, X: Any) -> np.ndarray:
        """Predictions, shape (n,)."""
        check_is_fitted(self)
        return checked_data(self, X, dtype=np.float64, reset=False) @ self.coef_ + self.intercept_
