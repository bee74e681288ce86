"""How many files a linear fit crosses: few enough to be read in one sitting."""

import pytest

from tests._walk import SETS, crossed, fit, walk

#: Not reached yet; strict, so that whoever reaches it takes the mark away.
not_yet = pytest.mark.xfail(strict=True, reason="the families' walks are being shortened")


@not_yet
@pytest.mark.parametrize("family", SETS)
def test_a_linear_fit_crosses_at_most_25_files(family):
    calls = walk(fit(SETS[family]))
    assert len(calls) <= 25, "\n".join(sorted(calls))


def test_calls_are_counted_by_the_file_that_is_called():
    from drojko.losses import get_loss

    with crossed() as calls:
        get_loss("hinge")
        sorted([3, 1], key=lambda x: -x)
    assert calls == {"losses/__init__.py": 1}
