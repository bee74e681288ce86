"""What is called: every public constructor, function and method, each with arguments that work.

Objects to call methods of, and values for arguments, stand here by name. What a new public name
needs beyond them, `missing` says.
"""

import copy
import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import drojko
from drojko import ambiguity as sets
from drojko import baselines, displays, flows, inner, losses, measures, nn, problems, transport
from drojko.flows import functionals, tasks

ROOMS = ["ambiguity", "auditing", "baselines", "displays", "estimators", "flows", "inner", "losses"]
ROOMS += ["flows.functionals", "flows.tasks", "measures", "minimax", "nn", "problems", "transport"]

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(6, 2)) - 1.0, RNG.normal(size=(6, 2)) + 1.0])
Y = np.array([0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1])
T = X @ [1.0, -1.0] + 0.1 * RNG.normal(size=12)
W = np.linspace(0.5, 1.5, 12)
GROUPS = np.array([0, 0, 1] * 4)
EYE = torch.eye(2, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)


def points() -> torch.Tensor:
    return torch.tensor(X)


def row() -> torch.Tensor:
    return torch.tensor(T)


def bowl(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * (z**2).sum(1)


def density(z: torch.Tensor) -> torch.Tensor:
    return -0.5 * (z**2).sum(1)


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def gaussian() -> Any:
    return measures.Gaussian([0.0, 0.0], np.eye(2))


def line() -> Any:
    return measures.Gaussian([0.0], [[1.0]])


def small() -> Any:
    return flows.ICNNScheme(hidden=(4,), n_particles=40, iterations=3, batch_size=8)


def icnn() -> Any:
    return transport.ICNN(2, hidden=(4, 4), generator=gen())


def decision(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return ((t - z) ** 2).sum(1)


def pieces(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([t, -t]), torch.zeros(2, dtype=t.dtype)


def separable(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([torch.ones_like(t), -torch.ones_like(t)]), torch.stack([-t, t])


def quadratic(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.eye(2, dtype=t.dtype), t, t.new_zeros(())


def by_repr(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """Results kept by what a set prints: sets have no hash."""
    kept: dict[str, Any] = {}

    def keeping(ambiguity: Any = None) -> Any:
        key = repr(ambiguity)
        if key not in kept:
            kept[key] = function(ambiguity)
        return kept[key]

    return keeping


@by_repr
def classifier(ambiguity: Any) -> Any:
    model = drojko.DROClassifier(ambiguity, reference="empirical", random_state=0)
    return model.fit(X, Y, groups=GROUPS)


@cache
def regressor() -> Any:
    return drojko.DRORegressor(reference="empirical").fit(X, T)


@cache
def report() -> Any:
    frame = pd.DataFrame(X, columns=["a", "b"])
    model = drojko.DROClassifier(reference="empirical").fit(frame, Y)
    return drojko.audit(model, frame, Y, sets.Wasserstein(0.2), radii=[0.1, 0.2], random_state=0)


@cache
def kl_report() -> Any:
    return drojko.audit(classifier(), X, Y, sets.KL(0.1), random_state=0)


@cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="fuzz"))
    drojko.save(classifier(), made / "model.drojko")
    pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": Y}).to_csv(made / "data.csv", index=False)
    return made


@cache
def flow() -> Any:
    functional = functionals.PotentialEnergy(bowl) + functionals.Entropy()
    return flows.JKOFlow(functional, small(), step_size=0.1).run(gaussian(), 1, random_state=0)


@by_repr
def decided(ambiguity: Any) -> Any:
    problem = problems.MinimaxProblem(decision, torch.zeros(2), X, ambiguity, inner="pointwise")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may not converge in five steps
        return problem.solve(max_iter=5, random_state=0)


@cache
def objective() -> Any:
    from drojko.models import MLP

    cost = sets.GroundCost(np.ones(2))
    places = inner.Coordinates.build(cost, points())
    model = MLP(2, 1, hidden=(4,), generator=gen())
    return inner.Objective(model, losses.get_loss("logistic"), places, 3.0)


def batch() -> Any:
    return objective().batch(points(), torch.tensor(Y))


#: Objects by the name of their class; several of one class have a word after it.
OBJECTS: dict[str, Callable[[], Any]] = {
    "RobustLoss": lambda: nn.RobustLoss(sets.KL(0.1)),
    "RobustLoss running": lambda: nn.RobustLoss(sets.KL(0.1), running=True),
    "Wasserstein": lambda: sets.Wasserstein(0.1),
    "Wasserstein order 1": lambda: sets.Wasserstein(0.1, order=1),
    "KL": lambda: sets.KL(0.1),
    "KL penalty": lambda: sets.KL(penalty=1.0),
    "ChiSquare": lambda: sets.ChiSquare(0.1),
    "CressieRead": lambda: sets.CressieRead(3.0, 0.1),
    "CressieRead half": lambda: sets.CressieRead(0.5, 0.1),
    "TotalVariation": lambda: sets.TotalVariation(0.1),
    "CVaR": lambda: sets.CVaR(0.5),
    "MMD": lambda: sets.MMD(radius=0.1, bandwidth=1.0),
    "Sinkhorn": lambda: sets.Sinkhorn(0.1, 0.1),
    "Group": lambda: sets.Group(0.1),
    "BoundGroup": lambda: sets.Group(0.1).on(None, W, GROUPS),
    "BoundMMD": lambda: sets.MMD(radius=0.1, bandwidth=1.0).on(X, W),
    "Reweighting": lambda: sets.KL(0.1).on(X, W),
    "GroundCost": lambda: sets.Wasserstein(0.1, bounds=(-9.0, 9.0)).validate(2),
    "Logistic": losses.Logistic,
    "Hinge": losses.Hinge,
    "Softmax": losses.Softmax,
    "CrammerSinger": losses.CrammerSinger,
    "Squared": losses.Squared,
    "Absolute": losses.Absolute,
    "Huber": losses.Huber,
    "Quantile": losses.Quantile,
    "CallableLoss": lambda: losses.CallableLoss(lambda f, y: (f - y) ** 2, "regression"),
    "Empirical": lambda: measures.Empirical(X, W),
    "Gaussian": gaussian,
    "KDE": lambda: measures.KDE().fit(X),
    "GaussianMixture": lambda: measures.GaussianMixture(
        means=X[:2], covariances=[np.eye(2), np.eye(2)]
    ),
    "FlowMeasure": lambda: measures.FlowMeasure(max_iter=2, transforms=1).fit(X),
    "Pushforward": lambda: measures.Pushforward(gaussian(), transport.AffineMap(2 * EYE, ZERO)),
    "ClassConditional": lambda: measures.ClassConditional(gaussian()).fit(X, Y),
    "Joint": lambda: measures.Joint().fit(X, T),
    "Grouped": lambda: measures.Grouped().fit(X, Y, groups=GROUPS),
    "ICNN": icnn,
    "ICNN context": lambda: transport.ICNN(2, hidden=(4,), context=1, generator=gen()),
    "AffineMap": lambda: transport.AffineMap(2 * EYE, ZERO),
    "BrenierMap": lambda: transport.BrenierMap(icnn()),
    "Composition": lambda: transport.Composition([transport.AffineMap(2 * EYE, ZERO)] * 2),
    "IdentityMap": transport.IdentityMap,
    "QuadraticEnvelope": lambda: transport.QuadraticEnvelope(points(), EYE, ZERO),
    "PotentialEnergy": lambda: functionals.PotentialEnergy(bowl),
    "PotentialEnergy gradient": lambda: functionals.PotentialEnergy(bowl, lambda z: z),
    "Entropy": functionals.Entropy,
    "KLDivergence": lambda: functionals.KLDivergence(density),
    "FDivergence": lambda: functionals.FDivergence(density),
    "InternalEnergy": lambda: functionals.InternalEnergy(2.0),
    "InteractionEnergy": lambda: functionals.InteractionEnergy(bowl),
    "MMDTo": lambda: functionals.MMDTo(measures.Empirical(X), 1.0),
    "WassersteinTo": lambda: functionals.WassersteinTo(measures.Empirical(X)),
    "DivergenceTo": lambda: functionals.DivergenceTo(X),
    "JKOFlow": lambda: flows.JKOFlow(
        functionals.PotentialEnergy(bowl) + functionals.Entropy(), small(), step_size=0.1
    ),
    "JKOFlow line": lambda: flows.JKOFlow(
        functionals.Entropy(), flows.LineScheme(n_particles=50), step_size=0.1
    ),
    "FlowResult": flow,
    "FlowStep": lambda: flow().measures[-1],
    "ImportanceMeasure": lambda: flows.ImportanceMeasure(gaussian(), density),
    "LogisticPosterior": lambda: tasks.LogisticPosterior(
        np.ones((5, 3)), np.zeros(5), True, np.array([0, 1]), flow()
    ),
    "Ball": lambda: problems.Ball(1.0),
    "Box": lambda: problems.Box(0.0, 1.0),
    "Nonnegative": problems.Nonnegative,
    "Simplex": problems.Simplex,
    "MaxAffine": lambda: problems.MaxAffine(pieces),
    "SeparableMaxAffine": lambda: problems.SeparableMaxAffine(separable),
    "Quadratic": lambda: problems.Quadratic(quadratic),
    "MinimaxProblem": lambda: problems.MinimaxProblem(
        decision, torch.zeros(2), X, sets.Wasserstein(penalty=3.0), inner="pointwise"
    ),
    "MinimaxProblem KL": lambda: problems.MinimaxProblem(
        decision, torch.zeros(2), X, sets.KL(0.1), convex=True
    ),
    "Solution": lambda: decided(_KL),
    "DecisionWorstCase": lambda: decided(_KL).worst_case,
    "DecisionWorstCase moved": lambda: decided(_W2).worst_case,
    "DROClassifier": classifier,
    "DRORegressor": regressor,
    "TransportedWorstCase": lambda: classifier().worst_case_,
    "ReweightedWorstCase": lambda: classifier(_KL).worst_case_,
    "Certificate": lambda: classifier().certificate_,
    "AuditReport": report,
    "AuditReport KL": kl_report,
    "ShiftReport": lambda: drojko.shift_report(*(np.concatenate([a, a]) for a in (X, Y, GROUPS))),
    "ConvexDROClassifier": lambda: baselines.ConvexDROClassifier(sets.KL(0.1)).fit(X, Y),
    "ConvexDRORegressor": lambda: baselines.ConvexDRORegressor(sets.KL(0.1)).fit(X, T),
    "WRMClassifier": lambda: baselines.WRMClassifier(max_iter=1, steps=1).fit(X, Y),
    "AdversarialClassifier": lambda: baselines.AdversarialClassifier(max_iter=1, steps=1).fit(X, Y),
    "ConvergenceDisplay": lambda: displays.ConvergenceDisplay(classifier().history_),
    "DisplacementDisplay": lambda: displays.DisplacementDisplay(
        classifier().worst_case_.displacement()
    ),
    "RobustnessCurveDisplay": lambda: displays.RobustnessCurveDisplay.from_report(report()),
    "WorstCaseDisplay": lambda: displays.WorstCaseDisplay.from_estimator(classifier()),
    "ICNNJKO": inner.ICNNJKO,
    "Pointwise": inner.Pointwise,
    "Importance": inner.Importance,
    "SemiDual": inner.SemiDual,
    "Objective": objective,
    "Batch": batch,
    "Coordinates": lambda: objective().coordinates,
    "Adversary": lambda: inner.Adversary(objective()),
}
_KL, _W2 = sets.KL(0.1), sets.Wasserstein(penalty=3.0)

#: Results: made by the package only.
MADE = {
    "AuditReport", "Decision", "ObservedShift", "ShiftReport",
    "RadiusSelection", "Dual", "GroupDual", "MMDDual", "Evidence", "FlowResult",
    "MapState", "SemiDualStep", "BallSolution", "ClassFlow", "Moved", "TransportedWorstCase",
    "ReweightedWorstCase", "SemiDualWorstCase", "Energy", "FilterResult", "FlowSample", "Solution",
    "LogisticPosterior", "Certificate", "BoundGroup", "BoundMMD", "Reweighting", "DensityFlow",
}  # fmt: skip
#: Methods of solvers among themselves: their arguments are the package's own.
INTERNAL = {
    "ICNNJKO.fit", "ICNNJKO.learn_map", "Pointwise.fit", "Importance.fit", "Importance.fit_ratio",
    "SemiDual.fit", "SemiDual.fit_ratio", "JKOFlow.init", "JKOFlow.step", "JKOFlow.terminate",
    "JKOFlow.finite", "JKOFlow.record", "JKOFlow.advice", "ICNN.linearise", "Adversary.upper",
    "Adversary.check_finite",
    "MaxAffine.bracket", "MaxAffine.curvature", "MaxAffine.maximise", "MaxAffine.slope",
    "MaxAffine.steepest", "MaxAffine.tail", "MaxAffine.applies", "BoundGroup.mixed",
    "GroundCost.weighted_square",
}  # fmt: skip
#: Those of them that all sets or estimators have.
PLUMBING = {"set_params", "get_params", "bind", "for_data", "dual_near"}
#: What solvers ask of losses, with arguments that they made themselves.
ASKED = {"value", "gradient", "second_derivative", "shift", "robust_value", "envelope"}

#: Arguments by "Class.method.name", "function.name" or name.
GOOD: dict[str, Callable[[], Any]] = {
    "X": X.copy,
    "X_old": X.copy,
    "X_new": X.copy,
    "batches": lambda: [(X.copy(), Y.copy())],
    "effort": lambda: "fast",
    "x": points,
    "y": Y.copy,
    "z": points,
    "Z": X.copy,
    "theta": T[:2].copy,
    "Group.y": Y.copy,
    "y_real": T.copy,
    "sample_weight": W.copy,
    "weights": W.copy,
    "weight": W.copy,
    "groups": GROUPS.copy,
    "group_columns.labels": GROUPS.copy,
    "losses": T.copy,
    "n": lambda: 3,
    "penalty": lambda: 1.0,
    "generator": gen,
    "random_state": lambda: 0,
    "radius": lambda: 0.1,
    "size": lambda: 0.2,
    "shift": lambda: 0.1,
    "unit": lambda: 1.0,
    "radii": lambda: [0.1, 0.2],
    "n_features": lambda: 2,
    "feature_names": lambda: ["a", "b"],
    "names": lambda: ["a", "b"],
    "method": lambda: "value",
    "solver": lambda: "it",
    "t": T.copy,
    "delta": lambda: 0.1,
    "ratio": lambda: np.ones(12),
    "mass": lambda: 0.1,
    "largest": lambda: 10.0,
    "smoothing": lambda: 0.1,
    "log_prob": lambda: density,
    "log_density": row,
    "context": lambda: None,
    "columns": lambda: [0],
    "f": row,
    "kappa": lambda: 2.0,
    "params": lambda: torch.tensor([0.5, 2.0], dtype=torch.float64),
    "path": lambda: folder() / "out.csv",
    "estimator": classifier,
    "report": report,
    "initial": gaussian,
    "n_steps": lambda: 1,
    "rows": lambda: torch.tensor([0, 1]),
    "potential": lambda: bowl,
    "kernel": lambda: bowl,
    "ambiguity": lambda: sets.KL(0.1),
    "slices.by": lambda: "a",
    "step_size": lambda: 0.1,
    "step_sizes": lambda: [0.1, 0.2],
    "target": gaussian,
    "scheme": small,
    "constraint": lambda: None,
    "batch": batch,
    "q": lambda: batch().q0,
    "objective": objective,
    "start": lambda: batch().q0,
    "steps": lambda: 3,
    "index": lambda: torch.tensor([0, 2]),
    "times": lambda: 2,
    "shares": lambda: [0.3, 0.7],
    "reference": X.copy,
    "bounded": lambda: False,
    "at": batch,
    "matrix": EYE.clone,
    "source_mean": ZERO.clone,
    "target_mean": ZERO.clone,
    "source_cov": EYE.clone,
    "target_cov": EYE.clone,
    "limit": lambda: 2.0,
    "demand": T.copy,
    "returns": X.copy,
    "A": X.copy,
    "b": T.copy,
    "loss": lambda: "logistic",
    "model": classifier,
    "callbacks": lambda: None,
    "gradient": lambda: batch().q0,
    "dual": lambda: sets.KL(0.1).dual(T),
    "encoder": lambda: ["a_b", "a_c"],
    "measure": lambda: measures.Empirical(X),
    "bandwidth": lambda: 1.0,
    "m": lambda: 2.0,
    "map": lambda: transport.AffineMap(2 * EYE, ZERO),
    "maps": lambda: [transport.IdentityMap()],
    "base": gaussian,
    "centres": points,
    "dim": lambda: 2,
    "fn": lambda: lambda f, y: (f - y) ** 2,
    "pieces": lambda: pieces,
    "coefficients": lambda: quadratic,
    "alpha": lambda: 0.5,
    "k": lambda: 3.0,
    "history": lambda: classifier().history_,
    "displacement": lambda: classifier().worst_case_.displacement(),
    "observations": lambda: [0.5],
    "log_prob_target": lambda: density,
    "log_target": lambda: density,
    "functional": functionals.Entropy,
    "reports": lambda: [report(), report()],
    "beside": batch,
    "cost": lambda: sets.GroundCost(np.ones(2)),
    "scale": lambda: 1.0,
    "labelled": lambda: classifier().worst_case_,
    "corrected": lambda: False,
    "adversary": lambda: inner.Adversary(objective()),
    "q0": lambda: batch().q0,
    "Batch.weights": lambda: torch.full((12,), 1 / 12),
    "potential_icnn": icnn,
    "before": lambda: None,
    "set_affine.potential": icnn,
    "set_affine.shift": ZERO.clone,
    "AffineMap.shift": ZERO.clone,
    "BrenierMap.potential": icnn,
    "QuadraticEnvelope.shift": ZERO.clone,
    "BrenierMap.inverse.y": points,
    "AffineMap.inverse.y": points,
    "Composition.inverse.y": points,
    "IdentityMap.inverse.y": points,
    "ICNN context.context": lambda: torch.ones(12, 1, dtype=torch.float64),
    "Joint.fit.y": T.copy,
    "Joint.log_prob.y": T.copy,
    "DRORegressor.fit.y": T.copy,
    "DRORegressor.score.y": T.copy,
    "DRORegressor.robust_score.y": T.copy,
    "DRORegressor.robust_certificate.y": T.copy,
    "ConvexDRORegressor.fit.y": T.copy,
    "ConvexDRORegressor.score.y": T.copy,
    "JKOFlow line.run.initial": line,
    "filter_diffusion.times": lambda: [0.1],
    "filter_diffusion.initial": line,
    "filter_diffusion.scheme": lambda: flows.LineScheme(n_particles=50),
    "filter_diffusion.potential": lambda: bowl,
    "solve_ball.weights": lambda: torch.full((12,), 1 / 12, dtype=torch.float64),
    "MinimaxProblem.loss": lambda: decision,
    "MinimaxProblem.params": lambda: torch.zeros(2),
    "MinimaxProblem.evaluate.params": lambda: torch.zeros(2),
    "MinimaxProblem KL.evaluate.params": lambda: torch.zeros(2),
    "MinimaxProblem.solve.max_iter": lambda: 3,
    "MinimaxProblem KL.solve.max_iter": lambda: 3,
    "GroundCost.cost.x": X.copy,
    "GroundCost.cost.z": X.copy,
    "GroundCost.project.z": X.copy,
    "GroundCost.lower": lambda: None,
    "GroundCost.upper": lambda: None,
    "Coordinates.lower": lambda: None,
    "Coordinates.upper": lambda: None,
    "RobustnessCurveDisplay.plot.upper": lambda: True,
    "GroundCost.weights": lambda: np.ones(2),
    "ClassConditional.measures": lambda: [gaussian(), gaussian()],
    "ClassConditional.weights": lambda: [0.5, 0.5],
    "Softmax.f": lambda: torch.tensor(np.c_[X, T]),
    "CrammerSinger.f": lambda: torch.tensor(np.c_[X, T]),
    "Logistic.y": lambda: torch.tensor(Y),
    "Hinge.y": lambda: torch.tensor(Y),
    "Softmax.y": lambda: torch.tensor(Y),
    "CrammerSinger.y": lambda: torch.tensor(Y),
    "Squared.y": row,
    "Absolute.y": row,
    "Huber.y": row,
    "Quantile.y": row,
    "CallableLoss.y": row,
    "BoundGroup.influence.dual": lambda: sets.Group(0.1).on(None, W, GROUPS).dual(T),
    "BoundMMD.influence.dual": lambda: sets.MMD(radius=0.1, bandwidth=1.0).on(X, W).dual(T),
    "functional_weights": lambda: torch.full((12,), 1 / 12, dtype=torch.float64),
    "SeparableMaxAffine.pieces": lambda: separable,
    "FlowStep.mass.n": lambda: 200,
    "FlowStep.corrected.n_calibration": lambda: 500,
    "ImportanceMeasure.evidence.n": lambda: 50,
    "Objective.loss": lambda: losses.get_loss("logistic"),
    "Objective.model": lambda: objective().model,
    "Batch.y": lambda: torch.tensor(Y),
    "batch.y": lambda: torch.tensor(Y),
    "Objective.batch.y": lambda: torch.tensor(Y),
    "coordinates": lambda: objective().coordinates,
    "RobustnessCurveDisplay.upper_bound": lambda: [0.5, 0.6],
    "RobustnessCurveDisplay.proof": lambda: ["dual", "dual"],
    "worst_case_risk": lambda: [0.4, 0.5],
    "nominal_risk": lambda: 0.3,
    "source": X.copy,
    "features": lambda: ("a", "b"),
    "lower": lambda: 0.1,
    "upper": lambda: 0.6,
    "transport_cost": lambda: 0.1,
    "Box.lower": lambda: 0.0,
    "Box.upper": lambda: 1.0,
    "Simplex.lower": lambda: 0.0,
    "Simplex.upper": lambda: 1.0,
    "newsvendor.lower": lambda: 0.0,
    "newsvendor.upper": lambda: 9.0,
    "WorstCaseDisplay.target": X.copy,
    "make_robust_scorer.ambiguity": lambda: sets.Wasserstein(0.1),
    "loss_function": lambda: None,
    "check.ambiguity": lambda: sets.Wasserstein(0.1),
    "Importance.check.ambiguity": lambda: sets.KL(0.1),
    "SemiDual.check.ambiguity": lambda: sets.KL(0.1),
    "bayesian_logistic.step_sizes": lambda: [0.1],
    "max_iter": lambda: 3,
    "filter_diffusion.step_size": lambda: 0.1,
    "audit.model": classifier,
    "audit.inner": lambda: "pointwise",
    "audit.radii": lambda: [0.1],
    "sample_density.n_samples": lambda: 50,
    "bayesian_logistic.n_draws": lambda: 20,
    "bayesian_logistic.scheme": lambda: flows.ICNNScheme(n_particles=40, iterations=0),
    "select_radius.cv": lambda: 2,
    "select_radius.radii": lambda: [0.1, 0.2],
    "newsvendor.holding": lambda: 1.0,
    "portfolio.tail": lambda: 0.5,
    "load.path": lambda: folder() / "model.drojko",
    "save.path": lambda: folder() / "out.drojko",
    "values": T.copy,
    "factor": lambda: 2.0,
    "ornstein_uhlenbeck.initial": gaussian,
    "hidden": lambda: (4,),
    "get_inner.inner": lambda: "icnn",
    "column": lambda: 1,
    "lipschitz": lambda: 1.0,
    "margin": lambda: 0.1,
    "hidden_layer_sizes": lambda: (4,),
    "LogisticPosterior.accuracy.y": Y.copy,
    "BoundMMD.weights": W.copy,
    "Certificate.penalty": lambda: 1.0,
    "DivergenceTo.target": X.copy,
    "task": lambda: None,
    "module": lambda: torch.nn.Linear(2, 1, dtype=torch.float64),
    "worst_inputs.loss": lambda: lambda f, y: (f.squeeze(1) - y) ** 2,
    "worst_inputs.x": points,
    "worst_inputs.y": row,
    "worst_inputs.ambiguity": lambda: sets.Wasserstein(0.1),
    "RobustLoss.forward.losses": row,
}
#: Optional arguments that are given as well where an object has them: the wrong ones matter.
ALSO = {"sample_weight", "weights", "groups", "generator", "random_state", "radius", "penalty_of"}
ALSO |= {"n_steps", "max_iter", "cv", "radii", "inner", "scheme", "n_samples", "n_draws", "weight"}
ALSO |= {"n_calibration", "smoothing", "holding", "tail", "lower", "upper", "hidden", "mean"}


@dataclass(frozen=True)
class Subject:
    """Something to call, and arguments with which it works."""

    name: str
    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    #: Arguments that may be replaced, the good ones left away among them.
    names: tuple[str, ...]


def rooms() -> list[Any]:
    return [drojko, *(import_module(f"drojko.{name}") for name in ROOMS)]


def public() -> dict[str, Any]:
    """Public classes and functions by name, without errors and modules."""
    found: dict[str, Any] = {}
    for room in rooms():
        for name in getattr(room, "__all__", ()):
            value = getattr(room, name)
            error = inspect.isclass(value) and issubclass(value, Exception | Warning)
            if callable(value) and not error:
                found[name] = value
    return found


def _good(*keys: str) -> Callable[[], Any] | None:
    return next((GOOD[key] for key in keys if key in GOOD), None)


def _subject(name: str, function: Any, owner: str = "", kind: str = "") -> Subject | None:
    """A subject from a signature; None where a required argument has no value."""
    parameters = inspect.signature(function).parameters.values()
    own = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    method, given = name.rpartition(".")[2], {}
    for key, parameter in own.items():
        value = _good(
            f"{name}.{key}", f"{name.rpartition('.')[0]}.{key}", f"{kind}.{method}.{key}",
            f"{owner}.{key}", f"{kind}.{key}", f"{method}.{key}", key,
        )  # fmt: skip
        if parameter.default is parameter.empty and value is None:
            return None
        if value is not None and (parameter.default is parameter.empty or key in ALSO):
            given[key] = value
    if (
        isinstance(getattr(function, "__self__", None), functionals.Functional)
        and "weights" in given
    ):
        given["weights"] = GOOD["functional_weights"]
    if {"radius", "penalty"} <= set(given):
        given.pop("penalty")
    return Subject(name, function, lambda: {k: v() for k, v in given.items()}, tuple(own))


def _methods(owner: str, thing: Any) -> Iterator[tuple[str, Any]]:
    kind = type(thing).__name__
    for name in dir(type(thing)):
        home = next((c for c in type(thing).__mro__ if name in vars(c)), object)
        if name.startswith("_") or not home.__module__.startswith("drojko"):
            continue
        skip = f"{kind}.{name}" in INTERNAL or name in PLUMBING
        skip |= home.__name__ == "Adversary" and name == "share_basins"
        skip |= isinstance(thing, losses.Loss) and name not in ASKED
        skip |= isinstance(thing, problems.StructuredLoss) or name.endswith("_request")
        static = inspect.getattr_static(type(thing), name)
        value = None if skip or isinstance(static, property) else getattr(thing, name, None)
        if callable(value):
            yield f"{owner}.{name}", value


def subjects() -> list[Subject | str]:
    """Every subject; the name alone of what lacks a value for an argument."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(_subjects())


def _subjects() -> Iterator[Subject | str]:
    for name, value in public().items():
        if inspect.isclass(value) and (inspect.isabstract(value) or name in MADE):
            continue
        yield _subject(name, value, name, name) or name
    for owner, make in OBJECTS.items():
        thing = make()
        if hasattr(thing, "fit_batches"):  # whose fits others must not see
            thing = copy.copy(thing)
        for name, method in _methods(owner, thing):
            yield _subject(name, method, owner, type(thing).__name__) or name
    yield from _whole()


def _whole() -> Iterator[Subject]:
    """Settings that are checked where they are used: set up, then used."""

    def both(name: str, function: Callable[..., Any], like: Any, **given: Any) -> Subject:
        own = tuple(inspect.signature(like).parameters) if like is not None else ()
        names = tuple(dict.fromkeys([*(n for n in own if n not in ("args", "kwargs")), *given]))
        return Subject(name, function, lambda: {k: v() for k, v in given.items()}, names)

    def used(kind: Any) -> Callable[..., Any]:
        def run(X: Any, **settings: Any) -> Any:
            made = kind(**settings)
            if kind in (sets.Wasserstein, sets.Sinkhorn):
                return made.validate(2, ["a", "b"])
            bound = made.on(X, W, GROUPS)
            return bound.dual(T)

        return run

    x = X.copy
    for kind in (sets.Wasserstein, sets.Sinkhorn, sets.KL, sets.ChiSquare, sets.TotalVariation):
        yield both(f"{kind.__name__} in use", used(kind), kind, radius=lambda: 0.1, X=x)
    yield both(
        "CressieRead in use",
        used(sets.CressieRead),
        sets.CressieRead,
        k=lambda: 3.0,
        radius=lambda: 0.1,
        X=x,
    )
    yield both("CVaR in use", used(sets.CVaR), sets.CVaR, alpha=lambda: 0.5, X=x)
    yield both("MMD in use", used(sets.MMD), sets.MMD, radius=lambda: 0.1, X=x)
    yield both("Group in use", used(sets.Group), sets.Group, radius=lambda: 0.1, X=x)

    def measured(kind: Any) -> Callable[..., Any]:
        def run(X: Any, sample_weight: Any, n: Any, **settings: Any) -> Any:
            made = kind(**settings).fit(X, sample_weight)
            return made.sample(n, gen()), made.points(n, gen())

        return run

    for kind in (measures.Gaussian, measures.KDE, measures.GaussianMixture, measures.FlowMeasure):
        extra = {"max_iter": lambda: 2} if kind is measures.FlowMeasure else {}
        yield both(
            f"{kind.__name__} fitted", measured(kind), kind, X=x, sample_weight=W.copy,
            n=lambda: 5, **extra,
        )  # fmt: skip

    def fitted(kind: Any) -> Callable[..., Any]:
        def run(
            X: Any, y: Any, sample_weight: Any = None, groups: Any = None, **settings: Any
        ) -> Any:
            made = kind(**{"reference": "empirical", "max_iter": 5, **settings})
            made.fit(X, y, sample_weight, groups)
            return made, made.predict(X), made.certificate_, made.worst_case_.risk()

        return run

    kinds: list[Any] = [None, sets.KL(0.1), sets.CVaR(0.3), sets.Wasserstein(0.1, order=1)]
    kinds += [sets.Sinkhorn(0.1, 0.1), sets.Group(0.1), sets.ChiSquare(penalty=1.0)]
    for chosen in kinds:
        shared: dict[str, Any] = {"X": x, "sample_weight": W.copy, "groups": GROUPS.copy}
        shared |= {"ambiguity": lambda chosen=chosen: chosen}
        for kind, y in ((drojko.DROClassifier, Y), (drojko.DRORegressor, T)):
            yield both(f"{kind.__name__} {chosen}", fitted(kind), kind, y=y.copy, **shared)
    for kind in (sets.Wasserstein, sets.KL, sets.Sinkhorn, sets.CressieRead, sets.CVaR):

        def with_set(X: Any, y: Any, kind: Any = kind, **settings: Any) -> Any:
            made = drojko.DROClassifier(kind(**settings), reference="empirical", max_iter=5)
            return made.fit(X, y).certificate_

        size: dict[str, Any] = (
            {"alpha": lambda: 0.5} if kind is sets.CVaR else {"radius": lambda: 0.1}
        )
        size |= {"k": lambda: 3.0} if kind is sets.CressieRead else {}
        yield both(f"DROClassifier on {kind.__name__}", with_set, kind, X=x, y=Y.copy, **size)

    def network(X: Any, y: Any, **settings: Any) -> Any:
        given = {"model": "mlp", "max_iter": 1, "inner": "pointwise", "reference": "empirical"}
        made = drojko.DROClassifier(**{**given, "hidden_layer_sizes": (3,), **settings})
        return made.fit(X, y).certificate_

    yield both("network", network, drojko.DROClassifier, X=x, y=Y.copy)

    def audited(X: Any, y: Any, **given: Any) -> Any:
        found = drojko.audit(classifier(), X, y, **{"inner": "pointwise", **given})
        return found.table, found.worst_case(), found.to_frame()

    for chosen in (sets.Wasserstein(0.1), sets.KL(0.1)):
        yield both(
            f"audit {chosen}", audited, drojko.audit, X=x, y=Y.copy,
            ambiguity=lambda chosen=chosen: chosen,
        )  # fmt: skip

    def based(kind: Any) -> Callable[..., Any]:
        def run(X: Any, y: Any, sample_weight: Any = None, **settings: Any) -> Any:
            made = kind(**settings).fit(X, y, sample_weight)
            return made.predict(X)

        return run

    kl: Any = {"ambiguity": lambda: sets.KL(0.1)}
    short: Any = {"max_iter": lambda: 1, "steps": lambda: 1}
    for kind, y, more in (
        (baselines.ConvexDROClassifier, Y, kl), (baselines.ConvexDRORegressor, T, kl),
        (baselines.WRMClassifier, Y, short), (baselines.AdversarialClassifier, Y, short),
    ):  # fmt: skip
        yield both(f"{kind.__name__} fitted", based(kind), kind, X=x, y=y.copy, **more)

    def flowed(scheme: Any = None, start: Any = None) -> Any:
        functional = functionals.PotentialEnergy(bowl) + functionals.Entropy()
        made = flows.JKOFlow(functional, scheme, step_size=0.1)
        return made.run(start, 1, random_state=0).measures[-1].particles

    def schemed(kind: Any, start: Any) -> Callable[..., Any]:
        def run(**settings: Any) -> Any:
            return flowed(kind(**settings), start())

        return run

    forty: Any = {"n_particles": lambda: 40, "iterations": lambda: 2}
    yield both(
        "ICNNScheme in use",
        schemed(flows.ICNNScheme, gaussian),
        flows.ICNNScheme,
        hidden=lambda: (4,),
        **forty,
    )
    yield both(
        "EnvelopeScheme in use",
        schemed(flows.EnvelopeScheme, gaussian),
        flows.EnvelopeScheme,
        **forty,
    )
    yield both(
        "LineScheme in use",
        schemed(flows.LineScheme, line),
        flows.LineScheme,
        n_particles=lambda: 40,
    )

    def energies(kind: Any) -> Callable[..., Any]:
        def run(**settings: Any) -> Any:
            made = kind(**settings)
            made.first_variation(points(), row())
            return made.evaluate(points(), row(), GOOD["functional_weights"]())

        return run

    for name in functionals.__all__:
        kind = getattr(functionals, name)
        subject = None if name in {"Functional", "Energy"} else _subject(name, kind, name, name)
        if subject is not None:
            yield Subject(f"{name} in use", energies(kind), subject.arguments, subject.names)

    def solved(function: Any) -> Callable[..., Any]:
        def run(**given: Any) -> Any:
            return function(**given).solve(max_iter=5, random_state=0)

        return run

    w1: Any = {"ambiguity": lambda: sets.Wasserstein(0.1)}
    yield both(
        "newsvendor solved", solved(problems.newsvendor), problems.newsvendor, demand=T.copy, **w1
    )
    yield both("portfolio solved", solved(problems.portfolio), problems.portfolio, returns=x, **w1)
    yield both(
        "least_squares solved",
        solved(problems.least_squares),
        problems.least_squares,
        A=x,
        b=T.copy,
        **w1,
    )
    yield both(
        "MinimaxProblem solved", solved(problems.MinimaxProblem), problems.MinimaxProblem,
        loss=lambda: decision, params=lambda: torch.zeros(2), reference=x, **kl,
    )  # fmt: skip
    for kind in (problems.Ball, problems.Box, problems.Simplex):

        def projected(kind: Any = kind, **settings: Any) -> Any:
            return kind(**settings).project(torch.tensor([0.5, 3.0]))

        needed: Any = {"radius": lambda: 1.0} if kind is problems.Ball else {}
        yield both(f"{kind.__name__} in use", projected, kind, **needed)

    def command(*, words: Any) -> Any:
        from click.testing import CliRunner

        from drojko._cli import main

        result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code

    data, model = folder() / "data.csv", folder() / "model.drojko"
    for words in (
        ["fit", data, "--target", "y", "--radius", "0.1", "--max-iter", "3", "-o", model],
        ["audit", model, data, "--target", "y", "--radii", "0.1"],
    ):
        places = tuple(f"word {i}" for i in range(len(words)))

        def told(words: Any = words, **changed: Any) -> Any:
            given = [changed.get(f"word {i}", word) for i, word in enumerate(words)]
            return command(words=given)

        yield Subject(f"drojko {words[0]}", told, dict, places)
