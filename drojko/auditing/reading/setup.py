"""From what a user gives to a problem: checks, encoding, units, loss, reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from drojko._random import spawn
from drojko._validation import check_scale, plain_tensor, shown
from drojko.ambiguity import GroundCost
from drojko.approaches.reference import build_reference, by_class, is_sampled
from drojko.approaches.registry import approach_to
from drojko.auditing.reading.columns import in_matrix, in_rows
from drojko.auditing.reading.losses import with_loss
from drojko.auditing.reading.models import AuditedModel
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reading.space import filled
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures import LabelledMeasure
from drojko.measures._arrays import masses
from drojko.models import is_linear

__all__ = ["build_problem", "check_gradients", "searched", "sets_of", "size_name"]

_SUPPORTED = (
    "without gradients: Wasserstein, KL, ChiSquare, CressieRead, TotalVariation, CVaR, "
    "MMD and Group"
)

#: Fixed draws of a continuous reference.
DRAWS = 5_000


def size_name(ambiguity: Any, radii: Any) -> str:
    """The first column of the table."""
    return "radius" if radii is not None or ambiguity.penalty is None else "penalty"


def sets_of(ambiguity: Any, radii: Any) -> list[tuple[float, Any]]:
    """Sizes, the mildest first, and the set of each.

    Raises `InvalidDataError` where there is no size, or one that is none.
    """
    name = type(ambiguity).__name__
    if radii is None:
        given = getattr(ambiguity, ambiguity.size_name, None)
        given = ambiguity.penalty if given is None else given
        if given is None and ambiguity.knows_groups:  # any mixture
            return sets_of(ambiguity, [1.0])
        if given is None:
            raise InvalidDataError(
                f"{name} has no size and radii is None: give audit radii=[...], or {name}(radius="
                "...)"
            )
        return [(float(given), ambiguity)]
    try:
        values = np.atleast_1d(np.asarray(plain_tensor(radii, "radii"), np.float64))
    except (TypeError, ValueError):
        raise InvalidDataError(f"radii={radii!r}; expected a list of numbers") from None
    if values.ndim != 1 or not len(values):
        raise InvalidDataError(f"radii has shape {values.shape}; expected a list of numbers")
    if not (np.isfinite(values) & (values >= 0)).all():
        wrong = values[~(np.isfinite(values) & (values >= 0))][0]
        raise InvalidDataError(f"radii holds {wrong}; expected finite non-negative numbers")
    order = sorted(np.unique(values).tolist(), key=ambiguity.room)
    return [(value, ambiguity.resized(value)) for value in order]


def searched(ambiguity: Any, model: AuditedModel) -> bool:
    """Whether candidates of every row are searched: order 2, and order 1 beyond linear models."""
    name, linear = (
        approach_to(ambiguity).name,
        model.tabular is not None and is_linear(model.tabular),
    )
    return name == "transport" or (name == "order-one" and not linear)


def check_gradients(ambiguity: Any, model: AuditedModel) -> None:
    """Certificates of some sets need gradients of the model in its inputs."""
    known = model.tabular is not None or searched(ambiguity, model)
    if approach_to(ambiguity).gradients and not known:
        raise UnsupportedError(
            f"{type(ambiguity).__name__} needs gradients, and there are none "
            f"({model.note}); {_SUPPORTED}"
        )


def build_problem(
    model: AuditedModel,
    X: Any,
    y: Any,
    ambiguity: Any,
    *,
    loss: Any,
    reference: Any,
    scale: Any,
    sample_weight: Any,
    groups: Any,
    generator: torch.Generator,
) -> AuditProblem:
    """Everything checked and encoded; ``ambiguity`` is one of the sets that will be audited."""
    space, approach = model.space, approach_to(ambiguity)
    still = approach.name == "reweighting" or ambiguity.knows_groups
    still = still or searched(ambiguity, model)
    if space.missing is not None and not (still and reference in ("kde", "empirical")):
        check_gradients(ambiguity, model)  # no imputed column would help
        replace(space, missing=None).encode(X)  # which says where
    u = space.encode(X)
    check_scale(np.nan_to_num(u), "X")
    target = _targets(model, y, len(u))
    w = masses(sample_weight, len(u))
    kept = w > 0
    rows = np.flatnonzero(kept)
    u, target, w = u[kept], target[kept], w[kept] / w[kept].sum()
    if groups is not None:
        if isinstance(groups, type):
            raise InvalidDataError(f"groups={shown(groups)}; expected one per row")
        groups = plain_tensor(groups, "groups")
        if np.shape(groups)[:1] != kept.shape:
            raise InvalidDataError(
                f"groups has shape {np.shape(groups)} and X has {len(kept)} rows: give one per row"
            )
        groups = groups[kept] if hasattr(groups, "iloc") else np.asarray(groups)[kept]
    if scale is not None and not (isinstance(scale, str) and scale == "standard"):
        raise InvalidDataError(f"scale={scale!r}; expected None or 'standard'")
    full = filled(u, space.missing)
    variance = w @ (full - w @ full) ** 2
    if space.missing is not None:  # of what is known
        variance = variance / np.maximum(w @ (u != space.missing), 1e-300)
    spread = (variance > 0) * 1.0 if scale else variance
    found = in_rows(in_matrix(ambiguity, space), space, full, spread)
    own, names = found.ambiguity, list(space.names) if space.frame else None
    cost = approach_to(own).resolve(own, full, names)
    cost = replace(cost, weights=np.where(space.fixed, np.inf, cost.weights))
    cost = replace(cost, whole=found.whole, floor=found.floor)
    if scale is not None:
        cost = replace(cost, weights=cost.weights / np.where(variance > 0, variance, 1.0))
    cost = cost.observed(full)
    if not cost.mutable.any() and own.order is not None and not cost.swaps:
        raise InvalidDataError("no column can move: all are immutable or categories")
    model, scored = with_loss(model, loss, torch.from_numpy(u), torch.as_tensor(target))
    atoms, smooth = _reference(reference, cost, model, generator)
    problem = AuditProblem(
        model=model,
        loss=scored,
        ambiguity=own,
        cost=cost,
        x=torch.from_numpy(np.ascontiguousarray(u)),
        y=torch.as_tensor(target),
        w=torch.from_numpy(w),
        rows=rows,
        reference=_fit(atoms, u, target, w, model),
        smooth=smooth and space.missing is None and found.whole is None,
        sampled=False,
        generator=generator,
        groups=groups,
    )
    if not is_sampled(problem.reference):
        return problem
    x, labels, mass = problem.reference.points(max(DRAWS, len(u)), spawn(generator))
    x = cost.snap(cost.project(x))
    labels = labels if problem.n_labels else labels.double()
    empty = np.full(len(x), -1)
    return replace(problem, x=x, y=labels, w=mass.double(), rows=empty, sampled=True)


def _targets(model: AuditedModel, y: Any, n: int) -> np.ndarray:
    try:
        values = np.asarray(plain_tensor(y, "y"))
    except ValueError as error:  # rows of different lengths
        raise InvalidDataError(f"y={shown(y)} is no array: {error}") from None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (n,):
        raise InvalidDataError(f"y has shape {values.shape}; X has {n} rows")
    if model.classes is None:
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            raise InvalidDataError("the model is a regressor and y holds no numbers") from None
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InvalidDataError(f"y holds {values[row]} in row {row}: drop such rows first")
        return values
    if values.dtype == object and any(label is None for label in values.ravel().tolist()):
        raise InvalidDataError("y holds None: drop these rows, or give them a label")
    classes = model.classes
    where = {label: k for k, label in enumerate(classes.tolist())}
    unknown = sorted({str(v) for v in np.unique(values).tolist() if v not in where})
    if unknown:
        raise InvalidDataError(
            f"y holds labels {unknown[:5]} that the model does not know; it knows "
            f"{classes.tolist()[:10]}"
        )
    return np.array([where[v] for v in values.tolist()], dtype=np.int64)


def _reference(
    reference: Any, cost: GroundCost, model: AuditedModel, generator: torch.Generator
) -> tuple[LabelledMeasure, bool]:
    """The measure that the numbers are about, and whether samples of the worst case are smooth."""
    classification = model.classes is not None
    if isinstance(reference, str) and reference in ("kde", "empirical"):
        return build_reference("empirical", cost, None, classification, 0), reference == "kde"
    seed = int(torch.randint(2**31 - 1, (1,), generator=spawn(generator)))
    return build_reference(reference, cost, None, classification, seed), True


def _fit(
    measure: LabelledMeasure, u: np.ndarray, target: np.ndarray, w: np.ndarray, model: AuditedModel
) -> LabelledMeasure:
    if measure.__sklearn_is_fitted__():
        return measure
    template: Any = getattr(measure, "measure", None)
    if model.classes is None or template is None or len(np.unique(target)) == len(model.classes):
        return measure.fit(u, target, w)
    return by_class(lambda rows: clone(template), u, target, w, len(model.classes))
