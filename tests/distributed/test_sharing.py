"""Processes that end, the command line on several of them, and what one process says alone."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import drojko
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.distributed import sharded
from drojko.distributed.ranks import Ranks, exchanged, joined, world
from drojko.exceptions import InvalidDataError
from drojko.rows import parquet
from tests.distributed import _launch


@pytest.mark.dist
@pytest.mark.slow
def test_a_process_that_is_gone_ends_the_others():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(_launch.__file__).with_name("_lost.py")
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**_launch.environment(), **known, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [4, 3], said
    assert "another rank has ended, or cannot be reached" in said[0]


@pytest.mark.dist
@pytest.mark.slow
def test_the_command_line_is_one_fit_on_all_processes(tmp_path):
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(300, 3)), columns=list("abc"))
    frame["y"] = np.where(frame.a + rng.normal(size=300) > 0, "yes", "no")
    folder = tmp_path / "folder"
    folder.mkdir()
    frame[:110].to_parquet(folder / "1.parquet", row_group_size=40)
    frame[110:].to_parquet(folder / "2.parquet")
    out = tmp_path / "model.drojko"
    done = _launch.torchrun(2, "-m", "drojko", "fit", folder, "--target", "y", "-o", out)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("300 rows, 3 features") == 1
    found = drojko.load(out)
    alone = DROClassifier(Wasserstein(0.1), reference="empirical")
    alone.fit(frame[["a", "b", "c"]], frame.y)
    np.testing.assert_allclose(found.coef_, alone.coef_, rtol=1e-8)
    assert found.certificate_.upper == pytest.approx(alone.certificate_.upper, rel=1e-8)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 200])
def test_parts_of_parquet_files_are_all_rows_once(tmp_path, count):
    frame = pd.DataFrame({"a": np.arange(101.0), "y": np.arange(101) % 2})
    frame[:60].to_parquet(tmp_path / "1.parquet", row_group_size=17)
    frame[60:].to_parquet(tmp_path / "2.parquet")
    every = parquet(tmp_path, target="y", batch_size=10)
    parts = [list(every.part(number, count)) for number in range(count)]
    sizes = [sum(len(y) for _, y in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    rows = np.concatenate([X.a for part in parts for X, _ in part])
    np.testing.assert_array_equal(rows, frame.a)


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0), (0.5, 2)])
def test_parts_that_are_none(tmp_path, part):
    pd.DataFrame({"a": [1.0], "y": [0]}).to_parquet(tmp_path / "1.parquet")
    with pytest.raises(InvalidDataError, match="expected 0 <= number < count"):
        parquet(tmp_path, target="y").part(*part)


def test_alone_a_fit_is_as_it_was(rng):
    X = rng.normal(size=(30, 2))
    y = X[:, 0] + rng.normal(size=30)
    model = DRORegressor(Wasserstein(0.1), reference="empirical")
    alone = model.fit(X, y).coef_
    with sharded() as ranks:
        within = model.fit(X, y).coef_
    assert (ranks.rank, ranks.size) == (0, 1)
    np.testing.assert_array_equal(alone, within)
    with pytest.raises(InvalidDataError, match="timeout"), sharded(timeout=0.0):
        pass


def test_words_of_one_process():
    assert world() == (1, 0)
    assert exchanged([1]) == [[1]]
    error = InvalidDataError("bad")
    with pytest.raises(InvalidDataError, match=r"^bad$"):
        exchanged(error)
    with pytest.raises(InvalidDataError, match="rank 1 gave none and rank 0 did"):
        joined("weights", [np.ones(2), None])
    with pytest.raises(InvalidDataError, match="points of the ranks do not fit together"):
        joined("points", [np.ones((1, 2)), np.ones((1, 3))])
    frames = [pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": [2.0]})]
    assert joined("groups", frames).a.tolist() == [1.0, 2.0]
    assert repr(Ranks(None)) == "Ranks(rank=0, size=1)"
