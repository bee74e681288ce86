"""What a problem's reference can be given as."""

from __future__ import annotations

from typing import Any

from drojko.exceptions import InvalidDataError
from drojko.measures import Empirical, Measure

__all__ = ["reference_of"]


def reference_of(given: Any) -> tuple[Measure, list[str] | None]:
    """The measure of z, and the names of its columns where they have any.

    Raises `InvalidDataError` for a measure that is not fitted, and for what is no table of numbers.
    """
    if isinstance(given, Measure):
        if not given.__sklearn_is_fitted__():
            raise InvalidDataError(
                f"reference={given!r} is not fitted: call fit(Z) on it, or give the data themselves"
            )
        return given, None
    if isinstance(given, str):
        raise InvalidDataError(
            f"reference={given!r}; expected data of shape (n, d) or a fitted measure of "
            "drojko.measures"
        )
    measure = Empirical().fit(given)
    columns = getattr(given, "columns", None)
    named = columns is not None and all(isinstance(name, str) for name in columns)
    return measure, [str(name) for name in columns] if columns is not None and named else None
