"""The command line of the converters of published weights."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from resurgence.files import sha256


def run(description: str | None, convert: Callable[[Path, Path], None], source: str) -> None:
    """Convert what the command line names, and log the checksum for the setting `sha256`.

    Args:
        description: docstring of the converter. convert: (source, file of safetensors). source: what its source is.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("out", type=Path, help="a file NAME.safetensors")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        convert(args.source, args.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    logging.getLogger(__name__).info("%s: sha256 %s", args.out, sha256(args.out))
