"""The record of a study's runs: run.json of every artefact in one file, results/cost/runs.json.

DVC does not track the files run.json themselves: a stage of which a second run gives the same artefacts has then the
same hash. Their record travels instead, and `restore` puts each back beside the manifest that it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resurgence.files import sha256, write_json
from resurgence.provenance.manifest import MANIFEST, RUN, run_file

RECORD = Path("results/cost/runs.json")


def record(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Folder -> what its run.json says, with the digest of its manifest."""
    return {
        folder.as_posix(): {**json.loads((folder / RUN).read_text()), "manifest": sha256(folder / MANIFEST)}
        for folder in map(Path, folders)
    }


def run_of(place: Path, root: Path = Path()) -> dict[str, Any]:
    """What is known of the run behind an artefact's folder or a made.json: its run file, the record, or nothing."""
    manifest = root / place / MANIFEST if (root / place).is_dir() else root / place
    folder, wanted, file = manifest.parent.relative_to(root), sha256(manifest), run_file(manifest)
    run = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if run.get("manifest") != wanted and manifest.name == MANIFEST and (root / RECORD).is_file():
        run = json.loads((root / RECORD).read_text(encoding="utf-8")).get(folder.as_posix(), {})
    return run if run.get("manifest") == wanted else {}


def restore(root: Path = Path()) -> int:
    """Write the missing run.json of artefacts from the record, where it belongs to the manifest that is there.

    Returns:
        how many were written.
    """
    if not (root / RECORD).is_file():
        return 0
    written = 0
    for place, entry in json.loads((root / RECORD).read_text()).items():
        folder = root / place
        if not (folder / MANIFEST).is_file() or sha256(folder / MANIFEST) != entry["manifest"]:
            continue
        own = json.loads((folder / RUN).read_text()) if (folder / RUN).exists() else {}
        if own.get("manifest") != entry["manifest"]:
            write_json(folder / RUN, entry)
            written += 1
    return written
