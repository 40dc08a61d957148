"""Fetch an archive or a list from one of its mirrors, config/mirrors.yaml, and record its checksum.

    python -m resurgence.pretrained.mirrors data/weights/celebrity-resources.tar.gz [--mirror NAME or URL]

Where no checksum is published, that of the first download goes to config/weights.lock of the working folder: whoever
commits it, and every later download, compares with it. A web page that a mirror sends instead of its file is refused.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import logging
import os
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from resurgence import errors
from resurgence.config.fields import ConfigError, build, known, read_yaml
from resurgence.files import atomic_file, resolve_path, sha256
from resurgence.pretrained.checksums import LOCK, offline
from resurgence.progress import Progress

log = logging.getLogger(__name__)
MIRRORS = Path("config/mirrors.yaml")
BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Archive:
    """One entry of config/mirrors.yaml."""

    licence: str
    mirrors: dict[str, str]  # name -> address
    sha256: str | None = None  # null: not published


def download(url: str, file: Path) -> None:
    """Write what an address sends to a file.

    Raises:
        OSError: urllib's URLError or HTTPError, a time-out of 60 s, or a connection that ends before the file does,
            of which urllib says nothing.
    """
    with urllib.request.urlopen(url, timeout=60) as source, open(file, "wb") as target:
        length = source.headers.get("Content-Length")
        whole = None if length is None else int(length)
        progress = Progress("fetching", whole, "bytes")
        while part := source.read(BLOCK):
            target.write(part)
            progress.add(len(part))
    if whole is not None and (sent := file.stat().st_size) != whole:
        raise urllib.error.URLError(f"the connection ended after {sent} of {whole} bytes; try again")


def locked_sha256(place: str) -> str | None:
    """The checksum of an archive in config/weights.lock; None without one."""
    entries = read_yaml(LOCK) if LOCK.is_file() else {}
    return entries.get(place, {}).get("files", {}).get(Path(place).name)


def record_sha256(place: str, checksum: str) -> None:
    """Add the checksum of an archive to config/weights.lock."""
    LOCK.parent.mkdir(exist_ok=True)
    folder = os.open(LOCK.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # rules fetch lists side by side
        entries = read_yaml(LOCK) if LOCK.is_file() else {}
        entries[place] = {"revision": None, "files": {Path(place).name: checksum}}
        with atomic_file(LOCK) as temporary:
            temporary.write_text(yaml.safe_dump(dict(sorted(entries.items()))))
    finally:
        os.close(folder)
    log.info("%s: recorded %s of %s; commit it, so that everyone checks against the same", LOCK, checksum, place)


def is_table(file: Path) -> bool:
    """Whether a file is text with more than one line that is no web page."""
    try:
        first, _, others = file.read_text(encoding="utf-8-sig").partition("\n")
    except UnicodeDecodeError:
        return False
    return bool(others.strip()) and not first.lstrip().startswith("<")


def check_download(file: Path, expected: str | None, is_list: bool = False) -> str:
    """The SHA-256 of a downloaded archive or list.

    Raises:
        ValueError: it is no tar archive, or no table of text, or has another checksum than is expected.
    """
    kind, fits = ("table", is_table) if is_list else ("tar archive", tarfile.is_tarfile)
    if not fits(file):
        raise ValueError(f"sent {file.stat().st_size} bytes that are no {kind}; use another mirror")
    if expected and (checksum := sha256(file)) != expected:
        raise ValueError(f"sent a file with SHA-256 {checksum}, expected is {expected}; use another mirror")
    return expected or sha256(file)


def fetch(place: str, archive: Archive, mirrors: Mapping[str, str]) -> str:
    """Download an archive to its place from the first mirror that has it, and return the name of that mirror.

    Raises:
        FileNotFoundError: no mirror has it, or HF_HUB_OFFLINE is set; with what each mirror said, and the remedy.
    """
    by_hand = f"copy it to {place} by hand, or give another address with --mirror"
    if offline():
        raise FileNotFoundError(f"{place} is missing and HF_HUB_OFFLINE is set; {by_hand}")
    expected, failures = archive.sha256 or locked_sha256(place), []
    for name, url in mirrors.items():
        log.info("fetching %s from %s, %s (licence %s)", place, name, url, archive.licence)
        try:
            with atomic_file(Path(place)) as temporary:
                download(url, temporary)
                checksum = check_download(temporary, expected, place.endswith(".csv"))
        except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError) as error:
            failures.append(f"{name}: {error}")
            continue
        if expected is None:
            record_sha256(place, checksum)
        return name
    raise FileNotFoundError(f"{place}: no mirror sends it ({'; '.join(failures)}); {by_hand}")


def chosen_mirrors(archive: Archive, mirror: str | None) -> dict[str, str]:
    """All mirrors of an archive, the one of this name, or this address; ConfigError for an unknown name."""
    if mirror is None:
        return archive.mirrors
    if "://" in mirror:
        return {"the given address": mirror}
    known("--mirror", mirror, archive.mirrors)
    return {mirror: archive.mirrors[mirror]}


def main(arguments: list[str] | None = None) -> None:
    """Fetch one archive."""
    parser = errors.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="its place, a key of config/mirrors.yaml")
    parser.add_argument("--mirror", help="name of a mirror, or another address (default: all in their order)")
    sys.excepthook = functools.partial(errors.report, parser.prog, False)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    entries = read_yaml(Path(resolve_path(MIRRORS)))
    known("archive", args.archive, entries)
    archive = build(Archive, entries[args.archive], f"{MIRRORS}: {args.archive}")
    if not archive.mirrors:
        raise ConfigError(f"{MIRRORS}: {args.archive}.mirrors", {}, "is empty; write NAME: address")
    name = fetch(args.archive, archive, chosen_mirrors(archive, args.mirror))
    log.info("%s is there, from %s", args.archive, name)


if __name__ == "__main__":
    main()
