import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import skops.io
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import drojko
from drojko import _persist
from drojko._persist import load, save, trusted_types
from drojko.ambiguity import GroundCost, Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError

pytestmark = pytest.mark.promise(11)


@pytest.fixture
def ball():
    ball = Wasserstein(
        0.3, weights={"age": 2.0, "sex": np.inf}, bounds=np.array([[0.0, 1.0]] * 3), immutable=[1]
    )
    ball.theta_ = np.arange(3, dtype=np.float32)
    ball.history_ = {"value": [1.0, float("nan")], "label": ["a", None], 3: (1, 2.5, True)}
    return ball


@pytest.fixture
def path(tmp_path, ball):
    path = tmp_path / "ball.drojko"
    save(ball, path)
    return path


def sealed(data):
    """Close an archive with a digest that fits: what a forger would do."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = _persist._MARK + b"0" * 64
    content = buffer.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def repacked(path, **members):
    """The same archive with members replaced, or left out where None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if name not in members:
                new.writestr(name, old.read(name))
        for name, content in members.items():
            if content is not None:
                new.writestr(name, content)
    return sealed(buffer.getvalue())


def test_round_trip_keeps_every_attribute(path, ball):
    copy = load(path)
    assert type(copy) is Wasserstein
    assert copy.weights == ball.weights
    np.testing.assert_array_equal(copy.bounds, ball.bounds)
    assert copy.theta_.dtype == np.float32
    np.testing.assert_array_equal(copy.theta_, ball.theta_)
    assert repr(copy.history_) == repr(ball.history_)  # NaN is equal to itself in text only


def test_frozen_values_are_stored(tmp_path):
    cost = GroundCost(np.array([1.0, np.inf]), feature_names=("a", "b"))
    save(cost, tmp_path / "cost")
    copy = load(tmp_path / "cost")
    np.testing.assert_array_equal(copy.weights, cost.weights)
    assert (copy.lower, copy.feature_names) == (None, ("a", "b"))


def test_pipelines_of_scikit_learn_are_stored(tmp_path, rng):
    X, y = rng.normal(size=(20, 2)), np.arange(20) % 2
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    save(model, tmp_path / "pipeline")
    np.testing.assert_array_equal(
        load(tmp_path / "pipeline").predict_proba(X), model.predict_proba(X)
    )


def test_load_is_public(path):
    assert drojko.load is load
    with pytest.raises(FileNotFoundError):
        drojko.load(path.with_name("absent"))


def test_every_flipped_byte_is_refused(path, tmp_path):
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(InvalidDataError):
            _persist._check_digest(bytes(flipped), path)
    path.write_bytes(bytes(flipped))
    with pytest.raises(InvalidDataError, match="altered"):
        load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InvalidDataError, match="truncated"):
        load(path)


def test_foreign_files_are_refused(path, tmp_path):
    foreign = {
        "text": b"radius,0.3\n",
        "zip": repacked(path, **{"drojko.json": None}),
        "empty": b"",
        "skops": skops.io.dumps(LogisticRegression()),
        "sealed skops": sealed(skops.io.dumps(LogisticRegression())),
        "sealed text": b"PK" + sealed(b"")[2:],
    }
    for name, data in foreign.items():
        path.write_bytes(data)
        with pytest.raises(InvalidDataError, match=r"ball\.drojko"):
            load(path)
        assert path.read_bytes() == data, name


def test_newer_formats_are_refused(path):
    with zipfile.ZipFile(path) as file:
        manifest = json.loads(file.read("drojko.json"))
    assert manifest["format"] == _persist.FORMAT
    assert manifest["type"] == "drojko.ambiguity.wasserstein.Wasserstein"
    assert manifest["versions"]["drojko"] == drojko.__version__
    for number in (_persist.FORMAT + 1, 0, "1"):
        path.write_bytes(
            repacked(path, **{"drojko.json": json.dumps(manifest | {"format": number})})
        )
        with pytest.raises(InvalidDataError, match="reads formats 1 to 1: upgrade drojko"):
            load(path)


def test_an_injected_class_is_refused_before_it_is_imported(path, tmp_path):
    """The forged file has a digest that fits; its class sits in a module that tells on import."""
    (tmp_path / "evil.py").write_text(
        'import pathlib\npathlib.Path(__file__).with_name("ran").touch()\nclass Wasserstein: pass\n'
    )
    with zipfile.ZipFile(path) as file:
        schema = file.read("schema.json").decode()
    forged = schema.replace("drojko.ambiguity.wasserstein", "evil")
    assert forged != schema
    path.write_bytes(repacked(path, **{"schema.json": forged}))
    script = f"""
        import drojko
        from drojko.exceptions import InvalidDataError
        try:
            drojko.load({str(path)!r})
        except InvalidDataError as error:
            assert "evil.Wasserstein" in str(error), error
        else:
            raise SystemExit("loaded")
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os.system", "drojko._persist.save", "drojko.evil.Wasserstein"])
def test_names_outside_of_the_list_are_refused(path, name):
    module, attribute = name.rsplit(".", 1)
    with zipfile.ZipFile(path) as file:
        schema = json.loads(file.read("schema.json"))
    schema["__module__"], schema["__class__"] = module, attribute
    path.write_bytes(repacked(path, **{"schema.json": json.dumps(schema)}))
    with pytest.raises(InvalidDataError, match=f"types that drojko does not load: {name}"):
        load(path)


def test_the_list_holds_our_classes_and_nothing_else():
    names = trusted_types()
    assert len(set(names)) == len(names)
    assert all(name.startswith("drojko.") for name in names)
    assert "drojko.ambiguity.wasserstein.Wasserstein" in names
    assert "drojko.ambiguity.Wasserstein" not in names  # exact names, no re-exports


class Holder(Wasserstein):
    def __init__(self, radius=0.1, model=None):
        super().__init__(radius)
        self.model = model


Holder.__module__ = "drojko.ambiguity.wasserstein"  # passes for one of ours
Holder.__qualname__ = Holder.__name__ = "Wasserstein"


@pytest.mark.parametrize("code", [lambda x: x, torch.nn.functional.relu, torch.nn.Identity, print])
def test_code_is_refused_by_the_name_of_its_parameter(tmp_path, code):
    with pytest.raises(UnsupportedError, match=r"model=.* is code.*pickle or joblib"):
        save(Holder(model=code), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_loaded_is_not_saved(tmp_path, ball):
    class Local:
        pass

    for value in (torch.ones(2), Local(), torch.Generator(), open):
        ball.theta_ = value
        with pytest.raises(UnsupportedError, match="Wasserstein holds"):
            save(ball, tmp_path / "ball")
    assert not list(tmp_path.iterdir())


def test_callbacks_stay_out_and_the_object_keeps_them(tmp_path, ball):
    ball._skl_callbacks = [print]
    save(ball, tmp_path / "ball")
    assert ball._skl_callbacks == [print]
    assert not hasattr(load(tmp_path / "ball"), "_skl_callbacks")


@pytest.mark.promise(12)
def test_a_failed_write_leaves_the_old_file(path, ball, monkeypatch):
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(ball, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_again_replaces_the_file(path, ball):
    ball.set_params(radius=0.9)
    save(ball, str(path))
    assert load(str(path)).radius == 0.9


class OwnBall(Wasserstein):
    """A set of a user's own, which a file names."""


class Counted(OwnBall):
    """Tells when it is made."""

    made = 0

    def __new__(cls, *args, **kwargs):
        Counted.made += 1
        return super().__new__(cls)


def test_classes_of_a_users_own_load_once_they_are_named(tmp_path):
    save(OwnBall(radius=0.3), tmp_path / "ball")
    remedy = r"test_persist\.OwnBall.*drojko\.load\(path, trusted=\[OwnBall\]\)"
    for trusted in ((), [Wasserstein], ["somewhere.OwnBall"]):
        with pytest.raises(InvalidDataError, match=remedy):
            load(tmp_path / "ball", trusted=trusted)
    name = f"{OwnBall.__module__}.OwnBall"
    for trusted in ([OwnBall], [name], name, [OwnBall, LogisticRegression]):
        copy = load(tmp_path / "ball", trusted=trusted)
        assert type(copy) is OwnBall
        assert copy.radius == 0.3
    assert _persist.load_any(tmp_path / "ball", trusted=[name]).radius == 0.3


def test_a_class_that_is_not_named_is_not_made(tmp_path):
    save(Counted(radius=0.3), tmp_path / "ball")
    made = Counted.made
    with pytest.raises(InvalidDataError, match="Counted"):
        load(tmp_path / "ball", trusted=[OwnBall])
    assert Counted.made == made
    assert type(load(tmp_path / "ball", trusted=[Counted])) is Counted


def test_a_class_that_no_import_finds_is_not_saved(tmp_path):
    class Local(Wasserstein):
        pass

    with pytest.raises(UnsupportedError, match=r"Local.*can be imported by name"):
        save(Local(radius=0.3), tmp_path / "ball")
    assert not (tmp_path / "ball").exists()
