"""Checkpoints of runs: written whole, two generations, gone on from by the same call alone."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drojko._driver.snapshots import dumped, fingerprint, loaded
from drojko._files import check_path, opened, replacing
from drojko._validation import check_number
from drojko.exceptions import InvalidDataError

__all__ = ["Checkpoint"]

_MARK = b"drojko checkpoint 1\n"
#: Share of a run's time that may go into snapshots that are kept in memory until one is due.
_SHARE = 0.05


class Checkpoint:
    """A file that a run is written to, and that the same call goes on from.

    The file of the time before is kept beside it, ``.previous`` at the end of its name. Both name
    digests of what the call was given: a run of something else is refused.

    Parameters
    ----------
    path : str or path-like
    every : float
        Seconds between two files. One is written as well when a run ends, however it does.
    given : sequence
        Objects of the caller's that states refer to, in the same order at each call.
    **about : object
        What must be the same at each call, by name: data and settings.

    Raises
    ------
    InvalidDataError
        Where there is a file of another kind or of another call, or damaged ones alone; where
        there is no folder.
    """

    def __init__(
        self, path: Any, every: float = 60.0, given: Sequence[Any] = (), **about: Any
    ) -> None:
        self.path = check_path(path, "checkpoint")
        self.previous = self.path.with_name(self.path.name + ".previous")
        check_number("checkpoint_every", every, least=0)
        self.every, self.given = every, given
        if not self.path.absolute().parent.is_dir():
            raise InvalidDataError(
                f"checkpoint={str(path)!r}: there is no folder {self.path.parent}; make it first"
            )
        self.about = {name: fingerprint(value) for name, value in about.items()}
        self.about |= {f"version of {name}": version(name) for name in ("drojko", "torch")}
        self.seed: int | None = None
        self.whole = False  # whether what lies at the path may become the previous one
        self._found = self._read()
        self._ready: bytes | None = None
        self._written = self._snapped = time.perf_counter()
        self._spent = 0.0

    def _read(self) -> bytes | None:
        """The state in the newest whole file; None where there is no file."""
        damaged: list[Path] = []
        for path in (self.path, self.previous):
            try:
                with opened(path) as file:
                    content = file.read()
            except FileNotFoundError:
                continue
            mark, digest, rest = content[: len(_MARK)], content[len(_MARK) :][:64], b""
            rest = content[len(_MARK) + 64 :]
            if mark != _MARK or hashlib.sha256(rest).hexdigest().encode() != digest:
                damaged.append(path)
                continue
            head, _, state = rest.partition(b"\n")
            self._check_same(json.loads(head), path)
            self.whole = path == self.path
            if damaged:
                warnings.warn(
                    f"checkpoint {damaged[0]} was cut or altered: going on from the one before it, "
                    f"{path}",
                    UserWarning,
                    stacklevel=4,
                )
            return state
        if damaged:
            raise InvalidDataError(
                f"checkpoint={str(self.path)!r}: {' and '.join(map(str, damaged))} cannot be read "
                "as a checkpoint of drojko: of another kind, cut or altered. Give another name, or "
                "remove what is there to start anew"
            )
        return None

    def _check_same(self, head: dict[str, Any], path: Path) -> None:
        then = head["about"]
        other = [name for name in {**self.about, **then} if self.about.get(name) != then.get(name)]
        if other:
            raise InvalidDataError(
                f"checkpoint={str(path)!r} is of another call, with a different "
                f"{', '.join(other)}: give what it was begun with, another name, or remove the "
                "file to start anew"
            )
        self.seed = head["seed"]

    # -- what the driver calls ---------------------------------------------------------------

    def resumed(self, solver: Any) -> Any:
        """Where the run was, and the solver as it was then; None: there was none."""
        if self._found is None:
            return None
        carried, run = loaded(self._found, self.given)
        if carried is not None:
            solver.restore(carried)
        return run

    def keep(self, solver: Any, run: Any, last: bool = False) -> None:
        """A state between two steps, written where it is time, or the ``last`` of a run."""
        now = time.perf_counter()
        due = last or now - self._written >= self.every
        if not due and self._ready is not None and now - self._snapped < self._spent / _SHARE:
            return
        carried = solver.carried() if hasattr(solver, "carried") else None
        self._ready = dumped((carried, run), self.given)
        self._snapped = time.perf_counter()
        self._spent = self._snapped - now
        if due:
            self.write()

    def write(self) -> None:
        """The newest state to the file; a warning where that cannot be done."""
        if self._ready is None:
            return
        head = json.dumps({"about": self.about, "seed": self.seed}).encode()
        rest = head + b"\n" + self._ready
        self._written = time.perf_counter()
        try:
            with replacing(self.path) as file:
                file.write(_MARK + hashlib.sha256(rest).hexdigest().encode() + rest)
                file.flush()
                os.fsync(file.fileno())
                if self.whole:
                    os.replace(self.path, self.previous)
            self.whole, self._ready = True, None
        except OSError as error:
            warnings.warn(
                f"checkpoint {self.path} could not be written ({error}): the run goes on, and "
                "tries again",
                UserWarning,
                stacklevel=4,
            )
