"""The checklist that does not depend on the radius: is the model fit to be audited at all?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from drojko._numerics import telling
from drojko.auditing.reading.models import AuditedModel
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.row import Row, check
from drojko.measures._arrays import strange_groups
from drojko.models import NO_LOGITS, looks_like_probabilities

__all__ = ["Health", "health", "notes"]

#: Columns that a finding names.
FEW = 5
#: Rows that repeated answers and gradients are checked on.
ROWS = 500


@dataclass(eq=False)
class Health:
    """Checks and findings for every row of the table, and the nominal figures."""

    nominal: dict[str, float]
    checks: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    unusable: bool = False
    gradients: bool = False

    def add(self, line: dict[str, Any], finding: str | None = None) -> None:
        """A line of the checklist, with what to say where it failed."""
        self.checks.append(line)
        if finding is not None and line["passed"] is False:
            self.findings.append(finding)


def health(problem: AuditProblem) -> Health:
    """NaN answers, answers by chance, constant answers, one class, dead or NaN gradients."""
    f = problem.outputs(problem.x)
    flat = f.reshape(len(f), -1)
    finite = torch.isfinite(flat).all(1)
    nominal = {
        "risk": float(problem.w @ problem.nominal),
        "accuracy": problem.accuracy(problem.x, problem.y, problem.w),
        "auc": problem.auc(f, problem.y, problem.w),
    }
    found = Health(nominal)
    bad = int((~finite).sum())
    found.add(
        check("answers are finite", bad, bad == 0, "rows of X with NaN or infinite answers"),
        f"NaN: the model answers NaN or infinity in {bad} of {len(f)} rows, nothing can be "
        "measured",
    )
    found.unusable = bad > 0 or not math.isfinite(nominal["risk"])
    if found.unusable:
        if not bad:
            found.findings.append("NaN: the loss is not finite on X, nothing can be measured")
        return found
    _copied(problem.model, found)
    _logits(problem, found)
    _chance(problem, f, found)
    _spread(problem, flat, found)
    _told(problem, found)
    if problem.model.unknown:
        _unknown(problem.model.unknown, found)
    if problem.ambiguity.knows_groups:
        _strange(problem, found)
    if problem.model.tabular is not None:
        _slopes(problem, found)
    else:
        found.checks.append(check("gradients", math.nan, None, problem.model.note))
    return found


def _copied(model: AuditedModel, found: Health) -> None:
    """The differentiable copy, on the rows and on rows moved out to the largest size."""
    if model.compared:
        k, n = model.differing, model.compared
        line = check("copy answers as the model", k, k == 0, f"points of {n} where it does not")
        text = (
            f"the differentiable copy is not the model: they differ at {k} of {n} points, X and X "
            "moved out to the largest size, and the model's own answers are used"
        )
        found.add(line, text if model.tabular is None else None)


def _logits(problem: AuditProblem, found: Health) -> None:
    """A module whose last layer is a sigmoid or a softmax is read as if it gave logits."""
    own, copied = problem.model.own, problem.model.tabular
    module = own.model if own.method == "logits" else getattr(copied, "answers", None)
    if module is not None and problem.classes is not None and problem.loss.structured:
        odd = looks_like_probabilities(module, problem.x[:ROWS])
        found.add(
            check("answers are logits", float(odd), not odd, "1: all in [0, 1], far away too"),
            f"probabilities: all answers lie in [0, 1], {NO_LOGITS}",
        )


def _chance(problem: AuditProblem, f: torch.Tensor, found: Health) -> None:
    """The same rows asked again must get the same answers."""
    rows = slice(0, ROWS)
    again = problem.outputs(problem.x[rows])
    size = 1e-9 * (1.0 + float(f.abs().max()))
    differ = float((again - f[rows]).abs().max())
    found.add(
        check("deterministic answers", differ, differ <= size, "largest change when asked again"),
        f"random answers: the same rows get other answers when asked again (by up to {differ:.3g}),"
        " all figures depend on chance",
    )


def _spread(problem: AuditProblem, flat: torch.Tensor, found: Health) -> None:
    spread = float((flat.amax(0) - flat.amin(0)).max())
    found.add(
        check("answers vary", spread, spread > 0 or len(flat) == 1, "range over the rows of X"),
        "constant predictions: every row of X gets the same answer",
    )
    if problem.classes is None:
        return
    present = np.unique(problem.y.numpy())
    found.add(
        check("classes in y", len(present), len(present) > 1, "classes with a row"),
        f"single class: y holds {problem.classes[present[0]]} only, so that the area under the ROC "
        "curve is undefined",
    )


def _told(problem: AuditProblem, found: Health) -> None:
    """A column that is the target itself."""
    columns = telling(problem.x.numpy(), problem.y.numpy(), problem.n_labels)
    names = _listed([problem.model.space.names[j] for j in columns])
    found.add(
        check("columns that tell the target", len(columns), not columns, names),
        f"target among the columns: {names} tells it exactly, leave it out of X",
    )


def _unknown(columns: list[str], found: Health) -> None:
    """Categories that the model's encoders turn into nothing."""
    found.add(
        check("columns with unknown categories", len(columns), False, "; ".join(columns)),
        "unknown categories: the model has not seen "
        f"{'; '.join(columns[:FEW])}, and answers as if those rows had none: train on them, or "
        "write them as it knows them",
    )


def _strange(problem: AuditProblem, found: Health) -> None:
    """Groups that the model was not fitted to, where it knows which these were."""
    model = problem.model.own.model
    model = getattr(model, "best_estimator_", model)
    known = getattr(getattr(model, "steps", [[model]])[-1][-1], "_groups", None)
    strange = strange_groups(known, problem.groups)
    if strange:
        found.add(
            check("groups of the fit", 0.0, False, strange),
            f"other groups: the rows are of groups that the model was not fitted to, {strange}: "
            "the worst case is over the groups of these rows. Check the labels",
        )


def _slopes(problem: AuditProblem, found: Health) -> None:
    """Shares of rows whose loss has no gradient, or none that is a number."""
    x, y = problem.x[:ROWS], problem.y[:ROWS]
    f, backward = problem.tabular.linearise(x)
    slope = problem.loss.gradient(f, y)
    gradient = backward(slope)
    nan = float((~torch.isfinite(gradient).all(1)).double().mean())
    mutable = torch.as_tensor(problem.cost.mutable)
    zero = float((gradient[:, mutable] == 0).all(1).double().mean())
    flat_loss = float((slope.reshape(len(x), -1) == 0).all(1).double().mean())
    found.gradients = zero < 1.0 and nan < 1.0
    found.add(
        check("rows with NaN gradients", nan, nan == 0, "share of rows"),
        f"NaN gradients: in {nan:.0%} of the rows",
    )
    found.add(
        check("rows with zero gradients", zero, zero - flat_loss <= 0.5, "share of rows"),
        f"zero gradients: in {zero:.0%} of the rows, where ascent cannot start, the search without "
        "gradients stands in",
    )


def notes(problem: AuditProblem, one: Row) -> None:
    """What a search at one size has met: answers that are no numbers, moves by fractions."""
    bad = problem.model.tally.bad
    if bad:
        one.note(
            f"NaN: the model answers NaN or infinity at {bad} of the points that the search asked "
            "about, though not on X when it began: nothing is known of the risk there, and there "
            "is no upper bound"
        )
        upper = math.nan if math.isnan(one.certificate.upper) else math.inf
        one.certificate = replace(one.certificate, upper=upper, proof="local-estimate")
    if one.after is None or not problem.ambiguity.moves:
        return
    after, space = np.asarray(one.after[0]), problem.model.space
    x = problem.x.numpy()
    if problem.cost.floor is not None:
        kept = np.flatnonzero((problem.cost.floor == 0) & problem.cost.mutable)
        names = _listed([space.names[j] for j in kept]) or "none"
        words = f"columns without a negative value, which get none: {names}"
        one.checks.append(check("kept at or above 0", len(kept), None, words))
    if problem.cost.swaps and problem.cost.categories is not None:
        one.checks.append(_prices(problem))
    whole = problem.cost.mutable & (x == np.round(x)).all(0)
    moved = whole & (np.abs(after - np.round(after)) > 1e-6).any(0)
    if moved.any():
        listed = _listed([space.names[j] for j in np.flatnonzero(moved)])
        one.note(
            f"fractions: columns of whole numbers move by fractions ({listed}), to rows that "
            'cannot exist if they count, code or say yes and no: categorical_features="auto" moves '
            "them in whole steps, immutable= keeps them, and a swap_cost swaps those named in "
            "categorical_features="
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if names[FEW:] else "")


def _prices(problem: AuditProblem) -> dict[str, Any]:
    """What swaps cost, in moves of a number that cost the same."""
    categories, names = problem.cost.categories, problem.model.space.names
    assert categories is not None
    finite = [
        (names[columns[0]].partition("=")[0], float(price))
        for columns, price in zip(categories.columns, categories.costs, strict=True)
        if math.isfinite(price)
    ]
    words = _listed([f"{name} {price:.3g}" for name, price in finite])
    mean = sum(price for _, price in finite) / len(finite)
    return check(
        "price of a swap", mean, None,
        f"on average, of the squared distance that moves are charged for: {words}",
    )  # fmt: skip
