"""How many files a linear fit crosses: few enough to be read in one sitting."""

import re

import pytest

from tests._walk import ROOT, SETS, crossed, fit, walk


@pytest.mark.parametrize("family", SETS)
def test_a_linear_fit_crosses_at_most_25_files(family):
    calls = walk(fit(SETS[family]))
    assert len(calls) <= 25, "\n".join(sorted(calls))


@pytest.mark.parametrize("family", SETS)
def test_a_linear_fit_crosses_no_more_files_than_the_readme_says(family):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (most,) = re.findall(rf"^\| {family} \| (\d+) \|", text, re.MULTILINE)
    calls = walk(fit(SETS[family]))
    assert len(calls) <= int(most), "\n".join(sorted(calls))


def test_calls_are_counted_by_the_file_that_is_called():
    from drojko.losses import get_loss

    with crossed() as calls:
        get_loss("hinge")
        sorted([3, 1], key=lambda x: -x)
    assert set(calls) == {"losses/__init__.py"}
