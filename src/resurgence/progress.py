"""Progress of long loops as log lines: done, total, rate, time left."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)
EVERY = 15.0  # seconds between two lines


def duration(seconds: float) -> str:
    """Return `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Counts what is done and logs it at most every 15 s; loops shorter than that log nothing."""

    def __init__(self, what: str, total: int | None, unit: str, done: int = 0) -> None:
        """Start counting.

        Args:
            total: None when it is not known in advance; then no time left is logged.
            done: how many of them an earlier run did; they do not enter the rate.
        """
        self.what, self.total, self.unit = what, total, unit
        self.first = self.done = done
        self.started = self.logged = time.monotonic()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def add(self, count: int = 1) -> None:
        """Count, and log when it is time."""
        self.done += count
        if time.monotonic() - self.logged < EVERY or not self.rate:
            return
        self.logged = time.monotonic()
        rate = f"{self.rate:.2f} {self.unit}/s"
        if self.total is None:
            log.info("%s: %d %s, %s", self.what, self.done, self.unit, rate)
            return
        left = duration((self.total - self.done) / self.rate)
        log.info("%s: %d of %d %s, %s, %s left", self.what, self.done, self.total, self.unit, rate, left)
