"""What each stage of dvc.yaml is made from: results/expected.json, from the jobs that Snakemake would run.

One digest an output: of its settings, its source modules, the files that it reads, and the digests of the outputs that
it reads. Any change of a value, a line of code or a file so changes exactly the stages that it affects, for DVC as for
Snakemake. Nothing is read from the results.
"""

from __future__ import annotations

import functools
import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resurgence.files import write_json
from resurgence.provenance.manifest import MANIFEST, digest_of, source_name
from resurgence.workflow.dry_run import RESULTS, Planned, check_package, planned

EXPECTED = Path(RESULTS, "expected.json")


def digest_of_text(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digests(jobs: Iterable[Planned], root: Path = Path()) -> dict[Path, str]:
    """Output -> digest of all that it is made from. Files of shared folders count as the one output of the folder."""
    file_digest = functools.cache(lambda path: digest_of(root / path))
    found: dict[Path, str] = {}
    for job in jobs:
        made = {out.parts[:2]: digest for out, digest in found.items() if out.name != MANIFEST}
        above = {p.as_posix(): found.get(p) or made.get(p.parts[:2]) for p in job.inputs if p.parts[0] == RESULTS}
        files = [path for path in job.inputs if path.suffix != ".py" and path.parts[0] != RESULTS]
        told = {
            "block": job.block,
            "sources": {source_name(path): file_digest(path) for path in job.sources},
            "files": {path.as_posix(): file_digest(path) for path in files},
            "above": above,
        }
        found[job.out] = digest_of_text(told)
    return found


def expected_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence expected`."""
    parser.add_argument("--out", type=Path, default=EXPECTED, metavar="FILE", help=f"default: {EXPECTED}")


def run(args: Namespace) -> None:
    """Write the file: stage -> its digest, and that of each of its outputs."""
    check_package()
    jobs = planned()
    found = digests(jobs)
    stages: dict[str, dict[str, str]] = {}
    for job in jobs:
        stages.setdefault(job.stage, {})[job.out.as_posix()] = found[job.out]
    told = {name: {"digest": digest_of_text(outputs), "outputs": outputs} for name, outputs in stages.items()}
    args.out.parent.mkdir(exist_ok=True)
    write_json(args.out, told)
    print(f"{args.out}: {len(found)} outputs of {len(stages)} stages")
