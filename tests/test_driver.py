from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch

from drojko._driver import Status, all_finite, run
from drojko.exceptions import NonFiniteError


class State(NamedTuple):
    x: float
    value: float


@dataclass
class Descent:
    """Gradient descent on x^2 / 2: x shrinks by (1 - rate) in each step."""

    rate: float = 0.5
    tol: float = 1e-6
    nan_at: int | None = None
    interrupt_at: int | None = None
    calls: int = 0

    def init(self, problem):
        return State(problem, problem**2 / 2)

    def step(self, state):
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        x = state.x - self.rate * state.x
        if self.calls == self.nan_at:
            x = float("nan")
        return State(x, x**2 / 2)

    def terminate(self, state):
        return Status.CONVERGED if abs(state.x) < self.tol else None


def test_converges_to_the_closed_form():
    solver = Descent()
    outcome = run(solver, solver.init(1.0), max_iter=100)
    assert outcome.status is Status.CONVERGED
    assert outcome.n_iter == 20  # the first k with 2^-k < 1e-6
    assert outcome.state.x == 0.5**20
    assert outcome.best_state is outcome.state
    assert "20 iterations" in outcome.message
    assert Status.CONVERGED.advice in outcome.message


def test_iteration_limit():
    outcome = run(Descent(), State(1.0, 0.5), max_iter=3)
    assert (outcome.status, outcome.n_iter, outcome.state.x) == ("max_iter", 3, 0.125)
    assert "raise max_iter" in outcome.message


def test_no_iterations_return_the_first_state():
    first = State(1.0, 0.5)
    outcome = run(Descent(), first, max_iter=0, best=lambda state: state.value)
    assert outcome.state is first
    assert outcome.best_state is first
    assert outcome.status == "max_iter"
    assert outcome.history == []


def test_converged_on_the_last_iteration_is_converged():
    assert run(Descent(), State(1.0, 0.5), max_iter=20).status is Status.CONVERGED


@pytest.mark.promise(13)
def test_time_limit_keeps_the_best_state():
    outcome = run(Descent(), State(1.0, 0.5), max_iter=100, max_time=0.0)
    assert (outcome.status, outcome.n_iter) == ("max_time", 0)
    slow = run(
        Descent(tol=0.0),
        State(1.0, 0.5),
        max_iter=10**9,
        max_time=0.02,
        best=lambda state: state.value,
    )
    assert slow.status is Status.MAX_TIME
    assert slow.n_iter > 0
    assert slow.seconds >= 0.02
    assert slow.best_state.value <= 0.5


@pytest.mark.promise(13)
def test_callback_sees_every_state_and_stops():
    seen = []

    def callback(state):
        seen.append(state.x)
        return len(seen) == 3

    outcome = run(Descent(), State(1.0, 0.5), max_iter=100, callback=callback)
    assert seen == [0.5, 0.25, 0.125]
    assert (outcome.status, outcome.n_iter) == ("callback", 3)


def test_callback_sees_the_converged_state_and_cannot_overrule_it():
    seen = []
    outcome = run(Descent(tol=0.3), State(1.0, 0.5), max_iter=9, callback=lambda s: seen.append(s))
    assert seen[-1] is outcome.state
    stopped = run(Descent(tol=0.9), State(1.0, 0.5), max_iter=9, callback=lambda s: True)
    assert stopped.status is Status.CONVERGED


@pytest.mark.promise(13)
@pytest.mark.parametrize("where", ["step", "callback"])
def test_interrupt_keeps_the_best_state(where):
    def callback(state):
        if where == "callback" and state.x == 0.125:
            raise KeyboardInterrupt

    solver = Descent(interrupt_at=4 if where == "step" else None)
    outcome = run(
        solver, State(1.0, 0.5), max_iter=100, callback=callback, best=lambda state: state.value
    )
    assert (outcome.status, outcome.n_iter) == ("interrupted", 3)
    assert outcome.state.x == 0.125
    assert outcome.best_state is outcome.state


@pytest.mark.promise(7)
def test_non_finite_carries_the_last_finite_state():
    with pytest.raises(NonFiniteError, match="Iteration 4 is not finite") as caught:
        run(Descent(nan_at=4), State(1.0, 0.5), max_iter=100)
    assert caught.value.last_state == State(0.125, 0.125**2 / 2)
    with pytest.raises(NonFiniteError, match="first state") as caught:
        run(Descent(), State(float("inf"), 0.0), max_iter=100)
    assert caught.value.last_state is None


def test_best_state_in_the_middle():
    # x overshoots: |1 - 2.5| = 1.5 grows; the first state is the best one.
    first = State(1.0, 0.5)
    outcome = run(Descent(rate=2.5), first, max_iter=5, best=lambda state: state.value)
    assert outcome.best_state is first
    assert outcome.state.x == -(1.5**5)


def test_last_state_counts_and_wins_a_tie():
    outcome = run(Descent(), State(1.0, 0.5), max_iter=5, best=lambda state: state.value)
    assert outcome.best_state is outcome.state
    tie = run(Descent(), State(1.0, 0.5), max_iter=5, best=lambda state: 1.0)
    assert tie.best_state is tie.state


def test_nan_key_never_beats_a_number():
    keys = iter([float("nan"), 2.0, 1.0, float("nan"), 3.0])
    outcome = run(Descent(), State(1.0, 0.5), max_iter=4, best=lambda state: next(keys))
    assert outcome.best_state.x == 0.25


def test_history_has_the_solvers_records():
    class Recorded(Descent):
        def record(self, state):
            return {"value": state.value} if state.x < 0.5 else {}

    outcome = run(Recorded(), State(1.0, 0.5), max_iter=3)
    columns = outcome.columns()
    assert list(columns) == ["iteration", "seconds", "value"]
    np.testing.assert_array_equal(columns["iteration"], [1, 2, 3])
    np.testing.assert_array_equal(columns["value"], [np.nan, 0.25**2 / 2, 0.125**2 / 2])
    assert (np.diff(columns["seconds"]) >= 0).all()


def test_solver_may_say_what_finite_means():
    class Bracketed(Descent):
        def finite(self, state):
            return state.x == state.x  # an infinite value is legal here

    outcome = run(Bracketed(tol=0.3), State(1.0, float("inf")), max_iter=5)
    assert outcome.status is Status.CONVERGED


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_all_finite_looks_into_every_container(bad):
    @dataclass
    class Holder:
        inner: object
        name: str = "text"

    wrap = [
        lambda v: v,
        lambda v: np.float32(v),
        lambda v: np.array([1.0, v]),
        lambda v: torch.tensor([1.0, v]),
        lambda v: {"a": [v]},
        lambda v: Holder((1, v)),
        lambda v: State(0.0, v),
    ]
    for kind in wrap:
        assert all_finite(kind(1.0))
        assert not all_finite(kind(bad))
    assert all_finite({"n": 10**400, "label": "nan", "mask": np.array([True]), "none": None})
    module = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1)
    with torch.no_grad():
        module.weight.fill_(0.0)
        module.bias.fill_(0.0)
        assert all_finite(module)
        module.bias.fill_(bad)
        assert not all_finite(module)


def test_every_status_has_advice_and_equals_its_string():
    names = {"converged", "max_iter", "max_time", "stalled", "unbounded", "callback", "interrupted",
             "non_finite"}  # fmt: skip
    assert {str(status) for status in Status} == names
    assert all(status.advice.endswith(".") for status in Status)
