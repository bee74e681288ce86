"""What fails the build of the site is found, and named."""

import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason='needs pip install -e ".[docs]"')
EXTENSIONS = Path(__file__).parents[2] / "docs" / "_ext"


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    import site_checks

    yield site_checks
    sys.modules.pop("site_checks")


def test_dead_links_requests_and_pictures_without_text_are_named(checks, tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "good.html").write_text('<h1 id="top-of">x</h1><img src="a.png" alt="a picture">')
    (tmp_path / "bad.html").write_text(
        '<a href="good.html#top-of">fine</a><a href="good.html#no">x</a><a href="no.html">x</a>'
        '<img src="a.png"><script src="//elsewhere/x.js"></script><link href="no.css">'
        '<a href="#here">x</a><a href="mailto:a@b">fine</a><img src="data:image/png;x" alt="y">'
    )
    assert checks.faults(tmp_path) == [
        "bad.html: asks for //elsewhere/x.js, outside its folder",
        "bad.html: dead link no.html",
        "bad.html: lacks the file no.css",
        "bad.html: no anchor #here",
        "bad.html: no anchor good.html#no",
        "bad.html: picture without alternative text: a.png",
    ]


def test_a_warning_of_an_example_is_an_error(checks):
    with warnings.catch_warnings():
        checks.strict({}, "plot_x.py", "before")
        with pytest.raises(UserWarning, match="seen"):
            warnings.warn("seen", stacklevel=1)


def test_markdown_copies_keep_what_a_page_says(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    from docutils import nodes
    from markdown_copies import Writer

    section = nodes.section("", nodes.title("", "Head"), nodes.paragraph("", "Text."))
    item = nodes.list_item("", nodes.paragraph("", "one"))
    section += nodes.bullet_list("", item)
    section += nodes.math_block("", "x^2\n")
    section += nodes.literal_block("", "a = 1\n", language="ipython3")
    section += nodes.raw("", "<table><tr><th>a</th></tr><tr><td>1 &lt; 2</td></tr></table>")
    section += nodes.paragraph("", "", nodes.reference("", "link", refuri="b.html#c"))
    assert Writer().write(section) == (
        "# Head\n\nText.\n\n- one\n\n$$\nx^2\n$$\n\n```python\na = 1\n```\n\n"
        "| a |\n| --- |\n| 1 < 2 |\n\n[link](b.md#c)"
    )
    sys.modules.pop("markdown_copies")
