"""How much to stock before demand is known."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator
from drojko._validation import checked, floats, shown
from drojko.ambiguity import AmbiguitySet
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures import Measure
from drojko.problems.constraints import Box
from drojko.problems.families.structured import MaxAffine, SeparableMaxAffine
from drojko.problems.problem import MinimaxProblem, reference_of

__all__ = ["newsvendor"]


@checked()
def newsvendor(
    demand: Any,
    ambiguity: AmbiguitySet,
    *,
    holding: Any = 1.0,
    shortage: Any = 1.0,
    lower: Any = 0.0,
    upper: Any = None,
) -> MinimaxProblem:
    r"""The newsvendor's problem: stock q against the worst distribution of the demand z.

    .. math:: \min_q \sup_P E_P \sum_j \max(h_j (q_j - z_j),\; b_j (z_j - q_j))

    Under a Wasserstein ball of order 2 the worst case at penalty lambda is
    :math:`E_0 \max(h(q - z) + h^2/4\lambda,\; b(z - q) + b^2/4\lambda)`, exact also with bounds on
    the demand.

    Parameters
    ----------
    demand : array of shape (n,) or (n, d), frame, or fitted Measure
        Past demand of one product or several, in any unit; or a measure of it.
    ambiguity : AmbiguitySet
    holding, shortage : float or array of shape (d,)
        Cost of each unit left over, and of each unit missing; positive.
    lower, upper : float or array of shape (d,), default 0 and None
        Limits of the stock.

    Returns
    -------
    MinimaxProblem
        Its decision is a number for one product, an array of shape (d,) for several.

    Raises
    ------
    InvalidDataError
        For costs that are not positive, or demand that is no table of numbers.

    Notes
    -----
    H. Scarf, 1958, A min-max solution of an inventory problem; P. Mohajerin Esfahani, D. Kuhn,
    2018, Data-driven distributionally robust optimization using the Wasserstein metric, arXiv
    1505.05116.

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> solution = newsvendor([8.0, 10, 12, 30], KL(radius=0.05), shortage=2.0).solve(tol=1e-8)
    >>> round(solution.params, 1), round(solution.objective, 2)
    (22.6, 13.67)
    """
    if not isinstance(demand, Measure) and not hasattr(demand, "columns"):
        name, values = getattr(demand, "name", None), floats(demand, "demand")
        demand = values.reshape(-1, 1) if values.ndim == 1 else values
        if isinstance(name, str) and values.ndim == 1:
            import pandas as pd

            demand = pd.DataFrame(demand, columns=[name])
    measure, _ = reference_of(demand)
    columns = measure.dim
    h, b = (_costs(n, v, columns) for n, v in (("holding", holding), ("shortage", shortage)))
    loss = (MaxAffine if columns == 1 else SeparableMaxAffine)(partial(_pieces, h, b))
    start = Box(lower, upper).project(_centre(measure))
    first = float(start[0]) if columns == 1 else start.numpy()
    return MinimaxProblem(loss, first, demand, ambiguity, constraint=Box(lower, upper), convex=True)


def _centre(measure: Measure) -> Tensor:
    try:
        return measure.mean.clone()
    except UnsupportedError:
        return measure.sample(1000, generator(0)).mean(0)


def _pieces(h: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Pieces of every product; q is a number for one, of shape (d,) for several."""
    return torch.stack([-h, b]), torch.stack([h * q, -b * q]).reshape(2, *q.shape)


def _costs(name: str, value: Any, columns: int) -> Tensor:
    array = floats(value, f"newsvendor: {name}").ravel()
    if array.size not in (1, columns) or not (np.isfinite(array).all() and (array > 0).all()):
        raise InvalidDataError(
            f"newsvendor: {name}={shown(value)}; expected a positive number, or one per column of "
            f"demand ({columns})"
        )
    return torch.tensor(array).expand(columns)
