"""The audit as one self-contained HTML page: no outside resource, readable without scripts."""

from __future__ import annotations

import base64
import io
import math
from importlib.metadata import version
from importlib.resources import files
from numbers import Real
from typing import Any

import numpy as np

from drojko._files import cells
from drojko.auditing.reporting.charts import Series, line_chart, template
from drojko.exceptions import DrojkoError

__all__ = ["render"]

#: An `AuditReport`, which stands one floor up: pages are for those who have one.
AuditReport = Any

#: Columns of the table, as the page heads them.
HEADS = {
    "radius": "Radius", "penalty": "Penalty", "nominal_risk": "Risk today",
    "random_noise_risk": "Random noise", "ascent_risk": "Ascent per row",
    "worst_case_risk": "Worst shift found", "upper_bound": "Upper bound", "proof": "Proof",
    "transport_cost": "Budget spent", "nominal_accuracy": "Accuracy today",
    "worst_case_accuracy": "Accuracy, worst shift", "nominal_auc": "AUC today",
    "worst_case_auc": "AUC, worst shift", "finding": "Finding",
}  # fmt: skip
TEXT = {"proof", "finding"}
FEATURES, MOVES, IMAGES, CHANGES = 12, 8, 12, 4


def render(report: AuditReport) -> str:
    from markupsafe import Markup

    assets, table, checks = files("drojko.auditing"), report.table, report.checks
    page = template("page.html", number=_number, change=_change, finite=np.isfinite)
    return page.render(
        report=report,
        size=report.size,
        rows=table.to_dict("records"),
        columns=[(HEADS.get(name, name), name in TEXT) for name in table.columns],
        csv=base64.b64encode(cells(table).to_csv(index=False).encode()).decode(),
        charts=Markup(_charts(report)),
        panels=[_panel(report, float(size)) for size in table[report.size]],
        checks=checks.to_dict("records"),
        check_columns=[(name, True) for name in checks.columns],
        css=Markup(assets.joinpath("page.css").read_text(encoding="utf-8")),
        js=Markup(assets.joinpath("page.js").read_text(encoding="utf-8")),
        version=version("drojko"),
    )


def _number(value: Any, digits: int = 4) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    number = float(value)
    if number != 0 and not 1e-4 <= abs(number) < 1e6:
        return f"{number:.{digits}g}"
    return np.format_float_positional(
        number, precision=digits, unique=False, fractional=False, trim="-"
    )


def _change(value: Any) -> str:
    """A signed difference."""
    return ("+" if float(value) >= 0 else "") + _number(value, 2)


def _charts(report: AuditReport) -> str:
    table, size = report.table, report.size

    def values(column: str) -> np.ndarray:
        return table[column].to_numpy(dtype=float)

    def chart(title: str, lines: dict[str, tuple[str, str]], top: float | None) -> str:
        column, word = lines["attained"][1], title.lower()
        first, last = table.iloc[0], table.iloc[-1]
        alt = (
            f"{word} under the worst shift found, from {_number(first[column])} at {size} "
            f"{_number(first[size])} to {_number(last[column])} at {_number(last[size])}; all "
            "numbers are in the table"
        )
        series = [Series(name, kind, values(of)) for kind, (name, of) in lines.items()]
        return line_chart(values(size), series, title, size, alt=alt, top=top)

    risks = {
        "bound": ("upper bound", "upper_bound"),
        "attained": ("worst shift found", "worst_case_risk"),
        "ascent": ("ascent per row", "ascent_risk"),
        "noise": ("random noise", "random_noise_risk"),
        "nominal": ("today", "nominal_risk"),
    }
    if "largest-loss" in set(table["proof"]):  # no bound of what a shift of this size can do
        del risks["bound"]
    rates = {
        "nominal": ("today", "nominal_accuracy"),
        "attained": ("worst shift found", "worst_case_accuracy"),
    }
    parts = []
    found = table["worst_case_risk"].replace([np.inf, -np.inf], np.nan).max()
    if np.isfinite(found):
        parts.append(chart("Risk", risks, 1.6 * max(found, 1e-12)))
    if np.isfinite(table["worst_case_accuracy"]).any():
        parts.append(chart("Accuracy", rates, None))
    return "".join(parts)


def _panel(report: AuditReport, size: float) -> dict[str, Any]:
    try:
        moves = {"moves": _moves(report, size), "images": _images(report, size)}
        tables = [(by, report.shares(by, size).to_dict("records")) for by in ("class", "group")]
        shares = {"shares": [(by, rows) for by, rows in tables if rows]}
        return _displacement(report, size) | moves | shares
    except DrojkoError as error:
        return {"error": str(error)}


def _displacement(report: AuditReport, size: float) -> dict[str, Any]:
    """Features by their share of the budget; none where nothing moves."""
    moved: Any = report.displacement(size)
    if "share" not in moved or not moved["share"].fillna(0).abs().sum() > 0:
        return {}
    total = moved.groupby("feature", sort=False)["share"].sum().sort_values(ascending=False)
    classes = list(dict.fromkeys(moved["class"])) if "class" in moved else []
    largest = max(float(total.iloc[0]), 1e-300)
    features = [
        {
            "name": name,
            "share": share,
            "width": f"{90.0 * max(share, 0.0) / largest:.1f}%",
            "means": moved["mean"][moved["feature"] == name],
        }
        for name, share in total.head(FEATURES).items()
    ]
    return {
        "features": features,
        "of": report.worst_case(size).share_of,
        "classes": [f"mean move, {label}" for label in classes] or ["mean move"],
        "rest": (len(total) - FEATURES, f"{total.iloc[FEATURES:].sum():.1%}"),
    }


def _moves(report: AuditReport, size: float) -> list[dict[str, Any]]:
    frame = report.moves(MOVES, size)
    before, after = (frame.xs(state, level="state") for state in ("before", "after"))
    spread = {c: _spread(report, c) for c in frame.columns if c in report.space.raw_names}
    rows = []
    for k, row in enumerate(before.index):
        # By column, not by row: a row of mixed columns turns integers into floats.
        pairs = {name: (before[name].iloc[k], after[name].iloc[k]) for name in frame.columns}
        changes = []
        for name, scale in spread.items():
            one, two = pairs[name]
            if one == two:
                continue
            if isinstance(one, Real) and isinstance(two, Real):
                text = f"{name} {_number(one, 3)} → {_number(two, 3)} ({_change(two - one)})"
                changes.append((abs(float(two) - float(one)) / scale, text))
            else:
                changes.append((math.inf, f"{name}: {one} → {two}"))
        changes.sort(key=lambda item: -item[0])
        listed = [text for _, text in changes[:CHANGES]]
        if len(changes) > CHANGES:
            listed.append(f"and {len(changes) - CHANGES} more")
        target, answers, loss = (
            pairs[f"{name}_" if f"{name}_" in pairs else name]
            for name in ("target", "prediction", "loss")
        )
        rows.append(
            {
                "row": "draw" if row < 0 else row,
                "target": " → ".join(_text(v) for v in dict.fromkeys(target)),
                "prediction": " → ".join(_text(v) for v in answers),
                "loss": loss,
                "changes": "; ".join(listed),
                "mass": pairs["mass_" if "mass_" in pairs else "mass"],
            }
        )
    return rows


def _text(value: Any) -> str:
    return _number(float(value), 3) if isinstance(value, float | np.floating) else str(value)


def _spread(report: AuditReport, column: str) -> float:
    names = list(report.space.names)
    if column not in names or report.problem is None:
        return 1.0
    return float(np.std(np.asarray(report.problem.x[:, names.index(column)]))) or 1.0


def _images(report: AuditReport, size: float) -> list[list[str]]:
    if report.image_shape is None:
        return []
    pairs = report.images(IMAGES, size)
    low, high = float(pairs.min()), float(pairs.max())
    return [[_png(image, low, high) for image in pair] for pair in pairs]


def _png(image: np.ndarray, low: float, high: float) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
