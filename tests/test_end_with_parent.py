"""A Snakemake ends when the audit, or the tool, that has started it is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import audit_models
import pytest

from resurgence.cli import audit
from resurgence.workflow import resume

PARENT = """
import subprocess, time
from resurgence.workflow.resume import end_with_parent
child = subprocess.Popen(["sleep", "600"], preexec_fn=end_with_parent)
print(child.pid, flush=True)
time.sleep(600)
"""


def runs(process: int) -> bool:
    """Whether a process exists and is not only waiting to be reaped."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_audits_and_their_table_start_processes_that_end_with_them(monkeypatch, tmp_path) -> None:
    started = []

    def run(command, **options):
        started.append(options["preexec_fn"])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    audit_models.resurgence("audit", codes=(0,))
    audit.snakemake(tmp_path, 1)
    assert started == 2 * [resume.end_with_parent]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.kill()
        parent.wait()
    while runs(child):  # a child that goes on is ended by the time limit of the test
        time.sleep(0.05)
