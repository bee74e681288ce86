"""Tables for the command line: features as numbers, and what kind of target there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drojko._files import opened
from drojko._sklearn import odd_columns
from drojko.exceptions import InvalidDataError

__all__ = ["MOST_CLASSES", "labels", "read_table", "split_target", "task_of"]

#: Integers with more distinct values are numbers, not labels.
MOST_CLASSES = 20

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, encoding: str = "utf-8", separator: str | None = None) -> Any:
    """Return the DataFrame in a .csv, .tsv or .parquet file, or of a folder of the latter.

    Column names are strings.

    Raises `InvalidDataError`, which names the file and the remedy, for what is none.
    """
    import pandas as pd

    if path.is_dir():
        parts = sorted(p for p in path.iterdir() if p.suffix.lower() in (".parquet", ".pq"))
        if not parts:
            raise InvalidDataError(f"{path} is a folder without .parquet files")
        frames = [read_table(part) for part in parts]
        for part, frame in zip(parts, frames, strict=True):
            if (odd := odd_columns(frame.columns, frames[0].columns)) is not None:
                raise InvalidDataError(f"{part}: {odd}, as {parts[0].name} has them")
        return pd.concat(frames, ignore_index=True)
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".pq", *_SEPARATORS):
        raise InvalidDataError(f"{path.name}: expected a .csv, .tsv or .parquet file")
    with opened(path) as file:
        try:
            if suffix not in _SEPARATORS:
                frame = pd.read_parquet(file)
            elif b"\0" in (head := file.read(4096)) and not encoding.lower().startswith(
                ("utf-16", "utf-32", "utf16", "utf32")
            ):
                raise ValueError(
                    "it is no text, or text in UTF-16: save it as UTF-8, or add --encoding utf-16"
                    if head[:2] in (b"\xff\xfe", b"\xfe\xff")
                    else "it holds binary data; expected text"
                )
            else:
                file.seek(0)
                sep = separator or _SEPARATORS[suffix]
                frame = pd.read_csv(file, sep=sep, encoding=encoding)
        except (UnicodeError, LookupError) as error:
            raise InvalidDataError(
                f"{path}: the text is not in the encoding {encoding!r} ({error}); save it as "
                "UTF-8, or name its encoding, such as --encoding latin-1 or --encoding utf-16"
            ) from error
        except Exception as error:  # whatever a damaged table provokes in pandas or pyarrow
            raise InvalidDataError(
                f"{path} cannot be read as a {suffix} table: {error}; expected a header and rows "
                "of as many cells"
            ) from error
    if len(frame.columns) == 1 and suffix in _SEPARATORS and separator is None:
        other = next((mark for mark in ";\t|" if mark in str(frame.columns[0])), None)
        if other is not None:
            raise InvalidDataError(
                f"{path} has one column, {str(frame.columns[0])!r}: its cells seem to be separated "
                f"by {other!r}, add --sep {'tab' if other == chr(9) else repr(other)}"
            )
    frame.columns = [str(name) for name in frame.columns]
    if twice := [name for name in frame.columns if list(frame.columns).count(name) > 1]:
        raise InvalidDataError(f"{path} has two columns {twice[0]!r}: rename one")
    if not len(frame):
        raise InvalidDataError(f"{path} has a header and no rows")
    return frame


def split_target(
    frame: Any, target: str, drop: tuple[str, ...] = (), *, numbers: bool = True, gaps: bool = False
) -> tuple[Any, Any]:
    """Return features and target of a table; ``numbers``: every feature is one; ``gaps``: it may
    have gaps.

    Messages name a remedy of the command line, ``--drop``.
    """
    import pandas as pd

    y = frame[target]
    if y.isna().any():
        raise InvalidDataError(
            f"target {target!r} is missing in {int(y.isna().sum())} of {len(y)} rows: remove them"
        )
    X = frame.drop(columns=[target, *drop])
    if X.shape[1] == 0:
        raise InvalidDataError(f"the table has no column besides the target {target!r}")
    for name in X.columns:
        column = X[name]
        if column.isna().any() and not gaps:
            row = int(column.isna().to_numpy().argmax())
            raise InvalidDataError(
                f"column {name!r} is missing in {int(column.isna().sum())} of {len(X)} rows, first "
                f"in row {row + 1}: fill the gaps, with --categorical auto by the median, or leave "
                f"it out with --drop {name!r}"
            )
        if numbers and not pd.api.types.is_numeric_dtype(column):
            example = column.iloc[0]
            raise InvalidDataError(
                f"column {name!r} holds {type(example).__name__} values such as {example!r}, and "
                "a model needs numbers: --categorical auto makes a column of each category, and "
                f"--drop {name!r} leaves it out"
            )
    return (X.astype(float) if numbers else X), y


def task_of(y: Any) -> str:
    """Return "classification" for text and for few different whole numbers, else "regression".

    Examples
    --------
    >>> import pandas as pd
    >>> from drojko._cli.tables import task_of
    >>> task_of(pd.Series([0, 1, 1, 0])), task_of(pd.Series([0.5, 1.0, 1.5]))
    ('classification', 'regression')
    """
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(y) or pd.api.types.is_bool_dtype(y):
        return "classification"
    few = y.nunique() <= MOST_CLASSES and y.nunique() < len(y)
    return "classification" if few and bool((y % 1 == 0).all()) else "regression"


def labels(y: Any, task: str) -> Any:
    """Return the target as an array: floats, or labels that are integers or str."""
    import pandas as pd

    numeric = pd.api.types.is_numeric_dtype(y)
    if task == "regression":
        if not numeric:
            raise InvalidDataError(f"target {y.name!r} is not a number: use --task classification")
        return y.to_numpy(dtype=float)
    if not numeric:
        y = y.astype(str)
        if y.nunique() > max(MOST_CLASSES, len(y) // 2):
            raise InvalidDataError(
                f"target {y.name!r} has {y.nunique()} different values in {len(y)} rows: it looks "
                "like an identifier, not like classes"
            )
        return y.to_numpy(dtype=str)
    if not bool((y % 1 == 0).all()):
        raise InvalidDataError(f"target {y.name!r} is not discrete: use --task regression")
    return y.to_numpy(dtype=int)
