"""What the source says of itself: who imports whom, who asks for a class, how large things are.

``python -m tests._house`` prints where the package stands.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent / "drojko"

#: Rooms from the ground up; a room imports only from those below it and from the plumbing.
FLOORS = (
    ("measures",),
    ("transport",),
    ("losses", "models"),
    ("ambiguity",),
    ("rows",),
    ("flows",),
    ("inner",),
    ("certificates",),
    ("minimax",),
    ("approaches",),
    ("estimators",),
    ("displays",),
    ("auditing",),
    ("problems", "baselines", "nn", "boosting"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: The face of the package: they show what the rooms hold, and no room knows them.
FACE = {"__init__", "__main__", "_cli"}


@dataclass(frozen=True)
class Import:
    """A file of the package that another one imports, and on which line."""

    target: str
    line: int


@dataclass(frozen=True)
class Ask:
    """A place that asks for a class: what is asked, of which kind."""

    module: str
    line: int
    names: frozenset[str]
    how: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.how} {'|'.join(sorted(self.names))}"


def dotted(path: Path, root: Path = ROOT) -> str:
    """A file's name in imports, below the package: ``minimax.lbfgs``; a folder's own file too."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


class House:
    """The files of a package, parsed once."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.paths = {dotted(path, root): path for path in sorted(root.rglob("*.py"))}

    @cached_property
    def text(self) -> dict[str, str]:
        return {name: path.read_text(encoding="utf-8") for name, path in self.paths.items()}

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {name: ast.parse(text) for name, text in self.text.items()}

    @cached_property
    def lines(self) -> dict[str, int]:
        return {name: len(text.splitlines()) for name, text in self.text.items()}

    @cached_property
    def folders(self) -> dict[str, int]:
        """How many files lie in each folder, those aside that only say what it holds."""
        count: dict[str, int] = {}
        for path in self.paths.values():
            if path.name in {"__init__.py", "__main__.py"}:
                continue
            folder = str(path.parent.relative_to(self.root))
            count[folder] = count.get(folder, 0) + 1
        return count

    # -- who imports whom --------------------------------------------------------------------

    def target(self, name: str) -> str | None:
        """The file that an imported dotted name lies in; None outside the package."""
        package, _, rest = name.partition(".")
        if package != self.root.name:
            return None
        while rest and rest not in self.paths:
            rest = rest.rpartition(".")[0]
        return rest or "__init__"

    def imports(self, module: str) -> list[Import]:
        """Every import of the package's files, in functions and for type checkers too."""
        found = []
        for node in ast.walk(self.trees[module]):
            for name in _imported(node, self._folder(module)):
                target = self.target(name)
                if target is not None and target != module:
                    found.append(Import(target, getattr(node, "lineno", 0)))
        return found

    def _folder(self, module: str) -> list[str]:
        inside = module.split(".")
        if self.paths[module].name != "__init__.py":
            inside = inside[:-1]
        return [self.root.name, *inside]

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        return {m: {i.target for i in self.imports(m)} for m in self.paths}

    def circles(self) -> list[list[str]]:
        """Groups of files that import one another, by whatever way (strong components)."""
        return [part for part in _components(self.graph) if len(part) > 1]

    def arrows_up(self) -> list[str]:
        """Imports between rooms that do not lead down."""
        return [
            f"{module}:{found.line} -> {found.target}"
            for module in self.paths
            if module.split(".")[0] not in FACE
            for found in self.imports(module)
            if _leads_up(module, found.target)
        ]

    def folder_circles(self) -> list[list[str]]:
        """Folders and loose files of one room that know one another: they have no order."""
        graph: dict[str, set[str]] = {}
        for module, targets in self.graph.items():
            here = self._place(module)
            same = {self._place(t) for t in targets if t.split(".")[0] == module.split(".")[0]}
            graph.setdefault(here, set()).update(same - {here})
        return [part for part in _components(graph) if len(part) > 1]

    def _place(self, module: str) -> str:
        """The folder of a room that a file lies in, or the file itself."""
        parts = self.paths[module].relative_to(self.root).with_suffix("").parts
        return "/".join(parts[:2]) + ("/" if len(parts) > 2 else "")

    # -- who asks for a class ----------------------------------------------------------------

    def classes(self, room: str, base: str) -> frozenset[str]:
        """Classes of a room that derive from ``base``, itself left out."""
        parents: dict[str, set[str]] = {}
        for module, tree in self.trees.items():
            if module.split(".")[0] != room:
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    parents[node.name] = {_last(b) for b in node.bases} - {""}
        known = {base}
        while True:
            more = {name for name, above in parents.items() if above & known} - known
            if not more:
                return frozenset(known - {base})
            known |= more

    def asks(self, names: frozenset[str], words: frozenset[str] = frozenset()) -> list[Ask]:
        """Tests of a class among ``names``, or of an attribute `name` against one of ``words``."""
        found = []
        for module, tree in self.trees.items():
            aliases = _aliases(tree)
            for node in ast.walk(tree):
                for how, asked in _asked(node, aliases, words):
                    if asked & (names | words):
                        line = getattr(node, "lineno", 0)
                        found.append(Ask(module, line, frozenset(asked & (names | words)), how))
        return found

    def loss_asks(self) -> list[Ask]:
        """Tests of a loss's class, or of its name, outside ``losses/``."""
        names = self.classes("losses", "Loss")
        words = frozenset({"logistic", "hinge", "squared", "absolute", "huber", "quantile"})
        words |= {"softmax", "crammer-singer", "callable"}
        return [a for a in self.asks(names, words) if a.module.split(".")[0] != "losses"]

    def set_asks(self) -> list[Ask]:
        """Tests of a set's class outside ``ambiguity/`` and the registry."""
        names = self.classes("ambiguity", "AmbiguitySet")
        exempt = {"approaches.registry"}
        return [
            a
            for a in self.asks(names)
            if a.module.split(".")[0] != "ambiguity" and a.module not in exempt
        ]


def _imported(node: ast.AST, folder: list[str]) -> Iterator[str]:
    """Dotted names that one statement imports; a literal ``import_module`` is an import too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = folder[: len(folder) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and _last(node.func) in {"import_module", "__import__"}:
        for argument in node.args[:1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def _leads_up(module: str, target: str) -> bool:
    room, other = module.split(".")[0], target.split(".")[0]
    if other in FACE:
        return True
    if other not in FLOOR or room == other:
        return False
    if room not in FLOOR:
        return True  # the plumbing knows no room
    if room == "baselines" and other in {"rows", "flows", "inner", "minimax"}:
        return True  # the cross-check shares no solver
    return not (FLOOR[other] < FLOOR[room] or {room, other} <= {"losses", "models"})


def _components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strong components, by two passes of depth-first search."""
    order: list[str] = []
    seen: set[str] = set()
    for start in graph:
        stack = [(start, iter(sorted(graph[start])))] if start not in seen else []
        seen.add(start)
        while stack:
            node, rest = stack[-1]
            step = next((n for n in rest if n not in seen and n in graph), None)
            if step is None:
                order.append(node)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(sorted(graph[step]))))
    back: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets & graph.keys():
            back[target].add(name)
    parts, placed = [], set()
    for start in reversed(order):
        if start in placed:
            continue
        part, todo = [], [start]
        placed.add(start)
        while todo:
            node = todo.pop()
            part.append(node)
            todo += [n for n in back[node] if n not in placed]
            placed |= back[node]
        parts.append(sorted(part))
    return parts


def _last(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.AST, aliases: dict[str, ast.AST]) -> set[str]:
    """Classes that an expression such as ``A | B`` or ``(A, module.B)`` or an alias stands for."""
    if isinstance(node, ast.BinOp):
        return _names(node.left, aliases) | _names(node.right, aliases)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return set().union(*(_names(item, aliases) for item in node.elts))
    name = _last(node)
    if name in aliases:
        return _names(aliases[name], {k: v for k, v in aliases.items() if k != name})
    return {name} - {""}


def _aliases(tree: ast.Module) -> dict[str, ast.AST]:
    """Names of a file that stand for several classes: ``_EXACT = (A, B)``."""
    return {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.BinOp)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _asked(
    node: ast.AST, aliases: dict[str, ast.AST], words: frozenset[str]
) -> Iterator[tuple[str, set[str]]]:
    if isinstance(node, ast.Call) and _last(node.func) in {"isinstance", "issubclass"}:
        yield _last(node.func), _names(node.args[1], aliases)
    elif isinstance(node, ast.MatchClass):
        yield "case", {_last(node.cls)}
    elif isinstance(node, ast.Dict):
        keys = {name for key in node.keys if key is not None for name in [_last(key)] if name}
        yield "dict of classes", keys
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(isinstance(s, ast.Call) and _last(s.func) == "type" for s in sides):
            yield "type is", set().union(*(_names(s, aliases) for s in sides))
        elif any(_last(s) in {"name", "__name__"} for s in sides):
            yield (
                "name ==",
                {
                    value.value
                    for side in sides
                    for value in ast.walk(side)
                    if isinstance(value, ast.Constant) and isinstance(value.value, str)
                },
            )


def report(house: House | None = None) -> str:
    """The figures in words, offenders named."""
    house = house or House()
    lines = [f"lines: {sum(house.lines.values())} in {len(house.paths)} files"]
    largest = sorted(house.lines.items(), key=lambda item: -item[1])[:5]
    lines.append("largest files: " + ", ".join(f"{name} {size}" for name, size in largest))
    fullest = sorted(house.folders.items(), key=lambda item: -item[1])[:5]
    lines.append("fullest folders: " + ", ".join(f"{name} {size}" for name, size in fullest))
    for title, found in (
        ("circles", [" <-> ".join(part) for part in house.circles()]),
        ("circles of folders", [" <-> ".join(part) for part in house.folder_circles()]),
        ("arrows up", house.arrows_up()),
        ("asks for a loss's class", [str(ask) for ask in house.loss_asks()]),
        ("asks for a set's class", [str(ask) for ask in house.set_asks()]),
    ):
        lines += [f"{title}: {len(found)}", *(f"    {item}" for item in found)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
