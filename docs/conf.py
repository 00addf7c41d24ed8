"""Settings of the documentation site: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.domains.python import PyObject

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "blockwise"
version = release = metadata.version("blockwise")
project_copyright = "the blockwise contributors"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "cli_reference",
    "config_reference",
    "notebook_pages",
]
exclude_patterns = ["_build", "_ext"]

# Markdown
myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3
# notebooks are shown as they are kept; the tests run them
nb_execution_mode = "off"
nb_merge_streams = True

# docstrings: single backticks are code, attributes of dataclasses are listed once
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 88

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "blockwise"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_copy_source = False

# a property's docstring is prose: napoleon would take what comes before a colon for its type
_prose: dict[str, list[str]] = {}


def keep_prose(_app: Any, what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Remember the docstring of a property that has no sections."""
    if what == "property" and not any(line.rstrip() in ("Raises:", "Returns:") for line in lines):
        _prose[name] = list(lines)


def put_prose_back(_app: Any, _what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Undo what napoleon made of it."""
    lines[:] = _prose.pop(name, lines)


def setup(app: Any) -> None:
    """Run before and after napoleon, whose own priority is 500; call attributes what they are."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-docstring", keep_prose, priority=400)
    app.connect("autodoc-process-docstring", put_prose_back, priority=600)
