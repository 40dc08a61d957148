"""Take over results that another run made, after `dvc pull`: Snakemake then knows what is up to date and what is not.

Snakemake decides by times of change and by what it noted when a job ran; neither comes with a pull. So each manifest is
compared with what the job would be given now: its settings, the version of its code, and inputs; and its files are
hashed again.
What matches is marked as made just now. What does not, and all that is made from it, is named with the first
difference and marked as older than everything. A result with a changed or missing file loses its manifest: nothing is
built on it, and its job, or `dvc checkout`, makes it whole.
"""

from __future__ import annotations

import contextlib
import functools
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resurgence.config.load import load_study
from resurgence.files import plain, resolve_path
from resurgence.provenance.manifest import MANIFEST, as_written, digest_of, read_manifest, verify
from resurgence.provenance.runs import restore, run_of
from resurgence.workflow.jobs import Job, jobs
from resurgence.workflow.snakemake import check_package, configured, snakemake

OLD = 1  # seconds since 1970; Snakemake takes a time of 0 for none


class Verdict(NamedTuple):
    """What is to be told of a result."""

    state: str  # fresh, stale, damaged or missing
    why: str = ""


def changes(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """The differences of two JSON values, as `place: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from changes(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place}: {old!r} -> {new!r}"


def of_format_1(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of format 1 as it is written now.

    A method has its name, not its module; only MACE trained LoRAs in a step of its own. Files of shared folders, such
    as tables, were listed one by one: they count through the made.json that lists them.
    """
    parameters = dict(manifest["parameters"])
    prefix, _, name = parameters.get("method", "").rpartition(".")
    if prefix == "resurgence.erasers":
        parameters["method"] = name.replace("_", "-")
    elif manifest["kind"] == "concept LoRAs":
        parameters["method"] = "mace"
    inputs = {name: digest for name, digest in manifest["inputs"].items() if not in_shared_folder(name)}
    return {**manifest, "parameters": parameters, "inputs": inputs}


def in_shared_folder(name: str) -> bool:
    """Whether an input is a result that is no artefact."""
    return name.startswith("results/") and not name.endswith(MANIFEST)


def difference(job: Job, manifest: Mapping[str, Any], run: Mapping[str, Any], digest: Callable[[Path], str]) -> str:
    """The first difference between a manifest with its run and the job that would write it now; empty without one.

    The code is compared where the run tells its version: not for format 1, nor where run.json was lost.
    """
    now = job.digested
    if manifest["format"] == 1:
        manifest = of_format_1(manifest)
        now = {name: path for name, path in now.items() if not in_shared_folder(name)}
    if first := next(changes(manifest["parameters"], plain(job.settings)), ""):
        return first
    if run.get("code", job.code) != job.code:
        return f"its code has changed: version {run['code']} -> {job.code}"
    read = manifest["inputs"]
    for name in sorted({*read, *now}):
        if name not in now or name not in read:
            return f"input {name} {'is no longer read' if name not in now else 'is new'}"
        if read[name] != digest(now[name]):
            return f"input {name} has changed"
    return ""


def owners(outs: Iterable[Path], root: Path) -> dict[Path, Path]:
    """File of a shared folder -> the made.json that names it; those of a damaged one are left out."""
    found: dict[Path, Path] = {}
    for out in outs:
        if out.name != MANIFEST and (root / out).is_file():
            with contextlib.suppress(ValueError):
                names = read_manifest(root / out)["files"]
                found |= {Path(os.path.normpath(out.parent / name)): out for name in names}
    return found


def judge(jobs: Sequence[Job], root: Path = Path()) -> dict[Path, Verdict]:
    """Output -> verdict, for jobs of which each comes after those whose results it reads."""
    digest = functools.cache(lambda path: digest_of(root / path))
    found: dict[Path, Verdict] = {}
    owner = owners((job.out for job in jobs), root)
    for job in jobs:
        found[job.out] = judge_one(job, root, digest)
        above = [path if path in found else owner.get(path, path.with_name("made.json")) for path in job.above]
        stale = next((path for path in above if path in found and found[path].state != "fresh"), None)
        if stale and found[job.out].state == "fresh":
            found[job.out] = Verdict("stale", f"made from {stale.parent}")
    return found


def judge_one(job: Job, root: Path, digest: Callable[[Path], str]) -> Verdict:
    """The verdict on one output, its inputs being as they are."""
    file = root / job.out
    if not file.is_file():
        return Verdict("missing", f"{job.out} is missing")
    try:
        manifest = read_manifest(file)
    except ValueError as error:
        return Verdict("damaged", str(error))
    problems = verify(file.parent) if job.out.name == MANIFEST else as_written(file.parent, manifest["files"])
    if problems:
        return Verdict("damaged", problems[0])
    try:
        change = difference(job, manifest, run_of(job.out, root), digest)
    except FileNotFoundError as error:
        return Verdict("stale", str(error))
    return Verdict("stale", change) if change else Verdict("fresh")


def mark(found: Mapping[Path, Verdict], overlays: Sequence[Path], root: Path = Path()) -> None:
    """Let Snakemake know: fresh results are noted as made now, stale ones as ages old, damaged ones as not finished."""
    fresh = [out.as_posix() for out, verdict in found.items() if verdict.state == "fresh"]
    stale = [out.as_posix() for out, verdict in found.items() if verdict.state == "stale"]
    for out, verdict in found.items():
        if verdict.state == "damaged":
            (root / out).unlink()
    if stale:
        files = [*stale, *(file.as_posix() for file, made in owners(found, root).items() if made.as_posix() in stale)]
        told = snakemake("--cleanup-metadata", *files, *configured(overlays), root=root, check=False)
        if "metadata was not present" not in told and "Error" in told:
            raise ValueError(f"snakemake --cleanup-metadata fails; it says\n{told[-4000:]}")
    if fresh:
        snakemake("--touch", "-F", "--cores", "1", *configured(overlays), "--", *fresh, root=root)
    for name in stale:
        os.utime(root / name, (OLD, OLD))


def adopt_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence adopt`."""
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="studies laid over params.yaml")


def adopt(args: Namespace) -> None:
    """Compare all results of the study with its configuration and sources, and tell Snakemake and the user."""
    check_package()
    restored = restore()
    study_jobs = jobs(load_study([Path(resolve_path("params.yaml")), *args.overlay]))
    found = judge(study_jobs)
    mark(found, args.overlay)
    for out, verdict in found.items():
        if verdict.state != "fresh":
            print(f"{verdict.state:<8} {out.parent if out.name == MANIFEST else out}: {verdict.why}")
    number = sum(verdict.state == "fresh" for verdict in found.values())
    print(f"{number} of {len(found)} results are up to date; {restored} run.json restored")
    unknown = [job.out for job in study_jobs if found[job.out].state == "fresh" and "code" not in run_of(job.out)]
    if unknown:
        print(f"{len(unknown)} of these do not say which version of the code made them; it was not compared")
    if number < len(found):
        print("`make study` runs the rest; `dvc checkout` puts back files that were changed by accident")
