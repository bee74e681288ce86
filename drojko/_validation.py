"""The one place that says what arguments may be: numbers, arrays, names, and doors that ask for it.

A public function or class is marked `checked`: what its annotations say is then true inside, and
errors name the argument, what was got and what was expected. Shapes are said in letters.

>>> @checked(x="n d", weights="n")
... def mean(x: Tensor, weights: Tensor) -> Tensor:
...     return weights @ x
>>> mean(torch.ones(3, 2), torch.ones(4))
Traceback (most recent call last):
drojko.exceptions.InvalidDataError: mean: weights is a tensor of shape (4,) and dtype torch.float32;
expected shape (n,) with n = 3
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import update_wrapper
from numbers import Integral, Real
from types import FunctionType
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from drojko.exceptions import InvalidDataError

__all__ = [
    "Checked", "check_flag", "check_number", "check_scale", "checked", "chosen", "culprit",
    "did_you_mean", "floats", "is_moderate", "is_real", "is_whole", "is_widths",
    "plain_tensor", "refuse", "set_known", "shown",
]  # fmt: skip

# Words -------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as messages show it, whatever it is and however long.

    >>> shown(0.5), shown(np.ones((2, 3))), shown(int)
    ('0.5', 'an array of shape (2, 3) and dtype float64', 'the class int')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        where = " on the meta device" if value.is_meta else ""
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}{where}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    try:
        text = repr(value)
    except Exception:  # an integer of 5000 digits, or a class with a mistake in it
        text = ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def did_you_mean(name: Any, known: Iterable[str], words: str = "known: ") -> str:
    """Return "did you mean ...? " or nothing, and the known names.

    >>> did_you_mean("radus", ["penalty", "radius"])
    "did you mean 'radius'? known: penalty, radius"
    """
    names = list(map(str, known))
    near = get_close_matches(str(name).lower(), names, 1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}{words}{', '.join(names)}"


def chosen(where: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless a value is one of the known names."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise InvalidDataError(
            f"{where}={shown(value)} is unknown; {did_you_mean(value, names)} (choose one of these)"
        )


def set_known(owner: Any, set_params: Callable[..., Any], params: dict[str, Any]) -> Any:
    """Call scikit-learn's ``set_params``; of an unknown name say which one may be meant."""
    known = owner.get_params(deep=False)
    for key in params:
        if (name := key.partition("__")[0]) not in known:
            raise InvalidDataError(
                f"Invalid parameter {name!r} for {type(owner).__name__}; "
                f"{did_you_mean(name, known)}"
            )
    return set_params(**params)


# Numbers -----------------------------------------------------------------------------------------


def is_real(value: Any, *, infinite: bool = False) -> TypeGuard[float]:
    """Whether a value is a real number, no boolean and not NaN; finite, unless that may be."""
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return False
    return not math.isnan(number) if infinite else math.isfinite(number)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is an integer of at least that, and one that an array can be as long as."""
    odd = bool | np.bool_ | np.timedelta64
    whole = isinstance(value, Integral) and not isinstance(value, odd)
    return whole and least <= int(value) <= sys.maxsize


def check_number(
    where: str, value: Any, *, least: float = -math.inf, above: float = -math.inf,
    most: float = math.inf, infinite: bool = False, add: str = "",
) -> float:  # fmt: skip
    """Return a number within its limits; the error names them.

    >>> check_number("Ball: radius", -1, above=0)
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: Ball: radius=-1; expected a finite number above 0
    """
    if is_real(value, infinite=infinite):
        number = float(value)
        if least <= number <= most and (number > above or above == -math.inf):
            return number
    limits = [f"at least {least:g}"] if least > -math.inf else []
    limits += [f"above {above:g}"] if above > -math.inf else []
    limits += [f"at most {most:g}"] if most < math.inf else []
    kind = "a number" if infinite or most < math.inf else "a finite number"
    words = f"{kind} {' and '.join(limits)}".strip()
    raise InvalidDataError(f"{where}={shown(value)}; expected {words}{add}")


def check_flag(where: str, value: Any) -> None:
    """Raise unless a value is True or False: a text such as "False" is true to Python."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidDataError(f"{where}={shown(value)}; expected True or False")


def is_widths(value: Any) -> bool:
    """Whether a value is a sequence of widths of layers."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    return all(is_whole(width, 1) and width < 2**20 for width in value)


# Arrays ------------------------------------------------------------------------------------------

_WIDE = (torch.float64, torch.float32)


def refuse(values: Any, name: str) -> None:
    """Raise for arrays of numbers that numpy would read without a word, and wrongly.

    Masked arrays (the mask is lost), complex numbers, dates (they become integers), sparse and
    meta tensors. Objects and texts are for whoever reads the numbers.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidDataError(
            f"{name} is a masked array, whose mask would be lost: fill it, "
            f"{name}.filled(value), or drop the masked rows"
        )
    if isinstance(values, Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise InvalidDataError(
                f"{name} is {shown(values)}, layout {values.layout}, which holds no plain numbers: "
                "give a dense tensor on a device"
            )
        kind = "c" if values.is_complex() else "f"
    else:
        kind = getattr(getattr(values, "dtype", None), "kind", "f")
    if kind in "cmM":
        if kind == "c":
            raise InvalidDataError(
                f"{name} holds complex numbers ({values.dtype}). Complex data not supported: take "
                "the real part"
            )
        raise InvalidDataError(
            f"{name} holds dates or times ({values.dtype}); expected real numbers: subtract a date "
            "and divide by a unit"
        )
    if hasattr(values, "dtypes") and hasattr(values, "columns") and not isinstance(values, type):
        for column, dtype in zip(values.columns, values.dtypes, strict=True):
            if getattr(dtype, "kind", "f") in "cmM":
                raise InvalidDataError(
                    f"column {column!r} of {name} has dtype {dtype}; expected real numbers: leave "
                    "it out, or make numbers of it, such as its month, its weekday or days since"
                )


def plain_tensor(values: Any, name: str) -> Any:
    """A tensor as an array without its history, half precisions as float32; others as they are."""
    refuse(values, name)
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu().resolve_neg()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def floats(values: Any, name: str) -> np.ndarray:
    """Numbers of any container as a float64 array of the same shape.

    Raises `InvalidDataError`, which names the column where there is one.

    >>> floats([1, 2], "weights")
    array([1., 2.])
    >>> floats(np.array([1j]), "weights")
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: weights holds complex numbers (complex128). Complex data not
    supported: take the real part
    """
    if type(values) is np.ndarray and values.dtype == np.float64:
        return values
    if isinstance(values, type):
        raise InvalidDataError(f"{name} is {shown(values)}; expected numbers")
    values = plain_tensor(values, name)
    if hasattr(values, "tocsr") and hasattr(values, "nnz"):
        raise InvalidDataError(f"{name} is sparse; expected a dense table: {name}.toarray()")
    try:
        array = np.asarray(values)
        if array.dtype.kind in "SUmMcV":
            raise TypeError(f"their dtype is {array.dtype}")
        return np.asarray(array if array.dtype.kind != "O" else values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        found = culprit(values, name)
        raise InvalidDataError(
            f"{found}. {error}" if found else
            f"{name} must be numbers; got {shown(values)} ({error}), expected numbers: encode "
            "text, and use a dense table"
        ) from error  # fmt: skip


#: Of data: the squares of squares of such numbers, and of their inverses, are numbers.
SMALLEST, LARGEST = 1e-75, 1e75


def check_scale(values: np.ndarray, name: str) -> None:
    """Raise for numbers with which no arithmetic is left; zeros are fine.

    >>> check_scale(np.array([[1e200, 1.0]]), "X")
    Traceback (most recent call last):
    drojko.exceptions.InvalidDataError: X holds 1e+200 (column 0); beyond 1e-75 to 1e+75 squares
    overflow or vanish: measure X, and the radius with it, in another unit
    """
    largest = np.zeros(values.shape[1:], dtype=np.float64)
    size = max(2**18 // max(largest.size, 1), 1)
    for start in range(0, len(values), size):
        largest = np.maximum(largest, np.abs(values[start : start + size]).max(axis=0))
    bad = np.atleast_1d((largest > 0.0) & ~((largest >= SMALLEST) & (largest <= LARGEST)))
    if not bad.any():
        return
    column = int(bad.argmax())
    where = f" (column {column})" if values.ndim == 2 else ""
    raise InvalidDataError(
        f"{name} holds {np.atleast_1d(largest)[column]:g}{where}; beyond {SMALLEST:g} to "
        f"{LARGEST:g} squares overflow or vanish: measure {name}, and the radius with it, in "
        "another unit"
    )


def is_moderate(X: np.ndarray) -> bool:
    """Whether X (n, d), C-contiguous, is finite and of a size to square, by one read of most of it.

    >>> is_moderate(np.array([[1e200, 1.0]])), is_moderate(np.array([[2.0, 0.0]]))
    (False, True)
    """
    some = np.abs(X[:: len(X) // 1024 + 1]).max(axis=0, initial=0.0)
    rest = np.abs(X[:, some < SMALLEST]).max(axis=0, initial=0.0)  # hardly met so far
    flat = X.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        square = sum(float(part @ part) for part in np.split(flat, range(2**20, flat.size, 2**20)))
    return bool(((rest == 0.0) | (rest >= SMALLEST)).all() and square <= LARGEST**2)


def culprit(X: Any, name: str = "X") -> str | None:
    """What is wrong with the first column of a frame or an array that holds no finite numbers."""
    if isinstance(X, type) or len(getattr(X, "shape", ())) != 2:
        return None
    names = getattr(X, "columns", None)
    for j in range(X.shape[1]):
        column = X.iloc[:, j] if hasattr(X, "iloc") else X[:, j]
        label = str(j) if names is None else repr(_item(names[j]))
        try:
            values = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            dtype = getattr(column, "dtype", "mixed")
            return (
                f"column {label} of {name} has dtype {dtype} and holds no numbers: encode it "
                "first, for instance with a OneHotEncoder in a ColumnTransformer; an ambiguity set "
                "takes one-hot groups as categorical_features"
            )
        bad = ~np.isfinite(values)
        if len(bad) and np.isnan(values).all():
            return f"column {label} of {name} is empty, all of its values are missing: leave it out"
        if bad.any():
            row = int(bad.argmax())
            return (
                f"column {label} of {name} holds {values[row]} in row {row}: impute or drop such "
                "rows first, for instance with a SimpleImputer in a Pipeline"
            )
    return None


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


Thing = TypeVar("Thing")

# Doors -------------------------------------------------------------------------------------------

#: What one argument must be: takes the value, its owner and the sizes so far; returns the value.
Rule = Callable[[Any, Any, dict[str, int]], Any]


class Checked:
    """Base of classes whose public methods are doors, those of subclasses too.

    ``_shapes`` maps names of arguments to shapes, as `checked` takes them.
    """

    _shapes: Mapping[str, str] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _mark(cls, cls._shapes, constructor="_validate_params" not in dir(cls))


def checked(*, constructor: bool = True, **shapes: str) -> Callable[[Thing], Thing]:
    """Check the arguments of a function, or of the constructor and the public methods of a class.

    Annotations of ``float``, ``int``, ``bool``, ``str``, ``Callable``, ``Tensor``, ``np.ndarray``
    and of classes are checked, alone or joined by ``|``; others are not.

    Parameters
    ----------
    constructor : bool
        Of a class: whether its constructor is a door as well.
    **shapes : str
        Letters for sizes, equal ones equal, and names of attributes of the object after a dot:
        ``x="n .dim"``. Tensors become of the precision of the first one, and must be finite. A
        last word "real" or "index" stands for numbers of any type, and for integers; "infinite"
        and "any" allow infinities, and NaN. ``*`` is any shape, ``~`` one that broadcasts.
    """

    def mark(thing: Any) -> Any:
        if inspect.isclass(thing):
            return _mark(thing, shapes, constructor=constructor)
        return _door(thing, thing.__qualname__, shapes, method=False)

    return mark


def _mark(cls: type, shapes: Mapping[str, str], *, constructor: bool = True) -> type:
    for name, value in list(vars(cls).items()):
        if name == "fit" or (name.startswith("_") and not (constructor and name == "__init__")):
            continue
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if isinstance(function, FunctionType) and not hasattr(function, "_is_door"):
            where = cls.__name__ if name == "__init__" else f"{cls.__name__}.{name}"
            door = _door(function, where, shapes, method=not isinstance(value, staticmethod))
            setattr(cls, name, type(value)(door) if function is not value else door)
    return cls


def _door(function: Any, where: str, shapes: Mapping[str, str], *, method: bool) -> Any:
    rules: list[tuple[int, str, Rule]] = []
    planned: list[bool] = []
    plan = _plan

    def door(*args, **kwargs):
        if not planned:  # classes that annotations name may come after the function
            rules.extend(plan(function, where, shapes, method))
            planned.append(True)
        owner, sizes, count = args[0] if method and args else None, {}, len(args)
        changed = None
        for place, name, rule in rules:
            if place < count:
                value = args[place]
                found = rule(value, owner, sizes)
                if found is not value:
                    changed = list(args) if changed is None else changed
                    changed[place] = found
            elif name in kwargs:
                kwargs[name] = rule(kwargs[name], owner, sizes)
        return function(*(args if changed is None else changed), **kwargs)

    # In the function's own module, where doctest looks for it.
    home = inspect.unwrap(function).__globals__
    made = FunctionType(door.__code__, home, function.__name__, None, door.__closure__)
    made: Any = update_wrapper(made, function)
    made._is_door = True
    return made


def _plan(
    function: Any, where: str, shapes: Mapping[str, str], method: bool
) -> list[tuple[int, str, Rule]]:
    found = []
    parameters = list(inspect.signature(function).parameters.values())
    for place, p in enumerate(parameters):
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or (method and place == 0):
            continue
        names = inspect.unwrap(function).__globals__
        rule = _rule(f"{where}: {p.name}", p, names, shapes.get(p.name))
        if rule is not None:
            found.append((place if p.kind != p.KEYWORD_ONLY else sys.maxsize, p.name, rule))
    return found


def _rule(where: str, parameter: Any, names: Mapping[str, Any], shape: str | None) -> Rule | None:
    """The check of an annotated parameter; None where the annotation says nothing checkable."""
    words = str(parameter.annotation)
    kinds = _split(words)
    optional = "None" in kinds or parameter.default is None
    kinds = [kind for kind in kinds if kind != "None"]
    if shape is not None and {"Tensor", "np.ndarray"} & set(kinds):
        rule = _shaped(where, shape, tensor="Tensor" in kinds)
        if len(kinds) > 1 and "Tensor" in kinds:  # a number will do
            return lambda v, o, s: v if (v is None and optional) or _is_float(v) else rule(v, o, s)
        return lambda v, o, s: None if v is None and optional else rule(v, o, s)
    tests: list[tuple[Callable[[Any], bool], str]] = []
    for kind in kinds:
        test = _test(kind, names)
        if test is None:
            return None
        tests.append(test)
    if not tests:
        return None
    expected = " or ".join(dict.fromkeys(text for _, text in tests))
    checks = [test for test, _ in tests]
    classes: list[Any] = [names.get(kind) for kind in kinds]
    hints = [kind._instead for kind in classes if hasattr(kind, "_instead")]

    def check(value: Any, owner: Any, sizes: dict[str, int]) -> Any:
        if value is None and optional:
            return value
        for fits in checks:
            if fits(value):
                return value
        more = "".join(hint(value) for hint in hints)
        raise InvalidDataError(f"{where} is {shown(value)}; expected {expected}{more}")

    return check


def _split(words: str) -> list[str]:
    """The alternatives of an annotation: bars inside brackets do not count."""
    parts, depth = [""], 0
    for letter in words:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip().strip("'\"") for part in parts]


def _test(kind: str, names: Mapping[str, Any]) -> tuple[Callable[[Any], bool], str] | None:
    head = kind.partition("[")[0]
    simple: dict[str, tuple[Callable[[Any], bool], str]] = {
        "float": (_is_float, "a number"),
        "int": (lambda v: is_whole(v, -sys.maxsize), "an integer"),
        "bool": (lambda v: isinstance(v, bool | np.bool_), "True or False"),
        "str": (lambda v: isinstance(v, str), "a text"),
        "Callable": (_is_function, "a function"),
        "Tensor": (_is_tensor, "a tensor of float32 or float64, dense and not on meta"),
        "np.ndarray": (lambda v: isinstance(v, np.ndarray), "an array"),
        "np.random.Generator": (lambda v: isinstance(v, np.random.Generator), "a Generator"),
    }
    if kind == "Callable[[Tensor], Tensor]":
        return _is_function, "a function of points on tensors, (n, d) -> (n,)"
    if head in simple:
        return simple[head]
    if kind == "Sequence[Tensor]":
        return _are_tensors, "a sequence of tensors of float32 or float64"
    value = names.get(head.partition(".")[0])
    for part in head.split(".")[1:]:
        value = getattr(value, part, None)
    if isinstance(value, type) and value not in (object, Any, torch.Generator):
        if getattr(value, "_is_protocol", False) or value.__module__ == "collections.abc":
            return None
        name = getattr(value, "_called", value.__name__)
        article = "an" if name[0] in "AEIOUaeiou" else "a"
        return lambda v: isinstance(v, value), f"{article} {name}"
    return None


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _is_float(value: Any) -> bool:
    """Numbers that numpy knows as well: no fractions."""
    return isinstance(value, int | float | np.number) and is_real(value, infinite=True)


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in _WIDE
        and value.layout == torch.strided
        and not value.is_meta
    )


def _are_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_tensor(part) for part in value)


def _is_array(value: Any) -> bool:
    plain = isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
    return plain and value.dtype.kind in "fiub"


def _shaped(where: str, shape: str, *, tensor: bool) -> Rule:
    words = shape.split()
    last = words[-1] if words[-1] in ("real", "index", "infinite", "any", "finite") else ""
    letters = words[: len(words) - bool(last)]
    sizes_in_words = ", ".join(w.removeprefix(".") for w in letters)
    expected = f"shape ({sizes_in_words}{',' * (len(letters) == 1)})"
    free = letters in (["*"], ["~"])
    if free:
        expected = "any shape" if letters == ["*"] else "a shape that broadcasts with the first"
    types = {"real": "real numbers", "index": "integers"}.get(last, "float32 or float64")

    def check(value: Any, owner: Any, sizes: dict[str, Any]) -> Any:
        if tensor:
            if not _fits(value, last):
                raise InvalidDataError(
                    f"{where} is {shown(value)}; expected a dense tensor of {types} and {expected}"
                    + (": torch.as_tensor makes one" if not isinstance(value, Tensor) else "")
                )
        elif last != "real" or not _is_array(value):
            value = floats(value, where)
        here: dict[str, int] = {}
        wrong = value.ndim != len(letters) and not free
        for letter, size in () if wrong or free else zip(letters, value.shape, strict=True):
            known = (
                getattr(owner, letter[1:], None)
                if letter[0] == "."
                else here.get(letter, sizes.get(letter))
            )
            wrong |= (known is not None and known != size) or (letter == "d" and size == 0)
            here[letter] = size
        if letters == ["~"]:
            rows = not getattr(owner, "scalar", True) or getattr(owner, "any_outputs", False)
            wrong = not _broadcast(value.shape, sizes.setdefault("~", value.shape), rows)
        if wrong:
            known = {w: sizes.get(w, getattr(owner, w[1:], None)) for w in dict.fromkeys(letters)}
            told = [f"{w.removeprefix('.')} = {v}" for w, v in known.items() if v is not None]
            words = f" with {' and '.join(told)}" if told else ""
            raise InvalidDataError(f"{where} is {shown(value)}; expected {expected}{words}")
        on = torch if tensor else np
        lax = (letters == ["*"] and not last) or last == "infinite"
        bad = (
            letters != ["~"]
            and last not in ("any", "index")
            and bool(on.isnan(value).any() if lax else ~on.isfinite(value).all())
        )
        if bad:
            raise InvalidDataError(
                f"{where} contains NaN or infinity: look at the step that made it"
            )
        sizes.update(here)
        if tensor and last in ("", "infinite", "any", "finite"):
            like = sizes.setdefault("dtype", getattr(owner, "_precision", value.dtype))
            if value.dtype != like:
                value = value.to(like)
        return value

    return check


def _broadcast(shape: Any, first: Any, rows: bool) -> bool:
    """Whether shapes go together: as numpy's do, or as ``rows`` of several numbers with one."""
    pairs = zip(reversed(shape), reversed(first), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs) or (
        rows and tuple(shape) == tuple(first[:1])
    )


def _fits(value: Any, last: str) -> bool:
    if last in ("", "infinite", "any", "finite"):
        return _is_tensor(value)
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if last == "index":
        return dense and value.dtype in (torch.int64, torch.int32, torch.bool)
    return dense and not value.is_complex() and value.dtype not in (torch.bfloat16, torch.float16)
