"""A report as plain values that strict JSON can hold."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from typing import Any

import numpy as np

from drojko._files import check_path, replacing

__all__ = ["plain_of", "write_json"]

#: An `AuditReport`, which stands one floor up.
AuditReport = Any


def plain_of(report: AuditReport) -> dict[str, Any]:
    """See `AuditReport.to_json`."""
    decision, seen = report.decision, report.observed
    known = {name: value for name, value in report.about.items() if value is not None}
    found: dict[str, Any] = {
        "schema": 1,
        "drojko": version("drojko"),
        "name": report.name,
        "about": known,
        "size": report.size,
        "findings": report.findings,
        "decision": {
            "headline": decision.headline,
            "limits": list(decision.limits),
            "meaning": list(decision.meaning),
            "carriers": list(decision.carriers),
            "steps": [{"text": step.text, "code": step.code} for step in decision.steps],
        },
        "observed": seen
        and {
            "distance": seen.distance,
            "interval": list(seen.interval),
            "noise": seen.noise,
            "message": seen.message,
        },
        "table": report.table.assign(useful_bound=report.bounds),
        "meaning": report.meaning,
        "checks": report.checks,
        "shifts": [_shift(report, k) for k in range(len(report.table))],
    }
    return _plain(found)


def _shift(report: AuditReport, k: int) -> dict[str, Any]:
    size = float(report.table[report.size].iloc[k])
    if report.worst_cases[k] is None:
        return {str(report.size): size, "carriers": None, "classes": None, "groups": None,
                "swaps": None}  # fmt: skip
    return {
        report.size: size,
        "carriers": report.carriers(size),
        "classes": report.shares("class", size),
        "groups": report.shares("group", size),
        "swaps": report.swaps(size),
    }


def _plain(value: Any) -> Any:
    """Dicts, lists, text, finite numbers, truth values and None."""
    if hasattr(value, "to_dict"):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def write_json(path: Any, value: Any) -> str:
    """The text of a value, written to a path if there is one."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1)
    if path is not None:
        with replacing(check_path(path)) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    return text
