"""Densities of worst cases: of the learned map against the exact formula, and their total mass."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from fixtures import classification, fixed_mlp, gain, generator, top_curvature
from harness import Check, Context, clock, numbers
from sklearn.neighbors import KernelDensity

from drojko import DROClassifier, WorstCase
from drojko.ambiguity import GroundCost, Wasserstein
from drojko.inner import ICNNJKO, Coordinates, Objective, TransportedWorstCase, proximal_ascent
from drojko.losses import Loss, get_loss
from drojko.measures import Gaussian, Pushforward
from drojko.models import MLP
from drojko.transport import BrenierMap, TransportMap

TITLE = "Worst-case densities"
ABOUT = """
Part 1: standard Gaussian reference in d dimensions, one label, penalty 1.5 times the concavity
threshold L/2. The density of the learned map alone, `Pushforward(reference, BrenierMap)`, without
corrections, against the exact log p0(S(z)) + log det(I - hess/(2 penalty)), S(z) = z - grad/(2
penalty), in mean absolute nats on 1000 samples of the exact worst case that were not used in
learning. `no map` is the error of taking the reference itself, so that a target below it means
something; `inversion` is |S(z) - x|, the error of the exact maximiser. The network is a random one
with one hidden layer of 32. Part 2: the integral of `WorstCase.log_prob` in the plane by importance
sampling (20000 points: 90 % around worst-case samples, 10 % uniform in a box around them); of a
robustly trained network, and of a plainly trained one far below the threshold, where the map jumps
and its density has narrow ridges.
"""
COLUMNS = ("penalty", "error", "no map", "share", "inversion", "mass", "standard error")
COLUMNS += ("seconds", "target")
GOAL, MASS = 0.05, 0.01
POINTS, WIDTH, UNIFORM = 20_000, 0.04, 0.1


def cases(smoke: bool):
    if smoke:
        yield "logistic, d = 2", _case("logistic", 2)
        return
    for kind in ("logistic", "quadratic", "network"):
        for d in (2, 5, 10):
            yield f"{kind}, d = {d}", _case(kind, d)
    for reference in ("gaussian", "kde"):
        name = f"mass, moons, robust network, {reference} reference, penalty 5"
        yield name, _mass_case(reference, 5.0)
    for share in (12, 31):
        yield f"mass, moons, plain network, kde reference, L/{share}", _plain_case(1.0 / share)


def _case(kind: str, d: int):
    return lambda context: error(context, kind, d)


def _mass_case(reference: str, penalty: float):
    return lambda context: mass(context, reference, penalty)


def _plain_case(share: float):
    return lambda context: plain_mass(context, share)


def _model(kind: str, d: int, seed: int) -> tuple[MLP, Loss]:
    gen = generator(seed)
    if kind == "network":
        model = MLP(d, 1, hidden=(32,), generator=gen)
        model.weights[0].data.mul_(0.7)
        model.weights[1].data.mul_(6.0)
    else:
        model = MLP(d, 1, hidden=(), generator=gen)
        weight = model.weights[0].data
        weight.mul_(2.0 / weight.norm())
    return model.requires_grad_(False), get_loss("squared" if kind == "quadratic" else "logistic")


def error(context: Context, kind: str, d: int) -> Iterator[dict]:
    model, loss = _model(kind, d, context.seed + 1)
    reference = Gaussian(mean=np.zeros(d), covariance=np.eye(d))
    dtype = torch.float64 if kind == "quadratic" else torch.long
    learn = 500 if context.smoke else 4000

    def labels(n: int) -> torch.Tensor:
        return (
            torch.zeros(n, dtype=torch.float64)
            if kind == "quadratic"
            else torch.ones(n, dtype=dtype)
        )

    x = reference.sample(learn, generator(context.seed + 2))
    coordinates = Coordinates.build(GroundCost(np.ones(d)), x, None, reduce=False)
    objective = Objective(model, loss, coordinates, 1.0)
    batch = objective.batch(x, labels(learn))
    curvature = top_curvature(objective, batch, [s * batch.q0 for s in (0.3, 1.0, 2.0)])
    objective = objective.with_penalty(0.75 * curvature)

    fresh = reference.sample(1000, generator(context.seed + 3))
    test = objective.batch(fresh, labels(1000))
    q = proximal_ascent(objective, test, test.q0, 500).q
    z = objective.decode(test, q)
    source, exact = _exact(objective, reference, z, labels(1000))
    common = {
        "penalty": objective.penalty,
        "no map": float((reference.log_prob(z) - exact).abs().mean()),
        "inversion": float((source - fresh).norm(dim=1).max()),
    }
    options = {"ICNN map, defaults": (ICNNJKO(), None)}
    if context.smoke:
        options = {"ICNN map, 30 steps": (ICNNJKO(steps=30), None)}
    else:
        long = ICNNJKO(steps=1000, batch_size=256, tol=0.0)
        options["ICNN map, 1000 steps of 256 draws"] = (long, GOAL)
    for method, (settings, goal) in options.items():
        with clock() as taken:
            learned = settings.learn_map(objective, batch, generator(context.seed + 4), 0)
        brenier = learned.brenier
        scale = coordinates.scale  # the map acts on x / scale
        T = BrenierMap(brenier.potential, brenier.centre * scale, brenier.scale * scale)
        context_row = learned.condition.context(test)[:1]  # one label: the same for every sample
        found = Pushforward(reference, AtLabel(T, context_row)).log_prob(z)
        miss = float((found - exact).abs().mean())
        (image,) = learned.starts(objective, test)
        share = gain(objective, test, image) / gain(objective, test, q)
        row = {**common, "method": method, "error": miss, "share": share, "seconds": taken.seconds}
        if goal is not None:
            row |= {"target": f"error <= {goal} nats", "met": miss <= goal}
        yield row


class AtLabel(TransportMap):
    """A conditional map at one fixed context."""

    def __init__(self, inner: BrenierMap, context: torch.Tensor) -> None:
        self.inner, self.context = inner, context

    def map(self, x, context=None):
        return self.inner.map(x, self.context.expand(len(x), -1))

    def inverse(self, y, context=None):
        return self.inner.inverse(y, self.context.expand(len(y), -1))

    def log_abs_det_jacobian(self, x, context=None):
        return self.inner.log_abs_det_jacobian(x, self.context.expand(len(x), -1))


def _exact(objective: Objective, reference: Gaussian, z: torch.Tensor, y: torch.Tensor):
    """S(z) and log p0(S(z)) + log det DS(z)."""
    batch = objective.batch(z, y)
    scale, penalty = objective.coordinates.scale, objective.penalty
    slope = objective.with_penalty(0.0).value_and_gradient(batch, batch.q0)[1] / scale
    source = z - slope / (2.0 * penalty)
    hessian = objective.loss_hessian(batch, batch.q0) / scale**2
    eye = torch.eye(z.shape[1], dtype=z.dtype)
    sign, logdet = torch.linalg.slogdet(eye - hessian / (2.0 * penalty))
    if not bool((sign > 0).all()):
        raise ArithmeticError("not above the concavity threshold at the worst case")
    return source, reference.log_prob(source) + logdet


def mass(context: Context, reference: str, penalty: float) -> Iterator[dict]:
    X, y = classification("moons")
    classifier = DROClassifier(
        Wasserstein(penalty=penalty),
        model="mlp",
        hidden_layer_sizes=(16,),
        reference=reference,
        max_iter=40,
        random_state=context.seed,
    ).fit(X, y)
    yield from _masses(classifier.worst_case_, penalty)


def plain_mass(context: Context, share: float) -> Iterator[dict]:
    """A network that was not trained for it: far below the threshold, with jumps in the map."""
    fixed = fixed_mlp("moons", context.seed)
    objective, batch = fixed.problem(500, 1.0, context.seed + 10)
    penalty = share * top_curvature(objective, batch, [batch.q0])
    objective = objective.with_penalty(penalty)
    adversary = ICNNJKO().fit(objective, batch, generator(context.seed + 20), n_labels=2)
    risk = float(adversary.solve(batch).risk.mean())
    classes = np.array([0, 1])
    worst = TransportedWorstCase(
        adversary, fixed.reference, penalty, penalty, 0.0, risk, classes=classes
    )
    yield from _masses(worst, penalty)


def _masses(worst: WorstCase, penalty: float) -> Iterator[dict]:
    """Importance sampling: points drawn around worst-case samples, and uniformly in their box."""
    rng = np.random.default_rng(0)
    Z, labels = worst.sample(2 * POINTS, random_state=1)
    for label in (0, 1):
        centres = Z[labels == label]
        low, high = centres.min(0) - 1.0, centres.max(0) + 1.0
        around = rng.integers(len(centres), size=POINTS)
        points = centres[around] + WIDTH * rng.standard_normal((POINTS, 2))
        uniform = rng.random(POINTS) < UNIFORM
        points[uniform] = rng.uniform(low, high, (int(uniform.sum()), 2))
        kernels = KernelDensity(bandwidth=WIDTH, rtol=1e-6).fit(centres)
        inside = ((points >= low) & (points <= high)).all(1) / np.prod(high - low)
        proposal = UNIFORM * inside + (1 - UNIFORM) * np.exp(kernels.score_samples(points))
        with clock() as taken:
            log_prob = worst.log_prob(points, np.full(POINTS, label))
        ratio = np.exp(log_prob) / proposal
        total, error = float(ratio.mean()), float(ratio.std() / math.sqrt(POINTS))
        yield {
            "method": f"WorstCase.log_prob, label {label}",
            "penalty": penalty,
            "mass": total,
            "standard error": error,
            "seconds": taken.seconds,
            "target": f"|mass - 1| <= {MASS}",
            "met": abs(total - 1.0) <= MASS,
        }


def summary(rows: list[dict]) -> list[Check]:
    errors = numbers([r for r in rows if str(r.get("target")).startswith("error")], "error")
    masses = numbers(rows, "mass")
    off = max((abs(m - 1.0) for m in masses), default=math.nan)
    return [
        Check(
            "density of the learned map within 0.05 nats of the exact one (mean, every row)",
            f"largest {max(errors, default=math.nan):.4f} nats",
            bool(errors) and max(errors) <= GOAL,
        ),
        Check(
            f"worst-case densities integrate to 1 within {MASS}",
            f"largest deviation {off:.4f}",
            bool(masses) and off <= MASS,
        ),
    ]
