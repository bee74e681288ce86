import math

import pytest
import torch

from drojko.flows import MapState


@pytest.fixture(scope="session")
def known_map(seed):
    """Gradient of the convex function |z|^2 / 4 + logsumexp(2 A z) / 2, and A."""
    slopes = torch.randn(
        6, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    return lambda z: 0.5 * z + torch.softmax(2.0 * z @ slopes.T, 1) @ slopes


@pytest.fixture(scope="session")
def trained(seed, known_map):
    """A map state fitted to the known map on standard normal draws."""
    gen = torch.Generator().manual_seed(seed + 2)
    draw = lambda n: torch.randn(n, 3, generator=gen, dtype=torch.float64)  # noqa: E731
    state = MapState.start(draw(500), generator=gen, hidden=(32, 32))
    steps = 500
    for k in range(steps):
        x = draw(256)
        rate = 1e-2 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * k / steps)))
        state.advance(x, None, lambda _, x=x: known_map(x), rate)
    return state
