"""Private randomness: one `torch.Generator` per fit, children of it for its stages.

The global generators of numpy and torch belong to the user and are never touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from drojko._validation import is_whole, shown
from drojko.exceptions import InvalidDataError

__all__ = ["generator", "spawn"]


def generator(random_state: Any = None) -> torch.Generator:
    """Return the CPU generator that `random_state` stands for.

    Parameters
    ----------
    random_state : None, int, numpy RandomState or Generator, or torch.Generator
        None: a fresh generator seeded from the operating system. An int >= 0: that seed. A numpy
        generator: seeded by one draw from it. A torch.Generator: returned as it is, not copied.

    Examples
    --------
    >>> import torch
    >>> from drojko._random import generator
    >>> a, b = (torch.rand(2, generator=generator(7)) for _ in range(2))
    >>> bool((a == b).all())
    True
    """
    if isinstance(random_state, torch.Generator):
        return random_state
    fresh = torch.Generator()
    if random_state is None:
        fresh.seed()
    elif is_whole(random_state, 0):
        fresh.manual_seed(int(random_state))
    elif isinstance(random_state, np.random.RandomState):
        fresh.manual_seed(int(random_state.randint(2**31 - 1)))
    elif isinstance(random_state, np.random.Generator):
        fresh.manual_seed(int(random_state.integers(2**31 - 1)))
    else:
        raise InvalidDataError(
            f"random_state is {shown(random_state)}; give None, an integer >= 0, a numpy "
            "RandomState or Generator, or a torch.Generator"
        )
    return fresh


def spawn(parent: torch.Generator) -> torch.Generator:
    """Return a child generator, seeded by one draw from `parent`.

    One child per stage (reference, map, audit): another draw in one stage then leaves the
    other stages as they were.

    Examples
    --------
    >>> from drojko._random import generator, spawn
    >>> parent = generator(0)
    >>> spawn(parent).initial_seed() != spawn(parent).initial_seed()
    True
    """
    seed = torch.randint(2**63 - 1, (), generator=parent, device=parent.device)
    return torch.Generator().manual_seed(int(seed))
