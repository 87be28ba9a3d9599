"""How Sphinx makes the site: ``make docs``. Nothing is fetched, neither while it is made nor while it is read."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # generating.py, an extension of this site alone

import longtail

project = "longtail"
author = "the longtail contributors"
project_copyright = author
version = release = longtail.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generating"]
exclude_patterns = ["_build"]
root_doc = "index"
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4  # links such as ce.md#settings, as GitHub makes them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 90
add_module_names = False

# Types of other projects have no page here, and nothing is fetched to find theirs.
# Of ours, those that reference/ does not show.
nitpick_ignore_regex = [
    ("py:.*", r"(?!longtail\.).*"),
    (
        "py:class",
        r"longtail\.(config|evaluation\.scoring|models|data\.views|data\.prepare|data\.open|data\.reading\.image_files|processes\.sharing)\..*",
    ),
    ("py:class", r"longtail\.methods\..*Settings"),
]

html_theme = "furo"
html_title = f"longtail {release}"
html_static_path: list[str] = []
html_show_sourcelink = False
html_copy_source = False
pygments_style = "default"
pygments_dark_style = "monokai"
