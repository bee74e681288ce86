"""The one place that says what arguments may be: numbers, arrays and names, and in which words.

Public functions and classes are doors that use it: see `drojko._doors`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.exceptions import DrojkoError, InvalidDataError, NonFiniteError

__all__ = [
    "arithmetic", "check_flag", "check_number", "check_path", "check_scale",
    "check_settings", "chosen", "culprit", "did_you_mean", "floats", "is_real",
    "is_whole", "is_widths", "plain_tensor", "refuse", "set_known", "shown",
]  # fmt: skip

# Words -------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as messages show it, whatever it is and however long.

    >>> shown(0.5), shown(np.ones((2, 3))), shown(int)
    ('0.5', 'an array of shape (2, 3) and dtype float64', 'the class int')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        where = " on the meta device" if value.is_meta else ""
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}{where}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    try:
        text = repr(value)
    except Exception:  # an integer of 5000 digits, or a class with a mistake in it
        text = ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def did_you_mean(name: Any, known: Iterable[str], words: str = "known: ") -> str:
    """Return "did you mean ...? " or nothing, and the known names.

    >>> did_you_mean("radus", ["penalty", "radius"])
    "did you mean 'radius'? known: penalty, radius"
    """
    names = list(map(str, known))
    near = get_close_matches(str(name).lower(), names, 1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}{words}{', '.join(names)}"


def chosen(where: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless a value is one of the known names."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise InvalidDataError(
            f"{where}={shown(value)} is unknown; {did_you_mean(value, names)} (choose one of these)"
        )


def set_known(owner: Any, set_params: Callable[..., Any], params: dict[str, Any]) -> Any:
    """Call scikit-learn's ``set_params``; of an unknown name say which one may be meant."""
    known = owner.get_params(deep=False)
    for key in params:
        if (name := key.partition("__")[0]) not in known:
            raise InvalidDataError(
                f"Invalid parameter {name!r} for {type(owner).__name__}; "
                f"{did_you_mean(name, known)}"
            )
    return set_params(**params)


# Numbers -----------------------------------------------------------------------------------------


def is_real(value: Any, *, infinite: bool = False) -> bool:
    """Whether a value is a real number, no boolean and not NaN; finite, unless that may be."""
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return False
    return not math.isnan(number) if infinite else math.isfinite(number)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is an integer of at least that, and one that an array can be as long as."""
    whole = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    return whole and least <= int(value) <= sys.maxsize


def check_number(
    where: str, value: Any, *, least: float = -math.inf, above: float = -math.inf,
    most: float = math.inf, infinite: bool = False, add: str = "",
) -> float:  # fmt: skip
    """Return a number within its limits; the error names them.

    >>> check_number("Ball: radius", -1, above=0)
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: Ball: radius=-1; expected a finite number above 0
    """
    if is_real(value, infinite=infinite):
        number = float(value)
        if least <= number <= most and (number > above or above == -math.inf):
            return number
    limits = [f"at least {least:g}"] if least > -math.inf else []
    limits += [f"above {above:g}"] if above > -math.inf else []
    limits += [f"at most {most:g}"] if most < math.inf else []
    kind = "a number" if infinite or most < math.inf else "a finite number"
    words = f"{kind} {' and '.join(limits)}".strip()
    raise InvalidDataError(f"{where}={shown(value)}; expected {words}{add}")


def check_flag(where: str, value: Any) -> None:
    """Raise unless a value is True or False: a text such as "False" is true to Python."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidDataError(f"{where}={shown(value)}; expected True or False")


def check_settings(
    settings: Any,
    *,
    whole: Mapping[str, int] | None = None,
    widths: Sequence[str] = (),
    least: Mapping[str, float] | None = None,
    above: Mapping[str, float] | None = None,
    shares: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Raise `InvalidDataError` for an attribute out of range; the message names it.

    Parameters
    ----------
    settings : object
    whole : mapping of name to int
        Integers of at least that.
    widths : names
        Sequences of integers of at least 1.
    least, above : mapping of name to float
        Finite numbers of at least, or above, that.
    shares : names
        Numbers strictly between 0 and 1.
    optional : names
        That may be None.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> check_settings(SimpleNamespace(rate=0.0), above={"rate": 0.0})
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: SimpleNamespace: rate=0.0; expected a number above 0
    """

    def check(name: str, test: Callable[[Any], bool], expected: str) -> None:
        value = getattr(settings, name)
        if not (value is None and name in optional) and not test(value):
            where = f"{type(settings).__name__}: {name}"
            raise InvalidDataError(f"{where}={shown(value)}; expected {expected}")

    for name, low in (whole or {}).items():
        check(name, lambda v, low=low: is_whole(v, low), f"an integer of at least {low}")
    for name in widths:
        check(name, is_widths, "widths such as (64, 64)")
    for name, low in (least or {}).items():
        check(name, lambda v, low=low: is_real(v) and v >= low, f"a number of at least {low:g}")
    for name, low in (above or {}).items():
        check(name, lambda v, low=low: is_real(v) and v > low, f"a number above {low:g}")
    for name in shares:
        check(name, lambda v: is_real(v) and 0.0 < v < 1.0, "a number between 0 and 1")


def is_widths(value: Any) -> bool:
    """Whether a value is a sequence of widths of layers."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    return all(is_whole(width, 1) and width < 2**20 for width in value)


def check_path(path: Any, name: str = "path") -> Path:
    """Return a path; numbers are refused, which are open files to the system."""
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise InvalidDataError(f"{name}={shown(path)}; expected the name of a file")
    return Path(path)


# Arrays ------------------------------------------------------------------------------------------

_WIDE = (torch.float64, torch.float32)


def refuse(values: Any, name: str) -> None:
    """Raise for arrays of numbers that numpy would read without a word, and wrongly.

    Masked arrays (the mask is lost), complex numbers, dates (they become integers), sparse and
    meta tensors. Objects and texts are for whoever reads the numbers.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidDataError(
            f"{name} is a masked array, whose mask would be lost: fill it, "
            f"{name}.filled(value), or drop the masked rows"
        )
    if isinstance(values, Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise InvalidDataError(
                f"{name} is {shown(values)}, layout {values.layout}, which holds no plain numbers: "
                "give a dense tensor on a device"
            )
        kind = "c" if values.is_complex() else "f"
    else:
        kind = getattr(getattr(values, "dtype", None), "kind", "f")
    if kind in "cmM":
        if kind == "c":
            raise InvalidDataError(
                f"{name} holds complex numbers ({values.dtype}). Complex data not supported: take "
                "the real part"
            )
        raise InvalidDataError(
            f"{name} holds dates or times ({values.dtype}); expected real numbers: subtract a date "
            "and divide by a unit"
        )
    if hasattr(values, "dtypes") and hasattr(values, "columns") and not isinstance(values, type):
        for column, dtype in zip(values.columns, values.dtypes, strict=True):
            if getattr(dtype, "kind", "f") in "cmM":
                raise InvalidDataError(
                    f"column {column!r} of {name} has dtype {dtype}; expected real numbers: leave "
                    "it out, or turn it into numbers in a unit of your choice"
                )


def plain_tensor(values: Any, name: str) -> Any:
    """A tensor as an array without its history, half precisions as float32; others as they are."""
    refuse(values, name)
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu().resolve_neg()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def floats(values: Any, name: str) -> np.ndarray:
    """Numbers of any container as a float64 array of the same shape.

    Raises `InvalidDataError`, which names the column where there is one.

    >>> floats([1, 2], "weights")
    array([1., 2.])
    >>> floats(np.array([1j]), "weights")
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: weights holds complex numbers (complex128). Complex data not
    supported: take the real part
    """
    if type(values) is np.ndarray and values.dtype == np.float64:
        return values
    if isinstance(values, type):
        raise InvalidDataError(f"{name} is {shown(values)}; expected numbers")
    values = plain_tensor(values, name)
    if hasattr(values, "tocsr") and hasattr(values, "nnz"):
        raise InvalidDataError(f"{name} is sparse; expected a dense table: {name}.toarray()")
    try:
        array = np.asarray(values)
        if array.dtype.kind in "SUmMcV":
            raise TypeError(f"their dtype is {array.dtype}")
        return np.asarray(array if array.dtype.kind != "O" else values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        found = culprit(values, name)
        raise InvalidDataError(
            f"{found}. {error}" if found else
            f"{name} must be numbers; got {shown(values)} ({error}), expected numbers: encode "
            "text, and use a dense table"
        ) from error  # fmt: skip


@contextmanager
def arithmetic(what: str) -> Iterator[None]:
    """Overflows, divisions by zero and failed factorisations as `NonFiniteError`.

    Settings and data may each be fine, and too far from each other.
    """
    try:
        yield
    except (ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        if isinstance(error, DrojkoError):
            raise
        raise NonFiniteError(
            f"the arithmetic of {what} left the range of numbers ({error}): look for extreme "
            "values or scales in the data, and for settings (radius, penalty, alpha, costs) that "
            "are many orders of magnitude away from them"
        ) from error


#: Of data: the squares of squares of such numbers, and of their inverses, are numbers.
SMALLEST, LARGEST = 1e-75, 1e75


def check_scale(values: np.ndarray, name: str) -> None:
    """Raise for numbers with which no arithmetic is left; zeros are fine.

    >>> check_scale(np.array([[1e200, 1.0]]), "X")
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: X holds 1e+200 (column 0); beyond 1e-75 to 1e+75 squares
    overflow or vanish: measure X, and the radius with it, in another unit
    """
    high, low = values.max(axis=0, initial=0.0), values.min(axis=0, initial=0.0)
    largest = np.maximum(np.asarray(high, np.float64), -np.asarray(low, np.float64))
    bad = np.atleast_1d((largest > 0.0) & ~((largest >= SMALLEST) & (largest <= LARGEST)))
    if not bad.any():
        return
    column = int(bad.argmax())
    where = f" (column {column})" if values.ndim == 2 else ""
    raise InvalidDataError(
        f"{name} holds {np.atleast_1d(largest)[column]:g}{where}; beyond {SMALLEST:g} to "
        f"{LARGEST:g} squares overflow or vanish: measure {name}, and the radius with it, in "
        "another unit"
    )


def culprit(X: Any, name: str = "X") -> str | None:
    """What is wrong with the first column of a frame or an array that holds no finite numbers."""
    if isinstance(X, type) or len(getattr(X, "shape", ())) != 2:
        return None
    names = getattr(X, "columns", None)
    for j in range(X.shape[1]):
        column = X.iloc[:, j] if hasattr(X, "iloc") else X[:, j]
        label = str(j) if names is None else repr(_item(names[j]))
        try:
            values = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            dtype = getattr(column, "dtype", "mixed")
            return (
                f"column {label} of {name} has dtype {dtype} and holds no numbers: encode it "
                "first, for instance with a OneHotEncoder in a ColumnTransformer; an ambiguity set "
                "takes one-hot groups as categorical_features"
            )
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            return (
                f"column {label} of {name} holds {values[row]} in row {row}: impute or drop such "
                "rows first, for instance with a SimpleImputer in a Pipeline"
            )
    return None


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
