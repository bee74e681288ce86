"""The audit as one self-contained HTML page: no outside resource, readable without scripts."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from drojko._files import cells, check_path, replacing
from drojko.auditing.reporting.charts import template
from drojko.auditing.reporting.curves import curves
from drojko.auditing.reporting.environments import section
from drojko.auditing.reporting.text import change, number, percent
from drojko.exceptions import DrojkoError

__all__ = ["inline", "render", "write_page"]

#: An `AuditReport`, which stands one floor up: pages are for those who have one.
AuditReport = Any

#: Columns of the table, as the page heads them.
HEADS = {
    "model": "Model", "radius": "Radius", "penalty": "Penalty", "nominal_risk": "Loss today",
    "random_noise_risk": "Random noise", "ascent_risk": "Ascent per row",
    "worst_case_risk": "Worst shift found", "upper_bound": "Upper bound", "proof": "Proof",
    "transport_cost": "Budget spent", "nominal_accuracy": "Accuracy today",
    "worst_case_accuracy": "Accuracy, worst shift", "nominal_auc": "AUC today",
    "worst_case_auc": "AUC, worst shift", "nominal_brier": "Brier today",
    "worst_case_brier": "Brier, worst shift", "nominal_ece": "ECE today",
    "worst_case_ece": "ECE, worst shift", "finding": "Finding",
}  # fmt: skip
TEXT = {"model", "proof", "finding"}
FEATURES, MOVES, IMAGES, CHANGES, SWAPS = 12, 8, 12, 4, 10
#: Columns whose slices are shown, values of each, and classes with a column of their own.
SLICES, VALUES, CLASSES = 8, 12, 4

#: What a reader may not know, in the order in which it comes.
TERMS = {
    "Size": "How far data may be from those of the audit: the radius of a set of distributions, in "
    "the units of its distance, or the price (penalty) of leaving them.",
    "Loss": "What the model is trained to make small, for one row; the page shows means over rows. "
    "Log loss of 0.69 is that of guessing between two classes.",
    "Worst shift found": "The distribution of that size under which the mean loss is largest, of "
    "all that were searched. The rows on this page make it up, so that it can happen: a lower "
    "bound. Accuracies are those under that distribution; the shift that hurts accuracy most may "
    "be another.",
    "Upper bound": "What no distribution of that size exceeds, from the dual problem. Its proof is "
    "named: ridge-1d and dual are exact, strong-concavity nearly so, linear-bounds and "
    "branch-and-bound are valid bounds of networks, lipschitz is valid and can be loose. Where "
    "there is no proof, or the bound says nothing (largest-loss: no answer has a larger loss), "
    "none is shown.",
    "Random noise": "The mean loss under noise of the same size: what happens without ill will.",
    "Ascent per row": "The mean loss where each row alone climbs within the budget.",
    "Spread": "The distance of the rows from their mean, in the units of the size.",
    "Random halves": "The data cut in two at random: two samples of one law are that far apart, by "
    "chance alone, so that smaller sizes are hardly seen in data.",
    "Mass": "The share of the rows, by weight. Sets such as KL move mass between rows and leave "
    "the rows where they are.",
    "AUC": "The probability that a row of a class gets a higher score than one of another class.",
    "Brier score": "Mean squared distance of the probabilities from what came out: 0 is best; 0.25 "
    "is that of one half for two classes.",
    "ECE": "Expected calibration error: how far accuracy and confidence are apart, on average over "
    "fifteen classes of confidence.",
}


def write_page(path: Any, reports: Mapping[str, AuditReport]) -> Path:
    path = check_path(path)
    page = render(reports).encode("utf-8", "xmlcharrefreplace")
    with replacing(path) as file:
        file.write(page)
    return path


def render(reports: Mapping[str, AuditReport]) -> str:
    """The page of one audit or more, by the names of the models."""
    import pandas as pd
    from markupsafe import Markup

    assets, several = files("drojko.auditing").joinpath("templates"), len(reports) > 1
    page = template("page.html", number=number, change=change, percent=percent)
    models = [_view(name, report) for name, report in reports.items()]
    parts, checks = [], []
    for name, report in reports.items():
        front = {"model": name} if several else {}
        shown = report.table.assign(upper_bound=report.bounds)
        for frame, where in ((shown, parts), (report.checks, checks)):
            where.append(frame.assign(**front)[[*front, *frame.columns]])
    places = [(k, place) for k, part in enumerate(parts) for place in range(len(part))]
    table, checked = (pd.concat(frames, ignore_index=True) for frames in (parts, checks))
    known = set(table.columns[table.notna().any()]) | ALWAYS
    kept = [str(name) for name in table.columns if name in known]
    kept.remove("finding")  # which stand at the top of the page, and at their sizes
    whole = pd.concat([r.table.assign(model=n) for n, r in reports.items()], ignore_index=True)
    rows = [
        {"model": k, "place": place, "cells": row}
        for (k, place), row in zip(places, table[kept].itertuples(index=False, name=None))
    ]
    charts, note = curves(reports)
    return page.render(
        title=f"{len(reports)} models" if several else next(iter(reports)),
        models=models,
        names_of_tiles=[(name, False) for name in COMPARED.values()],
        rows=rows,
        columns=[(HEADS.get(name, name), name in TEXT) for name in kept],
        csv=base64.b64encode(cells(whole).to_csv(index=False).encode()).decode(),
        charts=Markup(charts),
        curves_note=note,
        environments=section(next(iter(reports.values())).problem),
        checks=checked.to_dict("records"),
        check_columns=[(name, True) for name in checked.columns],
        terms=TERMS.items(),
        css=Markup(assets.joinpath("page.css").read_text(encoding="utf-8")),
        js=Markup(assets.joinpath("page.js").read_text(encoding="utf-8")),
        version=version("drojko"),
    )


#: Columns that stay where nothing is known of them.
ALWAYS = {"random_noise_risk", "ascent_risk", "worst_case_risk", "upper_bound"}
#: What models are compared by.
COMPARED = {
    "risk": "Mean loss", "accuracy": "Accuracy", "auc": "AUC", "brier": "Brier score", "ece": "ECE",
}  # fmt: skip


def inline(reports: Mapping[str, AuditReport]) -> str:
    """A short form for notebooks: what it leads to, the table, the curves."""
    import pandas as pd
    from markupsafe import Markup

    from drojko._html import frame_of

    names = ["radius", "penalty", "nominal_risk", "worst_case_risk", "upper_bound", "proof",
             "nominal_accuracy", "worst_case_accuracy"]  # fmt: skip
    parts = []
    for name, report in reports.items():
        frame = report.table.assign(upper_bound=report.bounds)
        frame = frame[[n for n in names if n in frame and not frame[n].isna().all()]]
        if len(reports) > 1:
            frame.insert(0, "model", name)
        parts.append(frame.rename(columns=HEADS))
    table = frame_of("", pd.concat(parts, ignore_index=True))
    models = [
        {"name": name, "decision": one.decision, "findings": one.findings}
        for name, one in reports.items()
    ]
    return template("inline.html").render(
        models=models, table=Markup(table), charts=Markup(curves(reports)[0]), colours=COLOURS
    )


#: Of curves that are read on white and on black.
COLOURS = {
    "attained": "#d1495b", "bound": "#b8860b", "nominal": "#3d85c6", "noise": "#7d8a99",
    "ascent": "#9b6bc7", "m0": "#3d85c6", "m1": "#d9652b", "m2": "#2a9d7f", "m3": "#b95c9b",
    "m4": "#7d8a99", "m5": "#b8860b", "m6": "#6d6fd6", "m7": "#d1495b",
}  # fmt: skip


def _view(name: str, report: AuditReport) -> dict[str, Any]:
    """One model, as the templates take it."""
    rows = report.table.to_dict("records")
    known = report.classes is not None
    about = {key: value for key, value in report.about.items() if value not in (None, "None", "")}
    facts = {"rows": "rows", "ambiguity": "set", "loss": "loss"}
    if report.problem.ambiguity.moves:
        facts["units"] = "distances in"
    return {
        "name": name,
        "size": report.size,
        "rows": rows,
        "known": known,
        "findings": report.findings,
        "decision": report.decision,
        "meaning": _meaning(report),
        "seen": "" if report.observed is None else report.observed.message,
        "meaning_note": NOTES[bool(report.problem.ambiguity.moves)],
        "tiles": _tiles(report, len(rows) - 1) if math.isfinite(rows[-1]["nominal_risk"]) else [],
        "cells": [_cell(report, key) for key in COMPARED],
        "panels": [_panel(report, k) for k in range(len(rows))],
        "about": about,
        "facts": [(word, about[key]) for key, word in facts.items() if key in about],
    }


NOTES = {
    True: "Spread: how far rows lie from their mean. Two random halves of the data differ by "
    "chance alone: a shift far below their distance is hardly seen in data.",
    False: "The rows stay; each counts more or less than today. Effective share: so many rows of "
    "equal weight say as much.",
}


def _meaning(report: AuditReport) -> list[list[str]]:
    """What the sizes mean, heads first; columns of which something is known."""
    frame = report.meaning.drop(columns="length", errors="ignore")
    if report.observed is None or not report.observed.interval[0] > 0:
        frame = frame.drop(columns="times_observed")
    frame = frame.dropna(axis=1, how="all")
    if len(frame.columns) < 2:
        return []
    shares = {"share_of_spread", "effective_share", "mass_moved"}
    heads = [MEANINGS.get(str(name), str(report.size).capitalize()) for name in frame.columns]
    return [heads, *(
        [percent(v) if name in shares else number(v, 2) for name, v in row.items()]
        for row in frame.to_dict("records")
    )]  # fmt: skip


#: Heads of what a size means.
MEANINGS = {
    "share_of_spread": "Share of the spread", "times_halves": "× random halves",
    "times_observed": "× the shift seen", "effective_share": "Effective share of rows",
    "largest_ratio": "A row counts up to ×", "mass_moved": "Mass that moves",
}  # fmt: skip


def _text_of(name: str, value: float) -> str:
    if name == "accuracy":
        return percent(value)
    return number(value, 3) if name == "risk" or math.isnan(value) else f"{value:.3f}"


def _cell(report: AuditReport, name: str) -> tuple[str, str, float]:
    row = report.table.iloc[-1]
    one, two = float(row[f"nominal_{name}"]), float(row[f"worst_case_{name}"])
    return _text_of(name, one), _text_of(name, two), two


def _tiles(report: AuditReport, k: int) -> list[tuple[str, str, str, str]]:
    """Name, value today, value in the worst case, and a note of the figures at one size."""
    row, bound = report.table.iloc[k], float(report.bounds[k])
    tiles = []
    for name, title in COMPARED.items():
        one, two = float(row[f"nominal_{name}"]), float(row[f"worst_case_{name}"])
        if name != "risk" and not math.isfinite(one):
            continue
        note = f"limit {number(report.limit[name])}" if name in report.limit else ""
        tiles.append((title, _text_of(name, one), _text_of(name, two), note))
        if name == "risk":
            value, proof = "not known", "no useful bound is proven"
            if math.isfinite(bound):
                value, proof = number(bound), f"proof: {row['proof']}"
            if math.isfinite(bound) and bound - two <= 1e-3 * abs(bound):
                value, proof = "reached", f"no shift of that size is worse ({row['proof']})"
            tiles.append(("Upper bound", value, value, proof))
    return tiles


def _panel(report: AuditReport, k: int) -> dict[str, Any]:
    row = report.table.iloc[k].to_dict()
    size = float(row[report.size])
    texts = [set(str(text).split("; ")) for text in report.table["finding"]]
    own = [text for text in str(row["finding"]).split("; ") if not all(text in t for t in texts)]
    panel: dict[str, Any] = {"row": row, "tiles": _tiles(report, k), "findings": own}
    try:
        panel |= {"moves": _moves(report, size), "images": _images(report, size)}
        panel |= _features(report, size) | _swaps(report, size) | _slices(report, size)
        tables = [(by, report.shares(by, size)) for by in ("group", "class")]
        shares = [
            {"by": by, "title": f"{by}{'es' if by == 'class' else 's'}",
             "rows": table.rename(columns={by: "name"}).to_dict("records"),
             "weighed": _weighed(table)}
            for by, table in tables if len(table)
        ]  # fmt: skip
        return panel | {"shares": shares}
    except DrojkoError as error:
        return panel | {"error": str(error)}


def _features(report: AuditReport, size: float) -> dict[str, Any]:
    """Columns by their share of the budget; none where nothing moves."""
    carried = report.carriers(size)
    if not carried["share"].fillna(0).sum() > 0:
        return {}
    moves = bool(report.problem.ambiguity.moves)
    moved: Any = report.displacement(size)
    classes = list(dict.fromkeys(moved["class"])) if "class" in moved else []
    classes = classes if len(classes) <= CLASSES else []
    largest = max(float(carried["share"].iloc[0]), 1e-300)
    known = carried[carried["share"] > 0]
    features = [
        {
            "name": row["column"],
            "share": row["share"],
            "mean": row["mean"],
            "spreads": row["in_spreads"],
            "width": f"{90.0 * max(row['share'], 0.0) / largest:.1f}%",
            "means": [_mean(moved, row["column"], label) for label in classes],
        }
        for row in known.head(FEATURES).to_dict("records")
    ]
    return {
        "features": features,
        "of": report.worst_case(size).share_of,
        "mean": "mean move" if moves else "change of the mean",
        "classes": [f"of {label}" for label in classes],
        "rest": (len(known) - FEATURES, percent(known["share"].iloc[FEATURES:].sum())),
    }


def _weighed(table: Any) -> bool:
    """Whether masses change."""
    return bool((table["mass"] - table["worst_case_mass"]).abs().max() > 1e-9)


def _mean(moved: Any, column: str, label: Any) -> float:
    found = moved["mean"][(moved["feature"] == column) & (moved["class"] == label)]
    return float(found.iloc[0]) if len(found) else math.nan


def _swaps(report: AuditReport, size: float) -> dict[str, Any]:
    swaps = report.swaps(size)
    few = swaps.head(SWAPS).to_dict("records")
    return {"swaps": few, "more_swaps": max(len(swaps) - SWAPS, 0)}


def _slices(report: AuditReport, size: float) -> dict[str, Any]:
    """The columns whose slices differ most in mean loss, now or in the worst case."""
    found = []
    names = [*report.space.raw_names, *(["target"] if report.classes is None else [])]
    for name in dict.fromkeys(names):
        table = report.slices(name, size)
        table = table.rename(columns={table.columns[0]: "name"})
        heavy = table[(table["mass"] >= 0.01) & table["worst_case_risk"].notna()]
        if len(heavy) < 2:
            continue
        part = {"by": name, "table": table, "worst": heavy["worst_case_risk"].idxmax()}
        found.append((float(np.ptp(heavy["worst_case_risk"])), part))
    found.sort(key=lambda item: -item[0])
    for _, part in found[:SLICES]:
        table, worst = part["table"], part["worst"]
        if len(table) > VALUES:
            table = table.sort_values("worst_case_risk", ascending=False).head(VALUES)
        part |= {
            "worst": part["table"].loc[worst].to_dict(),
            "rows": table.to_dict("records"),
            "more": len(part["table"]) - len(table),
            "weighed": _weighed(table),
        }
    return {
        "slices": [part for _, part in found[:SLICES]],
        "more_slices": max(len(found) - SLICES, 0),
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
                text = f"{name} {number(one, 3)} → {number(two, 3)} ({change(two - one)})"
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
                "prediction": " → ".join(dict.fromkeys(_text(v) for v in answers)),
                "loss": loss,
                "changes": "; ".join(listed),
                "mass": pairs["mass_" if "mass_" in pairs else "mass"],
            }
        )
    return rows


def _text(value: Any) -> str:
    return number(float(value), 3) if isinstance(value, float | np.floating) else str(value)


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
