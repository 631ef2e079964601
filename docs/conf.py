"""Configuration of Sphinx: `python -m sphinx -W docs site` makes the documentation's site.

The pages are Markdown that GitHub shows as well. What they link to outside of `docs` is not on the site: such links
lead to the repository.
"""

import os
import re
from pathlib import Path
from typing import Any, Final

import llm

project = "d0ttino"
author = "The d0ttino maintainers"
copyright = author  # the name is Sphinx's
version = release = llm.__version__

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["examples"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# What is typed, without the prompt and without what is printed.
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "d0ttino"
html_theme_options = {
    "source_repository": "https://github.com/d0ttino/d0ttino/",
    "source_branch": "main",
    "source_directory": "docs/",
}

DOCS: Final = Path(__file__).parent.resolve()
REPOSITORY: Final = "https://github.com/d0ttino/d0ttino/blob/main/"
_LINK: Final = re.compile(r"(?<=\]\()(?P<path>\.\.?/[^)#\s]*|[\w.][\w./-]*)(?P<anchor>#[^)\s]*)?(?=\))")


def outside_links(text: str, page: Path) -> str:
    """Return a page whose relative links out of `docs` lead to the repository.

    Args:
        text: the page, in Markdown.
        page: its path.
    """

    def absolute(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / match["path"]))
        if target.is_relative_to(DOCS) and not target.is_dir():
            return match[0]
        return REPOSITORY + target.relative_to(DOCS.parent).as_posix() + (match["anchor"] or "")

    return _LINK.sub(absolute, text)


def setup(app: Any) -> None:
    """Have Sphinx rewrite each page that it reads."""

    def rewrite(app: Any, docname: str, source: list[str]) -> None:
        source[0] = outside_links(source[0], Path(app.env.doc2path(docname)))

    app.connect("source-read", rewrite)
