"""Draws calls with wrong arguments, judges them, and counts."""

import collections
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

from drojko import inner, losses
from tests.fuzz.judge import Verdict, call
from tests.fuzz.subjects import Subject, subjects
from tests.fuzz.values import NAMES, PLAIN, wrong

#: Subjects through which no raw error may come at all.
FRONT = (
    "DRO",
    "audit",
    "Audit",
    "drojko",
    "network",
    "select_radius",
    "radius_path",
    "save",
    "load",
)
KINDS = ("fine", "own", "foreign", "nan", "hang")


@dataclass
class Count:
    """Outcomes, and what went wrong."""

    kinds: collections.Counter = field(default_factory=collections.Counter)
    faults: list[tuple[str, Verdict]] = field(default_factory=list)

    def add(self, text: str, verdict: Verdict) -> None:
        self.kinds[verdict.kind] += 1
        if verdict.kind not in ("fine", "own"):
            self.faults.append((text, verdict))

    @property
    def of_the_front(self) -> list[tuple[str, Verdict]]:
        """Faults that came through estimators, audits, files or the command line."""
        return [fault for fault in self.faults if fault[0].startswith(FRONT)]


def known() -> list[Subject]:
    found = list(subjects())
    missing = [name for name in found if isinstance(name, str)]
    if missing:
        raise LookupError(f"GOOD in tests/fuzz/subjects.py has no arguments for {missing}")
    return [subject for subject in found if isinstance(subject, Subject)]


def drawn(all_of_them: list[Subject], calls: int, seed: int) -> Iterator[tuple[Subject, dict]]:
    """Calls: each subject in turn, with one or two arguments replaced."""
    rng = random.Random(seed)
    order = list(all_of_them)
    rng.shuffle(order)
    for i in range(calls):
        subject = order[i % len(order)]
        count = min(len(subject.names), 1 if rng.random() < 0.75 else 2)
        places = rng.sample(subject.names, count)
        yield subject, {place: rng.choice(NAMES) for place in places}


def one(subject: Subject, changes: dict[str, str], seconds: float = 20.0) -> Verdict:
    """A call with arguments replaced by wrong values, given by name."""
    arguments: dict[str, Any] = subject.arguments()
    for place, name in changes.items():
        arguments[place] = wrong(name, arguments.get(place))
    # A loss of NaN is NaN: that is what solvers ask for. Constructors keep what they are given.
    owner = getattr(subject.function, "__self__", None)
    unsafe = isinstance(owner, losses.Loss | inner.Objective | inner.Coordinates) and not {
        *changes.values()
    } <= {*PLAIN}
    unsafe = unsafe or isinstance(subject.function, type)
    return call(lambda: subject.function(**arguments), seconds, given_nan=unsafe)


def fuzz(calls: int, seed: int = 0, seconds: float = 20.0) -> Count:
    count = Count()
    # Odd names of files are among the arguments.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for subject, changes in drawn(known(), calls, seed):
            what = ", ".join(f"{place}={name}" for place, name in changes.items())
            count.add(f"{subject.name}({what})", one(subject, changes, seconds))
    return count


def main(calls: int = 6000, seed: int = 0) -> None:
    began = time.perf_counter()
    count = fuzz(calls, seed)
    print(f"{calls} calls, seed {seed}, {time.perf_counter() - began:.0f} s")
    print(", ".join(f"{kind} {count.kinds[kind]}" for kind in KINDS))
    print(f"through estimators, audits, files and the command line: {len(count.of_the_front)}")
    for text, verdict in sorted(count.faults, key=lambda f: (f[1].kind, f[1].where)):
        print(f"{verdict.kind:8} {verdict.where:28} {text}: {verdict.text}")
