"""Mixtures of candidates within a budget: the linear program they solve."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from drojko.auditing.attacks.pool import Pool, envelope


def problem(seed, k, n):
    rng = np.random.default_rng(seed)
    cost = np.vstack([np.zeros(n), rng.exponential(size=(k, n))])
    risk = np.vstack([rng.normal(size=n), 2 * rng.normal(size=(k, n))])
    return cost, risk, rng.dirichlet(np.ones(n))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 8), st.floats(0, 2))
def test_the_envelope_is_the_linear_program(seed, k, n, budget):
    cost, risk, w = problem(seed, k, n)
    found = envelope(*(torch.as_tensor(part) for part in (cost, risk, w)), budget)
    rows = np.kron(np.ones((1, k + 1)), np.eye(n))
    exact = linprog(
        -(w * risk).ravel(), A_ub=(w * cost).reshape(1, -1), b_ub=[budget], A_eq=rows,
        b_eq=np.ones(n), bounds=(0, 1),
    )  # fmt: skip
    assert abs(found.risk + exact.fun) <= 1e-7 * (1 + abs(exact.fun))
    assert found.cost <= budget * (1 + 1e-9) + 1e-12
    assert 0 <= found.share <= 1


@given(st.integers(0, 10**6))
def test_more_budget_is_never_less(seed):
    cost, risk, w = (torch.as_tensor(part) for part in problem(seed, 4, 6))
    values = [envelope(cost, risk, w, b).risk for b in np.linspace(0, 3, 13)]
    assert (np.diff(values) >= -1e-12).all()
    assert (np.diff(values, 2) <= 1e-9).all()  # concave in the budget


def test_what_is_not_finite_is_never_chosen():
    pool, w = Pool(), torch.full((2,), 0.5, dtype=torch.float64)
    x = torch.zeros(2, 1, dtype=torch.float64)
    y, zero = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.float64)
    pool.add(x, y, zero, zero, "stay")
    bad = torch.tensor([torch.nan, torch.inf], dtype=torch.float64)
    pool.add(x + 1, y, zero, bad, "learned")
    pool.add(x + 2, y, torch.full_like(zero, torch.inf), zero + 5, "learned")
    assert pool.plan(w, 10.0).risk == 0.0
    assert not pool.take(pool.plan(w, 10.0).low)[0].any()
