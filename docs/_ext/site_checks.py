"""What the finished site must keep: every link and anchor leads somewhere, nothing is fetched.

A picture without alternative text, a dead link and a request that leaves the folder are warnings
that name the page, and ``sphinx-build -W`` fails on them.
"""

import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docutils import nodes
from sphinx.util import logging

log = logging.getLogger(__name__)

#: What a browser fetches by itself, and the attribute that says from where.
FETCHED = {
    "img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src",
}  # fmt: skip


#: Thumbnails of the gallery stand beside their title.
THUMBNAIL = "_thumb.png"


class Page(HTMLParser):
    """Links, requests and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self.anchors |= {said[key] for key in ("id", "name") if said.get(key)}
        if tag == "a" and said.get("href"):
            self.links.append(said["href"])
        relation = said.get("rel") or ""
        if tag in FETCHED and said.get(FETCHED[tag]) and "canonical" not in relation:
            self.fetched.append(said[FETCHED[tag]])
        if tag == "img" and not said.get("alt") and not said.get("src", "").endswith(THUMBNAIL):
            self.without_text.append(said.get("src") or "?")


def _reached(fragment: str, page: Page) -> bool:
    return not fragment or unquote(fragment) in page.anchors | {"top"}


def faults(root: Path) -> list[str]:
    """Every dead link, request that leaves the folder and picture without text, by page."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in root.rglob("*.html")
        if "_static" not in path.relative_to(root).parts  # templates of the theme
    }
    found = []
    for path, page in pages.items():
        name = path.relative_to(root.resolve()).as_posix()
        found += [f"{name}: picture without alternative text: {src}" for src in page.without_text]
        for target in page.fetched:
            parts = urlsplit(target)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                found.append(f"{name}: asks for {target}, outside its folder")
            elif not (path.parent / unquote(parts.path)).exists():
                found.append(f"{name}: lacks the file {target}")
        for target in page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not place.exists():
                found.append(f"{name}: dead link {target}")
            elif place in pages and not _reached(parts.fragment, pages[place]):
                found.append(f"{name}: no anchor {target}")
    return sorted(set(found))


def strict(gallery_conf: dict, name: str, when: str) -> None:
    """Make warnings errors while an example runs: a reader should see none."""
    if when == "before":
        warnings.simplefilter("error")
    else:
        warnings.resetwarnings()


def _pictures(app, doctree) -> None:
    for node in doctree.findall(nodes.image):
        if not node.get("alt") and not node["uri"].endswith(THUMBNAIL):
            log.warning("picture without alternative text: %s", node["uri"], location=node)


def _finished(app, exception) -> None:
    if exception is None and app.builder.name == "html":
        for fault in faults(Path(app.outdir)):
            log.warning(fault)


def setup(app):
    """Register the checks."""
    app.connect("doctree-read", _pictures)
    app.connect("build-finished", _finished, priority=900)
    return {"parallel_read_safe": True}
