"""Whether a text names a concept: one rule for captions of pictures, implicit captions, and pictures that are fetched.

A text names a word where the whole word stands in it, or its English plural, in any case: "two Ships" names ship,
"shipping" does not, and "carpet" does not name car. Between the parts of a name may stand spaces, hyphens or
underscores, as in the names of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from resurgence.config.spelling import normal_form

IRREGULAR = {"person": "people", "child": "children", "mouse": "mice", "goose": "geese", "foot": "feet",
             "tooth": "teeth", "ox": "oxen"}  # fmt: skip
PARTS = re.compile(r"[\s_-]+")


def named_word(text: str, words: Iterable[str]) -> str | None:
    """The first of some words that a text names; None: it names none."""
    whole = normal_form(text)
    return next((word for word in words if (pattern := word_pattern(word)) and pattern.search(whole)), None)


@lru_cache(maxsize=4096)
def word_pattern(word: str) -> re.Pattern[str] | None:
    """What finds a word and its plurals in the normal form of a text; None for a word without a letter or digit."""
    *first, last = PARTS.split(normal_form(word).strip(" _-"))
    if not re.search(r"\w", last):
        return None
    ends = "|".join(map(re.escape, (last, *plurals(last))))
    before = "".join(rf"{re.escape(part)}[\s_-]+" for part in first)
    return re.compile(rf"(?<![^\W_]){before}(?:{ends})(?![^\W_])")


def plurals(noun: str) -> tuple[str, ...]:
    """The plurals that an English noun in small letters may have; a name in -y or -f has two."""
    found = [f"{noun}s"]
    if re.search(r"(s|x|z|ch|sh|o)$", noun):
        found.append(f"{noun}es")
    if re.search(r"[^aeiou]y$", noun):
        found.append(f"{noun[:-1]}ies")
    if match := re.search(r"[^f]fe?$", noun):
        found.append(f"{noun[: match.start() + 1]}ves")
    for single, several in (*IRREGULAR.items(), ("man", "men")):
        if noun == single or (single == "man" and noun.endswith(single)):
            found.append(noun.removesuffix(single) + several)
    return tuple(found)
