"""The audit as one self-contained HTML page: no outside resource, readable without scripts."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np

from drojko.auditing.reporting.charts import Series, line_chart
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
    """The page as text."""
    assets = files("drojko.auditing")
    css = assets.joinpath("page.css").read_text(encoding="utf-8")
    js = assets.joinpath("page.js").read_text(encoding="utf-8")
    title = f"Audit of {report.name}"
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    )
    body = [
        f"<header><h1>{escape(title)}</h1>{_lead(report)}{_findings(report)}</header><main>",
        '<h2 id="curves">Risk by size of the shift</h2>',
        f'<div class="charts">{_charts(report)}</div>',
        f'<h2 id="table">Table</h2>{_table(report)}',
        _picker(report),
        *(_panel(report, k) for k in range(len(report.table))),
        f'<h2 id="checks">Checks</h2>{_checks(report)}',
        f'<h2 id="how">How this was found</h2>{_about(report)}</main>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{css}</style></head>'
        f"<body>{''.join(body)}<script>{js}</script></body></html>"
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


def _cell(name: str, value: Any) -> str:
    if name in TEXT:
        return f'<td class="text">{escape(str(value))}</td>'
    return f'<td data-value="{float(value):.17g}">{_number(value)}</td>'


# Sections ---------------------------------------------------------------------------------------


def _lead(report: AuditReport) -> str:
    last = report.table.iloc[-1]
    size = "penalty" if report.size == "penalty" else "radius"
    about = report.about
    loss = escape(str(about.get("loss", "loss")))
    text = (
        f"Today the mean {loss} loss is <strong>{_number(last['nominal_risk'])}</strong>. "
        f"The worst shift found at {size} {_number(last[report.size])} makes it "
        f"<strong>{_number(last['worst_case_risk'])}</strong>"
    )
    bound = float(last["upper_bound"])
    if math.isfinite(bound):
        proven = last["proof"] != "local-estimate"
        text += (
            f"; no shift of that size makes it more than <strong>{_number(bound)}</strong>."
            if proven
            else f"; an estimate, not a proof, of the most it can become is {_number(bound)}."
        )
    else:
        text += "; how much worse it can get is not known."
    detail = ", ".join(
        escape(f"{key}: {about[key]}") for key in ("rows", "ambiguity", "units") if about.get(key)
    )
    return f'<p class="lead">{text}</p><p class="quiet">{detail}</p>'


def _findings(report: AuditReport) -> str:
    if not report.findings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in report.findings)
    return (
        '<section class="findings" aria-label="Findings"><strong>Findings</strong>'
        f"<ul>{items}</ul></section>"
    )


def _charts(report: AuditReport) -> str:
    table = report.table
    x = table[report.size].to_numpy(dtype=float)

    def line(name: str, column: str, kind: str) -> Series:
        return Series(name, kind, table[column].to_numpy(dtype=float))

    risks = [
        line("upper bound", "upper_bound", "bound"),
        line("worst shift found", "worst_case_risk", "attained"),
        line("ascent per row", "ascent_risk", "ascent"),
        line("random noise", "random_noise_risk", "noise"),
        line("today", "nominal_risk", "nominal"),
    ]
    found = np.nanmax(np.where(np.isfinite(risks[1].y), risks[1].y, np.nan)) if len(x) else 1.0
    alt = _alt(report, "worst_case_risk", "risk")
    parts = []
    if np.isfinite(found):
        parts.append(
            line_chart(x, risks, "Risk", report.size, alt=alt, top=1.6 * max(found, 1e-12))
        )
    rates = [
        line("today", "nominal_accuracy", "nominal"),
        line("worst shift found", "worst_case_accuracy", "attained"),
    ]
    if np.isfinite(rates[1].y).any():
        alt = _alt(report, "worst_case_accuracy", "accuracy")
        parts.append(line_chart(x, rates, "Accuracy", report.size, alt=alt, top=None))
    return "".join(parts)


def _alt(report: AuditReport, column: str, word: str) -> str:
    first, last = report.table.iloc[0], report.table.iloc[-1]
    return (
        f"{word} under the worst shift found, from {_number(first[column])} at {report.size} "
        f"{_number(first[report.size])} to {_number(last[column])} at "
        f"{_number(last[report.size])}; all numbers are in the table"
    )


def _table(report: AuditReport) -> str:
    names = [str(name) for name in report.table.columns]
    heads = "".join(
        f'<th scope="col"{" class=text" if n in TEXT else ""}><button type="button">'
        f"{escape(HEADS.get(n, n))}</button></th>"
        for n in names
    )
    rows = []
    for k, row in enumerate(report.table.itertuples(index=False)):
        cells = "".join(_cell(n, v) for n, v in zip(names, row))
        rows.append(f'<tr data-row="{k}">{cells}</tr>')
    csv = base64.b64encode(report.table.to_csv(index=False).encode()).decode()
    link = f'<p><a download="audit.csv" href="data:text/csv;base64,{csv}">Download as CSV</a></p>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table by size of the shift">'
        '<table class="sortable" id="by-size"><caption>One row for each size; press a heading to '
        f"sort.</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{link}"
    )


def _picker(report: AuditReport) -> str:
    labels = [_number(v) for v in report.table[report.size]]
    last = len(labels) - 1
    return (
        f'<div class="picker"><label for="size">{report.size.capitalize()} shown below</label>'
        f'<input id="size" type="range" min="0" max="{last}" step="1" value="{last}" '
        f'data-labels="{"|".join(labels)}" aria-valuetext="{labels[-1]}">'
        f'<output id="size-value" for="size">{labels[-1]}</output></div>'
    )


def _panel(report: AuditReport, k: int) -> str:
    row = report.table.iloc[k]
    size = float(row[report.size])
    proof = f"<small>[{escape(str(row['proof']))}]</small>"
    numbers = [
        ("Risk today", _number(row["nominal_risk"])),
        ("Worst shift found", _number(row["worst_case_risk"])),
        ("Upper bound", f"{_number(row['upper_bound'])} {proof}"),
        ("Accuracy", f"{_number(row['nominal_accuracy'])} → {_number(row['worst_case_accuracy'])}"),
    ]
    if not np.isfinite(row["nominal_accuracy"]):
        numbers.pop()
    boxes = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in numbers)
    try:
        details = _displacement(report, size) + _moves(report, size) + _images(report, size)
    except DrojkoError as error:
        details = f'<p class="quiet">{escape(str(error))}</p>'
    return (
        f'<section data-size="{k}" aria-label="{report.size} {_number(size)}">'
        f"<h2>At {report.size} {_number(size)}</h2>"
        f'<dl class="numbers">{boxes}</dl>{details}</section>'
    )


def _displacement(report: AuditReport, size: float) -> str:
    moved: Any = report.displacement(size)
    if "share" not in moved or not moved["share"].fillna(0).abs().sum() > 0:
        return '<p class="quiet">No feature moves at this size.</p>'
    total = moved.groupby("feature", sort=False)["share"].sum().sort_values(ascending=False)
    classes = list(dict.fromkeys(moved["class"])) if "class" in moved else []
    heads = "".join(f'<th scope="col">mean move, {escape(str(c))}</th>' for c in classes)
    heads = heads or '<th scope="col">mean move</th>'
    rows = []
    for feature, share in total.head(FEATURES).items():
        part = moved[moved["feature"] == feature]
        means = part.set_index("class")["mean"] if classes else part["mean"]
        cells = "".join(f"<td>{_change(v)}</td>" for v in means)
        width = f"{100 * max(float(share), 0.0) / max(float(total.iloc[0]), 1e-300) * 0.9:.1f}%"
        rows.append(
            f'<tr><th scope="row">{escape(str(feature))}</th><td>{float(share):.1%}</td>'
            f'<td class="text" style="width:30%" aria-hidden="true"><span class="bar" '
            f'style="width:{width}"></span></td>{cells}</tr>'
        )
    rest = len(total) - FEATURES
    more = f"; {rest} more features share {total.iloc[FEATURES:].sum():.1%}" if rest > 0 else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="What moves"><table><caption>'
        f"Which features carry the shift: share of the budget and mean move, in the units of the "
        f'data{more}.</caption><thead><tr><th scope="col" class="text">Feature</th>'
        f'<th scope="col">Share</th><th scope="col"><span aria-hidden="true"></span></th>{heads}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _moves(report: AuditReport, size: float) -> str:
    frame = report.moves(MOVES, size)
    names = [c for c in frame.columns if c in report.space.raw_names]
    label = _column(frame, "target")
    predicted, loss = _column(frame, "prediction"), _column(frame, "loss")
    scale = {c: _spread(report, c) for c in names}
    rows = []
    for at in range(0, len(frame), 2):
        before, after = frame.iloc[at], frame.iloc[at + 1]
        changes = []
        for c in names:
            one, two = before[c], after[c]
            if isinstance(one, str) or isinstance(two, str) or not _is_number(one):
                if one != two:
                    changes.append(
                        (math.inf, f"{escape(c)}: {escape(str(one))} → {escape(str(two))}")
                    )
            elif two != one:
                weight = abs(two - one) / scale[c]
                changes.append(
                    (
                        weight,
                        f"{escape(c)} {_number(one, 3)} → {_number(two, 3)} ({_change(two - one)})",
                    )
                )
        changes.sort(key=lambda item: -item[0])
        listed = "; ".join(text for _, text in changes[:CHANGES])
        if len(changes) > CHANGES:
            listed += f"; and {len(changes) - CHANGES} more"
        name = frame.index[at][0]
        # By column, not by row: a row of mixed columns turns integers into floats.
        own, new = frame[label].iloc[at], frame[label].iloc[at + 1]
        target = _text(own) if own == new else f"{_text(own)} → {_text(new)}"
        answers = [_text(frame[predicted].iloc[i]) for i in (at, at + 1)]
        rows.append(
            f'<tr><th scope="row">{"draw" if name < 0 else name}</th><td>{target}</td>'
            f"<td>{' → '.join(answers)}</td>"
            f'<td data-value="{float(after[loss]):.9g}">{_number(before[loss], 3)} → '
            f'{_number(after[loss], 3)}</td><td class="text">{listed or "weight only"}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col"{css}><button type="button">{name}</button></th>'
        for name, css in [
            ("Row", " class=text"), ("Target", ""), ("Prediction", ""), ("Loss", ""),
            ("Largest changes", " class=text"),
        ]
    )  # fmt: skip
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Most harmful moves" '
        'style="margin-top:1rem"><table class="sortable"><caption>The most harmful moves, before → '
        f"after.</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _column(frame: Any, name: str) -> str:
    """Name of an extra column, which gains an underscore beside a feature of the same name."""
    return f"{name}_" if f"{name}_" in frame.columns else name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _text(value: Any) -> str:
    return (
        _number(float(value), 3) if isinstance(value, float | np.floating) else escape(str(value))
    )


def _spread(report: AuditReport, column: str) -> float:
    names = list(report.space.names)
    if column not in names or report.problem is None:
        return 1.0
    values = np.asarray(report.problem.x[:, names.index(column)])
    return float(values.std()) or 1.0


def _images(report: AuditReport, size: float) -> str:
    if report.image_shape is None:
        return ""
    pairs = report.images(IMAGES, size)
    low, high = float(pairs.min()), float(pairs.max())
    parts = []
    for k, (before, after) in enumerate(pairs):
        pictures = "".join(
            f'<img alt="{word} the move" src="{_png(image, low, high)}">'
            for word, image in (("before", before), ("after", after))
        )
        parts.append(
            f"<figure>{pictures}<figcaption class=quiet>move {k + 1}</figcaption></figure>"
        )
    return f'<h3>Pictures before and after</h3><div class="pairs">{"".join(parts)}</div>'


def _png(image: np.ndarray, low: float, high: float) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _checks(report: AuditReport) -> str:
    checks = report.checks
    names = list(checks.columns)
    heads = "".join(
        f'<th scope="col" class="text"><button type="button">{escape(str(n))}</button></th>'
        for n in names
    )
    rows = []
    for row in checks.itertuples(index=False):
        cells = []
        for n, v in zip(names, row):
            if n == "passed":
                text = "–" if v is None or v != v else ("yes" if v else "NO")
                cells.append(f'<td class="text">{text}</td>')
            elif _is_number(v) and not isinstance(v, bool):
                cells.append(f'<td class="text" data-value="{float(v):.17g}">{_number(v)}</td>')
            else:
                cells.append(f'<td class="text">{escape("" if v is None else str(v))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<details><summary>What was tried against the worst shift, by size</summary><div "
        'class="scroll" tabindex="0" role="region" aria-label="Checks"><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _about(report: AuditReport) -> str:
    items = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th>'
        f'<td class="text">{escape(str(value))}</td></tr>'
        for key, value in report.about.items()
    )
    return (
        f"<table><tbody>{items}</tbody></table><p>The <em>worst shift found</em> is attained by "
        "the rows shown above: a lower bound of what can happen. The <em>upper bound</em> comes "
        "from the dual problem, and its proof is named: ridge-1d and dual are exact, "
        "strong-concavity nearly so, lipschitz is valid but can be loose, local-estimate is no "
        f'proof.</p><p class="quiet">drojko {version("drojko")}</p>'
    )
