"""Rows that the fit of a network keeps back: when to stop, and how much to regularise."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status
from drojko._sklearn import DEPTH
from drojko._validation import shown
from drojko.approaches.base import Approach, Plan, Points
from drojko.distributed.points import SharedPoints
from drojko.estimators._models import OnModule, build_model, resting
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.measures import Empirical, Joint
from drojko.models import (
    NO_LOGITS,
    ModuleModel,
    TabularModel,
    is_linear,
    looks_like_probabilities,
)

__all__ = ["checkpoint_of", "keep_back", "on_network", "shared", "warn_of_outputs"]

_SHARE = 0.25  # of the rows that weights are compared on
_SPLITS, _MANY = 3, 1_000  # how often, with fewer rows than so many
_WEIGHTS = (0.006, 0.02, 0.06, 0.2, 0.6)  # of the norms, from the smallest; shared by the classes
_TIGHT = 0.01, 0.05  # gaps, relative, that ask for no more: two classes and regression, several
_FEW = 40  # rows that the gap is measured on
_FAR = (1.1, 2.0, 10.0)  # distances from the mean at which outputs must be finite
#: What may differ between calls that go on with each other.
_FREE = ("checkpoint", "checkpoint_every", "max_time", "random_state", "verbose")
_COSTS = 0.01  # of accuracy, or of the loss in regression, that a weight may take


def on_network(
    front: Any, approach: Approach, plan: Plan, rows: Points, groups: Any, seed: int, keeper: Any
) -> OnModule:
    """The training of the module of an estimator, with the rows that it keeps back for itself."""
    training, shards = plan, plan.shards
    if shards is not None:
        _check_shared(front)
    if front.early_stopping:
        kept, held = keep_back(front, rows, front.validation_fraction, seed)
        training = _on(front, approach, plan, kept, groups, seed)
        points = _points(held) if shards is None else _shared_points(front, held).points
        training = replace(training, held_out=points)
    weight = front.certified
    child = plan.child
    if isinstance(weight, str):
        weight = _chosen(front, approach, plan, rows, groups, seed)
    training = replace(training, certified=float(weight), keeper=keeper)
    model = build_model(front, plan.n_outputs, child)
    if shards is not None:
        if is_linear(model):
            raise rows[0].refused("a network without hidden layers")
        shards.alike(model)
    if isinstance(model, ModuleModel):
        _check_rows(model, _some(plan, rows[0]))
    layers = resting(model)
    if layers:
        warnings.warn(
            f"{type(front).__name__}: {' and '.join(layers)} of model rest: it runs in evaluation "
            "mode in training too, without dropout and with the statistics that batch norms come "
            "with, so that a worst case depends on its row alone. Leave them out, use alpha or "
            "LayerNorm, or return a trained module",
            UserWarning,
            stacklevel=DEPTH + 2,
        )
    return OnModule(approach, plan, model, training)


def shared(
    front: Any, plan: Plan, approach: Approach, rows: Points, seed: int
) -> tuple[Plan, Any, str] | None:
    """`BaseDRO._placed` of rows that lie on several ranks; None where none are, or cannot be."""
    x, y, weight = rows
    whole = x.shared and isinstance(front.reference, str) and front.reference == "empirical"
    if not (whole and approach.shares(plan)):
        return None
    points = _shared_points(front, rows)
    inner, chosen = front._inner(plan.ambiguity, x, y, False)
    plan = replace(
        plan,
        reference=Joint(Empirical()).fit(np.zeros((1, 1)), np.zeros(1)),  # of atoms, below
        inner=inner,
        generator=torch.Generator().manual_seed(seed),
        n_draws=len(points),
        atoms=points.points,
        shards=points,
    )
    return plan, x.kept(y, weight, None), chosen


def _shared_points(front: Any, rows: Points) -> SharedPoints:
    """Rows of several ranks as the training of networks takes them."""
    return SharedPoints(*rows, front._classification, f"model={shown(front.model)}")


def _check_shared(front: Any) -> None:
    """Raise for what fits on several ranks do without."""
    for name, wrong, remedy in (
        ("certified", isinstance(front.certified, str), "a number"),
        ("checkpoint", front.checkpoint is not None, "None, and go on with warm_start=True"),
        ("n_draws", front.n_draws is not None, "None: all rows are used"),
    ):
        if wrong:
            raise UnsupportedError(
                f"{name}={shown(getattr(front, name))} is not for rows that lie on several ranks: "
                f"set it to {remedy}, or fit on one process"
            )


def checkpoint_of(front: Any, rows: Points, groups: Any, seed: int) -> tuple[Any, int]:
    """Where the training of an estimator is kept, None: nowhere; and the seed that it began with.

    Without a ``random_state`` that is the one of the call that began it.
    """
    if front.model == "linear":
        warnings.warn(
            f"{type(front).__name__}: checkpoint is for networks: a linear model is solved to a "
            "proven gap in a few passes, and no file is written. Leave it at None",
            UserWarning,
            stacklevel=DEPTH + 2,
        )
        return None, seed
    if getattr(rows[0], "shared", False):
        _check_shared(front)
    from drojko._driver.checkpoints import Checkpoint  # no linear fit needs it

    own = {name: v for name, v in front.get_params(deep=False).items() if name not in _FREE}
    known = front.random_state is not None
    own |= {"random_state": seed} if known else {}
    labels = {"classes": front.classes_} if front._classification else {}
    warm = front.warm_start and front.__sklearn_is_fitted__()
    start = (front.parameters_, front.certificate_ and front.certificate_.penalty) if warm else None
    named = dict(zip(("X", "y", "sample_weight"), rows, strict=True)) | labels
    named |= {"groups": groups, "model to start from": start}
    keeper = Checkpoint(front.checkpoint, front.checkpoint_every, **own, **named)
    keeper.seed = seed if keeper.seed is None else keeper.seed
    return keeper, keeper.seed


def keep_back(front: Any, rows: Points, share: float, seed: int) -> tuple[Points, Points]:
    """Rows to train on and rows held out: this share of each class, one at least, or of all."""
    x, y, weight = rows
    draw = np.random.RandomState(seed)
    labels = y if front._classification else np.zeros(len(y), dtype=int)
    held = np.zeros(len(y), dtype=bool)
    for label in np.unique(labels):
        of = np.flatnonzero((labels == label) & (weight > 0))
        count = max(1, round(share * len(of)))
        if count >= len(of):
            what = f"class {label}" if front._classification else "the data"
            raise InvalidDataError(
                f"{what} has {len(of)} rows, too few to hold out {share:g} of them: set "
                "early_stopping=False and a number for certified, or give more rows"
            )
        held[draw.permutation(of)[:count]] = True
    return tuple((x[m], y[m], weight[m]) for m in (~held, held))  # type: ignore[return-value]


def warn_of_outputs(front: Any, plan: Plan, model: Any, X: np.ndarray) -> None:
    """Warn where a module of the user's gives no logits, or no numbers away from the data."""
    if not isinstance(model, ModuleModel):
        return
    x, name = _some(plan, X), type(front).__name__
    if not len(x):
        return
    if (
        front._classification
        and plan.loss.structured
        and looks_like_probabilities(model.answers, x)
    ):
        said = f"{name}: all outputs of model lie in [0, 1], {NO_LOGITS}"
        warnings.warn(said, UserWarning, stacklevel=DEPTH + 2)
    if not plan.ambiguity.moves:
        return
    with torch.no_grad():
        middle = x.mean(0)
        lost = [far for far in _FAR if not torch.isfinite(model(middle + far * (x - middle))).all()]
    if lost:
        warnings.warn(
            f"{name}: model returns NaN or infinity at {lost[0]:g} times the distance of rows from "
            "their mean: worst cases were looked for only where it is finite. Make forward() "
            "finite everywhere (clamp what goes into logarithms and roots), or give the set bounds",
            UserWarning,
            stacklevel=DEPTH + 2,
        )


def _some(plan: Plan, X: np.ndarray) -> Tensor:
    some = X[:1_000] if plan.shards is None else plan.shards.points[0][:1_000]
    return torch.as_tensor(np.array(some), dtype=plan.dtype, device=plan.device)


def _check_rows(model: TabularModel, x: Tensor) -> None:
    """Raise where a module is not finite on the rows themselves."""
    if not len(x):
        return
    with torch.no_grad():
        finite = torch.isfinite(model(x)).reshape(len(x), -1).all(1)
    if not bool(finite.all()):
        raise InvalidDataError(
            f"the module that model() returned gives NaN or infinity on {int((~finite).sum())} of "
            f"the first {len(x)} rows, the first of them row {int((~finite).nonzero()[0])}: make "
            "forward() finite there (clamp what goes into logarithms and roots), or scale X"
        )


def _on(front: Any, approach: Approach, plan: Plan, rows: Points, groups: Any, seed: int) -> Plan:
    """The plan on some of the rows: their reference and atoms."""
    part, _, _ = front._placed(plan, approach, rows, groups, seed)
    names = ("reference", "atoms", "groups", "n_draws", "shards")
    own = {name: getattr(part, name) for name in names}
    return replace(plan, **own)


def _points(rows: Points) -> Points:
    x, y, weight = rows
    made = (torch.as_tensor(np.array(x)), torch.as_tensor(np.array(y)))
    return (*made, torch.as_tensor(weight / weight.sum(), dtype=torch.float64))


def _chosen(
    front: Any, approach: Approach, plan: Plan, rows: Points, groups: Any, seed: int
) -> float:
    """The smallest weight at which bounds are tight, else that of the tightest; none that costs
    more than a little on rows held out.
    """
    splits = [
        keep_back(front, rows, _SHARE, seed + k)
        for k in range(_SPLITS if len(rows[0]) < _MANY else 1)
    ]
    trials = (1 + len(_WEIGHTS)) * len(splits)
    left = plan.limits.time_left
    each = None if left is None else 0.5 * left / trials
    parts = [
        replace(
            _on(front, approach, plan, kept, groups, seed),
            callback=None,
            max_time=each,
            training_share=1.0,
        )
        for kept, _ in splits
    ]

    def tried(weight: float) -> tuple[float, float]:
        """Mean score on the rows held out, and the gap on some of the others."""
        found, gap = [], math.nan
        for part, (kept, held) in zip(parts, splits, strict=True):
            generator = torch.Generator().manual_seed(seed)
            model = build_model(front, plan.n_outputs, generator)
            own = replace(part, certified=weight, generator=generator, began=time.perf_counter())
            result = approach.train(own, model, None)
            if result.status == Status.INTERRUPTED:
                raise KeyboardInterrupt(result.message)
            found.append(_score(plan, model, held, front._classification))
            if math.isnan(gap):
                gap = _gap(approach, own, model, kept, seed)
        return float(np.mean(found)), gap

    unit, (nothing, least) = _unit(plan, rows), tried(0.0)
    best, allowed = 0.0, nothing + (_COSTS if front._classification else _COSTS * abs(nothing))
    tight = _TIGHT[plan.n_labels > 2]
    for share in _WEIGHTS:
        if least <= tight:
            break
        score, gap = tried(unit * share)
        if score > allowed:
            break
        # Of several classes a flat network has a looser bound again: more of them compete.
        if gap < least:
            best, least = unit * share, gap
    return best


def _gap(approach: Approach, plan: Plan, model: TabularModel, rows: Points, seed: int) -> float:
    """Relative gap of a thorough certificate on some rows; infinite where nothing is proven.

    A fast one ends wherever a gap is small enough, and does not tell small ones apart.
    """
    few = np.random.RandomState(seed).permutation(np.flatnonzero(rows[2] > 0))[:_FEW]
    x, y, weight = _points(tuple(part[few] for part in rows))  # type: ignore[arg-type]
    points = x.to(plan.device, plan.dtype), y.to(plan.device), weight.to(plan.device)
    own = replace(plan, effort="thorough", began=time.perf_counter())
    generator = torch.Generator().manual_seed(seed)
    try:
        found = approach.certify(own, model, points, generator)
    except UnboundedRiskError:
        return math.inf
    return math.inf if found.proof == "local-estimate" else found.relative_gap


def _unit(plan: Plan, rows: Points) -> float:
    """What makes weights free of units: those of the loss over outputs, times those of X."""
    x, y, weight = (np.asarray(part, dtype=np.float64) for part in rows)
    weight = weight / weight.sum()
    spread = float(np.sqrt((weight @ (x - weight @ x) ** 2).mean())) or 1.0
    if plan.n_labels:
        return spread * 2.0 / plan.n_labels
    middle = weight @ y
    loss = plan.loss.value(torch.full((len(y),), middle), torch.as_tensor(y))
    size = float(np.sqrt(weight @ (y - middle) ** 2)) or 1.0
    return spread * float(loss @ torch.as_tensor(weight)) / size


def _score(plan: Plan, model: TabularModel, rows: Points, classification: bool) -> float:
    """Share of wrong predictions, or the mean loss."""
    x, y, weight = _points(rows)
    with torch.no_grad():
        f = model(x.to(plan.device, plan.dtype)).cpu().double()
    if not classification:
        return float(plan.loss.value(f, y.double()) @ weight)
    found = (f > 0).long() if f.ndim == 1 else f.argmax(1)
    return float((found != y).double() @ weight)
