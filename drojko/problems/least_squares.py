"""Linear equations whose coefficients are uncertain."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator
from drojko._validation import checked, floats
from drojko.ambiguity import AmbiguitySet
from drojko.exceptions import InvalidDataError
from drojko.measures import Measure
from drojko.problems.families.structured import Quadratic
from drojko.problems.problem import MinimaxProblem, reference_of

__all__ = ["least_squares"]


@checked()
def least_squares(
    A: Any, b: Any, ambiguity: AmbiguitySet, *, constraint: Any = None, start: Any = None
) -> MinimaxProblem:
    r"""Solve A x = b in the least-squares sense for the worst distribution of (A, b).

    .. math:: \min_x \sup_P E_P \|A x - b\|^2

    Equations as samples: A of shape (n, d) and b of shape (n,), every row z = (a, b) one sample,
    whose coefficients all move. Under a Wasserstein ball of order 2 the worst case is
    :math:`(\sqrt{E_0 (a^\top x - b)^2} + \mathrm{radius}\,\|(x, -1)\|)^2`: robust equations are
    regularised ones. Systems as samples: A of shape (n, m, d) and b of shape (n, m) or (m,), each
    sample z = (all entries of A row by row, then b) a system of m equations.

    Parameters
    ----------
    A : array of shape (n, d) or (n, m, d), frame, or fitted Measure of rows (a, b)
    b : array of shape (n,), (n, m) or (m,); None with a measure
    ambiguity : AmbiguitySet
        Its columns are those of z; the last one (the last m) is b. To keep b fixed make it
        immutable: ``immutable=["b"]`` for a frame, ``immutable=[d]`` otherwise.
    constraint : optional
        Of x; see `MinimaxProblem`.
    start : array of shape (d,), default=None
        First x; None: zero for a penalty (where the worst case must be finite), for a radius the
        ridge regression that it bounds.

    Returns
    -------
    MinimaxProblem
        Its decision is x of shape (d,).

    Raises
    ------
    InvalidDataError
        For shapes that do not belong together.

    Notes
    -----
    L. El Ghaoui, H. Lebret, 1997, Robust solutions to least-squares problems with uncertain data;
    J. Blanchet, Y. Kang, K. Murthy, 2019, Robust Wasserstein profile inference, arXiv 1610.05627.

    Examples
    --------
    >>> from drojko.ambiguity import Wasserstein
    >>> A, b = [[1.0, 1.0], [1.0, 1.001]], [2.0, 2.001]       # nearly singular: x = (1, 1)
    >>> noisy = [2.0, 2.011]                                  # without a radius (-9, 11)
    >>> least_squares(A, noisy, Wasserstein(radius=0.01)).solve(tol=1e-7).params.round(1)
    array([1., 1.])
    """
    if isinstance(A, Measure):
        if b is not None:
            raise InvalidDataError(
                "least_squares: with a measure of rows (a, b) there is no b beside it; give None"
            )
        reference, d, m = A, reference_of(A)[0].dim - 1, 1
        if d < 1:
            raise InvalidDataError("least_squares: the measure has 1 column; rows are (a, b)")
    else:
        reference, d, m = _rows(A, b)
    first = _ridge(reference, d, m, ambiguity) if start is None else floats(start, "start")
    if first.shape != (d,):
        raise InvalidDataError(f"least_squares: start has shape {first.shape}; expected ({d},)")
    return MinimaxProblem(
        Quadratic(partial(_residual, m)),
        first,
        reference,
        ambiguity,
        constraint=constraint,
        convex=True,
    )


def _ridge(reference: Any, d: int, m: int, ambiguity: AmbiguitySet) -> np.ndarray:
    """Minimiser of E|A x - b|^2 + radius^2 |x|^2, near the optimum of a ball of order 2."""
    if ambiguity.radius is None:
        return np.zeros(d)
    z, w = reference_of(reference)[0].points(1000, generator(0))
    a, b = z[:, : m * d].reshape(-1, d), z[:, m * d :].reshape(-1)
    mass = w.repeat_interleave(m)
    gram = (a * mass[:, None]).T @ a
    moved = float(ambiguity.radius) ** 2 if ambiguity.moves else 0.0
    ridge = moved + 1e-9 * float(gram.diagonal().mean())
    gram = gram + (ridge or 1.0) * torch.eye(d, dtype=gram.dtype)
    return torch.linalg.solve(gram, a.T @ (mass * b)).numpy()


def _residual(m: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|A x - b|^2 as a quadratic of (A, b): half of it has the matrix I (x) uu', u = (x, -1)."""
    eye = torch.eye(m, dtype=x.dtype)
    factor = torch.cat([torch.kron(eye, x.unsqueeze(0)), -eye], 1)  # A x - b = factor @ z
    return 2.0 * factor.T @ factor, x.new_zeros(factor.shape[1]), x.new_zeros(())


def _rows(A: Any, b: Any) -> tuple[Any, int, int]:
    """Z = (A, b) row by row, the number of unknowns, and of equations per sample."""
    names = getattr(A, "columns", None)
    a, right = floats(A, "least_squares: A"), floats(b, "least_squares: b")
    if a.ndim == 2 and right.shape == (len(a),):
        table = np.column_stack([a, right])
        if names is None:
            return table, a.shape[1], 1
        import pandas as pd

        label = getattr(b, "name", None)
        columns = [*map(str, names), label if isinstance(label, str) else "b"]
        return pd.DataFrame(table, columns=columns), a.shape[1], 1
    if a.ndim == 3 and right.shape in {a.shape[:2], a.shape[1:2]}:
        n, m, d = a.shape
        right = np.broadcast_to(right, (n, m))
        return np.hstack([a.reshape(n, m * d), right]), d, m
    raise InvalidDataError(
        f"least_squares: A has shape {a.shape} and b {right.shape}; expected (n, d) and (n,), or "
        "(n, m, d) and (n, m)"
    )
