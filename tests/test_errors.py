"""An expected error is one sentence and exit 1; a fault of the program shows its traceback and names the log."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError

from resurgence import errors
from resurgence.cli import main

ROOT = Path(__file__).parents[1]
FAULTY = """
import sys
from resurgence.cli import main
main.COMMANDS["compare"] = main.COMMANDS["compare"]._replace(run="faulty:run")
sys.exit(main.main(sys.argv[1:]))
"""
RAISES = "def run(args):\n    {}\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "", "/data/out"), ["/data/out: No space left", "name a folder on another disk"]),
        (OSError(errno.EDQUOT, "", "/data/out"), ["/data/out: ", "your quota is used up"]),
        (PermissionError(errno.EACCES, "", "/data/x"), ["/data/x: Permission denied", "change the permissions"]),
        (OSError(errno.EROFS, "", "/ro/x"), ["/ro/x: Read-only", "the disk is mounted read-only"]),
        (FileNotFoundError(errno.ENOENT, "", "a.csv"), ["a.csv: No such file", "check the name"]),
        (IsADirectoryError(errno.EISDIR, "", "folder"), ["folder: Is a directory", "name a file"]),
        (NotADirectoryError(errno.ENOTDIR, "", "x/y"), ["x/y: Not a directory", "a part of this path is a file"]),
        (OSError(errno.ENAMETOOLONG, "", "aaa"), ["aaa: File name too long", "choose a shorter name"]),
        (OSError(errno.EMFILE, ""), ["Too many open files", "ulimit -n"]),
        (OSError(errno.EIO, "", "/nfs/x"), ["/nfs/x: Input/output error", "check it"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), ["CUDA out of memory", "--set batch=1"]),
        (MemoryError(), ["out of memory", "--set batch=1"]),
        (MemoryError("one image does not fit on cuda"), ["one image does not fit on cuda"]),
        (ValueError("a.yaml: key = 1: remedy"), ["a.yaml: key = 1: remedy"]),
        (SafetensorError("header"), ["header"]),
        (yaml.YAMLError("line 3"), ["line 3"]),
        (zipfile.BadZipFile("no zip"), ["no zip"]),
        (ValueError(), ["ValueError"]),
    ],
)
def test_an_expected_error_is_told_with_cause_and_remedy(error: Exception, told: list[str]) -> None:
    assert isinstance(error, errors.expected())
    sentence = errors.sentence(error)
    assert [part for part in told if part not in sentence] == [], sentence
    assert "\n" not in sentence and "Errno" not in sentence


@pytest.mark.parametrize(
    "error", [KeyError("x"), IndexError(), TypeError(), AttributeError(), RuntimeError(), ZeroDivisionError()]
)
def test_a_fault_of_the_program_is_not_expected(error: Exception) -> None:
    assert not isinstance(error, errors.expected())


def command(folder: Path, statement: str, *options: str, log: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `resurgence compare` in a process, with a function that executes this statement."""
    (folder / "faulty.py").write_text(RAISES.format(statement))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{folder}", "TMPDIR": str(folder)}
    arguments = [sys.executable, "-c", FAULTY, *options, "compare"]
    if log is None:
        return subprocess.run(arguments, env=environment, capture_output=True, text=True)
    with open(log, "w") as file:
        return subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, stderr=file, text=True)


def test_a_fault_shows_its_traceback_and_names_a_log_that_has_it(tmp_path: Path) -> None:
    done = command(tmp_path, "{}['nothing']")
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError: 'nothing'" in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("resurgence compare: this is a fault of Resurgence") and "not of your input" in told
    log = Path(re.search(r"attach (\S+)$", told)[1]).read_text()
    assert "KeyError: 'nothing'" in log and "faulty.py" in log and "compare" in log and "Python 3" in log


def test_a_fault_names_the_file_that_its_output_goes_to(tmp_path: Path) -> None:
    log = tmp_path / "study.log"
    assert command(tmp_path, "{}['nothing']", log=log).returncode == 1
    assert log.read_text().splitlines()[-1].endswith(f"attach {log}") and "Traceback" in log.read_text()
    assert not list(tmp_path.glob("resurgence-*.log"))


def test_an_expected_error_shows_no_traceback_unless_asked(tmp_path: Path) -> None:
    statement = "open('/no/such/file')"
    done = command(tmp_path, statement)
    assert (done.returncode, done.stderr) == (
        1, "resurgence compare: /no/such/file: No such file or directory; check the name and the folder you run in\n"
    )  # fmt: skip
    assert "Traceback" in command(tmp_path, statement, "--verbose").stderr


def test_an_interrupt_shows_no_traceback(tmp_path: Path) -> None:
    done = command(tmp_path, "raise KeyboardInterrupt")
    assert done.stderr == "resurgence compare: interrupted\n" and done.returncode != 0


def job(folder: Path, settings: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the stage that writes a prompt set."""
    out = str(folder / "results/prompts/manifest.json")
    stage = [sys.executable, "-m", "resurgence.stages.prompts", "--settings", settings, "--out", out, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(stage, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_job_tells_an_expected_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "general.csv").write_text("caption\na cat\n")
    done = job(tmp_path, '{"task": {}, "general": "general.csv"}')
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "results/prompts/manifest.json: tasks.general = 'general.csv'" in last and "needs the columns prompt" in last


def test_a_job_shows_the_traceback_of_a_fault(tmp_path: Path) -> None:
    done = job(tmp_path, '{"task": {}}')  # settings that the workflow never writes
    assert done.returncode == 1 and "Traceback" in done.stderr and "this is a fault of Resurgence" in done.stderr


USAGE = {
    "no command": ([], "required: COMMAND"),
    "another command": (["train"], "invalid choice: 'train'"),
    "no base": (["sample", "--task", "t", "--out", "o"], "required: --base"),
    "another eraser": (["erase", "--base", "b", "--task", "t", "--out", "o", "--eraser", "x"], "invalid choice: 'x'"),
    "a seed in words": (["finetune", "--base", "b", "--images", "i", "--out", "o", "--seed", "two"], "value: 'two'"),
    "another option": (["plan", "--colour", "red"], "unrecognized arguments: --colour red"),
    "no value": (["export", "--base"], "argument --base: expected one argument"),
    "another precision": (
        ["sample", "--base", "b", "--task", "t", "--out", "o", "--precision", "fp8"], "invalid choice: 'fp8'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_errors_of_usage_exit_1(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, told = USAGE[case]
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    printed = capsys.readouterr().err
    assert stopped.value.code == 1 and told in printed and "usage: resurgence" in printed


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["sample", "--help"]])
def test_help_exits_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    assert stopped.value.code == 0 and capsys.readouterr().out
