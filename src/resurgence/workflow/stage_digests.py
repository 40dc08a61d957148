"""Digests of the stages of dvc.yaml, results/expected.json, from the jobs of the study.

An output's digest covers its settings, code version, files that it reads, and the digests of the outputs that it reads.
So a change of a value, a formula or a file changes exactly the stages that it affects, for DVC as for Snakemake. No
result is read.
"""

from __future__ import annotations

import functools
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path

from resurgence.config.counting import counted
from resurgence.config.load import load_study
from resurgence.files import digest_of_text, plain, resolve_path, write_json
from resurgence.provenance.manifest import MANIFEST, digest_of
from resurgence.provenance.outputs import check_file
from resurgence.workflow.jobs import Job, jobs
from resurgence.workflow.snakemake import check_package

EXPECTED = Path("results/expected.json")


def digests(jobs: Iterable[Job]) -> dict[Path, str]:
    """Output -> digest of its causes. Files of a shared folder count as the single output of the folder."""
    file_digest = functools.cache(digest_of)
    digest: dict[Path, str] = {}
    for job in jobs:
        shared = {out.parent: value for out, value in digest.items() if out.name != MANIFEST}
        files = [path for path in map(Path, job.digested) if path not in job.above]
        digest[job.out] = digest_of_text({
            "settings": plain(job.settings),
            "code": job.code,
            "files": {path.as_posix(): file_digest(path) for path in files},
            "above": {path.as_posix(): digest.get(path) or shared.get(path.parent) for path in job.above},
        })  # fmt: skip
    return digest


def expected_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence expected`."""
    parser.add_argument("--out", type=Path, default=EXPECTED, metavar="FILE", help=f"default: {EXPECTED}")


def is_expected(file: Path) -> bool:
    """Whether a file holds the digests of stages."""
    try:
        stages = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(stages, dict) and all(isinstance(s, dict) and "digest" in s for s in stages.values())


def run(args: Namespace) -> None:
    """Write the file: stage -> its digest, and those of its outputs."""
    check_file("--out", args.out, is_expected)
    check_package()
    study_jobs = jobs(load_study([Path(resolve_path("params.yaml"))]))
    digest = digests(study_jobs)
    stages: dict[str, dict[str, str]] = {}
    for job in study_jobs:
        stages.setdefault(job.rule.dvc_stage, {})[job.out.as_posix()] = digest[job.out]
    args.out.parent.mkdir(exist_ok=True)
    write_json(args.out, {n: {"digest": digest_of_text(outputs), "outputs": outputs} for n, outputs in stages.items()})
    print(f"{args.out}: {counted(len(digest), 'output')} of {counted(len(stages), 'stage')}")
