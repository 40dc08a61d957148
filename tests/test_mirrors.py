"""Archives with mirrors: the first that has the file, its checksum recorded, and what each mirror said otherwise."""

from __future__ import annotations

import fcntl
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from resurgence.config.fields import ConfigError, read_yaml
from resurgence.files import sha256
from resurgence.pretrained import mirrors
from resurgence.pretrained.checksums import LOCK

ROOT = Path(__file__).parents[1]
PLACE = "data/weights/faces.tar.gz"


def pack(path: Path, text: str) -> None:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("labels.csv")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with mirrors on a web server of this machine: `gone`, `page` (a web page), `copy`, and `other`."""
    (tmp_path / "server").mkdir()
    pack(tmp_path / "server/copy.tar.gz", "Ada,0\n")
    pack(tmp_path / "server/other.tar.gz", "Bob,0\n")
    (tmp_path / "server/page.tar.gz").write_text("<html>Sign in</html>")
    (tmp_path / "work/config").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "server")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        urls = {name: f"{address}/{name}.tar.gz" for name in ("gone", "page", "copy", "other")}
        Path(mirrors.MIRRORS).write_text(yaml.safe_dump({PLACE: {"licence": "none", "mirrors": urls}}))
        yield tmp_path
        server.shutdown()


def test_the_first_mirror_that_sends_an_archive_is_taken_and_its_checksum_recorded(project: Path) -> None:
    mirrors.main([PLACE])
    original = project / "server/copy.tar.gz"
    assert Path(PLACE).read_bytes() == original.read_bytes()
    assert read_yaml(LOCK) == {PLACE: {"revision": None, "files": {"faces.tar.gz": sha256(original)}}}


def test_later_downloads_must_have_the_recorded_checksum(project: Path) -> None:
    mirrors.main([PLACE, "--mirror", "copy"])
    recorded, first = LOCK.read_bytes(), sha256(Path(PLACE))
    with pytest.raises(
        FileNotFoundError, match=rf"other: sent a file with SHA-256 [0-9a-f]{{64}}, expected is {first}"
    ):
        mirrors.main([PLACE, "--mirror", "other"])
    assert sha256(Path(PLACE)) == first and LOCK.read_bytes() == recorded
    Path(PLACE).unlink()
    mirrors.main([PLACE])
    assert sha256(Path(PLACE)) == first and LOCK.read_bytes() == recorded


def test_what_each_mirror_said_and_the_remedy(project: Path) -> None:
    entry = yaml.safe_load(Path(mirrors.MIRRORS).read_text())
    for name in ("copy", "other"):
        del entry[PLACE]["mirrors"][name]
    Path(mirrors.MIRRORS).write_text(yaml.safe_dump(entry))
    page = r"page: sent 20 bytes that are no tar archive; use another mirror"
    expected = rf"gone: HTTP Error 404.*; {page}\); copy it to data/weights/.* by hand"
    with pytest.raises(FileNotFoundError, match=expected):
        mirrors.main([PLACE])
    assert not Path(PLACE).exists() and not LOCK.exists()


def test_an_address_of_the_user_and_unknown_names(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = read_yaml(Path(mirrors.MIRRORS))[PLACE]["mirrors"]["other"]
    mirrors.main([PLACE, "--mirror", url])
    assert sha256(Path(PLACE)) == sha256(project / "server/other.tar.gz")
    with pytest.raises(ConfigError, match="--mirror = 'giphi'"):
        mirrors.main([PLACE, "--mirror", "giphi"])
    with pytest.raises(ConfigError, match=r"archive = .data/none\.tar."):
        mirrors.main(["data/none.tar"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set; copy it to"):
        mirrors.main([PLACE])


def test_a_published_checksum_needs_no_record(project: Path) -> None:
    values = yaml.safe_load(Path(mirrors.MIRRORS).read_text())
    values[PLACE]["sha256"] = sha256(project / "server/other.tar.gz")
    Path(mirrors.MIRRORS).write_text(yaml.safe_dump(values))
    mirrors.main([PLACE])
    assert sha256(Path(PLACE)) == values[PLACE]["sha256"] and not LOCK.exists()


def test_a_list_is_text_and_no_web_page(project: Path) -> None:
    place, address = "data/lists/words.csv", yaml.safe_load(Path(mirrors.MIRRORS).read_text())[PLACE]["mirrors"]["page"]
    words = address.replace("page.tar.gz", "words.csv")
    (project / "server/words.csv").write_text("word\nship\ncat\n")
    urls = {"archive": address.replace("page", "copy"), "page": address, "copy": words}
    Path(mirrors.MIRRORS).write_text(yaml.safe_dump({place: {"licence": "none", "mirrors": urls}}))
    mirrors.main([place])
    assert Path(place).read_text() == "word\nship\ncat\n"
    assert read_yaml(LOCK)[place]["files"] == {"words.csv": sha256(Path(place))}
    Path(place).unlink()
    (project / "server/words.csv").write_text("word\nship\ncat\ndog\n")
    sent = r"archive: sent \d+ bytes that are no table.*copy: sent a file with SHA-256.*page: sent 20 bytes that are no"
    with pytest.raises(FileNotFoundError, match=sent):
        mirrors.main([place])
    assert not Path(place).exists()


def test_a_file_that_breaks_off_is_not_recorded(project: Path) -> None:
    """A list has no end by which one would see it, and every later download would be compared with its half."""

    class Half(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "14")
            self.end_headers()
            self.wfile.write(b"word\nship\n")

    place = "data/lists/words.csv"
    with ThreadingHTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = {"half": f"http://127.0.0.1:{server.server_port}/words.csv"}
        Path(mirrors.MIRRORS).write_text(yaml.safe_dump({place: {"licence": "none", "mirrors": urls}}))
        with pytest.raises(FileNotFoundError, match=r"half: .*the connection ended after 10 of 14 bytes"):
            mirrors.main([place])
        server.shutdown()
    assert not Path(place).exists() and not LOCK.exists()


def test_two_lists_fetched_side_by_side_are_both_recorded(project: Path) -> None:
    """Another process holds the folder while it adds its own checksum."""
    other = {"data/b.csv": {"revision": None, "files": {"b.csv": "b" * 64}}}
    folder = os.open(LOCK.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    thread = threading.Thread(target=mirrors.record_sha256, args=("data/a.csv", "a" * 64))
    thread.start()
    thread.join(0.3)
    LOCK.write_text(yaml.safe_dump(other))
    os.close(folder)
    thread.join()
    assert read_yaml(LOCK) == other | {"data/a.csv": {"revision": None, "files": {"a.csv": "a" * 64}}}


def test_the_table_of_the_project_is_valid() -> None:
    for place, values in read_yaml(ROOT / mirrors.MIRRORS).items():
        archive = mirrors.build(mirrors.Archive, values, place)
        assert archive.mirrors and all(url.startswith("https://") for url in archive.mirrors.values())
