"""What keeps the house simple: arrows, circles, sizes, and objects that are asked what they know.

``python -m tests._house`` prints the figures that these tests hold, with every offender.
"""

import ast
import importlib
import inspect
import re
import textwrap

import pytest

import drojko
from tests._house import FACE, FLOOR, House


@pytest.fixture(scope="module")
def house() -> House:
    return House()


@pytest.fixture
def built(tmp_path):
    """A small package of the same name, to see that the checks see what they look for."""

    def build(**files: str) -> House:
        root = tmp_path / "drojko"
        for name, text in files.items():
            path = root / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        (root / "__init__.py").touch()
        return House(root)

    return build


# Arrows ------------------------------------------------------------------------------------------


def test_no_files_import_one_another(house):
    assert house.circles() == []


def test_no_folders_of_a_room_know_one_another(house):
    assert house.folder_circles() == []


def test_no_import_leads_up(house):
    assert house.arrows_up() == []


def test_every_room_has_a_floor(house):
    rooms = {m.split(".")[0] for m, path in house.paths.items() if path.parent != house.root}
    plumbing = {room for room in rooms if room.startswith("_")}
    assert rooms - plumbing - FACE <= set(FLOOR)


def test_circles_in_functions_and_for_type_checkers_are_seen(built):
    house = built(
        losses__a="from drojko.losses.b import x",
        losses__b="def f():\n    from drojko.losses.c import y",
        losses__c="""
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from drojko.losses import a
        """,
        losses__d="from drojko.losses.a import z",
    )
    assert house.circles() == [["losses.a", "losses.b", "losses.c"]]


def test_folders_that_know_one_another_are_seen_where_their_files_do_not(built):
    house = built(
        flows__icnn__a="from drojko.flows.tasks.b import x",
        flows__tasks__b="",
        flows__tasks__c="from drojko.flows.icnn.d import x",
        flows__icnn__d="",
    )
    assert house.circles() == []
    assert house.folder_circles() == [["flows/icnn/", "flows/tasks/"]]


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("measures__a", "from drojko.losses.b import x"),
        ("measures__a", "def f():\n    from drojko.losses.b import x"),
        ("measures__a", "import drojko.losses.b"),
        ("measures__a", "from ..losses.b import x"),
        ("measures__a", "from importlib import import_module\nimport_module('drojko.losses.b')"),
        ("measures__a", "from drojko import __version__"),
        ("_plumbing", "from drojko.losses.b import x"),
        ("baselines__a", "from drojko.minimax import x"),
    ],
)
def test_arrows_up_are_seen_however_they_are_written(built, room, statement):
    house = built(**{room: statement, "losses__b": "", "minimax____init__": "x = 1"})
    assert len(house.arrows_up()) == 1


def test_arrows_down_are_none(built):
    house = built(
        losses__b="from drojko.models import x\nfrom drojko._plumbing import y\nimport torch",
        models="from drojko.losses import b",
        _plumbing="",
        estimators__c="def f():\n    from drojko.losses.b import x",
        _cli="from drojko import __version__",
    )
    assert house.arrows_up() == []


# Questions ---------------------------------------------------------------------------------------


def test_losses_are_asked_what_they_know_not_what_they_are(house):
    asks = house.loss_asks()
    assert len(asks) <= 12, "\n".join(map(str, asks))


def test_sets_are_asked_what_they_know_not_what_they_are(house):
    asks = house.set_asks()
    assert len(asks) <= 20, "\n".join(map(str, asks))


@pytest.mark.parametrize(
    "question",
    [
        "isinstance(x, Hinge)",
        "isinstance(x, losses.Hinge)",
        "isinstance(x, Hinge | Loss)",
        "isinstance(x, (int, Hinge))",
        "isinstance(x, BOTH)",
        "issubclass(type(x), Hinge)",
        "type(x) is Hinge",
        "type(x) in (Hinge, int)",
        "x.name == 'hinge'",
        "x.name in ('hinge', 'other')",
        "{Hinge: 1}[type(x)]",
        "isinstance(x, Steep)",
    ],
)
def test_questions_after_a_class_are_seen(built, question):
    house = built(
        losses__a="class Loss: ...\nclass Hinge(Loss): ...\nclass Steep(Hinge): ...",
        inner__b=f"BOTH = (Hinge, int)\ny = {question}",
    )
    assert len(house.loss_asks()) == 1


@pytest.mark.parametrize(
    "statement",
    ["isinstance(x, Loss)", "isinstance(x, int)", "Hinge(2)", "x.name == 'else'", "{'a': Hinge}"],
)
def test_what_is_no_question_is_not_counted(built, statement):
    house = built(losses__a="class Loss: ...\nclass Hinge(Loss): ...", inner__b=f"y = {statement}")
    assert house.loss_asks() == []


# Sizes -------------------------------------------------------------------------------------------


def test_files_are_short_in_the_mean(house):
    assert sum(house.lines.values()) <= 200 * len(house.lines)


def test_files_can_be_overlooked(house):
    assert {name: size for name, size in house.lines.items() if size > 600} == {}


def test_folders_can_be_overlooked(house):
    assert {name: size for name, size in house.folders.items() if size > 15} == {}


# Words -------------------------------------------------------------------------------------------


def public():
    """Every public class and function of the package and its rooms, once, by its first name."""
    rooms = [getattr(drojko, name) for name in drojko.__all__]
    rooms = [room for room in rooms if inspect.ismodule(room)]
    rooms += [importlib.import_module(f"drojko.flows.{name}") for name in ("functionals", "tasks")]
    found = {}
    for room in [drojko, *rooms]:
        for name in getattr(room, "__all__", ()):
            value = getattr(room, name)
            error = inspect.isclass(value) and issubclass(value, Exception)
            if not error and (inspect.isclass(value) or inspect.isfunction(value)):
                found.setdefault(value, f"{room.__name__}.{name}")
    return {name: value for value, name in found.items()}


PUBLIC = public()
SECTION = re.compile(r"^ *(Parameters|Attributes|Returns)\n *-+$", re.MULTILINE)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_say_what_they_take_and_hold(name):
    value = PUBLIC[name]
    text = value.__doc__ or ""
    assert text.strip(), f"{name} has no docstring"
    takes = [p for p in inspect.signature(value).parameters if p not in {"args", "kwargs"}]
    if takes:
        assert SECTION.search(text), f"{name} takes {takes}, and no section says what they are"


def test_modules_say_what_they_hold(house):
    silent = [name for name, tree in house.trees.items() if not ast.get_docstring(tree)]
    assert silent == []
