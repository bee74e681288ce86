"""Every public name says in its docstring what its kind has to say.

Functions: what each parameter is, what comes back, what is raised, an example. Classes: what each
argument (or, of results, each field) is, and an example where users make them. Sets, estimators
and what follows a paper: the source.
"""

import importlib
import inspect
import re

import pytest

from drojko.ambiguity import AmbiguitySet
from drojko.exceptions import DrojkoError
from tests.test_annotations import ROOMS

#: What the package hands out, and bases: users read them, others make them.
HANDED_OUT = {
    "BoundGroup", "BoundMMD", "GroupDual", "MMDDual", "Ranks", "RadiusSelection", "ObservedShift",
    "Decision", "RobustObjective", "Evidence", "FlowResult", "ImportanceMeasure", "BallSolution",
    "ClassFlow", "Moved", "SemiDualWorstCase", "ShiftReport", "Solution", "DecisionWorstCase",
    "Swept",
}  # fmt: skip
BASES = {
    "AmbiguitySet", "DensityRatioSet", "InnerSolver", "LabelledMeasure", "Measure", "TransportMap",
    "Constraint", "StructuredLoss",
}  # fmt: skip


def sections(text: str) -> dict[str, str]:
    """Text under each underlined title; "" is what stands before the first."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}$", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def named(section: str) -> set[str]:
    """Names on the lines ``a, b : kind`` of a section, and on lines of names alone."""
    lines = re.findall(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*),?(?: :.*)?$", section, re.MULTILINE)
    return {name.strip("* ") for line in lines for name in line.split(",")}


def missing(name: str, thing: object) -> list[str]:
    """What the docstring of a public thing lacks."""
    text = inspect.getdoc(thing) or ""
    found = sections(text)
    lacks = []
    if not re.match(r"\S.*[.:]", found[""]):
        lacks.append("a first sentence")
    if inspect.isclass(thing) and issubclass(thing, (DrojkoError, Warning)):
        return lacks
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return lacks
    said = set()
    for kind in inspect.getmro(thing) if inspect.isclass(thing) else [thing]:
        theirs = sections(inspect.getdoc(kind) or "")  # fields of a base are said there
        said |= named(theirs.get("Parameters", "")) | named(theirs.get("Attributes", ""))
    skip = {"self", "args", "kwargs"}
    unsaid = [p for p in signature.parameters if p not in said | skip and not p.startswith("_")]
    if unsaid and name not in HANDED_OUT | BASES:
        lacks.append(f"Parameters: {', '.join(unsaid)}")
    if not inspect.isclass(thing):
        returns = signature.return_annotation not in (None, "None")
        if returns and not {"Returns", "Yields"} & set(found):
            lacks.append("Returns")
        raises = re.search(r"^\s+raise \w", inspect.getsource(inspect.unwrap(thing)), re.MULTILINE)
        if raises and "Raises" not in found:
            lacks.append("Raises")
    if ">>> " not in text and name not in HANDED_OUT | BASES:
        lacks.append("Examples")
    is_set = inspect.isclass(thing) and issubclass(thing, AmbiguitySet) and name not in BASES
    if is_set and "References" not in found:
        lacks.append("References")
    return lacks


@pytest.mark.parametrize("room", [*ROOMS, "drojko.flows.functionals"])
def test_docstrings_say_what_their_kind_needs(room):
    module = importlib.import_module(room)
    found = []
    for name in module.__all__:
        thing = getattr(module, name)
        ours = getattr(thing, "__module__", "").startswith("drojko")
        if ours and (inspect.isclass(thing) or inspect.isroutine(thing)):
            found += [f"{room}.{name}: {lack}" for lack in missing(name, thing)]
    assert found == []


def test_what_is_missing_is_seen():
    def bare(a: int) -> int:
        """Return what it takes, twice."""
        if a < 0:
            raise ValueError
        return 2 * a

    assert missing("bare", bare) == ["Parameters: a", "Returns", "Raises", "Examples"]
