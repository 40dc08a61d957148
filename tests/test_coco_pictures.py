"""Pictures of COCO for an audit: chosen by their captions, fetched one by one, read again by `--images`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from resurgence.cli.main import main
from resurgence.config.audit_bases import erased_names
from resurgence.config.fields import ConfigError
from resurgence.data import coco, coco_pictures
from resurgence.data.training_images import training_set

TEXTS = {1: ["a  cat", "a pet"], 22: ["a lake", "Boats on a lake"], 3: ["a boat"], 4: ["a tree\n", "shipping boxes"],
         5: ["a road"], 6: ["a hat"], 7: ["two Ships"], 8: ["a red vase"], 9: ["a bench"]}  # fmt: skip
SMALL, FITTING = 6, {1, 4, 5, 8, 9}
LICENCE = "http://licence.example/2"


def name(image: int) -> str:
    return f"COCO_val2014_{image:012}.jpg"


def jpeg(image: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture with a pattern of its own."""
    stream = io.BytesIO()
    Image.effect_noise(size, 40 + image).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the layout of the official one, which counts as it."""
    entries = [{"image_id": image, "id": image, "caption": text} for image, of in TEXTS.items() for text in of]
    images = [{"id": image, "file_name": name(image), "width": 64, "height": 20 if image == SMALL else 48, "license": 2}
              for image in TEXTS]  # fmt: skip
    content = {"annotations": entries, "images": images, "licenses": [{"id": 2, "url": LICENCE}]}
    path = tmp_path / "annotations.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(coco.PARTS[1], json.dumps(content))
    monkeypatch.setattr(coco, "check_archive", lambda file: None)
    monkeypatch.setattr(coco_pictures, "PAUSE", 0.0)
    return path


class Server(ThreadingHTTPServer):
    """Sends val2014, counts what was asked for, and has faults: name -> what it does for how many requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {name(image): jpeg(image) for image in TEXTS}
        self.asked: list[str] = []
        self.faults: dict[str, list[str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/val2014"


class Handler(BaseHTTPRequestHandler):
    """Answers of the server."""

    server: Server

    def do_GET(self) -> None:
        wanted = self.path.rpartition("/")[2]
        self.server.asked.append(wanted)
        fault = self.server.faults.get(wanted, [])
        kind = fault.pop(0) if fault else "whole"
        content = self.server.files[wanted]
        if kind == "page":
            content = b"<html><body>Log in to this network</body></html>"
        self.send_response(int(kind) if kind.isdigit() else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:100] if kind == "cut" else content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def command(archive: Path, server: Server, tmp_path: Path):
    """The command on this machine alone."""

    def run(*words: str, out: str = "coco") -> int:
        place = ["--archive", str(archive), "--mirror", server.url, "--out", str(tmp_path / out)]
        return main(["coco-pictures", "--erased", "ship", "--number", "5", "--least", "40", *place, *words])

    return run


def test_pictures_whose_captions_name_nothing_erased_are_fetched_with_captions_and_licences(
    command, server, tmp_path, capsys
):
    assert command() == 0
    folder = tmp_path / "coco"
    given = training_set(folder)
    texts = {source.caption for source in given.sources}
    assert texts == {"a cat", "a tree", "a road", "a red vase", "a bench"} and not given.left_out
    for image in FITTING:
        assert (folder / name(image)).read_bytes() == server.files[name(image)]
    assert sorted(server.asked) == sorted(map(name, FITTING))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert {row["license"] for row in rows} == {LICENCE} and [row["file_name"] for row in rows] != sorted(server.asked)
    told = capsys.readouterr().out
    assert "CC BY 4.0" in told and "boat" in told
    assert f"resurgence audit CHECKPOINT --erased ship --images {folder} --out ship-audit" in told


def test_whole_pictures_are_not_fetched_again_and_a_truncated_or_foreign_one_is(command, server, tmp_path):
    assert command() == 0
    server.asked.clear()
    assert command() == 0 and not server.asked
    cut, page, other, gone = (tmp_path / "coco" / name(image) for image in (1, 4, 5, 8))
    cut.write_bytes(cut.read_bytes()[:-200])
    page.write_text("<!DOCTYPE html>\n<p>not here</p>")
    other.write_bytes(jpeg(5, (40, 40)))
    gone.unlink()
    assert command() == 0
    assert sorted(server.asked) == [name(image) for image in (1, 4, 5, 8)]
    for file in (cut, page, other, gone):
        assert file.read_bytes() == server.files[file.name]


def test_a_connection_that_ends_is_tried_again_and_a_web_page_is_refused(command, server, tmp_path, capsys):
    server.faults = {name(1): ["cut", "503"], name(4): ["page"]}
    assert command() == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"1 of 5 pictures cannot be fetched ({name(4)}: what came is a web page (48 bytes)); give the same" in told
    assert server.asked.count(name(1)) == 3 and server.asked.count(name(4)) == 1
    there = sorted(file.name for file in (tmp_path / "coco").iterdir())
    assert there == [*(name(image) for image in sorted(FITTING - {4})), "metadata.jsonl"]  # nothing of what failed
    with pytest.raises(FileNotFoundError, match=rf"{name(4)} is in the metadata of .*coco and missing"):
        training_set(tmp_path / "coco")  # no audit takes it for whole
    server.asked.clear()
    assert command() == 0 and server.asked == [name(4)]


def test_what_the_server_does_not_have_is_not_tried_again(command, server, capsys):
    server.faults = {name(image): ["404"] * 3 for image in FITTING}
    assert command() == 1
    assert "5 of 5 pictures cannot be fetched" in capsys.readouterr().err and len(server.asked) == 5


def test_many_failures_end_it(archive, server, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_pictures, "FAILURES", 2)
    monkeypatch.setattr(coco_pictures, "AT_ONCE", 1)
    server.faults = {name(image): ["404"] for image in FITTING}
    chosen = coco_pictures.choose(coco_pictures.read_pictures(archive), ["ship", "boat"], 5, 0, 40)
    with pytest.raises(FileNotFoundError, match="2 or more of 5 pictures cannot be fetched"):
        coco_pictures.write_folder(chosen, tmp_path / "coco", server.url)
    assert len(server.asked) < 5


def test_without_network_it_says_what_is_missing(command, server, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert command() == 1
    assert "5 pictures of" in (told := capsys.readouterr().err) and "HF_HUB_OFFLINE is set" in told and not server.asked


def test_the_choice_depends_on_the_seed_alone_and_a_larger_one_goes_on(archive):
    pictures = coco_pictures.read_pictures(archive)
    words = erased_names(["ship"])
    drawn = coco_pictures.choose(pictures, words, 3, 0, 40)
    assert coco_pictures.choose(pictures[::-1], words, 3, 0, 40) == drawn
    assert coco_pictures.choose(pictures, words, 5, 0, 40)[:3] == drawn
    firsts = {coco_pictures.choose(pictures, words, 1, seed, 40)[0].name for seed in range(40)}
    assert firsts == set(map(name, FITTING))
    with pytest.raises(ConfigError, match=r"--number = 6: only 5 pictures of 40 pixels a side name none of ship,"):
        coco_pictures.choose(pictures, words, 6, 0, 40)


def test_more_pictures_take_those_that_are_there(command, server):
    assert command("--number", "3") == 0
    first = set(server.asked)
    assert command("--number", "5") == 0 and len(server.asked) == 5 and set(server.asked) > first


def test_a_folder_with_other_pictures_is_refused_and_left_as_it_is(command, server, tmp_path, capsys):
    assert command() == 0
    before = {file: file.read_bytes() for file in (tmp_path / "coco").iterdir()}
    server.asked.clear()
    assert command("--erased", "cat", "--number", "4") == 1
    assert "which is none of the chosen pictures; name a new folder" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "coco").iterdir()} == before and not server.asked
    (tmp_path / "file").write_text("")
    assert command(out="file") == 1 and "is a file; name a folder" in capsys.readouterr().err
    assert command("--number", "0") == 1 and "--number = 0: must be at least 1" in capsys.readouterr().err


def test_the_names_of_what_was_erased():
    ship = set(erased_names(["Ship"]))
    assert {"Ship", "boat", "vessel", "watercraft"} <= ship and "ship" not in ship  # one spelling
    assert {"boat", "ship", "vessel"} <= set(erased_names(["boat"]))  # a ship may be one
    assert erased_names(["zorblin"]) == ("zorblin",)


def test_pictures_of_everyday_things_are_of_another_domain_than_a_style(command, tmp_path, capsys):
    assert command("--erased", "van gogh") == 0
    told = capsys.readouterr().out
    assert f"--erased 'van gogh' --outside-images {tmp_path}/coco --level standard --out van-gogh-audit" in told
