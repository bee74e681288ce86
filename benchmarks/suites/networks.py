"""Certificates of perceptrons: how far apart both sides are, and what that costs."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from harness import Check, Context, clock, numbers, script
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier
from drojko.ambiguity import GroundCost, Wasserstein
from drojko.certificates import certify
from drojko.inner import Coordinates, Objective, Pointwise
from drojko.losses import get_loss
from drojko.models import MLP, Learner

TITLE = "Proven bounds of perceptrons"
ABOUT = """
Standardised data of at most 300 rows, empirical reference. "plain": 300 full-batch steps of Adam
with decay; "robust": `DROClassifier(Wasserstein(0.1), model="mlp")`. `attained` is the lower side
of the certificate, `upper` the proven one, `gap` (upper - attained) / attained: part of it is what
the search for the worst case misses. `seconds` are those of the whole certificate, CPU.
"convolutions": two of 3 x 3 with ReLU and average pooling on the 8 x 8 digits, 60 passes of
`DROClassifier` at the radius itself. "memory": peak of resident memory (MiB) of a whole fit, two
passes and certificate, above what the process held with the data; hidden layer of 256 units.
"""
COLUMNS = (
    "data", "widths", "activation", "training", "radius", "effort", "attained", "upper", "gap",
    "proof", "seconds", "seconds of training", "memory", "target",
)  # fmt: skip
LOADERS = {
    "moons": lambda: datasets.make_moons(200, noise=0.15, random_state=0),
    "wine": lambda: datasets.load_wine(return_X_y=True),
    "breast cancer": lambda: datasets.load_breast_cancer(return_X_y=True),
    "digits": lambda: datasets.load_digits(return_X_y=True),
}


MEMORY = """
import json, resource, sys, threading, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, "benchmarks")
from harness import Memory
from drojko import DROClassifier
from drojko.ambiguity import Wasserstein
n, d, h, dtype, reference, seed = json.loads(sys.argv[1])
new = lambda: DROClassifier(
    Wasserstein(0.5), model="mlp", hidden_layer_sizes=(h,), max_iter=2, dtype=dtype,
    reference=reference, random_state=seed)
rng = np.random.default_rng(seed)
X = rng.standard_normal((n, d)).astype(dtype)
y = (X[:, :10].sum(1) + rng.standard_normal(n) > 0).astype(int)
new().fit(X[:100], y[:100])
memory = Memory()
memory.reset()
fitted = new().fit(X, y)
print(json.dumps([memory.peak(), fitted.certificate_.lower, fitted.certificate_.upper]))
"""


def cases(smoke: bool):
    if smoke:
        yield "moons 8, softplus, robust", _case("moons", (8,), "softplus", "robust", (0.1,))
        return
    for data in LOADERS:
        for widths in ((64,), (32, 32)):
            for training in ("robust", "plain"):
                name = f"{data} {'x'.join(map(str, widths))}, softplus, {training}"
                yield name, _case(data, widths, "softplus", training, (0.1, 0.3, 0.5))
    for activation in ("relu", "tanh", "silu"):
        name = f"breast cancer 32x32, {activation}, plain"
        yield name, _case("breast cancer", (32, 32), activation, "plain", (0.1, 0.3))
    yield "digits, convolutions", _convolutions
    for dtype in ("float32", "float64"):
        for reference in ("empirical", "kde"):
            yield f"memory, {dtype}, {reference}", _memory(dtype, reference)


def _data(name: str) -> tuple[np.ndarray, np.ndarray]:
    X, y = LOADERS[name]()
    X = StandardScaler().fit_transform(X)
    if len(X) > 300:
        rows = np.random.default_rng(0).permutation(len(X))[:300]
        X, y = X[rows], y[rows]
    return X, y


def _case(name: str, widths: tuple[int, ...], activation: str, training: str, radii: tuple):
    def case(context: Context) -> Iterator[dict]:
        X, y = _data(name)
        with clock() as taken:
            model = _trained(X, y, widths, activation, training, context.seed)
        x, labels = torch.tensor(X), torch.tensor(y).long()
        classes = max(2, model.n_outputs)
        loss = get_loss("logistic", n_classes=classes)
        coordinates = Coordinates.build(GroundCost(np.ones(X.shape[1])), x, model.first_layer())
        objective = Objective(model, loss, coordinates, 1.0)
        batch = objective.batch(x, labels)
        gen = torch.Generator().manual_seed(context.seed)
        adversary = Pointwise().fit(objective, batch, gen, n_labels=classes)
        weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
        for radius in radii:
            for effort in ("fast", "thorough"):
                with clock() as spent:
                    found = certify(
                        adversary, batch, weights, radius=radius, sampled=False, effort=effort
                    ).certificate
                gap = found.gap / found.lower
                goal = _goal(name, widths, activation, training, radius, effort)
                aim = {} if goal is None else {"target": f"gap <= {goal}", "met": gap <= goal}
                yield {
                    "data": name,
                    "widths": "x".join(map(str, widths)),
                    "activation": activation,
                    "training": training,
                    "radius": radius,
                    "effort": effort,
                    "method": f"{effort}, radius {radius:g}",
                    "attained": found.lower,
                    "upper": found.upper,
                    "gap": gap,
                    "proof": found.proof,
                    "seconds": spent.seconds,
                    "seconds of training": taken.seconds,
                    **aim,
                }

    return case


def _convolutions(context: Context) -> Iterator[dict]:
    X, y = datasets.load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(X))[:300]
    X, y = X[rows] / 16.0, y[rows]
    for radius in (0.1, 0.3):
        fit = DROClassifier(
            Wasserstein(radius), model=_digit_net, reference="empirical", max_iter=60,
            random_state=context.seed, effort="none",
        )  # fmt: skip
        with clock() as taken, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.fit(X, y)
        for effort in ("fast", "thorough"):
            with clock() as spent:
                found = fit.robust_certificate(X, y, effort=effort)
            gap = found.gap / found.lower
            yield {
                "data": "digits, convolutions", "widths": "8, 16 channels", "activation": "relu",
                "training": "robust", "radius": radius, "effort": effort,
                "method": f"{effort}, radius {radius:g}", "attained": found.lower,
                "upper": found.upper, "gap": gap, "proof": found.proof, "seconds": spent.seconds,
                "seconds of training": taken.seconds, "target": "proven",
                "met": found.proof == "linear-bounds",
            }  # fmt: skip


def _digit_net() -> torch.nn.Module:
    nn = torch.nn
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def _memory(dtype: str, reference: str):
    def case(context: Context) -> Iterator[dict]:
        given = json.dumps([20_000, 784, 256, dtype, reference, context.seed])
        peak, lower, upper = json.loads(script(MEMORY, given, timeout=3600).splitlines()[-1])
        yield {
            "data": "20,000 x 784", "widths": "256", "activation": "softplus", "training": dtype,
            "radius": 0.5, "effort": "fast", "method": reference, "attained": lower,
            "upper": upper, "memory": peak, "target": "memory <= 1024 MiB",
            "met": peak is not None and peak <= 1024.0,
        }  # fmt: skip

    return case


def _goal(
    name: str, widths: tuple, activation: str, training: str, radius: float, effort: str
) -> float | None:
    fast = effort == "fast"
    if name == "moons":
        return 0.05 if fast else 0.01
    if training == "plain":
        known = activation == "relu" and not fast
        return {0.1: 0.05, 0.3: 0.15}.get(radius) if known else None
    if name == "digits":
        return (0.4 if fast else 0.1) if radius <= 0.3 else None
    if len(widths) == 1:
        return 0.05 if fast else 0.02
    if radius <= 0.3:
        return 0.15 if fast else 0.02
    return 0.25 if fast else 0.05


def _trained(
    X: np.ndarray, y: np.ndarray, widths: tuple, activation: str, training: str, seed: int
) -> MLP:
    n_classes = len(np.unique(y))
    outputs = 1 if n_classes == 2 else n_classes
    gen = torch.Generator().manual_seed(seed)
    model = MLP(X.shape[1], outputs, hidden=widths, activation=activation, generator=gen)
    if training == "robust":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = DROClassifier(
                Wasserstein(0.1), model="mlp", hidden_layer_sizes=widths, activation=activation,
                reference="empirical", inner="pointwise", max_iter=25, random_state=seed,
            ).fit(X, y)  # fmt: skip
        model.load_state_dict(
            {name: torch.as_tensor(value) for name, value in fitted.parameters_.items()}
        )
        return model.requires_grad_(False)
    x, labels = torch.tensor(X), torch.tensor(y).long()
    loss = get_loss("logistic", n_classes=n_classes)
    learner = Learner(model)
    for _ in range(300):
        f, backward = model.linearise(x)
        learner.flat.mul_(1.0 - 1e-4)  # decoupled decay, rate times 0.01
        learner.step(backward(loss.gradient(f, labels) / len(x), True), 1e-2)
    return model.requires_grad_(False)


def summary(rows: list[dict]) -> list[Check]:
    def check(words: str, **where) -> Check:
        part = [r for r in rows if all(r.get(k) == v for k, v in where.items())]
        aimed = [r for r in part if r.get("target")]
        gaps = numbers(part, "gap")
        met = bool(aimed) and all(r["met"] for r in aimed)
        share = f"{sum(bool(r['met']) for r in aimed)} of {len(aimed)} targets"
        return Check(words, f"largest gap {max(gaps, default=math.nan):.3g}; {share}", met)

    peaks = numbers(rows, "memory")
    return [
        check("certified gaps, fast: targets of the rows", effort="fast"),
        check("certified gaps, thorough: targets of the rows", effort="thorough"),
        Check(
            "memory of a fit of 20,000 x 784 with 256 units at most 1 GiB above the data",
            ", ".join(f"{m:.0f}" for m in numbers(rows, "memory")) + " MiB",
            bool(peaks) and max(peaks) <= 1024.0,
        ),
    ]
