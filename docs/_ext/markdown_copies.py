"""A Markdown copy beside each page (``start.html``: ``start.md``), and ``llms.txt``, their list.

The copies are made from what the page holds after includes, signatures, pictures and outputs of
code are in place, so that a reader who cannot see HTML loses nothing but the layout.
"""

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

SKIPPED = (
    nodes.comment, nodes.target, nodes.substitution_definition, nodes.system_message,
    addnodes.toctree, addnodes.index, addnodes.only, nodes.footnote_reference,
)  # fmt: skip


def _indented(text: str, first: str) -> str:
    pad = " " * len(first)
    lines = text.split("\n")
    return "\n".join([first + lines[0], *(pad + line if line else line for line in lines[1:])])


class Writer:
    """Markdown of a node; what it does not know is the text of its children."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth

    def write(self, node: nodes.Node) -> str:
        """Return the Markdown of one node."""
        if isinstance(node, SKIPPED):
            return ""
        for kind in type(node).__mro__:
            method = getattr(self, f"_{kind.__name__}", None)
            if method is not None:
                return method(node)
        return self._children(node)

    def _children(self, node) -> str:
        inline = isinstance(node, nodes.TextElement)
        parts = [self.write(child) for child in node.children]
        return "".join(parts) if inline else "\n\n".join(p for p in parts if p.strip())

    def _Text(self, node):
        return node.astext()

    def _section(self, node):
        return Writer(self.depth + 1)._children(node)

    def _title(self, node):
        return "#" * max(self.depth, 1) + " " + self._children(node)

    def _rubric(self, node):
        return f"**{self._children(node)}**"

    def _emphasis(self, node):
        return f"*{self._children(node)}*"

    def _strong(self, node):
        return f"**{self._children(node)}**"

    def _literal(self, node):
        return f"`{node.astext()}`"

    def _math(self, node):
        return f"${node.astext()}$"

    def _math_block(self, node):
        return f"$$\n{node.astext().strip()}\n$$"

    def _literal_block(self, node):
        language = node.get("language", "")
        fence = {"ipython3": "python", "default": "", "none": "", "myst-ansi": ""}.get(
            language, language
        )
        return f"```{fence}\n{node.astext().rstrip()}\n```"

    def _reference(self, node):
        target = node.get("refuri") or ""
        text = self._children(node)
        if not target or "://" in target:
            return f"[{text}]({target})" if target else text
        page, _, anchor = target.partition("#")
        page = page.removesuffix(".html") + ".md" if page.endswith(".html") else page
        return f"[{text}]({page}{'#' * bool(anchor)}{anchor})"

    def _image(self, node):
        return f"![{node.get('alt', '')}]({Path(node['uri']).name})"

    def _bullet_list(self, node):
        return "\n".join(_indented(self._children(item), "- ") for item in node.children)

    def _enumerated_list(self, node):
        return "\n".join(
            _indented(self._children(item), f"{number}. ")
            for number, item in enumerate(node.children, start=1)
        )

    def _block_quote(self, node):
        return "\n".join("> " + line for line in self._children(node).split("\n"))

    def _definition(self, node):
        return _indented(self._children(node), ": ")

    def _desc_signature(self, node):
        return f"`{node.astext()}`"

    def _desc_content(self, node):
        return self._children(node)

    def _raw(self, node):
        """Return the tables of raw HTML: frames in the output of code."""
        rows = re.findall(r"<tr.*?</tr>", node.astext(), re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        return self._rows([[html.unescape(re.sub("<[^>]*>", "", c)) for c in row] for row in cells])

    def _table(self, node):
        rows = []
        for row in node.findall(nodes.row):
            rows.append([self._children(entry) for entry in row.children])
        return self._rows(rows)

    def _rows(self, rows):
        if not rows:
            return ""
        rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _copies(app, exception) -> None:
    if exception is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    titles = app.env.titles
    lines = [f"# {app.config.project}", "", f"> {app.config.markdown_summary}", "", "## Pages", ""]
    for name in sorted(app.env.found_docs, key=lambda name: (name.count("/"), name)):
        doctree = app.env.get_and_resolve_doctree(name, app.builder, tags=app.tags)
        target = out / f"{name}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Writer().write(doctree).strip() + "\n", encoding="utf-8")
        lines.append(f"- [{titles[name].astext()}]({name}.md)")
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app):
    """Register the copies."""
    app.add_config_value("markdown_summary", "", "html")
    app.connect("build-finished", _copies, priority=500)
    return {"parallel_read_safe": True}
