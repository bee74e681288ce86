"""The inner problem, sample by sample: J(q) = loss(x') - penalty * cost(x, x')."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from drojko._validation import checked
from drojko.exceptions import InvalidDataError
from drojko.inner.coordinates import Coordinates
from drojko.losses import Loss
from drojko.models import MLP, TabularModel, is_plain

__all__ = ["Batch", "Objective"]

#: Largest pre-activations, and penalties from 1 over it, that single precision keeps digits of.
_MODERATE, _ORDINARY = 300.0, 1e12
#: Rows at which a module in single precision is compared with itself, and how near it must be.
_COMPARED, _ALIKE = 64, 1e-4


@checked(constructor=False, x="n d any", y="n real", q0="n r any", index="k index")
@dataclass(frozen=True)
class Batch:
    """Reference draws with their coordinates.

    Attributes
    ----------
    x, y : Tensor of shape (n, d) and (n,)
        Features, and class indices or targets.
    q0 : Tensor of shape (n, r)
        `Coordinates.encode` of x.

    Examples
    --------
    >>> x = torch.arange(6.0).reshape(3, 2)
    >>> batch = Batch(x, torch.tensor([0, 1, 0]), x)
    >>> len(batch.repeat(2)), batch.take(torch.tensor([1])).x.tolist()
    (6, [[2.0, 3.0]])
    """

    x: Tensor
    y: Tensor
    q0: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Batch:
        """Some of the rows."""
        return Batch(self.x[index], self.y[index], self.q0[index])

    def repeat(self, times: int) -> Batch:
        """All rows, ``times`` over."""
        if times < 1:
            raise InvalidDataError(f"times={times}; expected 1 or more")
        return Batch(self.x.repeat(times, 1), self.y.repeat(times), self.q0.repeat(times, 1))


@checked(constructor=False, q="n r any", x="n d any", y="n real")
@dataclass(frozen=True)
class Objective:
    r"""Per-sample objective :math:`J(q) = \ell(f(x'), y) - \lambda c(x, x')`, x' = decode(q).

    In the scaled coordinates the cost is ``strength * ||q - q0||^2`` with
    ``strength = penalty * scale^2``. Values are in units of the loss.

    Parameters
    ----------
    model : TabularModel
        f.
    loss : Loss
    coordinates : Coordinates
        What can move, and at what cost.
    penalty : float
        Price of a unit of the ground cost, in units of the loss per squared unit of X.

    Examples
    --------
    A squared error of f(x) = x, moved from 0 to 1 at a penalty of 3: 1 - 3:

    >>> import numpy as np
    >>> from drojko.ambiguity import GroundCost
    >>> from drojko.losses import get_loss
    >>> from drojko.models import MLP
    >>> model = MLP(1, 1, hidden=())
    >>> with torch.no_grad():
    ...     _ = [p.fill_(float(p.ndim == 2)) for p in model.parameters()]
    >>> x, y = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    >>> coordinates = Coordinates.build(GroundCost(np.ones(1)), x)
    >>> J = Objective(model, get_loss("squared", "regression"), coordinates, penalty=3.0)
    >>> J.value(J.batch(x, y), torch.ones(1, 1, dtype=torch.float64)).tolist()
    [-2.0]
    """

    model: TabularModel
    loss: Loss
    coordinates: Coordinates
    penalty: float

    @property
    def strength(self) -> float:
        """The penalty in the scaled coordinates, in units of the loss."""
        return self.penalty * self.coordinates.scale**2

    def with_penalty(self, penalty: float) -> Objective:
        """The same objective at another penalty."""
        return replace(self, penalty=penalty)

    def single(self, batch: Batch) -> tuple[Objective, Batch] | None:
        """The same in single precision, for comparisons of many points: a third of the time.

        None where there is none, where numbers are so large that their sums lose all digits, and
        of modules whose code is not torch's: copies of theirs may share or count.
        """
        model, coordinates = self.model, self.coordinates
        if batch.x.dtype != torch.float64 or not all(_known(part) for part in model.modules()):
            return None
        size = batch.x.abs()
        if isinstance(model, MLP):
            size = size @ model.weights[0].detach().abs().T
        moderate = float(size.max()) <= _MODERATE and float(batch.q0.abs().max()) <= _MODERATE
        if not (moderate and 1.0 / _ORDINARY <= self.strength <= _ORDINARY):  # NaN as well
            return None
        parts = {f.name: getattr(coordinates, f.name) for f in fields(coordinates)}
        light = {k: v.float() for k, v in parts.items() if _double(v)}
        y = batch.y.float() if _double(batch.y) else batch.y
        objective = replace(
            self, model=copy.deepcopy(model).float(), coordinates=replace(coordinates, **light)
        )
        rows = Batch(batch.x.float(), y, batch.q0.float())
        known = isinstance(model, MLP) or self._agrees(objective, batch, rows)
        return (objective, rows) if known else None

    def _agrees(self, light: Objective, batch: Batch, rows: Batch) -> bool:
        """Whether single precision gives the values and slopes of the first rows, in its dtype."""
        some = torch.arange(min(_COMPARED, len(batch)), device=batch.x.device)
        batch, rows = batch.take(some), rows.take(some)
        try:
            found = light.value_and_gradient(rows, rows.q0)
        except Exception:  # constants in double precision, say
            return False
        expected = self.value_and_gradient(batch, batch.q0)
        return all(
            a.dtype == torch.float32 and bool(((a - b).abs() <= _ALIKE * (1.0 + b.abs())).all())
            for a, b in zip(found, expected, strict=True)
        )

    def batch(self, x: Tensor, y: Tensor) -> Batch:
        """Draws x of shape (n, d), y of shape (n,) with their coordinates."""
        return Batch(x, y, self.coordinates.encode(x))

    def decode(self, batch: Batch, q: Tensor) -> Tensor:
        """Feature vectors of the samples when their coordinates are q, shape (n, d)."""
        return self.coordinates.decode(batch.x, batch.q0, q)

    def cost(self, batch: Batch, q: Tensor) -> Tensor:
        """Ground cost of moving each sample, in the units of X squared."""
        return (q - batch.q0).square().sum(1) * self.coordinates.scale**2

    def risk(self, batch: Batch, q: Tensor) -> Tensor:
        """Loss at the moved samples, shape (n,)."""
        return self.loss.value(self.model.linearise(self.decode(batch, q))[0], batch.y)

    def value(self, batch: Batch, q: Tensor) -> Tensor:
        """J(q), shape (n,)."""
        return self.risk(batch, q) - self.penalty * self.cost(batch, q)

    def value_and_gradient(self, batch: Batch, q: Tensor) -> tuple[Tensor, Tensor]:
        """J(q) of shape (n,) and its gradient in q of shape (n, r)."""
        move, coordinates = q - batch.q0, self.coordinates
        f, backward = self.model.linearise(coordinates._moved(batch.x, move))
        value = self.loss.value(f, batch.y)
        gradient = coordinates._pull(backward(self.loss.gradient(f, batch.y)))
        strength = self.strength
        value = torch.sub(value, move.square().sum(1), alpha=strength)
        return value, gradient.sub_(move, alpha=2.0 * strength)

    def loss_hessian(self, batch: Batch, q: Tensor) -> Tensor:
        """Hessian of the loss (without the cost) in q, shape (n, r, r)."""

        def gradient(leaf: Tensor) -> Tensor:  # summed, as samples do not interact
            x = self.coordinates._moved(batch.x, leaf - batch.q0)
            value = self.loss.value(self.model(x), batch.y)
            return torch.autograd.grad(value.sum(), leaf, create_graph=True)[0].sum(0)

        found: Any = torch.autograd.functional.jacobian(gradient, q.detach())
        return found.movedim(0, 2)

    def model_like(self) -> dict[str, Any]:
        """Device and dtype of the model, as keyword arguments."""
        for p in self.model.parameters():
            return {"dtype": p.dtype, "device": p.device}
        return {"dtype": torch.float64, "device": torch.device("cpu")}


def _double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _known(part: nn.Module) -> bool:
    """Whether a module is torch's or the library's, and computes what its class does."""
    return type(part).__module__.startswith(("torch.nn.", "drojko.models")) and is_plain(part)
