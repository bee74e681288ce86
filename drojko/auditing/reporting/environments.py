"""How the groups of an audit differ, for its page: a shift report of the audited rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from drojko.estimators.shifts import ShiftReport, shift_report
from drojko.exceptions import InvalidDataError

__all__ = ["environments_of", "section"]


def environments_of(problem: Any) -> ShiftReport | str | None:
    """The report, or why there is none; None where the audit was given no groups.

    Columns are those that the model sees, in the units of the audit's distances.
    """
    import pandas as pd

    if problem is None or problem.groups is None or problem.sampled:
        return None
    groups = np.asarray(problem.groups)
    if groups.ndim != 1:
        return "Groups overlap: environments are groups of which each row has one."
    X, y = problem.x.numpy().astype(np.float64), problem.y.numpy()
    if problem.classes is not None and problem.n_labels > 0:
        y = np.asarray(problem.classes)[y.astype(int)]
    known = np.isfinite(X).all(axis=1)
    table = pd.DataFrame(X[known], columns=list(problem.model.space.names))
    kind = "regression" if problem.classes is None else "classification"
    try:
        return shift_report(table, y[known], groups[known], task=kind, random_state=0)
    except InvalidDataError as error:
        return f"Not known: {error}."


def section(problem: Any) -> dict[str, Any] | None:
    """What the template shows."""
    found = environments_of(problem)
    if found is None or isinstance(found, str):
        return None if found is None else {"note": found}
    named = {"x": "inputs x", "shares of y": "the target, without x"}
    unit = "log odds" if found.about["task"] == "classification" else "units of the target"
    heads = [
        ("Group", True), ("Rows", False), ("Told apart by x (AUC)", False),
        (f"Target without x ({unit})", False), (f"Target given x ({unit})", False),
    ]  # fmt: skip
    table = [
        [row["environment"], row["rows"], row["auc"], row["shares"], row["level"], row["level_se"]]
        for row in found.table.to_dict("records")
    ]
    return {
        "recommendation": found.recommendation,
        "reasons": found.reasons,
        "differences": [
            [named.get(row["aspect"], row["aspect"]), row["gain"], row["gain_se"],
             "yes" if row["differs"] else "no"]
            for row in found.differences.to_dict("records")
        ],
        "heads": heads,
        "rows": table,
        "of": str(found.table["of"].iloc[0]) if "of" in found.table else "",
        "reach": [
            [row[name] for name in ("set", "size", "middle", "furthest", "meaning")]
            for row in found.reach.to_dict("records")
        ],
    }  # fmt: skip
