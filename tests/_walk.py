"""Which files of the package a piece of work crosses.

``python -m tests._walk`` prints the walk of a linear fit of each family.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import drojko
from drojko import DROClassifier
from drojko.ambiguity import KL, CVaR, Group, Sinkhorn, Wasserstein

ROOT = Path(drojko.__file__).parent

#: A linear fit of each family.
SETS: dict[str, Any] = {
    "transport": Wasserstein(0.1),
    "order one": Wasserstein(0.1, order=1),
    "divergence": KL(0.1),
    "tail": CVaR(0.5),
    "sinkhorn": Sinkhorn(0.1, radius=0.1),
    "groups": Group(),
}


@contextmanager
def crossed() -> Iterator[dict[str, int]]:
    """Count the calls into each file of the package, by its path below the package."""
    calls: dict[str, int] = {}
    known: dict[str, str | None] = {}

    def look(frame: Any, event: str, argument: Any) -> None:
        if event != "call":
            return
        file = frame.f_code.co_filename
        if file not in known:
            path = Path(file)
            known[file] = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else None
        name = known[file]
        if name is not None:
            calls[name] = calls.get(name, 0) + 1

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def walk(work: Callable[[], Any]) -> dict[str, int]:
    """Files crossed by ``work`` when it runs again: what is loaded on first use is loaded."""
    work()
    with crossed() as calls:
        work()
    return calls


def fit(ambiguity: Any) -> Callable[[], Any]:
    """A fit of a linear classifier of 200 rows to the empirical measure."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = X[:, 0] + 0.3 * rng.normal(size=200) > 0
    model = DROClassifier(ambiguity, reference="empirical", random_state=0)
    groups = np.arange(200) % 3
    return lambda: model.fit(X, y, groups=groups)


def main() -> None:
    for family, ambiguity in SETS.items():
        calls = walk(fit(ambiguity))
        print(f"{family}: {len(calls)} files")
        for name, count in sorted(calls.items()):
            print(f"    {count:6d} {name}")


if __name__ == "__main__":
    main()
