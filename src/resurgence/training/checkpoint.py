"""Exact resume of a training run: its state in a scratch folder, and a clean stop on SIGTERM.

Snakemake deletes the declared outputs of a job before it starts the job again, so the state and the checkpoints stay in
a scratch folder until the artefact is complete.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from resurgence.files import atomic_file
from resurgence.provenance.outputs import check_space
from resurgence.training.memory import mapped

log = logging.getLogger(__name__)
STATE_FILE = "state.pt"
LAYOUT = 3  # of the state file; part of the fingerprint, so that a file of another layout is not resumed
EVERY = 60.0  # seconds between two saves; more when saving is slow
SHARE = 20  # saving takes at most 1/SHARE of the time
HOST = ("weights", "average", "optimiser")  # parts of a state that stay in main memory: the device has tensors for them
EARLIER: dict[str, float] = {}  # what this process resumed took before it was saved, by folder, for run.json


def checkpoint_name(step: int) -> str:
    """Return the folder of a checkpoint: step-000100."""
    return f"step-{step:06d}"


def check_disk(folder: Path, steps: Iterable[int], tensors: Iterable[torch.Tensor]) -> None:
    """Raise OSError where the disk of a folder has no space for the checkpoints that are not there yet."""
    missing = [step for step in steps if not (folder / checkpoint_name(step)).exists()]
    check_space(folder, len(missing) * sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def fingerprint(facts: Iterable[object], tensors: Iterable[torch.Tensor]) -> str:
    """Return the SHA-256 of the inputs of a run; a state is resumed only by a run with the same inputs."""
    digest = hashlib.sha256(repr([LAYOUT, *facts]).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Saver:
    """Saves the state of a run at intervals, and loads it; does nothing without a folder."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.started, self.earlier = time.monotonic(), 0.0  # seconds of the runs whose state was loaded
        self.due = self.started + EVERY

    @property
    def is_due(self) -> bool:
        """Whether the interval since the last save has passed."""
        return self.folder is not None and time.monotonic() >= self.due

    def save(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Write the state atomically; without `force` only when it is due."""
        if self.folder is None or not (force or self.is_due):
            return
        started = time.monotonic()
        spent = self.earlier + started - self.started
        with atomic_file(self.folder / STATE_FILE) as temporary:
            torch.save({**state, "fingerprint": self.fingerprint, "seconds": spent}, temporary)
        now = time.monotonic()
        self.due = now + max(EVERY, SHARE * (now - started))

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Load the state of this run, the parts in HOST to main memory; None if there is none, or that of another run.

        Raises:
            ValueError: the file is damaged.
        """
        if self.folder is None or not (self.folder / STATE_FILE).exists():
            return None
        file = self.folder / STATE_FILE
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever its unpickler or zip reader does
            kind = type(error).__name__
            raise ValueError(f"training state {file} is damaged ({kind}); delete it and run again") from error
        if state.get("fingerprint") != self.fingerprint:
            log.warning("%s belongs to other settings, images or weights: starting at step 0", file)
            return None
        log.info("resumed at step %d from %s", state["step"], file)
        self.earlier = EARLIER[str(self.folder)] = float(state.get("seconds", 0.0))
        further = {key: value for key, value in state.items() if key not in HOST}
        return state | mapped(lambda tensor: tensor.to(device), further)


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


def copy_checkpoints(steps: Iterable[int], scratch: Path | None, folder: Path | None) -> None:
    """Copy the checkpoints of these steps from the scratch folder, if there is one, to the folder of the results."""
    if scratch is None or folder is None:
        return
    for step in steps:
        shutil.copytree(scratch / checkpoint_name(step), folder / checkpoint_name(step), dirs_exist_ok=True)
