"""How environments differ, and what would hold that."""

from drojko.estimators.shifts.report import ShiftReport, shift_report

__all__ = ["ShiftReport", "shift_report"]
