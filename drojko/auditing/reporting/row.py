"""What was found at one size, before it becomes a row of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.scores import calibration
from drojko.certificates import Certificate
from drojko.inner.worst_case import WorstCase

__all__ = ["Row", "calibrated", "check", "table_row"]


@dataclass(eq=False)
class Row:
    """One size: certificate, worst case, baselines, checks and findings."""

    size: float
    certificate: Certificate
    worst: WorstCase | None
    after: tuple[Any, Any, Any] | None = None  # positions, labels, masses of the worst case
    random: float = math.nan
    ascent: float = math.nan
    checks: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def note(self, finding: str) -> None:
        if finding not in self.findings:
            self.findings.append(finding)


def check(name: str, value: float, passed: bool | None, detail: str) -> dict[str, Any]:
    """A line of the checklist; ``passed`` None: it does not apply, or is for information."""
    return {"check": name, "value": float(value), "passed": passed, "detail": detail}


def calibrated(problem: AuditProblem, f: Any, y: Any, mass: Any) -> tuple[float, float]:
    """Brier score and calibration error; NaN where answers are no probabilities."""
    if not problem.model.probabilities:
        return math.nan, math.nan
    return calibration(f, y, mass)


def table_row(
    name: str, problem: AuditProblem, found: Row, nominal: dict[str, float]
) -> dict[str, Any]:
    c = found.certificate
    upper = c.upper
    if c.radius is None and c.penalty is not None and math.isfinite(c.penalty):
        # Of the penalised form: what no distribution of the same transport cost exceeds.
        upper = c.upper + c.penalty * c.transport_cost
    accuracy = auc = brier = ece = math.nan
    if found.after is not None:
        x, y, mass = (torch.as_tensor(part) for part in found.after)
        f = problem.outputs(x)
        accuracy, auc = problem.accuracy(x, y, mass.double()), problem.auc(f, y, mass.double())
        brier, ece = calibrated(problem, f, y, mass)
    return {
        name: found.size,
        "nominal_risk": nominal["risk"],
        "random_noise_risk": found.random,
        "ascent_risk": found.ascent,
        "worst_case_risk": c.worst_case_risk,
        "upper_bound": max(upper, c.worst_case_risk) if not math.isnan(upper) else upper,
        "proof": c.proof,
        "transport_cost": c.transport_cost,
        "nominal_accuracy": nominal["accuracy"],
        "worst_case_accuracy": accuracy,
        "nominal_auc": nominal["auc"],
        "worst_case_auc": auc,
        "nominal_brier": nominal["brier"],
        "worst_case_brier": brier,
        "nominal_ece": nominal["ece"],
        "worst_case_ece": ece,
        "finding": "; ".join(found.findings),
    }
