"""What an audit leads to: where a limit is crossed, what carries the shift, what to do next."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from drojko._validation import is_real, shown
from drojko.auditing.reporting.text import change, number, percent
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Decision", "Step", "check_limit", "crossings", "decide", "useful_bounds"]

#: An `AuditReport`, which stands one floor up.
AuditReport = Any

#: What a limit can be about: how it is called, and whether less is worse.
LIMITS = {"accuracy": ("accuracy", True), "auc": ("AUC", True), "risk": ("mean loss", False)}
_NO_PROOF = ("local-estimate", "largest-loss")
#: A bound so many times what was found, and above every loss that was seen, helps nobody.
_FAR = 3.0
#: A relative rise of the mean loss by less is none; columns below this share carry little.
_SMALL, _CARRIES = 0.02, 0.05
#: Of the spread of the rows, below which sizes are in the wrong units.
_NOTHING = 0.01
#: Mass that moves to a class or group by less is not worth a sentence.
_GAINS = 0.02


@dataclass(frozen=True)
class Step:
    """One thing to do, why, and the code that does it (empty where none does)."""

    text: str
    code: str = ""


@dataclass(frozen=True)
class Decision:
    """What a report says first.

    Attributes
    ----------
    headline : str
        What the worst shift of the largest size does.
    limits : tuple of str
        Where each limit that was given holds and where it is crossed.
    meaning : tuple of str
        What each size means in the data.
    carriers : tuple of str
        The columns, classes and groups that carry the shift, the largest part first.
    steps : tuple of Step
        What to do next.
    """

    headline: str
    limits: tuple[str, ...]
    meaning: tuple[str, ...]
    carriers: tuple[str, ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [self.headline, *self.limits, *self.meaning, *self.carriers]
        steps = [f"-> {s.text}" + (f"\n     {s.code}" if s.code else "") for s in self.steps]
        return "\n".join([*lines, *steps])


def check_limit(limit: Any, classes: Any) -> dict[str, float]:
    """A limit as a dict; a number is an accuracy of classifiers and a mean loss of regressions."""
    if limit is None:
        return {}
    if not isinstance(limit, Mapping):
        limit = {"risk" if classes is None else "accuracy": limit}
    for name, value in limit.items():
        rate = name in ("accuracy", "auc")
        if name not in LIMITS or not is_real(value) or (rate and not 0 <= value <= 1):
            raise InvalidDataError(
                f"limit={shown(limit)}; expected a number, or a dict such as "
                '{"accuracy": 0.8, "risk": 0.7}: an accuracy or auc between 0 and 1, a mean loss'
            )
        if rate and classes is None:
            raise InvalidDataError(f"limit on the {name}: a regression has none, give a 'risk'")
    return {name: float(value) for name, value in limit.items()}


def crossings(report: AuditReport) -> dict[str, float]:
    """The smallest size at which each limit was found crossed, of those that were."""
    found = {}
    for name, limit in report.limit.items():
        worst = report.table[f"worst_case_{name}"].to_numpy(dtype=float)
        with np.errstate(invalid="ignore"):
            crossed = worst < limit if LIMITS[name][1] else worst > limit
        if crossed.any():
            found[name] = float(report.table[report.size].to_numpy(dtype=float)[crossed.argmax()])
    return found


def useful_bounds(table: pd.DataFrame, largest: np.ndarray) -> np.ndarray:
    """Upper bounds that say something, NaN elsewhere, shape (rows,).

    Left out: estimates, bounds by the largest loss of any answer, and those above both three times
    what was found and the ``largest`` loss that any row has in that worst case.
    """
    upper = table["upper_bound"].to_numpy(dtype=float)
    found = table["worst_case_risk"].to_numpy(dtype=float)
    proven = ~table["proof"].isin(_NO_PROOF).to_numpy()
    with np.errstate(invalid="ignore"):
        near = upper <= np.fmax(_FAR * np.abs(found), largest)
    return np.where(proven & near & np.isfinite(upper), upper, np.nan)


def decide(report: AuditReport) -> Decision:
    """See `AuditReport.decision`."""
    last = report.table.iloc[-1]
    carriers = _carriers(report) if report.worst_cases[-1] is not None else []
    return Decision(
        headline=_headline(report, last),
        limits=tuple(_limit(report, *one) for one in report.limit.items()),
        meaning=tuple(_meaning(report)),
        carriers=tuple(text for text, _ in carriers),
        steps=tuple(_steps(report, [step for _, step in carriers if step is not None])),
    )


def _at(report: AuditReport, value: float) -> str:
    return f"{report.size} {number(float(value), 3)}"


def _headline(report: AuditReport, last: Any) -> str:
    found, today = float(last.worst_case_risk), float(last.nominal_risk)
    where = _at(report, last[report.size])
    loss = f"mean {report.about.get('loss', '')} loss".replace("  ", " ")
    if math.isnan(found):
        return "Nothing could be measured: see the findings."
    if math.isinf(found):
        return (
            f"Today the {loss} is {number(today)}. Under the worst shift of {where} there is no "
            "end to what it can become."
        )
    goes = f"the {loss} goes from {number(today)} to {number(found)}"
    if math.isfinite(float(last.worst_case_accuracy)):
        one, two = float(last.nominal_accuracy), float(last.worst_case_accuracy)
        rate = f"accuracy goes from {percent(one)} to {percent(two)}"
        goes = f"{rate}, and {goes.replace(' goes', '')}"
    text = f"Under the worst shift found at {where}, {goes}"
    bound = float(report.bounds[-1])
    if math.isnan(bound):
        return f"{text}; how much worse it can get is not known."
    alike = "of that size" if report.size == "radius" else "of the same cost"
    error = report.certificates[-1].standard_error
    drawn = f" (up to the draws' standard error, {number(error, 2)})" if error > 0 else ""
    if bound - found <= 1e-3 * abs(bound):
        return f"{text}; no shift {alike} makes the loss worse{drawn}."
    return f"{text}; no shift {alike} makes the loss more than {number(bound)}{drawn}."


def _limit(report: AuditReport, name: str, limit: float) -> str:
    word, least = LIMITS[name]
    sizes = report.table[report.size].to_numpy(dtype=float)
    today = float(report.table[f"nominal_{name}"].iloc[0])
    found = report.table[f"worst_case_{name}"].to_numpy(dtype=float)
    first = crossings(report).get(name)
    text = f"Limit: {word} of at {'least' if least else 'most'} {number(limit)}. "
    if (today < limit) if least else (today > limit):
        return f"{text}It is missed today, at {number(today)}."
    certain = not least and not any(c.standard_error > 0 for c in report.certificates)
    proven = certain and bool((report.bounds <= limit).any())
    if first is not None:
        k = int(np.flatnonzero(sizes == first)[0])
        text += f"A shift of {_at(report, sizes[k])} crosses it ({number(found[k])})"
        if k > 0 and not proven:
            text += f"; at {number(float(sizes[k - 1]), 3)} none was found that does"
            text += ", which is no proof"
    else:
        text += f"No shift was found that crosses it, up to {_at(report, sizes[-1])}"
        text += "" if proven else ", which is no proof"
    if proven:  # mean losses have bounds, rates have none
        k = int(np.flatnonzero(report.bounds <= limit)[-1])
        return f"{text}; up to {number(float(sizes[k]), 3)} it is proven to hold."
    return f"{text}."


def _meaning(report: AuditReport) -> list[str]:
    frame, lines = report.meaning, []
    for row in frame.to_dict("records"):
        where = _at(report, row[report.size])
        where = where[0].upper() + where[1:]
        parts = []
        if math.isfinite(row.get("share_of_spread", math.nan)):
            parts.append(f"{percent(row['share_of_spread'])} of the spread of the rows")
        if math.isfinite(row.get("times_halves", math.nan)):
            parts.append(f"{number(row['times_halves'], 2)} × the distance of two random halves")
        if math.isfinite(row.get("effective_share", math.nan)):
            parts += [
                f"{percent(row['mass_moved'])} of the mass moves",
                f"a row counts up to {number(row['largest_ratio'], 2)} times",
            ]
        if report.observed is not None and report.observed.interval[0] > 0:
            parts.append(f"{number(row['times_observed'], 2)} × the shift that was seen")
        if parts and any(v > 0 for k, v in row.items() if k in ("length", "mass_moved")):
            lines.append(f"{where}: {', '.join(parts)}.")
    if report.observed is not None:
        lines.append(f"Seen between the two samples: {report.observed.message}")
    return lines


def _carriers(report: AuditReport) -> list[tuple[str, Step | None]]:
    """Columns, swaps, classes and groups that the last worst case is made of."""
    found: list[tuple[str, Step | None]] = []
    parts = report.carriers()
    heavy = parts[parts["share"] >= _CARRIES].head(3).to_dict("records")
    if heavy:
        listed = ", ".join(f"{row['column']} ({percent(row['share'])})" for row in heavy)
        what = report.worst_case().share_of.split(",")[0]
        text = f"Columns that carry it, by their share of the {what}: {listed}."
        found.append((text, _hold(report, str(heavy[0]["column"]))))
    swaps = report.swaps().head(3).to_dict("records")
    if swaps:
        listed = ", ".join(
            f"{row['column']} {row['before']} → {row['after']} ({percent(row['mass'])} of rows)"
            for row in swaps
        )
        found.append((f"Swaps: {listed}.", None))
    today = float(report.table["nominal_risk"].iloc[-1])
    for by in ("group", "class"):
        table = report.shares(by)
        if len(table) < 2:
            continue
        gain = (table["worst_case_mass"] - table["mass"]).to_numpy()
        k = int(gain.argmax())
        name, row = table[by].iloc[k], table.iloc[k]
        if gain[k] >= _GAINS:
            text = (
                f"Mass moves to {by} {name}: {percent(row.mass)} → {percent(row.worst_case_mass)} "
                f"of the rows, mean loss {number(row.risk, 3)}."
            )
            step = Step(
                f"Collect more rows of {by} {name}, or give them more weight: a shift towards them "
                "costs most."
            )
            costly = row.worst_case_mass >= 1.25 * row.mass and row.risk > today
            found.append((text, step if costly else None))
            continue
        rise = table["worst_case_mass"] * table["worst_case_risk"] - table["mass"] * table["risk"]
        total = float(rise.fillna(0.0).sum())
        k = int(rise.fillna(-math.inf).to_numpy().argmax())
        share = float(rise.iloc[k]) / total if total > 0 else 0.0
        if share > 1.5 * float(table["mass"].iloc[k]) and share > 0.5:
            name = table[by].iloc[k]
            found.append((
                f"{by.capitalize()} {name} makes {percent(share)} of the rise, with "
                f"{percent(float(table['mass'].iloc[k]))} of the rows.",
                Step(f"Check and collect rows of {by} {name}: they suffer most."),
            ))  # fmt: skip
    return found


def _code(own: Any) -> str:
    """A set as it is written, on one line."""
    return re.sub(r"\n\s*", " ", repr(own))


def _hold(report: AuditReport, column: str) -> Step | None:
    """Look at the column that carries most; its set without it, where rows move."""
    own, names = report.ambiguity, report.space.raw_names
    if own is None or not own.moves:
        return None
    code, given = "", own.get_params(deep=False).get("immutable", ())
    if given is None or (isinstance(given, list) and all(isinstance(v, str) for v in given)):
        entry = column if report.space.frame or column not in names else names.index(column)
        fixed = clone(own).set_params(immutable=[*(given or []), entry])
        code = f"audit(model, X, y, {_code(fixed)}, ...)"
    return Step(
        f"Look at how {column} is recorded and whether it can shift at all; if it cannot, hold it "
        "fixed and audit again.",
        code,
    )


def _steps(report: AuditReport, carried: list[Step]) -> list[Step]:
    last = report.table.iloc[-1]
    found, today = float(last.worst_case_risk), float(last.nominal_risk)
    if math.isnan(found):
        return [Step("Mend what the findings name, then audit again.")]
    broken = [text for text in report.findings if text.startswith(("NaN", "random", "constant"))]
    steps = [Step(f"First mend this: {text}.") for text in broken[:1]]
    if math.isfinite(found) and found - today <= _SMALL * max(abs(today), 1e-12):
        return [
            *steps,
            Step(
                "Nothing has to be done against shifts of these sizes: the loss hardly moves "
                f"({change(found - today)}). Audit larger ones to see where it does."
            ),
        ]
    return [*steps, *_units(report), *_retrain(report), *carried]


def _units(report: AuditReport) -> list[Step]:
    """Where columns of large numbers make every size next to nothing."""
    own = report.ambiguity
    if own is None or not own.moves or report.about.get("scale"):
        return []
    share = report.meaning.get("share_of_spread")
    if share is None or not float(share.max()) < _NOTHING:
        return []
    return [
        Step(
            f"Every size here is less than {percent(_NOTHING)} of the spread of the rows: columns "
            "of large numbers hardly move, and those of small ones carry it all. Audit in standard "
            "deviations.",
            f"audit(model, X, y, {_code(own)}, scale='standard', ...)",
        )
    ]


def _retrain(report: AuditReport) -> list[Step]:
    own = report.ambiguity
    if own is None:
        return []
    size, why = _advised(report)
    at = own if report.size == "penalty" or not size else own.resized(size)
    if report.about.get("trained against") == repr(at):
        text = f"The model was trained against this set at {_at(report, size)} already: more rows"
        return [Step(f"{text}, other columns or another model are what is left to try.")]
    name = "DRORegressor" if report.classes is None else "DROClassifier"
    code, more = f"{name}({_code(at)}, random_state=0)", ""
    before = ["StandardScaler()"] if report.about.get("scale") else []
    if report.space.missing is not None:
        before.insert(0, "SimpleImputer()")
    if report.space.fixed.any():
        before.insert(0, "encode")
        more = " (encode: your encoder of the categories, whose columns the set then names)"
    if before:
        code = f"make_pipeline({', '.join([*before, code])})"
    text = (
        f"Train a model against this set at {_at(report, size)}, {why}, and audit both on rows "
        f"that neither has seen{more}."
    )
    groups = ", groups=groups_train" if own.knows_groups else ""
    return [Step(text, f"{code}.fit(X_train, y_train{groups})")]


def _advised(report: AuditReport) -> tuple[float, str]:
    """The size to train for, and why that one."""
    sizes = report.table[report.size].to_numpy(dtype=float)
    if report.observed is not None and report.size == "radius" and report.observed.interval[0] > 0:
        distance = report.observed.distance
        larger = sizes[sizes >= distance * (1 - 1e-9)]
        if len(larger):
            return float(larger[0]), "the first no smaller than the shift that was seen"
    for size in crossings(report).values():
        return size, "the first that crosses your limit"
    return float(sizes[-1]), "the largest of this audit: choose the one that you expect"
