"""Every example runs, in its short form, and leaves its picture behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    environment = {
        **os.environ,
        "DROJKO_EXAMPLES_SHORT": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    # Warnings are errors: a reader should see none.
    result = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    pictures = list(tmp_path.glob("*.png"))
    assert [picture.stem for picture in pictures] == [path.stem.removeprefix("plot_")]
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    bounds = ("Certificate", "FlowResult", "Dual(", "lower bounds")  # no number without its bound
    assert any(word in result.stdout for word in bounds)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_in_the_style_of_sphinx_gallery(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == '"""'
    assert set(lines[1]) == set(lines[3]) == {"="}
    assert len(lines[1]) >= len(lines[2]) > 0
    assert text.count("# %%\n") >= 2
