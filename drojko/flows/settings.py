"""Ranges of settings, checked the same way for every settings object."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from drojko.exceptions import InvalidDataError

__all__ = ["check_settings"]

_Test = Callable[[Any], bool]


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

    def check(name: str, test: _Test, expected: str) -> None:
        value = getattr(settings, name)
        if not (value is None and name in optional) and not test(value):
            raise InvalidDataError(
                f"{type(settings).__name__}: {name}={value!r}; expected {expected}"
            )

    for name, low in (whole or {}).items():
        expected = f"an integer of at least {low}"
        check(name, lambda v, low=low: _is(v, Integral) and v >= low, expected)
    for name in widths:
        check(name, _is_widths, "widths such as (64, 64)")
    for name, bound in (least or {}).items():
        expected = f"a number of at least {bound:g}"
        check(name, lambda v, low=bound: _is(v, Real) and v >= low, expected)
    for name, bound in (above or {}).items():
        check(name, lambda v, low=bound: _is(v, Real) and v > low, f"a number above {bound:g}")
    for name in shares:
        check(name, lambda v: _is(v, Real) and 0.0 < v < 1.0, "a number between 0 and 1")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _is_widths(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(_is(width, Integral) and int(width) >= 1 for width in value)
