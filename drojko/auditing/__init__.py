"""Audit any model: how bad is the worst shift of each size, and what does it look like."""

from drojko.auditing.front import audit
from drojko.auditing.reporting.comparison import Comparison, compare
from drojko.auditing.reporting.decision import Decision
from drojko.auditing.reporting.report import AuditReport

__all__ = ["AuditReport", "Comparison", "Decision", "audit", "compare"]
