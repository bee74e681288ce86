"""Damaged and forged model files: each is refused, and without holding much in memory.

Twenty kinds of damage, drawn anew with ``--seed``; ``--long`` tries a thousand files.
"""

import contextlib
import hashlib
import io
import json
import os
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, _persist
from drojko._persist import load, load_any, save
from drojko.ambiguity import KL, Wasserstein
from drojko.exceptions import DrojkoError, InvalidDataError

pytestmark = pytest.mark.promise(11)
MOST_MEMORY = 200 << 20


def sealed(data: bytes) -> bytes:
    """Close an archive with a digest that fits: what a forger would do."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = _persist._MARK + b"0" * 64
    content = buffer.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def archive(members, method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as file:
        warnings.simplefilter("ignore")  # of names that are there already
        for name, content in members:
            file.writestr(name, content)
    return sealed(buffer.getvalue())


def zeros(members, name, size) -> bytes:
    """The archive with one more member, of zeros, that unpacks to ``size``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for other, content in members:
            if other != name:
                file.writestr(other, content)
        with file.open(name, "w", force_zip64=False) as part:
            for _ in range(size >> 20):
                part.write(bytes(1 << 20))
    return sealed(buffer.getvalue())


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class Damage:
    """A saved file and ways to damage it; those below the line forge digests of their own."""

    def __init__(self, data, rng):
        self.data, self.rng = data, rng
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            self.members = [(name, file.read(name)) for name in file.namelist()]
        self.arrays = [name for name, _ in self.members if name.endswith(".npy")]

    def edited(self, **contents):
        return [(name, contents.get(name, content)) for name, content in self.members]

    def forged(self, name, content):
        """The member replaced, its digest in the manifest too."""
        members = dict(self.members)
        manifest = json.loads(members["drojko.json"])
        manifest["arrays"][name] = hashlib.sha256(content).hexdigest()
        changed = {name: content, "drojko.json": json.dumps(manifest).encode()}
        return archive(self.edited(**changed))

    def pick(self):
        """A floating-point array of some size."""
        while True:
            name = self.rng.choice(self.arrays)
            array = np.load(io.BytesIO(dict(self.members)[name]))
            if array.dtype.kind == "f" and array.size:
                return name, array

    def bit_flip(self):
        data = bytearray(self.data)
        data[self.rng.integers(len(data))] ^= 1 << self.rng.integers(8)
        return bytes(data)

    def truncation(self):
        return self.data[: self.rng.integers(len(self.data))]

    def cut_footer(self):
        return self.data[: -int(self.rng.integers(1, _persist._FOOTER + 1))]

    def garbage(self):
        return self.rng.bytes(int(self.rng.integers(3000)))

    def appended(self):
        return self.data + self.rng.bytes(int(self.rng.integers(1, 100)))

    # -- with digests that fit

    def flipped_inside(self):
        data = bytearray(self.data[: -_persist._FOOTER])
        with zipfile.ZipFile(io.BytesIO(self.data)) as file:  # a date in a header harms nobody
            parts = file.infolist()
        part = parts[self.rng.integers(len(parts))]
        begun = part.header_offset + 30 + len(part.filename)
        data[begun + self.rng.integers(part.compress_size - 1)] ^= 1 << self.rng.integers(8)
        with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(data)) as file:
            if all(file.read(name) == content for name, content in self.members):
                return self.data  # another code for the same bytes
        content = bytes(data) + _persist._MARK
        return content + hashlib.sha256(content).hexdigest().encode()

    def swapped(self):
        one, two = self.rng.choice(self.arrays, 2, replace=False)
        contents = dict(self.members)
        if contents[one] == contents[two]:
            return self.truncation()
        return archive(self.edited(**{one: contents[two], two: contents[one]}))

    def shape(self):
        name, array = self.pick()
        return archive(self.edited(**{name: npy(np.append(array.ravel(), 1.0))}))

    def nan(self):
        name, array = self.pick()
        return archive(self.edited(**{name: npy(np.full_like(array, np.nan))}))

    def lying_header(self):
        name, _ = self.pick()
        header = npy(np.zeros((1 << 17, 1 << 17), dtype="V1")[:0]).replace(
            b"(0, 131072)", b"(131072, 131072)"
        )
        return self.forged(name, header)

    def pickled_array(self):
        name, _ = self.pick()
        buffer = io.BytesIO()
        np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
        return self.forged(name, buffer.getvalue())

    def missing(self):
        gone = self.rng.choice([name for name, _ in self.members])
        return archive([pair for pair in self.members if pair[0] != gone])

    def duplicate(self):
        return archive([*self.members, self.members[self.rng.integers(len(self.members))]])

    def path_name(self):
        evil = ("../../evil", "/etc/passwd", "a/b.npy", "..", "C:\\x", "x\0y")
        return archive([*self.members, (str(self.rng.choice(evil)), b"x")])

    def bomb(self):
        """Many names for one member in the description."""
        name = self.arrays[0]
        content = npy(np.zeros(1 << 18))
        node = {"__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode"}
        node |= {"type": "numpy", "file": name}
        many = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode"}
        schema = json.dumps(many | {"content": [node] * 600, "protocol": 2})
        return archive(self.edited(**{name: content, "schema.json": schema.encode()}))

    def nested_description(self):
        return archive(self.edited(**{"schema.json": b"[" * int(self.rng.integers(1, 200_000))}))

    def description(self):
        schema = bytearray(dict(self.members)["schema.json"])
        schema[self.rng.integers(len(schema))] = 0x00
        return archive(self.edited(**{"schema.json": bytes(schema)}))

    def manifest(self):
        wrong = (b"[]", b"{}", b"null", b"\xff", b'{"format": 1}', b'{"format": true}', b"")
        return archive(self.edited(**{"drojko.json": wrong[self.rng.integers(len(wrong))]}))

    def lzma(self):
        return archive(self.members, zipfile.ZIP_LZMA)

    def lying_size(self):
        """A table of contents with another size than the member has."""
        data = bytearray(self.data[: -_persist._FOOTER - 22])
        at = data.find(b"PK\1\2")  # an array
        data[at + 24 : at + 28] = struct.pack("<L", int(self.rng.integers(1 << 31)))
        content = bytes(data) + self.data[-_persist._FOOTER - 22 : -64]
        return content + hashlib.sha256(content).hexdigest().encode()


KINDS = [
    name for name, kind in vars(Damage).items()
    if callable(kind) and name not in ("__init__", "edited", "forged", "pick")
]  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """Models of several kinds, as their files."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    y = (X[:, 0] > 0).astype(int)
    found = [
        make_pipeline(StandardScaler(), DROClassifier(reference="empirical")),
        DROClassifier(KL(radius=0.1), reference="empirical"),
        DROClassifier(Wasserstein(radius=0.1), model="mlp", hidden_layer_sizes=3, max_iter=2),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_persist._pack(model.fit(X, y)) for model in found]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused(models, kind, tmp_path, rng, request):
    path = tmp_path / "model.drojko"
    for _ in range(1000 // len(KINDS) if request.config.getoption("--long") else 3):
        data = models[rng.integers(len(models))]
        damaged = getattr(Damage(data, rng), kind)()
        if damaged == data:
            continue
        path.write_bytes(damaged)
        for read in (load, load_any):
            with pytest.raises(DrojkoError, match="model"):
                read(path)


@pytest.mark.parametrize("kind", ["no digests of arrays", "a class that is gone"])
def test_files_of_other_versions_say_what_to_do(models, kind, tmp_path):
    damage = Damage(models[0], None)
    members = dict(damage.members)
    manifest, schema = json.loads(members["drojko.json"]), members["schema.json"]
    if kind == "no digests of arrays":
        del manifest["arrays"]
    else:
        assert b"DROClassifier" in schema
        schema = schema.replace(b"DROClassifier", b"OldClassifier")
    changed = {"drojko.json": json.dumps(manifest).encode(), "schema.json": schema}
    (tmp_path / "model.drojko").write_bytes(archive(damage.edited(**changed)))
    for read in (load, load_any):
        with pytest.raises(InvalidDataError, match=r"fit the model again and save it, or load it"):
            read(tmp_path / "model.drojko")


@pytest.mark.parametrize(
    ("name", "size"), [("zeros.npy", 2 << 30), ("schema.json", 300 << 20), ("x.npz", 100 << 20)]
)
def test_huge_members_are_refused_before_they_are_unpacked(models, name, size, tmp_path):
    path = tmp_path / "model.drojko"
    path.write_bytes(zeros(Damage(models[0], None).members, name, min(size, 64 << 20)))
    data = path.read_bytes()
    if size > 64 << 20:  # the table of contents is believed only as far as it is harmless
        at = data.rfind(b"PK\1\2")
        content = data[: at + 24] + struct.pack("<L", size) + data[at + 28 : -64]
        path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    tracemalloc.start()
    try:
        for read in (load, load_any):
            with pytest.raises(InvalidDataError, match=r"model\.drojko"):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


def test_the_cap_is_an_argument(models, tmp_path):
    path = tmp_path / "model.drojko"
    path.write_bytes(models[0])
    with pytest.raises(InvalidDataError, match=r"would unpack to .* max_size"):
        load(path, max_size=1000)
    assert load(path, max_size=10**6).predict(np.zeros((1, 3))).shape == (1,)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parameters_", lambda v: {k: np.full_like(a, np.nan) for k, a in v.items()}),
        ("parameters_", lambda v: {k: a[:, :1] if a.ndim == 2 else a for k, a in v.items()}),
        ("parameters_", lambda v: {}),
        ("coef_", lambda v: v * np.inf),
        ("coef_", lambda v: np.append(v, 1.0)),
        ("intercept_", lambda v: v + 1.0),
        ("n_features_in_", lambda v: v + 1),
        ("_n_outputs", lambda v: 3),
        ("_history", lambda v: v | {"iteration": np.zeros(99)}),
        ("_reference", lambda v: (v[0][:3], *v[1:])),
        ("_reference", lambda v: (v[0] * np.nan, *v[1:])),
        ("classes_", lambda v: np.arange(4)),
    ],
)
def test_what_does_not_fit_together_is_neither_saved_nor_loaded(
    models, name, change, tmp_path, monkeypatch
):
    path = tmp_path / "model.drojko"
    path.write_bytes(models[1])
    model = load(path)
    setattr(model, name, change(getattr(model, name)))
    with pytest.raises(InvalidDataError, match="DROClassifier holds"):
        save(model, path)
    assert path.read_bytes() == models[1]
    with monkeypatch.context() as forger:
        forger.setattr(_persist, "_check_parts", lambda found: None)
        save(model, path)
    with pytest.raises(InvalidDataError, match="DROClassifier holds"):
        load(path)


# What is not a file ------------------------------------------------------------------------------


def test_folders_pipes_and_devices_are_neither_read_nor_replaced(models, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    ball = Wasserstein(radius=0.1)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", "/dev/null", "/dev/zero"):
        for read in (load, load_any):
            with pytest.raises(InvalidDataError, match="expected a regular file"):
                read(path)
        with pytest.raises(InvalidDataError, match="expected a regular file"):
            save(ball, path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["link", "pipe"]
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_links_stay_and_modes_are_kept(tmp_path):
    real, link, other = tmp_path / "real", tmp_path / "link", tmp_path / "new"
    save(Wasserstein(radius=0.1), real)
    real.chmod(0o640)
    link.symlink_to("real")
    (tmp_path / "second").symlink_to("link")
    save(Wasserstein(radius=0.2), tmp_path / "second")
    assert link.is_symlink()
    assert load(real).radius == 0.2
    assert real.stat().st_mode & 0o777 == 0o640
    (tmp_path / "dangling").symlink_to("new")
    save(Wasserstein(radius=0.3), tmp_path / "dangling")
    assert load(other).radius == 0.3
    umask = os.umask(0)
    os.umask(umask)
    assert other.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["fsync", "replace", "chmod"])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch, error, at):
    path = tmp_path / "ball"
    save(Wasserstein(radius=0.1), path)
    before = path.read_bytes()

    def fail(*args):
        raise error

    monkeypatch.setattr(os, at, fail)
    with pytest.raises(type(error)):
        save(Wasserstein(radius=0.2), path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["ball"]


def test_a_missing_folder_is_named_as_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/ball'$"):
        save(Wasserstein(radius=0.1), tmp_path / "nowhere" / "ball")
