"""Parquet files as batches."""

import builtins

import numpy as np
import pandas as pd
import pytest

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.rows import parquet


@pytest.fixture
def folder(tmp_path):
    frame = pd.DataFrame({"a": np.arange(10.0), "y": np.arange(10) % 2, "b": -np.arange(10.0)})
    frame[:6].to_parquet(tmp_path / "1.parquet")
    frame[6:].to_parquet(tmp_path / "2.parquet")
    return tmp_path


def test_batches_are_the_rows_in_order_in_every_pass(folder):
    source = parquet(folder, target="y", batch_size=4)
    for _ in range(2):
        found = list(source)
        assert all(len(y) <= 4 for _, y in found)
        X, y = (pd.concat(part) for part in zip(*found, strict=True))
        assert X.columns.tolist() == ["a", "b"]
        assert X["a"].tolist() == list(range(10))
        assert y.tolist() == [0, 1] * 5


def test_a_single_file_and_columns_in_an_order(folder):
    (X, y), *_ = parquet(folder / "2.parquet", target="y", columns=["b", "a"])
    assert X.columns.tolist() == ["b", "a"]
    assert len(y) == 4
    assert "2 columns" in repr(parquet(folder, target="y"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "z"}, "no column 'z'; known: a, y, b"),
        ({"target": "y", "columns": ["aa"]}, "did you mean 'a'"),
        ({"target": "y", "columns": []}, "no column beside"),
        ({"target": "y", "batch_size": 0}, "batch_size=0"),
    ],
)
def test_settings_that_cannot_be_say_what_can(folder, settings, words):
    with pytest.raises(InvalidDataError, match=words):
        parquet(folder, **settings)


def test_what_is_no_table_is_named(tmp_path):
    with pytest.raises(InvalidDataError, match="does not exist"):
        parquet(tmp_path / "none", target="y")
    with pytest.raises(InvalidDataError, match="no Parquet files"):
        parquet(tmp_path, target="y")
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(InvalidDataError, match="cannot be read as Parquet"):
        parquet(tmp_path, target="y")


def test_without_pyarrow_the_command_to_install_it_is_named(folder, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnsupportedError, match="pip install pyarrow"):
        parquet(folder, target="y")
