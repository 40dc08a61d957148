"""One file for a data repository: what is needed to check the tables of a finished study, and to go on from its models;
or, for the repository itself, a reference: the tables and experiments of a study with the scores that they follow from.

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
import shutil
import tarfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from resurgence.config.load import load_study
from resurgence.files import atomic_folder, files_below, json_text, write_json
from resurgence.provenance.manifest import MANIFEST, RUN, described, files_of, read_manifest, run_file
from resurgence.provenance.manifest_table import TABLE, pack_manifests, without_command
from resurgence.provenance.outputs import check_file, check_writable
from resurgence.provenance.verify import OMITTED, named
from resurgence.workflow.rule_table import RULES

RESULTS = "results"
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
LARGE = ("features.safetensors",)  # of the scores, eleven times their size: a reference leaves them out


def tree(place: Path) -> list[Path]:
    """A file, or all files below a folder but caches and unfinished artefacts."""
    files = [place] if place.is_file() else files_below(place)
    hidden = ("__pycache__", ".egg-info")

    def shown(path: Path) -> bool:
        parts = path.relative_to(place.parent).parts
        return not any(part.endswith(hidden) or part.startswith(".") for part in parts)

    return [path for path in files if shown(path)]


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


def write_reference(out: Path, root: Path = Path()) -> int:
    """Write the reference of a finished study to out/results; returns the bytes of all files.

    Tables, figures and experiments are copied; scores, weight movements and manifests of its models are packed into the
    few Parquet files of out/results/scores, which DVC carries. Scores of other studies in the same tree stay out. Of a
    study that has run in part, without tables, these are its finished experiments and the scores of their models.

    Raises:
        FileNotFoundError: the study has neither tables nor an experiment. FileExistsError: `out` holds a reference.
    """
    place, new = root / RESULTS, out / RESULTS
    if not blocks(place):
        raise FileNotFoundError(f"{place} holds no tables and no experiment that is finished; run `make study` first")
    if new.exists():
        raise FileExistsError(f"{new} exists; remove it, or name another folder")
    with atomic_folder(new) as temporary:
        for path in [path for part in shown_parts(place) if part.exists() for path in tree(part)]:
            copy = temporary / path.relative_to(place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.name.endswith(RUN):
                copy.write_text(without_command(path), encoding="utf-8")
            else:
                shutil.copyfile(path, copy)
        pack_models(place, temporary)
    return sum(path.stat().st_size for path in tree(new))


def shown_parts(place: Path) -> list[Path]:
    """Tables, figures and the experiments of the study in a results tree, with the page of all experiments."""
    page = place / "experiments" / "made.json"
    names = read_manifest(page)["parameters"]["experiments"] if page.is_file() else ()
    pages = [page, run_file(page), page.with_name("results.md")] if names else []
    if not (place / "tables" / "made.json").is_file():
        names, pages = [record.parent.name for record in finished(place)], []
    return [place / "tables", place / "figures", *(page.parent / name for name in names), *pages]


def finished(place: Path) -> list[Path]:
    """The records of the experiments in a results tree, of whatever study."""
    return sorted((place / "experiments").glob("*/made.json"))


def blocks(place: Path) -> list[dict[str, Any]]:
    """The settings that name the models of a results tree: of the tables, else of the experiments with models."""
    tables = place / "tables" / "made.json"
    settings = [read_manifest(path)["parameters"] for path in ([tables] if tables.is_file() else finished(place))]
    return [block for block in settings if "models" in block]


def pack_models(place: Path, out: Path) -> None:
    """Pack what a results tree holds of the models that it shows into out/scores; out/made.json names the files."""
    from resurgence.analysis.score_archive import pack
    from resurgence.analysis.score_folders import entry

    shown = blocks(place)
    folders = {place.parent / entry(block, model)["path"] for block in shown for model in block["models"]}
    artefacts = {*folders, *(f.with_name("geometry") for f in folders if f.with_name("geometry").is_dir())}
    listed = {Path(name).name for folder in artefacts for name in read_manifest(folder)["files"]}
    packed = out / "scores"
    packed.mkdir()
    pack(place / "scores", folders, packed)
    pack_manifests(place, artefacts, packed / TABLE)
    parameters = {"base": shown[0]["base"], "models": len(folders), "left_out": sorted(listed & set(LARGE))}
    files = {f"{packed.name}/{name}": digest for name, digest in files_of(packed).items()}
    write_json(out / "made.json", {**described("reference", parameters, {}, {}), "files": files})


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
    temporary = out.with_name(f".{out.name}.tmp")
    with (
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
    temporary.rename(out)
    return len(sums) + 1


def archive_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence archive`."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: resurgence-STUDY.tar.gz")
    parser.add_argument("--images", action="store_true", help="with image sets, masks and grids")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="no archive: tables, experiments and packed scores to DIR/results"
    )


def run(args: Namespace) -> None:
    """Write the archive of the study in this folder, or a reference."""
    if args.reference:
        size = write_reference(args.reference)
        print(f"{args.reference / RESULTS}: {size / 2**20:.1f} MiB")
        there, stored = ({path.parent.name for path in finished(at / RESULTS)} for at in (Path(), args.reference))
        if left := ", ".join(sorted(there - stored)):
            print(f"Not in it: {left}, experiments of another study than {RESULTS}/tables; run that in another folder")
        print(f"Check it: resurgence verify {args.reference / RESULTS} --tables")
        return
    top = f"{PREFIX}{load_study([Path('params.yaml')]).study}"
    out = args.out or Path(f"{top}.tar.gz")
    check_file("--out", out, is_archive)
    check_writable([out.parent])
    number = write(Path(os.path.realpath(out)), top, images=args.images)
    print(f"{out}: {number} files, {out.stat().st_size / 2**20:.1f} MiB")
    print(f"Check it: tar xzf {out.name} && cd {top} && sha256sum --quiet -c SHA256SUMS")
    print("          PYTHONPATH=src python -m resurgence.cli verify results")
