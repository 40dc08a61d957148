"""Checks of an output before the work: it destroys nothing of the user's, and the disk can take it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from resurgence.files import files_below
from resurgence.provenance.manifest import MANIFEST, RUN, read_manifest

FULL = 2**20  # bytes; a disk with less free space is full
PNG_SHARE = 0.2  # of the bytes of its pixels, that a PNG takes at least: of drawings 0.2 to 0.5, of photographs more


def places(path: Path) -> Iterator[Path]:
    """The real path, and the real places of the links that lead to it."""
    path = Path.cwd() / path
    yield Path(os.path.realpath(path))
    for prefix in (path, *path.parents):
        if prefix.is_symlink() and prefix.exists():  # no ring of links
            yield Path(os.path.realpath(prefix.parent)) / prefix.name
            yield from places(prefix.parent / os.readlink(prefix))


def contains(folder: Path, path: Path) -> bool:
    """Whether a path, or a link that leads to it, is this folder or lies in it.

    Files are compared by device and inode, as one folder may have several names (letter case, bind mounts).

    Args:
        folder: without links.
    """

    def is_same(parent: Path) -> bool:
        return parent == folder or (parent.exists() and folder.exists() and parent.samefile(folder))

    return any(is_same(parent) for place in places(path) for parent in (place, *place.parents))


def check_apart(option: str, out: Path, inputs: Mapping[str, Path]) -> Path:
    """The folder that an output leads to.

    Args:
        option: that names the output, for the message. inputs: name -> file or folder that the step reads.

    Raises:
        ValueError: it is an input or the working folder, contains one, or lies in an input.
    """
    target = Path(os.path.realpath(out))
    if ring := next((place for place in (target, *target.parents) if place.is_symlink()), None):
        raise ValueError(f"{option} {out}: {ring} is a link that leads to itself; remove it, or name another folder")
    if contains(target, Path.cwd()):
        raise ValueError(f"{option} {out} is the working folder or contains it; name a folder below the working folder")
    for name, path in inputs.items():
        is_above, is_below = contains(target, path), contains(Path(os.path.realpath(path)), target)
        if is_above or is_below:
            relation = "is" if is_above and is_below else "contains" if is_above else "lies in"
            raise ValueError(
                f"{option} {out} {relation} an input of the command ({name}: {path}), which would be lost or changed; "
                "name a folder outside of it"
            )
    return target


def check_output(option: str, out: Path, inputs: Mapping[str, Path]) -> Path:
    """The folder that an output leads to: absent, empty or an artefact without other files.

    Raises:
        ValueError: the folder cannot be replaced, or only at the loss of files that no step wrote. See `check_apart`.
    """
    target = check_apart(option, out, inputs)
    if not target.exists():
        return target
    if not target.is_dir():
        raise ValueError(f"{option} {out} is a file; name a new folder")
    if target.is_mount():
        raise ValueError(f"{option} {out} is a mounted disk, which cannot be replaced; name a folder on it")
    if not any(target.iterdir()):
        return target
    try:
        files = read_manifest(target)
    except (FileNotFoundError, ValueError):
        files = {}
    if not {"kind", "parameters", "inputs", "files"} <= set(files):
        raise ValueError(
            f"{option} {out} exists and was not written by this program (it holds no {MANIFEST} of an artefact), so it "
            "is not replaced; name a new folder"
        )
    if more := foreign(target, files["files"]):
        raise ValueError(
            f"{option} {out} holds {more[0]}, which is not part of the artefact and would be lost; move that file, "
            "or name a new folder"
        )
    return target


def foreign(folder: Path, files: Iterable[str]) -> list[str]:
    """The files and links in the folder of an artefact that no step wrote, as paths from it."""
    listed = {MANIFEST, RUN, *files}
    listed |= {parent.as_posix() for name in files for parent in Path(name).parents}
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return sorted(set(names) - listed)


def check_file(option: str, file: Path, is_earlier: Callable[[Path], bool]) -> None:
    """Raise ValueError for an existing file that is not an earlier output of the same command."""
    if file.exists() and not (file.is_file() and is_earlier(file)):
        raise ValueError(f"{option} {file} exists and was not written by this command, so it is not replaced; "
                         "name a new file")  # fmt: skip


def check_state(option: str, folder: Path, names: Callable[[str], bool]) -> None:
    """Raise ValueError for a folder of states, removed at the end, that holds other files than those of a training."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} {folder} is a file; name a new folder")
    for file in files_below(folder):
        if not names(file.relative_to(folder).parts[0]):
            raise ValueError(f"{option} {folder} holds {file.name}, which is no state of a training and would be lost; "
                             "name a new folder")  # fmt: skip


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = Path(os.path.realpath(folder))
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_writable(folders: Iterable[Path]) -> None:
    """Raise OSError for a folder in which nothing can be written: read-only, not permitted, or a full disk."""
    for folder in folders:
        place = existing(folder)
        if not place.is_dir():
            raise NotADirectoryError(f"{folder}: {place} is a file; name another folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder}: {place} cannot be written (no permission, or a read-only disk); change "
                                  "that, or use a folder on another disk")  # fmt: skip
        check_space(folder, FULL)


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError where the disk of a folder has less free space than these bytes."""
    disk = shutil.disk_usage(existing(folder))
    if disk.total and disk.free < needed:  # some file systems do not tell
        raise OSError(f"{folder} needs {needed / 2**20:.0f} MiB or more, its disk has {disk.free / 2**20:.0f} MiB "
                      "left; free some space, or use a folder on another disk")  # fmt: skip


def check_image_space(folder: Path, number: int, side: int) -> None:
    """Raise OSError where the disk of a folder has no space for a number of square images, `side` pixels wide."""
    check_space(folder, int(number * 3 * side**2 * PNG_SHARE))
