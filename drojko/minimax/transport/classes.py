"""Linear multi-class models: quasi-Newton on the exact robust risk, kinks smoothed away slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status
from drojko.minimax.lbfgs import LBFGSRun, merged_rows
from drojko.models import MLP

__all__ = ["LinearClasses"]


@dataclass
class LinearClasses(LBFGSRun):
    r"""L-BFGS on (W, b, lambda) of :math:`\lambda r^2 + E\max_p\{p^\top a + h(p)
    + \|W^\top(p - e_y)\|^2_{C^{-1}} / 4\lambda\}`.

    a_j = f_j - f_y, and h is the entropy for the cross-entropy, or the margin 1[j != y] at the
    vertices for the multi-class hinge: the worst case of a linear model in the space of class
    probabilities, jointly convex in (W, b, lambda). Where two maximisers p compete there is a
    kink; there both count, with weights softmax(J / mu), and mu falls stage by stage, so that the
    error is at most mu log 2 on the few samples at a kink.

    Parameters
    ----------
    smoothings : tuple of float
        The mu of the stages, relative to the risk at the start.
    memory : int
        Corrections of L-BFGS. The iteration limit holds for each stage.

    Columns are standardised while it runs; ``load`` undoes that.
    """

    smoothings: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    memory: int = 30
    mu: float = 0.1
    last_stage: bool = False

    def optimise(self, point: np.ndarray, max_iter: int) -> Status:
        """Stage by stage."""
        status = Status.MAX_ITER
        for mu in self.smoothings:
            self.enter(mu, last=mu == self.smoothings[-1])
            status = self.minimise(point, max_iter, self.memory)
            point = self.best_point.copy()
        if status is Status.MAX_ITER and self.settled(0.1 * self.tol, self.stage):
            return Status.CONVERGED  # within tol, if not to rounding
        return status

    def enter(self, mu: float, last: bool) -> None:
        """Begin a stage: values at another smoothing do not compare."""
        self.mu, self.last_stage = mu * self.unit_risk, last
        self.stage, self.best_value = len(self.history), math.inf

    def finished(self) -> bool:
        if self.last_stage:
            return self.slope <= 1e-6 * self.tol or self.settled(1e-3 * self.tol, self.stage)
        rough = 1e-2 * self.mu
        return self.slope <= rough or self.settled(rough / self.unit_risk, self.stage)

    def start(self) -> np.ndarray:
        p = self.problem
        model = p.model
        if not isinstance(model, MLP):
            raise TypeError("a linear model is needed")
        self.weight, self.bias = model.weights[0].data, model.biases[0].data
        self.intercept = model.bias
        x, self.y, self.w = merged_rows(*p.draw(self.n_draws, self.generator))
        x = x.double()
        mean = self.w @ x
        spread = (self.w @ (x - mean).square()).sqrt()
        self.spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        self.mean = mean if self.intercept else torch.zeros_like(mean)
        self.x = (x - self.mean) / self.spread
        like = {"dtype": torch.float64, "device": x.device}
        inverse = torch.as_tensor(p.cost.inverse_weights, **like)
        self.inverse_cost = inverse / self.spread.square()
        self.decay = p.alpha / self.spread.square()
        w = self.weight.double() * self.spread
        b = self.bias.double() + self.weight.double() @ self.mean
        self.shape = w.shape
        f = torch.addmm(b, self.x, w.T)
        self.unit_risk = max(float(p.loss.value(f, self.y) @ self.w), 1e-3)
        point = torch.cat([w.reshape(-1), b])
        if p.radius:
            # At W = 0 nothing is spent: start where a model of unit slope would spend the radius.
            size = float(self.inverse_cost.mean().sqrt())
            self.unit = self.penalty0 or max(size, 1e-300) / p.radius
            point = torch.cat([point, torch.ones(1, **like)])
        self.best_point = point.cpu().numpy()
        return self.best_point

    def free(self) -> list[tuple[float | None, float | None]]:
        k, d = self.shape
        fixed = (None, None) if self.intercept else (0.0, 0.0)
        return [(None, None)] * (k * d) + [fixed] * k

    def _split(self, point: np.ndarray) -> tuple[Tensor, Tensor]:
        k, d = self.shape
        values = torch.as_tensor(point, device=self.x.device)
        return values[: k * d].reshape(k, d), values[k * d : k * d + k]

    def load(self, point: np.ndarray) -> None:
        w, b = self._split(point)
        weight = w / self.spread
        self.weight.copy_(weight)
        self.bias.copy_(b - weight @ self.mean)

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Smoothed robust risk and its gradient."""
        p = self.problem
        w, b = self._split(point)
        penalty = self.penalty_of(point)
        half = 0.5 / penalty
        gram = (w * self.inverse_cost) @ w.T
        f = torch.addmm(b, self.x, w.T)
        values, pull, second = p.loss.smoothed_worst(
            f, self.y, self.w, gram, half, self.mu, not self.last_stage
        )
        risk = float(values @ self.w)
        moved = half * (second @ w) * self.inverse_cost
        grad_w = pull.T @ self.x + moved + self.decay * w
        grads = [grad_w.reshape(-1), pull.sum(0)]
        cost = float((second * gram).sum()) * half * half
        value = risk + 0.5 * float((self.decay * w.square()).sum())
        if p.radius:
            value += penalty * p.radius**2
            grads.append(torch.full((1,), self.unit * (p.radius**2 - cost), dtype=torch.float64))
        gradient = torch.cat(grads).cpu().numpy()
        if not math.isfinite(value):
            return self.wall(point)
        self.record(point, value, gradient, penalty, cost)
        return value, gradient
