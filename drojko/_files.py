"""Files: written whole or not at all, read only where they are files, unpacked only within bounds.

`replacing` writes beside the destination and renames; `opened` refuses what is no regular file
(a pipe would wait, a device never end); `members` opens an archive whose table of contents, names,
sizes and arrays were checked before anything was unpacked.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import secrets
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from drojko._validation import shown
from drojko.exceptions import InvalidDataError

__all__ = [
    "MOST", "cells", "chunks", "members", "opened", "plain_values", "replacing", "write_json",
    "write_table",
]  # fmt: skip

#: Bytes that the members of an archive may have together once they are unpacked.
MOST = 1 << 30
#: The same of its table of contents, and of each member that is read before it is checked.
_MOST_NAMES, _MOST_READ = 1 << 20, {".json": 4 << 20, ".npz": 64 << 20}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` once the block has ended well.

    Whoever reads ``path`` finds the old file or the new one, never half of it. A symbolic link
    stays, and what it points to is replaced; an existing file's mode is kept.

    Raises
    ------
    InvalidDataError
        Where ``path`` is a folder, a device or a pipe.
    OSError
        As of any file that cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/note") as file:
    ...         _ = file.write(b"new")
    ...     Path(f"{folder}/note").read_text()
    'new'
    """
    target = Path(os.path.realpath(path))
    mode = None
    with suppress(FileNotFoundError):
        mode = _mode(target, path)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error  # what was asked for
    finally:  # Ctrl-C may have cut the first one short
        temporary.unlink(missing_ok=True)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A regular file to read.

    Raises
    ------
    InvalidDataError
        For folders, devices and pipes.
    OSError
        Where there is no file, or none that may be read.
    """
    _mode(Path(path), path)
    with open(path, "rb") as file:
        yield file


def _mode(found: Path, path: Any) -> int:
    mode = os.stat(found).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise InvalidDataError(f"{path} is {kind}; expected a regular file")
    return mode


def chunks(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """What is left of a file, or its next ``size`` bytes, a megabyte at a time."""
    left = math.inf if size is None else size
    while left > 0 and (part := file.read(int(min(left, 1 << 20)))):
        left -= len(part)
        yield part


def members(file: BinaryIO, path: Any, most: int = MOST) -> zipfile.ZipFile:
    """The archive in a file, after all that its table of contents claims was checked.

    Parameters
    ----------
    file : binary file
    path : str or path-like
        For messages.
    most : int
        Bytes that the members may have together once they are unpacked.

    Raises
    ------
    InvalidDataError
        For more than that, strange or repeated names, encryption, other compressions than deflate,
        and arrays whose headers do not fit their sizes.
    """
    _check_contents(file, path)
    archive = zipfile.ZipFile(file)
    parts = {part.filename: part for part in archive.infolist()}
    plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    for part in archive.infolist():
        if not _NAME.fullmatch(part.filename) or part is not parts[part.filename]:
            raise InvalidDataError(f"{path} has a strange or a second member {part.filename!r}")
        if part.flag_bits & 1 or part.compress_type not in plain:
            raise InvalidDataError(
                f"{path}: member {part.filename!r} is encrypted, or not deflated"
            )
        if part.file_size > _MOST_READ.get(Path(part.filename).suffix, math.inf):
            raise InvalidDataError(f"{path}: member {part.filename!r} is too large to be read")
    total = max(sum(part.file_size for part in parts.values()), _used(archive, parts))
    if total > most:
        raise InvalidDataError(
            f"{path} would unpack to {total:.3g} bytes, and at most {most:.3g} are read; if you "
            "know where it comes from: drojko.load(path, max_size=...)"
        )
    for part in parts.values():
        if part.filename.endswith(".npy"):
            _check_array(archive, part, path)
        elif part.filename.endswith(".npz"):
            members(io.BytesIO(archive.read(part)), path, most - total)
    return archive


def _check_contents(file: BinaryIO, path: Any) -> None:
    """Refuse a table of contents that would itself take too much memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - (1 << 16) - 42, 0))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise InvalidDataError(f"{path} is no archive, or it was cut at its end")
    *_, count, length, start, _ = struct.unpack("<4s4H2LH", tail[at : at + 22])
    if tail[max(at - 20, 0) : at].startswith(b"PK\6\7") or count == 0xFFFF or start == 0xFFFFFFFF:
        raise InvalidDataError(f"{path} is an archive for more than 4 GB, which no model needs")
    if length > _MOST_NAMES:
        raise InvalidDataError(f"{path} has a table of contents of {length:.3g} bytes")


def _used(archive: zipfile.ZipFile, parts: dict[str, zipfile.ZipInfo]) -> int:
    """Bytes that a description reads, which may name a member many times."""
    if "schema.json" not in parts:
        return 0
    found, todo = 0, [json.loads(archive.read("schema.json"))]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            name = node.get("file")
            found += parts[name].file_size if isinstance(name, str) and name in parts else 0
        todo += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return found


def _check_array(archive: zipfile.ZipFile, part: zipfile.ZipInfo, path: Any) -> None:
    """Refuse an array whose header claims another size than there is."""
    from numpy.lib import format as layout

    with archive.open(part) as file:
        if layout.read_magic(file) != (1, 0):  # others may have headers of gigabytes
            raise InvalidDataError(f"{path}: array {part.filename!r} is of another layout")
        shape, _, dtype = layout.read_array_header_1_0(file)
        begun = file.tell()
    if dtype.hasobject or begun + math.prod(shape) * dtype.itemsize != part.file_size:
        raise InvalidDataError(
            f"{path}: array {part.filename!r} of shape {shape} and dtype {dtype} does not fit the "
            f"{part.file_size} bytes that there are"
        )


def write_table(frame: Any, path: str | os.PathLike[str], kind: str = "") -> None:
    """Write a .csv file for spreadsheets or a .parquet file, whole or not at all."""
    kind = kind or Path(path).suffix.lower()
    if kind not in (".csv", ".parquet", ".pq"):
        name = Path(path).name
        raise InvalidDataError(f"{name!r}: expected a name that ends in .csv or .parquet")
    with replacing(path) as file:
        if kind == ".csv":
            file.write(cells(frame).to_csv(index=False).encode("utf-8", "backslashreplace"))
        else:
            frame.to_parquet(file, index=False)


def cells(frame: Any) -> Any:
    r"""A table for a spreadsheet: text that one would take for a formula gets an apostrophe.

    >>> import pandas as pd
    >>> cells(pd.DataFrame({"a": ["@b", "-1.5", "c"], "d": [-1.0, 2.0, 3.0]}))["a"].tolist()
    ["'@b", '-1.5', 'c']
    """
    import pandas as pd

    def plain(value: Any) -> Any:
        if not (isinstance(value, str) and value.startswith(tuple("=+-@\t\r\n"))):
            return value
        with suppress(ValueError):
            float(value)  # a number is none
            return value
        return f"'{value}"

    frame = frame.copy()
    for k, kind in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            frame.isetitem(k, frame.iloc[:, k].astype(object).map(plain))
    return frame.rename(columns=plain)


def check_path(path: Any, name: str = "path") -> Path:
    """Return a path; numbers are refused, which are open files to the system."""
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise InvalidDataError(f"{name}={shown(path)}; expected the name of a file")
    return Path(path)


def plain_values(value: Any) -> Any:
    """Dicts, lists, text, finite numbers, truth values and None: what strict JSON can hold."""
    if hasattr(value, "to_dict"):
        return [plain_values(row) for row in value.to_dict("records")]
    if isinstance(value, dict):
        return {str(name): plain_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_values(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def write_json(path: Any, value: Any) -> str:
    """The text of a value, written to a path if there is one."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1)
    if path is not None:
        with replacing(check_path(path)) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    return text
