"""A training can resume in another process: its fingerprint does not depend on the order of sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
CODE = """
from pathlib import Path

import test_finetune
import test_trainer
from resurgence.erasers.gradient import trainer
from resurgence.training import finetune
from tiny import make_pipeline

class Told(Exception):
    pass

def tell(folder, mark):
    print("mark", mark)
    raise Told

finetune.Saver = trainer.Saver = tell
for run in (
    lambda: test_finetune.run(test_finetune.CFG, Path("out"), state=Path("state")),
    lambda: test_trainer.run(make_pipeline(block_out_channels=(16, 32)), test_trainer.CFG, Path("state")),
):
    try:
        run()
    except Told:
        pass
"""


def test_fingerprints_are_the_same_in_every_process() -> None:
    """diffusers lists the defaults that a configuration has used in the order of a set of strings."""
    told = []
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append([line for line in done.stdout.splitlines() if line.startswith("mark")])
    assert len(told[0]) == 2 and told[0] == told[1] == told[2]
