"""Flat vectors and the shapes they came in."""

import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError
from drojko.problems.parameters import Layout


@pytest.mark.parametrize(
    "params",
    [
        2.5,
        np.arange(6.0).reshape(2, 3),
        torch.arange(3.0, dtype=torch.float64),
        [torch.zeros(2, dtype=torch.float64), np.ones((1, 2))],
        {"a": 1.0, "b": np.ones(2), "c": torch.ones(1, 1, dtype=torch.float64)},
    ],
    ids=lambda p: type(p).__name__,
)
def test_restore_undoes_flatten(params):
    layout, flat = Layout.of(params)
    back = layout.restore(flat)
    assert type(back) is type(params)
    again, other = Layout.of(back)
    assert again == layout
    assert torch.equal(other, flat)
    assert torch.equal(layout.read(back), flat)


def test_lists_of_numbers_are_one_variable():
    layout, flat = Layout.of([1, 2, 3])
    assert flat.tolist() == [1, 2, 3]
    assert layout.restore(flat).tolist() == [1, 2, 3]


def test_split_is_followed_by_autograd():
    layout, flat = Layout.of({"a": np.ones(2), "b": 3.0})
    flat.requires_grad_()
    parts = layout.split(flat)
    (parts["a"].sum() * parts["b"]).backward()
    assert flat.grad.tolist() == [3.0, 3.0, 2.0]


def test_restored_values_share_no_memory():
    layout, flat = Layout.of(torch.zeros(2))
    layout.restore(flat).add_(1)
    assert flat.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("params", "message"),
    [("text", "numbers"), ([], "no number"), ({"a": np.nan}, "a contains NaN")],
)
def test_mistakes(params, message):
    with pytest.raises(InvalidDataError, match=message):
        Layout.of(params)


def test_other_shapes_are_refused():
    layout, _ = Layout.of({"a": np.ones(2)})
    with pytest.raises(InvalidDataError, match="shapes"):
        layout.read({"a": np.ones(3)})
