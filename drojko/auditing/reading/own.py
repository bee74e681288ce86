"""The audited model itself: its answers, its labels, and what of them are no numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn

from drojko.auditing.reading.space import Space
from drojko.exceptions import InvalidDataError
from drojko.models import TabularModel

__all__ = [
    "BLOCK", "CLIP", "Held", "ONE", "Own", "Predicted", "ScoresModel", "Tally", "Watched",
]  # fmt: skip

#: Probabilities are read between this and one: a forest that answers 0 has no finite log loss.
CLIP = 1e-6
#: Rows of one question.
BLOCK = 65_536
ONE = (
    "an audit takes one answer a row; audit one output at a time, with a model whose predict "
    "returns that column and y of shape (n,)"
)


@dataclass(eq=False)
class Tally:
    """How many answers were no numbers; copies of a model share theirs."""

    bad: int = 0

    def add(self, f: Tensor) -> Tensor:
        """Count rows of answers (n,) or (n, K) that hold NaN or infinity, and hand them on."""
        # By NumPy: what reads a module off what it asks torch for sees the module alone.
        odd = ~np.isfinite(f.detach().numpy())
        self.bad += int((odd if f.ndim == 1 else odd.reshape(len(odd), -1).any(1)).sum())
        return f

    def __deepcopy__(self, memo: Any) -> Tally:
        return self


class Watched(nn.Module):
    """A module whose answers are counted where they are no numbers."""

    def __init__(self, module: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.module, self.tally = module, tally

    def forward(self, x: Tensor) -> Tensor:
        return self.tally.add(self.module(x))


class Held(nn.Module):
    """A module that takes float32 alone, or TorchScript, which pickles as its own archive."""

    def __init__(self, module: nn.Module, single: bool) -> None:
        super().__init__()
        self.module, self.single = module, single

    def forward(self, x: Tensor) -> Any:
        return self.module(x.float()).double() if self.single else self.module(x)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.module, torch.jit.ScriptModule):
            archive = io.BytesIO()
            torch.jit.save(self.module, archive)
            state |= {"_modules": {}, "archive": archive.getvalue()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        archive = state.pop("archive", None)
        super().__setstate__(state)
        if archive is not None:
            self.module = torch.jit.load(io.BytesIO(archive))


class ScoresModel(TabularModel):
    """Answers without derivatives, for sets that ask for nothing but losses."""

    def __init__(self, own: Own, n_outputs: int, tally: Tally) -> None:
        super().__init__()
        self.own, self.n_outputs, self.tally = own, n_outputs, tally

    def forward(self, x: Tensor) -> Tensor:
        return self.tally.add(torch.as_tensor(self._asked(x.numpy()), dtype=torch.float64))

    def _asked(self, U: np.ndarray) -> np.ndarray:
        """Answers, NaN for rows that the model refuses: those that a step before made NaN of."""
        try:
            return self.own.scores(U)
        except ValueError:
            answer = np.full((len(U), self.n_outputs), np.nan)
            good = self.own.finite(U) if len(U) > 1 else np.zeros(1, bool)
            halves = np.array_split(np.flatnonzero(good), 2 if good.all() else 1)
            for rows in filter(len, halves):
                answer[rows] = self._asked(U[rows]).reshape(len(rows), -1)
            return answer[:, 0] if self.n_outputs == 1 else answer

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        """Answers, and a derivative of zero."""

        def backward(g: Tensor, parameters: bool = False) -> Any:
            return [] if parameters else torch.zeros_like(x)

        return self.forward(x), backward


@dataclass(frozen=True, eq=False)
class Own:
    """A model by its own code, asked at rows (n, d) of a space.

    ``method`` is what it is asked for: "predict_proba", "decision_function", "predict" of a
    regression, or the "logits" (or predictions) of a torch module. ``rows``, the user's table,
    fills columns that the model drops.
    """

    model: Any
    space: Space
    rows: Any
    classes: Any
    method: str

    def raw(self, U: np.ndarray) -> np.ndarray:
        """Probabilities (n, K), decisions, logits or predictions, as the model gives them."""
        if self.method == "logits":
            with torch.no_grad():
                return self.model(torch.as_tensor(U)).numpy()
        found = self._asked(self.method, U)
        if self.method == "predict_proba" and found.shape != (len(U), len(self.classes)):
            raise InvalidDataError(
                f"predict_proba gives shape {found.shape}; expected {(len(U), len(self.classes))}"
            )
        return found

    def _asked(self, method: str, U: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # far from the data a step may leave its domain
            found = np.asarray(getattr(self.model, method)(self.space.decode(U, self.rows)))
        if method == "predict":
            if found.size != len(U):
                name = type(self.model).__name__
                raise InvalidDataError(
                    f"{name} predicts shape {found.shape} for {len(U)} rows: {ONE}"
                )
            found = found.reshape(len(U))
        return found

    def finite(self, U: np.ndarray) -> np.ndarray:
        """Rows that the steps of a pipeline before the last leave finite, (n,); else all."""
        try:
            with np.errstate(all="ignore"):
                inner = self.model[:-1].transform(self.space.decode(U, self.rows))
            return np.asarray(np.isfinite(np.asarray(inner, dtype=np.float64)).all(1))
        except (TypeError, ValueError, AttributeError):
            return np.ones(len(U), bool)

    def scores(self, U: np.ndarray) -> np.ndarray:
        """Logits (n,) or (n, K), or predictions (n,), float64."""
        if self.method == "predict" and self.classes is not None:  # labels and nothing else
            return np.zeros(len(U) if len(self.classes) == 2 else (len(U), len(self.classes)))
        return self._scores(self.raw(U))

    def _scores(self, raw: np.ndarray) -> np.ndarray:
        found = raw.astype(np.float64)
        if self.method == "predict_proba":
            found = np.log(np.clip(found, CLIP, 1.0))
        if found.ndim == 2 and found.shape[1] <= 2:
            return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found[:, 0]
        return found

    def predicted(self, U: np.ndarray) -> np.ndarray:
        """What ``predict`` says, shape (n,): labels, or the numbers of a regression."""
        if self.method != "logits":
            return self._asked("predict", U)
        f = Own.scores(self, U)
        if self.classes is None:
            return f
        return self.classes[f.argmax(1) if f.ndim == 2 else (f > 0).astype(int)]

    def differs(self, copied: TabularModel, U: np.ndarray) -> int:
        """At how many rows a copy answers otherwise, beyond what rounding does to the model's.

        Probabilities are compared as such: of those that are nearly 0 or 1, all that the model
        itself can tell.
        """
        own = self.raw(U)
        eps = float(np.finfo(own.dtype).eps) if own.dtype.kind == "f" else 2e-16
        with torch.no_grad():
            f = copied(torch.as_tensor(U)).numpy()
        near = max(1e-7, 64.0 * eps) * (1.0 + np.abs(f).max(initial=0.0, where=np.isfinite(f)))
        if self.method == "predict_proba":
            f = softmax(f, axis=1) if f.ndim == 2 else np.stack([expit(-f), expit(f)], 1)
            limit = near * np.maximum(own, f) + 64.0 * eps
        else:
            own, limit = self._scores(own), near
        if own.shape != f.shape:
            return len(U)
        with np.errstate(invalid="ignore"):
            same = (np.abs(own - f) <= limit) | (own == f)  # NaN is never the same
        return int((~same.reshape(len(U), -1).all(1)).sum())


@dataclass(frozen=True, eq=False)
class Predicted(Own):
    """A classifier by the labels that it predicts, whatever its scores say.

    Its logits are largest at the predicted label; within it they keep the order of the scores,
    so that the area under the ROC curve is still theirs.
    """

    @staticmethod
    def of(own: Own) -> Predicted:
        return Predicted(own.model, own.space, own.rows, own.classes, own.method)

    def scores(self, U: np.ndarray) -> np.ndarray:
        own, said = super().scores(U), np.asarray(super().predicted(U))
        if own.ndim == 1:
            return np.where(said == self.classes[1], 1.0, -1.0) + np.arctan(own) / np.pi
        chosen = said[:, None] == self.classes[None]
        top = own.max(axis=1, keepdims=True)
        least = np.where(own.argmax(1)[:, None] == np.arange(own.shape[1]), own, top + 1.0)
        return np.where(chosen, np.maximum(own, least), own)
