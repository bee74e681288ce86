"""The site: ``pip install -e ".[docs]" && sphinx-build -W -b html docs docs/_build/html``.

Nothing is fetched: formulas are drawn by a MathJax that a Python package brings, and the site asks
for no file outside its own folder (``_ext/site_checks.py`` fails the build otherwise).
"""

import os
import shutil
import sys
from importlib.metadata import files
from pathlib import Path

import matplotlib as mpl

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ["DROJKO_EXAMPLES_SHORT"] = "1"  # the gallery and the notebooks run in their short form
os.environ.setdefault("OMP_NUM_THREADS", "1")
mpl.use("Agg")

import drojko  # noqa: E402

project = "drojko"
author = copyright = "The drojko developers"
version = release = drojko.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "matplotlib.sphinxext.plot_directive",
    "markdown_copies",
    "site_checks",
]
exclude_patterns = ["_build", "_ext", "_templates", "gallery/*.ipynb", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

# Pages in Markdown -------------------------------------------------------------------------------
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # outputs are those of the package as it stands
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_ipywidgets_js = {}  # the default is fetched from elsewhere
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

# Formulas: one file, copied from the package that brings it --------------------------------------
_mathjax = next(f for f in files("django-static-mathjax") or () if f.match("es5/tex-svg.js"))
(HERE / "_build" / "static").mkdir(parents=True, exist_ok=True)
shutil.copy(str(_mathjax.locate()), HERE / "_build" / "static" / "mathjax.js")
mathjax_path = "mathjax.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}

# Public names ------------------------------------------------------------------------------------
autosummary_generate = True
autosummary_ignore_module_all = False
# Names of the package itself are documented once, in their rooms.
autosummary_context = {
    "home": {
        name: f"{room.removeprefix('drojko.')}.{name}" for name, room in drojko._HOME.items()
        if room.removeprefix("drojko.") in drojko.__all__
    }
}  # fmt: skip
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
numpydoc_class_members_toctree = False
add_module_names = False

# Pictures ----------------------------------------------------------------------------------------
plot_formats = [("png", 110)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False
# Examples leave files beside themselves: they run in a copy.
shutil.copytree(ROOT / "examples", HERE / "_build" / "examples", dirs_exist_ok=True)
sphinx_gallery_conf = {
    "examples_dirs": str(HERE / "_build" / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "copyfile_regex": "",
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "reset_modules": ("matplotlib", "site_checks.strict"),
    "reset_modules_order": "both",
    "show_memory": False,
    "plot_gallery": True,
    "write_computation_times": False,
    "show_signature": False,
    "matplotlib_animations": False,
}

# The theme ---------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
markdown_summary = "Distributionally robust models, decisions and audits, each with a certificate."
html_title = f"drojko {release}"
html_static_path = ["_static", "_build/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_context = {"default_mode": "auto"}
#: Pages without others below them have nothing to list at the left.
html_sidebars = {name: [] for name in ("index", "start")}
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_nav_level": 1,
    "secondary_sidebar_items": ["page-toc", "markdown-link"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def _skipped(app, what, name, obj, skip, options):
    """Leave out what scikit-learn writes for metadata routing; its own site explains it."""
    return True if name.startswith("set_") and name.endswith("_request") else skip


def setup(app):
    """Leave members out that are not ours."""
    app.connect("autodoc-skip-member", _skipped)
