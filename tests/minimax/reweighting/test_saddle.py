"""Masses and parameters on one path: near the minimum, whatever the loss and the form."""

import numpy as np
import pytest

from drojko import DROClassifier
from drojko.ambiguity import MMD
from drojko.losses import get_loss
from drojko.minimax.reweighting.saddle import LinearLosses, near_saddle
from drojko.minimax.reweighting.solve import solve_linear
from drojko.rows import rows_of

SETS = [
    MMD(radius=0.1),
    MMD("energy", radius=0.4),
    MMD("laplace", bandwidth=1.0, radius=0.05),
    MMD(penalty=2.0),
]


def problem(name, seed=0, n=25):
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 3)) * [1.0, 30.0, 0.1]
    f = X @ [1.0, 0.03, 5.0] + draw.normal(size=n)
    loss = get_loss(name)
    y = (f > 0).astype(np.int64) if loss.task == "classification" else f
    return X, y, draw.uniform(0.5, 2.0, n), loss


def risk(bound, loss, alpha, X, y, coef, intercept):
    import torch

    values = loss.value(torch.from_numpy(X @ coef + intercept), torch.from_numpy(y)).numpy()
    return bound.dual(values).value + 0.5 * alpha * coef @ coef


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("name", ["logistic", "hinge", "squared", "absolute"])
def test_the_path_ends_near_the_minimum(name, ambiguity):
    X, y, weight, loss = problem(name)
    bound, alpha = ambiguity.bind(X, y, weight / weight.sum()), 0.01
    rows = rows_of(X, y, weight)
    ridge = np.append(alpha / rows.scale**2, 0.0)
    unit = float(rows.w @ np.abs(y)) if loss.task == "regression" else 1.0
    near = rows.outward(near_saddle(rows, loss, bound, ridge, unit).theta)
    # The same problem from zero, by descent alone: without the shortcut.
    from_zero = solve_linear(X, y, weight, _Plain(bound), loss, alpha=alpha)
    least = risk(bound, loss, alpha, X, y, from_zero.coef, from_zero.intercept)
    found = risk(bound, loss, alpha, X, y, *near)
    assert abs(found / least - 1.0) < 2e-5
    # Its masses show that the end of the path is the minimum.
    whole = solve_linear(X, y, weight, bound, loss, alpha=alpha)
    assert whole.status == "converged"
    assert whole.n_iter <= from_zero.n_iter
    assert risk(bound, loss, alpha, X, y, whole.coef, whole.intercept) <= least * (1.0 + 4e-6)


class _Plain:
    """A set that does not know the shortcut."""

    def __init__(self, bound):
        self.dual, self.ambiguity = bound.dual, bound.ambiguity


def test_equal_points_are_one_and_weights_are_copies():
    X, y, _, loss = problem("logistic")
    copies = np.random.default_rng(1).integers(0, 3, len(X))
    index = np.repeat(np.arange(len(X)), copies)
    ambiguity = MMD(bandwidth=1.0, radius=0.1)
    kept = copies > 0
    given = copies[kept].astype(float)
    one = solve_linear(
        X[kept], y[kept], given, ambiguity.bind(X[kept], y[kept], given), loss, alpha=0.01
    )
    ones = np.ones(len(index))
    many = solve_linear(
        X[index], y[index], ones, ambiguity.bind(X[index], y[index], ones), loss, alpha=0.01
    )
    np.testing.assert_allclose(one.coef, many.coef, rtol=1e-4)
    assert one.status == many.status == "converged"


def test_a_broken_path_leaves_the_descent_as_it_was():
    X, y, weight, loss = problem("logistic")
    bound = MMD(radius=0.1).bind(X, y, weight)
    plain = solve_linear(X, y, weight, bound, loss, alpha=0.01)
    bound.saddle = lambda losses: None
    again = solve_linear(X, y, weight, bound, loss, alpha=0.01)
    assert again.n_iter > plain.n_iter
    np.testing.assert_allclose(again.coef, plain.coef, rtol=1e-3, atol=1e-5)


def test_ctrl_c_on_the_path_leaves_the_model_that_it_had(monkeypatch):
    looks, jet = [], LinearLosses.jet

    def interrupted(self, *args):
        looks.append(args[0].copy())
        if len(looks) == 8:
            raise KeyboardInterrupt
        return jet(self, *args)

    monkeypatch.setattr(LinearLosses, "jet", interrupted)
    X, y, _, _ = problem("hinge")
    model = DROClassifier(MMD(radius=0.1), loss="hinge", reference="empirical")
    with pytest.raises(KeyboardInterrupt) as caught:
        model.fit(X, y)
    assert caught.value.result is model
    assert model.status_ == "interrupted"
    rows = rows_of(X, y)
    np.testing.assert_allclose(model.coef_[0], rows.outward(looks[-2])[0])
    assert np.any(model.coef_)
    assert model.predict(X).shape == y.shape
