"""Tables in Parquet files as batches of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drojko._validation import did_you_mean, is_whole
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["ParquetBatches", "parquet"]


class ParquetBatches:
    """Batches (X, y), frames and series, of the rows of Parquet files; what `parquet` returns.

    ``part(number, count)`` are those of a part of the rows.
    """

    def __init__(
        self,
        dataset: Any,
        path: Path,
        target: str,
        columns: list[str],
        batch_size: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.dataset, self.path = dataset, path
        self.target, self.columns, self.batch_size = target, columns, batch_size
        self.share = share

    def part(self, number: int, count: int) -> ParquetBatches:
        """One of so many parts of the rows, of nearly equal lengths: those of a rank.

        Row groups that lie outside of it are not read.
        """
        if not (is_whole(count, 1) and is_whole(number, 0) and number < count):
            raise InvalidDataError(f"part({number!r}, {count!r}): expected 0 <= number < count")
        known = self.dataset, self.path, self.target, self.columns, self.batch_size
        return ParquetBatches(*known, (number, count))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        wanted = [*self.columns, self.target]
        for batch in self._batches(columns=wanted, batch_size=self.batch_size):
            if batch.num_rows:
                frame = batch.to_pandas(ignore_metadata=True)
                yield frame[self.columns], frame[self.target]

    def _batches(self, **options: Any) -> Iterator[Any]:
        number, count = self.share
        if count == 1:
            yield from self.dataset.to_batches(**options)
            return
        groups = [one for file in self.dataset.get_fragments() for one in file.split_by_row_group()]
        sizes = [one.row_groups[0].num_rows for one in groups]
        whole, start = sum(sizes), 0
        low, high = whole * number // count, whole * (number + 1) // count
        for group, size in zip(groups, sizes, strict=True):
            after = start + size
            if after > low and start < high:
                for batch in group.to_batches(schema=self.dataset.schema, **options):
                    n = batch.num_rows
                    first, last = (min(max(end - start, 0), n) for end in (low, high))
                    yield batch.slice(first, last - first)
                    start += n
            start = after

    def __repr__(self) -> str:
        name = f"parquet({str(self.path)!r}, target={self.target!r}"
        return f"{name}, {len(self.columns)} columns, batch_size={self.batch_size})"


def parquet(
    path: Any,
    *,
    target: str,
    columns: Sequence[str] | None = None,
    batch_size: int = 65_536,
) -> ParquetBatches:
    """Rows of a Parquet file, or of all in a folder, as batches for ``fit_batches``.

    Parameters
    ----------
    path : path-like
        A file, or a folder of files with the same columns, which are read in the order of their
        names.
    target : str
        Name of the column that is y.
    columns : sequence of str, default=None
        Names of the columns of X, in order; None: all but the target and an index of pandas.
    batch_size : int, default=65536
        Rows in memory at a time, at most.

    Returns
    -------
    ParquetBatches
        Iterate over it as often as you like: batches (X, y) of a frame and a series. With
        ``part(rank, size)`` those of one of several processes (`drojko.distributed.sharded`).

    Raises
    ------
    UnsupportedError
        Without pyarrow.
    InvalidDataError
        For a path that holds no such table, and for unknown columns.

    Examples
    --------
    >>> import tempfile, pandas as pd
    >>> from pathlib import Path
    >>> from drojko.rows import parquet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0], "y": [0, 1, 1]})
    ...     frame.to_parquet(Path(folder) / "part.parquet")
    ...     [len(y) for X, y in parquet(folder, target="y", batch_size=2)]
    [2, 1]
    """
    try:
        import pyarrow as pa
        from pyarrow import dataset
    except ImportError:
        raise UnsupportedError(
            "drojko.rows.parquet needs pyarrow: pip install pyarrow (or drojko[parquet])"
        ) from None
    path = Path(path)
    if not path.exists():
        raise InvalidDataError(f"{path} does not exist; expected a Parquet file or folder")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidDataError(f"batch_size={batch_size!r}; expected a number of rows, at least 1")
    try:
        found = dataset.dataset(path, format="parquet")
        known = found.schema.names
        count = len(found.files)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidDataError(f"{path} cannot be read as Parquet: {error}") from error
    if not count:
        raise InvalidDataError(f"{path} holds no Parquet files")
    if columns is None:  # an index that pandas has written is none of them
        index = (found.schema.pandas_metadata or {}).get("index_columns", [])
        columns = [name for name in known if name != target and name not in index]
    columns = list(columns)
    for name in (target, *columns):
        if name not in known:
            raise InvalidDataError(
                f"{path} has no column {name!r}; {did_you_mean(name, known)}".rstrip("; ")
            )
    if not columns:
        raise InvalidDataError(f"{path} has no column beside the target {target!r}")
    return ParquetBatches(found, path, target, columns, batch_size)
