"""Check overlays before Snakemake reads them, whose own errors name no file, or are tracebacks.

It reads them before the Snakefile, but after the profile: profiles/*/profile.yaml call `check`.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from resurgence.config.fields import read_yaml
from resurgence.errors import sentence


def check(words: Sequence[str]) -> None:
    """Read the files of --configfile.

    Args:
        words: arguments of Snakemake.

    Raises:
        SystemExit: a file is missing, in another encoding than UTF-8, or not valid YAML; with that sentence.
    """
    command = ArgumentParser(add_help=False, allow_abbrev=False)
    command.add_argument("--configfile", "--configfiles", nargs="+", default=[])
    for file in command.parse_known_args(words)[0].configfile:
        try:
            read_yaml(Path(file))
        except (OSError, ValueError) as error:
            raise SystemExit(f"snakemake: {sentence(error)}") from None
