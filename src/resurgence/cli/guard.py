"""The checks of every command that writes a folder, before its work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.provenance.inputs import check_parents, check_whole
from resurgence.provenance.outputs import check_apart, check_output, check_state
from resurgence.stages.runtime import only_writer

if TYPE_CHECKING:
    from argparse import Namespace

STATE = re.compile(r"state\.pt|step-\d{6}|\..*\.tmp")  # what a training writes into the folder of its state


@contextmanager
def output(args: Namespace, inputs: Mapping[str, Path]) -> Iterator[Path]:
    """Yield the folder that --out leads to, and hold its lock.

    Args:
        inputs: name -> file or folder that the command reads; "base" is the base of the deltas.

    Raises:
        ValueError: --out is not to be replaced, an input is not as it was written, or a delta lacks its parents.
        OSError: an input is missing, another process writes --out, or its disk cannot be written.
    """
    for path in inputs.values():  # before the base is loaded, not when the manifest is written
        if not path.exists():
            raise FileNotFoundError(f"input {path} is missing; run the step that writes it, or correct the path")
    out = check_output("--out", args.out, inputs)
    with only_writer(args.out):
        check_whole(inputs.values())
        check_parents(getattr(args, "delta", ()), inputs.get("base"))
        yield out


@contextmanager
def training_state(args: Namespace, out: Path, inputs: Mapping[str, Path]) -> Iterator[Path]:
    """Yield the folder of the state of a training, and hold its lock; it is removed at the end, not after an error.

    Raises:
        ValueError: the folder is not apart from inputs and output, or holds other files. OSError: see `output`.
    """
    folder = args.scratch or out.with_name(f".{out.name}.state")
    state = check_apart("--scratch", folder, {**inputs, "--out": out})
    check_state("--scratch", state, STATE.fullmatch)
    with only_writer(folder):
        yield state
        shutil.rmtree(state, ignore_errors=True)
