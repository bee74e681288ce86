"""The README is run: every block of Python, and the printed certificate is the real one."""

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
    assert (tmp_path / "model.drojko").exists()
    assert namespace["same"].certificate_.upper == namespace["watched"].certificate_.upper
    assert namespace["search"].best_score_ < 0  # finite, and minus a risk
    assert (
        namespace["worst"]
        .displacement()
        .set_index("feature")
        .loc["mean symmetry", "share"]
        .eq(0)
        .all()
    )


def test_outputs_that_differ_are_noticed():
    shown = ["  upper bound [ridge-1d]  0.192"]
    assert_same_output(shown, ["  upper bound [ridge-1d]  0.1921"])
    for other in ("  upper bound [ridge-1d]  0.21", "  upper bound [dual]  0.192"):
        with pytest.raises(AssertionError):
            assert_same_output(shown, [other])


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
    for name in [*links, *re.findall(r"examples/\s?\w+\.py", TEXT)]:
        if not name.startswith("http"):
            assert (ROOT / re.sub(r"\s", "", name)).exists(), name
    used = set(re.findall(r"^drojko (\w+)", "\n".join(blocks("bash")), re.MULTILINE))
    assert used <= set(main.commands)
    for line in re.findall(r"^drojko \w+ .*$", "\n".join(blocks("bash")), re.MULTILINE):
        command = main.commands[line.split()[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_architecture_page_knows_every_room():
    page = (ROOT / "drojko" / "README.md").read_text(encoding="utf-8")
    rooms = [path.parent.name for path in (ROOT / "drojko").glob("*/__init__.py")]
    assert "displays" in rooms
    missing = [room for room in rooms if room not in page]
    assert not missing, f"drojko/README.md has no paragraph about {missing}"
