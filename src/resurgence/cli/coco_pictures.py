"""`resurgence coco-pictures`: real pictures for an audit, from MS-COCO, that do not show what was erased."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from resurgence.config.fields import ConfigError
from resurgence.files import resolve_path

NUMBER, SIDE = 300, 256


def coco_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `coco-pictures`."""
    add = parser.add_argument
    add("--erased", nargs="+", required=True, metavar="CONCEPT",
        help="concepts that the audited model has lost; a picture with a caption that names one, a synonym of one in "
        "the shipped tasks, or a plural is left out")  # fmt: skip
    add("--number", type=int, default=NUMBER, metavar="N", help=f"pictures (default: {NUMBER})")
    add("--least", type=int, default=SIDE, metavar="PIXELS",
        help=f"shorter side of a picture, half of that of the model's images (default: {SIDE}, for 512)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the choice (default: 0)")
    add("--archive", type=Path, metavar="FILE",
        help="annotations of COCO 2014, fetched and checked where they are not there (default: "
        "data/coco/annotations_trainval2014.zip, 253 MB)")  # fmt: skip
    add("--mirror", metavar="URL", help="folder of the pictures of val2014 (default: COCO's own)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write; goes on with one of the same choice")


def run(args: Namespace) -> None:
    """Choose pictures, fetch those that are not there, and say what comes next.

    Raises:
        ConfigError: a wrong option. FileNotFoundError: the archive or pictures cannot be fetched.
        ValueError: another archive than the official one.
    """
    from resurgence.config.audit_bases import erased_names
    from resurgence.data import coco, coco_pictures

    for option in ("number", "least"):
        if (value := getattr(args, option)) < 1:
            raise ConfigError(f"--{option}", value, "must be at least 1")
    words, after = erased_names(args.erased), next_command(args.erased, args.out)
    archive = args.archive or Path(resolve_path(coco.ARCHIVE))
    if archive.is_file():
        coco.check_archive(archive)
    else:
        coco.fetch(archive)
    pictures = coco_pictures.read_pictures(archive)
    chosen = coco_pictures.choose(pictures, words, args.number, args.seed, args.least)
    fetched = coco_pictures.write_folder(chosen, args.out, args.mirror or coco_pictures.URL)
    print(f"{args.out}: {len(chosen)} pictures of MS-COCO val2014, {fetched} of them fetched now; no caption names "
          f"{', '.join(words)}")  # fmt: skip
    print(f"captions: licence {coco.LICENCE}; pictures: each its own licence, in metadata.jsonl; look at them, as a "
          "caption need not name all that a picture shows")  # fmt: skip
    print(after)


def next_command(erased: list[str], out: Path) -> str:
    """The audit that reads the pictures: everyday things are the domain of objects, and another one than that of
    persons, characters, styles and nudity.

    Raises:
        ConfigError: concepts of several kinds.
    """
    from resurgence.cli.audit_request import folder_name
    from resurgence.config.audit_bases import OTHER, bases, kinds_of
    from resurgence.config.audit_kinds import kind_of

    base = bases()[OTHER]
    tasks = base.loaded_tasks()
    kind, _ = kind_of(kinds_of(base, tasks), tasks, erased, None)
    option = ["--images", str(out)] if kind == "object" else ["--outside-images", str(out), "--level", "standard"]
    words = ["resurgence", "audit", "CHECKPOINT", "--erased", *erased, *option, "--out", f"{folder_name(erased)}-audit"]
    return shlex.join(words)
