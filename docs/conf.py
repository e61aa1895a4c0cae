"""The documentation as a site: mountscripts/site builds it."""

from __future__ import annotations

import inaccfs

project = "inaccfs"
author = "the authors of inaccfs"
version = release = inaccfs.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_argparse_cli",
]
html_theme = "furo"
html_title = f"inaccfs {version}"

# Pages link to headings of each other as GitHub names them.
myst_heading_anchors = 4
# The files that pages link to and that are no pages: programs, pictures.
html_extra_path = ["client.c"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Names of types are long; the reader wants the last part.
python_use_unqualified_type_names = True
