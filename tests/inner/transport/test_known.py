import numpy as np
import pytest
import torch

from drojko.certificates import certify
from drojko.inner import ICNNJKO, TransportedWorstCase
from drojko.inner.transport.known import KnownRows
from drojko.losses import get_loss
from drojko.measures import ClassConditional, Empirical


@pytest.fixture
def plan(build, moons, uniform):
    """A worst case of two moons, some rows twice, as a mixture of two maps in a ball."""
    model, x, y = moons
    rows = torch.cat([torch.arange(60), torch.arange(10)])
    x, y = x[rows], y[rows]
    adversary, batch = build(model, "logistic", x, y, 2.0)
    gen = torch.Generator().manual_seed(5)
    adversary = ICNNJKO().fit(adversary.objective, batch, gen, n_labels=2, atoms=True)
    w = uniform(batch)
    found = certify(adversary, batch, w, radius=0.5, sampled=False)
    known = KnownRows.of(found.worst, adversary.objective.decode, w)
    reference = ClassConditional(Empirical()).fit(x.numpy(), y.numpy())
    worst = TransportedWorstCase(
        found.adversary, reference, *found.plan, found.certificate.worst_case_risk,
        classes=np.arange(2), known=known,
    )  # fmt: skip
    return found, worst, x.numpy(), y.numpy(), model


def test_known_rows_attain_what_was_certified(plan):
    found, worst, x, y, model = plan
    certificate = found.certificate
    before, after, labels, mass = worst.pairs()
    loss = get_loss("logistic").value(model.linearise(torch.tensor(after))[0], torch.tensor(labels))
    assert mass @ loss.numpy() == pytest.approx(certificate.worst_case_risk, rel=1e-12)
    assert mass @ ((after - before) ** 2).sum(1) == pytest.approx(0.25, rel=1e-9)
    # The rows in any order, in parts, and one by one: moves are looked up, not searched for.
    high, low = found.worst.high, found.worst.low
    ends = [found.adversary.objective.decode(m.at, m.q).numpy() for m in (high, low)]
    moved = worst.transport(x, y)
    assert all(any(np.array_equal(row, end[i]) for end in ends) for i, row in enumerate(moved))
    cost = ((moved - x) ** 2).sum(1)
    largest = np.abs(ends[0] - x).max() ** 2 * 2 + 1.0
    assert cost.mean() <= 0.25 * (1 + 1e-9)
    assert cost.mean() == pytest.approx(0.25, abs=2 * largest / len(x))
    single = worst.transport(x[17:18], y[17:18])
    assert any(np.array_equal(single[0], end[17]) for end in ends)


def test_the_draw_decides_row_by_row_where_the_plan_is_a_mixture(plan):
    found, worst, x, y, _ = plan
    ball = found.worst
    assert 0.0 < ball.share < 1.0
    moved = np.stack([worst.transport(x, y, random_state=seed) for seed in range(100)])
    high = ball.adversary.objective.decode(ball.high.at, ball.high.q).numpy()
    other = np.abs(moved - high).max(2) > 0
    assert (other.any(1) & ~other.all(1)).any()  # one draw, both maps
    share = other.mean(0)
    far = (ball.low.q - ball.high.q).abs().amax(1).numpy() > 1e-3
    if far.any():
        np.testing.assert_allclose(share[far], ball.share, atol=0.15)


def test_repeated_rows_are_taken_in_turn(plan):
    _, worst, x, y, _ = plan
    index = worst.known.find(x, y)
    assert sorted(index.tolist()) == list(range(len(x)))
    assert worst.known.find(x + 1e-3, y).max() == -1
    assert worst.known.find(x, 1 - y).max() == -1
    assert worst.known.find(np.array([[-0.0, 1.0]]), np.array([0.0]))[0] == -1


def test_new_rows_are_searched_for_beside_known_ones(plan):
    found, worst, x, y, model = plan
    new = x[:20] + 0.02
    both = worst.transport(np.concatenate([new, x[:20]]), np.concatenate([y[:20], y[:20]]))
    assert np.isin(both[20:], np.concatenate([
        found.adversary.objective.decode(m.at, m.q).numpy()
        for m in (found.worst.high, found.worst.low)
    ])).all()  # fmt: skip
    loss = get_loss("logistic")
    before, after = (
        loss.value(model.linearise(torch.tensor(z))[0], torch.tensor(y[:20]))
        for z in (new, both[:20])
    )
    penalty = worst.high_penalty
    value = after - penalty * torch.tensor(((both[:20] - new) ** 2).sum(1))
    assert bool((value >= before - 1e-3).all())
    assert float(after.mean()) > float(before.mean())


def test_pairs_as_a_table(plan):
    _, worst, x, _, _ = plan
    table = worst.pairs(as_frame=True)
    before, after, labels, mass = worst.pairs()
    np.testing.assert_array_equal(table["before"].to_numpy(), before)
    np.testing.assert_array_equal(table["after"].to_numpy(), after)
    np.testing.assert_array_equal(table[("", "target")], labels)
    np.testing.assert_array_equal(table[("", "mass")], mass)
    assert mass.sum() == pytest.approx(1.0)
    assert table["before"].columns.tolist() == ["x0", "x1"]
    assert len(table) == 2 * len(x)
