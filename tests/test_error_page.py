"""docs/errors.md: every message of the source code, each with cause and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import errors


def test_the_page_is_that_of_the_source_code() -> None:
    assert errors.PAGE.read_text(encoding="utf-8") == errors.page(), "run python docs/errors.py"


def test_every_message_says_what_to_do() -> None:
    without = [row for row in errors.messages() if not row.remedy]
    assert not without, without


def test_many_messages_differ_beyond_their_values() -> None:
    texts = {re.sub(r"<[^>]*>", "<>", f"{row.cause}; {row.remedy}") for row in errors.messages()}
    assert len(texts) >= 200


def test_a_message_of_new_code_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/new.py").write_text(
        "def f(path, n):\n"
        "    remedy = 'give one'\n"
        "    if n:\n"
        "        raise ValueError(f'{path.name} has {n} rows; {remedy}')\n"
        "    raise ConfigError('steps', n, 'must be positive; write 1 or more')\n"
    )
    assert errors.messages(tmp_path) == [
        errors.Message("data", "<path> has <n> rows", "give one"),
        errors.Message("data", "steps = <n>: must be positive", "write 1 or more"),
    ]
