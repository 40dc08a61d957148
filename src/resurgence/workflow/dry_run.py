"""The jobs of the study as Snakemake would run them: settings, inputs and output of each, before anything runs.

They are read from the commands that `snakemake -n -F -p` prints, so nothing here repeats what the rules say.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resurgence.config.fields import ConfigError
from resurgence.provenance.manifest import MANIFEST, PACKAGE

RESULTS = "results"
# the folder of results/ that DVC tracks -> its stage in dvc.yaml, where that has another name
STAGES = dict.fromkeys(("tables", "figures", "grids", "cost"), "tables")


class Planned(NamedTuple):
    """One job."""

    module: str  # resurgence.stages.NAME
    block: dict[str, Any]
    out: Path  # manifest.json of an artefact, or made.json of files in a shared folder
    inputs: tuple[Path, ...]

    @property
    def sources(self) -> list[Path]:
        """The source modules among the inputs."""
        return [path for path in self.inputs if path.suffix == ".py"]

    @property
    def digested(self) -> dict[str, Path]:
        """What the manifest names as inputs: path -> artefact or file."""
        used = [path for path in self.inputs if path.suffix != ".py"]
        return {path.as_posix(): path.parent if path.name == MANIFEST else path for path in used}

    @property
    def stage(self) -> str:
        """The stage of dvc.yaml that tracks the output."""
        return STAGES.get(self.out.parts[1], self.out.parts[1])


def configured(overlays: Sequence[Path]) -> list[str]:
    """The options of Snakemake for studies that are laid over params.yaml."""
    return ["--configfile", *map(str, overlays)] if overlays else []


def snakemake(*arguments: str, root: Path = Path(), check: bool = True) -> str:
    """Run Snakemake in a folder; returns what it printed, both streams together.

    Raises:
        ConfigError: when it fails and that is checked, with what it said.
    """
    command = [sys.executable, "-m", "snakemake", *arguments]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode:
        raise ConfigError("snakemake", arguments[0], f"fails; it says\n{done.stdout[-8000:]}")
    return done.stdout


def parse(command: str) -> Planned | None:
    """The job of a command line; None for one that is no stage of the study."""
    words = shlex.split(command)
    options = [words.index(name) for name in ("--block", "--out", "--inputs") if name in words]
    if words[:2] != ["python", "-m"] or len(options) < 3:
        return None
    block, out, given = options
    last = words.index(">", given)
    inputs = tuple(map(Path, words[given + 1 : last]))
    return Planned(words[2], json.loads(words[block + 1]), Path(words[out + 1]), inputs)


def check_package(root: Path = Path()) -> None:
    """Raise ConfigError when the package that runs is not that of the folder: its modules would count as others."""
    own = (root / "src" / PACKAGE.name).resolve()
    if own.is_dir() and own != PACKAGE.resolve():
        raise ConfigError("resurgence", str(PACKAGE), f"is another package than {own}; run `make setup` here")


def printed_jobs(told: str) -> list[Planned]:
    """The jobs in what `snakemake -p` printed."""
    mark = "Shell command: "
    found = [parse(line.removeprefix(mark)) for line in told.splitlines() if line.startswith(mark)]
    return [job for job in found if job is not None]


def planned(overlays: Sequence[Path] = (), root: Path = Path()) -> list[Planned]:
    """Every job of the study, each after those whose results it reads."""
    return printed_jobs(snakemake("-n", "-F", "-p", *configured(overlays), root=root))
