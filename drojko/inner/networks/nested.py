"""Tensors in nested lists, tuples and dataclasses, all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

__all__ = ["mapped", "taken"]


def taken(part: Any, index: Tensor) -> Any:
    """Some rows of all tensors in nested lists, tuples and dataclasses."""
    return mapped(part, lambda tensor: tensor[index])


def mapped(part: Any, of: Callable[[Tensor], Tensor]) -> Any:
    """All tensors in nested lists, tuples and dataclasses as something else."""
    if isinstance(part, Tensor):
        return of(part)
    if isinstance(part, list | tuple):
        return type(part)(mapped(p, of) for p in part)
    if part is None:
        return None
    return replace(part, **{f.name: mapped(getattr(part, f.name), of) for f in fields(part)})
