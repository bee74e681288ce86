"""Distributionally robust classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if

from drojko._sklearn import (
    LogitClassifier,
    StrOptions,
    check_is_fitted,
    checked_data,
    checked_weight,
    fitting,
)
from drojko.estimators._base import BaseDRO
from drojko.exceptions import DrojkoError, InvalidDataError
from drojko.losses import Loss, get_loss
from drojko.rows.sparse import SparseTable

__all__ = ["DROClassifier"]


def _has_probabilities(estimator: Any) -> bool:
    try:
        calibrated = get_loss(estimator.loss).calibrated
    except DrojkoError:
        return True  # fit says what is wrong
    if not calibrated:
        raise AttributeError(
            f"predict_proba needs loss='logistic': {estimator.loss!r} is not calibrated"
        )
    return True


@dataclass(eq=False, repr=False, kw_only=True)
class DROClassifier(LogitClassifier, BaseDRO):
    r"""Classifier that is robust to every shift of the data within an ambiguity set.

    .. math:: \min_\theta\; \sup\{E_P\,\ell(\theta; x, y) : D(P, P_0) \le r\}
              + \tfrac{\alpha}{2}\|\theta\|^2

    Parameters
    ----------
    ambiguity : AmbiguitySet, default=None
        None: ``Wasserstein(radius=0.1)``. Distances are in the units of X: scale the features (in
        a Pipeline) or give weights where their units differ.
    model : {"linear", "mlp"} or callable, default="linear"
        A callable returns a torch module with logits of shape (n, n_classes), or (n,) or (n, 1)
        for two classes; a copy of it is trained, from the parameters that it comes with. It runs
        in evaluation mode, in training too, so that rows do not depend on each other: dropout
        rests, and batch normalisation keeps its stored statistics (a warning names such layers).
    hidden_layer_sizes : sequence of int, default=(64,)
        Of the "mlp". Certificates are tightest with one hidden layer.
    activation : {"softplus", "tanh", "silu", "relu"}, default="softplus"
        Of the "mlp"; smooth ones allow proven bounds.
    loss : {"logistic", "hinge"}, Loss or callable, default="logistic"
        A `drojko.losses.Loss`, also one of your own; with more than two classes its
        ``multiclass()``. A callable is ``loss(prediction, y) -> (n,)`` on tensors, y class indices.
    reference : {"empirical", "gaussian", "kde", "mixture", "flow"} or measure, default="kde"
        The measure P0 at the centre, one per class. "kde" smooths by at most a tenth of the radius
        (without radius: a tenth of a standard deviation).
    inner : str or settings from `drojko.inner`, default="icnn"
        How worst cases are found: "icnn" or "pointwise"; "importance" or "semidual" for sets that
        reweight, with or without a density of the reference; "auto" chooses, and says so in
        ``certificate_``.
    alpha : float, default=0.0
        L2 penalty on the weights.
    certified : float or "auto", default=0.0
        Networks against order 2 only: weight of the product of the layers' spectral norms, the
        first in the metric of the set, added to the objective. It makes the proven bound tight.
        Certificates speak of the risk without it. "auto" tries growing weights on splits of the
        rows until the gap of a quick certificate is at most 1 % (5 % for several classes), as long
        as they cost at most 0.01 of accuracy (1 % of the loss in regression); where that gap is
        not reached, the weight with the smallest is taken.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, which multiply ``sample_weight``: the reference is the data with
        these masses. "balanced": all classes weigh the same.
    fit_intercept : bool, default=True
    max_iter : int, default=200
        Outer iterations: Newton or quasi-Newton steps of linear models, passes over the draws
        otherwise.
    tol : float, default=1e-3
        Relative accuracy of the robust objective aimed at.
    batch_size : int, default=None
        Draws per subgradient step; None: chosen by the number of draws.
    learning_rate : float, default=5e-3
        First rate of the subgradient steps.
    max_time : float, default=None
        Seconds for the whole of `fit`. Training stops with the best model so far; where the worst
        case has to be searched, a part is kept for the certificate, which is valid and looser.
    effort : {"fast", "thorough", "none"}, default="fast"
        On the certificate. "fast": about as much time as training. "thorough": search and bounds
        go on until neither moves by 1 %. "none": ``certificate_`` is None, and ``worst_case_`` is
        computed when it is asked for. Closed forms are exact in any case.
    n_draws : int, default=None
        Draws from a continuous reference to train on; None: a few per row.
    early_stopping : bool, default=False
        Networks against order 2 only: hold rows out, end when their robust risk no longer falls,
        and keep the parameters of the lowest. The certificate is that of all rows.
    validation_fraction : float, default=0.1
        Share of the rows held out, of each class.
    n_iter_no_change : int, default=10
        Passes that gain less than ``tol`` on them before training ends.
    warm_start : bool, default=False
        Start from the previous fit's parameters.
    random_state : int, RandomState or None, default=None
        None: a seed from the operating system; numpy's and torch's global generators stay as they
        are.
    n_jobs : int, default=None
        Threads that share large sums over rows of a linear model (from 2 million entries on), with
        one BLAS thread each; the fit is bitwise the same with any number. None: 1; -1: all cores.
    device : str, default="cpu"
    dtype : {"float64", "float32"}, default="float64"
    verbose : bool, default=False
        Show a progress bar.
    checkpoint : str or path-like, default=None
        Networks only: a file that training is written to between passes, and when it ends or is
        interrupted. The same call goes on from it and ends with the same bits as if it had never
        stopped; one that has ended trains no further, one that ``max_time`` ended does. The file
        before it is kept, ``.previous`` at the end of its name, for where the new one is damaged.
        `radius_path` and `select_radius` leave it aside.
    checkpoint_every : float, default=60.0
        Seconds between two files.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coef_, intercept_ : ndarray of shape (1, d) or (n_classes, d), and (1,) or (n_classes,)
        Linear models only.
    certificate_ : Certificate or None
        Lower and upper bound of the robust risk, on draws that training did not see; None with
        ``effort="none"``.
    worst_case_ : WorstCase
        The worst-case distribution: sample it, evaluate its density.
    certified_ : float
        The weight of the product of norms.
    history_ : DataFrame
    n_iter_ : int
    n_passes_ : int
        How often `fit_batches` has read the batches.
    status_ : str
        "converged", "max_iter", "stalled", "max_time", "callback", "interrupted" or "unbounded".
        Where `optimality_gap_` is a number, "converged" says that it is at most ``tol``. Elsewhere
        it says that the solver's own criterion came below ``tol``: a small gradient, or risks that
        no longer fall.
    optimality_gap_ : float
        Proven bound of (objective - minimum) / objective on the points of training, the objective
        being the worst-case risk plus the L2 term: no model of this kind is better by more. NaN
        where nothing is proven, as for networks.
    reference_ : LabelledMeasure
        The fitted reference. An empirical one of 2 million entries or more is made of the arrays
        given, of which no copy is kept: it says so where they were changed after `fit`.

    Warns
    -----
    ConvergenceWarning
        For the statuses "max_iter", "stalled" and "unbounded", with what to do.
    UserWarning
        Where the optimum is a constant model, and where the outputs of a ``model`` of your own lie
        in [0, 1], as if it ended in a sigmoid or softmax: they are read as logits. Where layers of
        it rest, and where it returns NaN away from the data. Where a ``checkpoint`` cannot be
        written, is damaged, or is not needed.

    References
    ----------
    L. Zhu, Y. Xie (2024), Distributionally robust optimization via iterative algorithms in
    continuous probability spaces, arXiv 2412.20556. S. Shafieezadeh-Abadeh, D. Kuhn, P. Mohajerin
    Esfahani (2017), Regularization via mass transportation, arXiv 1710.10016.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from drojko import DROClassifier
    >>> from drojko.ambiguity import Wasserstein
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> clf = DROClassifier(Wasserstein(radius=0.1), reference="empirical").fit(scale(X), y)
    >>> certificate = clf.certificate_
    >>> certificate.proof, round(certificate.upper, 4), certificate.relative_gap < 1e-6
    ('ridge-1d', 0.1045, True)
    """

    loss: Any = "logistic"
    class_weight: Any = None
    _classification = True
    _parameter_constraints: ClassVar[dict] = {
        **BaseDRO._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def _get_loss(self, n_outputs: int) -> Loss:
        return get_loss(self.loss, "classification", max(2, n_outputs))

    @fitting
    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Fit the robust classifier.

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
        self : DROClassifier
        """
        X, y = checked_data(self, X, y, ensure_min_samples=2, table=SparseTable)
        y, index = self._encode(y)
        return self._fit(X, index, y, self._weighed(X, y, sample_weight), groups)

    def _weighed(self, X, labels, weight):
        if self.class_weight is None:
            return weight
        return compute_sample_weight(self.class_weight, labels) * checked_weight(weight, X)

    def _encoded(self, y):
        labels, index = self._encode(y)
        return index, labels

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits: shape (n,) for two classes (positive: ``classes_[1]``), else (n, n_classes)."""
        check_is_fitted(self)
        return self._predictions(checked_data(self, X, reset=False, table=SparseTable))

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:  # pyright: ignore
        """Class probabilities, shape (n, n_classes)."""
        return super().predict_proba(X)

    def _known(self, X, y):
        X, y = checked_data(self, X, y, reset=False, table=SparseTable)
        try:
            index = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
            known = np.array_equal(self.classes_[index], y)
        except TypeError:  # labels of another kind, which nothing orders
            known = False
        if not known:
            raise InvalidDataError(f"y holds labels that are not in {self.classes_.tolist()}")
        return X, index
