"""Full-batch quasi-Newton on the exact robust gradient: linear models and small data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from drojko._driver import Status
from drojko.exceptions import UnboundedRiskError
from drojko.inner.objective import Objective
from drojko.minimax.lbfgs import LBFGSRun, merged_rows
from drojko.minimax.passes import flattened

__all__ = ["QuasiNewton"]


@dataclass
class QuasiNewton(LBFGSRun):
    r"""L-BFGS on (theta, lambda) of :math:`\lambda r^2 + E\sup_z\{\ell - \lambda c\}`.

    By Danskin's theorem the gradient is the model's gradient at the moved samples, and
    :math:`r^2 - E c` in lambda: for a linear model a jointly convex problem. The particles (the
    worst-case position of every draw) are carried from one evaluation to the next and corrected
    ``corrections`` times.

    After Byrd, Lu, Nocedal and Zhu (1995), as implemented in SciPy. Where categories may be
    swapped, `minimise_kinked` follows; the iteration limit then holds for each of its detours.
    """

    corrections: int = 6
    memory: int = 20

    def optimise(self, point: np.ndarray, max_iter: int) -> Status:
        """L-BFGS, and along kinks."""
        status = self.minimise(point, max_iter, self.memory)
        # Where swaps tie there are kinks, and minima of robust problems like to lie there.
        return self.polish(max_iter) if self.problem.cost.swaps else status

    def start(self) -> np.ndarray:
        p = self.problem
        self.flat, self.decay, self.trainable = flattened(p)
        self.x, self.y, self.w = merged_rows(*p.draw(self.n_draws, self.generator))
        self.coordinates = p.objective(self.x, 1.0, reduce=False).coordinates
        self.displacement = torch.zeros_like(self._objective(1.0).batch(self.x, self.y).q0)
        point = self.flat.detach().double().cpu().numpy().copy()
        if p.radius:
            # Not from the gradient: at theta = 0 there is none, and lambda = 0 would be kept.
            self.unit = self.penalty0 or 1.0 / (self.coordinates.scale * p.radius)
            point = np.append(point, 1.0)
        self.best_point = point.copy()
        return point

    def _objective(self, penalty: float) -> Objective:
        return Objective(self.problem.model, self.problem.loss, self.coordinates, penalty)

    def rays(self) -> list[np.ndarray]:
        """The best point, and its intercepts alone, which transport costs nothing."""
        plain = self.best_point.copy()
        at = np.cumsum([0, *(p.numel() for p in self.problem.model.parameters())])
        for begin, end, weight in zip(at, at[1:], self.problem.model.penalised()):
            plain[begin:end] *= not weight
        plain[at[-1] :] = 1e-6
        return [self.best_point, plain]

    def free(self) -> list[tuple[float | None, float | None]]:
        return [(None, None)] * self.flat.numel()

    def moving(self) -> np.ndarray:
        """Without intercepts that are held at zero."""
        held = np.ones_like(self.best_point)
        held[: self.flat.numel()] = self.trainable.double().cpu().numpy()
        return held

    def load(self, point: np.ndarray) -> None:
        self.flat.copy_(torch.as_tensor(point[: self.flat.numel()]))

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        p = self.problem
        self.load(point)
        penalty = self.penalty_of(point)
        objective = self._objective(penalty)
        batch = objective.batch(self.x, self.y)
        steps = self.corrections if self.history else 3 * self.corrections
        adversary = p.adversary(objective, steps)
        try:
            if p.penalty is not None and not adversary.exact:
                adversary.check_finite(batch, ball=False)
            moved = p.move(adversary, batch, batch.q0 + self.displacement, steps)
        except UnboundedRiskError:
            return self.wall(point)
        gradient = p.parameter_gradient(objective, moved, self.w)
        whole = torch.cat([g.reshape(-1) for g in gradient]).double()
        flat = self.flat.double()
        whole = ((whole + self.decay * flat) * self.trainable).cpu().numpy()
        risk = float(moved.risk.double() @ self.w)
        cost = float(moved.cost.double() @ self.w)
        value = risk + 0.5 * float((self.decay * flat) @ flat)
        if p.penalty is not None:
            value -= penalty * cost
        elif p.radius:
            value += penalty * (p.radius**2 - cost)
            whole = np.append(whole, self.unit * (p.radius**2 - cost))
        if not math.isfinite(value):
            return self.wall(point)
        if self.record(point, value, whole, penalty, cost):
            self.displacement = moved.q - batch.q0
        return value, whole
