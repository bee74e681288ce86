"""Every public function and method says what it takes and what it returns."""

import importlib
import inspect

import pytest

import drojko

ROOMS = [
    "drojko", "drojko.ambiguity", "drojko.auditing", "drojko.baselines", "drojko.boosting",
    "drojko.displays", "drojko.distributed", "drojko.estimators", "drojko.exceptions",
    "drojko.flows", "drojko.inner", "drojko.losses", "drojko.measures", "drojko.nn",
    "drojko.problems", "drojko.rows", "drojko.transport",
]  # fmt: skip


def functions(thing):
    """Functions of a public object that the package defines, by their names."""
    if inspect.isfunction(thing):
        yield thing.__qualname__, thing
    if not inspect.isclass(thing):
        return
    for name in dir(thing):
        if name.startswith("_") and name != "__init__":
            continue
        value = inspect.getattr_static(thing, name)
        value = getattr(value, "__func__", value)
        value = value.fget if isinstance(value, property) else value
        if inspect.isfunction(value):
            yield f"{thing.__qualname__}.{name}", value


def unannotated(thing):
    for name, function in functions(thing):
        function = inspect.unwrap(function)
        if not function.__module__.startswith("drojko"):
            continue
        signature = inspect.signature(function)
        missing = [
            p.name
            for p in signature.parameters.values()
            if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        if signature.return_annotation is signature.empty and not name.endswith("__init__"):
            missing.append("return")
        if missing:
            yield f"{name}: {', '.join(missing)}"


def test_the_rooms_are_those_of_the_package():
    public = {
        f"drojko.{name}" for name in drojko.__all__ if inspect.ismodule(getattr(drojko, name))
    }
    assert public - {"drojko.minimax"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_public_functions_are_annotated(room):
    module = importlib.import_module(room)
    assert module.__all__
    found = [line for name in module.__all__ for line in unannotated(getattr(module, name))]
    assert found == []


def test_what_is_missing_is_seen():
    def plain(a, b: int):
        return a

    plain.__module__ = "drojko.x"
    assert [line.split(": ")[1] for line in unannotated(plain)] == ["a, return"]
