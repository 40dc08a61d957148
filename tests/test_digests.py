"""Digests from the cache of the user: never those of other bytes, and none without a cache that can be written."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resurgence import files
from resurgence.files import files_below, known_sha256
from resurgence.provenance.manifest import digest_of

PAST = 1_600_000_000 * 10**9  # nanoseconds


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "SETTLED", -1)
    return tmp_path / "cache/resurgence/digests"


def large(file: Path) -> Path:
    with open(file, "wb") as stream:
        stream.write(b"weights")
        stream.truncate(files.LARGE)
    return file


def slow_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entries(cache: Path) -> list[Path]:
    return list(cache.iterdir()) if cache.is_dir() else []


def test_a_large_file_is_hashed_once(tmp_path: Path, cache: Path) -> None:
    """The second digest is what the cache holds, also by another name of the file."""
    file = large(tmp_path / "a")
    assert known_sha256(file) == slow_sha256(file)
    (entry,) = entries(cache)
    entry.write_text(entry.read_text()[:-64] + "f" * 64)
    (tmp_path / "link").symlink_to(file)
    assert known_sha256(file) == known_sha256(tmp_path / "link") == "f" * 64


@pytest.mark.parametrize("text", ["", "1 2 3", "no numbers at all", "\x00\xff"])
def test_a_damaged_entry_is_replaced(tmp_path: Path, cache: Path, text: str) -> None:
    file = large(tmp_path / "a")
    known_sha256(file)
    (entry,) = entries(cache)
    whole = entry.read_text()
    for damaged in (text, whole[:-1], whole.rpartition(" ")[0]):
        entry.write_bytes(damaged.encode("latin-1"))
        assert known_sha256(file) == slow_sha256(file)
        assert entry.read_text() == whole


def test_small_and_new_files_are_not_stored(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may give a change a moment later the same date; a date that was set back says nothing."""
    (tmp_path / "small").write_bytes(b"x")
    assert known_sha256(tmp_path / "small") == slow_sha256(tmp_path / "small")
    monkeypatch.setattr(files, "SETTLED", 600 * 10**9)
    new = large(tmp_path / "new")
    os.utime(new, ns=(PAST, PAST))
    assert known_sha256(new) == slow_sha256(new)
    assert entries(cache) == []


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null", "relative", "~", ""])
def test_without_a_cache_every_file_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/proc/none")
    file = large(tmp_path / "a")
    assert known_sha256(file) == known_sha256(file) == slow_sha256(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def write_in_place(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.write(os.urandom(1))


CHANGES = {
    "write": lambda file: file.write_bytes(b"B" * 8),  # the same size
    "append": lambda file: file.write_bytes(file.read_bytes() + b"C"),
    "in place": write_in_place,
    "rename": lambda file: (file.with_name("b").write_bytes(b"D" * 8), file.with_name("b").rename(file)),
    "copy": lambda file: (file.with_name("b").write_bytes(b"E" * 8), shutil.copyfile(file.with_name("b"), file)),
    "hash": known_sha256,
    "wait": lambda file: time.sleep(0.05),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.booleans()), min_size=1, max_size=6))
def test_no_change_passes(changes: list[tuple[str, bool]]) -> None:
    """Whatever happens to a file, its digest is that of its bytes, even where its time of change is set back."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        patch.setattr(files, "LARGE", 1)
        patch.setattr(files, "SETTLED", 3 * 10**7)  # above the step of the clock of a file system in memory or on disk
        file = Path(folder) / "a"
        file.write_bytes(b"A" * 8)
        os.utime(file, ns=(PAST, PAST))
        assert known_sha256(file) == slow_sha256(file)
        for name, is_set_back in changes:
            CHANGES[name](file)
            if is_set_back:
                os.utime(file, ns=(PAST, PAST))
            assert known_sha256(file) == slow_sha256(file)


def test_links_to_folders_are_followed_and_rings_are_not(tmp_path: Path) -> None:
    """A base whose UNet is on another disk has another digest when that UNet changes."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/weights").write_text("1")
    base = tmp_path / "base"
    (base / "vae").mkdir(parents=True)
    (base / "vae/weights").write_text("2")
    (base / "unet").symlink_to(tmp_path / "disk")
    (base / "again").symlink_to(tmp_path / "disk")
    (base / "vae/ring").symlink_to(base)
    (base / "gone").symlink_to(tmp_path / "nothing")
    names = [path.relative_to(base).as_posix() for path in files_below(base)]
    assert names == ["again/weights", "unet/weights", "vae/weights"]
    before = digest_of(base)
    (tmp_path / "disk/weights").write_text("3")
    assert digest_of(base) != before
