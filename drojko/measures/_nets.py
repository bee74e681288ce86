"""Scrambled nets: draws that cover a Gaussian or a mixture evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from drojko.measures.gaussian import Gaussian
from drojko.measures.mixture import GaussianMixture

__all__ = ["net"]


def net(base: Gaussian | GaussianMixture, n: int, generator: torch.Generator) -> Tensor:
    """Return n points of a scrambled Sobol net of a Gaussian or a mixture, shape (n, d).

    Each is distributed as the measure, and together they cover it more evenly than independent
    draws: averages of smooth functions are unbiased with a much smaller error. The net's first
    coordinate picks the component.
    """
    seed = generator.initial_seed() % 2**31
    net = torch.quasirandom.SobolEngine(base.dim + 1, scramble=True, seed=seed)
    uniform = net.draw(n, dtype=torch.float64).clamp(1e-12, 1.0 - 1e-12)
    z = torch.special.ndtri(uniform[:, 1:])
    if isinstance(base, Gaussian):
        return base.mean + z @ torch.linalg.cholesky(base.covariance).T
    edges = torch.cumsum(torch.as_tensor(base.weights_), 0)
    pick = torch.searchsorted(edges, uniform[:, 0].contiguous()).clamp_max(len(edges) - 1)
    x = torch.empty_like(z)
    for k in pick.unique().tolist():
        factor = torch.linalg.cholesky(torch.as_tensor(base.covariances_[k]))
        x[pick == k] = torch.as_tensor(base.means_[k]) + z[pick == k] @ factor.T
    return x
