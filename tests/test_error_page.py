"""docs/errors.md: every message of the source code, each with cause and remedy."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def errors() -> ModuleType:
    """docs/errors.py."""
    spec = importlib.util.spec_from_file_location("errors", ROOT / "docs/errors.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_source_code(errors: ModuleType) -> None:
    assert errors.PAGE.read_text(encoding="utf-8") == errors.page(), "run python docs/errors.py"


def test_every_message_says_what_to_do(errors: ModuleType) -> None:
    without = [row for row in errors.messages() if not row.remedy]
    assert not without, without


def test_there_are_many_messages_and_none_twice(errors: ModuleType) -> None:
    texts = {re.sub(r"<[^>]*>", "<>", f"{row.cause}; {row.remedy}") for row in errors.messages()}
    assert len(texts) >= 200


def test_a_message_of_new_code_is_found(errors: ModuleType, tmp_path: Path) -> None:
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
