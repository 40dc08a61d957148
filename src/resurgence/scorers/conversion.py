"""The command line of the converters of published weights."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from resurgence.files import sha256
from resurgence.pretrained.loading import check_file


def run(
    description: str | None, convert: Callable[[Path, Path], object], source: str, out: str = "a file NAME.safetensors"
) -> None:
    """Convert what the command line names, and log the checksums: of the weights, for the setting `sha256`, and of the
    source.

    Args:
        description: docstring of the converter. convert: (source, output). source, out: what source and output are; an
            output that is a folder holds model.safetensors.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("out", type=Path, help=out)
    parser.add_argument("--sha256", help="of a source that is one file, compared first; or its beginning")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if args.sha256:
            check_file(args.source, args.sha256, "source", "fetch it again, or correct --sha256")
        convert(args.source, args.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    weights = args.out / "model.safetensors" if args.out.is_dir() else args.out
    for file in (weights, *([args.source] if args.source.is_file() else [])):
        logging.getLogger(__name__).info("%s: sha256 %s", file, sha256(file))
