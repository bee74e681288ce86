"""Numbers as a report writes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["change", "number", "percent"]


def number(value: Any, digits: int = 4) -> str:
    """A number with so many digits.

    >>> number(1234.5), number(1e-9), number(float("nan")), number(float("inf"))
    ('1234', '1e-09', '–', '∞')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    given = float(value)
    if given != 0 and not 1e-4 <= abs(given) < 1e6:
        return f"{given:.{digits}g}"
    return np.format_float_positional(
        given, precision=digits, unique=False, fractional=False, trim="-"
    )


def change(value: Any) -> str:
    """A signed difference.

    >>> change(0.123), change(-2)
    ('+0.12', '-2')
    """
    return ("+" if float(value) >= 0 else "") + number(value, 2)


def percent(value: Any, signed: bool = False) -> str:
    r"""A share: one decimal below ten per cent, none that says nothing.

    >>> percent(0.034), percent(0.5), percent(1.0), percent(0.25, signed=True), percent(0.00001)
    ('3.4\xa0%', '50\xa0%', '100\xa0%', '+25\xa0%', '<0.1\xa0%')
    """
    given = 100.0 * float(value)
    if math.isnan(given):
        return "–"
    if 0 < abs(given) < 0.1:
        return f"{'-' if given < 0 else '+' if signed else ''}<0.1\xa0%"
    digits = 0 if (abs(given) >= 9.95 and abs(given - 100.0) >= 0.995) or given in (0, 100) else 1
    return f"{given:{'+' if signed else ''}.{digits}f}\xa0%"
