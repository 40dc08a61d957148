"""One file for a data repository: what is needed to check the tables of a finished study, and to go on from its models.

Tables, figures, report, cost; manifest.json and run.json of every artefact; deltas, LoRAs, prompts and scores;
configuration, environment, sources, DVC's files; SHA256SUMS of all. Images only on request: results/omitted.json names
the files that manifests list and the archive leaves out. Equal trees give equal bytes.

    tar xzf FILE && cd FOLDER && sha256sum --quiet -c SHA256SUMS
    PYTHONPATH=src python -m resurgence.cli verify results
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from resurgence.config.counting import counted
from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.files import atomic_file, json_text, resolve_path
from resurgence.provenance.manifest import MANIFEST, RUN, read_manifest
from resurgence.provenance.outputs import check_file, check_writable
from resurgence.provenance.verify import OMITTED, named
from resurgence.workflow.reference import RESULTS, finished, tree, write_reference
from resurgence.workflow.rule_table import RULES

TOP = (
    "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "Makefile", "Snakefile", "pyproject.toml", "params.yaml",
    "dvc.yaml", "dvc.lock",
)  # fmt: skip
TREES = ("config", "studies", "workflow", "profiles", "envs", "src", "docs")
PAGES = ("index.html", "report.html")
WHOLE = (*dict.fromkeys(rule.folder for rule in RULES.values() if rule.archived), *PAGES)  # of results/
WITH_IMAGES = tuple({rule.folder for rule in RULES.values()} - set(WHOLE))
SETS = {rule.part for rule in RULES.values() if rule.folder in WHOLE and not rule.archived}  # of images, in WHOLE
PREFIX = "resurgence-"  # of the folder in an archive
EPOCH = 315532800  # 1980-01-01: no time of change depends on the machine


def results(root: Path, images: bool) -> tuple[list[Path], list[str]]:
    """Files of results/ for the archive, and those that manifests list and it leaves out, as paths from results/."""
    place = root / RESULTS
    files = {path for name in (*WHOLE, *(WITH_IMAGES if images else ())) for path in tree(place / name)}
    files -= set() if images else {path for path in files if SETS & set(path.relative_to(place).parts)}
    omitted = []
    for manifest in named(place, MANIFEST):
        folder = manifest.parent
        facts = [path for path in (manifest, folder / RUN, *folder.glob("prompts.*")) if path.is_file()]
        files |= set(facts)
        listed = (folder / name for name in read_manifest(manifest)["files"])
        omitted += [path.relative_to(place).as_posix() for path in listed if path not in files]
    if not images:
        files |= {place / "grids" / "made.json"} & set(tree(place / "grids"))
        omitted += [p.relative_to(place).as_posix() for p in tree(place / "grids") if p.name != "made.json"]
    return sorted(files), sorted(omitted)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file with nothing of the machine in its header."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(content), EPOCH, 0o644
    tar.addfile(entry, io.BytesIO(content))


def is_archive(file: Path) -> bool:
    """Whether a file is an archive of a study."""
    try:
        with tarfile.open(file) as tar:
            first = tar.next()
    except (tarfile.TarError, EOFError):
        return False
    return first is not None and first.name.startswith(PREFIX)


def write(out: Path, top: str, root: Path = Path(), images: bool = False) -> int:
    """Write the archive; returns how many files it holds.

    Raises:
        FileNotFoundError: the study is not finished.
    """
    if not (root / RESULTS / "tables" / "made.json").is_file():
        raise FileNotFoundError(f"{root / RESULTS}/tables is not finished; run `make study` first")
    from_top = [root / name for name in TOP if (root / name).is_file()]
    from_top += [path for kind in ("dvc.yaml", "dvc.lock", "*.md") for path in root.glob(f"data/*/{kind}")]
    from_top += [path for name in TREES for path in tree(root / name)]
    from_results, omitted = results(root, images)
    sums: list[str] = []
    with (
        atomic_file(out) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=EPOCH, fileobj=raw, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted({*from_top, *from_results}):
            name, content = path.relative_to(root).as_posix(), path.read_bytes()
            add(tar, f"{top}/{name}", content)
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
        content = json_text(omitted).encode()
        add(tar, f"{top}/{RESULTS}/{OMITTED}", content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {RESULTS}/{OMITTED}\n")
        add(tar, f"{top}/SHA256SUMS", "".join(sums).encode())
    return len(sums) + 1


def archive_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence archive`."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: resurgence-STUDY.tar.gz")
    parser.add_argument("--images", action="store_true", help="with image sets, masks and grids")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="no archive: tables, experiments and packed scores to DIR/results"
    )
    parser.add_argument(
        "--add", action="store_true",
        help="with --reference and --overlay: keep the experiments stored in DIR that results/ does not hold",
    )  # fmt: skip
    parser.add_argument(
        "--overlay", type=Path, nargs="*", default=[],
        help="studies laid over params.yaml; with --reference their finished experiments are stored without tables",
    )  # fmt: skip


def run(args: Namespace) -> None:
    """Write the archive of the study in this folder, or a reference."""
    if args.add and not (args.overlay and args.reference):
        remedy = "is for --reference and the experiments of --overlay; add both, or leave --add"
        raise ConfigError("--add", str(args.reference or ""), remedy)
    if args.reference:
        only = load_study([Path(resolve_path("params.yaml")), *args.overlay]).experiments if args.overlay else None
        before = {record.parent.name for record in finished(args.reference / RESULTS)}
        size = write_reference(args.reference, only=only, add=args.add)
        print(f"{args.reference / RESULTS}: {size / 2**20:.1f} MiB")
        there, stored = ({path.parent.name for path in finished(at / RESULTS)} for at in (Path(), args.reference))
        if left := ", ".join(sorted(there - stored)):
            whose = "the one of --overlay" if args.overlay else f"{RESULTS}/tables; run that in another folder"
            print(f"Not in it: {left}, experiments of another study than {whose}")
        if lost := ", ".join(sorted(before - stored)):
            print(f"No longer in it: {lost}, which the study of --overlay does not have")
        print(f"Check it: resurgence verify {args.reference / RESULTS} --tables")
        return
    top = f"{PREFIX}{load_study([Path(resolve_path('params.yaml')), *args.overlay]).study}"
    out = args.out or Path(f"{top}.tar.gz")
    check_file("--out", out, is_archive)
    check_writable([out.parent])
    number = write(Path(os.path.realpath(out)), top, images=args.images)
    print(f"{out}: {counted(number, 'file')}, {out.stat().st_size / 2**20:.1f} MiB")
    print(f"Check it: tar xzf {out.name} && cd {top} && sha256sum --quiet -c SHA256SUMS")
    print("          PYTHONPATH=src python -m resurgence.cli verify results")
