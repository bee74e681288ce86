"""Small tables for notebooks: escaped, in the colours of the page that they stand on."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

__all__ = ["frame_of", "table_of"]

_LINE = "1px solid color-mix(in srgb, currentColor 22%, transparent)"
_BOX = (
    "display:inline-block;max-width:100%;overflow-x:auto;color:inherit;background:transparent;"
    f"border:{_LINE};border-radius:6px;padding:.5em .8em"
)
_CELL = f"padding:.2em .9em .2em 0;border:0;border-top:{_LINE};background:transparent;"


def table_of(title: str, rows: Iterable[tuple[str, Any]], note: str = "") -> str:
    """Names and values under a title, with a sentence below.

    >>> "&lt;b&gt;" in table_of("Dual", [("value", "<b>")])
    True
    """
    lines = "".join(
        f'<tr style="background:transparent"><th scope="row" style="{_CELL}text-align:left;'
        f'font-weight:normal;opacity:.75">{escape(str(name))}</th>'
        f'<td style="{_CELL}text-align:left;font-variant-numeric:tabular-nums">'
        f"{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    below = f'<div style="opacity:.75;padding-top:.3em">{escape(note)}</div>' if note else ""
    return (
        f'<div style="{_BOX}"><strong>{escape(title)}</strong>'
        f'<table style="border-collapse:collapse;margin:.3em 0 0;border:0">{lines}</table>{below}'
        "</div>"
    )


def frame_of(title: str, frame: Any, note: str = "") -> str:
    """The first rows of a DataFrame under a title, with a sentence below.

    >>> import pandas as pd
    >>> "&lt;i&gt;" in frame_of("t", pd.DataFrame({"<i>": [0.123456]}))
    True
    """
    texts = [str(name) for name in frame.columns]
    heads = "".join(f'<th scope="col" style="{_CELL}border-top:0">{escape(t)}</th>' for t in texts)

    def cell(value: Any) -> str:
        number = isinstance(value, float)
        align = "right" if number or isinstance(value, int) else "left"
        text = "–" if value != value else f"{value:.4g}" if number else str(value)
        return f'<td style="{_CELL}text-align:{align}">{escape(text)}</td>'

    lines = "".join(
        f'<tr style="background:transparent">{"".join(cell(v) for v in row)}</tr>'
        for row in frame.itertuples(index=False, name=None)
    )
    below = f'<div style="opacity:.75;padding-top:.3em">{escape(note)}</div>' if note else ""
    return (
        f'<div style="{_BOX}"><strong>{escape(title)}</strong>'
        f'<table style="border-collapse:collapse;margin:.3em 0 0;border:0;'
        f'font-variant-numeric:tabular-nums"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table>{below}</div>"
    )
