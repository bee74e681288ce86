"""Rows of data in standardised coordinates, and sums over them."""

from drojko.rows.files import parquet
from drojko.rows.rows import Rows, blocks, is_mapped, is_wide, products, rows_of

__all__ = ["Rows", "blocks", "is_mapped", "is_wide", "parquet", "products", "rows_of"]
