"""The recipes of docs/shifts.md run, and the one for the intercept pays where the level moves."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss

PAGE = Path(__file__).parents[3] / "docs" / "shifts.md"


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no pages")
def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    hospital = np.repeat(["A", "B"], 60)
    X, X_new = rng.normal(size=(120, 3)), rng.normal(size=(300, 3))
    level = np.repeat([-1.0, 1.0], 60)

    def labels(score):
        return np.where(score + rng.logistic(size=len(score)) > 0, "ill", "well")

    names = {
        "X": X, "y": labels(X[:, 0] + level), "hospital": hospital, "X_new": X_new,
        "y_new": labels(X_new[:, 0] - 2.0),
    }  # fmt: skip
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/shifts.md, block {number}", "exec"), names)
    assert names["report"].recommendation == "none of these"
    risk = {
        name: log_loss(names["y_new"][50:], names[name].predict_proba(X_new[50:]))
        for name in ("plain", "moved", "stack")
    }
    assert risk["moved"] < 0.8 * risk["plain"]
