"""Compare the artefacts of two results trees: python tools/same_bytes.py OLD NEW

The test of a change that must not alter results. Every artefact (a folder with manifest.json) of one tree must be in
the other with the same files of the same SHA-256; the files of tables, figures, grids and experiments are compared
themselves. Files that differ from run to run (run.json, cost, times, the report) and the manifests are not compared.
Exit code 1 and a line for each difference; 0 and the number of files without any.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

FOLDERS = ("tables", "figures", "grids", "experiments")  # without manifest.json, as several jobs write to them
VARYING = ("made.json", "run.json")


def digests(root: Path) -> dict[str, str]:
    """Path of a file -> its SHA-256, from manifests; computed for the files of FOLDERS."""
    checksums = {}
    for manifest in root.rglob("manifest.json"):
        folder = manifest.parent.relative_to(root)
        files = json.loads(manifest.read_text())["files"]
        checksums |= {(folder / name).as_posix(): digest for name, digest in files.items()}
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.is_file() and not path.name.endswith(VARYING):
                checksums[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return checksums


def main() -> int:
    """Print the differences of two trees."""
    if len(sys.argv) != 3:
        sys.exit(f"Error: {len(sys.argv) - 1} folders are named; write python tools/same_bytes.py OLD NEW")
    old, new = (digests(Path(argument)) for argument in sys.argv[1:])
    differences = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    for name in differences:
        state = "only in the old tree" if name not in new else "only in the new tree" if name not in old else "differs"
        print(f"{name}: {state}")
    if not differences:
        print(f"{len(old)} files are the same")
    return int(bool(differences) or not old)


if __name__ == "__main__":
    sys.exit(main())
