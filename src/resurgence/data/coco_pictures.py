"""Pictures of MS-COCO 2014 none of whose captions names what was erased, in a folder that `--images` of an audit reads.

The captions are those of the annotation archive (see coco.py), whose SHA-256 is checked. Of val2014 only the chosen
pictures are fetched, one by one. No checksum of a single picture is published: one is whole if all of it can be decoded
and its size is that of the annotations.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import time
import urllib.error
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from resurgence.config.counting import counted
from resurgence.config.fields import ConfigError
from resurgence.config.naming import named_word
from resurgence.data.coco import PARTS, read_captions
from resurgence.diffusion.pictures import read_picture
from resurgence.files import atomic_file, read_text, write_text
from resurgence.pretrained.checksums import offline
from resurgence.pretrained.mirrors import download
from resurgence.progress import Progress
from resurgence.seeds import seed_of

log = logging.getLogger(__name__)

URL = "http://images.cocodataset.org/val2014"
PART = PARTS[1]
METADATA = "metadata.jsonl"
AT_ONCE, TRIES, PAUSE = 8, 3, 1.0
"""Pictures that are fetched at the same time, tries of one, and seconds between two of them."""
FAILURES = 16
"""Pictures that cannot be fetched before the others are not tried."""
NETWORK = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


class Picture(NamedTuple):
    """A picture of val2014: file name, size in pixels, captions, and the address of its licence."""

    name: str
    width: int
    height: int
    captions: tuple[str, ...]
    licence: str


def read_pictures(archive: Path) -> list[Picture]:
    """All pictures of val2014 that have captions, by name.

    Raises:
        ValueError: the archive lacks their part; see `read_captions`.
    """
    captions: dict[int, list[str]] = {}
    for caption in read_captions(archive, (PART,)):
        captions.setdefault(caption.image_id, []).append(caption.text)
    with zipfile.ZipFile(archive) as zipped:
        content = json.loads(zipped.read(PART))
    licences = {each["id"]: each["url"] for each in content.get("licenses", ())}
    return sorted(
        Picture(image["file_name"], image["width"], image["height"], tuple(captions[image["id"]]),
                licences.get(image.get("license"), ""))
        for image in content["images"] if image["id"] in captions
    )  # fmt: skip


def choose(pictures: Iterable[Picture], words: Sequence[str], number: int, seed: int, least: int) -> list[Picture]:
    """Draw pictures none of whose captions names one of some words; a larger number has those of a smaller one first.

    Args:
        least: pixels of the shorter side.

    Raises:
        ConfigError: there are fewer.
    """
    others = [picture for picture in sorted(pictures) if min(picture.width, picture.height) >= least
              and not any(named_word(caption, words) for caption in picture.captions)]  # fmt: skip
    if len(others) < number:
        raise ConfigError("--number", number, f"only {len(others)} pictures of {least} pixels a side name none of "
                          f"{', '.join(words)}; ask for fewer")  # fmt: skip
    random.Random(seed_of("COCO pictures", seed)).shuffle(others)
    return others[:number]


def write_folder(chosen: Sequence[Picture], out: Path, url: str = URL) -> int:
    """Write captions and pictures, and return how many pictures were fetched; those that are there whole are not.

    The captions are written first, so that a folder whose pictures are not all there is refused where it is read.

    Raises:
        ConfigError: the folder holds something else.
        FileNotFoundError: pictures cannot be fetched; those that could be are there, and the next call goes on.
    """
    check_folder(chosen, out)
    rows = [{"file_name": each.name, "text": each.captions[0], "license": each.licence} for each in chosen]
    write_text(out / METADATA, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    missing = [picture for picture in chosen if fault(out / picture.name, picture)]
    if missing:
        fetch(missing, out, url)
    return len(missing)


def check_folder(chosen: Sequence[Picture], out: Path) -> None:
    """Raise ConfigError for a folder that holds files, or captions of files, other than the chosen pictures."""
    if out.exists() and not out.is_dir():
        raise ConfigError("--out", str(out), "is a file; name a folder")
    there = {file.name for file in out.glob("*") if not file.name.startswith(".")} - {METADATA}
    if (out / METADATA).is_file():
        there |= {str(json.loads(line)["file_name"]) for line in read_text(out / METADATA).splitlines()}
    if foreign := sorted(there - {picture.name for picture in chosen}):
        raise ConfigError(
            "--out", str(out), f"holds {foreign[0]}, which is none of the chosen pictures; name a new folder"
        )


def fault(file: Path, picture: Picture) -> str:
    """Why a file is not the whole picture, in words; empty: it is."""
    if not file.is_file():
        return "is missing"
    try:
        width, height = read_picture(file, file.name).size
    except (OSError, ValueError):
        with open(file, "rb") as content:
            kind = "a web page" if content.read(64).lstrip().startswith(b"<") else "no whole picture"
        return f"is {kind} ({file.stat().st_size} bytes)"
    size = (picture.width, picture.height)
    return (
        "" if sorted(size) == sorted((width, height)) else f"has {width} x {height} pixels, not {size[0]} x {size[1]}"
    )


def fetch(missing: Sequence[Picture], out: Path, url: str) -> None:
    """Fetch pictures, several at a time.

    Raises:
        FileNotFoundError: some cannot be fetched, or HF_HUB_OFFLINE is set; with the first reason, and the remedy.
    """
    wanted = counted(len(missing), "picture")
    if offline():
        raise FileNotFoundError(
            f"{wanted} of {out} are missing and HF_HUB_OFFLINE is set; unset it, or copy them from {url}"
        )
    log.info("fetching %s from %s", wanted, url)
    progress, failures = Progress("fetching", len(missing), "pictures"), list[str]()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        jobs = {pool.submit(fetch_picture, picture, out, url): picture for picture in missing}
        for job in as_completed(jobs):
            try:
                job.result()
                progress.add()
            except (*NETWORK, ValueError) as error:
                failures.append(f"{jobs[job].name}: {error}")
                if len(failures) == FAILURES:
                    break
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        more = " or more" if len(failures) == FAILURES else ""
        raise FileNotFoundError(
            f"{out}: {len(failures)}{more} of {wanted} cannot be fetched ({failures[0]}); give the same command again, "
            "which goes on, or another address with --mirror"
        )


def fetch_picture(picture: Picture, out: Path, url: str) -> None:
    """Fetch one picture, which is there whole or not at all.

    Raises:
        OSError: see `download`; after the last try, or at once where the server says that there is no such file.
        ValueError: the server sent something else.
    """
    for last in (number == TRIES - 1 for number in range(TRIES)):
        try:
            with atomic_file(out / picture.name) as temporary:
                download(f"{url.rstrip('/')}/{picture.name}", temporary)
                if wrong := fault(temporary, picture):
                    raise ValueError(f"what came {wrong}")
            return
        except NETWORK as error:
            if last or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                raise
        time.sleep(PAUSE)
