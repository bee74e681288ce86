"""The curves of one report or several, on the same axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from drojko.auditing.reporting.charts import Series, line_chart
from drojko.auditing.reporting.text import number

__all__ = ["curves"]

#: An `AuditReport`, which stands one floor up.
AuditReport = Any


def curves(reports: Mapping[str, AuditReport]) -> tuple[str, str]:
    """Charts of mean loss and accuracy as HTML, and what they show in a sentence."""
    first = next(iter(reports.values()))
    if len(reports) == 1:
        note = (
            "Mean loss and, for classifiers, accuracy: today, and under the worst shift of each "
            "size that was found."
        )
        lines = {name: _single(first, name) for name in ("risk", "accuracy")}
    else:
        note = "Each model under the worst shift that was found for it; at the left, today."
        lines = {
            name: [
                (key, f"m{k % 8}", _attained(one, name))
                for k, (key, one) in enumerate(reports.items())
            ]
            for name in ("risk", "accuracy")
        }
    return "".join(_chart(reports, name, lines[name]) for name in lines), note


def _axis(report: AuditReport) -> tuple[np.ndarray, bool]:
    """The sizes, and whether today's data come first as a size of their own."""
    sizes = report.table[report.size].to_numpy(dtype=float)
    own = report.ambiguity
    start = math.nan if own is None or report.size == "penalty" else float(own.nothing)
    if math.isnan(start) or start in sizes:
        return sizes, False
    return np.concatenate([[start], sizes]), True


def _values(report: AuditReport, column: str, today: str) -> np.ndarray:
    values = report.table[column].to_numpy(dtype=float)
    if not _axis(report)[1]:
        return values
    first = report.table[today].iloc[0] if today else math.nan
    return np.concatenate([[first], values])


def _attained(report: AuditReport, name: str) -> np.ndarray:
    return _values(report, f"worst_case_{name}", f"nominal_{name}")


def _single(report: AuditReport, name: str) -> list[tuple[str, str, np.ndarray]]:
    today = _values(report, f"nominal_{name}", f"nominal_{name}")
    lines = [
        ("worst shift found", "attained", _attained(report, name)),
        ("today", "nominal", today),
    ]
    if name == "accuracy":
        return lines
    bounds = report.bounds
    bound = np.concatenate([today[:1], bounds]) if len(bounds) < len(today) else bounds
    if np.isfinite(bounds[report.table["worst_case_risk"] > report.table["nominal_risk"]]).any():
        lines.insert(0, ("upper bound", "bound", bound))
    for label, kind in (("ascent per row", "ascent"), ("random noise", "random_noise")):
        if report.table[f"{kind}_risk"].notna().any():
            values = _values(report, f"{kind}_risk", "nominal_risk")
            lines.append((label, kind.removeprefix("random_"), values))
    return lines


def _chart(
    reports: Mapping[str, AuditReport], name: str, lines: list[tuple[str, str, np.ndarray]]
) -> str:
    first = next(iter(reports.values()))
    found = np.concatenate([v for _, kind, v in lines if kind == "attained" or kind[0] == "m"])
    found = found[np.isfinite(found)]
    if not len(found):
        return ""
    title = "Mean loss" if name == "risk" else "Accuracy"
    x, _ = _axis(first)
    sizes, table = first.table[first.size].to_numpy(dtype=float), first.table
    column = f"worst_case_{name}"
    alt = (
        f"{title} under the worst shift found, from {number(float(table[column].iloc[0]))} at "
        f"{first.size} {number(sizes[0])} to {number(float(table[column].iloc[-1]))} at "
        f"{number(sizes[-1])}; all numbers are in the table"
    )
    seen = first.observed
    band = None
    if seen is not None and first.size == "radius" and seen.interval[0] > 0:
        band = seen.interval
    own: Any = first.ambiguity
    word = getattr(own, "size_name", "radius") if first.size == "radius" else "penalty"
    x_label = f"{word} ({first.about['units']})" if own is not None and own.moves else word
    return line_chart(
        x,
        [Series(label, kind, values) for label, kind, values in lines],
        title,
        x_label,
        alt=alt,
        top=1.6 * max(float(found.max()), 1e-12) if name == "risk" else None,
        level=first.limit.get(name),
        band=band,
        marks=sizes,
    )
