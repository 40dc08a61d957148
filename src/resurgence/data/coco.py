"""Captions of MS-COCO 2014 from the official annotation archive: the prior corpus, and a sample to generate from.

    python -m resurgence.data.coco annotations --out data/coco/annotations_trainval2014.zip
    python -m resurgence.data.coco captions --archive ARCHIVE --out data/coco/captions.txt
    python -m resurgence.data.coco sample --archive ARCHIVE --out data/coco/sample-5000.csv [--list coco_30k.csv]

Annotations: Lin et al., "Microsoft COCO: Common Objects in Context" (2014), licence CC BY 4.0. The archive is fetched,
not shipped, and its SHA-256 is checked before captions are read. Imports no torch: the Snakefile imports this module.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import logging
import random
import sys
import urllib.error
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from resurgence import errors
from resurgence.config.consistency import COCO_CAPTIONS, COCO_SAMPLE
from resurgence.files import atomic_file, read_rows, sha256
from resurgence.pretrained.checksums import offline
from resurgence.pretrained.mirrors import download
from resurgence.seeds import seed_of

log = logging.getLogger(__name__)

URL = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
BYTES = 252_872_794
# published by TensorFlow Datasets, tensorflow_datasets/url_checksums/coco.txt
SHA256 = "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"
LICENCE = "CC BY 4.0, https://cocodataset.org/#termsofuse"
PARTS = ("annotations/captions_train2014.json", "annotations/captions_val2014.json")
ARCHIVE = "data/coco/annotations_trainval2014.zip"
CAPTIONS, SAMPLE = COCO_CAPTIONS, COCO_SAMPLE
COLUMNS = ("prompt", "seed", "image_id")


class Caption(NamedTuple):
    """One caption of one image."""

    id: int
    image_id: int
    text: str


def check_archive(path: Path, expected: str = SHA256) -> None:
    """Raise ValueError unless the file is the archive of the expected SHA-256."""
    if (checksum := sha256(path)) != expected:
        raise ValueError(f"{path} ({path.stat().st_size} bytes) has SHA-256 {checksum}, the official archive "
                         f"({BYTES} bytes) {expected}; delete it and fetch {URL} again")  # fmt: skip


def fetch(out: Path, url: str = URL, expected: str = SHA256) -> None:
    """Download the archive and check it; a failed download leaves no file.

    Raises:
        FileNotFoundError: no network, or HF_HUB_OFFLINE is set; the message says where to put the file.
        ValueError: the download has another SHA-256.
    """
    remedy = f"on a machine with network fetch {url} and copy it to {out}"
    if offline():
        raise FileNotFoundError(f"{out} is missing and HF_HUB_OFFLINE is set; {remedy}")
    log.info("fetching %s (%d MB, licence %s)", url, BYTES // 10**6, LICENCE)
    try:
        with atomic_file(out) as temporary:
            download(url, temporary)
            check_archive(temporary, expected)
    except (urllib.error.URLError, TimeoutError) as error:
        raise FileNotFoundError(f"{out} cannot be fetched ({error}); {remedy}") from error


def read_captions(archive: Path, parts: Iterable[str] = PARTS) -> Iterator[Caption]:
    """The captions of the archive's parts, in the order of the files, with single spaces.

    Raises:
        ValueError: the archive lacks a part.
    """
    with zipfile.ZipFile(archive) as zipped:
        for part in parts:
            if part not in zipped.namelist():
                raise ValueError(f"{archive} holds no {part}; give the annotations of COCO 2014, {URL}")
            for entry in json.loads(zipped.read(part))["annotations"]:
                yield Caption(entry["id"], entry["image_id"], " ".join(entry["caption"].split()))


def draw_sample(captions: Iterable[Caption], count: int, seed: int) -> list[dict[str, object]]:
    """One caption of each of `count` images, both drawn with the seed: rows of COLUMNS, in the order of the draw.

    The order of the captions does not matter. The seed of an image depends on the number of its caption.

    Raises:
        ValueError: fewer than `count` images.
    """
    of_image: dict[int, list[Caption]] = {}
    for caption in captions:
        of_image.setdefault(caption.image_id, []).append(caption)
    if len(of_image) < count:
        raise ValueError(f"count = {count}: the captions are of {len(of_image)} images; ask for fewer")
    generator = random.Random(seed_of("COCO sample", seed))
    images = generator.sample(sorted(of_image), count)
    sample = [generator.choice(sorted(of_image[image])) for image in images]
    return [{"prompt": c.text, "seed": seed_of("COCO image", c.id), "image_id": c.image_id} for c in sample]


def read_list(path: Path, count: int) -> list[dict[str, object]]:
    """The first rows of a published list: prompt, evaluation_seed, coco_id (MACE's prompts_csv/coco_30k.csv).

    Raises:
        ValueError: a list without these columns, or a shorter one.
    """
    rows = read_rows(path)
    needed = ("prompt", "evaluation_seed", "coco_id")
    if not rows or any(key not in rows[0] for key in needed):
        columns = list(rows[0]) if rows else []
        raise ValueError(f"{path} has the columns {columns}, needed are {', '.join(needed)}; give the authors' list")
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} rows, {count} are wanted; give the whole list, or fewer")
    return [
        {"prompt": r["prompt"], "seed": int(r["evaluation_seed"]), "image_id": int(r["coco_id"])} for r in rows[:count]
    ]


def main(arguments: list[str] | None = None) -> None:
    """Fetch the archive, or write its captions or a sample of them."""
    parser = errors.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("annotations", "captions", "sample"))
    parser.add_argument("--archive", type=Path, default=Path(ARCHIVE))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=5000, help="captions of the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--list", type=Path, help="a published list, whose first rows are the sample")
    sys.excepthook = functools.partial(errors.report, parser.prog, False)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if args.what == "annotations":
        return fetch(args.out)
    check_archive(args.archive)
    with atomic_file(args.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        if args.what == "captions":
            file.writelines(f"{caption.text}\n" for caption in read_captions(args.archive) if caption.text)
        else:
            validation = read_captions(args.archive, PARTS[1:])
            rows = read_list(args.list, args.count) if args.list else draw_sample(validation, args.count, args.seed)
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    log.info("wrote %s; captions of MS-COCO 2014, licence %s", args.out, LICENCE)


if __name__ == "__main__":
    main()
