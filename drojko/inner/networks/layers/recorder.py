"""A recorder of what torch is asked for while rows pass through a module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drojko.exceptions import UnsupportedError
from drojko.inner.networks.activations import activation
from drojko.inner.networks.layers.operations import Affine, Piece, Positive, Scaling, Sum, Unit
from drojko.inner.networks.layers.program import Program, Whole

__all__ = ["ROWS", "Recorder", "Rule", "moved", "tensors", "unit"]

#: Rows of the run: few, and a number that no shape is likely to hold.
ROWS = 11
#: (recorder, args, kwargs, output) -> node.
Rule = Callable[[Any, Any, Any, Tensor], int]


class Recorder(TorchDispatchMode):
    """Records what happens to rows, and to all that comes from them."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the compiler takes a second to import, and is not used

    def __init__(self, rows: Tensor, rules: dict[str, Rule]) -> None:
        super().__init__()
        self.rules = rules
        self.program = Program()
        self.alive: list[Any] = [rows]  # identities are those of living objects
        #: Nodes of tensors, or why they have none.
        self.known: dict[int, int | str] = {id(rows): self.program.add(None, (), rows.shape[1:])}

    def finished(self, out: Tensor) -> Program:
        """The program, with the outputs (n, K) last."""
        where = self.known.get(id(out), "its output does not depend on its input")
        if isinstance(where, str):
            raise UnsupportedError(where)
        self.add(moved((-1,)), (where,), (ROWS, math.prod(out.shape[1:])))
        return self.program

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [a for part in (*args, *kwargs.values()) for a in tensors(part)]
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not any(id(a) in self.known for a in given):
            return out
        parts = list(out) if isinstance(out, tuple | list) else [out]
        lost = [why for a in given if isinstance(why := self.known.get(id(a)), str)]
        if lost:
            if name.endswith("_"):
                self._overwritten(args[0])
            for part in parts:
                self._keep(part, lost[0])
            return out
        copied = name == "_to_copy" and parts[0].dtype == args[0].dtype
        if copied or name in ("detach", "alias", "lift_fresh"):
            self._keep(out, self.known[id(args[0])])
            return out
        plain = name.removesuffix("_")
        first = parts[0]
        rule = self.rules.get(plain)
        if rule is None or not isinstance(first, Tensor) or not first.is_floating_point():
            raise UnsupportedError(f"no bounds are known of {public(plain)}")
        where = rule(self, args, kwargs, first)
        if plain != name:
            self._overwritten(args[0])
        for other in parts[1:]:
            self._keep(other, f"it uses what {public(plain)} returns besides its values")
        self._keep(first, where)
        return out

    def _overwritten(self, changed: Tensor) -> None:
        """Whatever shares memory with a tensor that was changed is known no more."""
        memory = changed.untyped_storage().data_ptr()
        for one in self.alive:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() == memory:
                self.known[id(one)] = "it overwrites parts of what it uses later"

    def _keep(self, out: Any, where: int | str) -> None:
        self.alive.append(out)
        self.known[id(out)] = where

    # -- what the rules use ---------------------------------------------------------------------

    def at(self, x: Any) -> int | None:
        """The node of a tensor; None: a constant."""
        where = self.known.get(id(x)) if isinstance(x, Tensor) else None
        return where if isinstance(where, int) else None

    def shape(self, where: int) -> tuple[int, ...]:
        return self.program.nodes[where].shape

    def add(
        self, make: Any, sources: tuple[int, ...], shape: Any, whole: Whole | None = None
    ) -> int:
        """A node, given as an operation or as a function of (shape before, shape after)."""
        if not shape or shape[0] != ROWS:
            raise UnsupportedError(
                "it mixes rows, or joins them with another axis, as linear layers on more than two "
                "axes do"
            )
        after = tuple(shape[1:])
        known = isinstance(make, Affine | Unit)
        operation = make if known else Positive(make(after), self.shape(sources[0]), after)
        return self.program.add(operation, sources, after, whole)

    def like(self, where: int, out: Tensor) -> int:
        """The node, repeated along axes that broadcasting gives it."""
        after = tuple(out.shape[1:])
        if self.shape(where) == after:
            return where
        lead = len(after) - len(self.shape(where))
        shape = (1,) * lead + self.shape(where)

        def repeated(x: Tensor) -> Tensor:
            return x.reshape(len(x), *shape).expand(len(x), *after)

        return self.add(lambda after: repeated, (where,), out.shape)

    def scaled(self, where: int, out: Tensor, factor: Any, shift: Any) -> int:
        """Factor * x + shift, of constants that broadcast with the batch's shape."""
        where = self.like(where, out)
        one = tuple(self._constant(c, out) for c in (factor, shift))
        return self.add(Scaling(*one), (where,), out.shape)

    @staticmethod
    def _constant(value: Any, out: Tensor) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.ndim == out.ndim and len(value) == ROWS:
            if not bool((value == value[:1]).all()):
                raise UnsupportedError("a constant of it differs from row to row")
            value = value[:1]
        return value.reshape(value.shape[1:]) if value.ndim == out.ndim else value

    def relu_of(self, where: int) -> int:
        return self.program.add(unit("relu"), (where,), self.shape(where))

    def larger(self, left: int, right: int, whole: Whole) -> int:
        """max(l, r) = l + relu(r - l)."""
        shape = self.shape(left)
        above = self.relu_of(self.program.add(Sum(-1.0), (right, left), shape))
        return self.program.add(Sum(), (left, above), shape, whole)


def tensors(part: Any) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    return [t for p in part for t in tensors(p)] if isinstance(part, list | tuple) else []


def public(name: str) -> str:
    return name.removeprefix("_").removeprefix("native_")


def moved(shape: tuple[int, ...]) -> Callable[..., Any]:
    return lambda after: lambda x: x.reshape(len(x), *after)


def unit(name: str, height: float = 1.0, rate: float = 1.0) -> Unit:
    act = activation(name)
    assert act is not None
    slopes = (height * rate * act.slopes[0], height * rate * act.slopes[1])
    return Unit(
        (Piece(act, height, rate),), slopes, (height * act.values[0], height * act.values[1])
    )
