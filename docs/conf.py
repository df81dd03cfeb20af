"""Settings of the site. `make docs` builds it; any warning is an error."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

import generate  # noqa: E402

import lethe  # noqa: E402

project = "lethe"
author = "The lethe contributors"
version = release = lethe.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# Modules beside the pages, and pieces that other pages include.
exclude_patterns = ["_build", "_generated"]

html_theme = "furo"
html_title = "lethe"
html_show_sphinx = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# Docstrings mark names of code with single backticks.
default_role = "code"
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """Keeps |x| in a docstring an absolute value, which reStructuredText would replace."""
    for number, line in enumerate(lines):
        code = line.split("`")
        code[::2] = [text.replace("|", r"\|") for text in code[::2]]
        lines[number] = "`".join(code)


def setup(app) -> None:
    """Makes the generated pages before Sphinx looks for pages."""
    app.connect("builder-inited", lambda _: generate.main(DOCS))
    app.connect("autodoc-process-docstring", escape_bars)
