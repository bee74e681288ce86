"""A folder of Parquet files for the command line: read batch by batch, never as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drojko.exceptions import InvalidDataError

__all__ = ["Folder", "read_folder"]


@dataclass(frozen=True)
class Folder:
    """Batches of rows, with what reports ask of a table."""

    batches: Any
    y: Any

    @property
    def columns(self) -> list[str]:
        """Names of the features."""
        return self.batches.columns

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return len(self.y), len(self.columns)

    def std(self, numeric_only: bool = True) -> Any:
        """Spreads of the columns: nobody has looked."""
        import pandas as pd

        return pd.Series(dtype=float)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def read_folder(
    path: Path, target: str, drop: tuple[str, ...], rank: int = 0, size: int = 1
) -> Folder:
    """The Parquet files of a folder, of which a rank gives its part; the target is read at once."""
    import pandas as pd

    from drojko.rows import parquet

    every = parquet(path, target=target)
    for name in drop:
        if name not in every.columns:
            raise InvalidDataError(
                f"--drop {name}: {path} has no such column; columns: {', '.join(every.columns)}"
            )
    columns = [name for name in every.columns if name not in drop]
    batches = parquet(path, target=target, columns=columns)
    y: Any = pd.concat([y for _, y in parquet(path, target=target, columns=columns[:1])])
    if y.isna().any():
        raise InvalidDataError(
            f"target {target!r} is missing in {int(y.isna().sum())} of {len(y)} rows: remove them"
        )
    return Folder(batches.part(rank, size), y)
