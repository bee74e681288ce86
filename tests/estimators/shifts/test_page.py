"""The recipes of docs/shifts.md run, and the one for the intercept pays where the level moves."""

import re
from pathlib import Path

import pytest
from sklearn.metrics import log_loss

PAGE = Path(__file__).parents[3] / "docs" / "shifts.md"


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no pages")
def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/shifts.md, block {number}", "exec"), names)
    assert names["report"].recommendation == "none of these"
    risk = {
        name: log_loss(names["y_new"][50:], names[name].predict_proba(names["X_new"][50:]))
        for name in ("plain", "moved", "stack")
    }
    assert risk["moved"] < 0.8 * risk["plain"]
