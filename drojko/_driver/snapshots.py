"""States as plain values and tensors, and back: what a checkpoint holds, which runs no code.

Objects are stored as the name of their class and what they hold, and only classes that drojko or
torch's own layers define are made again, without their constructors. What the caller handed in (a
measure, a function) is not stored: its place is, and the next call's takes it.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
import torch

from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["code_in", "dumped", "fingerprint", "loaded"]

_PLAIN = (type(None), bool, int, float, str, bytes)
#: Layers that modules of drojko are made of.
_LAYERS = tuple(
    f"torch.nn.modules.{name}"
    for name in (
        "container.ModuleList", "container.ParameterList", "container.Sequential", "linear.Linear",
    )
)  # fmt: skip


def dumped(value: Any, given: Sequence[Any] = ()) -> bytes:
    """The bytes of a state; tensors that share memory do so again when they are loaded.

    Raises
    ------
    UnsupportedError
        Where it holds an object of another package that is not among those ``given``.

    Examples
    --------
    >>> loaded(dumped({"a": (1, np.arange(2))}))
    {'a': (1, array([0, 1]))}
    """
    buffer = io.BytesIO()
    torch.save(_Packer(given).pack(value), buffer)
    return buffer.getvalue()


def loaded(content: bytes, given: Sequence[Any] = ()) -> Any:
    """What `dumped` was given, with the objects ``given`` now in the place of those of then."""
    return _Unpacker(given).unpack(torch.load(io.BytesIO(content), weights_only=True))


class _Packer:
    def __init__(self, given: Sequence[Any]) -> None:
        self.given = {id(one): k for k, one in enumerate(given)}
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # so that no number is used again

    def pack(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if id(value) in self.given:
            return {"kind": "given", "at": self.given[id(value)]}
        if id(value) in self.seen:
            return {"kind": "same", "at": self.seen[id(value)]}
        self.seen[id(value)] = at = len(self.seen)
        self.alive.append(value)
        return {"at": at, **self._described(value)}

    def _described(self, value: Any) -> dict[str, Any]:
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "state": value.get_state(), "device": str(value.device)}
        if isinstance(value, torch.nn.Parameter):
            kept = value.requires_grad
            return {"kind": "parameter", "data": value.detach(), "trained": kept}
        if type(value) is torch.Tensor:
            return {"kind": "tensor", "data": value.detach()}
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            return {"kind": "array", "data": torch.from_numpy(np.array(value))}
        if isinstance(value, np.generic):
            return {"kind": "number", "type": value.dtype.str, "value": value.item()}
        if type(value) in (list, tuple, set):
            return {"kind": type(value).__name__, "items": [self.pack(one) for one in value]}
        if type(value) in (dict, OrderedDict):
            pairs = [(self.pack(key), self.pack(one)) for key, one in value.items()]
            return {"kind": type(value).__name__, "items": pairs}
        if isinstance(value, torch.dtype | torch.device):
            return {"kind": type(value).__name__, "name": str(value).removeprefix("torch.")}
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if not _own(name):
            raise UnsupportedError(
                f"a checkpoint cannot hold {name}: it stores tensors, arrays, plain values and "
                "objects of drojko. Leave out checkpoint"
            )
        if isinstance(value, Enum):
            return {"kind": "enum", "class": name, "value": value.value}
        own = type(value).__dict__.get("__getstate__")
        held: Any = value.__getstate__() if own else vars(value)
        return {"kind": "object", "class": name, "held": self.pack(dict(held))}


class _Unpacker:
    def __init__(self, given: Sequence[Any]) -> None:
        self.given, self.seen = given, dict[int, Any]()

    def unpack(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        kind = node["kind"]
        if kind == "given":
            return self.given[node["at"]]
        if kind == "same":
            return self.seen[node["at"]]
        if kind == "object":  # which may hold itself
            made = _class(node["class"])
            value = self.seen[node["at"]] = made.__new__(made)
            held = self.unpack(node["held"])
            if "__setstate__" in made.__dict__:
                value.__setstate__(held)
            else:
                value.__dict__.update(held)
            return value
        value = self.seen[node["at"]] = self._made(kind, node)
        return value

    def _made(self, kind: str, node: dict[str, Any]) -> Any:
        if kind == "generator":
            generator = torch.Generator(node["device"])
            generator.set_state(node["state"])
            return generator
        if kind == "parameter":
            return torch.nn.Parameter(node["data"], requires_grad=node["trained"])
        if kind == "tensor":
            return node["data"]
        if kind == "array":
            return node["data"].numpy()
        if kind == "number":
            return np.dtype(node["type"]).type(node["value"])
        if kind in ("list", "tuple", "set"):
            return {"list": list, "tuple": tuple, "set": set}[kind](map(self.unpack, node["items"]))
        if kind in ("dict", "OrderedDict"):
            pairs = [(self.unpack(key), self.unpack(one)) for key, one in node["items"]]
            return dict(pairs) if kind == "dict" else OrderedDict(pairs)
        if kind == "dtype":
            return getattr(torch, node["name"])
        if kind == "device":
            return torch.device(node["name"])
        if kind == "enum":
            return _class(node["class"])(node["value"])
        raise InvalidDataError(f"it holds a {kind!r}, which this version of drojko does not know")


def _own(name: str) -> bool:
    """Whether a class of that name is drojko's or a layer, by where it says that it is."""
    parts = name.split(".")
    return name in _LAYERS or (parts[0] == "drojko" and "__main__" not in parts)


def _class(name: str) -> Any:
    """The class of a name in a file: its module is imported, and nothing else is run."""
    module, _, kind = name.rpartition(".")
    found: Any = None
    if _own(name):
        with suppress(ImportError):
            found = getattr(importlib.import_module(module), kind, None)
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, kind):
        raise InvalidDataError(f"it names the class {name}, which drojko does not load")
    return found


def code_in(*values: Any) -> list[Any]:
    """Functions that objects hold, in the order of their attributes: a checkpoint stores none."""
    found: list[Any] = []
    _walk(values, lambda one: found.append(one) if callable(one) and _is_code(one) else None, set())
    return found


def _is_code(value: Any) -> bool:
    kinds = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return isinstance(value, kinds) or (not _own(name) and not isinstance(value, type))


def _walk(value: Any, look: Callable[[Any], Any], seen: set[int]) -> None:
    if type(value) in _PLAIN or id(value) in seen:
        return
    seen.add(id(value))
    look(value)
    if isinstance(value, list | tuple):
        for one in value:
            _walk(one, look, seen)
    elif isinstance(value, dict):
        _walk(list(value.values()), look, seen)
    elif not isinstance(value, type | types.FunctionType | types.ModuleType | torch.Tensor):
        _walk(list(getattr(value, "__dict__", {}).values()), look, seen)


def fingerprint(value: Any) -> str:
    """A digest of what a value says: numbers of arrays, settings of objects, names of functions.

    >>> fingerprint(np.arange(3)) == fingerprint(np.arange(3)), fingerprint(1) == fingerprint(1.0)
    (True, False)
    """
    digest = hashlib.sha256()
    _add(digest, value, [])
    return digest.hexdigest()


def _add(digest: Any, value: Any, above: list[int]) -> None:
    kind = type(value)
    digest.update(f"{kind.__module__}.{kind.__qualname__}(".encode())
    if id(value) in above:
        digest.update(str(above.index(id(value))).encode())
    elif kind in _PLAIN or isinstance(value, np.generic | torch.dtype | torch.device):
        digest.update(repr(value).encode())
    elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        step = max(1, (1 << 22) // max(1, value[:1].nbytes)) if value.ndim else 1
        for first in range(0, len(value) if value.ndim else 1, step):
            part = value[first : first + step] if value.ndim else value
            digest.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(value, torch.Tensor):
        _add(digest, value.detach().cpu().numpy(), above)
    elif isinstance(value, torch.Generator | np.random.RandomState):
        _add(digest, value.get_state(), above)
    elif isinstance(
        value, types.FunctionType | types.MethodType | types.BuiltinFunctionType | type
    ):
        digest.update(getattr(value, "__qualname__", "").encode())
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            _add(digest, key, above)
            _add(digest, value[key], [*above, id(value)])
    elif isinstance(value, list | tuple | np.ndarray):
        for one in value if isinstance(value, list | tuple) else value.ravel().tolist():
            _add(digest, one, [*above, id(value)])
    else:
        _add(digest, dict(getattr(value, "__dict__", {})), [*above, id(value)])
    digest.update(b")")
