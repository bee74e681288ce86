"""Gaussian reference, linear and quadratic losses: worst cases against their closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fixtures import generator
from harness import Check, Context, clock, numbers
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import Tensor, nn

from drojko.ambiguity import KL, ChiSquare, DensityRatioSet, GroundCost
from drojko.flows import ICNNScheme
from drojko.flows.particles import draw_particles
from drojko.inner import ICNNJKO, Coordinates, Objective
from drojko.inner.reweighting.density_flow import DensityFlow
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.losses import Loss
from drojko.measures import ClassConditional, Gaussian
from drojko.models import ModuleModel

TITLE = "Gaussian reference: worst cases against closed forms"
ABOUT = """
Penalty form, fixed loss x'Ax/2 + b'x, reference N(m, S); exact value, mean and covariance of the
worst case by formulas (W2: quadratic and linear; KL: the tilted Gaussian; chi-square, linear loss:
the one-dimensional dual, moments by quadrature). `value error` is relative to the exact value,
`gain error` to what the worst case adds to the nominal risk; `mean error` is in units of the root
of the trace of the exact covariance, `covariance error` in Frobenius norm relative to the exact
one. "tilting": 20000 weighted draws of the reference (`ReweightedWorstCase`), its default, and ten
times as many: its errors are those of sampling. "flow": the learned map alone (`DensityFlow`),
"flow, corrected": its draws with importance weights. "ICNNJKO": W2 maps with proximal corrections,
"ICNN map alone": without. `ess` is the effective sample size as a share.
"""
COLUMNS = (
    "value error", "gain error", "mean error", "covariance error", "ess", "seconds", "target",
)  # fmt: skip
VALUE, MOMENTS = 0.005, 0.02
TARGET = f"value error <= {VALUE}, mean and covariance error <= {MOMENTS}"


@dataclass(frozen=True)
class Exact:
    """A problem with its worst case in closed form."""

    mean: np.ndarray
    covariance: np.ndarray
    a: np.ndarray
    b: np.ndarray
    penalty: float
    nominal: float = math.nan
    value: float = math.nan
    shift: float = math.nan
    worst_mean: np.ndarray | None = None
    worst_covariance: np.ndarray | None = None

    def loss(self, x: Tensor) -> Tensor:
        """x'Ax/2 + b'x, shape (n,)."""
        a, b = torch.from_numpy(self.a), torch.from_numpy(self.b)
        return 0.5 * ((x @ a) * x).sum(1) + x @ b

    @property
    def reference(self) -> Gaussian:
        """N(m, S)."""
        return Gaussian(self.mean, self.covariance)


def cases(smoke: bool):
    for d in (2,) if smoke else (2, 10, 30):
        for kind in ("quadratic", "linear"):
            yield f"W2, {kind}, d = {d}", _transport(d, kind)
            yield f"KL, {kind}, d = {d}", _ratio(d, kind, KL)
        yield f"chi-square, linear, d = {d}", _ratio(d, "linear", ChiSquare)


def _problem(d: int, kind: str, seed: int) -> Exact:
    rng = np.random.default_rng(seed + d)
    root = rng.normal(size=(d, d)) / math.sqrt(d)
    covariance, mean = root @ root.T + 0.5 * np.eye(d), 0.5 * rng.normal(size=d)
    a = rng.normal(size=(d, d))
    a = (a + a.T) / np.linalg.norm(a + a.T, 2)
    b = rng.normal(size=d) / math.sqrt(d)
    if kind == "linear":
        a = np.zeros((d, d))
        b = b * math.copysign(1.0, float(b @ mean))  # a value away from zero
    nominal = 0.5 * np.trace(a @ covariance) + 0.5 * mean @ a @ mean + b @ mean
    return Exact(mean, covariance, a, b, 1.0, float(nominal))


# Closed forms -----------------------------------------------------------------------------------


def _w2(p: Exact) -> Exact:
    penalty, d = 1.5, len(p.mean)  # twice 1.5 exceeds the largest eigenvalue of A, which is 1
    matrix = np.linalg.inv(2 * penalty * np.eye(d) - p.a)
    h = 2 * penalty * p.mean + p.b
    value = 0.5 * h @ matrix @ h + 2 * penalty**2 * np.trace(matrix @ p.covariance)
    value -= penalty * (p.mean @ p.mean + np.trace(p.covariance))
    stretch = 2 * penalty * matrix
    return replace(
        p,
        penalty=penalty,
        value=float(value),
        worst_mean=matrix @ h,
        worst_covariance=stretch @ p.covariance @ stretch,
    )


def _kl(p: Exact) -> Exact:
    penalty = 2.0 * float(np.linalg.eigvalsh(p.covariance)[-1])
    precision = np.linalg.inv(p.covariance)
    tilted = np.linalg.inv(precision - p.a / penalty)
    g = precision @ p.mean + p.b / penalty
    _, log_det = np.linalg.slogdet(np.eye(len(p.mean)) - p.covariance @ p.a / penalty)
    value = -0.5 * log_det + 0.5 * g @ tilted @ g - 0.5 * p.mean @ precision @ p.mean
    value = float(penalty * value)
    return replace(
        p,
        penalty=penalty,
        value=value,
        shift=value,
        worst_mean=tilted @ g,
        worst_covariance=tilted,
    )


def _chi_square(p: Exact) -> Exact:
    mu, s = float(p.b @ p.mean), math.sqrt(p.b @ p.covariance @ p.b)
    penalty = 1.5 * s

    def dual(c):
        u = (mu - c) / s
        second = s**2 * ((u * u + 1) * norm.cdf(u) + u * norm.pdf(u))
        return c + penalty + second / (4 * penalty)

    bounds = (mu - 10 * s - 2 * penalty, mu + s)
    found = minimize_scalar(dual, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    grid = np.linspace(-12, 12, 200_001)
    mass = norm.pdf(grid) * np.maximum(mu + s * grid - found.x, 0)
    mass /= mass.sum()
    shift = float(mass @ grid)
    narrow = float(mass @ grid**2) - shift**2 - 1.0
    direction = p.covariance @ p.b / s
    return replace(
        p,
        penalty=penalty,
        value=float(found.fun),
        shift=float(found.x) + 2 * penalty,
        worst_mean=p.mean + shift * direction,
        worst_covariance=p.covariance + narrow * np.outer(direction, direction),
    )


def _row(p: Exact, method: str, value: float, moments: Any, seconds: float, **more: Any) -> dict:
    mean, covariance = (np.asarray(m) for m in moments)
    scale = math.sqrt(np.trace(p.worst_covariance))
    row = {
        "method": method,
        "penalty": p.penalty,
        "exact value": p.value,
        "value": value,
        "value error": abs(value - p.value) / abs(p.value),
        "gain error": abs(value - p.value) / (p.value - p.nominal),
        "mean error": float(np.linalg.norm(mean - p.worst_mean)) / scale,
        "covariance error": float(
            np.linalg.norm(covariance - p.worst_covariance) / np.linalg.norm(p.worst_covariance)
        ),
        "seconds": seconds,
        "target": TARGET,
        **more,
    }
    errors = (row["mean error"], row["covariance error"])
    row["met"] = row["value error"] <= VALUE and max(errors) <= MOMENTS
    return row


# Ours -------------------------------------------------------------------------------------------


def _ratio(d: int, kind: str, family: type[DensityRatioSet]):
    def case(context: Context) -> Iterator[dict]:
        p = _problem(d, kind, context.seed)
        p = _kl(p) if family is KL else _chi_square(p)
        ambiguity = family(penalty=p.penalty)
        labelled = ClassConditional(measures=[p.reference])
        for count, name in ((20_000, "tilting"), (200_000, "tilting, 200000 draws")):
            with clock() as taken:
                worst = ReweightedWorstCase(
                    ambiguity,
                    p.penalty,
                    p.shift,
                    lambda x, y: p.loss(x),
                    labelled,
                    np.zeros(1, dtype=int),
                    n_pool=count,
                    seed=context.seed + 1,
                )
                pool = worst.pool
            dual = ambiguity.dual(pool.losses, pool.w)
            mass, x = pool.mass.numpy(), pool.x.numpy()
            mean = mass @ x
            moments = mean, (mass[:, None] * (x - mean)).T @ (x - mean)
            size = worst.effective_sample_size
            yield _row(p, name, dual.value, moments, taken.seconds, ess=size)
        size = 2000 if context.smoke else 20_000
        flow = DensityFlow(ICNNScheme(n_particles=size, iterations=40 if context.smoke else 200))
        with clock() as taken:
            found = flow.fit(ambiguity, p.penalty, p.shift, p.loss, p.reference, context.seed + 2)
        more = {"ess": found.effective_sample_size}
        yield _row(p, "flow", found.value, found.moments(), taken.seconds, **more)
        corrected = found.moments(corrected=True)
        yield _row(p, "flow, corrected", found.corrected_value, corrected, taken.seconds, **more)

    return case


class _Given(Loss):
    """The loss of a model that returns the loss."""

    name, task, lipschitz, curvature, growth = "given", "regression", 1.0, 0.0, math.inf

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return f

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(f)


class _Loss(nn.Module):
    def __init__(self, problem: Exact):
        super().__init__()
        self.problem = problem

    def forward(self, x: Tensor) -> Tensor:
        return self.problem.loss(x)


def _transport(d: int, kind: str):
    def case(context: Context) -> Iterator[dict]:
        p = _w2(_problem(d, kind, context.seed))
        learn = draw_particles(p.reference, 1000, generator(context.seed + 1))
        held = draw_particles(p.reference, 2000, generator(context.seed + 2))
        coordinates = Coordinates.build(GroundCost(np.ones(d)), learn.x, None)
        objective = Objective(ModuleModel(_Loss(p), 1), _Given(), coordinates, p.penalty)
        batches = [objective.batch(q.x, torch.zeros(len(q.x)).double()) for q in (learn, held)]
        settings = ICNNJKO(steps=20) if context.smoke else ICNNJKO()

        def row(method: str, adversary: Any, seconds: float) -> dict:
            with clock() as solving:
                moved = adversary.solve(batches[1])
            image = objective.decode(batches[1], moved.q)
            value = float(held.w @ objective.value(batches[1], moved.q))
            found = replace(held, x=image).mean_and_covariance()
            return _row(p, method, value, found, seconds + solving.seconds)

        with clock() as taken:
            adversary = settings.fit(objective, batches[0], generator(context.seed + 3))
        yield row("ICNNJKO", adversary, taken.seconds)
        with clock() as taken:
            learned = settings.learn_map(objective, batches[0], generator(context.seed + 3), 0)
        alone = replace(adversary, candidates=(learned,), screening=0, corrections=0)
        yield row("ICNN map alone", alone, taken.seconds) | {"target": "", "met": None}

    return case


def summary(rows: list[dict]) -> list[Check]:
    def check(words: str, kind: str, method: str) -> Check:
        part = [r for r in rows if kind in r["case"] and r["method"] == method]
        worst = [
            max(numbers(part, column), default=math.nan)
            for column in ("value error", "mean error", "covariance error")
        ]
        met = bool(part) and all(r["met"] for r in part)
        return Check(f"{words}: {TARGET}", ", ".join(f"{w:.2g}" for w in worst), met)

    return [
        check("W2, corrected maps", "W2", "ICNNJKO"),
        check("KL, tilting", "KL", "tilting"),
        check("KL, tilting with 200000 draws", "KL", "tilting, 200000 draws"),
        check("KL, flow", "KL", "flow"),
        check("chi-square, tilting", "chi-square", "tilting"),
        check("chi-square, flow", "chi-square", "flow"),
        check("chi-square, corrected flow", "chi-square", "flow, corrected"),
    ]
