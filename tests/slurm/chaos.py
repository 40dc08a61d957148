"""Kill processes of the small study again and again, resume, and compare the tables with those of a quiet run.

    python tests/slurm/chaos.py --kills 200 --seed 1 [--slurm] FOLDER        prints what was killed, and the digests

A kill is drawn from the seed: the moment, what is hit (the Snakemake that the user started, a job, a shell between the
two, on SLURM also a node's daemon) and how (SIGKILL, or SIGTERM for one in four). Then `resurgence resume`.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [
    str(ROOT / part) for part in ("src", "tests", "tests/workflow", "tests/slurm") if __name__ == "__main__"
]

from cluster import OVERLAY, Cluster, digests, options, small_tree, start, state_of  # noqa: E402
from tree import Tree, fresh_tree  # noqa: E402

from resurgence.provenance.manifest import verify  # noqa: E402

LOCAL = ["--cores", "2", "--retries", "1", "--configfile", OVERLAY, "--", "tables"]
LONGEST = {False: 12.0, True: 25.0}  # seconds from the first job to the kill, local and on SLURM
STARTING = 0.2  # of the kills come before the first job


@dataclass
class Chaos:
    """One tree that is disturbed."""

    tree: Tree
    cluster: Cluster | None
    seed: int
    killed: collections.Counter[str] = field(default_factory=collections.Counter)
    finished: int = 0  # runs that ended before their kill; each then starts from nothing

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the runs."""
        return self.cluster.environment if self.cluster else dict(os.environ)

    def run(self) -> subprocess.Popen:
        """Resume, or start."""
        arguments = options() if self.cluster else LOCAL
        return start(self.tree, arguments, self.environment, resume=True)

    def processes(self) -> dict[str, list[int]]:
        """Processes of the tree by what they are."""
        found: dict[str, list[int]] = {"job": [], "shell": []}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                inside = (place / "cwd").resolve() == self.tree.root.resolve()
                words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if inside and "resurgence.stages." in " ".join(words):
                found["shell" if "bash" in words[0] else "job"].append(int(place.name))
        return {kind: pids for kind, pids in found.items() if pids}

    def kill(self, draw: random.Random, snakemake: subprocess.Popen) -> str | None:
        """Kill one process; says what, or None when it had ended already."""
        victims = self.processes() | {"snakemake": [snakemake.pid]}
        if self.cluster and draw.random() < 0.15:
            victims = {"slurmd": [int((self.cluster.folder / f"slurmd.node{draw.choice((1, 2))}.pid").read_text())]}
        kind = draw.choice(sorted(victims))
        number = signal.SIGTERM if kind != "slurmd" and draw.random() < 0.25 else signal.SIGKILL
        try:
            os.kill(draw.choice(sorted(victims[kind])), number)
        except ProcessLookupError:
            return None
        return f"{kind} {number.name}"

    def disturb(self, kills: int) -> None:
        """Kill so many times; after each kill every manifest that exists must describe whole files."""
        draw = random.Random(self.seed)
        while self.killed.total() < kills:
            process = self.run()
            if draw.random() >= STARTING:
                self.wait(process, 60, until_job=True)
            self.wait(process, draw.uniform(1, LONGEST[self.cluster is not None]))
            if process.poll() is None and (what := self.kill(draw, process)):
                self.killed[what] += 1
                print(f"kill {self.killed.total()}: {what}", flush=True)
                self.after(what, process)
            elif process.poll() == 0:
                self.finished += 1
                shutil.rmtree(self.tree.root / "results")
            self.check()

    def wait(self, process: subprocess.Popen, seconds: float, until_job: bool = False) -> None:
        """Wait so long, or until the run ends, or until a job runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None and not (until_job and "job" in self.processes()):
            time.sleep(0.1)

    def after(self, what: str, process: subprocess.Popen) -> None:
        """Let the run see what happened for a while, then stop it, too: a user who gives up and resumes."""
        if self.cluster and what.startswith("slurmd"):
            Cluster.start(self.cluster.folder)
        if not what.startswith("snakemake SIGKILL"):
            self.wait(process, 5)
            process.kill()
        process.wait()

    def check(self) -> None:
        """No half-written artefact has a manifest."""
        found = [folder.parent for folder in (self.tree.root / "results").rglob("manifest.json")]
        problems = [
            problem
            for folder in found
            if ".partial" not in str(folder) and ".old" not in str(folder)
            for problem in verify(folder)
            if "is missing, so" not in problem  # a job of the killed run has just begun to replace it
        ]
        assert not problems, problems

    def complete(self) -> dict[str, str]:
        """Run to the end undisturbed; the digests of the tables."""
        process = self.run()
        code = process.wait(1800)
        assert code == 0, (self.tree.root / "run.log").read_text()[-8000:]
        assert not self.processes() and state_of(process.pid) in ("", "Z")
        return digests(self.tree)


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder, for the trees and the SLURM")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true", help="on a throw-away SLURM, else on this machine")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    (args.folder / "fresh").mkdir()
    fresh = fresh_tree(args.folder / "fresh")
    cluster = Cluster.start(args.folder / "slurm") if args.slurm else None
    began = time.monotonic()
    try:
        quiet = Chaos(small_tree(fresh, args.folder / "quiet"), cluster, 0).complete()
        chaos = Chaos(small_tree(fresh, args.folder / "disturbed"), cluster, args.seed)
        chaos.disturb(args.kills)
        disturbed = chaos.complete()
    finally:
        if cluster:
            cluster.stop()
    for what, number in sorted(chaos.killed.items()):
        print(f"{number:4d} x {what}")
    print(f"{chaos.finished} runs ended before their kill; {(time.monotonic() - began) / 60:.0f} minutes in all")
    for name, digest in disturbed.items():
        print(f"{digest}  {name}" if quiet[name] == digest else f"DIFFERENT  {name}")
    sys.exit(quiet != disturbed)


if __name__ == "__main__":
    main()
