"""The section of the page on how the groups of an audit differ."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from drojko import audit, shift_report
from drojko.ambiguity import KL
from drojko.auditing.reporting.environments import environments_of
from drojko.auditing.reporting.page import render


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(240, 2)), columns=["age", "dose"])
    place = np.repeat(["<b>A</b>", "B", "C"], 80)
    move = np.repeat([-2.0, 0.0, 2.0], 80)
    y = np.where(X["age"] + move + rng.logistic(size=240) > 0, "ill", "well")
    return LogisticRegression().fit(X, y), X, y, place


def page(made, groups):
    model, X, y, _ = made
    report = audit(model, X, y, KL(), radii=[0.1], groups=groups, reference="empirical")
    return render({report.name: report}), report


def test_the_section_says_what_the_report_says(made):
    _, X, y, place = made
    text, report = page(made, place)
    own = shift_report(X, y, place, random_state=0)
    found = environments_of(report.problem)
    assert found.recommendation == own.recommendation == "none of these"
    pd.testing.assert_frame_equal(found.differences, own.differences)
    section = text.split('<section id="environments"')[1].split("</section>")[0]
    assert "none of these" in section
    assert "&lt;b&gt;A&lt;/b&gt;" in section
    assert "<b>A</b>" not in section
    assert "fifty labels" in section
    assert section.count("<tbody>") == 3


def test_without_groups_there_is_none_and_where_nothing_is_known_it_says_why(made):
    assert 'id="environments"' not in page(made, None)[0]
    members = np.column_stack([np.ones(240), np.arange(240) % 2])
    for groups, words in ((members, "overlap"), (np.ones(240), "one environment")):
        section = page(made, groups)[0].split('id="environments"')[1].split("</section>")[0]
        assert words in section
        assert "<table" not in section
