"""How far an audit is: shares of the whole, and a bar that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Progress", "progress_bar"]

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """Says what is being done and how much of the whole it was; silent by default.

    >>> progress = Progress(lambda text, share: print(text, share))
    >>> sum(progress.over([5, 7], "learn", 0.5))
    learn 0.0
    learn 0.25
    learn 0.25
    12
    """

    report: Callable[[str, float], None] | None = None

    def over(self, items: Iterable[T], text: str, share: float) -> Iterator[T]:
        """Yield the items; together they are a share of the whole (shares are rough)."""
        todo = list(items)
        if self.report is not None:
            self.report(text, 0.0 if todo else share)
        for item in todo:
            yield item
            if self.report is not None:
                self.report(text, share / len(todo))


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    """A bar on standard error (in notebooks below the cell) while the block lasts."""
    if not shown:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("audit"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bar(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=1.0)

        def report(text: str, share: float) -> None:
            bar.update(task, description=text, advance=share)

        yield Progress(report)
        bar.update(task, description="done", completed=1.0)
