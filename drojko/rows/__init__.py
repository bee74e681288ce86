"""Rows of data in standardised coordinates, and sums over them."""

from drojko.rows.files import parquet
from drojko.rows.rows import (  # noqa: F401  what is not in __all__ is for the rooms above
    Rows,
    Swept,
    blocks,
    equal,
    fingerprint,
    is_large,
    is_mapped,
    is_wide,
    normalised,
    products,
    rows_of,
)

__all__ = ["Rows", "Swept", "parquet"]
