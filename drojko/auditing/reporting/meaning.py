"""What a size means in the data: beside their spread, random halves, and a shift that was seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from drojko.ambiguity import Wasserstein
from drojko.ambiguity.ground.norms import primal_norm
from drojko.auditing.reading.models import whole_table
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.moves import Moves
from drojko.certificates import Certificate
from drojko.estimators.observed import ObservedShift, distance_of_halves, observed_shift
from drojko.exceptions import InvalidDataError, UnsupportedError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["length_of", "meaning_of", "seen"]

#: Rows of a random half, and of a sample that is compared: an assignment costs their number cubed.
HALF, COMPARED = 250, 500


def _units(problem: AuditProblem) -> Wasserstein:
    """A ball with the ground cost of the audit."""
    own, cost = problem.ambiguity, problem.cost
    return Wasserstein(
        radius=1.0,
        order=own.order or 2,
        norm=own.norm,
        weights=np.where(cost.mutable, cost.weights, 1.0).tolist(),
        immutable=np.flatnonzero(~cost.mutable).tolist(),
        label_cost=own.label_cost,
    )


def length_of(problem: AuditProblem, certificate: Certificate) -> float:
    """How far rows move within a budget: root of the mean cost (order 2), the mean (order 1)."""
    own = problem.ambiguity
    if certificate.radius is not None and own.epsilon is None:
        return float(certificate.radius)
    return float(certificate.transport_cost) ** (1.0 / (own.order or 2))


def meaning_of(
    sizes: Any,
    problem: AuditProblem,
    certificates: Any,
    moves: Any,
    observed: ObservedShift | None,
    name: str,
) -> pd.DataFrame:
    """See `AuditReport.meaning`."""
    import pandas as pd

    seen_at = math.nan if observed is None or not observed.distance > 0 else observed.distance
    if not problem.ambiguity.moves:
        rows = [_reweighted(one) for one in moves]
        frame = pd.DataFrame(rows, columns=["effective_share", "largest_ratio", "mass_moved"])
        frame.insert(0, name, list(sizes))
        frame["times_observed"] = np.asarray(sizes, dtype=float) / seen_at
        return frame
    lengths = np.array([length_of(problem, c) for c in certificates])
    return pd.DataFrame(
        {
            name: list(sizes),
            "length": lengths,
            "share_of_spread": lengths / (_spread(problem) or math.nan),
            "times_halves": lengths / (_halves(problem) or math.nan),
            "times_observed": lengths / seen_at,
        }
    )


def _spread(problem: AuditProblem) -> float:
    """How far rows lie from their mean, in the units of the radius."""
    x, w, weights = problem.x.numpy(), problem.w.numpy(), problem.cost.weights
    apart, finite = x - w @ x, np.where(problem.cost.mutable, weights, 0.0)
    if problem.ambiguity.order == 1:
        return float(w @ primal_norm(apart, finite, problem.ambiguity.norm))
    return math.sqrt(float(w @ (apart**2 @ finite)))


def _halves(problem: AuditProblem) -> float:
    x, w = problem.x.numpy(), problem.w.numpy()
    if not problem.cost.mutable.any() or len(x) < 16:
        return math.nan
    rows = np.arange(len(x))
    if not np.allclose(w, w[0]) or len(x) > 8 * HALF:  # rows of weight stand for several
        size = min(8 * HALF, int(1.0 / (w @ w)))
        rows = np.random.default_rng(0).choice(len(x), size, replace=False, p=w / w.sum())
    y = problem.y.numpy()[rows] if problem.n_labels else None
    return distance_of_halves(_units(problem), x[rows], y, max_rows=HALF)[0]


def _reweighted(moves: Moves | None) -> tuple[float, float, float]:
    """Effective share of the rows, largest ratio, and the mass that moved."""
    if moves is None:
        return math.nan, math.nan, math.nan
    before, after = moves.before.mass, moves.after.mass
    ratio = after / np.where(before > 0, before, np.nan)
    effective = 1.0 / float(np.nansum(after * ratio))
    return effective, float(np.nanmax(ratio)), 0.5 * float(np.abs(after - before).sum())


def seen(problem: AuditProblem, given: Any) -> ObservedShift | None:
    """How far a new sample is from the audited one, in the units of the set.

    ``given``: rows like X, or (rows, labels), or an `ObservedShift` that is known already. Of sets
    that reweight by a density: what the shares of the classes alone show, which is a lower bound.
    """
    if given is None or isinstance(given, ObservedShift):
        return given
    X_new, y_new = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    X_new = whole_table(problem.model.own.model, X_new)
    classes, own = problem.classes, problem.ambiguity
    labels = None
    if y_new is not None and classes is not None:
        y_new = np.asarray(y_new).ravel()
        odd = sorted({str(v) for v in set(y_new.tolist()) - set(classes.tolist())})
        if odd:
            raise InvalidDataError(
                f"compare_to: y holds labels {odd[:5]} that the model does not know"
            )
        labels = np.searchsorted(classes, y_new)
    if not own.moves:
        return _shares(problem, labels)
    try:
        new = problem.model.space.encode(X_new)
    except (AttributeError, IndexError):
        raise InvalidDataError(
            "compare_to: expected rows like X, or the pair (X_new, y_new)"
        ) from None
    names = list(problem.model.space.names)
    import pandas as pd

    old = problem.x.numpy()
    frames = [pd.DataFrame(part, columns=names) for part in (old, new)]
    y_old = problem.y.numpy() if labels is not None else None
    return observed_shift(
        *frames, ambiguity=_units(problem), y_old=y_old, y_new=labels, max_rows=COMPARED,
        random_state=0,
    )  # fmt: skip


def _shares(problem: AuditProblem, labels: np.ndarray | None) -> ObservedShift:
    import pandas as pd

    own: Any = problem.ambiguity
    name = type(own).__name__
    if labels is None or not hasattr(own, "discrepancy"):
        raise UnsupportedError(
            f"compare_to: under {name} two samples are compared by the shares of their classes: "
            "give (X_new, y_new) of a classification, and a set such as KL or ChiSquare"
        )
    k = problem.n_labels
    old = np.bincount(problem.y.numpy(), problem.w.numpy(), k)
    new = np.bincount(labels, minlength=k) / len(labels)
    if ((old == 0) & (new > 0)).any():
        raise InvalidDataError("compare_to: a class of the new sample has no row in X")
    kept = old > 0
    old, new = old[kept], new[kept]
    distance = float(own.discrepancy(new / old, old))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(labels), new, size=200) / len(labels)
    several = [float(own.discrepancy(part / old, old)) for part in drawn]
    low, high = np.quantile(several, [0.025, 0.975]).tolist()
    chance = [
        float(own.discrepancy(part / old, old))
        for part in rng.multinomial(len(labels), old, size=200) / len(labels)
    ]
    noise = float(np.mean(chance))
    low = 0.0 if distance <= np.quantile(chance, 0.95) else low
    known: Any = problem.classes
    table = pd.DataFrame(
        {"column": [f"y = {c}" for c in known[kept]], "mean_old": old, "mean_new": new}
    )
    message = (
        f"The shares of the classes alone moved by {distance:.3g} (95 %: {low:.3g} to {high:.3g}): "
        "the whole shift is no smaller."
        if low > 0
        else f"The shares of the classes moved by {distance:.3g}, no more than chance shows."
    )
    return ObservedShift(distance, (low, max(high, distance)), noise, table, len(labels), message)
