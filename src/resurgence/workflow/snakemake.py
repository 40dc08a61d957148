"""Run Snakemake in the folder of a study, and read what a dry run prints."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resurgence.config.fields import ConfigError
from resurgence.files import resolve_path
from resurgence.provenance.source_modules import PACKAGE


def check_package(root: Path = Path()) -> None:
    """Raise ConfigError when the package that runs is not that of the folder, whose code would have another version."""
    inside = (root / "src" / PACKAGE.name).resolve()
    if inside.is_dir() and inside != PACKAGE:
        raise ConfigError("resurgence", str(PACKAGE), f"is another package than {inside}; run `make setup` here")


def configured(overlays: Sequence[Path]) -> list[str]:
    """The options of Snakemake for studies that are laid over params.yaml."""
    return ["--configfile", *map(str, overlays)] if overlays else []


def snakemake(*arguments: str, root: Path = Path(), check: bool = True) -> str:
    """Run Snakemake in a folder; returns what it printed, both streams together.

    Raises:
        ConfigError: when it fails and that is checked, with what it said.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", resolve_path("Snakefile", root), *arguments]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode:
        raise ConfigError("snakemake", arguments[0], f"fails; it says\n{done.stdout[-8000:]}")
    return done.stdout


def job_counts(text: str) -> Counter[str]:
    """Jobs of each rule from the table that `snakemake -n` prints."""
    tables = re.split(r"^Job stats:$", text, flags=re.MULTILINE)
    rows = re.findall(r"^([a-z]\w*) +(\d+)$", tables[1], flags=re.MULTILINE) if len(tables) > 1 else []
    return Counter({rule: int(count) for rule, count in rows if rule not in ("total", "all")})


def outputs(text: str) -> set[Path]:
    """The outputs of the study's jobs in the commands that `snakemake -n -p` prints."""
    return set(map(Path, re.findall(r"^Shell command: python -m resurgence\.stages.* --out (\S+)", text, re.MULTILINE)))
