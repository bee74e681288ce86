"""Far below the concavity threshold: what searches from many starts find of what is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from fixtures import diabetes, fixed_mlp, generator, top_curvature, train_plain
from harness import Check, Context, clock, numbers
from sklearn import datasets
from torch import Tensor

from drojko.ambiguity.ground.cost import GroundCost
from drojko.inner import Batch, Coordinates, Objective, proximal_ascent
from drojko.inner.transport.search.rounds import Restarts, Search
from drojko.inner.transport.search.starts import Anchors
from drojko.losses import get_loss
from drojko.models import MLP

__all__ = ["KIND", "cases", "checks"]

KIND = "many basins"
HIDDEN, ROWS = (32, 32), 120
#: Least share of the best known gain: in one round, and in rounds until they find no more.
GOALS = {"fast": 0.995, "thorough": 0.9995}


def cases():
    for name, activation in (
        ("moons", "tanh"), ("moons", "relu"), ("breast cancer", "relu"),
        ("breast cancer", "softplus"), ("digits10", "tanh"),
    ):  # fmt: skip
        for part in (10, 100):
            yield f"{KIND}: {name} {activation}, L/{part}", _classes(name, activation, part)
    for loss in ("huber", "absolute"):
        for activation in ("relu", "tanh"):
            yield f"{KIND}: diabetes {loss} {activation}, L/30", _regression(loss, activation, 30)
    yield f"{KIND}: diabetes squared tanh, L/10", _regression("squared", "tanh", 10)
    for activation in ("softplus", "tanh"):
        case = _regression("huber", activation, 30, friedman)
        yield f"{KIND}: friedman huber {activation}, L/30", case


def _classes(name: str, activation: str, part: float):
    def case(context: Context) -> Iterator[dict]:
        fixed = fixed_mlp(name, context.seed, HIDDEN, activation)
        smooth = fixed_mlp(name, context.seed, HIDDEN) if activation == "relu" else fixed
        objective, batch = fixed.problem(ROWS, 1.0, context.seed + 31)
        twin = smooth.objective(batch.x, 1.0)
        penalty = top_curvature(twin, batch, [batch.q0]) / part
        yield from _rows(context, objective.with_penalty(penalty), batch, True)

    return case


def friedman() -> tuple[np.ndarray, np.ndarray]:
    """Ten standardised features, five of which the target depends on, not linearly."""
    X, y = datasets.make_friedman1(300, random_state=17)
    return (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()


def _regression(loss: str, activation: str, part: float, data: Callable = diabetes):
    def case(context: Context) -> Iterator[dict]:
        X, y = data()

        def network(kind: str) -> Objective:
            gen = generator(context.seed + 1)
            model = MLP(X.shape[1], 1, hidden=HIDDEN, activation=kind, generator=gen)
            train_plain(model, get_loss("squared", "regression"), X, y, seed=context.seed + 2)
            cost = GroundCost(np.ones(X.shape[1]))
            points = torch.as_tensor(X[:ROWS])
            coordinates = Coordinates.build(cost, points, model.first_layer())
            return Objective(model, get_loss(loss, "regression"), coordinates, 1.0)

        objective = network(activation)
        batch = objective.batch(torch.as_tensor(X[:ROWS]), torch.as_tensor(y[:ROWS]))
        squared = get_loss("squared", "regression")
        twin = network("tanh" if activation == "relu" else activation)
        twin = Objective(twin.model, squared, twin.coordinates, 1.0)
        penalty = top_curvature(twin, batch, [batch.q0]) / part
        yield from _rows(context, objective.with_penalty(penalty), batch, False)

    return case


def _plain(objective: Objective, batch: Batch, seed: int) -> Tensor:
    """Values of 21 starts times 200 plain steps: what an attack from outside would run."""
    first = proximal_ascent(objective, batch, batch.q0, 200)
    gen, best = generator(seed), first.value
    length = 2.0 * (first.q - batch.q0).norm(dim=1).max()
    for turn in range(21):
        q = batch.q0
        if turn:
            u = torch.randn(q.shape, generator=gen, dtype=q.dtype)
            share = torch.rand((len(q), 1), generator=gen, dtype=q.dtype)
            q = q + length * share * u / u.norm(dim=1, keepdim=True)
        for _ in range(201):
            value, gradient = objective.value_and_gradient(batch, q)
            best = torch.maximum(best, value)
            q = q + 0.2 / objective.strength * gradient
    return best


def _rows(context: Context, objective: Objective, batch: Batch, classes: bool) -> Iterator[dict]:
    base = objective.value(batch, batch.q0)
    anchors = Anchors(batch.x, batch.y, classes)
    values, seconds, missing = {}, {}, math.nan
    for effort in GOALS:
        for seed in range(2):
            with clock() as taken:
                found = Search(anchors, context.seed + seed, effort).run(objective, batch)
            values[effort, seed], seconds[effort] = found.value, taken.seconds
            if effort == "thorough":
                mass = torch.full_like(base, 1.0 / len(base))
                restarts = Restarts.of(found.evidence, found.value - base, mass)
                missing = math.nan if restarts is None else restarts.missing
    with clock() as taken:
        values["21 starts x 200", 0] = _plain(objective, batch, context.seed + 40)
    seconds["21 starts x 200"] = taken.seconds
    known = torch.stack(list(values.values())).amax(0)
    gain = float((known - base).mean())
    plain = float((values["21 starts x 200", 0] - base).mean()) / gain
    for method, spent in seconds.items():
        shares = [float((v - base).mean()) / gain for (m, _), v in values.items() if m == method]
        row = {"method": method, "penalty": objective.penalty, "exact gain": gain}
        row |= {"share": min(shares), "seconds": spent}
        if method in GOALS:
            goal = GOALS[method]
            row["target"] = f"share >= {goal} of the best known"
            row["met"] = min(shares) >= max(goal, plain - 1e-9)
        if method == "thorough":
            row["estimated missing"] = missing
        yield row


def checks(rows: list[dict]) -> list[Check]:
    """The least shares of both efforts, and that plain restarts never find more."""
    part = [r for r in rows if str(r["case"]).startswith(KIND)]
    found = []
    for effort, goal in GOALS.items():
        own = [r for r in part if r["method"] == effort]
        words = f"{effort} search: share >= {goal} of the best known, never below plain restarts"
        if not own:
            found.append(Check(words, "not run", None))
            continue
        least = min(numbers(own, "share"))
        found.append(Check(words, f"{least:.6f}", all(r["met"] for r in own)))
    return found
