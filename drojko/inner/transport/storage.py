"""Adversaries as arrays and plain values, and back: what a model file stores."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Objective
from drojko.inner.swaps import Swaps
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.candidates import (
    BoxPath,
    Candidate,
    Condition,
    LearnedMap,
    PairMoves,
    Stay,
    Support,
)
from drojko.inner.transport.search.rounds import Search
from drojko.inner.transport.search.starts import Anchors
from drojko.losses import Loss
from drojko.models import TabularModel
from drojko.transport.icnn import ICNN
from drojko.transport.maps import BrenierMap

__all__ = ["pack", "pack_module", "pack_swaps", "swapping", "unpack", "unpack_module"]

_SETTINGS = ("screening", "corrections", "tol", "n_labels", "label_cost")
_KINDS: dict[str, type] = {c.__name__: c for c in (Stay, PairMoves, Support, BoxPath)}


def _plain(value: Any) -> Any:
    if isinstance(value, (Swaps, Condition, Coordinates, Search, Anchors, *_KINDS.values())):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and any(isinstance(part, Tensor) for part in value):
        return [_plain(part) for part in value]
    return value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else value


def pack_module(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers of a module as arrays."""
    return {name: _plain(value) for name, value in module.state_dict().items()}


def unpack_module(module: torch.nn.Module, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
    """Load arrays into a module of the same structure; returns it, without gradients."""
    # Copies: arrays of a memory-mapped model file are read-only.
    module.load_state_dict({k: torch.tensor(np.array(v)) for k, v in arrays.items()})
    return module.requires_grad_(False)


def _pack_candidate(candidate: Candidate) -> dict[str, Any]:
    if isinstance(candidate, LearnedMap):
        brenier = candidate.brenier
        potential = brenier.potential
        return {
            "kind": "LearnedMap",
            "condition": _plain(candidate.condition),
            "dim": potential.dim,
            "hidden": list(potential.hidden),
            "context": potential.context,
            "weights": pack_module(potential),
            "centre": _plain(brenier.centre),
            "scale": brenier.scale,
        }
    return {"kind": type(candidate).__name__, **_plain(candidate)}


def _unpack_candidate(state: dict[str, Any], like: dict[str, Any]) -> Candidate:
    state = dict(state)
    kind = state.pop("kind")
    if kind == "LearnedMap":
        potential = ICNN(state["dim"], hidden=state["hidden"], context=state["context"], **like)
        unpack_module(potential, state["weights"])
        centre = torch.tensor(state["centre"], **like)
        condition = Condition(**{k: _tensor(v, like) for k, v in state["condition"].items()})
        return LearnedMap(BrenierMap(potential, centre, state["scale"]), condition)
    return _KINDS[kind](**{k: _tensor(v, like) for k, v in state.items()})


def _tensor(value: Any, like: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return tuple(_tensor(part, like) for part in value)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind in "iu":
        return torch.tensor(value, device=like["device"])
    return torch.tensor(value, **like)


def pack(adversary: Adversary) -> dict[str, Any]:
    """Everything but the model and the loss, which the estimator stores itself."""
    return {
        "coordinates": _plain(adversary.objective.coordinates),
        "penalty": adversary.objective.penalty,
        "candidates": [_pack_candidate(c) for c in adversary.candidates],
        "search": _plain(adversary.search),
        **{name: getattr(adversary, name) for name in _SETTINGS},
    }


def pack_swaps(swaps: Swaps) -> dict[str, Any]:
    """Swaps of a state without coordinates."""
    return _plain(swaps)


def swapping(objective: Objective, state: dict[str, Any]) -> Objective:
    """The objective with the swaps of `pack_swaps`."""
    q = objective.coordinates
    parameter = next(iter(objective.model.parameters()))
    swaps = _swaps(state, {"dtype": parameter.dtype, "device": parameter.device})
    return replace(objective, coordinates=replace(q, swaps=swaps))


def _swaps(state: dict[str, Any], like: dict[str, Any]) -> Swaps:
    return Swaps(**{k: _tensor(v, like) for k, v in state.items()})


def unpack(
    state: dict[str, Any],
    model: TabularModel,
    loss: Loss,
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> Adversary:
    """The adversary of a packed state, on a device."""
    like = {"dtype": dtype, "device": device}
    coordinates = Coordinates(**{k: _tensor(v, like) for k, v in state["coordinates"].items()})
    if isinstance(coordinates.swaps, dict):
        coordinates = replace(coordinates, swaps=_swaps(coordinates.swaps, like))
    search = state.get("search")
    if search is not None:
        anchors = Anchors(**{k: _tensor(v, like) for k, v in search["anchors"].items()})
        search = Search(**{**search, "anchors": anchors})
    return Adversary(
        Objective(model, loss, coordinates, state["penalty"]),
        tuple(_unpack_candidate(c, like) for c in state["candidates"]),
        search=search,
        **{name: state[name] for name in _SETTINGS},
    )
