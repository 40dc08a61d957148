"""The normal form of a name or prompt: two spellings of one normal form are one name to a reader, and mostly to CLIP.

CLIP's tokenizers ignore case and the kind and length of white space. That of transformers composes accents (NFC), that
of open_clip also narrows full-width letters (ftfy), so the form is the caseless compatibility form of the Unicode
standard (section 3.13, definition 146: NFKC and case folding).
"""

from __future__ import annotations

import unicodedata


def normal_form(text: str) -> str:
    """The text without case, composition, width and invisible characters, with single spaces."""
    if text.isascii():  # the same, and fast: a study has thousands of prompts
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFD", "".join(c for c in text if unicodedata.category(c) != "Cf"))
    for _ in range(2):  # a folded character may compose to one that folds again
        folded = unicodedata.normalize("NFKC", folded.casefold())
    return " ".join(folded.split())
