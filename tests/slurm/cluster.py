"""A throw-away SLURM with two nodes, the small study in it, and what SLURM knows of its jobs."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tree import Tree, clone

HERE = Path(__file__).parent
OVERLAY = "tests/small.yaml"
SITE = "account: null\ngres: null\npartitions:\n  main: {max_runtime: 1d}\n"
QUICK = (  # looks at jobs at once, and does not wait for a network file system
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"),
    *("--max-status-checks-per-second", "10", "--latency-wait", "10"),
)


@dataclass(frozen=True)
class Submitted:
    """A job as SLURM tells of it."""

    number: str
    state: str
    node: str
    comment: str  # rule and wildcards
    start: datetime | None
    end: datetime | None
    text: str

    def overlaps(self, other: Submitted) -> bool:
        """Whether both ran at one time, for more than the second that SLURM's clock has."""
        if None in (self.start, self.end, other.start, other.end):
            return False
        return (min(self.end, other.end) - max(self.start, other.start)).total_seconds() > 1


@dataclass(frozen=True)
class Cluster:
    """The running daemons."""

    folder: Path

    @classmethod
    def start(cls, folder: Path | None = None) -> Cluster:
        """Start them in a new folder, whose name is short enough for sockets, or in this one those that died."""
        folder = folder or Path(tempfile.mkdtemp(prefix="slurm-"))
        done = subprocess.run([HERE / "start.sh", folder], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return cls(folder)

    def stop(self) -> None:
        """End them; nothing of them may be left."""
        pids = [int(file.read_text()) for file in self.folder.glob("*.pid")]
        subprocess.run([HERE / "stop.sh", self.folder], check=True, timeout=120)
        left = [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and state_of(pid) != "Z"]
        assert not left and not self.folder.exists()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a command finds this SLURM and not another."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTHONPATH", "SNAKEMAKE_"))}
        path = f"{self.folder / 'bin'}:/usr/sbin:{os.environ['PATH']}"
        return {**kept, "PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf"), "RESURGENCE_SITE": "site.yaml"}

    def ask(self, *command: str) -> str:
        """Run a command of SLURM."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    def jobs(self, tree: Tree) -> list[Submitted]:
        """All jobs that were submitted from a tree, in their order."""
        found = []
        for line in self.ask("scontrol", "--oneliner", "show", "jobs").splitlines():
            fields = dict(re.findall(r"(\w+)=(\S*)", line))
            if fields.get("WorkDir") == str(tree.root):
                comment = re.search(r"Comment=(\S+)", line)
                times = [None if fields[k] in ("Unknown", "N/A") else datetime.fromisoformat(fields[k]) for k in TIMES]
                named = comment.group(1) if comment else ""
                found.append(Submitted(fields["JobId"], fields["JobState"], fields["NodeList"], named, *times, line))
        return sorted(found, key=lambda job: int(job.number))


TIMES = ("StartTime", "EndTime")
STARTED: list[subprocess.Popen] = []  # ended with the test, whatever becomes of it


def state_of(pid: int) -> str:
    """R, S, Z, ... of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def small_tree(fresh: Tree, place: Path, site: str = SITE) -> Tree:
    """A tree with the small study and the file of the test cluster."""
    tree = Tree(clone(fresh.root, place))
    (tree.root / "site.yaml").write_text(site)
    return tree


def options(*more: str, target: str = "tables", quick: bool = True) -> list[str]:
    """Options of Snakemake for the small study on the cluster."""
    profile = ("--workflow-profile", "profiles/slurm", *(QUICK if quick else ()))
    return [*profile, *more, "--configfile", OVERLAY, "--", target]


def start(tree: Tree, arguments: list[str], environment: Mapping[str, str], resume: bool = False) -> subprocess.Popen:
    """Start Snakemake, or `resurgence resume`, in a tree; what it prints goes to run.log."""
    words = ["resurgence.cli", "resume", "--"] if resume else ["snakemake"]
    package = {"PYTHONPATH": str(tree.root / "src")} if resume else {}
    with open(tree.root / "run.log", "a") as log:
        process = subprocess.Popen(
            ["env", "--default-signal=INT", sys.executable, "-m", *words, *arguments],
            cwd=tree.root,
            env={**environment, **package},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    STARTED.append(process)
    return process


def finish(tree: Tree, process: subprocess.Popen, code: int = 0, seconds: float = 900) -> str:
    """Wait for it; returns all that was printed in the tree so far."""
    ended = process.wait(seconds)
    told = (tree.root / "run.log").read_text()
    assert ended == code, told[-8000:]
    return told


def digests(tree: Tree) -> dict[str, str]:
    """SHA-256 of every table and their manifest; not of made.run.json, which describes the run."""
    files = sorted(set((tree.root / "results/tables").glob("*")) - {tree.root / "results/tables/made.run.json"})
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
