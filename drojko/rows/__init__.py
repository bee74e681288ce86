"""Rows of data in standardised coordinates, and sums over them."""

from drojko.rows.files import parquet
from drojko.rows.rows import Rows, Swept
from drojko.rows.rows import blocks as blocks  # those below are for the rooms above
from drojko.rows.rows import equal as equal
from drojko.rows.rows import fingerprint as fingerprint
from drojko.rows.rows import is_large as is_large
from drojko.rows.rows import is_mapped as is_mapped
from drojko.rows.rows import is_wide as is_wide
from drojko.rows.rows import normalised as normalised
from drojko.rows.rows import products as products
from drojko.rows.rows import rows_of as rows_of

__all__ = ["Rows", "Swept", "parquet"]
