"""Model files: `save` and `load` without running any code on load.

A file is a skops archive (a zip of JSON and plain arrays) with one more member, ``drojko.json``
(format number, versions, digests of the arrays), closed by the SHA-256 digest of all bytes before
it. `load` refuses, in this order and before it imports anything that the file names: a file whose
digest does not fit, an archive that would unpack to more than a gigabyte (see ``max_size``), a
file of another kind or of a newer format, types other than drojko's own and the plain
scikit-learn and numpy types that skops trusts, and arrays other than those that were saved.
Objects then check that what they hold fits together and is finite. The digests detect damage and
careless edits; that nothing foreign runs, whoever wrote the file, rests on the list of types.
Until then nothing of a size worth mentioning is held in memory. Classes that derive from
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from inspect import isroutine
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from drojko._files import MOST, check_path, chunks, members, opened, replacing
from drojko._persist.compiled import held, restored
from drojko._persist.plain import PLAIN
from drojko._validation import shown
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["FORMAT", "load", "load_any", "save", "trusted_types"]

#: Raised when the layout of the file or the meaning of a stored attribute changes.
FORMAT = 1

_MANIFEST, _SCHEMA = "drojko.json", "schema.json"
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
    root = Path(__file__).parent.parent
    names = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names += [f"{module}.{node.name}" for node in body if isinstance(node, ast.ClassDef)]
    return tuple(names)


def save(estimator: Any, path: str | os.PathLike[str], *, reference: bool = True) -> None:
    """Write a fitted estimator, a pipeline of such, or a settings object to a file.

    The file is written beside its destination and then renamed: whoever reads ``path`` finds the
    old file or the new one, never half of it. Where ``path`` is a symbolic link, what it points to
    is replaced; the mode of an existing file is kept. Callbacks are not part of a model and stay
    out.

    Parameters
    ----------
    estimator : object
        Its state must be numpy arrays, plain Python and drojko or scikit-learn objects.
    path : str or path-like
        Where to; an existing file is replaced.
    reference : bool, default=True
        False leaves out the fitted references of drojko's estimators, and with them the training
        rows: the file is small and holds nobody's data. What is loaded then predicts and has its
        certificate, but neither ``reference_`` nor ``worst_case_``.

    Raises
    ------
    InvalidDataError
        When ``path`` is a folder, a device or a pipe, or when arrays of the estimator are not
        finite or do not fit each other.
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
    if not isinstance(reference, bool | np.bool_):
        raise InvalidDataError(f"reference={shown(reference)}; expected True or False")
    data = _pack(estimator if reference else _without_reference(estimator))
    with replacing(path) as file:
        file.write(data)


def load(
    path: str | os.PathLike[str], *, trusted: Sequence[type | str] = (), max_size: int = MOST
) -> Any:
    """Read what `save` wrote; nothing in the file is executed.

    Parameters
    ----------
    path : str or path-like
        A file written by ``estimator.save(path)``.
    trusted : sequence of classes or of their full names
        Classes beyond drojko's own that the file may hold, such as a set of your own.
    max_size : int, default=1073741824
        Bytes that the file may unpack to; nothing is unpacked of one that claims more.

    Returns
    -------
    object
        The estimator, ready to predict.

    Raises
    ------
    InvalidDataError
        When the file is truncated, altered, of another kind, of a newer format, too large, names a
        type that drojko does not know, or holds arrays that are not finite or do not fit.
    OSError
        When there is no such file, or none that may be read.

    Examples
    --------
    >>> import os, tempfile
    >>> from drojko import DROClassifier, load, save
    >>> clf = DROClassifier(reference="empirical").fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(clf, os.path.join(folder, "model.drojko"))
    ...     same = load(os.path.join(folder, "model.drojko"))
    >>> bool((same.coef_ == clf.coef_).all())
    True
    """
    with opened(check_path(path)) as file:
        _check_digest(file, path)
        with _malformed(path, "a drojko model"):
            return _read(file, path, _names(trusted), max_size)


def _read(file: BinaryIO, path: Any, names: list[str], max_size: int) -> Any:
    """What a file holds whose digest fits."""
    import skops.io

    with members(file, path, max_size) as archive:
        manifest = json.loads(archive.read(_MANIFEST))
        if not isinstance(manifest["format"], int) or not 1 <= manifest["format"] <= FORMAT:
            raise InvalidDataError(
                f"{path} has format {manifest['format']}, written by drojko "
                f"{manifest['versions']['drojko']}; this version reads formats 1 to {FORMAT}: "
                "upgrade drojko"
            )
        older = (
            f"It was written by another drojko, {manifest['versions']['drojko']} or a commit "
            "before it: fit the model again and save it, or load it with the version that wrote it"
        )
        if foreign := sorted(set(_foreign_types(archive)) - set(names)):
            short = ", ".join(name.rpartition(".")[2] for name in foreign)
            own = any(name.startswith("drojko.") for name in foreign)
            remedy = (
                "If you know where the file comes from, import them and name them: "
                f"drojko.load(path, trusted=[{short}])"
            )
            raise InvalidDataError(
                f"{path} names types that drojko does not load: {', '.join(foreign)}. "
                f"{older if own else remedy}"
            )
        if "arrays" not in manifest:
            raise InvalidDataError(f"{path} has no digests of its arrays. {older}")
        if _digests(archive) != manifest["arrays"]:
            raise InvalidDataError(f"{path} holds other arrays than those that were saved")
    file.seek(0)
    found = skops.io.load(file, trusted=[*trusted_types(), *PLAIN, *names])
    if _full_name(type(found)) != manifest["type"]:
        raise InvalidDataError(f"{path} holds {type(found).__name__}, not {manifest['type']}")
    _check_parts(found)
    return restored(found, lambda whole: (part for part, _ in _parts(whole)))


@contextmanager
def _malformed(path: Any, kind: str) -> Iterator[None]:
    """Whatever a malformed file provokes in zipfile, json or skops is a word on the file."""
    try:
        yield
    except InvalidDataError as error:
        if str(path) in str(error):
            raise
        raise InvalidDataError(f"{path} cannot be read as {kind}: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidDataError(f"{path} cannot be read as {kind}: {reason}") from error


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
        For types that nobody trusts, which it names, for pickles without ``unsafe``, and for all
        that `load` refuses: a file of drojko whose end is missing is none of skops.
    """
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _FOOTER, 0))
        own = file.read(len(_MARK)) == _MARK
        file.seek(0)
        archive = file.read(2) == b"PK"
        if own:
            return load(path, trusted=trusted)
        if archive:
            with _malformed(path, "a skops file"):
                return _read_skops(file, path, _names(trusted))
    if not unsafe:
        raise InvalidDataError(
            f"{path} is neither a file of drojko nor of skops. A pickle or joblib file can run any "
            "code when it is loaded: only if you made it yourself, add --unsafe-pickle"
        )
    import joblib

    with _malformed(path, "a pickle"):
        return joblib.load(path)


def _read_skops(file: BinaryIO, path: Any, names: list[str]) -> Any:
    """What a file of skops holds that is none of ours."""
    import skops.io

    with members(file, path) as archive:
        if _MANIFEST in archive.namelist():
            raise InvalidDataError(f"{path} is a drojko model that was cut or altered at its end")
        if foreign := sorted(set(_foreign_types(archive)) - set(names)):
            raise InvalidDataError(
                f"{path} holds types that are not trusted: {', '.join(foreign)}. If you know where "
                "it comes from, name each with --trust"
            )
    file.seek(0)
    return skops.io.load(file, trusted=[*trusted_types(), *PLAIN, *names])


def _pack(estimator: Any) -> bytes:
    import skops.io

    _refuse_code(estimator)
    if isinstance(estimator, type) or not hasattr(estimator, "__dict__"):
        raise UnsupportedError(f"save got {shown(estimator)}; expected an estimator or settings")
    _check_parts(estimator)
    estimator = copy.copy(estimator)
    vars(estimator).pop("_skl_callbacks", None)
    estimator = held(estimator, (part for part, _ in _parts(estimator)))
    buffer = io.BytesIO()
    try:
        skops.io.dump(estimator, buffer, compression=zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(buffer) as archive:
            foreign = [name for name in _foreign_types(archive) if not _derived(_found(name))]
            digests = _digests(archive)
    except Exception as error:
        raise UnsupportedError(
            f"{type(estimator).__name__} holds something that a model file cannot: {error}"
        ) from error
    if foreign:
        raise UnsupportedError(
            f"{type(estimator).__name__} holds objects of types that a model file cannot: "
            f"{', '.join(foreign)}; expected scikit-learn's own, or classes that derive from "
            "drojko's and can be imported by name. joblib.dump stores others, and "
            "drojko audit FILE --unsafe-pickle reads them"
        )
    with zipfile.ZipFile(buffer, "a") as file:
        manifest = {
            "format": FORMAT,
            "type": _full_name(type(estimator)),
            "versions": {name: version(name) for name in _PACKAGES},
            "arrays": digests,
        }
        file.writestr(_MANIFEST, json.dumps(manifest, indent=2))
        file.comment = _MARK + b"0" * 64
    content = buffer.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def _digests(archive: zipfile.ZipFile) -> dict[str, str]:
    """The digest of each member but the descriptions."""
    found = {}
    for name in sorted({*archive.namelist()} - {_MANIFEST, _SCHEMA}):
        digest = hashlib.sha256()
        with archive.open(name) as part:
            for chunk in chunks(part):
                digest.update(chunk)
        found[name] = digest.hexdigest()
    return found


def _parts(found: Any) -> Iterator[tuple[Any, bool]]:
    """All that an object holds, itself first, and whether it belongs to an object of ours."""
    todo, seen = [(found, False)], dict[int, Any]()
    while todo:
        part, ours = todo.pop()
        if id(part) in seen or isinstance(part, type):
            continue
        seen[id(part)] = part
        yield part, ours
        if isinstance(part, list | tuple):
            todo += [(one, ours) for one in part]
        elif isinstance(part, dict):
            todo += [(one, ours) for one in part.values()]
        elif isinstance(part, np.ndarray):
            todo += [(one, ours) for one in part.ravel().tolist()] if part.dtype == object else []
        else:
            ours = type(part).__module__.startswith("drojko.")
            inside = getattr(part, "__dict__", {})
            todo += [(one, ours) for name, one in inside.items() if name != "_history"]


def _check_parts(found: Any) -> None:
    """Ask all parts of an object that know how to whether they fit together; no NaN in ours."""
    for part, ours in _parts(found):
        if hasattr(type(part), "_check_stored"):
            part._check_stored()
        numbers = ours and isinstance(part, np.ndarray) and part.dtype.kind in "fc"
        if numbers and np.isnan(part).any():
            raise InvalidDataError(f"{type(found).__name__} holds an array with NaN")


def _without_reference(estimator: Any) -> Any:
    """A copy in which no estimator of ours holds its reference."""
    found = copy.deepcopy(estimator)
    for part, _ in _parts(found):
        if hasattr(type(part), "_drop_reference"):
            part._drop_reference()
    return found


def _refuse_code(estimator: Any) -> None:
    """Name the parameter that holds a callable: skops would only name its type."""
    if not hasattr(estimator, "get_params"):
        return
    for name, value in estimator.get_params(deep=True).items():
        named = isinstance(value, np.ufunc) or (
            isinstance(value, type) and issubclass(value, np.generic)
        )  # of numpy's own, which skops stores by their names
        named = named or (isroutine(value) and _full_name(value) in PLAIN)
        named = named or _full_name(type(value)) in PLAIN  # objects that are called, as kernels are
        if callable(value) and not named and not _derived(type(value)):
            raise UnsupportedError(
                f"{name}={value!r} is code, and a model file holds none. Use pickle or joblib, "
                "which need the same code to be importable when they load"
            )


def _check_digest(data: bytes | BinaryIO, path: Any) -> None:
    file: Any = io.BytesIO(data) if isinstance(data, bytes) else data
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _FOOTER, 0))
    mark, digest = file.read(len(_MARK)), file.read()
    file.seek(0)
    if file.read(2) != b"PK" or mark != _MARK:
        raise InvalidDataError(
            f"{path} is no drojko model, or it is truncated: expected a file written by "
            "estimator.save(path)"
        )
    file.seek(0)
    found = hashlib.sha256()
    for part in chunks(file, size - 64):
        found.update(part)
    if found.hexdigest().encode() != digest:
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


def _full_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _found(name: str) -> Any:
    """The class of that name, where its module is imported anyway."""
    module, _, kind = name.rpartition(".")
    return getattr(sys.modules.get(module), kind, None)


def _derived(kind: Any) -> bool:
    """Whether a class is drojko's own or derives from one."""
    known = trusted_types()
    return isinstance(kind, type) and any(_full_name(base) in known for base in kind.__mro__)


def _foreign_types(archive: zipfile.ZipFile) -> list[str]:
    """Return the types an archive asks for beyond drojko's and skops' own; imports none of them.

    Of its members only the description is unpacked.
    """
    import skops.io

    outline = io.BytesIO()
    with zipfile.ZipFile(outline, "w") as file:
        for name in archive.namelist():
            file.writestr(name, archive.read(name) if name == _SCHEMA else b"")
    known = set(skops.io.get_untrusted_types(data=outline.getvalue()))
    return sorted(known - {*trusted_types(), *PLAIN})
