"""Networks of known layers, read off a run of their module.

The operations that torch is asked for while a few rows pass are recorded, whatever calls them:
layers, functions, hooks. What depends on the rows must come from operations that bounds are known
of; the rest are constants. The program is then compared with the module elsewhere.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from drojko.exceptions import UnsupportedError
from drojko.inner.networks.layers.program import Program
from drojko.inner.networks.layers.recorder import ROWS, Recorder
from drojko.inner.networks.layers.rules import RULES

__all__ = ["traced"]

#: Outputs of the module and of the program agree up to this, relative.
_AGREE = 1e-6


def traced(module: nn.Module, x: Tensor) -> Program:
    """The program of a module on rows like x (n, d), in float64; it computes the same at x.

    Raises
    ------
    UnsupportedError
        Where no bounds are known of something that the module does; it names that.
    """
    try:
        own: Any = copy.deepcopy(module).double().cpu().requires_grad_(False)
    except Exception as error:
        raise UnsupportedError(f"the module cannot be copied ({error})") from error
    x = x.double().cpu()
    rows = x[torch.arange(ROWS) % len(x)]
    recorder = Recorder(rows, RULES)
    try:
        with torch.no_grad(), recorder:
            out = own(rows)
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(f"it fails in float64 ({error})") from error
    program = recorder.finished(out)
    x = torch.cat([x, 1.5 * x.flip(1) + 0.1])  # elsewhere, and in other company
    with torch.no_grad():
        parts = [program.forward(part)[-1] for part in x.tensor_split((1, max(1, len(x) // 3)))]
        found, again = torch.cat(parts), own(x)
        again = again.reshape(found.shape)
        size = 1.0 + again.abs().amax()
        if not bool(((found - again).abs() <= _AGREE * size).all()):
            raise UnsupportedError(
                "its forward pass is no fixed function of its layers (random numbers, counters, "
                "data that leave torch, branches), or gives NaN"
            )
    return program
