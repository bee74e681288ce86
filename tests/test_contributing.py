"""What the pages for contributors name exists: rooms, files, methods, tests.

What they tell one to do is done in ``tests/losses/test_own_loss.py`` and
``tests/ambiguity/test_own_set.py``, with classes outside the package.
"""

import importlib
import re
from pathlib import Path

import pytest

import drojko
from drojko.ambiguity import AmbiguitySet, DensityRatioSet
from drojko.approaches.base import Approach
from drojko.losses import Loss
from tests._house import FLOORS, House

HERE = Path(drojko.__file__).parent
PAGES = {"CONTRIBUTING.md": HERE.parent, "README.md": HERE}
#: Placeholders of the reader's own.
OWN = {"NAME", "FAMILY"}


def page(name: str) -> str:
    return (PAGES[name] / name).read_text(encoding="utf-8")


def section(title: str) -> str:
    text = page("CONTRIBUTING.md")
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def code(text: str) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


@pytest.mark.parametrize("name", PAGES)
def test_files_and_folders_that_are_named_exist(name):
    root = HERE.parent
    for word in code(page(name)):
        if not re.fullmatch(r"[\w./]+(/|\.py|\.md|\.toml)", word) or OWN & set(
            re.split("[/.]", word)
        ):
            continue
        places = [root / word, HERE / word, *HERE.glob(f"*/{word}"), *HERE.glob(f"*/*/{word}")]
        places += list((root / "tests").glob(f"**/{word}"))
        assert any(place.exists() for place in places), f"{name} names {word}"


def test_the_page_lists_every_room_in_order():
    table = page("README.md").split("| room |", 1)[1].split("\n\n", 1)[0]
    rows = [code(line.split("|")[1]) for line in table.splitlines()[2:]]
    found = [tuple(word.rstrip("/").removesuffix(".py") for word in row) for row in rows]
    assert found == list(FLOORS)


def test_plumbing_that_is_named_is_all_there_is():
    text = page("README.md").split("The plumbing:", 1)[1].split("\n\n", 1)[0]
    files = {path.name for path in HERE.glob("_*.py")} - {"__init__.py", "__main__.py"}
    assert files == {word for word in code(text) if re.fullmatch(r"_\w+\.py", word)}


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("How to add a loss", [Loss]),
        ("How to add a set", [AmbiguitySet, DensityRatioSet]),
        ("How to add a family", [AmbiguitySet, Approach]),
    ],
)
def test_methods_that_are_to_be_written_are_asked_for(title, kinds):
    """A method that a page names is one of the protocol, or is asked for by name."""
    source = "\n".join(House().text.values())
    for word in code(section(title)):
        match = re.fullmatch(r"(\w+)(\(.*\))?", word)
        if match is None or word in OWN or word.isupper():
            continue
        name = match[1]
        known = any(hasattr(kind, name) for kind in kinds)
        assert known or re.search(rf"\b{name}\b", source), f"{title}: {word}"


@pytest.mark.parametrize("title", ["How to add a loss", "How to add a set", "How to add a family"])
def test_ten_lines_are_enough(title):
    steps = [line for line in section(title).splitlines() if re.match(r"\d+\. ", line)]
    assert 5 <= len(steps) <= 10


def test_rooms_that_are_named_can_be_imported():
    for rooms in FLOORS:
        for room in rooms:
            assert importlib.import_module(f"drojko.{room}").__doc__
