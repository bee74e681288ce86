"""Promise 7: any scale converges or warns, and nothing that is not finite stays behind."""

import contextlib
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from drojko.exceptions import InvalidDataError, NonFiniteError
from tests.estimators._cases import ball, binary, fitted, linear, mlp, numbers, regression, unfitted

pytestmark = pytest.mark.promise(7)

#: Infinite by meaning: labels that cannot move, and the multiplier of a ball that costs nothing.
MEANT = ("label_cost", "penalty", "cost_weights")


def assert_finite(model):
    state = {k: v for k, v in vars(model).items() if k.endswith("_") or k.startswith("_")}
    for path, values in numbers(state):
        if path.endswith("optimality_gap_"):  # NaN by meaning: nothing is proven
            assert np.isnan(values) or 0.0 <= values < np.inf
        elif path.rsplit(".", 1)[-1].endswith(MEANT):
            assert not np.isnan(values).any(), path
        else:
            assert np.isfinite(values).all(), path


def attempt(estimator, X, y):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = estimator.fit(X, y)
    told = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    assert len(told) == len(caught), [str(w.message) for w in caught]
    assert model.status_ == "converged" or told
    assert_finite(model)
    assert np.isfinite(model.predict(X)).all() if y.dtype.kind == "f" else True
    return model


SCALES = [1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "name", ["linear", "linear-hinge", "linear-kde", "linear-classes", "huber"]
)
def test_linear_models_at_any_scale_of_x(name, scale):
    estimator, X, y = unfitted(name)
    radius = estimator.ambiguity.radius
    model = attempt(clone(estimator).set_params(ambiguity=ball(scale * radius)), scale * X, y)
    expected = fitted_upper(name)
    rel = 1e-6 if name != "linear-classes" else 2e-2  # 20 iterations of it, from rounded starts
    assert model.certificate_.upper == pytest.approx(expected, rel=rel)


def fitted_upper(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fitted(name)[0].certificate_.upper


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["squared", "absolute"])
def test_linear_models_at_any_scale_of_y(name, scale):
    estimator, X, y = unfitted(name)
    model = attempt(estimator, X, scale * y)
    unit = scale**2 if name == "squared" else scale
    assert model.certificate_.upper == pytest.approx(unit * fitted_upper(name), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("name", ["mlp", "mlp-kde", "mlp-classes", "mlp-squared"])
def test_perceptrons_at_any_scale_of_x(name, scale):
    estimator, X, y = unfitted(name)
    radius = estimator.ambiguity.radius
    model = attempt(clone(estimator).set_params(ambiguity=ball(scale * radius)), scale * X, y)
    # One seed, one model, up to the rounding of the scale itself.
    assert model.certificate_.upper == pytest.approx(fitted_upper(name), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_perceptrons_at_any_scale_of_y(scale):
    estimator, X, y = unfitted("mlp-squared")
    model = attempt(estimator, X, scale * y)
    upper = scale**2 * fitted_upper("mlp-squared")
    assert model.certificate_.upper == pytest.approx(upper, rel=1e-3)


@pytest.mark.parametrize("name", ["linear", "linear-classes", "squared", "mlp", "mlp-squared"])
def test_columns_of_very_different_scales(name):
    estimator, X, y = unfitted(name)
    attempt(estimator, X * np.logspace(-8, 8, X.shape[1]), y)


@pytest.mark.parametrize("name", ["linear", "linear-classes", "squared", "mlp"])
def test_a_far_origin_costs_digits_and_no_more(name):
    estimator, X, y = unfitted(name)
    model = attempt(estimator, X + 1e8 * X.std(), y)
    rel = 1e-4 if name != "linear-classes" else 2e-2
    assert model.certificate_.upper == pytest.approx(fitted_upper(name), rel=rel)


@pytest.mark.parametrize(("radius", "penalty"), [(1e61, None), (1e-61, None), (None, 1e300)])
def test_what_cannot_be_squared_is_refused(radius, penalty):
    estimator, X, y = unfitted("linear")
    name = "radius" if radius else "penalty"
    estimator.set_params(ambiguity__radius=radius, ambiguity__penalty=penalty)
    with pytest.raises(InvalidDataError, match=rf"{name}=.* rescale X"):
        estimator.fit(X, y)


# -- injected failures -----------------------------------------------------------------------------


class Bad(torch.nn.Module):
    """A net that turns NaN once its weights have moved by `steps` calls."""

    def __init__(self, calls):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
        self.left = calls

    def forward(self, x):
        self.left -= 1
        f = self.net(x)
        return f if self.left > 0 else f * math.nan


def test_a_model_that_turns_nan_fails_with_its_last_finite_state():
    X, y = binary()
    model = mlp(model=lambda: Bad(30))
    with pytest.raises(NonFiniteError, match="not finite") as caught:
        model.fit(X, y)
    assert caught.value.last_state is not None


@pytest.mark.parametrize("estimator", [linear(), mlp()], ids=["linear", "mlp"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_loss_that_is_nan_fails(estimator):
    X, y = binary()
    with pytest.raises(NonFiniteError, match="not finite"):
        clone(estimator).set_params(loss=lambda f, y: f * math.nan).fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_learning_rate_out_of_this_world_fails_or_stays_finite():
    X, y = regression()
    estimator = unfitted("mlp-squared")[0].set_params(learning_rate=1e200)
    with contextlib.suppress(NonFiniteError):
        assert_finite(estimator.fit(X, y))
