"""Rows of data in standardised coordinates, and sums over them."""

from drojko.rows.rows import Rows, blocks

__all__ = ["Rows", "blocks"]
