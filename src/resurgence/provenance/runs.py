"""The record of a study's runs: run.json of every artefact in one file, results/cost/runs.json.

DVC tracks this record instead of the files run.json, so that a stage keeps its hash when a second run gives the same
artefacts. `restore` writes each run.json back beside its manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resurgence.files import read_json, sha256, write_json
from resurgence.provenance.manifest import MANIFEST, RUN, run_file

RECORD = Path("results/cost/runs.json")


def record(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Folder -> content of its run.json, with the digest of its manifest."""
    return {
        folder.as_posix(): {**read_json(folder / RUN), "manifest": sha256(folder / MANIFEST)}
        for folder in map(Path, folders)
    }


def run_of(place: Path, root: Path = Path()) -> dict[str, Any]:
    """The run of an artefact's folder or a made.json, from its run file or the record; empty if neither has it."""
    manifest = root / place / MANIFEST if (root / place).is_dir() else root / place
    folder, digest, file = manifest.parent.relative_to(root), sha256(manifest), run_file(manifest)
    run = read_json(file) if file.is_file() else {}
    if run.get("manifest") != digest and manifest.name == MANIFEST and (root / RECORD).is_file():
        run = read_json(root / RECORD).get(folder.as_posix(), {})
    return run if run.get("manifest") == digest else {}


def device_of(run: Mapping[str, Any]) -> str:
    """What computed a run: the card, or cpu with its processor and number of threads where the run says them."""
    known = run["device"] == "cpu" and "processor" in run
    return f"cpu ({run['processor']}, threads: {run['threads']})" if known else str(run["device"])


def restore(root: Path = Path()) -> int:
    """Write the missing run.json of artefacts from the record, if it is that of the present manifest.

    Returns:
        number of files written.
    """
    if not (root / RECORD).is_file():
        return 0
    written = 0
    for place, entry in read_json(root / RECORD).items():
        folder = root / place
        if not (folder / MANIFEST).is_file() or sha256(folder / MANIFEST) != entry["manifest"]:
            continue
        present = read_json(folder / RUN) if (folder / RUN).exists() else {}
        if present.get("manifest") != entry["manifest"]:
            write_json(folder / RUN, entry)
            written += 1
    return written
