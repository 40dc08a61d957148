"""Numbers with their noun."""

from __future__ import annotations

import pytest

from resurgence.config.counting import counted


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ["image"], "0 images"),
        (1, ["image"], "1 image"),
        (2, ["image"], "2 images"),
        (1, ["entry", "entries"], "1 entry"),
        (3, ["entry", "entries"], "3 entries"),
    ],
)
def test_one_is_singular(number: int, nouns: list[str], text: str) -> None:
    assert counted(number, *nouns) == text
