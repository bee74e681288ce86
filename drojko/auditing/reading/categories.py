"""Categories of a table that the encoders of a fitted model have not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["unknown_categories"]


def unknown_categories(model: Any, X: Any) -> list[str]:
    r"""Words on each column with values outside the ``categories_`` :math:`C_j` of its encoder.

    An encoder with ``handle_unknown="ignore"`` makes zeros of them without a word.

    >>> import pandas as pd
    >>> from sklearn.preprocessing import OneHotEncoder
    >>> seen, new = pd.DataFrame({"town": ["Bonn", "Mainz"]}), pd.DataFrame({"town": ["Trier"]})
    >>> unknown_categories(OneHotEncoder(handle_unknown="ignore").fit(seen), new)
    ["'town': 'Trier' (1 row)"]
    """
    if not hasattr(X, "columns"):
        return []
    found = {}
    for encoder, names in _encoders(model, list(X.columns)):
        for name, known in zip(names, encoder.categories_, strict=True):
            column = X[name]
            if (new := column.notna() & ~column.isin(known)).any():
                values = [repr(value) for value in column[new].unique()[:3].tolist()]
                rows = int(new.sum())
                found[name] = f"{name!r}: {', '.join(values)} ({rows} row{'s' * (rows > 1)})"
    return list(found.values())


def _encoders(step: Any, names: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Fitted steps that know categories, with the columns of the table that they see."""
    for _, inner, columns in getattr(step, "transformers_", ()):
        if not isinstance(columns, slice) and all(column in names for column in columns):
            yield from _encoders(inner, list(columns))
    for _, inner in getattr(step, "steps", ()):
        if getattr(inner, "n_features_in_", None) != len(names):
            return  # a step before made other columns
        yield from _encoders(inner, names)
    for name in ("best_estimator_", "estimator_"):
        if hasattr(step, name):
            yield from _encoders(getattr(step, name), names)
    if len(getattr(step, "categories_", ())) == len(names):
        yield step, names
