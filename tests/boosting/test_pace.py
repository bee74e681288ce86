"""The damping of boosting's steps, round by round."""

from hypothesis import given
from hypothesis import strategies as st

from drojko.boosting.pace import Pace

RISKS = st.lists(st.floats(0.1, 2.0), min_size=1, max_size=60)


def _after(first, risks):
    pace = Pace.first(first)
    for risk in risks:
        pace = pace.after(risk)
    return pace


def test_it_halves_with_every_record_until_steps_are_full():
    risks = [1.0 - 0.01 * k for k in range(1, 12)]
    assert [_after(1.0, risks[:k]).damped for k in (0, 1, 2, 10, 11)] == [1024, 512, 256, 1, 1]
    assert not _after(1.0, risks[:10]).starting


def test_small_rises_at_the_start_are_let_pass_and_slow_the_growth():
    pace = _after(1.0, [1.0001, 1.0002, 1.0003])
    assert pace.damped == 1024
    assert pace.growth < 2.0
    assert pace.after(0.999).damped > 512


def test_a_rise_beyond_a_thousandth_or_after_a_full_step_doubles_it():
    assert _after(1.0, [1.01]).damped == 2048
    full = _after(1.0, [1.0 - 0.01 * k for k in range(1, 12)])
    assert full.after(full.record + 1e-9).damped == 2


def test_falls_that_are_no_record_change_nothing():
    pace = _after(1.0, [1.01])
    assert pace.after(1.005).damped == pace.damped


@given(RISKS)
def test_it_stays_between_a_full_step_and_its_most(risks):
    pace = _after(1.0, risks)
    assert 1.0 <= pace.damped <= 2.0**20
    assert 1.1 <= pace.growth <= 2.0
    assert 0.0 <= pace.kept <= 0.8
    assert pace.record == min(1.0, *risks)


@given(RISKS)
def test_ratios_are_averaged_before_the_first_full_step_only(risks):
    pace = _after(1.0, risks)
    assert (pace.kept > 0) == pace.starting
