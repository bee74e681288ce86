"""What learners say of rows: probabilities, scores or numbers, their mean, and its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax

from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["Numbers", "Probabilities", "Scores", "is_linear"]

#: Probabilities are kept away from 0 by this much, as in scikit-learn's log_loss.
_LEAST = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Probabilities:
    """Of ``n_classes`` classes: answers (n, K)."""

    n_classes: int

    def of(self, model: Any, X: Any) -> np.ndarray:
        """What a model that was fitted to class indices says; 0 for a class it never saw."""
        if not hasattr(model, "predict_proba"):
            name = type(model).__name__
            raise UnsupportedError(
                f"{name} has no predict_proba, whose loss the game is about: use "
                f"CalibratedClassifierCV({name}(...)), or a learner with probabilities"
            )
        said = np.asarray(model.predict_proba(X), np.float64)
        if said.shape[1] == self.n_classes:
            return said
        every = np.zeros((len(said), self.n_classes))
        every[:, np.asarray(model.classes_, int)] = said
        return every

    def losses(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Cross-entropy (n,)."""
        return -np.log(np.maximum(answers[np.arange(len(y)), y], _LEAST))

    def scores(self, answers: np.ndarray) -> np.ndarray:
        """Log odds (n,) of two classes, log probabilities (n, K) of several."""
        logs = np.log(np.maximum(answers, _LEAST))
        return logs[:, 1] - logs[:, 0] if self.n_classes == 2 else logs


@dataclass(frozen=True)
class Scores:
    """Of linear classifiers, (n,) or (n, K), whose mean is linear, too."""

    def of(self, model: Any, X: Any) -> np.ndarray:
        """The scores of a model."""
        return np.asarray(model.decision_function(X), np.float64)

    def losses(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Logistic loss (n,)."""
        if answers.ndim == 1:
            return np.logaddexp(0.0, (1 - 2 * y) * answers)
        return -log_softmax(answers, axis=1)[np.arange(len(y)), y]

    def scores(self, answers: np.ndarray) -> np.ndarray:
        """The answers."""
        return answers


@dataclass(frozen=True)
class Numbers:
    """Of regressors: answers (n,)."""

    def of(self, model: Any, X: Any) -> np.ndarray:
        """What a model predicts."""
        said = np.asarray(model.predict(X), np.float64)
        if said.ndim == 2 and said.shape[1] == 1:
            said = said[:, 0]
        if said.ndim != 1 or not np.isfinite(said).all():
            raise InvalidDataError(
                f"{type(model).__name__} predicts shape {said.shape}, or values that are not "
                "finite; expected a finite number per row"
            )
        return said

    def losses(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Squared error (n,)."""
        return (answers - y) ** 2


def is_linear(model: Any, X: Any, n_classes: int | None) -> bool:
    """Whether a model's scores (its predictions, for ``n_classes=None``) are linear in X."""
    coef = getattr(model, "coef_", None)
    if coef is None or not hasattr(X, "shape"):
        return False
    table: Any = np.asarray(X)
    if table.dtype.kind not in "fiu" or table.ndim != 2 or np.shape(coef)[-1] != table.shape[1]:
        return False
    few = table[:20].astype(np.float64)
    line = few @ np.asarray(coef, np.float64).T + np.asarray(getattr(model, "intercept_", 0.0))
    if n_classes is None:
        return np.allclose(line.reshape(-1), np.ravel(model.predict(X[:20])), rtol=1e-6, atol=1e-9)
    if not hasattr(model, "decision_function"):
        return False
    scores = np.asarray(model.decision_function(X[:20]))
    if scores.shape != (line.reshape(-1).shape if scores.ndim == 1 else line.shape):
        return False
    p = expit(scores) if scores.ndim == 1 else softmax(scores, axis=1)
    said = model.predict_proba(X[:20])
    linked = np.allclose(p, said[:, 1] if scores.ndim == 1 else said, atol=1e-6)
    return linked and np.allclose(line.reshape(scores.shape), scores, rtol=1e-6, atol=1e-9)
