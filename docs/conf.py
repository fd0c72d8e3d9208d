"""How Sphinx builds the pages: `make docs`. Sources are Markdown, here and beside what they describe."""

import importlib.metadata

project = "unseen_ray"
release = importlib.metadata.version("unseen-ray")
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "cluster/README.md",
]
exclude_patterns = [".*", "build", "runs", "data"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]
autodoc_typehints = "description"
default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "unseen_ray"
html_show_copyright = False
