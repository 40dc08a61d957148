"""Hash a results tree again and name every missing, changed or unlisted file. Works on an unpacked archive too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from resurgence.provenance.manifest import MANIFEST, as_written, read_manifest, run_file, unlisted

OMITTED = "omitted.json"  # files that manifests list and an archive leaves out, as paths from the results tree
MADE = ("made.json", "report.json")  # manifests of files that several jobs put into one folder
# folders of a results tree whose files no manifest names: times of jobs, DVC's view of the graph, the world
UNNAMED = {"benchmarks", "expected.json", "world"}


def made_files(root: Path) -> list[Path]:
    """The manifests of shared folders."""
    return sorted(path for name in MADE for path in root.rglob(name) if set(read_json_keys(path)) >= {"kind", "files"})


def read_json_keys(path: Path) -> list[str]:
    """The keys of a manifest; none for a file that is not one."""
    try:
        return list(read_manifest(path))
    except ValueError:
        return []


def omitted(root: Path) -> set[Path]:
    """Files that an archive leaves out."""
    file = root / OMITTED
    return {(root / name).resolve() for name in json.loads(file.read_text())} if file.is_file() else set()


def told(root: Path) -> Iterator[str]:
    """One sentence for each problem below a folder."""
    artefacts, left = {path.parent for path in root.rglob(MANIFEST)}, omitted(root)
    named: set[Path] = {(root / OMITTED).resolve()}
    for folder in sorted(artefacts):
        yield from artefact(folder, left)
    named |= {run_file(path).resolve() for name in MADE for path in root.rglob(name)}
    for path in made_files(root):
        files = read_manifest(path)["files"]
        yield from as_written(path.parent, there(path.parent, files, left))
        named |= {path.resolve(), *((path.parent / name).resolve() for name in files)}
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        inside = not artefacts.isdisjoint(path.parents)
        if path.is_file() and not inside and path.resolve() not in named and not set(place.parts) & UNNAMED:
            if path.name in MADE:
                yield f"{path} is damaged: it is no manifest"
            elif path.name not in (".gitkeep", ".gitignore"):
                yield f"{path} is not listed in any manifest"


def there(folder: Path, files: Mapping[str, str], left: set[Path]) -> dict[str, str]:
    """The files of a manifest that are to be there."""
    return {name: digest for name, digest in files.items() if (folder / name).resolve() not in left}


def artefact(folder: Path, left: set[Path]) -> list[str]:
    """The problems of one artefact."""
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return [str(error)]
    more = [f"{folder / name} is not part of the artefact" for name in unlisted(folder, files)]
    return as_written(folder, there(folder, files, left)) + more


def count(root: Path) -> int:
    """Files that manifests name and that are there."""
    left = omitted(root)
    every = [*root.rglob(MANIFEST), *made_files(root)]
    return sum(len(there(path.parent, read_manifest(path)["files"], left)) for path in every)
