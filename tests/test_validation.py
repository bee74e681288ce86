"""Wrong arguments: what is refused, in which words, and what is read.

Each is an instance of a kind that `drojko._validation` decides in one place.
"""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV, KFold
from torch import Tensor

from drojko import (
    DROClassifier,
    DRORegressor,
    MinimaxProblem,
    audit,
    make_robust_scorer,
    select_radius,
)
from drojko._validation import Checked, checked, floats, is_real, shown
from drojko.ambiguity import KL, CressieRead, CVaR, Group, Sinkhorn, Wasserstein
from drojko.exceptions import DrojkoError, InvalidDataError
from drojko.flows.functionals import Entropy, InteractionEnergy, PotentialEnergy
from drojko.inner import get_inner
from drojko.losses import CallableLoss, get_loss
from drojko.measures import Empirical, Gaussian
from drojko.problems import Ball, Box, Simplex, newsvendor, portfolio
from drojko.transport import ICNN, AffineMap, BrenierMap

A, B = make_classification(60, 4, random_state=0, flip_y=0.1)
E = {"reference": "empirical", "random_state": 0}
Z = np.random.default_rng(0).normal(size=(20, 2))
ONE = torch.ones(3, 2, dtype=torch.float64)


# The door ----------------------------------------------------------------------------------------


@checked(x="n d", weights="n")
def weighted(x: Tensor, weights: Tensor | None = None, *, times: int = 1):
    return x, weights, times


class Thing(Checked):
    _shapes = {"x": "n .dim"}
    dim = 2

    def __init__(self, rate: float, name: str = "a") -> None:
        self.rate = rate

    def move(self, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def of(flag: bool) -> bool:
        return flag


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": [[1.0]]}, "weighted: x is"),
        ({"x": ONE[0]}, r"shape \(n, d\)"),
        ({"x": ONE, "weights": torch.ones(4)}, "n = 3"),
        ({"x": ONE * np.nan}, "NaN or infinity"),
        ({"x": ONE.to(torch.bfloat16)}, "bfloat16"),
        ({"x": ONE.to("meta")}, "meta device"),
        ({"x": ONE * 1j}, "complex"),
        ({"x": ONE, "times": 1.5}, "times is 1.5; expected an integer"),
        ({"x": ONE, "times": True}, "times is True"),
    ],
)
def test_annotations_and_shapes_are_checked(arguments, message):
    with pytest.raises(InvalidDataError, match=message):
        weighted(**arguments)


def test_tensors_take_the_precision_of_the_first_and_gradients_stay():
    x = ONE.clone().requires_grad_()
    found, weights, _ = weighted(x, torch.ones(3))
    assert found is x
    assert weights.dtype == torch.float64
    assert weighted(ONE)[1] is None


def test_methods_of_subclasses_are_doors():
    thing = Thing(0.5)
    assert thing.move(ONE) is ONE
    for call in (
        lambda: Thing("0.5"), lambda: Thing(0.5, 3), lambda: Thing.of("True"),
        lambda: thing.move(ONE[:, :1]), lambda: thing.move("x"),
    ):  # fmt: skip
        with pytest.raises(InvalidDataError, match="Thing"):
            call()


@pytest.mark.parametrize("value", [10**400, object(), int, np.ones((2, 3)), "x" * 1000])
def test_any_value_can_be_shown(value):
    assert 0 < len(shown(value)) < 80


@pytest.mark.parametrize("value", [True, np.nan, np.inf, 1j, "1", None, 10**400, np.float32("nan")])
def test_what_is_no_number(value):
    assert not is_real(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ma.masked_array([1.0], [True]), "mask"),
        (np.array([1j]), "complex"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "dates or times"),
        (np.array([1, 2]).astype("timedelta64[s]"), "dates or times"),
        ([[1.0], [1.0, 2.0]], "must be numbers"),
        (np.array(["1"]), "must be numbers"),
        (pd.DataFrame({"a": [1.0], "day": pd.to_datetime(["2020-01-01"])}), "column 'day'"),
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), "column 'b'"),
        (pd.DataFrame({"a": [1.0], "b": [[1, 2]]}), "column 'b'"),
        (pd.DataFrame({"a": pd.period_range("2020", periods=1, freq="M")}), "column 'a'"),
        (torch.ones(2, device="meta"), "meta"),
        (datetime.datetime(2020, 1, 1), "must be numbers"),
        (int, "the class int"),
    ],
)
def test_what_numpy_would_read_wrongly_is_refused(values, message):
    with pytest.raises(InvalidDataError, match=message):
        floats(values, "X")


def test_what_holds_numbers_is_read():
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    for values in ([1, 1], half, np.ones(2, np.float16), pd.array([1, 1], dtype="Int64")):
        assert floats(values, "X").tolist() == [1.0, 1.0]


# Accepted once, and wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: portfolio(Z, KL(0.1), long_only="False"), "long_only.*True or False"),
        (lambda: portfolio(Z, KL(0.1)).solve(max_time=np.nan), "max_time"),
        (lambda: Simplex(total=1j), "total"),
        (lambda: Ball(1.0, np.nan), "centre"),
        (lambda: Ball(np.nan), "radius"),
        (lambda: Box(1.0, 0.0), "lower exceeds upper"),
        (lambda: Gaussian(ridge=np.inf).fit(Z), "ridge"),
        (lambda: Empirical().fit(np.ma.masked_array(Z, Z > 0)), "mask"),
        (lambda: newsvendor(np.arange("2020-01", "2020-09", dtype="M8[M]"), KL(0.1)), "dates"),
        (lambda: DROClassifier(**E).fit(np.ma.masked_array(A, A > 9), B), "mask"),
        (lambda: DRORegressor(**E).fit(A, np.arange(60).astype("M8[D]")), "dates"),
        (lambda: DRORegressor(**E).fit(A, B * 1j), "omplex"),
        (lambda: DROClassifier(alpha=True, **E).fit(A, B), "alpha"),
        (lambda: DROClassifier(alpha=np.inf, **E).fit(A, B), "alpha"),
        (lambda: DRORegressor(loss=lambda p, t: (p - t) * 1j, **E).fit(A, B), "real numbers"),
        (
            lambda: MinimaxProblem(
                lambda t, z: ((t - z) ** 2).sum(1), torch.zeros(2), Z, KL(0.1),
                constraint=lambda t: t[:1],
            ).solve(),
            "projection returned .*that of the decision",
        ),
    ],
)  # fmt: skip
def test_accepted_once_and_refused_now(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("given", [np.array([0, 0, 1, 1]), np.array([1, 0, 1, 0]), [2, 2]])
def test_masks_of_integers_are_refused_with_both_readings(given):
    with pytest.raises(InvalidDataError, match=r"as indices it would be immutable=\[") as caught:
        Wasserstein(0.1, immutable=given).validate(4)
    if len(given) == 4:
        assert "as a mask it would be immutable=np.array(" in str(caught.value)


def test_masks_and_indices_that_are_clear_are_read():
    for given in (np.array([False, False, True, True]), np.array([2, 3]), [2, 3], [-1, -2]):
        cost = Wasserstein(0.1, immutable=given).validate(4)
        assert np.isinf(cost.weights).tolist() == [False, False, True, True]


# Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DROClassifier().set_params(aplha=1.0), "did you mean 'alpha'"),
        (lambda: DROClassifier().set_params(ambiguity__radus=1.0), "did you mean 'radius'"),
        (lambda: KL(0.1).set_params(penality=1.0), "did you mean 'penalty'"),
        (lambda: Gaussian().set_params(rigde=1.0), "did you mean 'ridge'"),
        (lambda: DROClassifier(reference="empirial").fit(A, B), "did you mean 'empirical'"),
        (lambda: DROClassifier(inner="pointwse").fit(A, B), "did you mean 'pointwise'"),
        (lambda: get_loss("hubber"), "did you mean 'huber'"),
        (lambda: get_inner("semi-dual"), "did you mean 'semidual'"),
        (lambda: select_radius(DROClassifier(**E), A, B, method="rwip"), "did you mean 'rwpi'"),
        (lambda: DROClassifier(0.1).fit(A, B), r"Wasserstein\(radius=0.1\)"),
        (lambda: DROClassifier(KL).fit(A, B), r"make one, KL\(\.\.\.\)"),
        (lambda: DROClassifier("chi-square").fit(A, B), r"ChiSquare\(radius=0.1\)"),
        (lambda: audit(None, A, B, 0.3), r"Wasserstein\(radius=0.3\)"),
    ],
)
def test_the_right_name_or_form_is_shown(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Messages ----------------------------------------------------------------------------------------


def test_folds_without_a_class_are_named():
    order = np.argsort(B)
    with pytest.raises(InvalidDataError, match=r"fold 1 of 2 .*without the class"):
        select_radius(DROClassifier(**E), A[order], B[order], cv=KFold(2), radii=[0.1])


def test_group_in_a_search_names_the_routing():
    search = GridSearchCV(
        DROClassifier(Group(), **E), {"alpha": [0.0]}, error_score="raise",
        scoring=make_robust_scorer(Wasserstein(0.1)),
    )  # fmt: skip
    with pytest.raises(InvalidDataError, match=r"set_fit_request\(groups=True\)"):
        search.fit(A, B)


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.line(x), x


def test_a_tuple_of_a_module_is_named():
    with pytest.raises(InvalidDataError, match=r"gives tuple; .*return the part that predicts"):
        DROClassifier(model=Pair, **E).fit(A, B)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, t: ((p - t) ** 2).detach(), "detached"),
        (lambda p, t: torch.as_tensor((p - t).detach().numpy() ** 2), "detached"),
        (lambda p, t: (p > t).long(), "real numbers"),
        (lambda p, t: p > t, "real numbers"),
    ],
)
def test_losses_without_a_gradient_are_named(loss, message):
    with pytest.raises(InvalidDataError, match=message):
        CallableLoss(loss, "regression").gradient(torch.ones(3).double(), torch.zeros(3).double())


def test_a_constant_loss_has_the_gradient_zero():
    loss = CallableLoss(lambda p, t: torch.ones_like(t), "regression")
    assert loss.gradient(torch.ones(3).double(), torch.zeros(3).double()).tolist() == [0.0] * 3


def test_missing_labels_are_counted():
    y = np.array(["a", None, "b", None] * 15, dtype=object)
    with pytest.raises(InvalidDataError, match=r"y\[1\] is None \(30 of 60"):
        DROClassifier(**E).fit(A, y)


def test_texts_are_no_targets_of_a_regression():
    with pytest.raises(InvalidDataError, match="y must be numbers"):
        DRORegressor(**E).fit(A, np.array(["a", "b"] * 30))


def test_a_column_without_values_is_to_be_left_out():
    X = np.column_stack([np.arange(8.0), np.full(8, np.nan)])
    with pytest.raises(InvalidDataError, match=r"column 1 of X is empty.*leave it out"):
        DROClassifier(KL(0.1), reference="empirical").fit(X, np.arange(8) % 2)


def test_columns_of_one_name_are_refused():
    frame = pd.DataFrame(A[:, :2], columns=["a", "a"])
    with pytest.raises(InvalidDataError, match="two columns named 'a'"):
        DROClassifier(**E).fit(frame, B)


# Extremes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e200, 1e-200])
@pytest.mark.parametrize("ambiguity", [KL(0.1), Wasserstein(0.1), CVaR(0.3)], ids=repr)
def test_scales_beyond_arithmetic_are_named(ambiguity, size):
    with pytest.raises(InvalidDataError, match=r"X holds .*another unit"):
        DROClassifier(ambiguity, **E).fit(A * size, B)
    with pytest.raises(InvalidDataError, match=r"y holds .*another unit"):
        DRORegressor(ambiguity, **E).fit(A, B * size)


@pytest.mark.parametrize("ambiguity", [KL(0.1), Wasserstein(0.1)], ids=repr)
@pytest.mark.parametrize("size", [1e300, 1e308, 1e-300])
def test_weights_of_any_size_are_shares(ambiguity, size):
    weights = np.linspace(0.5, 1.0, 60)
    plain = DRORegressor(ambiguity, tol=1e-8, **E).fit(A, B, sample_weight=weights)
    scaled = DRORegressor(ambiguity, tol=1e-8, **E).fit(A, B, sample_weight=weights * size)
    assert scaled.certificate_.upper == pytest.approx(plain.certificate_.upper, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DROClassifier(Sinkhorn(1e-300, radius=0.5), **E),
        lambda: DROClassifier(Sinkhorn(1e300, radius=0.5), **E),
        lambda: DROClassifier(CressieRead(1e-300, 0.1), **E),
        lambda: DROClassifier(CressieRead(1.0 + 1e-15, 0.1), **E),
        lambda: DROClassifier(CVaR(1e-300), **E),
        lambda: DROClassifier(CVaR(5e-324), **E),
        lambda: DRORegressor(loss="quantile", quantile=1e-300, **E),
        lambda: DROClassifier(alpha=1e308, **E),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_extreme_settings_give_a_finite_certificate_or_an_error_of_ours(make):
    try:
        upper = make().fit(A, B).certificate_.upper
    except DrojkoError:
        return
    assert np.isfinite(upper)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_tail_of_nearly_nothing_is_the_largest_loss():
    fit = DRORegressor(CVaR(1e-300), **E).fit(A, B * 1.0)
    losses = (fit.predict(A) - B) ** 2
    assert fit.certificate_.upper == pytest.approx(losses.max(), rel=1e-3)


# Flows and maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: ICNN(0),
        lambda: ICNN(2, hidden=()),
        lambda: ICNN(2).gradient(ONE[:, :1]),
        lambda: ICNN(2).gradient([[1.0, 2.0]]),
        lambda: AffineMap(torch.zeros(2, 2), torch.zeros(2)),
        lambda: AffineMap(torch.eye(2), torch.zeros(3)),
        lambda: BrenierMap(ICNN(2), scale=0.0),
        lambda: BrenierMap(ICNN(2)).map(ONE * np.inf),
        lambda: Entropy().value(ONE, torch.zeros(2)),
        lambda: PotentialEnergy("V"),
        lambda: PotentialEnergy(lambda z: z).value(ONE, torch.zeros(3)),
        lambda: InteractionEnergy(lambda z: z[:1, 0]).value(ONE, torch.zeros(3)),
        lambda: Entropy() * np.inf,
    ],
)
def test_flows_and_maps_name_what_is_wrong(call):
    with pytest.raises(InvalidDataError):
        call()


def test_maps_take_points_of_either_precision():
    icnn = ICNN(2, hidden=(4,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(icnn.gradient(ONE.float()), icnn.gradient(ONE))
