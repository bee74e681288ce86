"""The worst case of a decision: a measure of z, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drojko._validation import checked
from drojko.inner.worst_case import WorstCase
from drojko.measures._arrays import matrix

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DecisionWorstCase"]


@checked()
@dataclass(frozen=True, repr=False)
class DecisionWorstCase:
    """The worst-case distribution of z for a decision.

    Parameters
    ----------
    labelled : WorstCase
        The same with the label 0 at every row.

    Examples
    --------
    >>> from drojko.ambiguity import Wasserstein
    >>> from drojko.problems import newsvendor
    >>> problem = newsvendor([10.0, 20.0, 60.0], Wasserstein(penalty=0.5), shortage=3.0)
    >>> _, worst = problem.evaluate(30.0)
    >>> worst.transport([[10.0], [60.0]])
    array([[ 9.],
           [63.]])
    """

    labelled: WorstCase

    def sample(self, n: int, random_state: Any = None) -> np.ndarray:
        """Draw ``n`` rows, shape (n, d)."""
        return self.labelled.sample(n, random_state)[0]

    def transport(self, Z: Any) -> np.ndarray:
        """Where rows of shape (n, d) are moved; for sets that move points."""
        Z = matrix(Z, name="Z")
        return self.labelled.transport(Z, np.zeros(len(Z)))

    def log_prob(self, Z: Any) -> np.ndarray:
        """Log density of rows of shape (n, d), where the reference has one."""
        Z = matrix(Z, name="Z")
        return self.labelled.log_prob(Z, np.zeros(len(Z)))

    def risk(self) -> float:
        """Mean loss under this measure."""
        return self.labelled.risk()

    def displacement(self) -> pd.DataFrame:
        """What moves: a row per column of z; see `drojko.WorstCase.displacement`."""
        return self.labelled.displacement().drop(columns="class")

    def to_frame(self, n: int = 1000, random_state: Any = 0) -> pd.DataFrame:
        """``n`` worst-case rows with named columns."""
        return self.labelled.to_frame(n, random_state).drop(columns="target")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.labelled.names

    def __repr__(self) -> str:
        return repr(self.labelled)
