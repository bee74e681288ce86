"""The errors of drojko: every one is a `DrojkoError` and a builtin as well.

A caller who knows nothing of drojko catches `ValueError`; one who does catches `DrojkoError`.
Messages say what was got, what was expected and what to do. A fit that ends before it has
converged is no error: it warns with scikit-learn's `ConvergenceWarning`, re-exported here.

>>> from drojko.exceptions import DrojkoError, InvalidDataError
>>> issubclass(InvalidDataError, DrojkoError) and issubclass(InvalidDataError, ValueError)
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn.exceptions import ConvergenceWarning

__all__ = [
    "ConvergenceWarning",
    "DrojkoError",
    "InvalidDataError",
    "NonFiniteError",
    "SolverError",
    "UnboundedRiskError",
    "UnsupportedError",
]


class DrojkoError(Exception):
    """Base class of all errors that drojko raises on purpose."""


class InvalidDataError(DrojkoError, ValueError):
    """Data, settings or a file that cannot be used; the message names the culprit.

    Raised for one class only, a class without weight, an unknown feature name, a negative
    radius, bounds that exclude the data, a tampered model file, and the like.
    """


class NonFiniteError(DrojkoError, ArithmeticError):
    """A computation met NaN or infinity.

    Parameters
    ----------
    message : str
        What became non-finite, where, and what to do.
    last_state : object, default=None
        The last state in which everything was finite, to inspect or to resume from.

    Examples
    --------
    >>> from drojko.exceptions import NonFiniteError
    >>> try:
    ...     raise NonFiniteError("the loss is NaN at iteration 7", last_state={"step": 6})
    ... except ArithmeticError as error:
    ...     print(error, error.last_state)
    the loss is NaN at iteration 7 {'step': 6}
    """

    def __init__(self, message: str, last_state: Any = None):
        super().__init__(message)
        self.last_state = last_state

    def __reduce__(self):
        # An exception crosses a process boundary (joblib) by its arguments: keep both.
        return type(self), (str(self), self.last_state)


class UnboundedRiskError(DrojkoError, ValueError):
    """The worst case is infinite: the loss grows as fast as the transport cost, or faster.

    For instance ``sup_z (y - t'z)^2 - penalty |z - x|^2`` is infinite whenever ``penalty < |t|^2``,
    and exp(t'z) outgrows every penalty, so that its worst case in every ball is infinite. The
    message names the penalty from which on the worst case may be finite, or what else makes it so:
    bounds of the columns, a set that reweights, another loss. What a loss does not state of its
    growth is measured along rays, far from the data.
    """


class SolverError(DrojkoError, RuntimeError):
    """A convex solver failed, or ended with anything but an optimal status, which is named."""


class UnsupportedError(DrojkoError, NotImplementedError):
    """A combination that drojko does not offer; the message lists what it does offer."""


def __getattr__(name: str) -> Any:
    # scikit-learn takes a while to import: only who asks for the warning pays for it.
    if name == "ConvergenceWarning":
        from sklearn.exceptions import ConvergenceWarning

        return ConvergenceWarning
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
