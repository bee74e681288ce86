"""Audit any model: how bad is the worst shift of each size, and what does it look like."""

from drojko.auditing.front import audit
from drojko.auditing.reporting.report import AuditReport, compare

__all__ = ["AuditReport", "audit", "compare"]
