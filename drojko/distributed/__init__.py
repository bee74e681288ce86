"""One fit on several processes: each has a part of the rows, all get the same model."""

from drojko.distributed.ranks import Ranks
from drojko.distributed.sharing import sharded

__all__ = ["Ranks", "sharded"]
