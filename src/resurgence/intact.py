"""Whether artefacts are as their manifests say, asked before a job reads them: python -m resurgence.intact MANIFEST...

A file that was cut off or changed since it was written would give a result that looks like any other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from resurgence.manifest import as_written, read_manifest


def damages(manifests: Iterable[Path]) -> list[str]:
    """One sentence for each damaged or missing file of the artefacts, the remedy with it."""
    found = []
    for path in manifests:
        try:
            wrong = as_written(path.parent, read_manifest(path)["files"])
        except (FileNotFoundError, ValueError) as error:
            wrong = [str(error)]
        found += [f"{problem}; delete {path.parent} and give the command again" for problem in wrong]
    return found


def main() -> int:
    """Print what is damaged; 1 if anything is."""
    found = damages(map(Path, sys.argv[1:]))
    for problem in found:
        print(problem, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
