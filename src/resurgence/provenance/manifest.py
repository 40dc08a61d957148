"""Artefacts: a folder whose manifest.json says what is in it and what it was made from.

The folder is written under a temporary name and renamed, the manifest last, so an interrupted step leaves nothing that
a consumer accepts. manifest.json identifies the result: kind, parameters, seeds, digests of the inputs, and the SHA-256
of each file. It holds nothing that varies from run to run, and nothing of the code: two runs that make the same files
of the same inputs write the same bytes, and whoever reads the artefact is not computed again. Version of the code,
commit, host, processor, versions of the libraries, device, seconds and peak memory go to run.json beside it, which
names the manifest that it belongs to. Files that several jobs put into one folder (tables, figures) have a made.json of
the same form, and its run in made.run.json.

Format 1 (until 0.1) also had `sources`, the digest of each source module; it is read, and no longer written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from resurgence.files import (
    atomic_folder,
    digest_of_text,
    files_below,
    json_text,
    known_sha256,
    plain,
    sha256,
    write_json,
)

log = logging.getLogger(__name__)
FORMAT = 2
MANIFEST, RUN = "manifest.json", "run.json"
EARLIER_SECONDS = "earlier_seconds"  # in run.json: of a training that was interrupted, until its state was saved
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pyarrow")


def run_file(manifest: Path) -> Path:
    """The file that describes the run behind a manifest.json or made.json."""
    return manifest.with_name(RUN) if manifest.name == MANIFEST else manifest.with_suffix(".run.json")


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in it, without the manifest and run files."""
    files = [path for path in files_below(folder) if path not in (folder / MANIFEST, folder / RUN)]
    return {path.relative_to(folder).as_posix(): known_sha256(path) for path in files}


def digest_of(path: Path) -> str:
    """Digest of an input: of its manifest for an artefact, of its bytes for a file, of all files for another folder.

    Raises:
        FileNotFoundError: the input does not exist.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return sha256(path / MANIFEST)
    if path.is_dir():
        return digest_of_text(files_of(path))
    if not path.is_file():
        raise FileNotFoundError(f"input {path} is missing; run the step that writes it, or correct the path")
    return known_sha256(path)


def git(*arguments: str) -> str | None:
    """What git prints in the working folder; None where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> dict[str, Any]:
    """The commit of the working folder, and whether its tracked files differ from it; empty without git."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return {}
    return {"commit": head, "dirty": git("status", "--porcelain", "--untracked-files=no") != ""}


def processor(torch: Any) -> str:
    """Name of the processor and the instructions that torch computes with, for example "AMD EPYC 7763, AVX2".

    Both choose the kernels of torch, MKL and oneDNN, which sum in different orders: another processor may round
    otherwise.

    Args:
        torch: the module, which a job without it need not import.
    """
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def circumstances(seconds: float) -> dict[str, Any]:
    """What may vary from run to run: host, processor, commit, versions, device, seconds, peak memory in MiB."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    facts = {"host": platform.node(), "versions": versions, "seconds": round(seconds, 3), **commit()}
    facts |= {"device": "cpu", "peak_memory_mib": round(kibibytes / 1024, 1)}
    torch = sys.modules.get("torch")
    if torch is None:
        return facts
    facts |= {"processor": processor(torch), "threads": torch.get_num_threads()}
    if torch.cuda.is_initialized():
        facts["device"] = torch.cuda.get_device_name()
        facts["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return facts


def described(
    kind: str, parameters: Mapping[str, Any], inputs: Mapping[str, Path], seeds: Mapping[str, int]
) -> dict[str, Any]:
    """A manifest without its files."""
    return {
        "format": FORMAT,
        "kind": kind,
        "parameters": plain(parameters),
        "seeds": plain(seeds),
        "inputs": {name: digest_of(path) for name, path in sorted(inputs.items())},
    }


def write_run(manifest: Path, text: str, seconds: float, run: Mapping[str, Any]) -> None:
    """Write what is known of the run that made the artefact of a manifest with this text.

    Args:
        seconds: of this process; those of the interrupted ones before it, if it resumed a training, are added.
    """
    digest, seconds = hashlib.sha256(text.encode()).hexdigest(), seconds + run.get(EARLIER_SECONDS, 0.0)
    write_json(run_file(manifest), {**circumstances(seconds), **run, "manifest": digest})


def write_made(
    out: Path, manifest: Mapping[str, Any], files: Iterable[Path], seconds: float, run: Mapping[str, Any]
) -> None:
    """Write the manifest of files that several jobs put into one folder; they are named from where it lies."""
    named = {Path(os.path.relpath(file, out.parent)).as_posix(): sha256(file) for file in files}
    whole = {**manifest, "files": dict(sorted(named.items()))}
    write_run(out, json_text(whole), seconds, run)
    write_json(out, whole)


@contextmanager
def write_artefact(
    folder: Path,
    kind: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Path],
    seeds: Mapping[str, int],
    run: dict[str, Any],
) -> Iterator[Path]:
    """Yield a temporary folder to write into; on success add the manifest and rename it over `folder`.

    Args:
        folder: the artefact; it replaces an older one of this name as a whole.
        kind: what it is, e.g. "erased delta" or "image set".
        parameters: the resolved settings; dataclasses, mappings, lists, text and numbers.
        inputs: name -> manifest, file or folder that the step read.
        seeds: name -> seed.
        run: goes to run.json; the caller may add measurements (images per second) until the block ends.

    Raises:
        FileNotFoundError: an input is missing; raised before the block is entered.
        ValueError: the folder of this name holds other artefacts below it, or the block wrote no file.
    """
    started, folder = time.monotonic(), Path(folder)
    nested = [path for path in files_below(folder) if path.name == MANIFEST and path.parent != folder]
    if nested:
        raise ValueError(f"{folder} holds another artefact, {nested[0].parent}; write to a folder of its own")
    manifest = described(kind, parameters, inputs, seeds)
    json.dumps(manifest, allow_nan=False)  # an unusable parameter is an error now, not after the work
    with atomic_folder(folder) as temporary:
        yield temporary
        if not (files := files_of(temporary)):
            raise ValueError(f"{kind} {folder}: the step wrote no file")
        text = json_text({**manifest, "files": files})
        write_run(temporary / MANIFEST, text, time.monotonic() - started, run)
        (temporary / MANIFEST).write_text(text, encoding="utf-8")
    log.info("%s: %s, %d files, %.1f s", kind, folder, len(files), time.monotonic() - started)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of an artefact, given the folder or the file; of format 1 or 2.

    Raises:
        FileNotFoundError: there is none: the step did not finish.
        ValueError: it is damaged, or of a later format.
    """
    path = Path(path)
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, so {file.parent} is no finished artefact; run its step")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); delete {file.parent} and run its step again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{file} is damaged (no list of files); delete {file.parent} and run its step again")
    if (written := manifest.setdefault("format", 1)) not in (1, FORMAT):
        raise ValueError(
            f"{file} has format {written!r}, this version reads 1 and {FORMAT}; install a newer Resurgence"
        )
    return manifest


def verify(folder: Path, left_out: Collection[Path] = ()) -> list[str]:
    """One sentence for each missing, changed or unlisted file of an artefact; empty when all is as written.

    Args:
        left_out: files that may be missing, without links.
    """
    folder = Path(folder)
    try:
        wanted = read_manifest(folder)["files"]
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    files = {path.relative_to(folder).as_posix() for path in files_below(folder)}
    more = sorted(files - set(wanted) - {MANIFEST, RUN})
    problems = as_written(folder, without(folder, wanted, left_out))
    return problems + [f"{folder / name} is not part of the artefact" for name in more]


def without(folder: Path, files: Mapping[str, str], left_out: Collection[Path]) -> dict[str, str]:
    """The files of a manifest in a folder but those that are left out."""
    return {name: digest for name, digest in files.items() if (folder / name).resolve() not in left_out}


def as_written(folder: Path, wanted: Mapping[str, str], digest_of_file: Callable[[Path], str] = sha256) -> list[str]:
    """One sentence for each missing or changed file of a list: path from the folder -> SHA-256."""
    problems = []
    for name, digest in sorted(wanted.items()):
        path = Path(os.path.normpath(folder / name))
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif (seen := digest_of_file(path)) != digest:
            problems.append(f"{path} has changed since it was written (sha256 {seen[:12]})")
    return problems


def damages(manifests: Iterable[Path]) -> list[str]:
    """One sentence, with the remedy, for each damaged or missing file of the artefacts of these manifests.

    Asked before a job reads them: a truncated or changed file would give a result that looks like any other.
    """
    problems = []
    for path in manifests:
        try:
            wrong = as_written(path.parent, read_manifest(path)["files"], known_sha256)
        except (FileNotFoundError, ValueError) as error:
            wrong = [str(error)]
        problems += [f"{problem}; delete {path.parent} and give the command again" for problem in wrong]
    return problems
