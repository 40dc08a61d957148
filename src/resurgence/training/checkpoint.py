"""Exact resume of a training run: its state in a scratch folder, and a clean stop on SIGTERM.

Snakemake deletes the declared outputs of a job before it starts it again, so the state and the checkpoints written so
far live in a folder of their own until the artefact is complete.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)
STATE_FILE = "state.pt"
EVERY = 60.0  # seconds between two saves; more when saving is slow
SHARE = 20  # saving takes at most one part in this many of the time


def fingerprint(facts: Iterable[object], tensors: Iterable[torch.Tensor]) -> str:
    """Return the SHA-256 of what a run depends on: a state is only continued by the same run."""
    digest = hashlib.sha256(repr(list(facts)).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class Saver:
    """Writes the state of a run now and then, and reads it back; with folder None it does nothing."""

    def __init__(self, folder: Path | None, mark: str) -> None:
        self.folder, self.mark = folder, mark
        self.due = time.monotonic() + EVERY

    def save(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Write the state under a temporary name, then rename; without `force` only when it is time."""
        if self.folder is None or not (force or time.monotonic() >= self.due):
            return
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{STATE_FILE}.tmp"
        torch.save({**state, "fingerprint": self.mark}, temporary)
        temporary.rename(self.folder / STATE_FILE)
        now = time.monotonic()
        self.due = now + max(EVERY, SHARE * (now - started))

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Read the state of this run; None if there is none, or if it belongs to another run.

        Raises:
            ValueError: the file is damaged.
        """
        if self.folder is None or not (self.folder / STATE_FILE).exists():
            return None
        file = self.folder / STATE_FILE
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch.load raises whatever its unpickler or zip reader does
            kind = type(error).__name__
            raise ValueError(f"training state {file} is damaged ({kind}); delete it and run again") from error
        if state.get("fingerprint") != self.mark:
            log.warning("%s belongs to other settings, images or weights: starting at step 0", file)
            return None
        log.info("resumed at step %d from %s", state["step"], file)
        return state


@contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, so that a loop can save its state between two steps."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
