"""The worst case of a transport set: the image of the reference under a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.exceptions import UnsupportedError
from drojko.inner.objective import Batch
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.known import KnownRows
from drojko.inner.worst_case import WorstCase, which
from drojko.measures.base import LabelledMeasure

__all__ = ["TransportedWorstCase"]


@dataclass(frozen=True, repr=False)
class TransportedWorstCase(WorstCase):
    r"""A worst-case distribution: the image of the reference under a transport plan.

    In penalty form the plan is the map x -> argmax_z loss(z) - penalty * c(z, x). In radius form
    it is a mixture of two such maps, at penalties just below and above the multiplier of the
    radius, which spends the budget exactly.

    Parameters
    ----------
    adversary : Adversary
        The maps, at any penalty.
    reference : LabelledMeasure
        P0.
    low_penalty, high_penalty, share : float
        The two penalties of the mixture, and the share of the first.
    attained_risk : float
        What `risk` returns.
    evaluation : tuple of ndarray, default=None
        Draws x (n, d), y (n,), w (n,) that `pairs` shows; None: 2000 points of the reference.
    classes, feature_names, cost_weights
        As in `WorstCase`.
    known : KnownRows, default=None
        Rows whose moves are stored; all others are searched for.

    Examples
    --------
    >>> from drojko import DRORegressor
    >>> X, y = np.arange(6.0).reshape(-1, 1), np.array([0.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    >>> worst = DRORegressor(reference="empirical").fit(X, y).worst_case_
    >>> type(worst).__name__, worst.transport(X, y).shape
    ('TransportedWorstCase', (6, 1))
    """

    adversary: Adversary
    reference: LabelledMeasure
    low_penalty: float
    high_penalty: float
    share: float
    attained_risk: float
    evaluation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    cost_weights: np.ndarray | None = None
    known: KnownRows | None = None

    # -- conversions -------------------------------------------------------------------------

    def _batch(self, X: Any, y: Any) -> Batch:
        like = self.adversary.objective.model_like()
        return self.adversary.objective.batch(*self._queries(X, y, **like))

    def _reference_batch(self, x: Tensor, y: Tensor) -> Batch:
        """Draws of the reference; those beyond the bounds count as lying on them."""
        objective = self.adversary.objective
        like = objective.model_like()
        y = y.to(like["device"]) if self.classes is not None else y.to(**like)
        batch = objective.batch(x.to(**like), y)
        if objective.coordinates.lower is None:
            return batch
        inside = objective.decode(batch, objective.coordinates.project(batch.q0))
        return objective.batch(inside, y)

    def _images(self, low: bool, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where samples are moved by one of the two maps, (n, d), and their labels there."""
        if self.known is None:
            return self._searched(low, batch)
        rows = self.known.find(batch.x.cpu().numpy(), batch.y.cpu().numpy())
        x, labels = batch.x.clone(), batch.y.clone()
        at = torch.as_tensor(rows >= 0, device=x.device)
        stored, taken = self.known.images(rows[rows >= 0], low)
        x[at], labels[at] = stored.to(x), taken.to(labels)
        if not bool(at.all()):
            new = (~at).nonzero().squeeze(1)
            x[new], labels[new] = self._searched(low, batch.take(new))
        return x, labels

    def _searched(self, low: bool, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same by a search."""
        penalty = self.low_penalty if low else self.high_penalty
        adversary = self.adversary.with_penalty(penalty).with_effort("fast")
        moved = adversary.stay(batch) if math.isinf(penalty) else adversary.solve(batch)
        return adversary.objective.decode(moved.at, moved.q), moved.labels

    # -- the measure -------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` samples: X of shape (n, d) and labels of shape (n,).

        ``random_state`` is None, an integer or a generator.
        """
        gen = make_generator(random_state)
        batch = self._reference_batch(*self.reference.sample(n, gen))
        x, labels = self._images(False, batch)
        if self.share > 0.0:
            low, others = self._images(True, batch)
            coin = torch.rand(n, generator=gen, dtype=torch.float64).to(x.device) < self.share
            x, labels = torch.where(coin.unsqueeze(1), low, x), torch.where(coin, others, labels)
        return x.cpu().numpy(), self._decode(labels)

    @torch.no_grad()
    def transport(self, X: Any, y: Any, random_state: Any = None) -> np.ndarray:
        """Where rows X with labels y are moved, shape (n, d).

        Rows of an empirical reference go where the certificate has them; others are searched for.
        Where the plan is a mixture, rows take one of its two maps, so many of them that means over
        the rows of the reference are those of the plan up to one row; ``random_state`` draws which.
        """
        batch = self._batch(X, y)
        image = self._images(False, batch)[0]
        if self.share > 0.0:
            low = self._images(True, batch)[0]
            cost = [(z - batch.x).square().sum(1).cpu().numpy() for z in (low, image)]
            first = which(np.full(len(image), self.share), cost[0] - cost[1], random_state)
            image = torch.where(torch.as_tensor(first, device=low.device)[:, None], low, image)
        return image.cpu().numpy()

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        r"""Log density of X given y, shape (n,).

        The maximiser z at x satisfies x = S(z) = z - C^{-1} grad loss(z) / (2 penalty), so

        .. math:: \log p(z) = \log p_0(S(z)) + \log|\det(I - C^{-1}\nabla^2\ell(z) / 2\lambda)|

        where z is the maximiser at S(z), and minus infinity elsewhere: no sample ends there.

        Raises
        ------
        UnsupportedError
            For a reference without density, bounds and relu networks (mass piles up on the
            bounds and on concave kinks), movable labels or categories.
        """
        if self.adversary.objective.coordinates.lower is not None:
            raise UnsupportedError("log_prob: with bounds mass piles up on them; use sample")
        if not self.adversary.smooth:
            raise UnsupportedError(
                "log_prob: a relu network piles mass up where its concave kinks are; use sample, "
                "or a smooth activation"
            )
        if self.adversary.flips:
            raise UnsupportedError("log_prob: labels move under this label_cost; use sample")
        if self.adversary.swaps is not None:
            raise UnsupportedError("log_prob: categories move under this swap_cost; use sample")
        batch = self._batch(X, y)
        high = self._log_density(self.high_penalty, batch)
        if self.share > 0.0:
            low = self._log_density(self.low_penalty, batch)
            rest = math.log1p(-self.share) if self.share < 1.0 else -math.inf
            high = torch.logaddexp(low + math.log(self.share), high + rest)
        return high.cpu().numpy()

    def _log_density(self, penalty: float, batch: Batch) -> Tensor:
        if math.isinf(penalty):
            return self.reference.log_prob(batch.x, batch.y)
        adversary = self.adversary.with_penalty(penalty).with_effort("fast")
        objective = adversary.objective
        _, gradient = objective.value_and_gradient(batch, batch.q0)  # at z: no cost yet
        q = batch.q0 - gradient / (2.0 * objective.strength)
        source = objective.decode(batch, q)
        origin = Batch(source, batch.y, q)
        value, _ = objective.value_and_gradient(origin, batch.q0)
        with torch.no_grad():
            moved = adversary.solve(origin)
        # z counts where the plan sends its origin there: to as good a point, and no worse one far
        # away, as a search that misses z would find.
        slack = 1e-7 * (1.0 + moved.value.abs())
        length = (batch.q0 - q).norm(dim=1)
        near = (moved.q - batch.q0).norm(dim=1) <= 1e-2 * (1e-3 + length)
        reached = (value >= moved.value - slack) & (near | (value <= moved.value + slack))
        hessian = objective.loss_hessian(batch, batch.q0)
        eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
        _, logdet = torch.linalg.slogdet(eye - hessian / (2.0 * objective.strength))
        density = self.reference.log_prob(source, batch.y).to(logdet) + logdet
        return torch.where(reached, density, torch.full_like(density, -torch.inf))

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        if self.evaluation is None and self.known is not None:
            known = self.known
            batch = self._reference_batch(torch.tensor(known.x), torch.tensor(known.y))
            x, y, w = batch.x.cpu().numpy(), self._decode(batch.y), known.w
        elif self.evaluation is None:
            x, y, w = self.reference.points(2000, make_generator(0))
            batch = self._reference_batch(x, y)
            x, y, w = batch.x.cpu().numpy(), self._decode(batch.y), w.cpu().numpy()
        else:
            x, y, w = self.evaluation
            batch = self._batch(x, y)
        image = self._images(False, batch)[0].cpu().numpy()
        if self.share > 0.0:
            low = self._images(True, batch)[0].cpu().numpy()
            x, y, image = (np.concatenate(part) for part in ((x, x), (y, y), (image, low)))
            w = np.concatenate([w * (1 - self.share), w * self.share])
        return x, image, y, w

    def _costs(self, x: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Moves by their weights; what a swap costs is shared by the columns that it changes."""
        costs = super()._costs(x, image)
        swaps = self.adversary.swaps
        for columns, price in [] if swaps is None else zip(swaps.columns, swaps.costs, strict=True):
            index = columns.cpu().numpy()
            changed = np.abs(image[:, index] - x[:, index]) > 0
            count = np.maximum(changed.sum(1, keepdims=True), 1)
            costs[:, index] = changed * (float(price) / count)
        return costs

    @property
    def n_features(self) -> int:
        return self.adversary.objective.coordinates.n_features

    def __repr__(self) -> str:
        single = not 1e-3 < self.share < 1 - 1e-3
        plan = "map" if single else f"mixture of two maps ({self.share:.3f})"
        return f"{type(self).__name__}(risk={self.attained_risk:.6g}, plan={plan})"
