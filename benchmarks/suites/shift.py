"""Does robustness pay?  Linear models trained on a source, tested under shifts of many kinds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from foreign import fits, title
from harness import OK, SKIPPED, Check, Context, Memory, describe, table
from scipy.stats import t as student
from shifts import BUDGETS, FAMILIES, RADII, TAILS, Data, Line, Scale, evaluate, load
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from worker import ambiguity

from drojko import DROClassifier, DRORegressor
from drojko.baselines import AdversarialClassifier, WRMClassifier

TITLE = "Does robustness pay?"
ABOUT = f"""
Linear models with the logistic loss (diabetes: squared), 60 % of the rows to train on, the rest to
test, 10 random splits. Columns are standardised by the training rows (images: divided by one
number). Tested without refitting under: *covariate shift* (sampling bias along the source's first
principal component, both ways), *noise* (Gaussian, 0.5 and 1 standard deviations), *units* (columns
multiplied by random factors exp(0.4 N(0, 1)), or moved by 0.5 N(0, 1)), *missing* (20 and 40 % of
the entries replaced by the training mean), *images* (digits rotated by 15 degrees either way,
blurred, moved by a pixel), *subpopulation* (the worst {TAILS[0]:g} and {TAILS[1]:g} of the test
rows), *adversarial* (every row moved by {BUDGETS[0]:g} and {BUDGETS[1]:g} in the worst direction,
exact for linear models), *W2 worst case* (exact robust risk of the test rows at radii {RADII[0]:g}
and {RADII[1]:g}). A family is the mean over its sizes; every model sees the same shifts.

Sizes are chosen without a look at any shifted row, by one rule for every method, peers included: of
the method's own grid, the largest size (the strongest L2 penalty, the smallest tail mass) whose
log-loss in 5-fold cross-validation on the source is within one standard error of the best. One
exception: `{{usual}}` is tuned for the best log-loss, as is usual. Sets that only reweight have
the L2 penalty of `{{usual}}`, since without one separable data have no minimum. `WRM` and
`adversarial` are `drojko.baselines`; `dro` and `skwdro` run in environments of their own with
`--full`. dro has no L2 penalty for its sets; skwdro, which takes some 15 s for a fit, gets the
radius that was chosen for W2 on the same split. `seconds` is CPU time of choosing and training, a
mean over the splits (for `dro` and `skwdro` it is spent in another process and not counted).

Loss is mean +- 95 % interval over the splits; in brackets the accuracy. `clean` is the unshifted
test set. Comparisons in the summary are paired by split: "at or below" means that the mean
difference of shifted losses is not above zero by more than its 95 % half-width. The best of
several methods is picked after the fact on both sides, which flatters both.
"""
COLUMNS = ("family", "loss", "accuracy", "size", "seconds")
SPLITS, FOLDS = 10, 5
DATA = ("breast cancer", "wine", "digits 3-8", "digits 4-9", "diabetes")
PLAIN, USUAL = "plain, L2", "plain, L2 tuned"
ABOUT = ABOUT.replace("{usual}", USUAL)
POINT = 0.01


@dataclass(frozen=True)
class Method:
    """A way to train with one number to choose; ``sizes`` from the least robust on."""

    name: str
    kind: str
    sizes: tuple[float, ...]
    certified: bool = False
    rule: str = "1se"


_L2 = tuple(float(a) for a in np.geomspace(1e-5, 3.0, 12))
_W = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.8)
_W1 = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_DIVERGENCE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SHARE = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
_TAIL = (1.0, 0.9, 0.7, 0.5, 0.3, 0.15)
METHODS = (
    Method(USUAL, "plain", _L2, rule="min"),
    Method(PLAIN, "plain", _L2),
    Method("W2", "ours W2", _W, certified=True),
    Method("W1", "ours W1", _W1, certified=True),
    Method("Sinkhorn", "ours Sinkhorn", (0.003, 0.01, 0.03, 0.1, 0.3, 0.6), certified=True),
    Method("KL", "ours KL", _DIVERGENCE, certified=True),
    Method("chi-square", "ours chi-square", _DIVERGENCE, certified=True),
    Method("CVaR", "ours CVaR", _TAIL, certified=True),
    Method("TV", "ours TV", _SHARE, certified=True),
    Method("WRM", "WRM", (30.0, 10.0, 3.0, 1.0, 0.5, 0.25, 0.1, 0.05)),
    Method("adversarial", "adversarial", (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)),
    Method(f"{title('dro')}, W1", "dro W1", _W1),
    Method(f"{title('dro')}, chi-square", "dro chi-square", _DIVERGENCE),
    Method(f"{title('dro')}, CVaR", "dro CVaR", _TAIL),
    Method(f"{title('skwdro')}, entropic W2", "skwdro W2", ()),
)

_FEW = (USUAL, "W2", "CVaR")


def cases(smoke: bool):
    if smoke:
        few = [method for method in METHODS if method.name in _FEW]
        yield "wine", lambda context: run("wine", context, few, splits=2)
        return
    for name in DATA:
        yield name, lambda context, name=name: run(name, context, METHODS, splits=SPLITS)
    yield "OpenML", _openml


def _openml(context: Context) -> Iterator[dict[str, Any]]:
    """Two more data sets where there is a network."""
    import socket

    from sklearn.datasets import fetch_openml

    for name in ("ionosphere", "sonar"):
        reason = "with --full only" if not context.full else ""
        try:
            if not reason:
                socket.getaddrinfo("www.openml.org", 443)
                X, y = fetch_openml(name, version=1, as_frame=False, return_X_y=True)
        except Exception as error:
            reason = f"no network: {describe(error)[:80]}"
        if reason:
            yield {"method": name, "status": f"{SKIPPED}: {reason}"}
            continue
        data = Data(name, np.asarray(X, float), (y == np.unique(y)[1]).astype(int))
        for row in run(data, context, METHODS, splits=SPLITS):
            yield {"case": name, **row}


# One data set ---------------------------------------------------------------------------------


def run(given: str | Data, context: Context, methods, splits: int) -> Iterator[dict[str, Any]]:
    """Rows of all methods and families, from all splits."""
    data = load(given) if isinstance(given, str) else given
    scores: dict[str, list] = {method.name: [] for method in methods}
    sizes: dict[str, list[float]] = {method.name: [] for method in methods}
    taken: dict[str, list[float]] = {method.name: [] for method in methods}
    peaks: dict[str, float] = {}
    reasons: dict[str, str] = {}
    memory = Memory()
    for k in range(splits):
        seed = 1000 * context.seed + k
        stratify = None if data.task == "regression" else data.y
        rows = np.arange(len(data.y))
        train, test = train_test_split(rows, test_size=0.4, random_state=seed, stratify=stratify)
        scale = Scale(data, data.X[train])
        source = Source(scale(data.X[train]), data.y[train], data.task, seed, context.full)
        for method in methods:
            if method.name in reasons:
                continue
            start = time.process_time()
            memory.reset()
            try:
                line, size = source.train(method)
            except Skip as reason:
                reasons[method.name] = str(reason)
                continue
            taken[method.name].append(time.process_time() - start)
            peaks[method.name] = max(peaks.get(method.name, 0.0), memory.peak() or math.nan)
            sizes[method.name].append(size)
            scores[method.name].append(
                evaluate(data, line, scale, data.X[train], data.X[test], data.y[test], seed)
            )
    for method in methods:
        peer = not method.certified
        if method.name in reasons:
            status = reasons[method.name]
            yield {"method": method.name, "status": status, "peer": peer, "peak MiB": None}
            continue
        for family in ("clean", *FAMILIES):
            if family in scores[method.name][0]:
                found = [score[family] for score in scores[method.name]]
                row = _row(method, family, found, sizes[method.name], taken[method.name])
                yield {**row, "peak MiB": peaks[method.name]}


def _row(method: Method, family: str, found: list, sizes: list, taken: list) -> dict[str, Any]:
    losses = np.array([score.loss for score in found])
    right = np.array([score.accuracy for score in found])
    return {
        "method": method.name,
        "family": family,
        "certified": method.certified,
        "peer": not method.certified,
        "loss": float(losses.mean()),
        "loss +-": half_width(losses),
        "accuracy": float(right.mean()),
        "accuracy +-": half_width(right),
        "size": float(np.median(sizes)),
        "seconds": float(np.mean(taken)),
        "splits": len(found),
        "loss by split": " ".join(f"{value:.6g}" for value in losses),
        "accuracy by split": " ".join(f"{value:.6g}" for value in right),
    }


def half_width(values: np.ndarray) -> float:
    """Of the 95 % interval of a mean, by Student's law."""
    n = len(values)
    if n < 2:
        return math.nan
    return float(student.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))


# Training and the choice of a size ---------------------------------------------------------------


class Skip(Exception):
    """A method that does not run here; its text is the status of the row."""


class Source:
    """Training rows of a split with their folds; nothing here has seen a test row."""

    def __init__(self, X: np.ndarray, y: np.ndarray, task: str, seed: int, full: bool) -> None:
        self.X, self.y, self.task, self.seed, self.full = X, y, task, seed, full
        kind = KFold if task == "regression" else StratifiedKFold
        self.folds = list(kind(FOLDS, shuffle=True, random_state=seed).split(X, y))
        self.chosen: dict[str, float] = {}

    def train(self, method: Method) -> tuple[Line, float]:
        """The model at the size that the method's rule chooses, and the size."""
        family, _, name = method.kind.partition(" ")
        regression = self.task == "regression"
        if family in ("WRM", "adversarial") and regression:
            raise Skip(f"{SKIPPED}: for classification only")
        if family == "skwdro":
            line, size = self._skwdro()
        elif family == "dro":
            line, size = self._dro(method, name)
        else:
            held = [[self._fit(method, s, rows) for rows, _ in self.folds] for s in method.sizes]
            size = method.sizes[self.choose(held, method.rule)]
            line = self._fit(method, size, slice(None))
        self.chosen[method.name] = size
        return line, size

    def choose(self, held: list[list[Line | None]], rule: str) -> int:
        """Index of the size; ``held`` holds the models of all sizes and folds."""
        risk = np.full((len(held), FOLDS), math.nan)
        for i, lines in enumerate(held):
            for k, (line, (_, out)) in enumerate(zip(lines, self.folds, strict=True)):
                if line is not None:
                    risk[i, k] = line.of(line.errors(self.X[out], self.y[out])).mean()
        mean = np.where(np.isfinite(risk).all(1), risk.mean(1), math.inf)
        best = int(np.argmin(mean))
        if not math.isfinite(mean[best]):
            raise Skip("failed: no size could be fitted on all folds")
        if rule == "min":
            return best
        limit = mean[best] + risk[best].std(ddof=1) / math.sqrt(FOLDS)
        return int(np.flatnonzero(mean <= limit).max())

    def _fit(self, method: Method, size: float, rows: Any) -> Line:
        X, y = self.X[rows], self.y[rows]
        family, _, name = method.kind.partition(" ")
        if family == "plain":
            return self._plain(X, y, size)
        if family == "WRM":
            model = WRMClassifier(size, model="linear", steps=5, **self._ascent())
        elif family == "adversarial":
            model = AdversarialClassifier(size, model="linear", steps=5, **self._ascent())
        else:
            moves = name in ("W1", "W2", "Sinkhorn")
            settings = {"alpha": 0.0 if moves else self.chosen[USUAL], "reference": "empirical"}
            if self.task == "regression":
                loss = "huber" if name == "W1" else "squared"  # squared: infinite in order 1
                model = DRORegressor(ambiguity(name, size), loss=loss, random_state=0, **settings)
            else:
                model = DROClassifier(ambiguity(name, size), random_state=0, **settings)
        model.fit(X, y)
        if family == "ours":
            coef, intercept = model.coef_, model.intercept_
        else:
            coef, intercept = model.weights_[0], model.biases_[0]
        return Line(np.ravel(coef), float(np.ravel(intercept)[0]), self.task)

    def _ascent(self) -> dict[str, Any]:
        return {"max_iter": 100, "learning_rate": 2e-2, "random_state": self.seed}

    def _plain(self, X: np.ndarray, y: np.ndarray, alpha: float) -> Line:
        if self.task == "regression":
            model = Ridge(alpha=0.5 * alpha * len(y)).fit(X, y)
        else:
            model = LogisticRegression(C=1.0 / (alpha * len(y)), max_iter=5000, tol=1e-6).fit(X, y)
        return Line(np.ravel(model.coef_), float(np.ravel(model.intercept_)[0]), self.task)

    def _dro(self, method: Method, name: str) -> tuple[Line, float]:
        loss = "squared" if self.task == "regression" else "logistic"
        if name == "W1" and loss == "squared":
            name = "W2"  # what dro's least squares are robust against
        every = [rows for rows, _ in self.folds] + [np.arange(len(self.y))]
        jobs = [
            {"package": "dro", "set": name, "size": s, "loss": loss, "rows": rows.tolist()}
            for s in method.sizes
            for rows in every
        ]
        found = fits("dro", jobs, self.X, self.y, limit=300.0, create=self.full)
        lines = [self._line(one) for one in found]
        if not any(lines):
            raise Skip(found[0]["status"])
        grid = [lines[i : i + FOLDS + 1] for i in range(0, len(lines), FOLDS + 1)]
        # A size whose last fit fails is no choice.
        held = [row[:-1] if row[-1] else [None] * FOLDS for row in grid]
        index = self.choose(held, method.rule)
        return grid[index][-1], method.sizes[index]

    def _skwdro(self) -> tuple[Line, float]:
        if not self.full:
            raise Skip(f"{SKIPPED}: with --full only")
        size = self.chosen["W2"]
        loss = "squared" if self.task == "regression" else "logistic"
        job = {"package": "skwdro", "set": "W2", "size": size, "loss": loss}
        found = fits("skwdro", [job], self.X, self.y, limit=300.0, create=True)[0]
        line = self._line(found)
        if line is None:
            raise Skip(found["status"])
        return line, size

    def _line(self, found: dict[str, Any]) -> Line | None:
        if found["status"] != OK:
            return None
        return Line(np.array(found["coef"]), float(found["intercept"]), self.task)


# What the rows say ------------------------------------------------------------------------------


def _values(row: dict[str, Any], column: str = "loss") -> np.ndarray:
    """Of the splits, as they stand in the row."""
    return np.array([float(text) for text in str(row[f"{column} by split"]).split()])


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float]:
    """Mean of our loss minus theirs over the splits, and its 95 % half-width."""
    gap = _values(ours) - _values(theirs)
    return float(gap.mean()), half_width(gap)


def clean_lost(rows: list[dict], case: str, method: str) -> float:
    """Clean accuracy that a method gives up against the plainly tuned one (0 for regression)."""
    clean = {r["method"]: r for r in rows if r["case"] == case and r.get("family") == "clean"}
    lost = float(np.mean(_values(clean[USUAL], "accuracy") - _values(clean[method], "accuracy")))
    return 0.0 if math.isnan(lost) else lost


@dataclass(frozen=True)
class Cell:
    """A data set under a family of shifts: the best certified method and the best peer."""

    case: str
    family: str
    ours: str
    peer: str
    gap: float
    width: float

    @property
    def holds(self) -> bool:
        return bool(self.gap <= (0.0 if math.isnan(self.width) else self.width))

    @property
    def better(self) -> bool:
        return bool(self.gap < 0 and self.gap < -self.width)


def cells(rows: list[dict], only: str | None = None) -> list[Cell]:
    """All of them; ``only`` compares this one method with the usual one instead."""
    good = [row for row in rows if row["status"] == OK]
    found = []
    for case in dict.fromkeys(row["case"] for row in good):
        for family in FAMILIES:
            here = [r for r in good if r["case"] == case and r["family"] == family]
            ours = [
                r for r in here
                if r["certified"] and clean_lost(good, case, r["method"]) <= POINT + 1e-9
            ]  # fmt: skip
            theirs = [r for r in here if not r["certified"]]
            if only:
                ours = [r for r in here if r["method"] == only]
                theirs = [r for r in here if r["method"] == USUAL]
            if not ours or not theirs:
                if here:
                    found.append(Cell(case, family, "none", "any", math.inf, 0.0))
                continue
            one, two = (min(side, key=lambda r: r["loss"]) for side in (ours, theirs))
            gap, width = difference(one, two)
            found.append(Cell(case, family, one["method"], two["method"], gap, width))
    return found


def summary(rows: list[dict]) -> list[Check]:
    every = cells(rows)
    names = [family for family in FAMILIES if any(cell.family == family for cell in every)]
    checks = []
    for family in names:
        mine = [cell for cell in every if cell.family == family]
        below = [cell for cell in mine if not cell.holds]
        text = f"{len(mine) - len(below)} of {len(mine)} data sets, clearly better in "
        text += f"{sum(cell.better for cell in mine)}"
        if below:
            text += "; it does not pay on " + ", ".join(
                f"{c.case} ({c.ours} {c.gap:+.2g} +- {c.width:.1g} against {c.peer})" for c in below
            )
        target = f"{family}: best certified method at or below the best peer's loss, at most 1 "
        checks.append(Check(target + "point of clean accuracy lost", text, not below))
    alone = cells(rows, only="W2")
    worse = [cell for cell in alone if not cell.holds]
    text = f"{len(alone) - len(worse)} of {len(alone)} cells, clearly better in "
    text += f"{sum(cell.better for cell in alone)}"
    if worse:
        text += "; worse: " + ", ".join(f"{c.case}, {c.family} ({c.gap:+.2g})" for c in worse)
    checks.append(Check(f"W2 alone, no picking: at or below `{USUAL}`", text, not worse))
    lost = {
        case: clean_lost(rows, case, "W2")
        for case in dict.fromkeys(c.case for c in alone)
        if case != "diabetes"
    }
    text = ", ".join(f"{case} {100 * value:.1f}" for case, value in lost.items())
    met = all(value <= POINT for value in lost.values()) if lost else None
    checks.append(Check("W2 alone: at most 1 point of clean accuracy lost", text or "-", met))
    return checks


def tables(rows: list[dict]) -> str:
    """A table per data set: methods down, families across."""
    parts = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        names = ["clean", *FAMILIES]
        here = [f for f in names if any(r.get("family") == f for r in mine)]
        best = {f: min(r["loss"] for r in mine if r.get("family") == f) for f in here}
        lines = []
        for method in dict.fromkeys(row["method"] for row in mine):
            own = {r.get("family"): r for r in mine if r["method"] == method}
            if None in own:
                lines.append([method, *[""] * len(here), "", own[None]["status"]])
                continue
            values = [_text(own[f], best[f]) for f in here]
            lines.append([method, *values, own["clean"]["size"], OK])
        parts += [f"\n### {case}\n", table(["method", *here, "size", "status"], lines)]
    return "\n".join(parts)


def _text(row: dict[str, Any], best: float) -> str:
    text = f"{row['loss']:.3f} ± {row['loss +-']:.3f}"
    if row["loss"] <= best:
        text = f"**{text}**"
    right = row.get("accuracy")
    if isinstance(right, float) and not math.isnan(right):
        text += f" ({100 * right:.1f} %)"
    return text


def plots(rows: list[dict]):
    if any(row["status"] == OK for row in rows):
        caption = "Loss under shift relative to tuned L2 (white: does not apply)"
        yield caption, lambda figure: _draw(figure, rows)


def _draw(figure, rows: list[dict]) -> None:
    """A heat map per data set: log2 of a method's loss over the usual one's."""
    good = [row for row in rows if row["status"] == OK]
    cases = list(dict.fromkeys(row["case"] for row in good))
    names = [m.name for m in METHODS if any(r["method"] == m.name for r in good)]
    names = [name for name in names if name != USUAL]
    families = [f for f in ("clean", *FAMILIES) if any(r["family"] == f for r in good)]
    across = min(3, len(cases))
    down = -(-len(cases) // across)
    figure.set_size_inches(2.4 + 3.6 * across, 1.2 + down * (1.0 + 0.24 * len(names)))
    axes = np.ravel(figure.subplots(down, across, sharex=True, sharey=True))
    image = None
    for axis, case in zip(axes, cases, strict=False):
        loss = {(r["method"], r["family"]): r["loss"] for r in good if r["case"] == case}
        ratio = np.full((len(names), len(families)), math.nan)
        for i, name in enumerate(names):
            for j, family in enumerate(families):
                if (name, family) in loss:
                    ratio[i, j] = math.log2(loss[name, family] / loss[USUAL, family])
        image = axis.imshow(ratio, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axis.set_title(case, fontsize=10)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xticks(range(len(families)), families, rotation=60, ha="right", fontsize=8)
    for k in range(len(cases), len(axes)):
        axes[k].set_visible(False)
        axes[k - across].tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.ax.set_yticklabels(["half", "", "equal", "", "double"])
    bar.set_label(f"loss relative to '{USUAL}' (blue: lower)")
