"""What reports write: whole or not at all, and no formulas for spreadsheets."""

import base64
import io
import os
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from drojko import audit
from drojko._files import cells
from drojko.ambiguity import KL
from drojko.exceptions import InvalidDataError


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 2)), columns=["=1+1", "@b"])
    y = np.where(X["=1+1"] > 0, "=HYPERLINK()", "-x")
    return audit(LogisticRegression().fit(X, y), X, y, KL(), radii=[0.1], random_state=0)


@pytest.mark.promise(12)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("write", ["to_html", "export"])
def test_a_failed_write_leaves_the_old_file(report, tmp_path, monkeypatch, error, write):
    path = tmp_path / "out.csv"
    path.write_text("old")

    def fail(*args):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        with pytest.raises(type(error)):
            getattr(report, write)(path)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["out.csv"]
    path.chmod(0o600)
    (tmp_path / "link.csv").symlink_to(path)
    assert getattr(report, write)(tmp_path / "link.csv") == tmp_path / "link.csv"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link.csv").is_symlink()
    assert len(path.read_text()) > 1000
    with pytest.raises(InvalidDataError):
        getattr(report, write)(tmp_path)


def test_samples_hold_no_formulas(report, tmp_path):
    report.export(tmp_path / "s.csv", n=200)
    table = pd.read_csv(tmp_path / "s.csv")
    assert list(table.columns) == ["'=1+1", "'@b", "target"]
    assert set(table.target) == {"'=HYPERLINK()", "'-x"}
    assert [kind.kind for kind in table.dtypes[:2]] == ["f", "f"]
    assert (table.iloc[:, 0] < 0).any()
    report.export(tmp_path / "s.parquet", n=20)  # no spreadsheet: as it is
    assert list(pd.read_parquet(tmp_path / "s.parquet").columns) == ["=1+1", "@b", "target"]


def test_the_table_in_the_page_is_that_of_the_report(report, tmp_path):
    page = report.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    packed = re.search(r"data:text/csv;base64,([A-Za-z0-9+/=]+)", page).group(1)
    table = pd.read_csv(io.BytesIO(base64.b64decode(packed)))
    assert table.worst_case_risk[0] == pytest.approx(report.table.worst_case_risk[0])


def test_numbers_stay_numbers():
    frame = pd.DataFrame(
        {
            "n": [-1.5, np.nan, np.inf],
            "i": [-1, 2, 3],
            "text": ["-1.5", "+2", "=A1"],
            "mixed": [-1, "@x", None],
            "kind": pd.Categorical(["-a", "b", "-a"]),
            "odd": ["\tx", "\rx", "x=1"],
            "\t=": [True, False, True],
        }
    )
    found = cells(frame)
    assert found.n.dtype == float
    assert found.i.tolist() == [-1, 2, 3]
    assert found.text.tolist() == ["-1.5", "+2", "'=A1"]
    assert found.mixed.tolist() == [-1, "'@x", None]
    assert found.kind.tolist() == ["'-a", "b", "'-a"]
    assert found.odd.tolist() == ["'\tx", "'\rx", "x=1"]
    assert found.columns[-1] == "'\t="
    assert frame.columns[-1] == "\t="
