"""Which texts name a concept."""

from __future__ import annotations

import pytest

from resurgence.config.naming import named_word

NAMED = [
    ("two ships in the harbour", "ship"), ("SHIPS on the water", "ship"), ("a Ship", "ship"), ("a ship's bow", "ship"),
    ("ship", "Ship"), ("the (ship)", "ship"), ("a_red_ships_3", "ship"), ("churches at night", "church"),
    ("two buses", "bus"), ("foxes", "fox"), ("hot potatoes", "potato"), ("ladies", "lady"), ("toys", "toy"),
    ("two Kennedys", "Kennedy"), ("women in a street", "woman"), ("Firemen", "fireman"),
    ("nude  people", "nude person"),
    ("wolves", "wolf"), ("roofs", "roof"), ("cassette-players", "cassette player"),
    ("cassette player", "cassette-player"),
    ("by Van\u00a0Gogh", "van gogh"), ("Van Goghs", "Van Gogh"), ("two R2-D2", "r2-d2"), ("C++ code", "C++"),
    ("\uff33\uff48ip", "ship"),
]  # fmt: skip
NOT_NAMED = [
    ("shipping containers", "ship"), ("a carpet", "car"), ("he cares", "car"), ("steamship", "ship"),
    ("planes", "plan"), ("an archer", "arch"), ("the van", "Van Gogh"), ("", "ship"), ("a toies", "toy"),
    ("midships", "ship"),
    ("anything", ""), ("anything at all", "-"), ("human", "man"), ("shipes", "ship"), ("ship2", "ship"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "word"), NAMED)
def test_a_text_names_a_word_by_itself_or_its_plural_in_any_case(text, word):
    assert named_word(text, ["zebra", word]) == word


@pytest.mark.parametrize(("text", "word"), NOT_NAMED)
def test_a_word_within_another_is_not_named(text, word):
    assert named_word(text, [word]) is None
