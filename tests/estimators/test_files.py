"""Promise 11: pickle, joblib and drojko files give the same model back."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import drojko
from drojko.exceptions import InvalidDataError, UnsupportedError
from tests.estimators._cases import FEW, KINDS, ball, binary, fitted, frame, linear, mlp

pytestmark = [
    pytest.mark.promise(11),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def by_pickle(model, path):
    return pickle.loads(pickle.dumps(model))


def by_joblib(model, path):
    joblib.dump(model, path / "model")
    return joblib.load(path / "model")


def by_memory_map(model, path):
    joblib.dump(model, path / "model")
    return joblib.load(path / "model", mmap_mode="r")


def by_file(model, path):
    model.save(path / "model.drojko")
    return drojko.load(path / "model.drojko")


def assert_same(copy, model, X, y):
    np.testing.assert_array_equal(copy.predict(X), model.predict(X))
    assert repr(copy.certificate_) == repr(model.certificate_)
    assert copy.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    assert copy.robust_score(X[::9], y[::9]) == model.robust_score(X[::9], y[::9])
    a, b = copy.worst_case_, model.worst_case_
    np.testing.assert_array_equal(a.transport(X, y), b.transport(X, y))
    for one, other in zip(a.sample(7, random_state=1), b.sample(7, random_state=1), strict=True):
        np.testing.assert_array_equal(one, other)
    assert a.displacement().equals(b.displacement())
    assert copy.history_.equals(model.history_)
    assert (copy.status_, copy.n_iter_) == (model.status_, model.n_iter_)


CODE = [name for name in KINDS if name.startswith(("module", "callable"))]
WAYS = {"pickle": by_pickle, "joblib": by_joblib, "memory map": by_memory_map, "file": by_file}


PAIRS = [(name, "file") for name in KINDS]
PAIRS += [(name, way) for name in FEW for way in ("pickle", "joblib", "memory map")]
PAIRS += [(name, "pickle") for name in (*CODE, "mlp-flips", "linear-bounds")]


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_round_trip(name, way, tmp_path):
    model, X, y = fitted(name)
    if way == "file" and name in CODE:
        with pytest.raises(UnsupportedError, match=r"is code.*pickle or joblib"):
            by_file(model, tmp_path)
        assert list(tmp_path.iterdir()) == []
        return
    assert_same(WAYS[way](model, tmp_path), model, X, y)


@pytest.mark.parametrize("name", KINDS)
def test_no_torch_object_is_in_the_state(name):
    model, X, y = fitted(name)
    model.worst_case_.transport(X, y)  # fills the caches that are left out
    model.predict(X)
    seen = []

    def walk(value, path):
        if isinstance(value, torch.Tensor | torch.nn.Module | torch.Generator):
            seen.append(path)
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}.{key}")
        elif isinstance(value, list | tuple | set):
            for item in value:
                walk(item, f"{path}[]")
        elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
            walk(vars(value), path)

    walk(model.__getstate__(), type(model).__name__)
    assert seen == []


@pytest.mark.parametrize("name", ["linear", "mlp-kde"])
def test_files_in_which_something_was_changed_are_refused(name, tmp_path):
    model, _, _ = fitted(name)
    path = tmp_path / "model.drojko"
    model.save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidDataError, match="altered"):
        drojko.load(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidDataError, match="truncated"):
        drojko.load(path)


def test_names_of_features_and_classes_are_kept(tmp_path):
    X, y = binary()
    X, y = frame(X), np.array(["versicolor", "virginica"])[y]
    model = linear().set_params(ambiguity=ball(0.1, immutable=["b"], weights={"a": 2.0})).fit(X, y)
    copy = by_file(model, tmp_path)
    assert copy.classes_.tolist() == ["versicolor", "virginica"]
    assert copy.feature_names_in_.tolist() == list("abcd")
    assert copy.ambiguity.get_params() == model.ambiguity.get_params()
    assert_same(copy, model, X, y)


def test_a_loaded_model_can_be_fitted_again(tmp_path):
    model, X, y = fitted("mlp-kde")
    copy = by_file(model, tmp_path)
    copy.fit(X, y)
    np.testing.assert_array_equal(copy.predict(X), model.predict(X))
    copy.set_params(warm_start=True, max_iter=1).fit(X, y)
    assert copy.n_iter_ == 1


def test_a_pipeline_is_stored_whole(tmp_path):
    X, y = binary()
    pipeline = make_pipeline(StandardScaler(), linear()).fit(X, y)
    drojko.save(pipeline, tmp_path / "pipeline")
    copy = drojko.load(tmp_path / "pipeline")
    np.testing.assert_array_equal(copy.predict_proba(X), pipeline.predict_proba(X))


def test_an_unfitted_estimator_is_stored_too(tmp_path):
    copy = by_file(mlp(), tmp_path)
    X, y = binary()
    np.testing.assert_array_equal(copy.fit(X, y).predict(X), fitted("mlp")[0].predict(X))


def test_two_fits_of_one_object_do_not_share_their_worst_case():
    X, y = binary()
    model = linear().fit(X, y)
    before = model.worst_case_
    moved = before.transport(X, y)
    model.set_params(ambiguity=ball(0.4)).fit(X, y)
    assert model.worst_case_ is not before
    np.testing.assert_array_equal(before.transport(X, y), moved)
