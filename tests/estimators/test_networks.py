"""Networks: tight bounds, early stopping, trained modules as starts, modules of any behaviour."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, make_moons
from sklearn.preprocessing import scale
from torch import nn

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError
from tests.estimators._cases import (
    ball,
    binary,
    classes,
    linear,
    mlp,
    regression,
    small_net,
    unfitted,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

EVERY = ["mlp", "mlp-classes", "mlp-squared", "mlp-absolute", "module", "mlp-kde"]


# -- certified -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "mlp-classes", "mlp-squared"])
def test_certified_tightens_the_bound(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(max_iter=40, hidden_layer_sizes=(8, 8), inner="pointwise")
    plain, tight = (clone(estimator).set_params(certified=c).fit(X, y) for c in (0.0, 0.5))
    gaps = [m.certificate_.upper / m.certificate_.lower for m in (plain, tight)]
    assert (plain.certified_, tight.certified_) == (0.0, 0.5)
    assert gaps[1] < gaps[0]
    # Certificates speak of the risk alone: the penalty is not part of it.
    new = tight.robust_certificate(X, y)
    assert new.lower == pytest.approx(tight.certificate_.lower, rel=0.02)


@pytest.mark.parametrize("name", ["mlp-classes", "mlp-squared", "module"])
def test_auto_is_one_of_its_weights_and_repeats_itself(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(max_iter=4, inner="pointwise", certified="auto")
    first = clone(estimator).fit(X, y)
    again = clone(estimator).fit(X, y)
    assert first.certified_ == again.certified_ >= 0.0
    given = clone(estimator).set_params(certified=first.certified_).fit(X, y)
    assert given.certified_ == first.certified_
    for key, value in first.parameters_.items():
        np.testing.assert_array_equal(value, again.parameters_[key])
        np.testing.assert_array_equal(value, given.parameters_[key])


@pytest.mark.promise(4)
@pytest.mark.parametrize("name", ["mlp", "mlp-squared"])
def test_auto_follows_the_units(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(max_iter=10, inner="pointwise", certified="auto")
    one = clone(estimator).fit(X, y).certified_
    large = clone(estimator).set_params(ambiguity=ball(4.0 * estimator.ambiguity.radius))
    many = large.fit(4.0 * X, y).certified_
    assert many == pytest.approx(4.0 * one, rel=1e-9)
    if name == "mlp-squared":  # a loss in squared units of y, over outputs in units of y
        assert clone(estimator).fit(X, 8.0 * y).certified_ == pytest.approx(8.0 * one, rel=1e-9)


def test_auto_costs_little_accuracy():
    X, y = load_breast_cancer(return_X_y=True)
    X = scale(X)
    settings = {"max_iter": 30, "inner": "pointwise", "hidden_layer_sizes": (8, 8)}
    plain = mlp(**settings).fit(X[::3], y[::3])
    auto = mlp(certified="auto", **settings).fit(X[::3], y[::3])
    # Rows that no fit saw; 0.01 aimed at, on a few dozen rows of three splits.
    assert auto.score(X[1::3], y[1::3]) > plain.score(X[1::3], y[1::3]) - 0.03
    gaps = [m.certificate_.relative_gap for m in (auto, plain)]
    assert gaps[0] <= max(0.05, gaps[1])


def test_auto_adds_nothing_where_bounds_are_tight(seed):
    """In a small ball the bounds of a smooth network are within a per cent without a penalty."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 2))
    y = (X[:, 0] + 0.3 * rng.normal(size=60) > 0).astype(int)
    settings = {"max_iter": 5, "inner": "pointwise", "hidden_layer_sizes": (4,)}
    fitted = mlp(certified="auto", radius=0.05, **settings).fit(X, y)
    assert fitted.certified_ == 0.0


@pytest.mark.parametrize(
    ("estimator", "match"),
    [
        (linear(certified=0.1), "certified=0.1 is for networks"),
        (linear(certified="auto"), "certified='auto' is for networks"),
        (mlp().set_params(ambiguity=KL(0.1), certified=0.1), "order 2"),
        (linear(early_stopping=True), "early_stopping=True is for networks"),
        (mlp().set_params(ambiguity=KL(0.1), early_stopping=True), "order 2"),
        (mlp(certified=-1.0), "certified"),
        (mlp(certified="some"), "certified"),
        (mlp(validation_fraction=1.0, early_stopping=True), "validation_fraction"),
        (mlp(n_iter_no_change=0, early_stopping=True), "n_iter_no_change"),
    ],
)
def test_where_they_have_no_meaning(estimator, match):
    with pytest.raises(ValueError, match=match):
        estimator.fit(*binary())


def test_a_module_that_is_no_perceptron_cannot_be_certified():
    def net():
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))

    def convolved():  # has bounds, and "auto" needs no penalty where they are tight
        return nn.Sequential(
            nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(6, 1)
        )

    with pytest.raises(UnsupportedError, match=r"write the module so"):
        mlp(model=convolved, certified=0.1).fit(*binary())

    for weight in (0.1, "auto"):
        with pytest.raises(UnsupportedError, match=r"write the module so"):
            mlp(model=net, certified=weight).fit(*binary())


# -- early stopping --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_early_stopping_keeps_the_best_on_rows_held_out(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(
        max_iter=60, inner="pointwise", early_stopping=True, n_iter_no_change=3, tol=0.02,
        learning_rate=0.05, validation_fraction=0.25,
    )  # fmt: skip
    model = clone(estimator).fit(X, y)
    held = model.history_["held_out_risk"].to_numpy()
    assert np.isfinite(held).all()
    assert len(held) == model.n_iter_
    if model.status_ == "converged":
        assert model.n_iter_ < 60
        best = held[:-3].min()
        assert (held[-3:] > best - 0.02 * abs(best)).all()  # three passes that gained too little
    again = clone(estimator).fit(X, y)
    np.testing.assert_array_equal(held, again.history_["held_out_risk"])
    # The certificate is that of all rows.
    whole = model.robust_certificate(X, y)
    if model.reference == "empirical":
        assert model.certificate_.nominal_risk == pytest.approx(whole.nominal_risk, rel=1e-9)


def test_without_it_there_is_no_such_column_and_nothing_is_held_out():
    model = mlp(max_iter=3).fit(*binary())
    assert "held_out_risk" not in model.history_
    assert "held_out_risk" in mlp(max_iter=3, early_stopping=True).fit(*binary()).history_


def test_rows_held_out_are_a_share_of_each_class():
    from drojko.estimators._networks import keep_back

    X, y = classes()
    weight = np.ones(len(y))
    weight[y == 1] = np.where(np.arange((y == 1).sum()) < 10, 1.0, 0.0)
    kept, held = keep_back(mlp(), (X, y, weight), 0.2, 3)
    assert len(kept[1]) + len(held[1]) == len(y)
    counts = np.bincount(held[1])
    assert counts.tolist() == [round(0.2 * (y == 0).sum()), 2, round(0.2 * (y == 2).sum())]
    assert (held[2] > 0).all()
    again = keep_back(mlp(), (X, y, weight), 0.2, 3)
    np.testing.assert_array_equal(held[0], again[1][0])
    other = keep_back(mlp(), (X, y, weight), 0.2, 4)
    assert not np.array_equal(held[0], other[1][0])
    with pytest.raises(InvalidDataError, match="class 0 has 1 rows, too few"):
        keep_back(mlp(), (X[[0, 40]], np.array([0, 1]), np.ones(2)), 0.2, 3)


def test_files_and_copies_know_what_was_chosen(tmp_path):
    import drojko

    model = mlp(max_iter=3, early_stopping=True, certified=0.25).fit(*binary())
    model.save(tmp_path / "model.drojko")
    loaded = drojko.load(tmp_path / "model.drojko")
    assert loaded.certified_ == 0.25
    assert loaded.history_.equals(model.history_)


# -- starts ----------------------------------------------------------------------------------------


def trained_module():
    """A module trained by somebody else: by a plain fit of ours."""
    X, y = binary()
    net = small_net()
    plain = mlp(model=small_net, radius=0.0, max_iter=60, learning_rate=0.05).fit(X, y)
    net.load_state_dict(
        {k.removeprefix("module."): torch.tensor(v) for k, v in plain.parameters_.items()}
    )
    return net


def test_a_trained_module_is_where_training_starts():
    net = trained_module()
    start = {f"module.{k}": v.double().numpy() for k, v in net.state_dict().items()}
    X, y = binary()
    still = mlp(model=lambda: net, max_iter=1, learning_rate=1e-12).fit(X, y)
    for key, value in still.parameters_.items():
        np.testing.assert_allclose(value, start[key], atol=1e-9)
    short = mlp(model=lambda: net, max_iter=2, learning_rate=1e-3).fit(X, y)
    cold = mlp(model=small_net, max_iter=2, learning_rate=1e-3).fit(X, y)
    assert short.certificate_.nominal_risk < 0.5 * cold.certificate_.nominal_risk


def test_a_warm_start_of_a_module_goes_on():
    X, y = binary()
    model = mlp(model=small_net, max_iter=30).fit(X, y)
    before, upper = model.parameters_, model.certificate_.lower
    model.set_params(warm_start=True, max_iter=1, learning_rate=1e-12).fit(X, y)
    for key, value in model.parameters_.items():
        np.testing.assert_allclose(value, before[key], atol=1e-9)
    model.set_params(max_iter=30, learning_rate=5e-3).fit(X, y)
    assert model.certificate_.lower < upper


# -- modules of any behaviour ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DROClassifier, DRORegressor])
def test_one_module_returned_again_and_again_stays_as_it_is(kind):
    net, seen = small_net(), []
    net.train()
    net.register_forward_hook(lambda module, args, out: seen.append(module))
    before = copy.deepcopy(net.state_dict())
    X, y = binary()
    first, second = (mlp(kind, model=lambda: net, max_iter=3).fit(X, 1.0 * y) for _ in range(2))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net.training
    assert net[0].weight.dtype == torch.float32
    assert all(module is not net for module in seen)  # hooks of the copies
    for key, value in first.parameters_.items():
        np.testing.assert_array_equal(value, second.parameters_[key])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_cannot_be_copied_must_be_new():
    X, y = binary()
    mlp(model=lambda: nn.utils.weight_norm(nn.Linear(4, 1)), max_iter=2).fit(X, y)
    one = nn.utils.weight_norm(nn.Linear(4, 1))
    with pytest.raises(InvalidDataError, match="same module again, which cannot be copied"):
        mlp(model=lambda: one, max_iter=2).fit(X, y)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x + 0.1 * torch.randn_like(x))


@pytest.mark.promise(10)
def test_random_forwards_are_refused_and_global_states_stay():
    before = torch.get_rng_state()
    with pytest.raises(InvalidDataError, match="Draw what is random once"):
        mlp(model=Noisy).fit(*binary())
    assert torch.equal(before, torch.get_rng_state())


class Within(nn.Module):
    """NaN beyond a distance from the origin."""

    def __init__(self, reach):
        super().__init__()
        self.layer, self.reach = nn.Linear(2, 1), reach

    def forward(self, x):
        return self.layer(x) + 0.0 * torch.sqrt(self.reach - x.norm(dim=1, keepdim=True))


@pytest.mark.promise(7)
@pytest.mark.parametrize("kind", [DROClassifier, DRORegressor])
def test_modules_that_are_nan_somewhere(kind):
    X, y = make_moons(40, noise=0.1, random_state=0)
    largest = float(np.linalg.norm(X, axis=1).max())
    with pytest.raises(InvalidDataError, match=r"NaN or infinity on \d+ of the first 40 rows"):
        mlp(kind, model=lambda: Within(0.7 * largest)).fit(X, 1.0 * y)
    with pytest.warns(UserWarning, match="NaN or infinity at 2 times the distance"):
        model = mlp(kind, model=lambda: Within(1.2 * largest), max_iter=3).fit(X, 1.0 * y)
    assert np.isfinite(model.certificate_.lower)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", category=_convergence())
        mlp(kind, model=lambda: Within(100.0 * largest), max_iter=3).fit(X, 1.0 * y)


def _convergence():
    from sklearn.exceptions import ConvergenceWarning

    return ConvergenceWarning


def test_layers_that_rest_are_named():
    def net(*layers):
        return lambda: nn.Sequential(nn.Linear(4, 5), *layers, nn.Tanh(), nn.Linear(5, 1))

    X, y = binary()
    with pytest.warns(UserWarning, match="BatchNorm1d and Dropout of model rest"):
        mlp(model=net(nn.BatchNorm1d(5), nn.Dropout(0.2)), max_iter=1).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", category=_convergence())
        mlp(model=net(nn.LayerNorm(5), nn.Dropout(0.0)), max_iter=1).fit(X, y)
        norm = nn.BatchNorm1d(5)
        norm(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
        mlp(model=net(norm), max_iter=1).fit(X, y)  # statistics of earlier training


def test_the_set_and_the_labels_are_those_of_the_whole_fit():
    """Early stopping and certified together, three labels with names, a weighted column."""
    X, y = classes()
    names = np.array(["a", "b", "c"])[y]
    wide = Wasserstein(0.2, weights=[1.0, 2.0, 4.0])
    model = mlp(max_iter=5, early_stopping=True, certified="auto", inner="pointwise")
    model.set_params(ambiguity=wide).fit(X, names, sample_weight=np.arange(1.0, len(y) + 1))
    assert set(model.predict(X)) <= {"a", "b", "c"}
    assert model.certificate_.lower <= model.certificate_.upper
    X, y = regression()
    reg = mlp(DRORegressor, max_iter=5, early_stopping=True, certified="auto", inner="pointwise")
    assert np.isfinite(reg.fit(X, y).predict(X)).all()
