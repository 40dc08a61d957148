"""Adopt the results of another run, after `dvc pull`: Snakemake then knows which of them are up to date.

Snakemake decides by times of change and by its records of finished jobs; neither comes with a pull. So each manifest is
compared with the present settings, code version and inputs of the job, and its files are hashed again. A result that
matches is marked as new. One that does not, and all results computed from it, are listed with the first difference and
marked as older than all others. A result with a changed or missing file loses its manifest: no job reads it, and its
own job, or `dvc checkout`, restores it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resurgence.config.counting import counted
from resurgence.config.load import load_study
from resurgence.files import plain, resolve_path
from resurgence.provenance.manifest import MANIFEST, as_written, digest_of, read_manifest, verify
from resurgence.provenance.runs import restore, run_of
from resurgence.workflow.jobs import Job, jobs
from resurgence.workflow.snakemake import check_package, configured, snakemake

OLD = 1  # seconds since 1970; Snakemake takes a time of 0 for none


class Verdict(NamedTuple):
    """The state of a result, and the reason."""

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
    """A manifest of format 1 in the present format.

    A method has its name instead of its module; only MACE trained LoRAs in a separate step. Files of shared folders,
    such as tables, were inputs one by one: now the made.json that lists them is the input.
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
    """The first difference between a manifest with its run and the present job; empty if there is none.

    The code is compared if the run has its version: not in format 1, nor after the loss of run.json.
    """
    inputs = job.digested
    if manifest["format"] == 1:
        manifest = of_format_1(manifest)
        inputs = {name: path for name, path in inputs.items() if not in_shared_folder(name)}
    if first := next(changes(manifest["parameters"], plain(job.settings)), ""):
        return first
    if run.get("code", job.code) != job.code:
        return f"its code has changed: version {run['code']} -> {job.code}"
    recorded = manifest["inputs"]
    for name in sorted({*recorded, *inputs}):
        if name not in inputs or name not in recorded:
            return f"input {name} {'is no longer read' if name not in inputs else 'is new'}"
        if recorded[name] != digest(inputs[name]):
            return f"input {name} has changed"
    return ""


def owners(outs: Iterable[Path], root: Path) -> dict[Path, Path]:
    """File of a shared folder -> the made.json that lists it; a damaged made.json is left out."""
    listed: dict[Path, Path] = {}
    for out in outs:
        if out.name != MANIFEST and (root / out).is_file():
            with contextlib.suppress(ValueError):
                names = read_manifest(root / out)["files"]
                listed |= {Path(os.path.normpath(out.parent / name)): out for name in names}
    return listed


def judge(jobs: Sequence[Job], root: Path = Path()) -> dict[Path, Verdict]:
    """Output -> verdict, for jobs in an order in which each comes after those whose results it reads."""
    digest = functools.cache(lambda path: digest_of(root / path))
    verdicts: dict[Path, Verdict] = {}
    owner = owners((job.out for job in jobs), root)
    for job in jobs:
        verdicts[job.out] = verdict_of(job, root, digest)
        above = [path if path in verdicts else owner.get(path, path.with_name("made.json")) for path in job.above]
        stale = next((path for path in above if path in verdicts and verdicts[path].state != "fresh"), None)
        if stale and verdicts[job.out].state == "fresh":
            verdicts[job.out] = Verdict("stale", f"computed from {stale.parent}")
    return verdicts


def verdict_of(job: Job, root: Path, digest: Callable[[Path], str]) -> Verdict:
    """The verdict on an output, by its present inputs."""
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


def mark(verdicts: Mapping[Path, Verdict], overlays: Sequence[Path]) -> None:
    """Mark results for Snakemake: fresh ones as new, stale ones as old; manifests of damaged ones are removed."""
    fresh, stale, damaged = (
        [out.as_posix() for out, verdict in verdicts.items() if verdict.state == state]
        for state in ("fresh", "stale", "damaged")
    )
    for name in damaged:
        Path(name).unlink()
    if stale:
        listed = [file.as_posix() for file, out in owners(verdicts, Path()).items() if out.as_posix() in stale]
        output = snakemake("--cleanup-metadata", *stale, *listed, *configured(overlays), check=False)
        if "metadata was not present" not in output and "Error" in output:
            raise ValueError(f"snakemake --cleanup-metadata fails; it says\n{output[-4000:]}")
    if fresh:
        snakemake("--touch", "-F", "--cores", "1", *configured(overlays), "--", *fresh)
    for name in stale:
        os.utime(name, (OLD, OLD))


def adopt_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence adopt`."""
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="studies laid over params.yaml")


def adopt(args: Namespace) -> None:
    """Compare all results of the study with its configuration and sources; mark them for Snakemake and list them."""
    check_package()
    restored = restore()
    study_jobs = jobs(load_study([Path(resolve_path("params.yaml")), *args.overlay]))
    verdicts = judge(study_jobs)
    mark(verdicts, args.overlay)
    for out, verdict in verdicts.items():
        if verdict.state != "fresh":
            print(f"{verdict.state:<8} {out.parent if out.name == MANIFEST else out}: {verdict.why}")
    fresh = [out for out, verdict in verdicts.items() if verdict.state == "fresh"]
    verb = "is" if len(verdicts) == 1 else "are"
    print(f"{len(fresh)} of {counted(len(verdicts), 'result')} {verb} up to date; {restored} run.json restored")
    if unknown := sum("code" not in run_of(out) for out in fresh):
        print(f"{unknown} of these have no record of their code version; it was not compared")
    if len(fresh) < len(verdicts):
        print("`make study` runs the rest; `dvc checkout` puts back files that were changed by accident")
