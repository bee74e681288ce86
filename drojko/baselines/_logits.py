"""What the linear and the network classifiers share: labels, and predictions from logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin

from drojko._sklearn import check_classification_targets
from drojko.exceptions import InvalidDataError

__all__ = ["LogitClassifier"]


class LogitClassifier(ClassifierMixin):
    """Classes and probabilities from the logits of ``decision_function``."""

    decision_function: Any
    classes_: np.ndarray

    def _encode(self, y: Any) -> np.ndarray:
        """Keep the classes; class indices of labels."""
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InvalidDataError(f"{type(self).__name__} got 1 class in y; it needs 2 or more")
        return index

    def predict(self, X):
        """Most probable class of each row, shape (n,)."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[index]

    def predict_proba(self, X):
        """Class probabilities, shape (n, n_classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([expit(-scores), expit(scores)])
        return softmax(scores, axis=1)
