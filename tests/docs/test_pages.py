"""The pages of the site: their code runs, their links lead somewhere, questions have answers.

What needs Sphinx is checked by its build (``docs/_ext/site_checks.py``); this needs the text alone.
"""

import re
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MADE = {"_build", "api", "gallery"}
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not MADE & set(path.relative_to(DOCS).parts)
)  # fmt: skip
BLOCK = re.compile(r"(<!-- not run:.*-->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTEBOOK = re.compile(r"^```\{code-cell\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^```\{eval-rst\}\n\.\. plot::\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path):
    return path.relative_to(ROOT).as_posix()


def text(path):
    return path.read_text(encoding="utf-8")


@cache
def whole(path):
    """The text of a page with what it includes."""
    return re.sub(
        r"^```\{include\} (\S+)\n(?:.*\n)*?```$",
        lambda found: whole((path.parent / found[1]).resolve()),
        text(path),
        flags=re.MULTILINE,
    )


def anchors(path):
    """The anchors of the headings, as MyST makes them."""
    body = re.sub(r"^```.*?^```$", "", whole(path), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,4} (.*)$", body, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {re.sub(r"\{\w+\}", "", heading) for heading in plain}


def dead(path, body):
    """Links and roles of a page that lead nowhere."""
    found = []
    prose = re.sub(r"^```\w*\n.*?^```$", "", body, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            found.append(target)
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", prose):
        place = (path.parent / target).resolve().relative_to(DOCS)
        made = place.parts[0] == "gallery" and (ROOT / "examples" / f"{place.name}.py").exists()
        if not made and not (DOCS / f"{place}.md").exists():
            found.append(target)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PAGES if BLOCK.search(text(p))], ids=name)
def test_every_python_block_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, (excuse, block) in enumerate(BLOCK.findall(text(path)), start=1):
        if not excuse:
            exec(compile(block, f"{name(path)}, block {number}", "exec"), namespace)
    plt.close("all")
    if path.stem == "estimators":
        assert namespace["same"].certificate_.upper == namespace["watched"].certificate_.upper
    if path.stem == "start":
        moved = namespace["model"][-1].worst_case_.displacement().set_index("feature")["share"]
        assert moved["mean symmetry"].eq(0).all()  # immutable
    if path.stem == "radius":
        assert namespace["search"].best_score_ < 0  # finite, and minus a risk


def test_blocks_that_are_not_run_say_why():
    excuses = [excuse for path in PAGES for excuse, _ in BLOCK.findall(text(path)) if excuse]
    assert len(excuses) <= 6  # other packages, and processes that torchrun starts
    assert all(len(excuse) > len("<!-- not run: -->") + 15 for excuse in excuses)


def test_every_set_has_a_page_with_all_parts():
    from drojko import ambiguity

    parts = [
        "Primal", "Dual", "What is exact", "What the worst case looks like", "When to use it",
        "In code", "Cost", "Sources",
    ]  # fmt: skip
    pages = [path for path in PAGES if path.parent.name == "sets" and path.stem != "index"]
    for path in pages:
        assert re.findall(r"^## (.*)$", text(path), re.MULTILINE) == parts, name(path)
        assert len(PICTURE.findall(text(path))) == 1, name(path)
    sets = {
        kind for kind in ambiguity.__all__
        if isinstance(getattr(ambiguity, kind), type)
        and issubclass(getattr(ambiguity, kind), ambiguity.AmbiguitySet)
    } - {"AmbiguitySet", "DensityRatioSet"}  # fmt: skip
    shown = {kind for path in pages for kind in re.findall(r"picture\((\w+)", text(path))}
    said = "".join(map(text, pages))
    assert shown <= sets
    assert all(kind in said for kind in sets), sets


def test_pictures_have_alternative_text():
    for path in PAGES:
        for block in PICTURE.findall(text(path)):
            assert re.match(r" +:alt: \S", block), name(path)
        assert not re.search(r"!\[\]\(", text(path)), name(path)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=name)
def test_links_and_anchors_exist(path):
    assert dead(path, text(path)) == []


def test_dead_links_are_seen():
    page = DOCS / "start.md"
    body = "[a](radius.md#what-it-means) [b](radius.md#no) [c](no.md) {doc}`gallery/plot_no`"
    assert dead(page, body) == ["radius.md#no", "no.md", "gallery/plot_no"]


def test_questions_have_answers_in_two_clicks():
    """From the start page to the questions, and from there to the answer."""
    questions = re.findall(r"^\d+\. (.+?) → \[.+\]\((.+)\)$", text(DOCS / "questions.md"), re.M)
    assert len(questions) >= 40
    assert len({question for question, _ in questions}) == len(questions)
    assert re.search(r":link: questions$", text(DOCS / "index.md"), re.MULTILINE)


def test_every_page_is_in_the_table_of_contents():
    listed = set()
    for path in PAGES:
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text(path), re.M | re.S):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(path.parent / entry).resolve().relative_to(DOCS) for entry in entries}
    pages = {path.relative_to(DOCS).with_suffix("") for path in PAGES} - {Path("index")}
    assert pages <= listed
    assert {page for page in listed if page.parts[0] not in MADE} <= pages


def test_notebooks_have_code():
    notebooks = [path for path in PAGES if path.parent.name == "notebooks"]
    assert len(notebooks) == 3
    assert all(len(NOTEBOOK.findall(text(path))) >= 4 for path in notebooks)
