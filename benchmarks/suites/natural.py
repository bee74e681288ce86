"""Does robustness pay on shifts that occur in nature?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from foreign import PACKAGES as FOREIGN
from harness import OK, SKIPPED, Check, Context, Memory, describe, table
from nature import PACKAGES, TASKS, Missing, Task, made
from splits import LABELS, METHODS, PLAIN, SOURCE, TEST, TREES, Method, Skip, Split, intercept_on

from suites.shift import half_width

TITLE = "Natural shifts"
DRO = FOREIGN["dro"][0]
ABOUT = f"""
{len(TASKS)} shifts in data that ship inside packages (tables only, downloaded once into a folder of
the suite's own; nothing of the packages is installed): {{packages}}. Train on at most {SOURCE} rows
of the source (years, ages, states, trades that come first), test on at most {TEST} rows of the
target (those that come later), 10 random splits; columns in units of the source's spread, y of
regressions too. Loss is the log-loss, or the squared error (1: the source's variance).

Everything is chosen on the source: by 3 folds, or by leaving one environment out and looking at
plain loss. Sets that reweight keep the L2 penalty that was chosen by environments. Exceptions say
so: **told** methods know from the truth in which direction the level of y given x moves (a sign;
how far is the root mean square of what the source's environments show, by `shift_report`; for
regressions the set is that of targets that rise by up to twice that), or have {LABELS} labels of
the target for their intercept; **oracle** rows choose or train on other rows of the target. Nothing
else has seen the target. Trees are LightGBM; robust trees are `drojko.boosting.objective`. The
perceptron is scikit-learn's.
Rows of `dro` {DRO}, with `--full`, are its linear models at fixed sizes, by Clarabel (installed
alone, into a folder of its own); its `KLDRO` is left out, whose program that solver fails on. Rows
of `clear` (also `--full`) take a set only where it gains beyond two standard errors.

A win (loss) against a method: the mean relative difference of target losses over the splits is
below (above) 0 by more than its 95 % half-width. Splits of one task share rows of one pool and one
target: intervals are those of drawing the rows again, and not of other shifts; the interval in
brackets is over tasks. `worst` is the worst environment of the target, `ECE` the calibration error
in ten bins, `source` the loss on rows of the source that were held out.
"""
ABOUT = ABOUT.replace("{packages}", ", ".join(
    f"`{name}` {p.version} ({p.licence})" for name, p in PACKAGES.items()))  # fmt: skip
COLUMNS = ("kind", "loss", "against %", "accuracy", "worst", "ECE", "source", "size", "seconds")
SPLITS = 10
WHAT, _TREES = "what shifts", ", trees"


def cases(smoke: bool):
    if smoke:
        few = [m for m in METHODS if m.name in (PLAIN, "W2, environments", "oracle: level")]
        yield "made", lambda context: ({"task": "made", **r} for r in run(made(), context, few, 2))
        return
    lines = [m for m in METHODS if m.kind != "trees"]
    trees = [METHODS[0], *(m for m in METHODS if m.kind == "trees")]
    for part, methods in (("", lines), (_TREES, trees)):  # what is cheap comes first
        for name in TASKS:
            yield name + part, lambda context, n=name, m=methods: _loaded(n, m, context)


def _loaded(name: str, methods: Any, context: Context) -> Iterator[dict[str, Any]]:
    try:
        task = TASKS[name]()
    except Missing as reason:
        yield {"task": name, "method": PLAIN, "status": f"{SKIPPED}: {reason}"}
        return
    trees = any(method.kind == "trees" for method in methods)
    for row in run(task, context, methods, SPLITS, what=not trees):
        if not (trees and row["method"] == PLAIN):  # it has its row
            yield {"task": name, **row}


def run(
    task: Task, context: Context, methods: Any, splits: int, *, what: bool = True
) -> Iterator[dict[str, Any]]:
    """A row per method, from all splits, and one on what shifts."""
    found: dict[str, list[dict[str, float]]] = {method.name: [] for method in methods}
    reasons: dict[str, str] = {}
    moved, memory = [], Memory()
    memory.reset()
    for k in range(splits):
        split = Split(task, 1000 * context.seed + k)
        for method in methods:
            if method.name in reasons:
                continue
            if method.full and not context.full:
                reasons[method.name] = f"{SKIPPED}: with --full only"
                continue
            start = time.process_time()
            try:
                scorer, size = method.train(split)
                taken = time.process_time() - start
                found[method.name].append({**_measured(split, scorer), "size": size,
                                           "seconds": taken})  # fmt: skip
            except Skip as reason:
                reasons[method.name] = f"{SKIPPED}: {reason}"
            except Exception as error:  # a row of the table, too
                reasons[method.name] = describe(error)
        if what:
            moved.append(_what(split))
    for method in methods:
        if method.name in reasons:
            yield {"method": method.name, "kind": method.kind, "status": reasons[method.name]}
            continue
        yield _row(method, found[method.name], found[PLAIN])
    if not moved:
        return
    names = moved[0]
    yield {"method": WHAT, "kind": WHAT, "peak MiB": memory.peak(),
           **{name: float(np.mean([one[name] for one in moved])) for name in names}}  # fmt: skip


def _measured(split: Split, scorer: Any) -> dict[str, float]:
    y, score = split.target_y, scorer(split.target_X)
    losses = split.losses(score, y)
    places = np.unique(split.target_place)
    found = {
        "loss": float(losses.mean()),
        "worst": max(float(losses[split.target_place == p].mean()) for p in places),
        "source": float(split.losses(scorer(split.source_X), split.source_y).mean()),
        "accuracy": math.nan, "ECE": math.nan,
    }  # fmt: skip
    if split.logistic:
        found["accuracy"] = float(((score > 0) == (y == 1)).mean())
        p = 0.5 * (1.0 + np.tanh(0.5 * score))
        cell = np.minimum((10 * p).astype(int), 9)
        gap = np.bincount(cell, p - y, 10)
        found["ECE"] = float(np.abs(gap).sum() / len(y))
    return found


def _what(split: Split) -> dict[str, float]:
    """How much is to be gained on the target, and what of that by the intercept alone."""
    target = split.target_X, split.target_y
    plain = float(split.losses(split.plain(target[0]), target[1]).mean())
    own = next(m for m in METHODS if m.name == "oracle: trained on the target").train(split)[0]
    best = float(split.losses(own(target[0]), target[1]).mean())
    moved = intercept_on(split, split.plain, split.known_X, split.known_y)
    level = float(split.losses(moved(target[0]), target[1]).mean())
    report = split.report
    return {
        "gap %": 100 * (plain / best - 1.0),
        "by the level %": 100 * (plain - level) / plain,
        "spread": split.spread,
        "move": float((moved(target[0][:1]) - split.plain(target[0][:1]))[0]),
        "none of these": float(report.ambiguity is None),
    }


def _row(method: Method, found: list[dict], plain: list[dict]) -> dict[str, Any]:
    change = _changes([one["loss"] for one in found], [one["loss"] for one in plain])
    row: dict[str, Any] = {"method": method.name, "kind": method.kind}
    for name in found[0]:
        row[name] = float(np.mean([one[name] for one in found]))
    row["size"] = float(np.median([one["size"] for one in found]))
    row |= {"loss +-": half_width(np.array([one["loss"] for one in found])),
            "against %": float(change.mean()), "against % +-": half_width(change)}  # fmt: skip
    for name in ("loss", "worst", "source"):
        row[f"{name} by split"] = " ".join(f"{one[name]:.6g}" for one in found)
    return row | {"splits": len(found)}


# What the rows say ------------------------------------------------------------------------------


def _changes(ours: Any, theirs: Any) -> np.ndarray:
    """Relative differences in percent, split by split."""
    return 100.0 * (np.asarray(ours) / np.asarray(theirs) - 1.0)


def _values(row: dict[str, Any], name: str = "loss") -> np.ndarray:
    return np.array([float(text) for text in str(row[f"{name} by split"]).split()])


def compared(
    rows: list[dict], method: str, other: str, name: str = "loss"
) -> dict[str, tuple[float, float]]:
    """Task: mean difference in percent and half-width."""
    found = {}
    for case in dict.fromkeys(row["task"] for row in rows):
        mine = {r["method"]: r for r in rows if r["task"] == case and r["status"] == OK}
        if method in mine and other in mine:
            change = _changes(_values(mine[method], name), _values(mine[other], name))
            found[case] = float(change.mean()), half_width(change)
    return found


def wins(found: dict[str, tuple[float, float]]) -> tuple[list[str], list[str]]:
    """Tasks won and lost, beyond the interval."""
    return ([case for case, (mean, width) in found.items() if mean < -width],
            [case for case, (mean, width) in found.items() if mean > width])  # fmt: skip


def _score(found: dict[str, tuple[float, float]]) -> str:
    won, lost = wins(found)
    means = np.array([mean for mean, _ in found.values()])
    return f"{len(won)}/{len(lost)} of {len(found)}, mean {means.mean():+.1f} %"


def _names(rows: list[dict]) -> list[str]:
    return [m.name for m in METHODS if any(r["method"] == m.name for r in rows)]


def summary(rows: list[dict]) -> list[Check]:
    good = [row for row in rows if row["status"] == OK]
    if not any(row["method"] == "W2, environments" for row in good):
        return []
    by = "W2, environments"
    plain = compared(good, by, PLAIN)
    worse = [c for c, (mean, width) in plain.items() if mean > width and mean > 1.0]
    mean = float(np.mean([m for m, _ in plain.values()]))
    checks = [
        Check(f"`{by}` against tuned L2: no task worse by more than the interval and 1 %",
              f"{_score(plain)}; worse: {', '.join(worse) or 'none'}", not worse),
        Check(f"`{by}` against tuned L2: mean at most -0.5 %", f"{mean:+.2f} %", mean <= -0.5),
    ]  # fmt: skip
    for other in ("W2, cv", "W2, rwpi", "W2, radius 0.1"):
        found = compared(good, by, other)
        if found:
            won, lost = wins(found)
            target = f"`{by}` against `{other}`: better on 4 tasks or more, worse on none"
            checks.append(Check(target, _score(found), len(won) >= 4 and not lost))
    for name in _names(good):
        if name.endswith((", environments", ", clear")) and name not in (by, "L2, environments",
                                                            "trees, environments"):  # fmt: skip
            found = compared(good, name, "L2, environments")
            checks.append(Check(f"`{name}` against L2 by environments: at most one loss",
                                _score(found), len(wins(found)[1]) <= 1))  # fmt: skip
    for name in ("told the direction: set", "told the direction: level"):
        found = compared(good, name, PLAIN)
        if found:
            won, lost = wins(found)
            mean = float(np.mean([m for m, _ in found.values()]))
            checks.append(Check(
                f"`{name}` against tuned L2: better on 9 of 15, worse on at most one, mean -4 %",
                _score(found), len(won) >= 9 and len(lost) <= 1 and mean <= -4.0))  # fmt: skip
    return checks


def words(rows: list[dict]) -> list[str]:
    """Where robustness pays and where it costs, from the rows."""
    found = []
    for name, other in (
        ("W2, environments", PLAIN), ("W2, radius 0.1", PLAIN), ("KL, environments", PLAIN),
        ("CVaR, environments", PLAIN), ("Group, environments", PLAIN),
        ("trees, KL(0.2)", TREES), ("trees, set by environments", TREES),
        ("told the direction: set", PLAIN), ("told the direction: level", PLAIN),
        (f"{LABELS} target labels: level", PLAIN), ("stack of L2 and trees", PLAIN),
    ):  # fmt: skip
        each = compared(rows, name, other)
        if not each:
            continue
        won, lost = wins(each)

        def told(cases: list[str], each=each) -> str:
            return ", ".join(f"{case} ({each[case][0]:+.1f} %)" for case in cases) or "nowhere"

        found.append(f"- `{name}` against `{other}` pays: {told(won)}. It costs: {told(lost)}.")
    return found


def tables(rows: list[dict]) -> str:
    """Methods over all tasks, words, then a table of tasks."""
    good = [row for row in rows if row["status"] == OK]
    names = _names(good)
    lines = []
    for name in names:
        mine = [row for row in good if row["method"] == name]
        loss = compared(good, name, PLAIN)
        cells: list[Any] = [name, mine[0]["kind"]]
        means = np.array([mean for mean, _ in loss.values()])
        won, lost = wins(loss)
        cells += [f"{len(won)}/{len(lost)}", f"{means.mean():+.1f} ± {half_width(means):.1f}",
                  f"{np.median(means):+.1f}"]  # fmt: skip
        trees = compared(good, name, TREES)
        won, lost = wins(trees)
        cells.append(f"{len(won)}/{len(lost)}")
        worst = compared(good, name, PLAIN, "worst")
        won, lost = wins(worst)
        cells.append(f"{len(won)}/{len(lost)}")
        cost = [mean for mean, _ in compared(good, name, PLAIN, "source").values()]
        cells += [f"{np.mean(cost):+.1f}", f"{np.mean([row['seconds'] for row in mine]):.2f}"]
        lines.append(cells)
    heads = ["method", "kind", "target: wins/losses against tuned L2", "mean % [95 % over tasks]",
             "median %", "against tuned trees", "worst environment", "source %",
             "seconds"]  # fmt: skip
    parts = [table(heads, lines), "\n### Where it pays and where it costs\n", *words(good)]
    what = [row for row in good if row["method"] == WHAT]
    own = {(row["task"], row["method"]): row for row in good}
    lines = [
        [row["task"], own[row["task"], PLAIN]["loss"], row["gap %"], row["by the level %"],
         row["spread"], row["move"], "yes" if row["none of these"] == 1.0 else "not always"]
        for row in what if (row["task"], PLAIN) in own
    ]  # fmt: skip
    heads = ["task", "tuned L2", "above a model of the target %", "intercept alone takes off %",
             "spread of levels in the source", "move to the target",
             "`shift_report`: none of these"]  # fmt: skip
    parts += ["\n### What shifts\n", table(heads, lines)]
    tasks = list(dict.fromkeys(row["task"] for row in good))
    lines = [[name, *(_text(own.get((task, name))) for task in tasks)] for name in names]
    parts += ["\n### Target loss against tuned L2, %\n", table(["method", *tasks], lines)]
    skipped = {(r.get("method") or r["case"], str(r["status"])) for r in rows if r["status"] != OK}
    notes = [f"- {name}: {status}" for name, status in sorted(skipped)]
    return "\n".join(parts + (["", *notes] if notes else []))


def _text(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    mean, width = row["against %"], row["against % +-"]
    text = f"{mean:+.1f} ± {width:.1f}"
    return f"**{text}**" if mean < -width else text
