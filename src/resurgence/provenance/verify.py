"""Hash a results tree again and report each missing, changed or unlisted file; also of an unpacked archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from resurgence.files import files_below
from resurgence.provenance.manifest import MANIFEST, as_written, read_manifest, run_file, verify, without

OMITTED = "omitted.json"  # files in manifests that an archive omits, as paths from the results tree
MADE = ("made.json", "index.json", "report.json")  # manifests of files that several jobs put into one folder
# in a results tree, what no manifest lists: times of jobs, what `resurgence compare` draws, DVC's view, the world
UNLISTED = {"benchmarks", "compare", "expected.json", "world"}


def made_files(root: Path) -> list[Path]:
    """The manifests of shared folders."""
    return [path for path in named(root, *MADE) if set(read_json_keys(path)) >= {"kind", "files"}]


def named(root: Path, *names: str) -> list[Path]:
    """The files of these names below a folder, also behind links to other disks."""
    return [path for path in files_below(root) if path.name in names]


def read_json_keys(path: Path) -> list[str]:
    """The keys of a manifest; none for a file that is not one."""
    try:
        return list(read_manifest(path))
    except ValueError:
        return []


def omitted(root: Path) -> set[Path]:
    """Files that an archive omits."""
    file = root / OMITTED
    return {(root / name).resolve() for name in json.loads(file.read_text())} if file.is_file() else set()


def problems(root: Path) -> Iterator[str]:
    """One sentence for each problem below a folder."""
    artefacts, left_out = {path.parent for path in named(root, MANIFEST)}, omitted(root)
    listed: set[Path] = {(root / OMITTED).resolve()}
    for folder in sorted(artefacts):
        yield from verify(folder, left_out)
    listed |= {run_file(path).resolve() for path in named(root, *MADE)}
    for path in made_files(root):
        files = read_manifest(path)["files"]
        yield from as_written(path.parent, without(path.parent, files, left_out))
        listed |= {path.resolve(), *((path.parent / name).resolve() for name in files)}
    for path in files_below(root):
        place = path.relative_to(root)
        inside = not artefacts.isdisjoint(path.parents)
        if not inside and path.resolve() not in listed and not set(place.parts) & UNLISTED:
            if path.name in MADE:
                yield f"{path} is damaged: it is no manifest"
            elif path.name not in (".gitkeep", ".gitignore"):
                yield f"{path} is not listed in any manifest"


def count(root: Path) -> int:
    """Number of files in all manifests without those that an archive omits."""
    left_out = omitted(root)
    manifests = [*named(root, MANIFEST), *made_files(root)]
    return sum(len(without(path.parent, read_manifest(path)["files"], left_out)) for path in manifests)
