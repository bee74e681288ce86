"""Decision variables as one flat vector: what solvers move, in the shape that the user gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._validation import floats
from drojko.exceptions import InvalidDataError

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and kinds of decision variables; ``split`` undoes ``flatten``.

    ``container`` is "one", "dict" or "list"; ``kinds`` say what each variable came as: "tensor",
    "array" or "number".

    Examples
    --------
    >>> layout, flat = Layout.of({"weights": np.zeros(2), "threshold": 0.5})
    >>> flat
    tensor([0.0000, 0.0000, 0.5000], dtype=torch.float64)
    >>> layout.restore(flat + 1)
    {'weights': array([1., 1.]), 'threshold': 1.5}
    """

    container: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    @staticmethod
    def of(params: Any) -> tuple[Layout, Tensor]:
        """Layout of ``params`` (number, array, tensor, dict or list of these) and its values."""
        if isinstance(params, dict):
            container, names, values = "dict", tuple(map(str, params)), list(params.values())
        elif isinstance(params, list | tuple) and any(
            isinstance(value, Tensor | np.ndarray) for value in params
        ):
            container, values = "list", list(params)
            names = tuple(map(str, range(len(values))))
        else:
            container, names, values = "one", ("params",), [params]
        found = [_tensor(name, value) for name, value in zip(names, values, strict=True)]
        flat = torch.cat([torch.zeros(0), *(tensor.reshape(-1) for tensor, _ in found)])
        if flat.numel() == 0:
            raise InvalidDataError("params holds no number to decide on")
        shapes, kinds = zip(*((tuple(tensor.shape), kind) for tensor, kind in found))
        return Layout(container, names, shapes, kinds), flat.double()

    @property
    def slices(self) -> dict[str, slice]:
        """Where each variable lies in the flat vector."""
        found, offset = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = int(np.prod(shape, dtype=int))
            found[name] = slice(offset, offset + size)
            offset += size
        return found

    def split(self, flat: Tensor) -> Any:
        """The variables as views of ``flat``, which autograd follows."""
        parts = self.slices.values()
        return self._contain([flat[s].view(d) for s, d in zip(parts, self.shapes, strict=True)])

    def restore(self, flat: Tensor) -> Any:
        """The variables as they came: tensors, arrays and numbers."""
        values: list[Any] = []
        parts = zip(self.slices.values(), self.shapes, self.kinds, strict=True)
        for where, shape, kind in parts:
            tensor = flat[where].detach().clone().view(shape)
            if kind == "number":
                values.append(float(tensor))
            else:
                values.append(tensor.cpu().numpy() if kind == "array" else tensor)
        return self._contain(values)

    def read(self, params: Any) -> Tensor:
        """The flat vector of other values in this layout."""
        other, flat = Layout.of(params)
        if other.names != self.names or other.shapes != self.shapes:
            raise InvalidDataError(
                f"params have the shapes {dict(zip(other.names, other.shapes, strict=True))}; "
                f"this problem's are {dict(zip(self.names, self.shapes, strict=True))}"
            )
        return flat

    def _contain(self, values: Sequence[Any]) -> Any:
        if self.container == "one":
            return values[0]
        if self.container == "list":
            return list(values)
        return dict(zip(self.names, values, strict=True))


def _tensor(name: str, value: Any) -> tuple[Tensor, str]:
    array = np.array(floats(value, f"params: {name}"), order="C")
    tensor = torch.from_numpy(array)
    kind = "tensor" if isinstance(value, Tensor) else "array" if array.ndim else "number"
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidDataError(f"params: {name} contains NaN or infinity; give a finite start")
    return tensor.clone(), kind
