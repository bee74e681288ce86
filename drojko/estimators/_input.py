"""Checks of what comes in: arrays whose columns can be named, devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from drojko._sklearn import validate_data
from drojko.exceptions import InvalidDataError

__all__ = ["check_device", "checked_data", "plain"]


def checked_data(estimator: Any, X: Any, y: Any = "no_validation", **kwargs: Any) -> Any:
    """scikit-learn's `validate_data` to float arrays, with the culprit's column named."""
    kwargs = {"dtype": [np.float64, np.float32], "order": "C", **kwargs}
    try:
        return validate_data(estimator, X, y, **kwargs)
    except ValueError as error:
        text = str(error)
        if "could not convert" in text or "contains NaN" in text or "infinity" in text:
            found = _bad_column(X)
            if found is not None:
                raise InvalidDataError(f"{found}. {text}") from error
        raise


def _bad_column(X: Any) -> str | None:
    """What is wrong with the first column of a frame or an array that holds no finite numbers."""
    if not hasattr(X, "shape") or len(X.shape) != 2:
        return None
    names = getattr(X, "columns", None)
    for j in range(X.shape[1]):
        column = X.iloc[:, j] if hasattr(X, "iloc") else X[:, j]
        name = repr(plain(names[j])) if names is not None else str(j)
        try:
            values = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError):
            dtype = getattr(column, "dtype", "mixed")
            return (
                f"column {name} of X has dtype {dtype} and holds no numbers: encode it first, for "
                "instance with a OneHotEncoder in a ColumnTransformer; an ambiguity set takes "
                "one-hot groups as categorical_features"
            )
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            return (
                f"column {name} of X holds {values[row]} in row {row}: impute or drop such rows "
                "first, for instance with a SimpleImputer in a Pipeline"
            )
    return None


def plain(value: Any) -> Any:
    """A numpy scalar as the Python value that messages should show."""
    return value.item() if isinstance(value, np.generic) else value


def check_device(device: Any) -> None:
    """Raise `InvalidDataError` for a torch device that is unknown or absent."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidDataError(
            f"device={device!r} cannot be used ({reason}); device='cpu' always can"
        ) from error
