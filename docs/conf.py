"""The documentation site: Sphinx with MyST pages, numpydoc docstrings and the PyData theme."""

from __future__ import annotations

from fairtune import __version__

project = "fairtune"
author = "the fairtune authors"
version = release = __version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
]
exclude_patterns = ["_build", "generated/*.rst.bak"]
myst_heading_anchors = 3
# tests/test_notebook.py runs the notebook; `-D nb_execution_mode=force` shows its output as well.
nb_execution_mode = "off"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
autosummary_generate = True
autodoc_typehints = "none"  # signatures have them; numpydoc says what they mean
autodoc_inherit_docstrings = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
html_theme = "pydata_sphinx_theme"
html_title = "fairtune"
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "navbar_center": [],  # the sidebar has it all
}
html_sidebars = {"**": ["globaltoc.html"]}
