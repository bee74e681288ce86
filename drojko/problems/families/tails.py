"""Whether a reweighted continuous reference has a worst case, and whether draws can show it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from drojko.ambiguity import DensityRatioSet
from drojko.exceptions import ConvergenceWarning, UnboundedRiskError
from drojko.measures import KDE, Gaussian, GaussianMixture, Measure
from drojko.problems.families.structured import StructuredLoss

__all__ = ["check_moment", "warn_of_few"]


def check_moment(ambiguity: DensityRatioSet, loss: Any, params: Any, reference: Measure) -> None:
    r"""Raise `UnboundedRiskError` where a quadratic has no exponential moment under Gaussians.

    .. math:: E_0\, e^{\ell / \lambda} < \infty \iff S^{-1} - A / \lambda \succ 0

    for the Hessian A and every covariance S of the mixture. Draws have finite means all the same.
    """
    covariances = _covariances(reference)
    tilts = ambiguity.divergence is not None and ambiguity.divergence.kind == "kl"
    if ambiguity.penalty is None or not tilts or covariances is None:
        return
    hessian = loss.tail(params, reference.dim) if isinstance(loss, StructuredLoss) else None
    if hessian is None:
        return
    least = max(_largest(hessian, covariance) for covariance in covariances)
    if not ambiguity.penalty > least * (1.0 + 1e-12):
        raise UnboundedRiskError(
            f"the worst-case risk is infinite at penalty={ambiguity.penalty:g}: the loss is "
            "quadratic and the reference Gaussian, so that exp(loss / penalty) has no mean. At "
            f"this decision it is finite for a penalty above {least:.6g}; or give a radius, or the "
            "data themselves as reference"
        )


def _largest(hessian: np.ndarray, covariance: np.ndarray) -> float:
    """Largest eigenvalue of S^(1/2) A S^(1/2); columns without noise have no part in it."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return float(np.linalg.eigvalsh(root.T @ hessian @ root)[-1])


def _covariances(reference: Measure) -> list[np.ndarray] | None:
    if isinstance(reference, Gaussian):
        return [reference.covariance.numpy()]
    if isinstance(reference, GaussianMixture):
        return list(np.asarray(reference.covariances_))
    if isinstance(reference, KDE):
        return [np.diag(np.asarray(reference.bandwidth_) ** 2)]
    return None


def warn_of_few(ambiguity: Any, mass: np.ndarray) -> None:
    """A few draws carry the worst case: its risk is an estimate."""
    warnings.warn(
        f"{ambiguity!r}: the worst case rests on {1.0 / float(mass @ mass):.2g} of {len(mass)} "
        "draws in effect; its risk is an estimate that may be far too low, or infinite: raise the "
        "penalty or shrink the radius, give more n_draws, or take the data themselves as reference",
        ConvergenceWarning,
        stacklevel=2,
    )
