"""Tables for the command line: features as numbers, and what kind of target there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drojko._files import opened
from drojko.exceptions import InvalidDataError

__all__ = ["MOST_CLASSES", "labels", "read_table", "split_target", "task_of"]

#: Integers with more distinct values are numbers, not labels.
MOST_CLASSES = 20

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, encoding: str = "utf-8") -> Any:
    """Return the DataFrame in a .csv, .tsv or .parquet file; column names are strings.

    Raises `InvalidDataError`, which names the file and the remedy, for what is none.
    """
    import pandas as pd

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
                frame = pd.read_csv(file, sep=_SEPARATORS[suffix], encoding=encoding)
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
    frame.columns = [str(name) for name in frame.columns]
    if twice := [name for name in frame.columns if list(frame.columns).count(name) > 1]:
        raise InvalidDataError(f"{path} has two columns {twice[0]!r}: rename one")
    if not len(frame):
        raise InvalidDataError(f"{path} has a header and no rows")
    return frame


def split_target(
    frame: Any, target: str, drop: tuple[str, ...] = (), *, numbers: bool = True
) -> tuple[Any, Any]:
    """Return features and target of a table without gaps; ``numbers``: every feature is one.

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
        if column.isna().any():
            raise InvalidDataError(
                f"column {name!r} is missing in {int(column.isna().sum())} of {len(X)} rows: "
                f"impute it, or leave it out with --drop {name!r}"
            )
        if numbers and not pd.api.types.is_numeric_dtype(column):
            example = column.iloc[0]
            raise InvalidDataError(
                f"column {name!r} holds {type(example).__name__} values such as {example!r}, and "
                "transport needs numbers: encode it (pandas.get_dummies does) and keep the new "
                f"columns from moving with --immutable, or leave it out with --drop {name!r}"
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
