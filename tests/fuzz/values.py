"""Wrong and extreme values: what a hurried or an unlucky user may hand to any argument.

Each entry makes its value anew, so that no call sees what another one left behind.
"""

import datetime
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch

ROWS = 12


class Nothing:
    """An object of no use."""

    def __repr__(self) -> str:
        return "Nothing()"


def _masked() -> Any:
    return np.ma.masked_array(np.arange(24.0).reshape(12, 2), mask=np.eye(12, 2, dtype=bool))


def _frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(float(ROWS)), **columns})


def _doubled() -> pd.DataFrame:
    return pd.DataFrame(np.arange(24.0).reshape(12, 2), columns=["a", "a"])


def _like(good: Any, change: Callable[[np.ndarray], Any]) -> Any:
    """A good array or tensor after a change; for what is none, the change of a table."""
    if isinstance(good, torch.Tensor):
        changed = change(good.detach().numpy().copy())
        return torch.from_numpy(np.ascontiguousarray(changed))
    if isinstance(good, np.ndarray) and good.dtype.kind in "fi" and good.size:
        return change(good.astype(float).copy())
    return change(np.arange(24.0).reshape(12, 2))


def _first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = np.atleast_1d(array).astype(float)
        array.flat[0] = value
        return array

    return change


#: Values that do not depend on the good one.
PLAIN: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "string": lambda: "wrong",
    "empty string": lambda: "",
    "True": lambda: True,
    "False as text": lambda: "False",
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "half": lambda: 0.5,
    "minus half": lambda: -0.5,
    "two": lambda: 2,
    "1e308": lambda: 1e308,
    "-1e308": lambda: -1e308,
    "1e-300": lambda: 1e-300,
    "5e-324": lambda: 5e-324,
    "10**400": lambda: 10**400,
    "complex": lambda: 1j,
    "numpy complex": lambda: np.complex128(1 + 1j),
    "Fraction": lambda: Fraction(1, 3),
    "numpy nan": lambda: np.float32("nan"),
    "numpy integer": lambda: np.int8(3),
    "zero-dimensional": lambda: np.array(0.3),
    "bytes": lambda: b"bytes",
    "object": Nothing,
    "class": lambda: Nothing,
    "type": lambda: int,
    "list": lambda: [],
    "nested list": lambda: [[]],
    "ragged": lambda: [[1.0, 2.0], [3.0]],
    "list of strings": lambda: ["a", "b"],
    "list of None": lambda: [None] * ROWS,
    "tuple": lambda: (1, 2, 3),
    "dict": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "generator": lambda: (float(i) for i in range(ROWS)),
    "range": lambda: range(ROWS),
    "date": lambda: datetime.datetime(2020, 1, 1),
    "datetimes": lambda: np.arange("2020-01-01", "2020-01-13", dtype="datetime64[D]"),
    "table of datetimes": lambda: np.full((ROWS, 2), np.datetime64("2020-01-01")),
    "timedeltas": lambda: np.arange(ROWS).astype("timedelta64[s]"),
    "complex array": lambda: np.ones((ROWS, 2)) * 1j,
    "complex vector": lambda: np.ones(ROWS) * (1 + 0j),
    "object array": lambda: np.array([Nothing()] * ROWS, dtype=object),
    "object table": lambda: np.array([[1.0, "x"]] * ROWS, dtype=object),
    "array of lists": lambda: np.array([[1, 2], None], dtype=object),
    "masked": _masked,
    "masked vector": lambda: np.ma.masked_array(np.arange(12.0), mask=np.arange(12) % 2),
    "empty": lambda: np.empty(0),
    "empty table": lambda: np.empty((0, 2)),
    "no columns": lambda: np.empty((ROWS, 0)),
    "scalar array": lambda: np.array(1.0),
    "three dimensions": lambda: np.ones((ROWS, 2, 2)),
    "texts": lambda: np.array(["x"] * ROWS),
    "structured": lambda: np.zeros(ROWS, dtype=[("a", float), ("b", int)]),
    "huge integers": lambda: np.array([10**30] * ROWS, dtype=object),
    "sparse": lambda: scipy.sparse.csr_matrix(np.eye(ROWS, 2)),
    "sparse array": lambda: scipy.sparse.coo_array(np.eye(ROWS, 2)),
    "tensor": lambda: torch.ones(ROWS, 2),
    "with gradient": lambda: torch.ones(ROWS, 2, dtype=torch.float64, requires_grad=True),
    "bfloat16": lambda: torch.ones(ROWS, 2, dtype=torch.bfloat16),
    "half precision": lambda: torch.ones(ROWS, 2, dtype=torch.float16),
    "meta": lambda: torch.ones(ROWS, 2, device="meta"),
    "complex tensor": lambda: torch.ones(ROWS, 2, dtype=torch.complex64),
    "sparse tensor": lambda: torch.eye(ROWS, 2).to_sparse(),
    "integer tensor": lambda: torch.ones(ROWS, dtype=torch.int64),
    "boolean tensor": lambda: torch.ones(ROWS, 2, dtype=torch.bool),
    "empty tensor": lambda: torch.empty(0, 2, dtype=torch.float64),
    "zero-dimensional tensor": lambda: torch.tensor(1.0),
    "module": lambda: torch.nn.Linear(2, 1, dtype=torch.float64),
    "frame": lambda: _frame(b=1.0),
    "text column": lambda: _frame(b=["x"] * ROWS),
    "period column": lambda: _frame(b=pd.period_range("2020-01", periods=ROWS, freq="M")),
    "date column": lambda: _frame(b=pd.date_range("2020-01-01", periods=ROWS)),
    "list column": lambda: _frame(b=[[1, 2]] * ROWS),
    "missing column": lambda: _frame(b=pd.array([1, None] * 6, dtype="Int64")),
    "duplicate columns": _doubled,
    "sparse frame": lambda: pd.DataFrame.sparse.from_spmatrix(scipy.sparse.eye(ROWS, 2).tocsr()),
    "multi-index": lambda: pd.DataFrame(
        np.ones((ROWS, 2)), columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])
    ),
    "empty frame": pd.DataFrame,
    "series": lambda: pd.Series(np.arange(float(ROWS))),
    "period series": lambda: pd.Series(pd.period_range("2020-01", periods=ROWS, freq="M")),
    "missing labels": lambda: np.array(["a", None] * 6, dtype=object),
    "path": lambda: Path("/nowhere/at/all"),
    "function": lambda: lambda *args: None,
    "function of text": lambda: lambda *args: "text",
    "function of a tuple": lambda: lambda *args: (args[0], args[0]),
    "function of first": lambda: lambda *args: args[0][:1],
    "function of nan": lambda: lambda *args: args[-1].sum(-1) * math.nan,
    "function of detached": lambda: lambda *args: args[-1].detach().sum(-1),
    "function of integers": lambda: lambda *args: torch.ones(len(args[-1]), dtype=torch.int64),
    "function of complex": lambda: lambda *args: torch.ones(len(args[-1]), dtype=torch.complex128),
    "function of a scalar": lambda: lambda *args: torch.tensor(1.0),
    "function of huge": lambda: lambda *args: args[-1].sum(-1) * 1e300,
}

#: Values made from the good one: right in kind, wrong in content.
RELATED: dict[str, Callable[[Any], Any]] = {
    "with a nan": lambda good: _like(good, _first(math.nan)),
    "with an inf": lambda good: _like(good, _first(math.inf)),
    "with -1": lambda good: _like(good, _first(-1.0)),
    "times 1e200": lambda good: _like(good, lambda a: a * 1e200),
    "times 1e-200": lambda good: _like(good, lambda a: a * 1e-200),
    "times 1e308": lambda good: _like(good, lambda a: a * 1e308),
    "zeros": lambda good: _like(good, np.zeros_like),
    "constant": lambda good: _like(good, np.ones_like),
    "negative": lambda good: _like(good, lambda a: -a),
    "first half": lambda good: _like(good, lambda a: a[: len(np.atleast_1d(a)) // 2]),
    "one row": lambda good: _like(good, lambda a: np.atleast_1d(a)[:1]),
    "another axis": lambda good: _like(good, lambda a: a[..., None]),
    "flat": lambda good: _like(good, lambda a: a.ravel()),
    "transposed": lambda good: _like(good, lambda a: a.T),
    "more columns": lambda good: _like(good, lambda a: np.tile(np.atleast_2d(a), 2)),
    "single precision": lambda good: _like(good, lambda a: a.astype(np.float32)),
    "integers": lambda good: _like(good, lambda a: a.astype(np.int64)),
    "as list": lambda good: good.tolist() if hasattr(good, "tolist") else [good],
    "in a list": lambda good: [good],
    "its class": type,
    "its text": repr,
}


def wrong(name: str, good: Any) -> Any:
    """The value of a name, for the place of a good one."""
    with np.errstate(all="ignore"):  # huge numbers overflow here already
        return PLAIN[name]() if name in PLAIN else RELATED[name](good)


NAMES = [*PLAIN, *RELATED]
