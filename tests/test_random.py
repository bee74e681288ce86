"""Private generators: what may seed them, and that the global ones stay as they are."""

import numpy as np
import pytest
import torch

from drojko._random import generator, spawn
from drojko.exceptions import InvalidDataError


def draw(g):
    return torch.rand(4, generator=g)


@pytest.mark.parametrize(
    "make",
    [
        lambda: 3,
        lambda: np.int64(3),
        lambda: np.random.RandomState(3),
        lambda: np.random.default_rng(3),
    ],
)
def test_equal_states_give_equal_draws(make):
    assert torch.equal(draw(generator(make())), draw(generator(make())))


def test_different_seeds_differ_and_none_is_fresh():
    assert not torch.equal(draw(generator(1)), draw(generator(2)))
    assert generator(None).initial_seed() != generator(None).initial_seed()


def test_torch_generator_is_returned_itself():
    g = torch.Generator()
    assert generator(g) is g


def test_numpy_state_is_advanced():
    state = np.random.RandomState(0)
    assert not torch.equal(draw(generator(state)), draw(generator(state)))


@pytest.mark.parametrize("bad", [-1, 1.5, "seed", [1]])
def test_other_states_are_refused(bad):
    with pytest.raises(InvalidDataError, match="random_state"):
        generator(bad)


def test_children_differ_and_repeat():
    parent, twin = generator(0), generator(0)
    first, second = draw(spawn(parent)), draw(spawn(parent))
    assert not torch.equal(first, second)
    assert torch.equal(first, draw(spawn(twin)))
    assert torch.equal(second, draw(spawn(twin)))


def test_a_childs_draws_leave_the_parent_alone():
    lazy, busy = generator(5), generator(5)
    spawn(lazy)
    torch.rand(1000, generator=spawn(busy))
    assert torch.equal(draw(lazy), draw(busy))


@pytest.mark.promise(10)
def test_global_generators_are_untouched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for state in (None, 0, np.random.RandomState(0), np.random.default_rng(0)):
        draw(spawn(generator(state)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
