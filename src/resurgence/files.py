"""Files: digests, lines, stable JSON text, locks, and writing so that a file or folder is there whole or not at all."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).resolve().parents[2]  # the repository that this package lies in, if it runs from one


def resolve_path(path: str | Path, root: Path = Path()) -> str:
    """A path of the configuration: below root where there is such a file or folder, else in the checkout if there.

    So a study can run in any folder: paths of the user's are in that folder, the defaults' in the checkout.
    """
    return str(path) if (root / path).exists() or not (CHECKOUT / path).exists() else str(CHECKOUT / path)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_text(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without white space around them and without empty ones."""
    text = Path(path).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def lock(file: Path) -> IO[str] | None:
    """Take the lock of a file, held as long as what is returned is open; None while another process holds it.

    Raises:
        OSError: the file system has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = open(file, "a+")  # noqa: SIM115 the open file is the lock
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError:
        handle.close()
        raise
    return handle


def sign(handle: IO[str]) -> None:
    """Write into a lock file which process holds it: the host, the process, the SLURM job."""
    handle.truncate(0)
    job = os.environ.get("SLURM_JOB_ID", "none")
    handle.write(f"host {platform.node()}, process {os.getpid()}, SLURM job {job}\n")
    handle.flush()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed at the end of the block, and removed after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder`; it replaces `folder` as a whole at the end of the block.

    Between the two renames there is no folder of this name, never a mixture. After an error nothing is left.
    """
    folder = Path(folder)
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
