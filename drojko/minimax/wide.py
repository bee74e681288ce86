r"""Second derivatives of many columns, which nobody writes down: conjugate gradients.

.. math:: H = \begin{pmatrix} B^\top D B + R & B^\top E + F \\ \cdot & G \end{pmatrix}

is applied by one product with the rows and one with their transpose. Columns have variance one, so
that its diagonal is about the sum of D, and that preconditions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from drojko.rows import Rows

__all__ = ["by_products", "conjugate_gradients"]

_CLOSE, _MOST = 1e-3, 500  # relative residual, in the preconditioner's norm, and iterations
_FLAT = 1e-6  # share of the curvature of a column below which a direction has none


def by_products(
    rows: Rows,
    huu: np.ndarray,
    hup: Any,
    corner: Any,
    outer: Any = 0.0,
    side: Any = 0.0,
    low: tuple[np.ndarray, np.ndarray] | None = None,
    close: float = _CLOSE,
) -> Callable[[np.ndarray], np.ndarray]:
    """Solutions with H: D of huu (n,), E = hup (n, k) or 0, G = corner, R = outer, F = side (D, k).

    And V M V' on the first block, ``low`` = (V, M) of few columns.
    """
    size, k, huu = rows.size, len(corner), np.maximum(huu, 0.0)
    hup = hup if k and np.ndim(hup) else np.zeros((rows.n, k))
    outer, side = np.zeros(size) + outer, np.zeros((size, k)) + side
    diagonal = np.zeros(size + k)
    diagonal[:size] = huu.sum() * rows.free + outer
    if low is not None:
        diagonal[:size] += ((low[0] @ low[1]) * low[0]).sum(axis=1)
    diagonal[size:] = corner.diagonal()
    alive = diagonal > 1e-14 * diagonal.max(initial=0.0)
    unit = np.where(alive, 1.0 / np.where(alive, diagonal, 1.0), 0.0)

    def apply(v: np.ndarray) -> np.ndarray:
        z, p = v[:size], v[size:]
        du = rows.predict(z)
        out = np.empty_like(v)
        out[:size] = rows.sum(huu * du + hup @ p) + outer * z + side @ p
        if low is not None:
            out[:size] += low[0] @ (low[1] @ (low[0].T @ z))
        out[size:] = du @ hup + z @ side + corner @ p
        return out

    return lambda right: conjugate_gradients(apply, lambda v: unit * v, right, close, flat=_FLAT)


def conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    close: float = _CLOSE,
    most: int = _MOST,
    flat: float = 0.0,
) -> np.ndarray:
    """Solutions from 0, to a relative residual; what there is by where curvature ends.

    That is below the share ``flat`` of the preconditioner's: the last step takes it for as much.
    """
    x, left = np.zeros_like(right), right.copy()
    way = y = precondition(left)
    size = first = span = float(left @ y)  # span: way by way, as long as the preconditioner has it
    for _ in range(most):
        if not size > close**2 * first:
            break
        image = apply(way)
        curve = float(way @ image)
        if not curve > flat * span:
            return x + way * (size / (flat * span)) if flat and curve >= 0.0 else x
        t = size / curve
        x, left = x + t * way, left - t * image
        y = precondition(left)
        size, before = float(left @ y), size
        way = y + (size / before) * way
        span = size + (size / before) ** 2 * span
    return x
