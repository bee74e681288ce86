"""A report as plain values that strict JSON can hold."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from drojko._files import plain_values

__all__ = ["plain_of"]

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
    return plain_values(found)


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
