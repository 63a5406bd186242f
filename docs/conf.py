"""Settings of the site: `make docs` builds it into build/docs with Sphinx."""

project = "recursia"
copyright = "the recursia authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "recursia"
exclude_patterns = ["conf.py"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
smartquotes = False  # quoted values of fields stay as they are typed
