"""Build a part of the miniature world: python -m resurgence.stages.world PART --config config/world.yaml --out DIR."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path

from resurgence import errors
from resurgence.config.fields import read_yaml
from resurgence.miniature.build import PARTS, build_part
from resurgence.stages.runtime import become_only_writer, end_imports, take_gpu


def main() -> None:
    """Command line."""
    parser = errors.Parser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the world, e.g. results/world")
    parser.add_argument("--gpu", action="store_true", help="use a GPU if the study has one")
    sys.excepthook = functools.partial(errors.report, parser.prog, False)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    end_imports()
    become_only_writer(args.out / args.part)
    if args.gpu:
        take_gpu()
    device = os.environ.get("RESURGENCE_DEVICE", "cpu") if args.gpu else "cpu"
    build_part(args.part, read_yaml(args.config), args.out, device)


if __name__ == "__main__":
    main()
