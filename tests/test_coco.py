"""Captions of COCO: the archive is checked, read as a whole, and sampled with seeds."""

from __future__ import annotations

import csv
import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from resurgence.data import coco


def captions_of(split: int, images: int) -> list[dict]:
    """Five captions an image, as in the official files."""
    return [
        {"id": 10_000 * split + 10 * i + k, "image_id": 1000 * split + i, "caption": f"  A cat {split} {i}\n {k}. "}
        for i in range(images)
        for k in range(5)
    ]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small archive in the layout of the official one."""
    path = tmp_path / "annotations_trainval2014.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for split, part in enumerate(coco.PARTS, 1):
            zipped.writestr(part, json.dumps({"annotations": captions_of(split, 8)}))
        zipped.writestr("annotations/instances_train2014.json", "{}")
    return path


@pytest.fixture
def server(archive: Path) -> Iterator[str]:
    """The archive behind a web server on this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/{archive.name}"
        made.shutdown()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_captions_of_both_parts_white_space_made_single(archive: Path) -> None:
    found = list(coco.read_captions(archive))
    assert len(found) == 2 * 8 * 5
    assert found[0] == coco.Caption(10_000, 1000, "A cat 1 0 0.") and found[-1].text == "A cat 2 7 4."


def test_sample_is_one_caption_an_image_and_independent_of_order(archive: Path) -> None:
    captions = list(coco.read_captions(archive, coco.PARTS[1:]))
    rows = coco.draw_sample(captions, 6, seed=0)
    assert coco.draw_sample(reversed(captions), 6, seed=0) == rows != coco.draw_sample(captions, 6, seed=1)
    assert len({row["image_id"] for row in rows}) == len({row["seed"] for row in rows}) == 6
    of_image = {(c.image_id, c.text) for c in captions}
    assert {(row["image_id"], row["prompt"]) for row in rows} <= of_image
    with pytest.raises(ValueError, match=r"count = 9: the captions are of 8 images; ask for fewer"):
        coco.draw_sample(captions, 9, seed=0)


def test_every_image_is_drawn_equally_often(archive: Path) -> None:
    captions = list(coco.read_captions(archive, coco.PARTS[1:]))
    drawn = [row["image_id"] for seed in range(300) for row in coco.draw_sample(captions, 2, seed)]
    counts = [drawn.count(image) for image in sorted(set(drawn))]
    assert len(counts) == 8 and all(45 <= count <= 105 for count in counts)  # 75, standard deviation 7.5


def test_first_rows_of_a_published_list(tmp_path: Path) -> None:
    path = tmp_path / "coco_30k.csv"
    header = ["case_number", "source", "prompt", "evaluation_seed", "coco_id"]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *([i, "coco", f"a, b {i}", 100 + i, 7 + i] for i in range(5))])
    assert coco.read_list(path, 2) == [
        {"prompt": "a, b 0", "seed": 100, "image_id": 7},
        {"prompt": "a, b 1", "seed": 101, "image_id": 8},
    ]
    with pytest.raises(ValueError, match=r"has 5 rows, 6 are wanted"):
        coco.read_list(path, 6)
    path.write_text("prompt,seed\na,1\n")
    with pytest.raises(ValueError, match=r"has the columns \['prompt', 'seed'\], needed are prompt, evaluation_seed"):
        coco.read_list(path, 1)


def test_fetch_checks_what_came(server: str, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "there" / "archive.zip"
    coco.fetch(out, server, digest(archive))
    assert out.read_bytes() == archive.read_bytes()
    with pytest.raises(ValueError, match=r"has SHA-256 [0-9a-f]{64}, the official archive .* fetch http"):
        coco.fetch(tmp_path / "again" / "archive.zip", server, coco.SHA256)
    assert not list((tmp_path / "again").iterdir())


def test_without_network_it_says_what_to_do(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "archive.zip"
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched .*404.*on a machine with network fetch .* copy"):
        coco.fetch(out, server + ".gone")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set; on a machine with network"):
        coco.fetch(out, server)
    assert not out.exists()


def test_another_or_a_truncated_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = digest(archive)
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(ValueError, match="delete it and fetch"):
        coco.check_archive(archive, whole)
    with pytest.raises(ValueError, match="official archive"):
        coco.main(["captions", "--archive", str(archive), "--out", str(tmp_path / "captions.txt")])
    assert not (tmp_path / "captions.txt").exists()
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as zipped:
        zipped.writestr("x", "")
    with pytest.raises(ValueError, match=r"holds no annotations/captions_train2014.json; give the annotations"):
        list(coco.read_captions(other))


def test_files_are_written(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "check_archive", lambda path: None)
    coco.main(["captions", "--archive", str(archive), "--out", str(tmp_path / "captions.txt")])
    assert len((tmp_path / "captions.txt").read_text().splitlines()) == 80
    coco.main(["sample", "--archive", str(archive), "--count", "8", "--out", str(tmp_path / "sample.csv")])
    with open(tmp_path / "sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and tuple(rows[0]) == coco.COLUMNS and int(rows[0]["seed"]) >= 0
    assert not list(tmp_path.glob(".*"))
