"""Generated parts of pages, each between `<!-- NAME -->` and `<!-- end of NAME -->`.

python benchmarks/coverage.py | python docs/parts.py docs/intervals.md coverage     write what a command prints
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path


def filled(page: Path, parts: Mapping[str, str]) -> str:
    """The text of a page with new parts between their marks.

    Raises:
        ValueError: a page without exactly one pair of the marks of a part.
    """
    content = page.read_text(encoding="utf-8")
    for name, text in parts.items():
        first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
        new = f"{first}\n{text}\n{last}"
        content, number_of_marks = re.subn(f"{first}.*?{last}", lambda _, new=new: new, content, flags=re.DOTALL)
        if number_of_marks != 1:
            raise ValueError(f"{page} has {number_of_marks} pairs of marks; write one: {first} and {last}")
    return content


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Write new parts between their marks in a page."""
    page.write_text(filled(page, parts), encoding="utf-8")


def main() -> None:
    """Write standard input, which must not be empty, as one part of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    text = sys.stdin.read().strip("\n")
    if not text:  # the command before the pipe has failed
        parser.error(f"standard input is empty, {args.page} stays as it is")
    fill(args.page, {args.name: text})


if __name__ == "__main__":
    main()
