"""Errors of a command or job: those with a cause that the user can remove in one sentence, the others as a fault.

A cause outside of the program (input, setting, machine) is told without a traceback. Anything else is a fault of the
program: its traceback is shown, and the message names the log that belongs into a report.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import traceback
import zipfile
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from resurgence import __version__

OF_LIBRARIES = (  # errors of input and machine that derive from neither ValueError nor OSError
    ("torch", "OutOfMemoryError"),
    ("safetensors", "SafetensorError"),
    ("yaml", "YAMLError"),
    ("pyarrow", "ArrowException"),
)
REMEDIES = {
    errno.ENOSPC: "free space there, or name a folder on another disk",
    errno.EDQUOT: "your quota is used up: free space, or name a folder on another disk",
    errno.EACCES: "change the permissions, or name another place",
    errno.EPERM: "change the permissions, or name another place",
    errno.EROFS: "the disk is mounted read-only: name a folder on another disk",
    errno.ENOENT: "check the name and the folder you run in",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a part of this path is a file: name another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk failed: check it, and give the command again",
    errno.ESTALE: "the network disk was mounted anew: give the command again",
}
MEMORY = "set a smaller batch (sampling.batch, or --set batch=1), a lower precision or a smaller size"


def expected() -> tuple[type[BaseException], ...]:
    """The exceptions whose cause is outside of the program; those of a library only where it has been imported."""
    of_libraries = [getattr(sys.modules[name], error) for name, error in OF_LIBRARIES if name in sys.modules]
    return (
        *(ValueError, OSError, MemoryError, csv.Error, subprocess.CalledProcessError),
        *(tarfile.TarError, zipfile.BadZipFile),
        *of_libraries,
    )


def sentence(error: BaseException) -> str:
    """What is said of an expected exception: its message; file and remedy where the system or a library raised it."""
    if isinstance(error, OSError) and error.errno in REMEDIES:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{os.strerror(error.errno)}; {REMEDIES[error.errno]}"
    if type(error).__name__ == "OutOfMemoryError" or (isinstance(error, MemoryError) and not str(error)):
        reason = str(error).partition(". ")[0] or "out of memory"
        return f"{reason}; {MEMORY}"
    return str(error) or type(error).__name__


def log_file() -> Path | None:
    """The file that the error output of this process goes to; None for a terminal or a pipe."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        place = Path(os.readlink(f"/proc/self/fd/{sys.stderr.fileno()}"))
        return place if place.is_file() else None
    return None


def fault(program: str, error: BaseException) -> str:
    """Say that an exception is a fault of the program, and which log to attach; a terminal's output is written to one.

    Args:
        program: the command or job.
    """
    log = log_file()
    if log is None:
        head = [f"{program}: {' '.join(sys.argv)}", f"Resurgence {__version__}, Python {platform.python_version()}"]
        with tempfile.NamedTemporaryFile("w", prefix="resurgence-", suffix=".log", delete=False) as file:
            file.write("\n".join([*head, "".join(traceback.format_exception(error))]))
        log = Path(file.name)
    return (
        f"{program}: this is a fault of Resurgence {__version__}, not of your input ({type(error).__name__}); "
        f"report it and attach {log}"
    )


def report(
    program: str, shown: bool, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Tell an exception that ends the process, as `sys.excepthook` with the first two arguments bound.

    Args:
        shown: whether the traceback of an expected exception is shown too.
    """
    if isinstance(error, KeyboardInterrupt):
        print(f"{program}: interrupted", file=sys.stderr)
    elif not isinstance(error, expected()):
        sys.__excepthook__(kind, error, trace)
        print(fault(program, error), file=sys.stderr)
    elif shown:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"{program}: {sentence(error)}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser of the command line whose errors end the process with 1, as all other errors do."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with 1."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: {message}\n")
