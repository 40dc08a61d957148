"""The templates of pages, which bear on a result as code does, and their version."""

from __future__ import annotations

import re
from pathlib import Path

from resurgence.files import digest_of_text, read_text

SOURCE = Path(__file__).parents[1]  # the package
# those of CSS, Jinja and HTML, and whole lines of JavaScript
COMMENT = re.compile(r"/\*.*?\*/\n?|\{#.*?#\}\n?|<!--.*?-->\n?|^[ \t]*//[^\n]*\n", re.DOTALL | re.MULTILINE)


def templates(folder: str) -> dict[str, str]:
    """File name -> text without comments, of the templates in a folder of the package, such as figures/page."""
    files = sorted(path for path in (SOURCE / folder).iterdir() if path.suffix in (".html", ".css", ".js"))
    return {file.name: COMMENT.sub("", read_text(file)) for file in files}


def templates_version(folder: str, code: str = "") -> str:
    """16 hexadecimal digits that change when a template or the version of the code changes, but not with a comment."""
    return digest_of_text({"code": code, "templates": templates(folder)})[:16]
