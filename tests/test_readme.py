"""The README is run, its printed certificate is the real one, and it is one screen.

The pages of the site are run in ``tests/docs/test_pages.py``.
"""

import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    return [body for kind, body in FENCE.findall(TEXT) if kind == language]


def numbers(line):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", line)]


def assert_same_output(shown, printed):
    """Row for row the same names; numbers to 2 % (other versions and machines round otherwise)."""
    assert len(shown) == len(printed)
    for expected, found in zip(shown, printed):
        assert re.split(r"\s{2,}", expected.strip())[0] == re.split(r"\s{2,}", found.strip())[0]
        for one, two in zip(numbers(expected), numbers(found), strict=True):
            # Residuals at rounding level have no digits to compare.
            assert math.isclose(one, two, rel_tol=0.02, abs_tol=1e-6), (expected, found)


def test_every_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    first, *others = blocks("python")
    exec(compile(first, "README.md", "exec"), namespace)
    output = capsys.readouterr().out
    shown = re.search(r"<!-- output -->\n```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert_same_output(shown[1].splitlines(), output.splitlines())
    assert len(first.strip().splitlines()) == 5  # "five lines"
    for number, block in enumerate(others, start=2):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    plt.close("all")


def test_outputs_that_differ_are_noticed():
    shown = ["  upper bound [ridge-1d]  0.192"]
    assert_same_output(shown, ["  upper bound [ridge-1d]  0.1921"])
    for other in ("  upper bound [ridge-1d]  0.21", "  upper bound [dual]  0.192"):
        with pytest.raises(AssertionError):
            assert_same_output(shown, [other])


def test_it_is_one_screen_and_says_where_to_go():
    assert len(TEXT.splitlines()) <= 90
    assert len(re.findall(r"\]\(docs/", TEXT)) >= 15
    assert len(blocks("bash")) == 2  # one installs and runs it, one installs and passes the tests


def test_the_test_command_is_one_line():
    """`.ci/run` takes the line between the fences after the marker."""
    found = re.findall(
        r"<!-- test-command -->\n```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1
    (line,) = found[0].splitlines()
    assert "pytest -q -rs" in line


def test_files_and_commands_that_it_names_exist():
    from drojko._cli import main

    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert {"docs/worst_case.png", "drojko/README.md", "CONTRIBUTING.md"} <= set(links)
    pages = [TEXT, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    for name in re.findall(r"examples/\s?\w+\.py", "\n".join(pages)):
        assert (ROOT / re.sub(r"\s", "", name)).exists(), name
    shell = "\n".join(
        body for page in pages for kind, body in FENCE.findall(page) if kind == "bash"
    )
    used = set(re.findall(r"^drojko (\w+)", shell, re.MULTILINE))
    assert {"fit", "audit", "predict", "bench"} <= used <= set(main.commands)
    for line in re.findall(r"^drojko \w+ .*$", shell, re.MULTILINE):
        command = main.commands[line.split()[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_architecture_page_knows_every_room():
    page = (ROOT / "drojko" / "README.md").read_text(encoding="utf-8")
    rooms = [path.parent.name for path in (ROOT / "drojko").glob("*/__init__.py")]
    assert "displays" in rooms
    missing = [room for room in rooms if room not in page]
    assert not missing, f"drojko/README.md has no paragraph about {missing}"
