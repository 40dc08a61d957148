"""Compare the artefacts of two results trees: python tools/same_bytes.py OLD NEW

The gate of a change that must not move a result. Every artefact (a folder with manifest.json) of the one tree must be
in the other with the same files of the same SHA-256; of tables, figures and grids the bytes themselves are compared.
What differs from run to run (run.json, cost, times, the report) is left out, and so are the manifests themselves. Exit
code 1 and a line for each difference; 0 and a count when there is none.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

FOLDERS = ("tables", "figures", "grids", "experiments")  # whose files several jobs write; compared byte by byte
VARYING = ("made.json", "run.json")


def digests(root: Path) -> dict[str, str]:
    """Path of a file -> its SHA-256: as manifests list it, and of the shared folders as it is."""
    found = {}
    for manifest in root.rglob("manifest.json"):
        folder = manifest.parent.relative_to(root)
        files = json.loads(manifest.read_text())["files"]
        found |= {(folder / name).as_posix(): digest for name, digest in files.items()}
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.is_file() and not path.name.endswith(VARYING):
                found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> int:
    """Print the differences of two trees."""
    old, new = (digests(Path(argument)) for argument in sys.argv[1:3])
    differences = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    for name in differences:
        state = "only in the old tree" if name not in new else "only in the new tree" if name not in old else "differs"
        print(f"{name}: {state}")
    if not differences:
        print(f"{len(old)} files are the same")
    return int(bool(differences) or not old)


if __name__ == "__main__":
    sys.exit(main())
