"""Which inner solver: by name, or the one that a set, a reference and a table ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drojko._validation import chosen, shown
from drojko.ambiguity import AmbiguitySet
from drojko.exceptions import InvalidDataError
from drojko.inner.reweighting.importance import Importance
from drojko.inner.reweighting.semidual import SemiDual, learns
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.solvers import ICNNJKO, Pointwise

__all__ = ["Choice", "choose_inner", "distinct", "get_inner"]

#: Columns up to which exact log-determinants of maps are offered, and samples a class needs for
#: networks of its own.
_COLUMNS, _SAMPLES = 50, 1000


def distinct(x: np.ndarray) -> int:
    """Return the number of distinct rows of x (n, d); 0 where they lie in a subspace.

    >>> distinct(np.array([[0.0, 1.0], [2.0, 0.0], [2.0, 0.0], [3.0, 1.0]]))
    3
    """
    rows = len(np.unique(x, axis=0))
    spread = x.std(axis=0)
    if not (spread > 1e-12 * np.abs(x).max(initial=0.0)).all():
        return 0
    correlation = np.cov((x - x.mean(axis=0)) / spread, rowvar=False)
    return rows if np.linalg.eigvalsh(np.atleast_2d(correlation))[0] > 1e-9 else 0


@dataclass(frozen=True)
class Choice:
    """An inner solver and the reason for it."""

    inner: InnerSolver
    reason: str

    def __str__(self) -> str:
        return f"inner='auto' chose {self.inner!r}: {self.reason}"


def choose_inner(
    ambiguity: AmbiguitySet,
    n_features: int,
    *,
    sampled: bool,
    n_samples: int,
    exact_loss: bool = False,
    labelled: bool = True,
) -> Choice:
    """Choose by set, dimension and reference.

    Parameters
    ----------
    ambiguity : AmbiguitySet
    n_features : int
    sampled : bool
        Whether the reference has a density (and draws), rather than atoms.
    n_samples : int
        Distinct samples of the smallest class (`distinct`); 0 where they lie in a subspace. It
        matters for KL and chi-square sets on atoms.
    exact_loss : bool
        Whether the ascent from each sample is exact (a linear model under a scalar loss).
    labelled : bool
        Whether labels are classes: of a joint measure no map is learned.

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> print(choose_inner(KL(0.1), 5, sampled=False, n_samples=1000))
    inner='auto' chose SemiDual(): the reference is known by samples only, and maps are learned...
    """
    learned = learns(ambiguity) and not sampled
    if ambiguity.order is not None:
        if exact_loss:
            return Choice(Pointwise(), "the ascent from each sample is exact for this loss")
        if n_features > 4 * _COLUMNS:
            why = f"{n_features} columns are too many for a map that helps, starts are drawn alone"
            return Choice(ICNNJKO(maps=0), why)
        why = "maps share what one sample finds with all others"
    elif learned and not labelled:
        why = "a map would move the targets too; weights are exact"
    elif learned and n_samples >= _SAMPLES:
        why = "the reference is known by samples only, and maps are learned without a density"
        return Choice(SemiDual(), why)
    elif learned and n_samples:
        why = f"{n_samples} distinct samples of a class are too few for maps; weights are exact"
    elif learned:
        why = "the samples of a class lie in a subspace, where no map is learned; weights are exact"
    elif ambiguity.divergence is None or not sampled:
        why = "the worst case of this set has its own exact construction"
    elif n_features <= _COLUMNS:
        why = "the reference has a density, and maps with exact ones exist"
    else:
        why = f"{n_features} columns: rejection steps need no log-determinant"
        return Choice(Importance(), why)
    return Choice(ICNNJKO(), why)


_NAMED: dict[str, type[InnerSolver]] = {
    "icnn": ICNNJKO,
    "importance": Importance,
    "pointwise": Pointwise,
    "semidual": SemiDual,
}


def get_inner(inner: str | InnerSolver | None) -> InnerSolver:
    """The settings object of a name; settings pass through after validation.

    Parameters
    ----------
    inner : {"icnn", "importance", "pointwise", "semidual"}, InnerSolver or None
        None: "icnn".

    Returns
    -------
    InnerSolver

    Raises
    ------
    InvalidDataError
        For an unknown name, another object, or a setting out of range.

    Examples
    --------
    >>> get_inner("pointwise")
    Pointwise()
    """
    if inner is None:
        inner = "icnn"
    if isinstance(inner, str):
        chosen("inner", inner, _NAMED)
        inner = _NAMED[inner]()
    if not isinstance(inner, InnerSolver):
        raise InvalidDataError(
            f"inner={shown(inner)}: expected one of {sorted(_NAMED)} or a settings object"
        )
    inner.validate()
    return inner
