"""Losses bounded by margins and means of two of them: against points that keep all bounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.inner.networks.network import Margins
from drojko.inner.networks.pairs import Pairs, leading, paired
from drojko.losses import get_loss

CASES = st.tuples(st.sampled_from(["logistic", "hinge"]), st.integers(2, 7), st.integers(0, 10**6))


def margins_of(loss, classes, y):
    known = get_loss(loss, n_classes=max(3, classes))
    eye = torch.eye(classes, dtype=torch.float64)
    found = Margins.of(known, eye, torch.zeros(classes, dtype=torch.float64), y)
    assert found is not None
    return found


@given(CASES, st.sampled_from([1e-3, 1.0, 30.0]))
def test_no_margins_within_their_bounds_have_a_larger_loss(drawn, spread):
    """Bounds linear in t²: what is bounded at both ends is bounded between them, less a price."""
    loss, classes, number = drawn
    gen = torch.Generator().manual_seed(number)
    n = 15
    y = torch.randint(classes, (n,), generator=gen)
    margins = margins_of(loss, classes, y)
    own = margins.own()
    u = spread * torch.randn(2, n, classes, generator=gen, dtype=torch.float64)
    u = u.masked_fill(own, 0.0)
    top = leading(u.mean(0), own)
    t = top.shape[1]
    x = torch.stack([end.gather(1, top) for end in u])
    mean = 0.5 * (x[:, :, :, None] + x[:, :, None, :])
    share = torch.rand(2, n, t, t, generator=gen, dtype=torch.float64)
    cut = mean - spread * (share + share.mT)
    known = torch.rand(n, t, t, generator=gen) < 0.7
    known = known & known.mT & ~torch.eye(t, dtype=torch.bool)
    a = torch.where(known, cut, torch.inf)
    bound = paired(margins, top, u, a)
    plain = torch.stack([margins(end) for end in u])
    for price in (0.0, 3 * spread):
        most = torch.maximum(bound[0], bound[1] - price)
        for part in (0.0, 0.4, 1.0):
            high = u[0] + part * (u[1] - u[0])
            pairs = torch.where(known, a[0] + part * (a[1] - a[0]), torch.inf)
            for _ in range(8):
                # Margins one after the other, each as large as those before it leave it.
                m = high.clone()
                down = torch.rand(n, classes, generator=gen, dtype=torch.float64)
                m = m - spread * torch.where(down < 0.5, 0.0, down)
                order = torch.randperm(t, generator=gen).tolist()
                at = m.gather(1, top)
                for i, j in enumerate(order):
                    for k in order[:i]:
                        at[:, j] = torch.minimum(at[:, j], 2 * pairs[:, j, k] - at[:, k])
                m = m.scatter(1, top, at).masked_fill(own, 0.0)
                value = margins(m) - part * price
                assert bool((value <= most + 1e-12 * (1 + spread)).all())
    free = paired(margins, top, u, torch.full_like(a, torch.inf))
    assert bool((free >= plain - 1e-12 * (1 + spread)).all())  # nothing known: nothing gained


def test_two_margins_of_which_one_is_large(seed):
    """u_1 = u_2 = u, mean at most a: one at u and the other at 2a - u, or both at a."""
    y = torch.zeros(1, dtype=torch.long)
    margins = margins_of("logistic", 3, y)
    u = torch.tensor([[[0.0, 2.0, 2.0]]] * 2, dtype=torch.float64)
    for a in (1.9, 1.0, -3.0):
        mean = torch.full((2, 1, 2, 2), a, dtype=torch.float64)
        found = paired(margins, leading(u[0], margins.own()), u, mean)
        exact = torch.logsumexp(torch.tensor([0.0, 2.0, 2 * a - 2.0], dtype=u.dtype), 0)
        assert found.flatten().tolist() == pytest.approx([float(exact)] * 2, rel=1e-9)


def test_a_table_holds_the_lowest_of_each_pair():
    index = torch.tensor([0, 0, 0, 2])
    pairs = Pairs(
        index, torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 2, 1]), torch.tensor([3, 3, 3, 2]),
        torch.tensor([5.0, 4.0, 1.0, 0.0]).double(), torch.tensor([0.0, 1.0, 2.0, 3.0]).double(),
    )  # fmt: skip
    rows, shells, place = pairs.regions(4)
    assert rows.tolist() == [0, 2]
    assert shells.tolist() == [1, 0]
    constant, curvature = pairs.table(place, torch.tensor([[3, 1], [0, 2]]), torch.ones(2).double())
    assert constant[0, 0, 1] == constant[0, 1, 0] == 4.0
    assert curvature[0, 0, 1] == curvature[0, 1, 0] == 1.0
    assert bool(constant[1].isinf().all())
    assert bool(constant[0].diagonal().isinf().all())
