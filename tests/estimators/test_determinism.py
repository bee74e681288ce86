"""Promise 10: a seed is a model, the global generators belong to the user."""

import threading

import numpy as np
import pytest
import torch
from sklearn.base import clone

from drojko._threads import one_thread
from tests.estimators._cases import DRAWN, FEW, binary, linear, mlp, one_logit, unfitted

pytestmark = [
    pytest.mark.promise(10),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

RANDOM = [
    "linear-kde",
    "linear-mixture",
    "linear-classes",
    "mlp-kde",
    "mlp-squared",
    "module",
]


def bits(model):
    arrays = [model.parameters_[key] for key in sorted(model.parameters_)]
    return b"".join(a.tobytes() for a in arrays) + repr(model.certificate_).encode()


@pytest.mark.parametrize("name", RANDOM)
def test_one_seed_gives_one_model(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(random_state=7)
    first = bits(estimator.fit(X, y))
    assert bits(clone(estimator).fit(X, y)) == first
    assert bits(estimator.fit(X, y)) == first  # also when fitted before


@pytest.mark.parametrize("name", ["linear-kde", "mlp", "module"])
def test_another_seed_gives_another_model(name):
    estimator, X, y = unfitted(name)
    seeds = [clone(estimator).set_params(random_state=s).fit(X, y) for s in (0, 1, None, None)]
    assert len({bits(model) for model in seeds}) == 4


def test_a_random_state_object_moves_on():
    X, y = binary()
    state = np.random.RandomState(3)
    estimator = mlp(random_state=state)
    a, b = bits(clone(estimator).fit(X, y)), bits(estimator.fit(X, y))
    assert a == b  # clone copies the state
    assert bits(estimator.fit(X, y)) != b


@pytest.mark.parametrize("name", [*FEW, "linear-mixture", "mlp-classes", "module"])
def test_global_generators_are_left_alone(name):
    estimator, X, y = unfitted(name)
    ours, theirs = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    model = estimator.fit(X, y)
    model.worst_case_.sample(5)
    model.robust_score(X[::9], y[::9])
    now = np.random.get_state()  # noqa: NPY002
    assert now[0] == ours[0]
    np.testing.assert_array_equal(now[1], ours[1])
    assert now[2:] == ours[2:]
    assert torch.equal(torch.get_rng_state(), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear-kde", "mlp-kde", "module"])
def test_four_threads_give_the_same_model_five_times(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(random_state=0, max_iter=2, inner="pointwise")
    if name == "mlp-kde":
        estimator.set_params(n_draws=30, hidden_layer_sizes=(2,), reference="gaussian")
    found, errors = [], []

    def work():
        try:
            for _ in range(5):
                found.append(bits(clone(estimator).fit(X, y)))
        except Exception as error:  # a thread has nobody to raise to
            errors.append(error)

    threads_before = torch.get_num_threads()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(found) == 20
    assert len(set(found)) == 1
    assert torch.get_num_threads() == threads_before


@pytest.mark.parametrize("name", ["linear", "mlp", "linear-classes", "squared"])
def test_the_number_of_threads_is_given_back(name):
    estimator, X, y = unfitted(name)
    torch.set_num_threads(2)  # noqa: TID251
    try:
        model = estimator.fit(X, y)
        model.predict(X)
        model.robust_score(X, y)
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="feature names"):
            clone(estimator).set_params(ambiguity__immutable=["none"]).fit(X, y)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)  # noqa: TID251


def test_threads_change_nothing_to_one_part_in_a_million():
    X, y = binary()
    with one_thread():
        a = mlp().fit(X, y).certificate_.upper
    torch.set_num_threads(2)  # noqa: TID251
    try:
        b = mlp().fit(X, y).certificate_.upper
    finally:
        torch.set_num_threads(1)  # noqa: TID251
    assert b == pytest.approx(a, rel=1e-6)


@pytest.mark.parametrize(
    "name", ["linear", "linear-classes", "linear-bounds", "mlp", "mlp-squared"]
)
def test_single_precision_is_close_to_double(name):
    estimator, X, y = unfitted(name)
    double = clone(estimator).fit(X, y)
    single = clone(estimator).set_params(dtype="float32").fit(X, y)
    assert all(v.dtype == np.float32 for v in single.parameters_.values())
    # 7 digits, of which training and the ascent lose a few.
    rel = 1e-2 if name == "linear-classes" else 1e-3
    assert single.certificate_.upper == pytest.approx(double.certificate_.upper, rel=rel)
    assert single.certificate_.lower <= single.certificate_.upper


def test_single_precision_input_stays_so():
    X, y = binary()
    model = mlp(dtype="float32").fit(X.astype(np.float32), y)
    assert model.decision_function(X.astype(np.float32)).dtype == np.float32


def test_a_seeded_module_is_seeded_whatever_the_user_did_before():
    X, y = binary()
    torch.manual_seed(1)  # noqa: TID251
    a = bits(mlp(model=one_logit, **DRAWN).fit(X, y))
    torch.manual_seed(2)  # noqa: TID251
    assert bits(mlp(model=one_logit, **DRAWN).fit(X, y)) == a


def test_linear_models_of_the_data_need_no_seed():
    X, y = binary()
    assert bits(linear().fit(X, y)) == bits(linear(random_state=5).fit(X, y))
