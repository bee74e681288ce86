"""Model files: `save` and `load` without running any code on load.

A file is a skops archive (a zip of JSON and plain arrays) with one more member, ``drojko.json``
(format number, versions), closed by the SHA-256 digest of all bytes before it. `load` refuses, in
this order and before it imports anything that the file names: a file whose digest does not fit, a
file of another kind or of a newer format, and types other than drojko's own and the plain
scikit-learn and numpy types that skops trusts. The digest detects damage and careless edits; that
nothing foreign runs, whoever wrote the file, rests on the list of types. Classes that derive from
drojko's own, such as a set of a user's, are stored by their names and settings; whoever loads them
names them in ``trusted``.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drojko._validation import check_path, shown
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["FORMAT", "load", "load_any", "save", "trusted_types"]

#: Raised when the layout of the file or the meaning of a stored attribute changes.
FORMAT = 1

_MANIFEST = "drojko.json"
_PACKAGES = ("drojko", "numpy", "scikit-learn", "skops", "torch")
_MARK = b"drojko-sha256:"
_FOOTER = len(_MARK) + 64


@lru_cache(maxsize=1)
def trusted_types() -> tuple[str, ...]:
    """Return the exact names of all classes that drojko defines, read off its source.

    Nothing is imported, so that the list costs nothing until a file is loaded and holds no class
    that somebody else could have registered.

    Examples
    --------
    >>> from drojko._persist import trusted_types
    >>> "drojko.ambiguity.wasserstein.Wasserstein" in trusted_types()
    True
    """
    root = Path(__file__).parent
    names = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names += [f"{module}.{node.name}" for node in body if isinstance(node, ast.ClassDef)]
    return tuple(names)


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator, a pipeline of such, or a settings object to a file.

    The file is written beside its destination and then renamed: whoever reads ``path`` finds the
    old file or the new one, never half of it. Callbacks are not part of a model and stay out.

    Parameters
    ----------
    estimator : object
        Its state must be numpy arrays, plain Python and drojko or scikit-learn objects.
    path : str or path-like
        Where to; an existing file is replaced.

    Raises
    ------
    UnsupportedError
        When the object holds code, such as a callable model or loss: a file that runs no code
        cannot hold it. Nor can it hold objects of foreign classes, unless these derive from
        drojko's own and can be imported.

    Examples
    --------
    >>> import tempfile
    >>> from drojko import load
    >>> from drojko._persist import save
    >>> from drojko.ambiguity import Wasserstein
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Wasserstein(radius=0.3), f"{folder}/ball.drojko")
    ...     load(f"{folder}/ball.drojko")
    Wasserstein(radius=0.3)
    """
    path = check_path(path)
    data = _pack(estimator)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], *, trusted: Sequence[type | str] = ()) -> Any:
    """Read what `save` wrote; nothing in the file is executed.

    Parameters
    ----------
    path : str or path-like
        A file written by ``estimator.save(path)``.
    trusted : sequence of classes or of their full names
        Classes beyond drojko's own that the file may hold, such as a set of your own.

    Returns
    -------
    object
        The estimator, ready to predict.

    Raises
    ------
    InvalidDataError
        When the file is truncated, altered, of another kind, of a newer format, or names a type
        that drojko does not know.
    """
    import skops.io

    data, names = check_path(path).read_bytes(), _names(trusted)
    _check_digest(data, path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            manifest = json.loads(file.read(_MANIFEST))
        if not isinstance(manifest["format"], int) or not 1 <= manifest["format"] <= FORMAT:
            raise InvalidDataError(
                f"{path} has format {manifest['format']}, written by drojko "
                f"{manifest['versions']['drojko']}; this version reads formats 1 to {FORMAT}: "
                "upgrade drojko"
            )
        if foreign := sorted(set(_foreign_types(data)) - set(names)):
            short = ", ".join(name.rpartition(".")[2] for name in foreign)
            raise InvalidDataError(
                f"{path} names types that drojko does not load: {', '.join(foreign)}. If you know "
                f"where the file comes from, import them and name them: "
                f"drojko.load(path, trusted=[{short}])"
            )
        return skops.io.loads(data, trusted=[*trusted_types(), *names])
    except InvalidDataError:
        raise
    except Exception as error:  # whatever a malformed archive provokes in zipfile, json or skops
        raise InvalidDataError(f"{path} cannot be read as a drojko model: {error}") from error


def load_any(
    path: str | os.PathLike[str], *, trusted: Sequence[type | str] = (), unsafe: bool = False
) -> Any:
    """Read a model file of drojko, a skops file of trusted types or, if told so, a pickle.

    Parameters
    ----------
    path : str or path-like
    trusted : sequence of classes or of their full names
        Types beyond drojko's and skops' own that the file may hold.
    unsafe : bool
        Whether to load a pickle or joblib file, which can run any code.

    Raises
    ------
    InvalidDataError
        For types that nobody trusts, which it names, and for pickles without ``unsafe``.
    """
    data = Path(path).read_bytes()
    if data.startswith(b"PK"):
        if data[-_FOOTER:-64] == _MARK:
            return load(path, trusted=trusted)
        import skops.io

        try:
            names = _names(trusted)
            foreign = sorted(set(_foreign_types(data)) - set(names))
            if not foreign:
                return skops.io.loads(data, trusted=[*trusted_types(), *names])
        except Exception as error:  # whatever a malformed archive provokes
            raise InvalidDataError(f"{path} cannot be read as a skops file: {error}") from error
        raise InvalidDataError(
            f"{path} holds types that are not trusted: {', '.join(foreign)}. If you know where it "
            "comes from, name each with --trust"
        )
    if not unsafe:
        raise InvalidDataError(
            f"{path} is neither a file of drojko nor of skops. A pickle or joblib file can run any "
            "code when it is loaded: only if you made it yourself, add --unsafe-pickle"
        )
    import joblib

    try:
        return joblib.load(path)
    except Exception as error:  # whatever a broken pickle provokes
        raise InvalidDataError(f"{path} cannot be read as a pickle: {error}") from error


def _pack(estimator: Any) -> bytes:
    import skops.io

    _refuse_code(estimator)
    if isinstance(estimator, type) or not hasattr(estimator, "__dict__"):
        raise UnsupportedError(f"save got {shown(estimator)}; expected an estimator or settings")
    estimator = copy.copy(estimator)
    vars(estimator).pop("_skl_callbacks", None)
    try:
        archive = skops.io.dumps(estimator, compression=zipfile.ZIP_DEFLATED)
        foreign = [name for name in _foreign_types(archive) if not _derived(_found(name))]
    except Exception as error:
        raise UnsupportedError(
            f"{type(estimator).__name__} holds something that a model file cannot: {error}"
        ) from error
    if foreign:
        raise UnsupportedError(
            f"{type(estimator).__name__} holds objects of types that a model file cannot: "
            f"{', '.join(foreign)}; expected classes that derive from drojko's own and can be "
            "imported by name. Pickle or joblib can store others"
        )
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as file:
        manifest = {
            "format": FORMAT,
            "type": _full_name(type(estimator)),
            "versions": {name: version(name) for name in _PACKAGES},
        }
        file.writestr(_MANIFEST, json.dumps(manifest, indent=2))
        file.comment = _MARK + b"0" * 64
    content = buffer.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def _refuse_code(estimator: Any) -> None:
    """Name the parameter that holds a callable: skops would only name its type."""
    if not hasattr(estimator, "get_params"):
        return
    for name, value in estimator.get_params(deep=True).items():
        if callable(value) and not _derived(type(value)):
            raise UnsupportedError(
                f"{name}={value!r} is code, and a model file holds none. Use pickle or joblib, "
                "which need the same code to be importable when they load"
            )


def _check_digest(data: bytes, path: Any) -> None:
    mark, digest = data[-_FOOTER:-64], data[-64:]
    if not data.startswith(b"PK") or mark != _MARK:
        raise InvalidDataError(
            f"{path} is no drojko model, or it is truncated: expected a file written by "
            "estimator.save(path)"
        )
    if hashlib.sha256(data[:-64]).hexdigest().encode() != digest:
        raise InvalidDataError(
            f"{path} was altered after it was saved: its digest does not fit its content"
        )


def _names(classes: Sequence[type | str]) -> list[str]:
    if isinstance(classes, str | type):
        classes = [classes]
    listed = isinstance(classes, list | tuple | set | frozenset)
    if not listed or not all(isinstance(kind, str | type) for kind in classes):
        raise InvalidDataError(f"trusted={shown(classes)}; expected a list of classes")
    return [kind if isinstance(kind, str) else _full_name(kind) for kind in classes]


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _found(name: str) -> Any:
    """The class of that name, where its module is imported anyway."""
    module, _, kind = name.rpartition(".")
    return getattr(sys.modules.get(module), kind, None)


def _derived(kind: Any) -> bool:
    """Whether a class is drojko's own or derives from one."""
    known = trusted_types()
    return isinstance(kind, type) and any(_full_name(base) in known for base in kind.__mro__)


def _foreign_types(data: bytes) -> list[str]:
    """Return the types an archive asks for beyond drojko's and skops' own; imports none of them."""
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(data=data)) - set(trusted_types()))
