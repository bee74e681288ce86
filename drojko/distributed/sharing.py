"""`sharded`: fits within the block are fits to the rows of all processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed

from drojko._driver import RANKS
from drojko._validation import check_number
from drojko.distributed.ranks import Ranks, world

__all__ = ["sharded"]


@contextmanager
def sharded(*, timeout: float = 1800.0) -> Iterator[Any]:
    r"""Fits within the block are fits to the rows of all processes that torchrun has started.

    Each rank calls ``fit(X, y)`` or ``fit_batches(batches)`` with its own part of the rows, in the
    order of the ranks, and gets the same fitted estimator, equal to one process on all rows to
    1e-8 as far as its problem is well conditioned, and bit by bit to the other ranks'
    (``history_["seconds"]`` are the rank's own).

    .. math:: B^\top g = \sum_k B_k^\top g_k

    Rows stay where they are: sums over them are added up, D numbers for D parameters and at most
    D². Targets and weights are gathered once, 8 bytes a row, and predictions in each step of
    Newton's method; where losses are smooth and rows many, training exchanges sums alone
    (``docs/ranks.md``). Networks under transport of order 2 take the batches of one process, of
    which a rank visits its own rows; gradients are added up, P numbers for P parameters.

    Parameters
    ----------
    timeout : float, default=1800.0
        Seconds that a rank waits for another one.

    Yields
    ------
    Ranks
        With ``rank`` and ``size``; of size 1, where no other process is there: fits are as
        outside.

    Raises
    ------
    InvalidDataError
        From a fit, on every rank: shards that do not fit together (columns, types, settings), and
        whatever one of the ranks raises.
    UnsupportedError
        From a fit: for models, references and sets that need all rows at once (`MMD`, bounds of
        linear models and swaps of transport sets, networks under other sets, references that are
        drawn from).

    Notes
    -----
    An empty shard, and one that lacks a class, is one like others. ``worst_case_`` and
    ``reference_`` are those of the rank's own rows, where they are an array; ``predict``,
    ``robust_certificate`` and all else work on what the rank gives them. A rank that fails ends
    the others with its error, and Ctrl-C on one rank is Ctrl-C on all. A process group that exists
    is used; otherwise one is made from what torchrun has put into the environment, and ended
    with the block. Exchanges are those of gloo, on CPUs.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque (1983), Algorithms for computing the sample variance.

    Examples
    --------
    On one process (with ``torchrun --nproc-per-node=2`` each would give half of the rows):

    >>> import numpy as np
    >>> from drojko import DROClassifier, distributed
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
    >>> with distributed.sharded() as ranks:
    ...     own = slice(ranks.rank, None, ranks.size)
    ...     clf = DROClassifier(reference="empirical").fit(X[own], y[own])
    >>> ranks.size, clf.coef_.shape
    (1, (1, 1))
    """
    check_number("sharded: timeout", timeout, above=0.0)
    started = distributed.is_available() and distributed.is_initialized()
    made = not started and distributed.is_available() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    wait = timedelta(seconds=timeout)
    if made:
        distributed.init_process_group("gloo", timeout=wait)
    try:
        if world()[0] == 1:
            yield Ranks(None)
            return
        group: Any = distributed.new_group(backend="gloo", timeout=wait)
        token = RANKS.set(ranks := Ranks(group))
        try:
            yield ranks
        finally:
            RANKS.reset(token)
            distributed.destroy_process_group(group)
    finally:
        if made:
            distributed.destroy_process_group()
