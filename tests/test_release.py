"""What a release repeats agrees with where it comes from."""

import re
import tomllib
from pathlib import Path

import drojko

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = (ROOT / ".ci/conda/recipe.yaml").read_text(encoding="utf-8")


def test_the_version_stands_in_one_place_and_is_repeated_right():
    assert PROJECT["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == drojko.__version__
    assert re.search(r'^  version: "(.*)"$', RECIPE, re.MULTILINE)[1] == drojko.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{drojko.__version__}]" in changes


def test_the_conda_recipe_has_the_same_floors():
    other = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    for line in PROJECT["dependencies"]:
        name, floor = line.split(">=")
        assert f"    - {other.get(name, name)} >={floor}\n" in RECIPE, line
    assert f"    - python {PROJECT['requires-python']}\n" in RECIPE


def test_the_hosted_workflow_calls_the_same_scripts():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    for script in (".ci/run", ".ci/floors"):
        assert f"- run: {script}\n" in workflow
        assert (ROOT / script).exists()


def test_what_is_installed_for_the_site_is_pinned():
    """`pip install -c constraints.txt` gives the same site tomorrow."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    pinned = {re.sub(r"[-_.]+", "-", name) for name in re.findall(r"^([\w.-]+)==", pins, re.M)}
    for extra in ("docs", "release", "test"):
        for line in PROJECT["optional-dependencies"][extra]:
            name = re.sub(r"[-_.]+", "-", re.split(r">=|\[", line)[0].lower())
            assert name in pinned, line
