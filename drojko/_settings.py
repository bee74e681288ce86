"""Ranges of the settings that solvers, schemes and measures hold as attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drojko._validation import is_real, is_whole, is_widths, shown
from drojko.exceptions import InvalidDataError

__all__ = ["check_settings"]


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
