"""Numbers with their noun, for messages, tables and pages."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`; `plural` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
