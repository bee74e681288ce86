"""Rows of data in standardised coordinates, and sums over them."""

from drojko.rows.rows import Rows, blocks, is_mapped, products, rows_of

__all__ = ["Rows", "blocks", "is_mapped", "products", "rows_of"]
