"""One call under a time limit, and what became of it."""

import contextlib
import io
import math
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import NotFittedError

import drojko
from drojko._sklearn import InvalidParameterError
from drojko.exceptions import DrojkoError

PACKAGE = str(Path(drojko.__file__).parent)
HERE = str(Path(__file__).parent)
#: Numbers that are NaN by their documentation where nothing is known of them.
_UNKNOWN = {"stationarity", "relative_gap", "tail_index", "columns", "history", "_history"}
_UNKNOWN |= {"optimality_gap", "optimality_gap_", "log_normaliser"}
_SIGNATURE = re.compile(
    r"unexpected keyword|required (positional|keyword)|positional arguments? but|"
    r"multiple values for|Can't instantiate abstract|attribute name must be string|"
    r"keywords must be strings|takes no arguments"
)


class Hang(BaseException):
    """The time limit."""


@dataclass
class Verdict:
    """What became of a call: "fine", "own", "foreign", "nan" or "hang"."""

    kind: str
    text: str = ""
    where: str = ""


def call(function: Callable[[], Any], seconds: float = 20.0, *, given_nan: bool = False) -> Verdict:
    """Call a function; nothing that it prints, warns of or raises gets out."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                found = function()
    except Hang:
        return Verdict("hang", f"no end within {seconds:g} s")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return judged(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    name = silent_nan(found)
    return Verdict("nan", name) if name and not given_nan else Verdict("fine")


def judged(error: BaseException) -> Verdict:
    """Whether an error is one of ours, or of scikit-learn's checks of what the user gave."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename
    ours = [f for f in frames if f.filename.startswith(PACKAGE)]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "call"
    text = f"{type(error).__name__}: {error}"[:160].replace("\n", " ")
    own = isinstance(error, DrojkoError | NotFittedError | InvalidParameterError)
    own |= type(error) in (AttributeError, NotImplementedError) and _documented(error, frames)
    own |= type(error) is TypeError and bool(_SIGNATURE.search(str(error)))
    own |= isinstance(error, ValueError | TypeError) and "sklearn/utils" in last
    own |= isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError)
    own |= last.startswith(HERE)  # the wrong value itself raised
    return Verdict("own" if own else "foreign", text, where)


def _documented(error: BaseException, frames: list[Any]) -> bool:
    """Abstract methods, and attributes that explain why they are absent."""
    line = frames[-1].line or ""
    return frames[-1].filename.startswith(PACKAGE) and line.startswith("raise")


def silent_nan(found: Any, depth: int = 4) -> str:
    """Where a result holds NaN that its documentation does not know of; empty: nowhere."""
    if isinstance(found, bool | str | bytes | type(None)) or depth == 0:
        return ""
    if isinstance(found, float | np.floating):
        return "nan" if math.isnan(found) else ""
    if isinstance(found, torch.Tensor):
        bad = not found.is_meta and found.is_floating_point() and bool(torch.isnan(found).any())
        return "tensor" if bad else ""
    if isinstance(found, np.ndarray):
        return "array" if found.dtype.kind == "f" and bool(np.isnan(found).any()) else ""
    if isinstance(found, pd.DataFrame | pd.Series):
        return ""  # tables have empty cells
    if isinstance(found, Mapping):
        parts = list(found.items())
    elif isinstance(found, list | tuple):
        parts = [(str(i), value) for i, value in enumerate(found[:50])]
    elif is_dataclass(found) or type(found).__module__.startswith("drojko"):
        parts = list(getattr(found, "__dict__", {}).items())
        given = set(found.get_params(deep=False)) if hasattr(found, "get_params") else set()
        parts = [(k, v) for k, v in parts if k.lstrip("_") not in given]
    else:
        return ""
    for name, value in parts:
        if str(name) not in _UNKNOWN and (inside := silent_nan(value, depth - 1)):
            return f"{name}: {inside}"
    return ""
