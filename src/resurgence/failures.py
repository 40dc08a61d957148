"""The failed jobs of a run, told so that one sees where to look: rule, cell, SLURM job, node, logs, end of the error.

    python -m resurgence.failures .snakemake/log/TIME.snakemake.log

The workflow prints this when a run has failed, after all that Snakemake itself says.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LINES = 6  # of the end of an error
BLOCK = re.compile(r"^Error in rule (\w+):\n((?:    .*\n|\n(?=    ))+)", flags=re.MULTILINE)
GROUP = re.compile(
    r"^    message: Error in group \w+\n(?:    log: (\S+) .*\n)?    jobs:\n((?:        .*\n)+)", re.MULTILINE
)
MEMBER = re.compile(r"rule (\w+):\n +jobid: (\d+)\n +output: (\S+?),?(?: .*)?\n(?: +log: (\S+?),?(?: .*)?\n)?")
HOST = re.compile(r"host (\S+?)(?:, SLURM job (\d+))?: ")


@dataclass(frozen=True)
class Failure:
    """One attempt of a job that failed."""

    rule: str
    cell: str  # the job's message: "Erase ship with uce, seed 0"
    output: str
    slurm: str | None
    node: str | None
    logs: tuple[Path, ...]
    end: tuple[str, ...]

    def told(self) -> list[str]:
        """Lines for a person."""
        place = f"SLURM job {self.slurm} on {self.node or 'an unknown node'}" if self.slurm else "this machine"
        lines = [f"FAILED {self.rule}: {self.cell} ({place})", f"    output: {self.output}"]
        return [*lines, *(f"    log: {path}" for path in self.logs), *(f"    | {line}" for line in self.end)]


def field(block: str, name: str) -> str | None:
    """The value of an entry of Snakemake's error message."""
    found = re.search(rf"^    {name}: (.*?)(?: \(check log file\(s\) for error details\))?$", block, flags=re.MULTILINE)
    return found.group(1) if found else None


def node_of(slurm: str) -> str | None:
    """The node of a SLURM job, from SLURM; None when it has forgotten the job."""
    try:
        done = subprocess.run(["scontrol", "show", "job", slurm], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bNodeList=(\S+)", done.stdout)
    return found.group(1) if found and found.group(1) != "(null)" else None


def last_lines(logs: tuple[Path, ...]) -> tuple[str, ...]:
    """The end of the first log that says anything."""
    for path in logs:
        lines = [line.rstrip() for line in path.read_text(errors="replace").splitlines()] if path.is_file() else []
        if lines := [line for line in lines if line]:
            return tuple(lines[-LINES:])
    return ("no log says anything: the job ended before its program began",)


def failure(
    text: str, rule: str, number: str | None, output: str, logs: tuple[Path, ...], slurm: str | None
) -> Failure:
    """One failed attempt: its node and the end of its error, from its logs."""
    head = logs[0].read_text(errors="replace")[:2000] if logs and logs[0].is_file() else ""
    host = HOST.search(head)
    same = host and (slurm is None or host.group(2) == slurm)  # else the log is of an earlier attempt
    node = (node_of(slurm) if slurm else None) or (host.group(1) if same else None)
    told = last_lines(logs if same or not slurm else logs[::-1])
    return Failure(rule, message(text, number) or rule, output, slurm, node, logs, told)


def failures(text: str) -> list[Failure]:
    """Failed attempts in what Snakemake printed, in their order; of a job that failed again only the last."""
    found: dict[str, Failure] = {}
    for rule, block in BLOCK.findall(text):
        slurm = field(block, "external_jobid")
        names = [name for key in ("log", "slurm_logfile") for name in (field(block, key) or "").split(", ") if name]
        output = (field(block, "output") or "?").split(", ")[0]
        if slurm is None and output in found and found[output].slurm:
            continue  # what the Snakemake inside of the SLURM job printed: the job's log is part of this text
        found.pop(output, None)
        found[output] = failure(text, rule, field(block, "jobid"), output, tuple(map(Path, names)), slurm)
    for group in GROUP.finditer(text):
        log, jobs = group.group(1) or "", MEMBER.findall(group.group(2))
        before = re.sub("^ +Job ", "Job ", text[: group.start()], flags=re.MULTILINE)  # what it told when they began
        # which job ended its group is told by the Snakemake inside only; where that said nothing, all have failed
        for rule, number, output, own in [job for job in jobs if job[2] in found] or jobs:
            found.pop(output, None)
            logs = tuple(Path(name) for name in (own, log) if name)
            found[output] = failure(before, rule, number, output, logs, Path(log).stem or None)
    return list(found.values())


def message(text: str, number: str | None) -> str | None:
    """What a job is, in the words of the study."""
    found = re.search(rf"^Job {number}: (.+)$", text, flags=re.MULTILINE)
    return found.group(1) if found else None


def main() -> None:
    """Print the failures of a log of Snakemake."""
    told = failures(Path(sys.argv[1]).read_text(errors="replace"))
    for failure in told:
        print("\n".join(failure.told()))
    if told:
        print("What the messages mean and what to do: docs/slurm.md, docs/reliability.md. What has run stays; when the")
        print("cause is gone, give the same command again, or `resurgence resume -- OPTIONS` after a kill.")


if __name__ == "__main__":
    main()
