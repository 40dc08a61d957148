"""A training can resume in another process: its fingerprint does not depend on the order of sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


class Reached(Exception):
    """The training has begun; its fingerprint is known."""


def marks(patch: pytest.MonkeyPatch) -> list[str]:
    """The fingerprints of a fine-tune and of an eraser's training, in this process."""
    import test_finetune
    import test_trainer
    from resurgence.erasers.gradient import trainer
    from resurgence.training import finetune
    from tiny import make_pipeline

    found = []

    def stop(folder: Path, mark: str) -> None:
        found.append(mark)
        raise Reached

    patch.setattr(finetune, "Saver", stop)
    patch.setattr(trainer, "Saver", stop)
    with pytest.raises(Reached):
        test_finetune.run(test_finetune.CFG, Path("out"), state=Path("state"))
    with pytest.raises(Reached):
        test_trainer.run(make_pipeline(block_out_channels=(16, 32)), test_trainer.CFG, Path("state"))
    return found


def test_fingerprints_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers lists the defaults that a configuration has used in the order of a set of strings."""
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = marks(monkeypatch)
    assert len(here) == 2 and done.stdout.split() == here


if __name__ == "__main__":
    print(*marks(pytest.MonkeyPatch()))
