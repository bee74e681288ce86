"""Distributionally robust regression."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import RegressorMixin

from drojko._sklearn import Interval, check_is_fitted, checked_data, fitting
from drojko.estimators._base import BaseDRO
from drojko.losses import Loss, loss_with
from drojko.rows.sparse import SparseTable

__all__ = ["DRORegressor"]


@dataclass(eq=False, repr=False, kw_only=True)
class DRORegressor(RegressorMixin, BaseDRO):
    r"""Regressor that is robust to every shift of the data within an ambiguity set.

    .. math:: \min_\theta\; \sup\{E_P\,\ell(\theta; x, y) : D(P, P_0) \le r\}
              + \tfrac{\alpha}{2}\|\theta\|^2

    For the squared loss of a linear model in a ball of order 2 this is the square-root
    regularisation (sqrt(MSE) + radius ||theta||)^2.

    Parameters
    ----------
    ambiguity : AmbiguitySet, default=None
        None: ``Wasserstein(radius=0.1)``. A finite ``label_cost`` lets y move at that cost times
        (y - y')^2 (linear models).
    loss : {"squared", "absolute", "huber", "quantile"}, Loss or callable, default="squared"
        squared: (f - y)^2; absolute: ``|f - y|``; huber: r^2/2 within ``delta``, linear beyond;
        quantile: the pinball loss at level ``quantile``. A
        `drojko.losses.Loss` brings its own parameters. A callable is
        ``loss(prediction, y) -> (n,)`` on tensors.
    quantile : float, default=0.5
    delta : float, default=1.35
    model, hidden_layer_sizes, activation, reference, inner, alpha, certified, fit_intercept
        As in `DROClassifier`; the reference is a joint measure of (x, y), and "kde" leaves the
        labels attached to their rows.
    max_iter, tol, batch_size, learning_rate, max_time, effort, n_draws, early_stopping
        As in `DROClassifier`.
    validation_fraction, n_iter_no_change, warm_start, random_state, n_jobs, device, dtype
        As in `DROClassifier`.
    verbose, checkpoint, checkpoint_every
        As in `DROClassifier`.

    Attributes
    ----------
    coef_, intercept_ : ndarray of shape (d,), and float
        Linear models only.
    certificate_, worst_case_, certified_, history_, n_iter_, status_, optimality_gap_,
    reference_
        As in `DROClassifier`.

    References
    ----------
    J. Blanchet, Y. Kang, K. Murthy (2016), Robust Wasserstein profile inference and applications
    to machine learning, arXiv 1610.05627.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from drojko import DRORegressor
    >>> from drojko.ambiguity import Wasserstein
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = DRORegressor(Wasserstein(radius=0.01), reference="empirical").fit(X, y)
    >>> root_mse = np.sqrt(np.mean((reg.predict(X) - y) ** 2))
    >>> exact = (root_mse + 0.01 * np.linalg.norm(reg.coef_)) ** 2
    >>> bool(abs(reg.certificate_.upper / exact - 1) < 1e-6)
    True
    """

    loss: Any = "squared"
    quantile: float = 0.5
    delta: float = 1.35
    _parameter_constraints: ClassVar[dict] = {
        **BaseDRO._parameter_constraints,
        "quantile": [Interval(Real, 0, 1, closed="neither")],
        "delta": [Interval(Real, 0, None, closed="neither")],
    }

    def _get_loss(self, n_outputs: int) -> Loss:
        return loss_with(self.loss, "regression", delta=self.delta, q=self.quantile)

    def _linear_attributes(self, coef, intercept):
        return {"coef_": coef[0], "intercept_": float(intercept[0])}

    @fitting
    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Fit the robust regressor.

        Parameters
        ----------
        X : array-like or SciPy sparse matrix of shape (n, d)
            Sparse for linear models with ``reference="empirical"``.
        y : array-like of shape (n,)
        sample_weight : array-like of shape (n,), default=None
        groups : array-like of shape (n,) or (n, n_groups), default=None
            What rows belong to: labels, or columns of 0 and 1. A `Group` set needs them, other
            sets leave them aside.

        Returns
        -------
        self : DRORegressor
        """
        X, y = checked_data(self, X, y, ensure_min_samples=2, y_numeric=True, table=SparseTable)
        y = np.asarray(y, dtype=np.float64)
        return self._fit(X, y, y, sample_weight, groups)

    def _encoded(self, y):
        y = np.asarray(y, dtype=np.float64)
        return y, y

    def predict(self, X: Any) -> np.ndarray:
        """Predicted values, shape (n,)."""
        check_is_fitted(self)
        return self._predictions(checked_data(self, X, reset=False, table=SparseTable))

    def _known(self, X, y):
        X, y = checked_data(self, X, y, reset=False, y_numeric=True, table=SparseTable)
        return X, np.asarray(y, dtype=np.float64)
